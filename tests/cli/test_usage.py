"""`token-meter usage`: the numbers, the shapes they come in, and what is refused."""

from __future__ import annotations

import csv
import io
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, clean_environment, store
from tests.cli.journals import delivering, write_journal
from token_meter.cli.catch_up import feeds_the_ledger
from token_meter.cli.place import find
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

pytestmark = pytest.mark.usefixtures("ledger")


def test_usage_by_customer_and_model_with_totals(cli: Cli) -> None:
    result = cli("usage")

    assert result.code == 0
    assert result.lines == [
        "customer  model              calls  input  cached input  cache write  output  tokens",
        "────────────────────────────────────────────────────────────────────────────────────",
        "acme      gpt-5-2025-08-07       1  1,000           500            0     100   1,600",
        "acme      gpt-5-mini             1     10             0            0      12      22",
        "globex    claude-sonnet-4-5      2     23             0           30       2      55",
        "(none)    gpt-5-2025-08-07       1      1             0            0       1       2",
        "total                            5  1,034           500           30     115   1,679",
    ]


def test_what_is_not_sure_is_a_footnote_on_standard_error(cli: Cli) -> None:
    said = cli("usage").err.splitlines()

    assert said == [
        "estimated: 1 call of 5 (20.0 %): the provider told no counts, so they are estimated",
        "partial: 1 call of 5 (20.0 %): ended early, with the provider's counts up to there",
    ]


def test_sure_numbers_have_no_footnote(cli: Cli) -> None:
    assert cli("usage", "--customer", "acme").err == ""


def test_rare_headlines_have_a_column_only_when_used(cli: Cli) -> None:
    store([make_event(9, usage=Usage(cached_output=4, web_search=2), customer="initech")])

    heading = cli("usage", "--by", "customer").lines[0]
    assert heading.split("  ") == [
        "customer", "calls", "input", "cached input", "cache write", "output", "cached output", "other", "tokens"
    ]  # fmt: skip
    assert "cached output" not in cli("usage", "--customer", "acme").out


def test_by_token_type_shows_quantities_and_units(cli: Cli) -> None:
    result = cli("usage", "--by", "customer,token_type", "--customer", "acme")

    assert result.lines[2:] == [
        "acme      input          1,010  token",
        "acme      cache_read       500  token",
        "acme      output           105  token",
        "acme      reasoning          7  token",
    ]


def test_by_headline_and_by_dimension(cli: Cli) -> None:
    result = cli("usage", "--by", "feature,headline", "--csv")

    assert result.out.splitlines() == [
        "feature,headline,quantity",
        "chat,input,1010",
        "chat,cached input,500",
        "chat,output,112",
        ",input,24",
        ",cache write,30",
        ",output,3",
    ]


def test_json_holds_exact_types_and_the_same_totals(cli: Cli) -> None:
    document = cli("usage", "--json", "--by", "customer", "--customer", "acme").json

    assert document == {
        "ledger": "usage.db",
        "delivered_first": 0,
        "by": ["customer"],
        "bucket": None,
        "rows": [
            {
                "customer": "acme",
                "events": 2,
                "tokens": 1622,
                "usage": {"cache_read": 500, "input": 1010, "output": 105, "reasoning": 7},
                "headlines": {"input": 1010, "cached input": 500, "output": 112},
            }
        ],
        "total": {
            "events": 2,
            "tokens": 1622,
            "usage": {"cache_read": 500, "input": 1010, "output": 105, "reasoning": 7},
            "headlines": {"input": 1010, "cached input": 500, "output": 112},
        },
        "by_status": {"complete": 2},
    }


