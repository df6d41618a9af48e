"""Lines of an invoice, from usage and plans: the arithmetic. Exact here; rounded once, by the invoice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from token_meter.billing.cards import Rate, Tier
from token_meter.billing.line import Held, Line, Metered, Segment
from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plan_lines import (
    allowance_of,
    allowances,
    discounts,
    fees,
    free_units,
    included_amounts,
    included_quantities,
    is_first,
    plan_minimum,
    rate_minimums,
)
from token_meter.ledger.tables import EVENTS, UNITS
from token_meter.money import EXACT, plain, product


def lines_of(segments: Sequence[Segment], meters: Mapping[str, MeterDefinition]) -> tuple[list[Line], list[Held]]:
    """The lines of a period's segments before tax and credit, in order, and what is held."""
    lines: list[Line] = []
    held: list[Held] = []
    once: set[tuple[Any, ...]] = set()
    for segment in segments:
        mine, missing = _lines_of(segment, meters, once)
        lines += mine
        held += missing
    return lines, held


def _lines_of(
    segment: Segment, meters: Mapping[str, MeterDefinition], once: set[tuple[Any, ...]]
) -> tuple[list[Line], list[Held]]:
    """The lines of one segment. `once` is what an earlier part of the same period has charged already."""
    priced, held = _sorted(segment)
    left = [allowance_of(each, segment) for each in allowances(segment)]
    lines: list[Line] = []
    charged: dict[tuple[str, int], list[Line]] = {}
    for (label, place), mine in priced.items():
        card = segment.cards[label]
        if card.rates[place].flat is not None and not is_first(once, segment, "flat", card.name, place):
            continue
        found = _of_rate(mine, card.rates[place], segment, label, place, meters, left)
        charged.setdefault((card.name, place), []).extend(found)
        lines += found
    lines += rate_minimums(charged, segment)
    if segment.plan is not None:
        lines += fees(segment.plan, segment, once)
        lines += included_amounts(lines, segment.plan, segment)
        lines += discounts(lines, segment.plan, segment)
        lines += plan_minimum(lines, segment.plan, segment)
    return lines, held


def _sorted(segment: Segment) -> tuple[dict[tuple[str, int], list[Metered]], list[Held]]:
    """What is charged by which rate of which card, and what has no price.

    A rate that a later version of its card did not change is one rate: its tiers and minimum are of the whole period.
    """
    priced: dict[tuple[str, int], list[Metered]] = {}
    held = []
    same: dict[tuple[str, int], list[tuple[Rate, str]]] = {}
    for each in sorted(segment.usage, key=Metered.order):
        said = each.said
        if "missing" in said:
            cost = each.rating.document.get("cost") or {}
            reason = str(cost.get("missing") or said["missing"])
            held.append(Held(each.charged_meter, each.provider, each.model, each.name, each.quantity, reason))
        elif said and said.get("kind") != "waived" and each.quantity:
            label, place = said["card"], said["rate"]
            card = segment.cards[label]
            known = same.setdefault((card.name, place), [])
            first = next((name for rate, name in known if rate == card.rates[place]), None)
            if first is None:
                known.append((card.rates[place], label))
            priced.setdefault((first or label, place), []).append(each)
    return {key: _calls_together(mine) for key, mine in priced.items()}, held


def _calls_together(mine: Sequence[Metered]) -> list[Metered]:
    """Calls, and what is counted in units, are one line whatever model they went to, as long as they cost the same."""
    together: dict[tuple[str, int], Metered] = {}
    others = []
    for each in mine:
        if each.name not in (EVENTS, UNITS):
            others.append(each)
            continue
        key = (each.charged_meter, each.rating.number)
        quantity = each.quantity + (together[key].quantity if key in together else 0)
        together[key] = Metered(each.charged_meter, None, None, UNITS, quantity, each.rating)
    return [*others, *(each for each in together.values() if each.quantity)]


def _of_rate(
    mine: Sequence[Metered],
    rate: Rate,
    segment: Segment,
    label: str,
    place: int,
    meters: Mapping[str, MeterDefinition],
    left: list[int],
) -> list[Line]:
    if mine[0].rating.charge is not None:
        lines = [_usage_line(each, segment, str(each.said["card"]), meters) for each in mine]
        return [*lines, *included_quantities(lines, segment, left)]
    quantity = segment.aggregates.get(rate.meter, sum(each.quantity for each in mine))
    free = free_units(rate.meter, mine, segment, quantity, left)
    return _by_the_period(max(0, quantity - free), rate, segment, label, place, meters, free=free)


