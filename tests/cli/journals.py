"""Journals as programs leave them behind, written by the journal itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder
from token_meter.journal import Journal
from token_meter.locks import FileLock
from token_meter.registry import add


def line(kind: str, **fields: Any) -> bytes:
    """One line of a segment."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


def write_journal(folder: Path, events: Sequence[MeterEvent], *, sinks: Sequence[str] = ("ledger",)) -> None:
    """A program metered these and ended before anything was delivered."""
    with Journal(folder) as journal:
        for name in sinks:
            add(journal.folder, name, replay=True)
        for event in events:
            journal.append(line("event", **event.to_json()))


@contextmanager
def delivering(folder: Path, sink: str) -> Iterator[None]:
    """Somebody holds the sink's lock, as a delivering program does."""
    lock = FileLock(JournalFolder(folder).lock(sink))
    assert lock.acquire()
    try:
        yield
    finally:
        lock.release()
