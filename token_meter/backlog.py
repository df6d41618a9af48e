"""How far each sink is, measured from the files, so that any process can ask about any journal."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from token_meter.cursors import Cursor, CursorReader
from token_meter.decisions import quarantined
from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.event import MeterEvent, parse_time
from token_meter.folder import JournalFolder
from token_meter.locks import holder
from token_meter.problems import read_problems
from token_meter.segments import CHUNK_BYTES, EVENT_PREFIX, SegmentIndex, decode, read_lines, to_event
from token_meter.standing import Standing

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


class Whereabouts:
    """Where events are that a sink asks about while a batch is about to be sent to it (see `sinks.base.Unsent`).

    `batch` are the ids in that batch, `tried` those of them that were sent before, `unanswered` everything that was
    sent before and, as far as was written down, got no answer. What happened before `distrusted_until` may have been
    sent and answered too, although it waits here: the cursor was lost.
    """

    def __init__(
        self,
        folder: JournalFolder,
        index: SegmentIndex,
        sink: str,
        cursor: Cursor,
        *,
        batch: Collection[str],
        tried: Collection[str],
        unanswered: Collection[str],
        distrusted_until: float = 0.0,
    ) -> None:
        self._folder = folder
        self._index = index
        self._sink = sink
        self._cursor = cursor
        self._batch = set(batch)
        self._fresh = self._batch - set(tried)
        self._unanswered = set(unanswered)
        self._distrusted_until = distrusted_until
        self._looked_for: set[str] = set()
        self._behind: dict[str, bool] = {}
        self._aside: list[tuple[str, bool, dict[str, Any]]] = []

    def __call__(self, ids: Collection[str]) -> set[str]:
        """Those that surely never reached it, as a whole or in part."""
        self._look_for(ids)
        never = {id for id, perhaps, _ in self._aside if not perhaps}
        never |= {id for id, perhaps in self._behind.items() if not perhaps}
        return set(ids) & (self._fresh | never)

    def perhaps(self, ids: Collection[str]) -> set[str]:
        """Those that wait to be sent again, because nobody answered."""
        self._look_for(ids)
        perhaps = {id for id, perhaps, _ in self._aside if perhaps}
        return set(ids) & (perhaps | {id for id, perhaps in self._behind.items() if perhaps})

    def kept(self, ids: Collection[str]) -> list[MeterEvent]:
        """The events that are kept in quarantine, or the parts of them if the rest was taken."""
        self._look_for(ids)
        wanted = set(ids)
        return [to_event(event) for id, perhaps, event in self._aside if id in wanted and not perhaps]

    def _look_for(self, ids: Collection[str]) -> None:
        """Read the whole backlog and quarantine: for the rare moment in which a sink cannot tell."""
        if self._looked_for.issuperset(ids):
            return
        self._looked_for.update(ids)
        for name, begin, end in _waiting(self._index, self._cursor):
            for event in _events_between(self._index.folder / name, begin, end):
                if (id := str(event.get("id"))) in self._looked_for - self._batch:
                    moment = _moment(event.get("time"))
                    lost = moment is not None and moment.timestamp() < self._distrusted_until
                    self._behind[id] = lost or id in self._unanswered
        self._aside = [
            # Sent without an answer, then refused or released: it may be there.
            (each.id, each.id in self._unanswered - self._batch, each.event)
            for each in quarantined(self._folder, self._sink)
            if each.event is not None and each.state != "delivered" and each.id in self._looked_for
        ]


def waiting_ids(folder: str | os.PathLike[str], sink: str) -> set[str]:
    """The ids of all events that wait in the journal for a sink, by its cursor on disk."""
    journal = JournalFolder(folder)
    if sink not in (journal.registered() or ()):
        return set()
    index = SegmentIndex(journal.segments)
    waiting = _waiting(index, CursorReader(journal).get(sink))
    return {id for name, begin, end in waiting for id in _ids_between(index.folder / name, begin, end)}


def _ids_between(path: Path, begin: int, end: int) -> Iterator[str]:
    return (str(event.get("id")) for event in _events_between(path, begin, end))


def _events_between(path: Path, begin: int, end: int) -> Iterator[dict[str, Any]]:
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
                yield decode(line.raw)
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
