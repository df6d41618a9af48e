"""`token-meter deliver quarantine`: what was refused, releasing it, discarding it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Result, recent, store
from tests.cli.journals import delivering, line, write_journal
from token_meter.journal import Journal

JOURNAL = Path("usage.db.journal")
EVENTS = [recent(number, customer="acme" if number else None) for number in range(3)]

SINK = """
import pathlib
from token_meter.errors import Rejected

class Moody:
    name = "moody"
    def send(self, events):
        if not pathlib.Path("friendly").exists():
            raise Rejected(events, "wrong =currency")
        with open("taken", "a") as taken:
            taken.writelines(event.id + "\\\\n" for event in events)
"""


@pytest.fixture(autouse=True)
def run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A healthy ledger whose journal has a second sink, which refused three events. How to deliver to both."""
    name = f"moody_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SINK.replace("\\\\", "\\"))
    monkeypatch.syspath_prepend(tmp_path)
    write_journal(JOURNAL, [recent(9)], sinks=("ledger",))
    cli("deliver", "run")
    write_journal(JOURNAL, EVENTS, sinks=("ledger", "moody"))
    arguments = ["deliver", "run", "--sink", "ledger", "--sink", f"{name}:Moody"]
    assert "3 refused" in cli(*arguments).out
    return arguments


def taken() -> list[str]:
    return Path("taken").read_text().split() if Path("taken").exists() else []


def ids(result: Result) -> list[str]:
    return [each["id"] for each in result.json]


def level(cli: Cli, subject: str = "sink moody") -> str:
    found = [each["level"] for each in cli("doctor", "--json").json["checks"] if each["subject"] == subject]
    return "wrong" if "wrong" in found else found[0]


def test_the_list_names_id_time_customer_model_and_reason(cli: Cli) -> None:
    lines = cli("deliver", "quarantine", "list", "--csv").out.splitlines()

    assert lines[0] == "sink,id,time,customer,model,reason"
    assert [row.split(",")[1] for row in lines[1:]] == [event.id for event in EVENTS]
    assert lines[2].endswith(",acme,gpt-5-2025-08-07,wrong =currency")
    assert cli("deliver", "quarantine", "list", "--markdown").lines[0].startswith("| sink | id | time | customer")
    assert "wrong =currency" in cli("deliver", "quarantine", "list").out


def test_the_list_for_programs_holds_the_whole_event(cli: Cli) -> None:
    (first, *_) = cli("deliver", "quarantine", "list", "--json", "--sink", "moody").json

    assert first["event"] == EVENTS[0].to_json()
    assert {name: first[name] for name in ("sink", "id", "reason", "state", "line", "decided_at", "decision")} == {
        "sink": "moody", "id": EVENTS[0].id, "reason": "wrong =currency", "state": "waiting", "line": None,
        "decided_at": None, "decision": None,
    }  # fmt: skip
    assert cli("deliver", "quarantine", "list", "--sink", "ledger", "--json").json == []


def test_released_events_are_delivered_once_and_the_doctor_is_content(cli: Cli, run: list[str]) -> None:
    assert level(cli) == "wrong"
    Path("friendly").touch()

    released = cli("deliver", "quarantine", "release", "moody", "--all")

    assert (released.code, released.out) == (0, "moody: released 3 events\n")
    assert "nobody delivers to moody now" in released.err
    assert level(cli) == "notice"
    assert [cli(*run).code for _ in range(2)] == [0, 0]
    assert taken() == [event.id for event in EVENTS]
    assert level(cli) == "fine"
    assert cli("doctor", "--json").json["checks"] and cli("deliver", "quarantine", "list", "--json").json == []
    assert {each["state"] for each in cli("deliver", "quarantine", "list", "--all", "--json").json} == {"delivered"}


def test_releasing_some_by_the_end_of_their_ids_and_saying_it_twice(cli: Cli, run: list[str]) -> None:
    Path("friendly").touch()
    chosen = EVENTS[1].id[-12:]

    first = cli("deliver", "quarantine", "release", "moody", chosen, "--json")
    second = cli("deliver", "quarantine", "release", "moody", chosen, "--json")
    cli(*run)

    assert first.json == {"sink": "moody", "released": [EVENTS[1].id], "already_decided": []}
    assert (second.code, second.json["released"], second.json["already_decided"]) == (0, [], [EVENTS[1].id])
    assert taken() == [EVENTS[1].id]
    assert ids(cli("deliver", "quarantine", "list", "--json")) == [EVENTS[0].id, EVENTS[2].id]


