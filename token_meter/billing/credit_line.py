"""What credit pays for on an invoice: one line, which tells what was used of each grant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from token_meter.billing.credit import Place, Scope, pays_for
from token_meter.billing.line import Line, decimal_of_exact, of_usage
from token_meter.billing.plans import Period
from token_meter.money import EXACT, ZERO, plain, settled, total


class Credit(NamedTuple):
    """What may be used of a grant, and for what.

    `available` is what usage has drawn and no invoice tells yet, and what is left; below zero where more came back than
    can be drawn again (it has expired meanwhile). `returned` is what came back of what earlier invoices used. `first`:
    so much of it pays before the others do, because nothing else was usable at the time of the usage (replay.py).
    """

    grant: str
    available: Decimal
    scope: Scope = ()
    returned: Decimal = ZERO
    first: Decimal = ZERO


_PAID_BY_CREDIT: Final = ("usage", "included", "minimum", "discount", "correction")


def _is_paid_by_credit(line: Line) -> bool:
    return line.kind in _PAID_BY_CREDIT and not line.key.startswith("fee|")


def credit_line(lines: Sequence[Line], credit: Sequence[Credit], period: Period) -> Line | None:
    """What credit pays for: usage with what is included, discounted and corrected of it.

    Each grant in turn pays for what it is for, as far as none before it did. Where more is taken back than is charged,
    what had been paid with credit goes back to it, and only the rest is money.
    """
    mine = [line for line in lines if _is_paid_by_credit(line)]
    used = {each.grant: each.available for each in credit if each.available < ZERO}
    left = EXACT.subtract(total(of_usage(line) for line in mine), total(used.values()))
    able = [each for each in credit if each.available >= ZERO]
    used |= _paid(mine, able, left) if left > ZERO else _given_back(able, EXACT.minus(left))
    if not used:
        return None
    amount = total(used.values())
    math = {"grants": {grant: plain(part) for grant, part in used.items()}}
    title = "Credit used" if amount >= ZERO else "Credit given back"
    return Line("credit", "credit", title, period, EXACT.minus(amount), math=math)


def _paid(lines: Sequence[Line], credit: Sequence[Credit], left: Decimal) -> dict[str, Decimal]:
    places = _net(lines, left)
    used: dict[str, Decimal] = {}
    rests = [(each, EXACT.subtract(each.available, each.first)) for each in credit]
    for each, able in [*((each, each.first) for each in credit), *rests]:
        matching = [place for place in places if places[place] > ZERO and pays_for(each.scope, place)]
        most = total(places[place] for place in matching) if each.scope else left
        amount = min(able, most, left)
        if amount <= ZERO:
            continue
        used[each.grant] = EXACT.add(used.get(each.grant, ZERO), amount)
        left = EXACT.subtract(left, amount)
        for place in matching:
            part = min(amount, places[place])
            places[place], amount = EXACT.subtract(places[place], part), EXACT.subtract(amount, part)
    return used


def _net(lines: Sequence[Line], left: Decimal) -> dict[Place, Decimal]:
    """What each kind of usage comes to, and its share of what a discount or an included amount takes off all of it."""
    places: dict[Place, Decimal] = {}
    for line in lines:
        if line.meter is not None:
            place: Place = (line.meter, line.provider, line.model, line.token_type)
            places[place] = EXACT.add(places.get(place, ZERO), of_usage(line))
    gross = total(places.values())
    if gross <= left:
        return places
    return {place: settled(EXACT.divide(EXACT.multiply(amount, left), gross)) for place, amount in places.items()}


def _given_back(credit: Sequence[Credit], amount: Decimal) -> dict[str, Decimal]:
    """What burned last comes back first."""
    used: dict[str, Decimal] = {}
    for each in reversed(credit):
        part = min(each.returned, amount)
        if part > ZERO:
            used[each.grant], amount = EXACT.minus(part), EXACT.subtract(amount, part)
    return used


def credit_told(lines: Iterable[Line]) -> dict[str, Decimal]:
    """What an invoice says was used of each grant."""
    told = [line.math["grants"] for line in lines if line.kind == "credit" and line.math]
    return {grant: decimal_of_exact(amount) for grants in told for grant, amount in grants.items()}
