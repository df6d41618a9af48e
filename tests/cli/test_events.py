"""`token-meter events`: tail, follow, export, show."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import EVENTS, Cli, clean_environment, command, recent, store
from tests.cli.journals import write_journal
from token_meter.event import MeterEvent
from token_meter.testing.builders import make_event
from token_meter.usage import Usage


@pytest.mark.usefixtures("ledger")
def test_tail_shows_the_newest_last(cli: Cli) -> None:
    result = cli("events", "tail", "-n", "2")

    assert result.lines == [
        "time                 customer  model              operation  input  cached  output  status     id",
        "─" * 100,
        "2026-01-01 00:00:04  globex    claude-sonnet-4-5  chat           3       0       0  estimated  evt_4",
        "2026-01-01 00:00:05  (none)    gpt-5-2025-08-07   chat           1       0       1  partial    evt_5",
    ]


@pytest.mark.usefixtures("ledger")
def test_tail_takes_filters_and_a_time_zone(cli: Cli) -> None:
    shown = cli("events", "tail", "--customer", "globex", "--status", "complete", "--time-zone", "Asia/Tokyo")

    assert [line.split()[-1] for line in shown.lines[2:]] == ["evt_3"]
    assert shown.lines[2].startswith("2026-01-01 09:00:03")


@pytest.mark.usefixtures("ledger")
def test_tail_as_json_csv_and_markdown(cli: Cli) -> None:
    assert [MeterEvent.from_json(each) for each in cli("events", "tail", "--json").json] == list(EVENTS)
    assert len(list(csv.DictReader(io.StringIO(cli("events", "tail", "--csv").out)))) == 5
    assert cli("events", "tail", "--markdown", "-n", "1").lines[2].startswith("| 2026-01-01 00:00:05 | (none) |")


@pytest.mark.usefixtures("ledger")
def test_jsonl_export_is_every_event_in_its_stable_form(cli: Cli) -> None:
    exported = cli("events", "export").out

    assert [MeterEvent.from_json(json.loads(line)) for line in exported.splitlines()] == list(EVENTS)
    assert exported == cli("events", "export", "--json").out


@pytest.mark.usefixtures("ledger")
def test_csv_export_has_a_column_per_token_type(cli: Cli) -> None:
    rows = list(csv.DictReader(io.StringIO(cli("events", "export", "--format", "csv").out)))

    assert rows[0]["id"] == "evt_1" and rows[0]["tokens"] == "1600"
    assert {name: rows[0][name] for name in ("input", "cache_read", "output", "reasoning")} == {
        "input": "1000", "cache_read": "500", "output": "100", "reasoning": ""
    }  # fmt: skip
    assert json.loads(rows[0]["dimensions"]) == {"feature": "chat"}


def test_csv_export_cells_are_no_formulas(cli: Cli) -> None:
    store([make_event(1, customer='=HYPERLINK("http://x","y")', model="@x", dimensions={"+a": "-1"})])

    (row,) = csv.DictReader(io.StringIO(cli("events", "export", "--csv").out))

    assert row["customer"] == '\'=HYPERLINK("http://x","y")'
    assert row["model"] == "'@x"
    assert not any(value.startswith(("=", "+", "-", "@", "\t")) for value in row.values())


def test_names_that_no_encoding_knows_are_exported_all_the_same(cli: Cli) -> None:
    store([make_event(1, customer="half\ud800")])

    (row,) = csv.DictReader(io.StringIO(cli("events", "export", "--csv").out))
    (event,) = cli("events", "tail", "--json").json
    assert row["customer"] == "half\\ud800"
    assert event["customer"] == "half\ud800"


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    "arguments",
    [["tail", "-n", "-1"], ["tail", "-n", "9" * 20], ["export", "--format", "xml"], ["tail", "-f", "--csv"]],
)
def test_wrong_usage(cli: Cli, arguments: list[str]) -> None:
    result = cli("events", *arguments)

    assert result.code == 2 and result.err.count("\n") == 1


def test_show_finds_an_event_by_its_id_or_the_end_of_it(cli: Cli) -> None:
    id = "01a1fde9-e30e-7e67-8df1-4b6dfe422544"
    event = recent(1, id=id, raw_usage={"prompt_tokens": 3})
    store([event, recent(2, id="plain-one"), recent(3, id="other-one")])

    assert cli("events", "show", id).json == event.to_json()
    assert cli("events", "show", "4b6dfe422544").json["raw_usage"] == {"prompt_tokens": 3}
    assert cli("events", "show", "plain-one").json["id"] == "plain-one"
    unknown = cli("events", "show", "nowhere")
    assert unknown.code == 1 and "no event has the id 'nowhere'" in unknown.err


def test_show_by_the_end_that_two_share_asks_for_more(cli: Cli) -> None:
    store([recent(1, id="a-same"), recent(2, id="b-same")])

    result = cli("events", "show", "same")

    assert result.code == 1 and "2 events have an id that ends in 'same'" in result.err


# ---- follow ----


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`events tail --follow --json -n 1` on a ledger with one recent event."""
    store([recent(1), recent(0, customer="before")])
    process = subprocess.Popen(
        command("events", "tail", "--follow", "--json", "-n", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
    )
    with process:
        yield process
        process.kill()


def _next_id(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(json.loads(process.stdout.readline())["id"])


@pytest.mark.timeout(30)
def test_follow_shows_each_new_event_once_and_ends_with_ctrl_c(followed: subprocess.Popen[str], tmp_path: Path) -> None:
    assert _next_id(followed) == "evt_1"

    store([recent(2), recent(3)])
    assert [_next_id(followed), _next_id(followed)] == ["evt_2", "evt_3"]
    store([recent(1, id="late_for_its_time")])
    assert _next_id(followed) == "late_for_its_time"
    store([make_event(1, id="from_a_clock_ahead", time=datetime.now(UTC) + timedelta(hours=2))])
    assert _next_id(followed) == "from_a_clock_ahead"
    write_journal(tmp_path / "usage.db.journal", [recent(4, time=datetime.now(UTC))])
    assert _next_id(followed) == "evt_4"

    followed.send_signal(signal.SIGINT)
    out, err = followed.communicate(timeout=10)
    assert (followed.returncode, out, err) == (130, "", "")


# ---- much ----

MANY = 50_000
# Not `ru_maxrss`: a child inherits that from the process that started it.
MEASURED = """
import re, sys
from pathlib import Path
from token_meter.cli import main
try:
    main(sys.argv[1:])
finally:
    sys.stderr.write(re.search("VmHWM:.*?([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with many events."""
    path = tmp_path_factory.mktemp("large") / "usage.db"
    for start in range(0, MANY, 10_000):
        store([make_event(number, usage=Usage(input=number + 1)) for number in range(start, start + 10_000)], str(path))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_export_of_many_events_takes_constant_memory(large: Path, format: str) -> None:
    def peak(*more: str) -> tuple[int, int]:
        arguments = ["events", "export", "--ledger", str(large), "--format", format, *more]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, env=clean_environment()
        )
        assert done.returncode == 0
        return done.stdout.count("\n"), int(done.stderr)

    few, few_peak = peak("--until", "2026-01-01T02:46:40Z")
    many, many_peak = peak()

    assert (few, many) == ((10_000, MANY) if format == "jsonl" else (10_001, MANY + 1))
    assert many_peak - few_peak < 20_000  # KiB: a page cache grows by half of that, the lines alone would take more


def test_a_reader_that_goes_away_ends_it_quietly(large: Path) -> None:
    script = f"{sys.executable} -m token_meter.cli events export --ledger {large} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=clean_environment())

    first, code = done.stdout.splitlines()
    assert json.loads(first)["id"] == "evt_0"
    assert (code, done.stderr) == ("141", "")


@pytest.mark.parametrize("errors", ["", "2>&1"])
def test_a_table_that_nobody_reads_ends_the_same_way(large: Path, errors: str) -> None:
    script = f"{sys.executable} -m token_meter.cli usage --ledger {large} {errors} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=clean_environment())

    assert done.stdout == "141\n"
