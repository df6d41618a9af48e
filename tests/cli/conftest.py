"""A ledger with a little of everything, and two ways to run the command line: in this process and as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from token_meter.cli.app import app
from token_meter.event import MeterEvent
from token_meter.sinks import LedgerSink
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

ROOT = Path(__file__).parents[2]


class Result:
    """What a command said and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """The output without the blanks that fill up columns."""
        return [line.rstrip() for line in self.out.splitlines() if line.strip()]


Cli = Callable[..., Result]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours, and with this checkout importable everywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKEN_METER_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **more}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs where nothing is."""
    for name in [name for name in os.environ if name.startswith("TOKEN_METER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli() -> Cli:
    """Run a command in this process."""

    def run(*arguments: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(app, arguments, prog_name="token-meter", input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def program(tmp_path: Path) -> Cli:
    """Run a command as a program of its own."""

    def run(*arguments: str, timeout: float = 60.0, **environment: str) -> Result:
        done = subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env=clean_environment(**environment),
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def command(*arguments: str) -> list[str]:
    """The program and its arguments."""
    return [sys.executable, "-m", "token_meter.cli", *arguments]


def recent(number: int, **fields: Any) -> MeterEvent:
    """An event of a moment ago, so that `doctor` looks at it."""
    fields.setdefault("time", datetime.now(UTC) - timedelta(minutes=5) + timedelta(seconds=number))
    return make_event(number, **fields)


def store(events: Sequence[MeterEvent], path: str = "usage.db", dimensions: Sequence[str] = ()) -> None:
    """Put events into a ledger, as the reporter would."""
    sink = LedgerSink(path, dimensions=dimensions)
    try:
        sink.send(events)
    finally:
        sink.close()


EVENTS = (
    make_event(1, usage=Usage(input=1000, cache_read=500, output=100), dimensions={"feature": "chat"}),
    make_event(2, usage=Usage(input=10, output=5, reasoning=7), model="gpt-5-mini", dimensions={"feature": "chat"}),
    make_event(3, usage=Usage(input=20, cache_write_5m=30, output=2), customer="globex", model="claude-sonnet-4-5"),
    make_event(4, usage=Usage(input=3), customer="globex", model="claude-sonnet-4-5", status="estimated"),
    make_event(5, usage=Usage(input=1, output=1), customer=None, status="partial"),
)
"""Two customers and nobody, three models, three statuses, on the first of January 2026."""


@pytest.fixture
def ledger() -> tuple[MeterEvent, ...]:
    """`usage.db` in the working directory with `EVENTS` in it."""
    store(EVENTS)
    return EVENTS
