"""Events that come again: an object that is read again days later, a job that enters its usage a second time.

They have the same id and another time. The ledger counts such an event once, at the time that it recorded; so does a
destination that never forgets an id. For any other the ledger is asked, because it would count the event again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from token_meter.event import MeterEvent

if TYPE_CHECKING:
    from token_meter.sinks.base import Accounts

OWN_SECONDS_MAX: Final = 12 * 3_600.0
"""An event whose id was minted so long before it ended, or less, is the only one with that id."""

_MINTED: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def without_repeats(events: Iterable[MeterEvent], accounts: Accounts | None) -> list[MeterEvent]:
    """The events but for those that the ledger has with another time. Without a ledger: all of them."""
    given = list(events)
    doubtful = {event.id for event in given if not _has_an_id_of_its_own(event)} if accounts is not None else set()
    if accounts is None or not doubtful:
        return given
    known = accounts.events_with(doubtful)
    return [event for event in given if not _repeats(event, known.get(event.id))]


def _repeats(event: MeterEvent, known: MeterEvent | None) -> bool:
    return known is not None and known.time != event.time and bool(known.usage or known.corrects)


def _has_an_id_of_its_own(event: MeterEvent) -> bool:
    """Whether the id was minted for this event (a UUIDv7), as its time shows."""
    match = _MINTED.fullmatch(event.id)
    if match is None:
        return False
    minted = int(match[1] + match[2], 16) / 1000
    return abs(event.time.timestamp() - minted) <= OWN_SECONDS_MAX
