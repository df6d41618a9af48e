"""What a sink refused, and lines that nobody can read: set aside in its quarantine before the cursor passes them.

After a crash a batch is read again from the cursor; what is in quarantine by then is not sent with it again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from token_meter.batch import Batch
from token_meter.cursors import Cursor
from token_meter.errors import Refusal, Rejected
from token_meter.event import MeterEvent
from token_meter.quarantine import (
    delivered,
    event_mark,
    id_in,
    mark_of,
    marks_after,
    refused,
    returned,
    whole_mark,
    write_quarantine,
)

log: Final = logging.getLogger("token_meter")


class Aside:
    """One sink's quarantine, as the process sees it that delivers."""

    def __init__(self, path: Path, *, sink: str) -> None:
        self.path = path
        self.end = 0
        """Where the quarantine ends after what was set aside last; 0 before."""
        self._sink = sink
        self._before: set[str] = set()
        self._in_part: set[str] = set()
        self._ids: set[str] = set()

    def begin(self, cursor: Cursor) -> None:
        """Look what was set aside beyond what the cursor passed, by a process that is gone."""
        self.end = 0
        self._before, self._in_part = marks_after(self.path, cursor.quarantine_bytes)
        self._ids = {id_in(mark) for mark in self._before}

    def leave_out(self, batch: Batch) -> None:
        """Take out of a batch what was set aside before."""
        if self._before:
            batch.events = [each for each in batch.events if not self._has(each)]
            batch.unreadable = [each for each in batch.unreadable if mark_of(each) not in self._before]

    def _has(self, event: MeterEvent) -> bool:
        """Whether an event is in quarantine, or a part of it, of which the rest was taken."""
        if event.id not in self._ids:
            return False
        document = event.to_json()
        return event_mark(document) in self._before or whole_mark(document) in self._in_part

    def unreadable(self, batch: Batch, cursor: Cursor) -> None:
        """Set the lines of a batch aside that are no events. Raises OSError."""
        if batch.unreadable:
            self._write(batch.unreadable)
            self._tell(cursor.invalid, len(batch.unreadable), "lines of the journal that cannot be read")
            cursor.invalid += len(batch.unreadable)
            batch.unreadable = []

    def refused(self, batch: Batch, rejected: Rejected, cursor: Cursor) -> set[str]:
        """Set the events of a batch aside that were refused; the ids of those. Raises OSError."""
        mine = {event.id for event in batch.events}
        named = [refusal for refusal in rejected.refusals if getattr(refusal.event, "id", None) in mine]
        if not named:
            return set()
        ids = {refusal.event.id for refusal in named}
        entries, again = _entries(batch, named)
        self._write(entries)
        batch.events = [event for event in batch.events if event.id not in ids]
        for mark in again:
            del batch.released[mark]
        self._tell(cursor.quarantined, len(named), "events that the sink refused")
        cursor.quarantined += len(named)
        return ids

    def _write(self, entries: list[dict[str, Any]]) -> None:
        self.end = write_quarantine(self.path, entries)

    def _tell(self, before: int, more: int, what: str) -> None:
        """The 1st, 10th, 100th. It is nothing that failed in here: the quarantine itself tells of it until decided."""
        if len(str(before + more)) > len(str(before)) or not before:
            log.error("token_meter: sink %s: %d in quarantine so far: %s", self._sink, before + more, what)


def _entries(batch: Batch, named: Sequence[Refusal]) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines that tell of refusals, and the marks of released events among what was refused.

    A released event whose other part was taken this time is delivered; what is left of it waits as a new entry.
    """
    entries: list[dict[str, Any]] = []
    by_id: dict[str, list[str]] = {}
    for mark, event in batch.released.items():
        by_id.setdefault(event.id, []).append(mark)
    again = []
    for refusal in named:
        before = by_id.pop(refusal.event.id, [])
        again += before
        mark = event_mark(refusal.event.to_json())
        if mark in before:
            entries.append(returned([mark], refusal.reason, awaits=refusal.awaits))
            before = [each for each in before if each != mark]
        else:
            entries += refused([refusal])
        if before:
            entries.append(delivered(before))
    return entries, again
