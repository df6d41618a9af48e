"""What a plan adds to the lines of usage: what its fees include, the fees themselves, minimums and discounts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from typing import Any

from token_meter.billing.cards import Rate
from token_meter.billing.line import Line, Metered, Segment, number_of
from token_meter.billing.plans import Included, Plan
from token_meter.money import EXACT, ONE, ZERO, plain, product, settled, total


def free_units(meter: str, mine: Sequence[Metered], segment: Segment, quantity: int, left: list[int]) -> int:
    """How many units of a meter that is charged by the period are included; `left`: what is left of each allowance."""
    free = 0
    unpaid = [one.quantity for one in mine]
    for number, each in enumerate(allowances(segment)):
        if each.meter != meter:
            continue
        counted = quantity
        if each.where:
            places = [at for at, one in enumerate(mine) if _concerns(each, one.provider, one.model, one.name)]
            counted = sum(unpaid[at] for at in places)
        else:
            places = list(range(len(mine)))
        taken = max(0, min(left[number], counted, quantity - free))
        left[number] -= taken
        free += taken
        for at in places:
            part = min(unpaid[at], taken)
            unpaid[at], taken = unpaid[at] - part, taken - part
    return free


def allowances(segment: Segment) -> list[Included]:
    """The quantities that the plan includes, in its order."""
    plan = segment.plan
    return [each for each in plan.included if each.quantity is not None] if plan is not None else []


def allowance_of(each: Included, segment: Segment) -> int:
    """The included quantity, in proportion to the part of the period; broken units are given to the customer."""
    assert each.quantity is not None
    share = _share(segment)
    return each.quantity if share == ONE else int(product(share, each.quantity).to_integral_value(ROUND_CEILING, EXACT))


def included_quantities(lines: Sequence[Line], segment: Segment, left: list[int]) -> list[Line]:
    """Negative lines for included units, taken off the lines in the order these stand in; `left`: of each allowance."""
    found = []
    unpaid = [line.quantity or 0 for line in lines]
    for number, each in enumerate(allowances(segment)):
        for place, line in enumerate(lines):
            concerned = line.meter == each.meter and _concerns(each, line.provider, line.model, line.token_type)
            if not left[number] or not concerned or line.rate is None:
                continue
            taken = min(left[number], unpaid[place])
            left[number] -= taken
            unpaid[place] -= taken
            if taken:
                found.append(
                    replace(
                        line, kind="included", key=f"included|{number}|{line.key}", title=f"{line.title}, included",
                        quantity=-taken, exact=product(line.rate, -taken),
                    )
                )  # fmt: skip
    return found


def _concerns(each: Included, provider: str | None, model: str | None, token_type: str | None) -> bool:
    told = {"provider": provider, "model": model, "token_type": token_type}
    return all(fnmatchcase(told[name] or "", pattern) for name, pattern in each.where.items())


def included_amounts(lines: Sequence[Line], plan: Plan, segment: Segment) -> list[Line]:
    """Negative lines for the amounts of usage that the plan includes, in proportion to the part of the period."""
    usage = total(line.exact for line in lines if line.kind in ("usage", "included", "minimum"))
    found = []
    for number, each in enumerate(plan.included):
        if each.amount is None or usage <= 0:
            continue
        taken = min(usage, product(_share(segment), each.amount))
        usage = EXACT.subtract(usage, taken)
        found.append(
            Line(
                "included",
                f"included amount|{segment.label}|{number}",
                "Included usage",
                segment.span,
                EXACT.minus(taken),
            )
        )
    return found


def _share(segment: Segment) -> Decimal:
    """Which part of the plan's period the segment is."""
    if segment.span == segment.whole:
        return ONE
    return EXACT.divide(segment.span.days, segment.whole.days)


def is_first(once: set[tuple[Any, ...]], segment: Segment, *what: Any) -> bool:
    """Whether an amount that is charged once in a period was not charged yet in an earlier part of it."""
    key = (segment.whole.start, *what)
    if key in once:
        return False
    once.add(key)
    return True


def fees(plan: Plan, segment: Segment, once: set[tuple[Any, ...]]) -> list[Line]:
    """The fixed fees, in proportion to the part of the period; those that are not, once in a period."""
    share = _share(segment)
    lines = []
    for number, fee in enumerate(plan.fees):
        if not fee.prorate and not is_first(once, segment, "fee", plan.name, fee.title):
            continue
        part = share if fee.prorate else ONE
        math = {"amount": plain(fee.amount)} | ({"share": plain(part)} if part != ONE else {})
        exact = product(part, fee.amount)
        lines.append(Line("fee", f"fee|{segment.label}|{number}", fee.title, segment.span, exact, math=math))
    return lines


def _rate_minimum(lines: Sequence[Line], rate: Rate, segment: Segment, label: str, place: int) -> list[Line]:
    """What is missing to the least that a rate comes to."""
    if rate.minimum is None:
        return []
    least = product(_share(segment), rate.minimum)
    missing = EXACT.subtract(least, total(line.exact for line in lines))
    if missing <= 0:
        return []
    title = f"Minimum for {rate.title or rate.meter}"
    return [Line("minimum", f"minimum|{label}|{place}", title, segment.span, missing, meter=rate.meter, card=label)]


def rate_minimums(charged: Mapping[tuple[str, int], Sequence[Line]], segment: Segment) -> Iterator[Line]:
    """What is missing to the least that each rate comes to, also where nothing was used.

    A minimum is of the period: where a card has several versions in it, they share the one that was said last.
    `charged` are the lines of each rate, by the name of its card and its place.
    """
    last: dict[str, str] = {}
    for label in sorted(segment.cards, key=number_of):
        last[segment.cards[label].name] = label
    for name in sorted(last):
        for place, rate in enumerate(segment.cards[last[name]].rates):
            yield from _rate_minimum(charged.get((name, place), ()), rate, segment, last[name], place)


def plan_minimum(lines: Sequence[Line], plan: Plan, segment: Segment) -> list[Line]:
    """What is missing to the least that the plan comes to, fees and discounts counted."""
    if plan.minimum is None:
        return []
    missing = EXACT.subtract(product(_share(segment), plan.minimum), total(line.exact for line in lines))
    if missing <= 0:
        return []
    return [Line("minimum", f"minimum|{segment.label}", "Minimum charge", segment.span, missing)]


def discounts(lines: Sequence[Line], plan: Plan, segment: Segment) -> list[Line]:
    """The discounts, never more than there is to take off. `math.usage` is the part that is taken off usage."""
    kinds = {
        "usage": ("usage", "included", "minimum"),
        "fees": ("fee",),
        "all": ("usage", "included", "minimum", "fee"),
    }
    found: list[Line] = []
    for number, each in enumerate(plan.discounts):
        base = total(line.exact for line in lines if line.kind in kinds[each.on])
        rest = total(line.exact for line in (*lines, *found) if line.kind in (*kinds["all"], "discount"))
        taken = min(settled(EXACT.divide(EXACT.multiply(base, each.percent), Decimal(100))), rest)
        if taken > ZERO:
            key = f"discount|{segment.label}|{number}"
            usage = total(line.exact for line in lines if line.kind in kinds["usage"]) if each.on != "fees" else ZERO
            part = settled(EXACT.divide(EXACT.multiply(taken, usage), base))
            math = {"percent": plain(each.percent), "of": plain(base), "usage": plain(EXACT.minus(part))}
            found.append(
                Line(
                    "discount",
                    key,
                    f"{each.title} {plain(each.percent)} %",
                    segment.span,
                    EXACT.minus(taken),
                    math=math,
                )
            )
    return found
