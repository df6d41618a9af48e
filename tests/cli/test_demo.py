"""`token-meter demo`: it runs, adds up, leaves something to explore, and would notice if anything were lost."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Result
from token_meter.cli.demo.customers import CUSTOMERS
from token_meter.cli.demo.reconciliation import reconcile
from token_meter.cli.demo.report import activation
from token_meter.testing.builders import make_event
from token_meter.testing.provider import Billed
from token_meter.usage import Usage

WITHOUT_SDKS = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def _without(tmp_path: Path, *packages: str) -> str:
    """A PYTHONPATH under which these packages are not installed, for the program and its workers."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT_SDKS.format(absent=set(packages)))
    return f"{folder}:{Path(__file__).parents[2]}"


def _verdict(result: Result) -> str:
    return next(line for line in result.lines if line.startswith("✓"))


@pytest.mark.timeout(120)
def test_the_demo_accounts_for_every_call_and_can_be_run_again(program: Cli, cli: Cli, tmp_path: Path) -> None:
    first = program("demo", "--fast", timeout=60)

    assert (first.code, first.err) == (0, "")
    assert "SIGKILL for process" in first.out and "started again for the" in first.out
    # The killed call was made again; five tasks make more than one call.
    calls = sum(len(customer.tasks) for customer in CUSTOMERS) + 1 + 2 + 2 + 1 + 1
    assert _verdict(first) == (
        f"✓ {calls} of {calls} calls accounted for: {calls - 3} complete, 1 partial, 1 estimated, 1 unmetered "
        "(killed before the answer)"
    )
    _every_suggestion_works(first, cli)
    ledger = tmp_path / "token-meter-demo" / "usage.db"
    shown = cli("usage", "--ledger", str(ledger), "--json", "--by", "customer").json
    assert shown["total"]["events"] == calls
    assert [row["customer"] for row in shown["rows"]] == ["acme", "globex", "initech"]

    (ledger.parent / "mine.txt").write_text("kept")
    second = program("demo", "--fast", "--json", timeout=60, PYTHONPATH=_without(tmp_path, "anthropic", "google"))

    assert second.code == 0
    assert second.json["reconciliation"] == {
        "ok": True, "calls": 11, "accounted": 11, "by_status": {"complete": 9, "estimated": 1, "unmetered": 1},
        "exact_tokens": second.json["reconciliation"]["exact_tokens"], "missing": [], "unexplained": [], "wrong": [],
        "needlessly_unsure": [],
    }  # fmt: skip
    assert cli("usage", "--ledger", str(ledger), "--json").json["total"]["events"] == 11
    assert (ledger.parent / "mine.txt").read_text() == "kept"


def _every_suggestion_works(result: Result, cli: Cli) -> None:
    commands = [line.split("#")[0] for line in result.lines if line.startswith("  token-meter ")]
    assert len(commands) == 8
    for command in commands:
        tried = cli(*shlex.split(command)[1:])
        assert tried.code == (1 if "doctor" in command else 0) and tried.out


def test_without_any_sdk_it_says_what_to_install(program: Cli, tmp_path: Path) -> None:
    result = program("demo", "--fast", PYTHONPATH=_without(tmp_path, "openai", "anthropic", "google"))

    assert result.code == 1
    assert "pip install 'token-meter[all]'" in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "token-meter-demo").exists()


def test_a_shell_that_does_not_know_the_program_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "my env" / "bin" / "activate"
    script.parent.mkdir(parents=True)
    script.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "my env"))

    monkeypatch.setenv("PATH", os.defpath)
    ((command, _),) = activation()
    assert command == "source 'my env/bin/activate'"
    found = script.with_name("token-meter")
    found.touch(mode=0o700)
    monkeypatch.setenv("PATH", str(found.parent))
    assert activation() == []


def test_a_folder_of_somebody_elses_is_never_touched(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "token-meter-demo"
    mine.mkdir()
    (mine / "usage.db").write_text("my own data")

    result = cli("demo", "--fast")

    assert result.code == 2 and "stays as it is" in result.err
    assert (mine / "usage.db").read_text() == "my own data"
    assert [path.name for path in mine.iterdir()] == ["usage.db"]


# ---- the comparison itself ----


def _billed(id: str, usage: Usage, **more: Any) -> Billed:
    return Billed("openai.chat", "gpt-5-2025-08-07", usage, response_id=id, model_requested="gpt-5", **more)


USAGE = Usage(input=3, output=1)


def test_what_agrees_is_accounted_for() -> None:
    result = reconcile([_billed("a", USAGE)], [make_event(1, response_id="a", usage=USAGE)])

    assert result.ok and (result.calls, result.exact_tokens) == (1, 4)


def test_a_charged_call_without_an_event_is_missing() -> None:
    result = reconcile([_billed("a", USAGE), _billed("b", USAGE)], [make_event(1, response_id="a")])

    assert not result.ok
    assert [line.response_id for line in result.missing] == ["b"]


def test_a_call_counted_twice_is_not_explained() -> None:
    twice = [make_event(1, response_id="a"), make_event(2, response_id="a")]

    result = reconcile([_billed("a", USAGE)], twice)

    assert not result.ok
    assert [event.id for event in result.unexplained] == ["evt_2"]


def test_other_numbers_or_another_model_are_wrong() -> None:
    billed = [_billed("a", USAGE), _billed("b", USAGE)]
    events = [
        make_event(1, response_id="a", usage=Usage(input=4)),
        make_event(2, response_id="b", usage=USAGE, model="gpt-4o"),
    ]

    result = reconcile(billed, events)

    assert not result.ok
    assert [pair.event.id for pair in result.wrong] == ["evt_1", "evt_2"]


UNMETERED = make_event(
    1, status="unmetered", usage=Usage(), model=None, model_requested="gpt-5", response_id=None
)  # fmt: skip


def test_an_unmetered_event_stands_for_one_killed_call_of_its_model() -> None:
    once = reconcile([_billed("a", USAGE)], [UNMETERED], killed=1)
    twice = reconcile([_billed("a", USAGE), _billed("b", USAGE)], [UNMETERED], killed=1)

    assert once.ok and once.by_status == {"unmetered": 1} and once.exact_tokens == 0
    assert not twice.ok
    assert json.dumps(twice.to_json())


def test_being_unsure_needs_a_reason() -> None:
    billed = [_billed("a", USAGE)]
    read = make_event(1, response_id="a", status="estimated", dimensions={"feature": "stream"})
    given_up = make_event(1, response_id="a", status="estimated", dimensions={"feature": "abandon_stream"})

    assert not reconcile(billed, [UNMETERED], killed=0).ok
    assert not reconcile(billed, [read]).ok
    assert reconcile(billed, [given_up]).ok
