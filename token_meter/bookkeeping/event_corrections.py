"""Taking events back, and giving them to another customer: new events, which reach every sink.

A correction has an id that follows from what it corrects, so doing it twice is doing it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from token_meter.errors import InvalidEvent
from token_meter.event import MeterEvent
from token_meter.ledger.tables import events
from token_meter.ledger.text import to_stored

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

REASON: Final = "correction_reason"
"""The dimension in which a correction says why."""


def voiding(ledger: Ledger, id: str, *, reason: str, now: datetime) -> MeterEvent:
    """The event that takes another back, all of it. Raises InvalidEvent if there is none, or it is back already."""
    original = _original(ledger, id)
    return replace(
        original,
        id=_derived("void", original.id),
        time=now,
        corrects=original.id,
        dimensions={**original.dimensions, REASON: reason},
        anomalies=(),
    )


def reassigning(ledger: Ledger, id: str, customer: str, *, reason: str, now: datetime) -> list[MeterEvent]:
    """The events that take another from its customer and give it to this one, at its own time.

    It is given first: where something stops in between, doing it again finishes it, and nothing is lost meanwhile.
    """
    if not customer.strip():
        raise InvalidEvent("an event is given to a customer: say whose it is")
    original = _original(ledger, id)
    if original.customer == customer:
        raise InvalidEvent(f"event {id} is {customer}'s already")
    given = replace(
        original,
        id=_derived("reassign", original.id, customer),
        customer=customer,
        dimensions={**original.dimensions, REASON: reason},
    )
    return [given, voiding(ledger, id, reason=reason, now=now)]


def record_all(corrections: list[MeterEvent], record: Callable[[MeterEvent], object]) -> list[str]:
    """Record them; their ids."""
    for event in corrections:
        record(event)
    return [event.id for event in corrections]


def _original(ledger: Ledger, id: str) -> MeterEvent:
    found = ledger.event(id)
    if found is None:
        raise InvalidEvent(f"there is no event {id!r} in the ledger")
    if found.corrects is not None:
        raise InvalidEvent(f"event {id} is a correction itself: record what was taken back anew")
    with ledger.reading() as (_, connection):
        taken = connection.execute(select(events.c.id).where(events.c.corrects == to_stored(id))).first()
    if taken is not None:
        raise InvalidEvent(f"event {id} is taken back already, by {taken.id}")
    return found


def _derived(*identity: str) -> str:
    """A UUIDv8 of a digest, as every id that is derived."""
    text = hashlib.sha256("\0".join(identity).encode()).hexdigest()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-{'89ab'[int(text[16], 16) % 4]}{text[17:20]}-{text[20:32]}"