def test_markdown_table(cli: Cli) -> None:
    result = cli("usage", "--by", "customer", "--customer", "acme", "--markdown")

    assert result.out.splitlines() == [
        "| customer | calls | input | cached input | cache write | output | tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| acme | 2 | 1,010 | 500 | 0 | 112 | 1,622 |",
        "| total | 2 | 1,010 | 500 | 0 | 112 | 1,622 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        (["--unattributed"], 2),
        (["--status", "estimated"], 3),
        (["--model", "gpt-5-mini"], 22),
        (["--dimension", "feature=chat"], 1622),
        (["--provider", "nobody"], 0),
        (["--since", "2026-01-01T00:00:03Z"], 57),
        (["--until", "2026-01-01T00:00:03Z"], 1622),
        (["--since", "2026-01-01T01:00:02", "--time-zone", "Europe/Berlin"], 79),
        (["--since", "2026-01", "--until", "2026-02"], 1679),
        (["--since", "1d"], 0),
    ],
)
def test_filters(cli: Cli, arguments: list[str], tokens: int) -> None:
    result = cli("usage", "--json", *arguments)

    assert result.code == 0
    assert result.json["total"]["tokens"] == tokens


def test_buckets_are_days_of_the_time_zone(cli: Cli) -> None:
    store([make_event(20, time=datetime(2026, 1, 1, 23, 30, tzinfo=UTC), usage=Usage(input=7))])

    in_utc, in_berlin = (
        cli("usage", "--bucket", "day", "--by", "customer", "--customer", "acme", "--csv", "--time-zone", zone).out
        for zone in ("UTC", "Europe/Berlin")
    )
    assert [row["day"] for row in csv.DictReader(io.StringIO(in_utc.replace("bucket", "day", 1)))] == ["2026-01-01"]
    assert [line.split(",")[0] for line in in_berlin.splitlines()[1:]] == ["2026-01-01", "2026-01-02"]


def test_nothing_matched_is_no_failure_and_says_what_to_do(cli: Cli) -> None:
    result = cli("usage", "--customer", "nobody")

    assert result.code == 0
    assert "customers list" in result.err


def test_other_meters_are_shown_when_asked_for(cli: Cli) -> None:
    store([make_event(30, meter="api_calls", usage=Usage(units=5), customer="initech")])

    assert "initech" not in cli("usage", "--json").out
    assert cli("usage", "--json", "--meter", "api_calls").json["total"]["usage"] == {"units": 5}
    assert len(cli("usage", "--json", "--by", "meter").json["rows"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "soonish"], "'soonish' is no time"),
        (["--since", "2026-02", "--until", "2026-01"], "is not before"),
        (["--time-zone", "Mars/Olympus"], "no time zone is called 'Mars/Olympus'"),
        (["--status", "estimate"], "Did you mean 'estimated'?"),
        (["--bucket", "week"], "--bucket is hour, day or month"),
        (["--by", ","], "--by wants"),
        (["--by", "custmer"], "Did you mean 'customer'?"),
        (["--dimension", "chat"], "wants NAME=VALUE"),
        (["--json", "--csv"], "choose one"),
        (["--customer", "acme", "--unattributed"], "exclude each other"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli: Cli, arguments: list[str], said: str) -> None:
    result = cli("usage", *arguments)

    assert result.code == 2
    assert said in result.err
    assert result.err.startswith("token-meter: ") and result.err.count("\n") == 1
    assert result.out == ""


def test_names_cannot_steer_a_terminal_or_a_table(cli: Cli) -> None:
    store([make_event(40, customer="evil\x1b[2J\u202e|x\n[red]y[/red]", usage=Usage(input=1))])

    plain = cli("usage", "--by", "customer").out
    assert "evil\\x1b[2J\\u202e|x\\n[red]y[/red]" in plain
    assert not {"\x1b", "\u202e"} & set(plain)
    rows = [line for line in cli("usage", "--by", "customer", "--markdown").out.splitlines() if "evil" in line]
    assert len(rows) == 1 and rows[0].replace("\\|", "").count("|") == 8


def test_csv_cells_are_no_formulas(cli: Cli) -> None:
    names = ["=1+1", "+1+A1", "-A1", "@SUM(A1)", "\tx", "＝1"]
    store([make_event(50 + place, customer=name, usage=Usage(input=1)) for place, name in enumerate(names)])

    rows = list(csv.DictReader(io.StringIO(cli("usage", "--by", "customer", "--csv").out)))
    assert {row["customer"] for row in rows if row["customer"].startswith("'")} == {f"'{name}" for name in names}
    assert all(int(row["input"]) >= 0 for row in rows)


# ---- where there is no ledger ----


