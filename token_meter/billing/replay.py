"""Which credit pays for which usage of a period in which some of it begins or ends: by the time of the usage.

Credit is drawn when usage is recorded, and usage does not come in the order of time. An invoice must not depend on
that. So where it matters the period is played again: cut where credit begins or ends, and each part paid for by what
was usable in it, in burn order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from token_meter.billing.credit import CreditGrant, Place, taken_from
from token_meter.billing.line import Metered
from token_meter.billing.plans import Period
from token_meter.ledger.tables import EVENTS, UNITS
from token_meter.money import EXACT, ZERO, product

_HOUR = timedelta(hours=1)


def cut(period: Period, grants: Iterable[CreditGrant]) -> list[Period]:
    """A period in parts in which the same credit is usable throughout, to the hour: one part, if all of it is."""
    edges = {edge for grant in grants for edge in _span(grant) if period.start < edge < period.stop}
    moments = [period.start, *sorted(edges), period.stop]
    return [Period(start, stop) for start, stop in pairwise(moments)]


def replayed(
    parts: Sequence[tuple[Period, Sequence[Metered]]], grants: Sequence[CreditGrant], pools: Mapping[str, Decimal]
) -> dict[str, Decimal]:
    """How much each grant pays of the usage in these parts, the earliest first. `pools`: what may be used of each."""
    left, used = dict(pools), dict.fromkeys(pools, ZERO)
    for part, usage in parts:
        usable = [grant for grant in grants if _span(grant)[0] <= part.start and part.stop <= _span(grant)[1]]
        for (currency, place), amount in _charges(usage).items():
            mine = [_usable(grant, left[grant.id], part) for grant in usable]
            for grant, paid in taken_from(mine, amount, currency=currency, at=part.start, place=place):
                left[grant.id] = EXACT.subtract(left[grant.id], paid)
                used[grant.id] = EXACT.add(used[grant.id], paid)
    return used


def _usable(grant: CreditGrant, left: Decimal, part: Period) -> CreditGrant:
    """With what is left of it, and usable in all of a part: it may begin or end within an hour of it."""
    begun = min(grant.effective, part.start)
    return replace(grant, remaining=left, effective=begun)


def _charges(usage: Iterable[Metered]) -> dict[tuple[str, Place], Decimal]:
    """What usage is charged unit by unit, by currency and what it is for; in an order of its own."""
    found: dict[tuple[str, Place], Decimal] = {}
    for each in sorted(usage, key=Metered.order):
        if each.rating.charge and each.said:
            whole = each.name in (EVENTS, UNITS)
            place: Place = (
                each.charged_meter, None if whole else each.provider, None if whole else each.model,
                None if whole else each.name,
            )  # fmt: skip
            key = (str(each.said.get("currency") or "USD"), place)
            found[key] = EXACT.add(found.get(key, ZERO), product(each.rating.charge, each.quantity))
    return {key: amount for key, amount in found.items() if amount > ZERO}


def _span(grant: CreditGrant) -> tuple[datetime, datetime]:
    """When it is usable, in whole hours: sums know the hour of usage, and no more."""
    start = grant.effective.replace(minute=0, second=0, microsecond=0)
    if grant.expires is None:
        return start, datetime.max.replace(tzinfo=start.tzinfo)
    stop = grant.expires.replace(minute=0, second=0, microsecond=0)
    return start, stop if stop == grant.expires else stop + _HOUR
