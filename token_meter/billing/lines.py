"""Lines of an invoice: what each is for, and the arithmetic behind it. Exact here; rounded once, by the invoice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from token_meter.billing.cards import Rate, RateCard, Tier
from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plans import Included, Period, Plan
from token_meter.ledger.ratings import Read
from token_meter.ledger.tables import EVENTS
from token_meter.money import EXACT, ONE, ZERO, plain, total
from token_meter.prices.price import moment_text
from token_meter.usage import TOKEN_TYPES

Kind: TypeAlias = Literal["usage", "included", "minimum", "fee", "discount", "pack", "correction", "credit", "tax"]

UNITS: Final = "units"
"""The token type under which a meter of the operator's own counts."""

_TYPE_ORDER: Final = {name: place for place, name in enumerate(TOKEN_TYPES)}


class Metered(NamedTuple):
    """So many units of one kind with one rating, in one service period. `name`: a token type, or `EVENTS` (calls)."""

    meter: str
    provider: str | None
    model: str | None
    name: str
    quantity: int
    rating: Read

    @property
    def said(self) -> Mapping[str, Any]:
        """How the charge came about; empty: nothing is charged."""
        return self.rating.document.get("charge") or {}

    @property
    def charged_meter(self) -> str:
        """The meter it is charged under: the calls behind tokens are `api_calls`."""
        return str(self.said.get("meter") or self.meter)

    def order(self) -> tuple[Any, ...]:
        """Where its line stands."""
        said = self.said
        return (
            said.get("card", ""), said.get("rate", 0), self.charged_meter, self.model or "", self.provider or "",
            _TYPE_ORDER.get(self.name, len(_TYPE_ORDER)), self.rating.number,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One line. `exact` = `quantity` x `rate` where there is a rate; `amount` is what it comes to after rounding.

    `key` is the same for the same thing in every drawing up of the same period: corrections are told by it.
    """

    kind: Kind
    key: str
    title: str
    service: Period
    exact: Decimal
    meter: str | None = None
    provider: str | None = None
    model: str | None = None
    token_type: str | None = None
    quantity: int | None = None
    rate: Decimal | None = None
    card: str | None = None
    math: Mapping[str, Any] | None = None
    amount: Decimal | None = None
    corrects: str | None = None
    """The number of the invoice that a correction is about."""

    def to_json(self) -> dict[str, Any]:
        """The line for programs: money as text, what is empty left out."""
        told = {
            "kind": self.kind,
            "key": self.key,
            "title": self.title,
            "service_start": moment_text(self.service.start),
            "service_stop": moment_text(self.service.stop),
            "meter": self.meter,
            "provider": self.provider,
            "model": self.model,
            "token_type": self.token_type,
            "quantity": self.quantity,
            "rate": None if self.rate is None else plain(self.rate),
            "card": self.card,
            "math": None if self.math is None else dict(self.math),
            "exact": plain(self.exact),
            "amount": None if self.amount is None else f"{self.amount:f}",
            "corrects": self.corrects,
        }
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Held:
    """Usage that is on no line, because a price is missing: it comes on a later invoice when the price is there."""

    meter: str
    provider: str | None
    model: str | None
    token_type: str
    quantity: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "meter": self.meter, "provider": self.provider, "model": self.model, "token_type": self.token_type,
            "quantity": self.quantity, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a billing period under one plan, with what was used in it. `whole` is the plan's full period."""

    plan: Plan | None
    label: str
    cards: Mapping[str, RateCard]
    span: Period
    whole: Period
    usage: Sequence[Metered]
    aggregates: Mapping[str, int] = field(default_factory=dict)
    """What meters come to that no sum tells (`max`, `unique`)."""


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
    left = [_allowance(each, segment) for each in _allowances(segment)]
    lines: list[Line] = []
    for (label, place), mine in priced.items():
        rate = segment.cards[label].rates[place]
        if rate.flat is not None and not _is_first(once, segment, "flat", segment.cards[label].name, place):
            continue
        charged = _of_rate(mine, rate, segment, label, place, meters, left)
        lines += charged
        lines += _minimum(charged, rate, segment, label, place)
    lines += _unused_minimums(priced, segment)
    if segment.plan is not None:
        lines += _fees(segment.plan, segment, once)
        lines += _included_amounts(lines, segment.plan, segment)
        lines += _discounts(lines, segment.plan, segment)
        lines += _plan_minimum(lines, segment.plan, segment)
    return lines, held


def _is_first(once: set[tuple[Any, ...]], segment: Segment, *what: Any) -> bool:
    """Whether an amount that is charged once in a period was not charged yet in an earlier part of it."""
    key = (segment.whole.start, *what)
    if key in once:
        return False
    once.add(key)
    return True


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
        return [*lines, *_included_quantities(lines, segment, left)]
    quantity = segment.aggregates.get(rate.meter, sum(each.quantity for each in mine))
    free = _free(rate.meter, mine, segment, quantity, left)
    return _by_the_period(max(0, quantity - free), rate, segment, label, place, meters, free=free)


def _usage_line(each: Metered, segment: Segment, label: str, meters: Mapping[str, MeterDefinition]) -> Line:
    assert each.rating.charge is not None
    meter = each.charged_meter
    return Line(
        kind="usage",
        key=f"usage|{label}|{meter}|{each.provider or ''}|{each.model or ''}|{each.name}|{each.rating.number}",
        title=_title(each, meter, meters),
        service=segment.span,
        exact=EXACT.multiply(each.rating.charge, Decimal(each.quantity)),
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
            exact = EXACT.multiply(rate.package.price, Decimal(packages))
            yield "package", f" ({packages:,} x {rate.package.size:,})", quantity, rate.package.price, exact
    elif rate.per_unit is not None:
        if quantity:
            unit = EXACT.divide(rate.per_unit, Decimal(rate.per))
            yield "unit", "", quantity, rate.per_unit, EXACT.multiply(unit, Decimal(quantity))
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
    return EXACT.add(tier.flat, EXACT.multiply(unit, Decimal(quantity)))


# What fees pay for already


def _free(meter: str, mine: Sequence[Metered], segment: Segment, quantity: int, left: list[int]) -> int:
    """How many units of a meter that is charged by the period are included; `left`: what is left of each allowance."""
    free = 0
    for number, each in enumerate(_allowances(segment)):
        if each.meter != meter:
            continue
        counted = quantity
        if each.where:
            counted = sum(one.quantity for one in mine if _concerns(each, one.provider, one.model, one.name))
        taken = max(0, min(left[number], counted, quantity - free))
        left[number] -= taken
        free += taken
    return free


def _allowances(segment: Segment) -> list[Included]:
    plan = segment.plan
    return [each for each in plan.included if each.quantity is not None] if plan is not None else []


def _allowance(each: Included, segment: Segment) -> int:
    """The included quantity, in proportion to the part of the period; broken units are given to the customer."""
    assert each.quantity is not None
    share = _share(segment)
    return (
        each.quantity
        if share == ONE
        else int(EXACT.multiply(share, Decimal(each.quantity)).to_integral_value(ROUND_CEILING, EXACT))
    )


def _included_quantities(lines: Sequence[Line], segment: Segment, left: list[int]) -> list[Line]:
    """Negative lines for included units, taken off the lines in the order these stand in; `left`: of each allowance."""
    found = []
    for number, each in enumerate(_allowances(segment)):
        for line in lines:
            concerned = line.meter == each.meter and _concerns(each, line.provider, line.model, line.token_type)
            if not left[number] or not concerned or line.rate is None:
                continue
            taken = min(left[number], line.quantity or 0)
            left[number] -= taken
            if taken:
                found.append(
                    replace(
                        line, kind="included", key=f"included|{number}|{line.key}", title=f"{line.title}, included",
                        quantity=-taken, exact=EXACT.multiply(line.rate, Decimal(-taken)),
                    )
                )  # fmt: skip
    return found


def _concerns(each: Included, provider: str | None, model: str | None, token_type: str | None) -> bool:
    told = {"provider": provider, "model": model, "token_type": token_type}
    return all(fnmatchcase(told[name] or "", pattern) for name, pattern in each.where.items())


def _included_amounts(lines: Sequence[Line], plan: Plan, segment: Segment) -> list[Line]:
    usage = total(line.exact for line in lines if line.kind in ("usage", "included", "minimum"))
    found = []
    for number, each in enumerate(plan.included):
        if each.amount is None or usage <= 0:
            continue
        taken = min(usage, EXACT.multiply(each.amount, _share(segment)))
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


# Fees, minimums, discounts


def _share(segment: Segment) -> Decimal:
    """Which part of the plan's period the segment is."""
    if segment.span == segment.whole:
        return ONE
    return EXACT.divide(segment.span.days, segment.whole.days)


def _fees(plan: Plan, segment: Segment, once: set[tuple[Any, ...]]) -> list[Line]:
    share = _share(segment)
    lines = []
    for number, fee in enumerate(plan.fees):
        if not fee.prorate and not _is_first(once, segment, "fee", plan.name, fee.title):
            continue
        part = share if fee.prorate else ONE
        math = {"amount": plain(fee.amount)} | ({"share": plain(part)} if part != ONE else {})
        exact = EXACT.multiply(fee.amount, part)
        lines.append(Line("fee", f"fee|{segment.label}|{number}", fee.title, segment.span, exact, math=math))
    return lines


def _minimum(lines: Sequence[Line], rate: Rate, segment: Segment, label: str, place: int) -> list[Line]:
    if rate.minimum is None:
        return []
    least = EXACT.multiply(rate.minimum, _share(segment))
    missing = EXACT.subtract(least, total(line.exact for line in lines))
    if missing <= 0:
        return []
    title = f"Minimum for {rate.title or rate.meter}"
    return [Line("minimum", f"minimum|{label}|{place}", title, segment.span, missing, meter=rate.meter, card=label)]


def _unused_minimums(priced: Mapping[tuple[str, int], Sequence[Metered]], segment: Segment) -> Iterable[Line]:
    """A minimum is due also where nothing was used."""
    used = {(segment.cards[label].name, place) for label, place in priced}
    for label, card in segment.cards.items():
        for place, rate in enumerate(card.rates):
            if rate.minimum is not None and (card.name, place) not in used:
                used.add((card.name, place))
                yield from _minimum((), rate, segment, label, place)


def _plan_minimum(lines: Sequence[Line], plan: Plan, segment: Segment) -> list[Line]:
    if plan.minimum is None:
        return []
    missing = EXACT.subtract(EXACT.multiply(plan.minimum, _share(segment)), total(line.exact for line in lines))
    if missing <= 0:
        return []
    return [Line("minimum", f"minimum|{segment.label}", "Minimum charge", segment.span, missing)]


def _discounts(lines: Sequence[Line], plan: Plan, segment: Segment) -> list[Line]:
    kinds = {
        "usage": ("usage", "included", "minimum"),
        "fees": ("fee",),
        "all": ("usage", "included", "minimum", "fee"),
    }
    found: list[Line] = []
    for number, each in enumerate(plan.discounts):
        base = total(line.exact for line in lines if line.kind in kinds[each.on])
        rest = total(line.exact for line in (*lines, *found) if line.kind in (*kinds["all"], "discount"))
        taken = min(EXACT.divide(EXACT.multiply(base, each.percent), Decimal(100)), rest)
        if taken > ZERO:
            key = f"discount|{segment.label}|{number}"
            math = {"percent": plain(each.percent), "of": plain(base)}
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
