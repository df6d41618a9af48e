"""How far one sink has taken the journal. Only the process that holds the sink's lock writes it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from token_meter.errors import NewerSchema
from token_meter.folder import JOURNAL_SCHEMA, JournalFolder, read_document
from token_meter.folder import replace as replace_file
from token_meter.segments import SegmentIndex, complete_end, is_sealed

MISSING_MAX: Final = 1_000
"""How many deleted, never finished segments a cursor remembers (they may come back)."""


@dataclass(slots=True)
class Position:
    """What of one segment is acknowledged: everything before `offset`; `done` when it is sealed and all taken."""

    offset: int = 0
    done: bool = False
    skipping: bool = False

    def copy(self) -> Position:
        """One that can move on its own."""
        return replace(self)


@dataclass(slots=True)
class Cursor:
    """One sink's positions and what came of them, as kept in cursors/<sink>.json.

    Entries of the quarantine that begin before `quarantine_bytes` stand for what lies before the positions.
    """

    segments: dict[str, Position] = field(default_factory=dict)
    quarantine_bytes: int = 0
    sent: int = 0
    quarantined: int = 0
    invalid: int = 0
    error: str | None = None
    failures: int = 0
    retry_at: str | None = None
    blocked: dict[str, str] = field(default_factory=dict)

    def position(self, name: str) -> Position:
        """Where the sink stands in a segment; the beginning of one it never saw."""
        return self.segments.get(name) or Position()

    @property
    def has_moved(self) -> bool:
        """Whether anything was ever delivered by it, or refused."""
        return bool(self.segments or self.sent or self.quarantined or self.invalid or self.failures)

    def prune(self, names: Iterable[str]) -> list[str]:
        """Forget segments that are gone; returns those that were deleted before they were finished."""
        gone = self.segments.keys() - set(names)
        unfinished = sorted(name for name in gone if not self.segments[name].done)
        for name in gone:
            if self.segments[name].done:
                del self.segments[name]
        for name in unfinished[:-MISSING_MAX]:
            del self.segments[name]
        return unfinished

    @classmethod
    def load(cls, path: Path) -> Cursor:
        """Read a cursor; a missing or broken one starts at the beginning (at least once). Raises NewerSchema."""
        document = read_document(path)
        if document is None:
            return cls()
        try:
            known = {name: document[name] for name in _FIELDS if name in document}
            known["segments"] = {name: _position(entry) for name, entry in document["segments"].items()}
            return cls(**known)
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()

    def save(self, path: Path, *, durable: bool) -> None:
        """Replace the file. Raises OSError."""
        document: dict[str, Any] = {"schema": JOURNAL_SCHEMA, "sink": path.stem}
        document["segments"] = {name: _sparse(position) for name, position in list(self.segments.items())}
        document |= {name: getattr(self, name) for name in _FIELDS if name != "segments"}
        replace_file(path, document, durable=durable)


_FIELDS: Final = tuple(Cursor.__dataclass_fields__)


def _position(entry: dict[str, Any]) -> Position:
    return Position(int(entry["offset"]), bool(entry.get("done")), bool(entry.get("skipping")))


def _sparse(position: Position) -> dict[str, Any]:
    entry: dict[str, Any] = {"offset": position.offset}
    if position.done:
        entry["done"] = True
    if position.skipping:
        entry["skipping"] = True
    return entry


class CursorReader:
    """Other processes' cursors, read again only when they changed."""

    def __init__(self, folder: JournalFolder) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int, int], Cursor]] = {}

    def get(self, sink: str) -> Cursor:
        """The cursor as it is on disk now."""
        path = self._folder.cursor(sink)
        try:
            there = os.stat(path)
        except OSError:
            return Cursor()
        version = (there.st_ino, there.st_mtime_ns, there.st_size)
        known = self._read.get(sink)
        if known is None or known[0] != version:
            known = (version, _load_anyway(path))
            self._read[sink] = known
        return known[1]


def _load_anyway(path: Path) -> Cursor:
    try:
        return Cursor.load(path)
    except NewerSchema as newer:
        return Cursor(error=str(newer))


def at_the_end(index: SegmentIndex) -> Cursor:
    """A cursor for a sink that starts now: everything there is counts as taken."""
    return Cursor(segments={name: end_of(index.folder / name) for name in index.names()})


def end_of(path: Path) -> Position:
    """The end of a segment's last complete line."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Position()
    try:
        end = complete_end(descriptor, os.fstat(descriptor).st_size)
        return Position(offset=end, done=is_sealed(descriptor, end))
    finally:
        os.close(descriptor)
