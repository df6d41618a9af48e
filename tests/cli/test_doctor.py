"""`token-meter doctor`: each thing that can be wrong is found, said, and makes the exit code 1."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, recent, store
from tests.cli.journals import line, write_journal
from token_meter.cli.checks import Level, check_all
from token_meter.cli.facts import DiskFacts, file_system, read_facts
from token_meter.cli.place import find
from token_meter.folder import JournalFolder
from token_meter.journal import Journal
from token_meter.problems import Problems
from token_meter.usage import Usage

JOURNAL = Path("usage.db.journal")
LONG_AGO = datetime.now(UTC) - timedelta(days=8)


@pytest.fixture
def healthy(cli: Cli) -> None:
    """Two events, metered and delivered."""
    write_journal(JOURNAL, [recent(1), recent(2, customer="globex")])
    assert cli("deliver", "run").code == 0


def _levels(result: Any) -> dict[str, str]:
    return {check["subject"]: check["level"] for check in result.json["checks"]}


@pytest.mark.usefixtures("healthy")
def test_all_is_well(cli: Cli) -> None:
    result = cli("doctor")

    assert result.code == 0
    assert "✗" not in result.out and result.lines[-1] == "nothing needs a human"
    assert "2 events of 2 customers" in result.out
    assert "sink ledger   2 events delivered, nothing waits" in result.out


@pytest.mark.usefixtures("healthy")
def test_json_says_the_same(cli: Cli) -> None:
    document = cli("doctor", "--json").json

    assert document["ok"] is True
    assert {check["level"] for check in document["checks"]} <= {"fine", "notice"}


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    ("fields", "subject", "level"),
    [
        ({"customer": None}, "unattributed", "wrong"),
        ({"status": "unmetered", "usage": Usage()}, "unmetered", "wrong"),
        ({"status": "estimated"}, "estimated", "notice"),
        ({"status": "partial"}, "partial", "notice"),
        ({"anomalies": ("sum_mismatch:5",)}, "anomalies", "notice"),
    ],
)
def test_doubtful_events_are_found(cli: Cli, fields: dict[str, Any], subject: str, level: str) -> None:
    assert _levels(cli("doctor", "--json"))[subject] == "fine"

    store([recent(3, **fields)])

    result = cli("doctor", "--json")
    assert _levels(result)[subject] == level
    assert result.code == (1 if level == "wrong" else 0)


@pytest.mark.usefixtures("healthy")
def test_what_is_long_ago_was_somebodys_already(cli: Cli) -> None:
    store([recent(3, customer=None, time=LONG_AGO)])

    assert cli("doctor").code == 0
    assert cli("doctor", "--since", "30d").code == 1


@pytest.mark.usefixtures("healthy")
def test_conflicts_are_found_with_their_ids(cli: Cli) -> None:
    store([recent(1, usage=Usage(input=999))])

    result = cli("doctor")
    assert result.code == 1
    assert re.search(r"✗  conflicts .*1 event .*evt_1", result.out)


def test_a_fresh_backlog_is_a_notice_and_an_old_one_needs_a_human(cli: Cli) -> None:
    store([recent(1)])
    write_journal(JOURNAL, [recent(2, time=datetime.now(UTC))])
    assert _levels(cli("doctor", "--json"))["sink ledger"] == "notice"

    write_journal(JOURNAL, [recent(3, time=LONG_AGO)])

    result = cli("doctor")
    assert result.code == 1
    assert "2 events wait, the oldest for 8 d, nobody delivers now" in result.out
    assert "`token-meter deliver run` delivers them now." in result.out


@pytest.mark.usefixtures("healthy")
def test_quarantine_and_failures_are_found(cli: Cli) -> None:
    Problems(JournalFolder(JOURNAL).problems).record("record", "no room")
    with Journal(JOURNAL) as journal:
        journal.append(b'{"kind":"event","id":"broken"}\n')
    cli("deliver", "run")

    levels = _levels(cli("doctor", "--json"))
    assert levels["failures"] == "wrong"
    assert "1 unreadable line" in cli("doctor").out


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("sink", ["ledger", "given_up"])
def test_an_outage_that_is_over_needs_nobody(cli: Cli, sink: str) -> None:
    Problems(JournalFolder(JOURNAL).problems).record(f"sink {sink}", "no connection")

    result = cli("doctor")
    assert result.code == 0
    assert f"!  attempts      sink {sink} (1x" in result.out
    assert "✓  failures      none inside metering" in result.out


def test_advice_for_another_sink_than_the_ledger_names_a_sink(cli: Cli) -> None:
    write_journal(JOURNAL, [recent(1)])
    cli("deliver", "run", "--sink", "copy=jsonl:copy.jsonl", "--add")
    write_journal(JOURNAL, [recent(2)])

    advice = {check["subject"]: check["advice"] for check in cli("doctor", "--json").json["checks"]}
    assert "`token-meter deliver run`" in advice["sink ledger"]
    assert "`token-meter deliver run --sink ...`" in advice["sink copy"]


@pytest.mark.parametrize(
    ("disk", "level", "said"),
    [
        (DiskFacts(Path("/j"), "ext4", 1 << 40, True), Level.FINE, "writable, 1,024 GiB free"),
        (DiskFacts(Path("/j"), "ext4", 1 << 40, False), Level.WRONG, "may not write in /j"),
        (DiskFacts(Path("/j"), "ext4", 1 << 20, True), Level.WRONG, "only 1 MiB are free"),
        (DiskFacts(Path("/j"), "overlay", 1 << 40, True), Level.NOTICE, "ends with the container"),
        (DiskFacts(Path("/j"), "tmpfs", 1 << 40, True), Level.NOTICE, "ends with the container"),
        (DiskFacts(Path("/j"), "nfs4", 1 << 40, True), Level.NOTICE, "file locks"),
    ],
)
def test_a_disk_that_cannot_be_relied_on_is_found(disk: DiskFacts, level: Level, said: str) -> None:
    facts = read_facts(find(), since=LONG_AGO, deep=False)

    (check,) = [each for each in check_all(replace(facts, disk=disk)) if each.subject == "journal disk"]

    assert check.level is level and said in check.text


def test_the_kind_of_disk_is_known() -> None:
    if sys.platform == "linux":
        assert file_system(Path("/proc")) == "proc"


def test_nothing_there_at_all_is_explained_and_nothing_is_made(cli: Cli, tmp_path: Path) -> None:
    result = cli("doctor")

    assert result.code == 1
    assert "✗  ledger        no ledger at usage.db; run `token-meter demo`" in result.out
    assert "!  journal       there is none at usage.db.journal" in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("healthy")
def test_metering_switched_off_is_found(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_METER_DISABLED", "1")

    result = cli("doctor")
    assert result.code == 1 and "nothing is metered" in result.out


@pytest.mark.usefixtures("healthy")
def test_the_environment_is_named_and_its_secrets_are_not(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TOKEN_METER_LEDGER", "postgresql://bob:hunter2@127.0.0.1:1/x?connect_timeout=1&password=hunter2"
    )

    for arguments in ([], ["--json"], ["--prometheus"]):
        result = cli("doctor", *arguments)
        assert "hunter2" not in result.out + result.err
    assert "TOKEN_METER_LEDGER" in cli("doctor").out


@pytest.mark.usefixtures("healthy")
def test_advice_names_the_ledger_that_was_looked_at(cli: Cli, tmp_path: Path) -> None:
    store([recent(3, customer=None)], "other.db")

    assert "events tail --ledger other.db --unattributed" in cli("doctor", "--ledger", "other.db").out


@pytest.mark.usefixtures("healthy")
def test_deep_finds_the_hooks_of_the_installed_sdks(cli: Cli) -> None:
    levels = _levels(cli("doctor", "--deep", "--json"))

    assert {name: level for name, level in levels.items() if name.startswith("hooks")} == {
        "hooks openai": "fine", "hooks anthropic": "fine", "hooks google-genai": "fine"
    }  # fmt: skip


def test_metrics_are_in_the_prometheus_format(cli: Cli) -> None:
    write_journal(JOURNAL, [recent(1), recent(2, customer=None)])
    cli("deliver", "run")

    result = cli("doctor", "--prometheus")

    assert result.code == 0
    sample = re.compile(r'token_meter_[a-z_]+(\{[a-z_]+="[^"]*"\})? [0-9.e+]+')
    assert all(each.startswith("#") or sample.fullmatch(each) for each in result.out.splitlines())
    assert 'token_meter_delivered_events_total{sink="ledger"} 2' in result.out
    assert "token_meter_ledger_unattributed_events_total 1" in result.out
    assert "token_meter_checks_needing_a_human 1" in result.out


# ---- no data? ----


@pytest.mark.usefixtures("healthy")
def test_a_customer_that_is_there(cli: Cli) -> None:
    result = cli("doctor", "--customer", "acme")

    assert result.code == 0
    assert "✓  in the ledger       1 event, 4 tokens, the last at" in result.out


@pytest.mark.usefixtures("healthy")
def test_a_customer_under_another_name(cli: Cli) -> None:
    result = cli("doctor", "--customer", "ACME ")

    assert result.code == 1
    assert "no event has the customer 'ACME '" in result.out
    assert "similar names       'acme'" in result.out


@pytest.mark.usefixtures("healthy")
def test_a_customer_whose_events_wait_in_the_journal(cli: Cli) -> None:
    write_journal(JOURNAL, [recent(5, customer="late"), recent(6, customer="late")])

    result = cli("doctor", "--customer", "late", "--json")
    by_text = {check["text"]: check["advice"] for check in result.json["checks"]}

    assert by_text["2 events of 'late' not in the ledger yet"] == "`token-meter deliver run` delivers them now."
    cli("deliver", "run")
    assert cli("doctor", "--customer", "late").code == 0


@pytest.mark.usefixtures("healthy")
def test_what_a_running_program_has_delivered_waits_for_nobody(cli: Cli) -> None:
    with Journal(JOURNAL) as journal:
        journal.append(line("event", **recent(5, customer="late").to_json()))
        before = cli("doctor", "--customer", "late").out
        cli("deliver", "run")
        after = cli("doctor", "--customer", "late").out

    assert "1 event of 'late' not in the ledger yet" in before
    assert "nothing of 'late' waits for the ledger" in after


@pytest.mark.usefixtures("healthy")
def test_a_customer_whose_first_call_still_runs(cli: Cli) -> None:
    with Journal(JOURNAL) as journal:
        opened = line("opened", id="x", time=recent(1).to_json()["time"], customer="busy")
        journal.opened("x", opened)
        result = cli("doctor", "--customer", "busy")
        journal.ended("x", line("void", call="x", reason="test"))

    assert "1 call of 'busy' began and did not end yet" in result.out


@pytest.mark.usefixtures("healthy")
def test_a_customer_whose_calls_nobody_attributed(cli: Cli) -> None:
    store([recent(7, customer=None)])

    result = cli("doctor", "--customer", "umbrella")

    assert "1 event has no customer" in result.out
    assert "maybe this one's" in result.out
    assert "similar names       none among 2 customers" in result.out


def test_a_ledger_that_was_killed_before_its_first_delivery_needs_nobody(cli: Cli) -> None:
    write_journal(JOURNAL, [recent(1)])

    result = cli("doctor")
    assert result.code == 0
    assert "!  ledger        no ledger at usage.db yet: nothing of its journal has been delivered" in result.out
    assert "1 event waits, the oldest for" in result.out
    assert not Path("usage.db").exists()


@pytest.mark.usefixtures("healthy")
def test_a_ledger_that_was_moved_away_is_found(cli: Cli) -> None:
    Path("usage.db").unlink()

    for arguments in ([], ["--customer", "acme"]):
        result = cli("doctor", *arguments)
        assert result.code == 1
        assert "no ledger at usage.db, but 2 events went into it: moved or deleted?" in result.out


def test_no_ledger_and_a_customer_in_the_journal(cli: Cli) -> None:
    write_journal(JOURNAL, [recent(5, customer="late")])

    result = cli("doctor", "--customer", "late")

    assert result.code == 0
    assert "1 event of 'late' not in the ledger yet" in result.out
    assert not Path("usage.db").exists()


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("arguments", [[], ["--customer", "acme"], ["--json"]])
def test_a_journal_that_cannot_be_looked_at_hides_nothing_else(cli: Cli, arguments: list[str]) -> None:
    """A name that is too long stands for a folder without access, which a test that runs as root cannot make."""
    unreadable = ("--journal", "j" * 300)

    doctor = cli("doctor", *unreadable, *arguments)
    assert "2 events" in doctor.out
    assert "Traceback" not in doctor.out + doctor.err
    assert cli("usage", *unreadable).code == 0
    assert cli("deliver", "status", *unreadable).code in (1, 3)


@pytest.mark.parametrize("arguments", [["--since", "x"], ["--json", "--prometheus"], ["--nope"]])
def test_wrong_usage(cli: Cli, arguments: list[str]) -> None:
    assert cli("doctor", *arguments).code == 2


def test_the_program_ends_with_the_same_codes(program: Cli) -> None:
    store([recent(1)])

    assert program("doctor", "--json").code == 0
    store([recent(2, customer=None)])
    result = program("doctor", "--json")
    assert result.code == 1 and json.loads(result.out)["ok"] is False
