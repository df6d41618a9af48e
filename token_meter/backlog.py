"""How far each sink is, measured from the files, so that any process can ask about any journal."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from token_meter.cursors import Cursor, CursorReader
from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.event import parse_time
from token_meter.folder import JournalFolder
from token_meter.locks import holder
from token_meter.problems import read_problems
from token_meter.quarantine import id_in
from token_meter.segments import CHUNK_BYTES, EVENT_PREFIX, SegmentIndex, decode, read_lines
from token_meter.standing import History, Standing

COUNTED_BYTES_MAX: Final = 64 << 20
"""How much of a backlog is counted exactly; beyond it the number of events is extrapolated."""

DATED_SEGMENTS_MAX: Final = 16
DATED_LINES_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryState:
    """One sink: what it has and what waits for it.

    `holder` is the process that delivers now. `quarantined` are events the sink refused and `invalid` unreadable
    lines, as long as nobody has decided about them; `awaiting` of the refused events are released by themselves when
    what they wait for is there. `released` are refused events on their way again, which count in `backlog_events`.
    `blocked` are segments (with the reason) that wait for a newer version of this package.
    """

    name: str
    delivered: int
    backlog_events: int
    backlog_bytes: int
    oldest_age_seconds: float | None
    last_error: str | None
    quarantined: int
    invalid: int
    released: int
    retry_at: datetime | None
    holder: int | None
    blocked: dict[str, str]
    awaiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatus:
    """A journal as seen from outside: its size, its sinks, its problems."""

    path: Path
    bytes: int
    segments: int
    invalid: int
    deliveries: tuple[DeliveryState, ...]
    problems: tuple[dict[str, Any], ...]


def status(folder: str | os.PathLike[str]) -> JournalStatus:
    """The state of a journal, read from its files only: no process is disturbed, nothing is written."""
    journal = JournalFolder(folder)
    index = SegmentIndex(journal.segments)
    cursors = CursorReader(journal)
    deliveries = tuple(
        measure(journal, index, sink, cursors.get(sink), Standing(journal.refusals(sink)))
        for sink in (journal.registered() or ())
    )
    return JournalStatus(
        path=journal.path,
        bytes=index.total(),
        segments=len(index.names()),
        invalid=max((each.invalid for each in deliveries), default=0),
        deliveries=deliveries,
        problems=tuple(read_problems(folder)),
    )


def measure(
    folder: JournalFolder, index: SegmentIndex, sink: str, cursor: Cursor, quarantine: Standing
) -> DeliveryState:
    """One sink's state, from its cursor, its quarantine and the segments."""
    quarantine.read()
    released = list(quarantine.released.values())
    waiting = list(_waiting(index, cursor))
    backlog_bytes = sum(end - begin for _, begin, end in waiting)
    return DeliveryState(
        name=sink,
        delivered=cursor.sent,
        backlog_events=_count_events(index, waiting, backlog_bytes) + len(released),
        backlog_bytes=backlog_bytes,
        oldest_age_seconds=_oldest_age(index, waiting, released),
        last_error=cursor.error,
        quarantined=quarantine.events,
        invalid=quarantine.lines,
        released=len(released),
        retry_at=_moment(cursor.retry_at),
        holder=holder(folder.lock(sink)),
        blocked=dict(cursor.blocked),
        awaiting=quarantine.awaiting,
    )


def _waiting(index: SegmentIndex, cursor: Cursor) -> Iterator[tuple[str, int, int]]:
    for name in index.names():
        position = cursor.position(name)
        size = 0 if position.done else index.size(name)
        if size > position.offset:
            yield name, position.offset, size


def _count_events(index: SegmentIndex, waiting: list[tuple[str, int, int]], total: int) -> int:
    events = counted = 0
    for name, begin, end in waiting:
        if counted >= COUNTED_BYTES_MAX:
            return round(events * total / counted)
        events += _count_between(index.folder / name, begin, end)
        counted += end - begin
    return events


def _count_between(path: Path, begin: int, end: int) -> int:
    """Occurrences of the beginning of an event line; inside a JSON string its quotes would be escaped."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    events, tail = 0, b""
    try:
        while begin < end and (chunk := os.pread(descriptor, min(CHUNK_BYTES, end - begin), begin)):
            begin += len(chunk)
            events += (tail + chunk).count(EVENT_PREFIX)
            tail = chunk[-(len(EVENT_PREFIX) - 1) :]
    finally:
        os.close(descriptor)
    return events


def unsent(folder: JournalFolder, index: SegmentIndex, sink: str, cursor: Cursor, ids: Collection[str]) -> set[str]:
    """Of these event ids, those that wait for the sink behind its cursor, or that its quarantine keeps from it.

    Reads the whole backlog: for the rare moment in which a human, or a sink that cannot tell, needs to know.
    """
    wanted, found = set(ids), set[str]()
    for name, begin, end in _waiting(index, cursor) if wanted else ():
        found |= wanted.intersection(_ids_between(index.folder / name, begin, end))
    history = History(folder.refusals(sink))
    history.read()
    aside = {id_in(mark) for mark in history.places if history.state(mark) != "delivered"}
    return found | (wanted & aside)


def waiting_ids(folder: str | os.PathLike[str], sink: str) -> set[str]:
    """The ids of all events that wait in the journal for a sink, by its cursor on disk."""
    journal = JournalFolder(folder)
    if sink not in (journal.registered() or ()):
        return set()
    index = SegmentIndex(journal.segments)
    waiting = _waiting(index, CursorReader(journal).get(sink))
    return {id for name, begin, end in waiting for id in _ids_between(index.folder / name, begin, end)}


def _ids_between(path: Path, begin: int, end: int) -> Iterator[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for line in read_lines(descriptor, begin):
            if line.end > end:
                return
            if line.raw is None or not line.raw.startswith(EVENT_PREFIX):
                continue
            try:
                yield str(decode(line.raw).get("id"))
            except (InvalidEvent, NewerSchema):
                continue
    finally:
        os.close(descriptor)


def _oldest_age(index: SegmentIndex, waiting: list[tuple[str, int, int]], released: list[str]) -> float | None:
    """How long the oldest event waits; a released one since its release."""
    moments = [_first_event(index.folder / name, begin) for name, begin, _ in waiting[:DATED_SEGMENTS_MAX]]
    moments += [_moment(min(released, default=None))]
    known = [moment for moment in moments if moment is not None]
    return max(0.0, (datetime.now(UTC) - min(known)).total_seconds()) if known else None


def _first_event(path: Path, begin: int) -> datetime | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for number, line in enumerate(read_lines(descriptor, begin)):
            if number > DATED_LINES_MAX:
                return None
            if line.raw is not None and line.raw.startswith(EVENT_PREFIX):
                return _moment(decode(line.raw).get("time"))
    except (InvalidEvent, NewerSchema):
        return None
    finally:
        os.close(descriptor)
    return None


def _moment(text: object) -> datetime | None:
    try:
        return parse_time(text) if isinstance(text, str) else None
    except ValueError:
        return None