def _usage_line(each: Metered, segment: Segment, label: str, meters: Mapping[str, MeterDefinition]) -> Line:
    assert each.rating.charge is not None
    meter = each.charged_meter
    return Line(
        kind="usage",
        key=f"usage|{label}|{meter}|{each.provider or ''}|{each.model or ''}|{each.name}|{each.rating.number}",
        title=_title(each, meter, meters),
        service=segment.span,
        exact=product(each.rating.charge, each.quantity),
        meter=meter,
        provider=each.provider,
        model=each.model,
        token_type=None if each.name == UNITS else each.name,
        quantity=each.quantity,
        rate=each.rating.charge,
        card=label,
        math=_math(each),
    )


def _title(each: Metered, meter: str, meters: Mapping[str, MeterDefinition]) -> str:
    named = meters[meter].title or meter if meter in meters else meter
    if each.name == UNITS:
        return named if not each.model else f"{each.model} {named}"
    kind = each.name.replace("_", " ")
    return f"{each.model} {kind}" if each.model else f"{named} {kind}"


def _math(each: Metered) -> dict[str, Any]:
    """Every factor of the rate, so that it can be worked out by hand."""
    said = each.said
    cost = said.get("pinned") or each.rating.document.get("cost") or {}
    told: dict[str, Any] = {"rating": each.rating.number, "kind": said.get("kind")}
    if said.get("kind") == "cost_plus":
        told |= {name: cost[name] for name in ("list", "per", "price", "factors", "context", "above") if name in cost}
        told |= {name: said[name] for name in ("multiplier", "exchange") if name in said}
    else:
        told |= {"price": said.get("price"), "per": said.get("per")}
    return {name: value for name, value in told.items() if value is not None}


def _by_the_period(
    quantity: int,
    rate: Rate,
    segment: Segment,
    label: str,
    place: int,
    meters: Mapping[str, MeterDefinition],
    *,
    free: int,
) -> list[Line]:
    named = rate.title or (meters[rate.meter].title if rate.meter in meters else "") or rate.meter
    more = f" (after {free:,} included)" if free else ""
    lines = []
    for step, title, counted, price, exact in _steps(quantity, rate):
        key = f"usage|{label}|{place}|{step}"
        math = {"kind": rate.kind, "price": plain(price), "per": rate.per}
        lines.append(
            Line("usage", key, f"{named}{title}{more}", segment.span, exact, meter=rate.meter, quantity=counted,
                 card=label, math=math)
        )  # fmt: skip
    return lines


def _steps(quantity: int, rate: Rate) -> Iterable[tuple[str, str, int, Decimal, Decimal]]:
    """The parts of a charge by the period: name, what to show, how many units, price, exact amount."""
    if rate.flat is not None:
        if quantity:
            yield "flat", "", quantity, rate.flat, rate.flat
    elif rate.package is not None:
        packages = -(-quantity // rate.package.size)
        if packages:
            exact = product(rate.package.price, packages)
            yield "package", f" ({packages:,} x {rate.package.size:,})", quantity, rate.package.price, exact
    elif rate.per_unit is not None:
        if quantity:
            unit = EXACT.divide(rate.per_unit, Decimal(rate.per))
            yield "unit", "", quantity, rate.per_unit, product(unit, quantity)
    elif rate.volume is not None:
        if quantity:
            tier = next(each for each in rate.volume if each.up_to is None or quantity <= each.up_to)
            yield "volume", f" ({_reach(tier)})", quantity, tier.price, _tier_amount(tier, quantity, rate.per)
    else:
        begun = 0
        for number, tier in enumerate(rate.graduated or ()):
            counted = min(quantity, tier.up_to if tier.up_to is not None else quantity) - begun
            if counted <= 0:
                return
            yield f"tier {number}", f" ({_reach(tier)})", counted, tier.price, _tier_amount(tier, counted, rate.per)
            begun += counted


def _reach(tier: Tier) -> str:
    return "beyond" if tier.up_to is None else f"up to {tier.up_to:,}"


def _tier_amount(tier: Tier, quantity: int, per: int) -> Decimal:
    unit = EXACT.divide(tier.price, Decimal(per))
    return EXACT.add(tier.flat, product(unit, quantity))
