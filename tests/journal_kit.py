"""What the journal's tests share: lines as the recorder writes them, sinks, and real child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from token_meter.event import MeterEvent

TIME = "2026-03-01T12:00:00.000000Z"
IMPORTS = "from token_meter.journal import Journal\nfrom token_meter.reporter import Reporter"
ROOT = Path(__file__).resolve().parent.parent


def line(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def opened(id: str, **more: Any) -> bytes:
    return line(kind="opened", id=id, time=TIME, customer="acme", provider="openai", model_requested="gpt-5", **more)


def event(id: str, *, call: str | None = None, **more: Any) -> bytes:
    fields = {"usage": {"input": 3}, "status": "complete", "customer": "acme"}
    return line(kind="event", call=call or id, schema=1, id=id, time=TIME, **{**fields, **more})


def call(journal: Any, id: str) -> None:
    """One metered call, from its opening to its event."""
    journal.opened(id, opened(id))
    journal.ended(id, event(id))


def segments(folder: Any) -> list[Path]:
    return sorted((Path(folder) / "segments").glob("*.jsonl"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(raw) for raw in path.read_bytes().splitlines()]


def written(folder: Any, kind: str = "event") -> list[str]:
    """The ids of all complete lines of one kind, over all segments."""
    found = [document for path in segments(folder) for document in documents(path)]
    return [document["id"] for document in found if document["kind"] == kind]


def put_segment(folder: Any, data: bytes, *, number: int = 1, pid: int = 4242, milliseconds: int = 1) -> Path:
    """A segment as a dead process would have left it."""
    path = Path(folder) / "segments" / f"{milliseconds:013d}-{pid}-abcdef-{number}.jsonl"
    path.write_bytes(data)
    return path


class ListSink:
    """Keeps every delivery, repeated ones too, so that a test can see them."""

    def __init__(self, name: str = "list") -> None:
        self.name = name
        self.events: list[MeterEvent] = []
        self.batches: list[int] = []

    def send(self, events: Sequence[MeterEvent]) -> None:
        self.batches.append(len(events))
        self.events.extend(events)

    @property
    def ids(self) -> list[str]:
        return [each.id for each in self.events]

    def repeated(self) -> list[str]:
        return [id for id, count in Counter(self.ids).items() if count > 1]


class FailingSink(ListSink):
    """Raises the given errors, one per delivery, then works."""

    def __init__(self, *errors: BaseException, name: str = "failing") -> None:
        super().__init__(name)
        self.errors = list(errors)

    def send(self, events: Sequence[MeterEvent]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        super().send(events)


class HangingSink(ListSink):
    """Hangs, as in a network call, until it is let go."""

    def __init__(self, name: str = "hanging") -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def send(self, events: Sequence[MeterEvent]) -> None:
        self.entered.set()
        self.go_on.wait(60)
        super().send(events)


class FileSink:
    """Appends ids to a file that several processes share: a destination that does not deduplicate."""

    def __init__(self, path: str | Path, name: str = "file") -> None:
        self.name = name
        self.path = str(path)

    def send(self, events: Sequence[MeterEvent]) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, "".join(f"{each.id} {each.status}\n" for each in events).encode())
        finally:
            os.close(descriptor)

    def rows(self) -> list[str]:
        return Path(self.path).read_text().splitlines() if os.path.exists(self.path) else []


def start(script: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """A real process that runs `script` with this kit imported."""
    code = f"from tests.journal_kit import *\n{IMPORTS}\n"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code + textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(script: str, *arguments: Any, exit_code: int = 0, **options: Any) -> str:
    """Run a script to its end; returns what it printed."""
    with start(script, *arguments, **options) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == exit_code, err
    return out


def fork(action: Callable[[], object]) -> int:
    """A forked child that does one thing and leaves without any clean-up; returns its process id."""
    with warnings.catch_warnings():
        # Since 3.12 Python warns of forking with threads, which is what these tests are about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        signal.alarm(30)
        action()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def wait(child: int) -> int:
    """The child's exit status: 0 when its action returned."""
    return os.waitpid(child, 0)[1]