def test_a_running_process_delivers_what_is_released(cli: Cli) -> None:
    with delivering(JOURNAL.absolute(), "moody"):
        released = cli("deliver", "quarantine", "release", "moody", EVENTS[0].id)

    assert (released.out, released.err) == ("moody: released 1 event\n", "")


def test_discarding_keeps_a_record_and_contents_the_doctor(cli: Cli) -> None:
    result = cli("deliver", "quarantine", "discard", "moody", "--all", "--reason", "a test customer")

    assert (result.code, result.out) == (0, "moody: discarded 3 entries\n")
    assert level(cli) == "fine"
    assert cli("doctor").code == 1  # one of the events has no customer
    listed = cli("deliver", "quarantine", "list", "--all", "--json").json
    assert [(each["id"], each["state"], each["decision"]) for each in listed] == [
        (event.id, "discarded", "a test customer") for event in EVENTS
    ]
    assert cli("deliver", "quarantine", "list", "--all", "--csv").out.splitlines()[0].endswith(",state,decided,why")
    assert taken() == []


def test_lines_that_nobody_can_read_can_only_be_discarded(cli: Cli, run: list[str]) -> None:
    with Journal(JOURNAL) as journal:
        journal.append(line("event", id="broken"))
    cli(*run)
    Path("friendly").touch()
    released = cli("deliver", "quarantine", "release", "moody", "--all")
    assert "1 line that nobody can read can only be discarded" in released.err

    (entry,) = cli("deliver", "quarantine", "list", "--sink", "moody", "--json").json
    assert cli("deliver", "quarantine", "release", "moody", entry["id"]).code == 2
    for sink in ("moody", "ledger"):
        result = cli("deliver", "quarantine", "discard", sink, entry["id"], "--reason", "a bug", "--json")
        assert result.json == {"sink": sink, "discarded": [entry["id"]], "already_decided": []}

    cli(*run)
    assert (level(cli), level(cli, "sink ledger"), level(cli, "failures")) == ("fine", "fine", "fine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["release", "moody"], "name the ids, or say --all"),
        (["release", "moody", "x", "--all"], "and not both"),
        (["release", "modoy", "--all"], "Did you mean 'moody'?"),
        (["list", "--sink", "modoy"], "Did you mean 'moody'?"),
        (["release", "moody", "nothing"], "nothing in this quarantine has the id 'nothing'"),
        (["discard", "moody", "--all"], "--reason"),
        (["discard", "moody", "--all", "--reason", " "], "needs a reason"),
        (["discard", "ledger", "--all", "--reason", "x"], "it refused nothing"),
    ],
)
def test_what_is_no_decision_is_wrong_usage_and_changes_nothing(cli: Cli, arguments: list[str], said: str) -> None:
    result = cli("deliver", "quarantine", *arguments)

    assert result.code == 2
    assert said in " ".join(result.err.split())
    assert len(cli("deliver", "quarantine", "list", "--json").json) == 3


def test_what_may_be_on_its_way_cannot_be_discarded(cli: Cli) -> None:
    cli("deliver", "quarantine", "release", "moody", EVENTS[0].id)

    with delivering(JOURNAL.absolute(), "moody"):
        result = cli("deliver", "quarantine", "discard", "moody", EVENTS[0].id, "--reason", "x")

    assert result.code == 1 and "stop it first" in result.err


def test_without_a_journal_there_is_nothing_to_decide(cli: Cli) -> None:
    for arguments in (["release", "x", "--all"], ["discard", "x", "--all", "--reason", "x"]):
        assert cli("deliver", "quarantine", *arguments, "--journal", "nowhere").code == 3


def test_a_usual_day(program: Cli, run: list[str]) -> None:
    """As a person would, from the complaint to the clean bill of health."""
    store([recent(20)])
    assert "release" in program("doctor").out
    Path("friendly").touch()
    wanted = json.loads(program("deliver", "quarantine", "list", "--json").out)[1]["id"]
    assert program("deliver", "quarantine", "release", "moody", wanted).code == 0
    assert program("deliver", "quarantine", "discard", "moody", "--all", "--reason", "tests").code == 0

    assert program(*run, PYTHONPATH=f"{Path(__file__).parents[2]}:{Path.cwd()}").code == 0

    assert taken() == [wanted]
    assert "0 refused events" not in program("doctor").out