def test_a_missing_ledger_is_not_made_by_reading(cli: Cli, tmp_path: Path) -> None:
    result = cli("usage", "--ledger", "other.db")

    assert result.code == 3
    assert "no ledger at other.db; run `token-meter demo`" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["usage.db"]


def test_the_environment_names_the_ledger_and_the_option_wins(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_METER_LEDGER", "other.db")

    assert cli("usage").code == 3
    assert cli("usage", "--ledger", "sqlite:///usage.db").code == 0


def test_another_programs_database_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    other = sqlite3.connect("other.db")
    with other:
        other.execute("CREATE TABLE cats (name TEXT)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()

    result = cli("usage", "--ledger", "other.db")

    assert result.code == 3
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_file_that_is_no_database_is_one_clear_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("to do: buy milk\n" * 100)

    result = cli("usage", "--ledger", "notes.txt")

    assert result.code == 1
    assert "notes.txt" in result.err and "not a database" in result.err
    assert result.err.count("\n") == 1


def test_an_unreachable_server_does_not_leak_the_password(program: Cli) -> None:
    result = program("usage", TOKEN_METER_LEDGER="postgresql://bob:hunter2@127.0.0.1:1/billing?connect_timeout=2")

    assert result.code == 1
    assert "cannot open the ledger" in result.err and "Traceback" not in result.err
    assert "hunter2" not in result.err + result.out


# ---- what a killed program left ----

WRITER = """
import os, signal
from token_meter import Meter, Usage
meter = Meter("killed.db")
for number in range(5):
    meter.record(Usage(input=10), model="gpt-5", customer="acme")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_usage_of_a_killed_program_shows(program: Cli, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", WRITER], cwd=tmp_path, env=clean_environment())
    assert killed.returncode == -signal.SIGKILL

    results = [program("usage", "--ledger", "killed.db", "--json") for _ in range(2)]

    assert [result.json["total"]["usage"] for result in results] == [{"input": 50}, {"input": 50}]
    assert results[1].json["delivered_first"] == 0


def test_what_waits_in_the_journal_is_delivered_first_and_said(cli: Cli, tmp_path: Path) -> None:
    write_journal(tmp_path / "usage.db.journal", [make_event(60 + number, customer="late") for number in range(3)])

    result = cli("usage", "--by", "customer", "--customer", "late")

    assert "delivered 3 events from the journal first" in result.err
    assert result.lines[-1].split() == ["total", "3", "9", "0", "0", "3", "12"]
    assert "journal" not in cli("usage").err


def test_a_journal_of_other_sinks_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    write_journal(tmp_path / "usage.db.journal", [make_event(70, customer="late")], sinks=["elsewhere"])

    assert cli("usage", "--customer", "late", "--json").json["rows"] == []


def test_a_journal_that_may_be_another_ledgers_is_left_alone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal does not know which ledger it feeds: reading one ledger must not fill it with another's events."""
    write_journal(tmp_path / "configured.journal", [make_event(90, customer="late")])
    monkeypatch.setenv("TOKEN_METER_JOURNAL", "configured.journal")
    store([make_event(91)], "other.db")

    assert cli("usage", "--ledger", "other.db", "--json").json["delivered_first"] == 0
    assert cli("usage", "--json").json["delivered_first"] == 1


def test_a_journal_that_lies_here_is_not_delivered_to_any_server_one_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_journal(tmp_path / "token_meter.journal", [make_event(90)])

    assert not feeds_the_ledger(find("postgresql://elsewhere/x"))
    monkeypatch.setenv("TOKEN_METER_LEDGER", "postgresql://elsewhere/x")
    assert feeds_the_ledger(find("postgresql://elsewhere/x"))
    assert feeds_the_ledger(find("postgresql://other/x", tmp_path / "token_meter.journal"))


def test_reading_never_waits_for_a_program_that_delivers(cli: Cli, tmp_path: Path) -> None:
    write_journal(tmp_path / "usage.db.journal", [make_event(80, customer="late")])
    with delivering(tmp_path / "usage.db.journal", "ledger"):
        result = cli("usage", "--customer", "late", "--json")

    assert result.code == 0 and result.json["rows"] == []
    assert os.path.exists("usage.db")
