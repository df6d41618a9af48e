"""Reading what a sink has not taken yet, in batches of bounded size, from everyone's segments.

Events of one segment keep their order; a batch may span segments. Lines that are no events are passed over;
lines that nobody can read are collected for the quarantine, so that they do not vanish.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from token_meter.cursors import Cursor, Position
from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.event import MeterEvent
from token_meter.problems import Problem
from token_meter.quarantine import unreadable
from token_meter.segments import Line, SegmentIndex, decode, read_lines, to_event
from token_meter.steps import Steps, worked_off

UNREADABLE_MAX: Final = 100
"""How many unreadable lines one batch collects."""

STEP_LINES: Final = 50
"""How many lines are read in one step: about a third of a millisecond's work."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is full."""

    events: int = 500
    bytes: int = 1 << 20


@dataclass(slots=True)
class Batch:
    """Events to send next, and where the cursor stands once they are acknowledged.

    Those that come from the quarantine stand in `released` too, by their marks; no cursor moves for them. `parts`
    says what of an event is still to be sent where the destination has the rest (None: it has all of it). It knows
    events as objects, `id(event)`: a placeholder and its real event have one id. `prepared` are the same events as the
    sink prepared them ahead, for the first attempt.
    """

    events: list[MeterEvent] = field(default_factory=list)
    parts: dict[int, MeterEvent | None] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    released: dict[str, MeterEvent] = field(default_factory=dict)
    prepared: Sequence[MeterEvent] | None = None
    bytes: int = 0

    @property
    def unsent(self) -> tuple[MeterEvent, ...]:
        """What is to be sent."""
        if not self.parts:
            return tuple(self.events)
        chosen = (self.parts.get(id(event), event) for event in self.events)
        return tuple(part for part in chosen if part is not None)

    def is_full(self, limits: BatchLimits) -> bool:
        """Whether nothing more should be added."""
        return len(self.events) >= limits.events or self.bytes >= limits.bytes or len(self.unreadable) >= UNREADABLE_MAX


class BatchReader:
    """Reads batches for one sink, from its cursor on."""

    def __init__(self, index: SegmentIndex, *, limits: BatchLimits, problem: Problem) -> None:
        self._index = index
        self._limits = limits
        self._problem = problem
        self._todo: deque[tuple[str, int]] = deque()
        self._reported: set[str] = set()

    def plan(self, cursor: Cursor) -> None:
        """Look which segments have something new, up to where they are now."""
        names = self._index.names()
        for name in cursor.prune(names):
            if name not in self._reported:
                self._reported.add(name)
                self._problem("a segment was deleted before it was delivered", name)
        for name in cursor.blocked.keys() - set(names):
            del cursor.blocked[name]
        self._todo = deque()
        for name in names:
            position = cursor.segments.get(name)
            if (position is not None and position.done) or name in cursor.blocked:
                continue
            size = self._index.size(name)
            if size != (position.offset if position else 0):
                self._todo.append((name, size))

    def next(self, cursor: Cursor) -> Batch | None:
        """The next batch of the plan; None when it is worked off."""
        return worked_off(self.reading(cursor))

    def reading(self, cursor: Cursor, *, after: Batch | None = None) -> Steps[Batch | None]:
        """The same in small steps, from where the cursor stands once the batch `after` is acknowledged."""
        batch = Batch()
        behind = after.positions if after is not None else {}
        while self._todo:
            name, until = self._todo[0]
            full = yield from self._read_into(batch, behind.get(name) or cursor.position(name), cursor, name, until)
            if full:
                return batch
            self._todo.popleft()
        return batch if batch.positions else None

    def _read_into(self, batch: Batch, known: Position, cursor: Cursor, name: str, until: int) -> Steps[bool]:
        """Add a segment's lines from a known position on; True when the batch is full."""
        try:
            descriptor = os.open(self._index.folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._problem("read a segment", error)
            return False
        try:
            position = self._start(descriptor, known, name)
            if position.offset < known.offset:
                batch.positions[name] = position
            for number, line in enumerate(read_lines(descriptor, position.offset, skipping=position.skipping)):
                if line.end > until:
                    return False
                if batch.is_full(self._limits):
                    return True
                self._take(batch, position, name, line)
                batch.positions[name] = position
                if number % STEP_LINES == STEP_LINES - 1:
                    yield
            return False
        except NewerSchema as newer:
            cursor.blocked[name] = str(newer)
            self._problem("a segment waits for a newer version", newer)
            return False
        finally:
            os.close(descriptor)

    def _start(self, descriptor: int, position: Position, name: str) -> Position:
        """Where to go on; the beginning when the file is not what the cursor knew (a lost disk cache, an editor)."""
        before = os.pread(descriptor, 1, position.offset - 1) if position.offset else b"\n"
        if before == b"\n" or (before and position.skipping):
            return position.copy()
        self._problem("a segment changed under its cursor: sending it again", name)
        return Position()

    def _take(self, batch: Batch, position: Position, name: str, line: Line) -> None:
        begun = line.skipping and not position.skipping
        ended = line.raw is None and position.skipping
        document: dict[str, Any] = {}
        try:
            if line.raw is not None:
                document = decode(line.raw) if _may_count(line.raw) else {}
                if document.get("kind") == "event":
                    batch.events.append(to_event(document))
                    batch.bytes += len(line.raw)
            elif begun or not ended:
                raise InvalidEvent("a line of more than 1 MiB")
        except InvalidEvent as invalid:
            batch.unreadable.append(unreadable(name, line.end, raw=line.raw, reason=str(invalid)))
        position.offset, position.skipping = line.end, line.skipping
        position.done = document.get("kind") == "sealed"


def _may_count(raw: bytes) -> bool:
    """False for an empty line and for a call that began: what is said there matters only to recovery.

    One that was cut off, or that another line runs into, is read like any other: it must not vanish in silence.
    """
    if raw.startswith(_OPENED) and raw.endswith(b"}") and raw.rfind(_BEGIN) == 0:
        return raw.count(b"{") != raw.count(b"}")
    return bool(raw.strip())


_BEGIN: Final = b'{"kind":"'
_OPENED: Final = b'{"kind":"opened"'
