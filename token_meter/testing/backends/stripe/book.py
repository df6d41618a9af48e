"""What was received: identifiers that count once in 24 hours, cancellations, and the totals of one customer.

Assumptions: the 24 hours run from the first receipt and a repetition does not extend them; the identifier of a
cancelled event stays used; what is too old to be cancelled, or cancelled already, is answered like an event that was
never there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from token_meter.testing.backends.base import Counted
from token_meter.testing.backends.stripe.errors import ApiError, missing
from token_meter.testing.backends.stripe.params import Cancel
from token_meter.testing.backends.stripe.rules import Aggregation

IDENTIFIER_SECONDS: Final = 24 * 3600
CANCEL_SECONDS: Final = 24 * 3600


class Book:
    """Appends to `counted`; every operation but a cancellation takes constant time."""

    def __init__(self, counted: list[Counted]) -> None:
        self._counted = counted
        self._latest: dict[str, dict[str, Counted]] = {}
        self._cancelled: set[tuple[str, str]] = set()
        self._of: dict[tuple[str, str], list[Counted]] = {}
        self._groups: dict[tuple[str, ...], tuple[str, ...]] = {}

    def repeats(self, event_name: str, identifier: str, now: float) -> bool:
        """Whether the identifier was used within the last 24 hours."""
        earlier = self._latest.get(event_name, {}).get(identifier)
        return earlier is not None and now - earlier.received <= IDENTIFIER_SECONDS

    def add(self, record: Counted) -> None:
        """Bill it."""
        record = record._replace(group=self._groups.setdefault(record.group, record.group))
        self._counted.append(record)
        self._latest.setdefault(record.meter, {})[record.identifier] = record
        self._of.setdefault((record.customer, record.meter), []).append(record)
        self._cancelled.discard((record.meter, record.identifier))

    def cancel(self, which: Cancel, now: float) -> None:
        """Bill it no longer. Raises `ApiError` for what is not there, too old, or cancelled already."""
        record = self._latest.get(which.event_name, {}).get(which.identifier)
        if record is None or which in self._cancelled:
            raise missing("meter event", which.identifier, param="cancel[identifier]")
        if now - record.received > CANCEL_SECONDS:
            message = (
                f"The meter event '{which.identifier}' cannot be cancelled: it was received more than 24 hours ago."
            )
            raise ApiError(message, code="resource_missing", param="cancel[identifier]")
        self._cancelled.add(which)
        self._counted.remove(record)
        self._of[record.customer, record.meter].remove(record)

    def of(self, customer: str, event_name: str) -> Sequence[Counted]:
        """What is billed to one customer on one meter, in the order it was received."""
        return self._of.get((customer, event_name), ())


def aggregated(records: Sequence[Counted], how: Aggregation) -> int:
    """One number for many events. Of two at the same time, the last is the one that was received last."""
    if how == "last":
        return max(reversed(records), key=lambda each: each.at).value if records else 0
    return sum(each.value for each in records)
