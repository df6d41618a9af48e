"""`token-meter deliver`: status, run (once and as a sidecar), forget, quarantine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, clean_environment, command, recent
from tests.cli.journals import delivering, write_journal
from token_meter.folder import JournalFolder

JOURNAL = Path("usage.db.journal")
EVENTS = [recent(number) for number in range(3)]

SINKS = """
from token_meter.errors import Rejected

class Refusing:
    name = "refusing"
    def send(self, events):
        raise Rejected(events, "wrong currency")

class Broken:
    name = "broken"
    def send(self, events):
        raise RuntimeError("out of order")

kept = []
class Keeping:
    name = "keeping"
    def send(self, events):
        kept.extend(event.id for event in events)

made = Keeping()
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Three events that wait for the ledger."""
    write_journal(JOURNAL, EVENTS)
    return tmp_path / JOURNAL


@pytest.fixture
def sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with sinks of a user's, importable from the working directory."""
    name = f"sinks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SINKS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.usefixtures("journal")
def test_status_says_what_waits(cli: Cli) -> None:
    result = cli("deliver", "status", "--csv")

    heading, row = result.out.splitlines()
    assert heading == "sink,delivered,backlog,oldest,quarantined,delivering,last_error"
    assert re.fullmatch(r"ledger,0,3,\d+ min,0,,", row)
    (state,) = cli("deliver", "status", "--json").json["deliveries"]
    assert (state["backlog_events"], state["holder"]) == (3, None)
    assert state["oldest_age_seconds"] > 290


def test_status_names_the_process_that_delivers(cli: Cli, journal: Path) -> None:
    with delivering(journal, "ledger"):
        assert "process " in cli("deliver", "status").out


def test_without_a_journal_there_is_nothing_to_do(cli: Cli, tmp_path: Path) -> None:
    for arguments in (["status"], ["run"], ["forget", "x"], ["quarantine", "list"]):
        result = cli("deliver", *arguments)

        assert result.code == 3 and "no journal at usage.db.journal" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("journal")
def test_run_delivers_to_the_ledger_once(cli: Cli) -> None:
    first, second = cli("deliver", "run", "--json"), cli("deliver", "run")

    assert first.json == [
        {"sink": "ledger", "sent": 3, "quarantined": 0, "complete": True, "error": None, "holder": None}
    ]
    assert (second.code, second.out) == (0, "ledger: delivered 0 events\n")
    assert cli("usage", "--json").json["total"]["events"] == 3


OPENER = """
import os, signal
from token_meter.journal import Journal
journal = Journal("usage.db.journal")
line = b'{"kind":"opened","schema":1,"id":"killed","time":"2026-11-21T10:00:00Z","customer":"acme"}\\n'
journal.opened("killed", line)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_run_closes_the_books_of_a_killed_program(cli: Cli) -> None:
    """A call was opened and its process died: its event says that nobody knows what it cost."""
    killed = subprocess.run([sys.executable, "-c", OPENER], env=clean_environment())
    assert killed.returncode == -signal.SIGKILL

    assert cli("deliver", "run").out == "ledger: delivered 1 event\n"
    (event,) = cli("events", "tail", "--json").json
    assert (event["id"], event["status"], event["customer"]) == ("killed", "unmetered", "acme")


@pytest.mark.usefixtures("journal")
def test_a_new_sink_is_added_only_when_asked_for(cli: Cli, tmp_path: Path) -> None:
    refused = cli("deliver", "run", "--sink", "jsonl:copy.jsonl")
    assert refused.code == 2 and "--add" in refused.err
    assert not (tmp_path / "copy.jsonl").exists()

    added = cli("deliver", "run", "--sink", "audit=jsonl:copy.jsonl", "--replay")

    assert added.out == "audit: delivered 3 events\n" and "not delivered by this command: ledger" in added.err
    ids = [json.loads(each)["id"] for each in (tmp_path / "copy.jsonl").read_text().splitlines()]
    assert ids == [event.id for event in EVENTS]


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("attribute", ["made", "Keeping"])
def test_a_sink_of_the_users_own(cli: Cli, sinks: str, attribute: str) -> None:
    result = cli("deliver", "run", "--sink", "ledger", "--sink", f"{sinks}:{attribute}", "--replay")

    assert (result.code, sorted(result.out.splitlines())) == (
        0,
        ["keeping: delivered 3 events", "ledger: delivered 3 events"],
    )
    module = __import__(sinks)
    assert module.kept == [event.id for event in EVENTS]


@pytest.mark.usefixtures("journal")
def test_a_sink_that_fails_leaves_everything_in_the_journal(cli: Cli, sinks: str) -> None:
    result = cli("deliver", "run", "--sink", f"{sinks}:Broken", "--replay", "--timeout", "0")

    assert result.code == 1
    assert "not everything" in result.out
    assert "broken,0,3," in cli("deliver", "status", "--csv").out


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ("", "names no sink"),
        ("jsonl", "names no sink"),
        ("nowhere:x", "cannot load the sink nowhere:x"),
        ("json:nothing", "cannot load the sink json:nothing"),
        ("json:decoder", "is no sink"),
    ],
)
def test_a_sink_that_does_not_exist_is_wrong_usage(cli: Cli, sink: str, said: str) -> None:
    result = cli("deliver", "run", "--sink", sink)

    assert result.code == 2 and said in result.err


@pytest.mark.usefixtures("journal")
def test_two_sinks_of_one_name_are_refused(cli: Cli) -> None:
    result = cli("deliver", "run", "--sink", "jsonl:a", "--sink", "jsonl:b", "--add")

    assert result.code == 2 and "two sinks are called 'jsonl'" in result.err


def test_forget_gives_a_sink_up_and_says_what_that_costs(cli: Cli, journal: Path) -> None:
    assert cli("deliver", "forget", "ledger").code == 2  # nobody to ask
    misspelt = cli("deliver", "forget", "ledgr", "--yes")
    assert misspelt.code == 2 and "Did you mean 'ledger'?" in misspelt.err

    result = cli("deliver", "forget", "ledger", "--yes")

    assert (result.code, result.out) == (0, "ledger is forgotten; 3 events will not reach it\n")
    assert JournalFolder(journal).registered() == ()


def test_forget_waits_for_nobody_who_delivers(cli: Cli, journal: Path) -> None:
    with delivering(journal, "ledger"):
        result = cli("deliver", "forget", "ledger", "--yes")

    assert result.code == 1 and "a running process delivers" in result.err
    assert JournalFolder(journal).registered() == ("ledger",)


@pytest.fixture
def sidecar(tmp_path: Path, journal: Path) -> Iterator[subprocess.Popen[str]]:
    """`deliver run --watch` beside the journal."""
    process = subprocess.Popen(
        command("deliver", "run", "--watch", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
    )
    with process:
        yield process
        process.kill()


@pytest.mark.timeout(40)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sidecar_delivers_until_told_to_stop(
    sidecar: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, cli: Cli
) -> None:
    assert sidecar.stdout is not None
    assert json.loads(sidecar.stdout.readline())["sent"] == 3
    write_journal(tmp_path / JOURNAL, [recent(7)])
    assert json.loads(sidecar.stdout.readline())["sent"] == 1

    write_journal(tmp_path / JOURNAL, [recent(8)])
    sidecar.send_signal(number)
    begun = time.monotonic()
    _, err = sidecar.communicate(timeout=20)

    assert (sidecar.returncode, err) == (0, "")
    assert time.monotonic() - begun < 15
    (state,) = cli("deliver", "status", "--json").json["deliveries"]
    assert (state["delivered"], state["backlog_events"]) == (5, 0)
