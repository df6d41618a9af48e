"""Delivering a journal from outside the application that wrote it: the command line, a sidecar, a query.

With it what one decides about deliveries: `forget` a sink, `release` or `discard` what it refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from token_meter.backoff import request_hurry as request_hurry
from token_meter.batch import BatchLimits, BatchReader
from token_meter.cursors import Cursor, CursorReader
from token_meter.decisions import Decided as Decided
from token_meter.decisions import Quarantined as Quarantined
from token_meter.decisions import discard as discard
from token_meter.decisions import quarantine as quarantine
from token_meter.decisions import quarantined as quarantined
from token_meter.decisions import release as release
from token_meter.decisions import returning as returning
from token_meter.delivery import Delivery
from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder
from token_meter.keeper import Keeper
from token_meter.locks import holder
from token_meter.problems import Problems
from token_meter.registry import add
from token_meter.registry import forget as forget_sink
from token_meter.reporter import POLL_SECONDS, unpassed
from token_meter.segments import SegmentIndex
from token_meter.sinks.base import Sink, sink_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What `deliver_once` did. `complete`: the sink has everything. `holder`: the process that delivers instead."""

    sent: int = 0
    quarantined: int = 0
    invalid: int = 0
    complete: bool = True
    error: str | None = None
    holder: int | None = None


def deliver_once(
    folder: str | os.PathLike[str],
    sink: Sink,
    *,
    timeout: float = 0.0,
    replay: bool = False,
    batch_events: int = 500,
    batch_bytes: int = 1 << 20,
    fsync: Literal["always", "interval", "never"] = "interval",
) -> Delivered:
    """Deliver a journal to one sink, in the calling thread, dead processes' calls included.

    One attempt, then again until `timeout` seconds are over; while another process delivers to the sink, that time
    is spent waiting for it. A sink the journal does not know yet is added as `Reporter` would. A folder that is no
    journal has nothing to deliver. Raises JournalError when the folder cannot be used.
    """
    journal = JournalFolder(folder)
    if not journal.exists():
        return Delivered()
    add(journal, sink_name(sink), replay=replay)
    index = SegmentIndex(journal.segments)
    problem = Problems(journal.problems).record
    limits = BatchLimits(batch_events, batch_bytes)
    delivery = Delivery(sink, journal, index, limits=limits, problem=problem, fsync=fsync)
    keeper = Keeper(journal, index, [delivery], problem=problem, durable=fsync == "always", journal_bytes_max=4 << 30)
    try:
        return _deliver(delivery, keeper, index, deadline=time.monotonic() + timeout)
    finally:
        delivery.release()


def waiting_events(folder: str | os.PathLike[str], sink: str, *, batch_events: int = 500) -> Iterator[list[MeterEvent]]:
    """What waits in the journal for a sink, in batches as they would be sent; nothing is sent or moved.

    For a sink that the journal does not know yet: all that is still there, as it would get with `replay`.
    """
    journal = JournalFolder(folder)
    if not journal.exists():
        return
    index = SegmentIndex(journal.segments)
    known = sink in (journal.registered() or ())
    cursor = CursorReader(journal).get(sink) if known else Cursor()
    cursor = Cursor(segments={name: position.copy() for name, position in cursor.segments.items()})
    reader = BatchReader(index, limits=BatchLimits(batch_events), problem=_no_problem)
    reader.plan(cursor)
    while (batch := reader.next(cursor)) is not None:
        if batch.events:
            yield batch.events
        cursor.segments.update(batch.positions)


def _no_problem(kind: str, detail: object) -> None:
    """Whoever delivers tells of what is wrong with the journal."""


def forget(folder: str | os.PathLike[str], name: str) -> None:
    """Give a sink up. Raises JournalError when the journal does not know it or a process delivers to it."""
    forget_sink(JournalFolder(folder), name)


def _deliver(delivery: Delivery, keeper: Keeper, index: SegmentIndex, *, deadline: float) -> Delivered:
    before = delivery.current()
    sent, quarantined, invalid = before.sent, before.quarantined, before.invalid
    keeper.sweep()
    ends = unpassed(index, before)
    while True:
        delivery.run()
        missing = delivery.missing(ends)
        in_vain = all(name in delivery.current().blocked for name in missing)
        if in_vain or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    if delivery.held:
        keeper.sweep()
    after = delivery.current()
    return Delivered(
        sent=after.sent - sent,
        quarantined=after.quarantined - quarantined,
        invalid=after.invalid - invalid,
        complete=not missing,
        error=after.error if missing else None,
        holder=None if delivery.held else holder(delivery.lock_path),
    )
