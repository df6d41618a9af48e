"""Reading segments: their names, their lines, which are there. Framing only; nothing here writes.

A segment is append-only JSONL with one writer. Its last line may be torn; only a line with its newline counts.
A segment is sealed when its last line says so: nobody writes there any more.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from token_meter.answers import completed
from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.event import SCHEMA, MeterEvent
from token_meter.patience import PatientLock

LINE_BYTES_MAX: Final = 1 << 20
"""A longer line is not ours: it is skipped, with a note in the quarantine."""

CHUNK_BYTES: Final = 256 << 10
SUFFIX: Final = ".jsonl"
EVENT_PREFIX: Final = b'{"kind":"event"'
SEALED_LINE: Final = b'{"kind":"sealed"}\n'
KINDS: Final = frozenset(("segment", "opened", "event", "void", "carried", "sealed"))
_NAME: Final = re.compile(r"(?P<moment>\d+)-(?P<pid>\d+)-(?P<writer>[0-9a-f]+)(?:-(?P<number>\d+))?\.jsonl")
_LISTING_TRUSTED_AFTER_NS: Final = 2_100_000_000
"""The coarsest clock of a file system in use; a name added within it may leave the folder's time unchanged."""

_LISTING_TRUSTED_SECONDS: Final = 5.0


class SegmentName(NamedTuple):
    """What a segment's file name says: one writer numbers its segments 1, 2, 3, ...

    The name starts with the clock's milliseconds so that older ones tend to come first, but nothing depends on
    it: clocks step back.
    """

    milliseconds: int
    pid: int
    writer: str
    number: int

    def __str__(self) -> str:
        return f"{self.milliseconds:013d}-{self.pid}-{self.writer}-{self.number}{SUFFIX}"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """None for a file that some other program named."""
        match = _NAME.fullmatch(name)
        return match and cls(int(match["moment"]), int(match["pid"]), match["writer"], int(match["number"] or 0))


class Line(NamedTuple):
    """One complete line without its newline; `raw` is None for a piece of a line that is too long."""

    raw: bytes | None
    end: int
    skipping: bool


def read_lines(
    descriptor: int, offset: int, *, skipping: bool = False, bytes_max: int = LINE_BYTES_MAX
) -> Iterator[Line]:
    """Complete lines from `offset` to the end, in bounded memory.

    A line longer than `bytes_max` comes as pieces without content; `skipping` says that it goes on after
    `end`, and must be passed back when reading resumes there.
    """
    start, held = offset, b""
    while chunk := os.pread(descriptor, CHUNK_BYTES, start + len(held)):
        held += chunk
        if skipping:
            cut = held.find(b"\n") + 1
            skipping = cut == 0
            start += cut or len(held)
            held = held[cut:] if cut else b""
            yield Line(None, start, skipping)
        *complete, held = held.split(b"\n")
        for raw in complete:
            start += len(raw) + 1
            yield Line(raw if len(raw) <= bytes_max else None, start, False)
        if len(held) > bytes_max:
            start, held, skipping = start + len(held), b"", True
            yield Line(None, start, True)


def decode(raw: bytes) -> dict[str, Any]:
    """The object in a line. Raises InvalidEvent for what is no line of ours, NewerSchema for a later version."""
    try:
        document = _parsed(raw.decode())  # the json module would guess the encoding of bytes
        if b"\\u" in raw:
            # Half of a surrogate pair is valid JSON that no database or wire format can carry.
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"not JSON ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise InvalidEvent("not a JSON object")
    schema = document.get("schema", SCHEMA)
    if not isinstance(schema, int):
        raise InvalidEvent(f"schema must be a number, not {str(schema)[:40]!r}")
    if schema > SCHEMA:
        raise NewerSchema(f"schema {schema}, this version reads {SCHEMA}: upgrade token_meter")
    if document.get("kind") not in KINDS:
        raise InvalidEvent(f"unknown kind {str(document.get('kind'))[:40]!r}")
    return document


def _parsed(text: str) -> Any:
    """The JSON value of a line. What is nothing but one is read without the module's own search for white space."""
    try:
        document, end = _scan(text, 0)
    except StopIteration:
        return json.loads(text)
    return document if end == len(text) else json.loads(text)


_scan: Final[Callable[[str, int], tuple[Any, int]]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def to_event(document: dict[str, Any]) -> MeterEvent:
    """The meter event in a decoded line. Raises InvalidEvent."""
    if not isinstance(document.get("id"), str) or not document["id"]:
        raise InvalidEvent("not a meter event (no id)")
    try:
        return MeterEvent.from_json(completed(document) if "answer" in document else document)
    except (AttributeError, OverflowError) as error:
        raise InvalidEvent(f"not a meter event ({error!r})") from error


def complete_end(descriptor: int, size: int) -> int:
    """Where the last complete line ends."""
    while size > 0:
        begin = max(0, size - CHUNK_BYTES)
        newline = os.pread(descriptor, size - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        size = begin
    return 0


def is_sealed(descriptor: int, end: int) -> bool:
    """Whether the last complete line, which ends at `end`, is the seal."""
    begin = max(0, end - len(SEALED_LINE) - 1)
    tail = os.pread(descriptor, end - begin, begin)
    return tail.endswith(b"\n" + SEALED_LINE) or tail == SEALED_LINE


class SegmentIndex:
    """The names in the segments folder, listed again only when the folder changed.

    With thousands of segments (short-lived processes, a dead sink) this is what a turn of the reporter costs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = PatientLock()
        self._names: tuple[str, ...] = ()
        self._seen: tuple[int, int] | None = None
        self._listed_at = float("-inf")

    def names(self) -> tuple[str, ...]:
        """Every segment's file name, older ones first (by the writers' clocks)."""
        try:
            there = os.stat(self.folder)
        except OSError:
            self._names, self._seen = (), None
            return ()
        changed = (there.st_mtime_ns, there.st_ino)
        with self._lock:
            if changed == self._seen and time.monotonic() - self._listed_at < _LISTING_TRUSTED_SECONDS:
                return self._names
            settled = time.time_ns() - there.st_mtime_ns > _LISTING_TRUSTED_AFTER_NS
            self._seen = changed if settled else None
            self._listed_at = time.monotonic()
            self._names = self._list()
            return self._names

    def _list(self) -> tuple[str, ...]:
        try:
            with os.scandir(self.folder) as entries:
                return tuple(sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name)))
        except OSError:
            return ()

    def listed_now(self) -> tuple[str, ...]:
        """The same, listed again in any case."""
        with self._lock:
            self._seen = None
            return self.names()

    def size(self, name: str) -> int:
        """The segment's size; 0 when it is gone."""
        try:
            return os.stat(self.folder / name).st_size
        except OSError:
            return 0

    def total(self) -> int:
        """Bytes in all segments."""
        return sum(self.size(name) for name in self.names())

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = PatientLock()
