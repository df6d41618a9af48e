"""What one customer has in a journal that the ledger does not have yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from token_meter.cli.catch_up import LEDGER_SINK
from token_meter.cursors import Cursor
from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.folder import JournalFolder
from token_meter.segments import SegmentIndex, decode, read_lines


class Waiting(NamedTuple):
    """Events that the ledger has not taken, and calls that began and did not end."""

    events: int
    open_calls: int


def waiting_for(customer: str, folder: Path) -> Waiting:
    """Read the segments that the ledger is not done with."""
    journal = JournalFolder(folder)
    cursor = Cursor.load(journal.cursor(LEDGER_SINK))
    events, opened = 0, set[str]()
    for name in SegmentIndex(journal.segments).names():
        position = cursor.position(name)
        if position.done:
            continue
        for document, end in _documents(journal.segments / name):
            mine = document.get("customer") == customer
            match document["kind"]:
                case "opened" if mine:
                    opened.add(str(document.get("id")))
                case "event" | "void":
                    opened.discard(str(document.get("call")))
                    events += mine and document["kind"] == "event" and end > position.offset
    return Waiting(events, len(opened))


def _documents(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each readable line and where it ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for line in read_lines(descriptor, 0):
            try:
                document = decode(line.raw) if line.raw else None
            except (InvalidEvent, NewerSchema):
                continue
            if document is not None:
                yield document, line.end
    finally:
        os.close(descriptor)
