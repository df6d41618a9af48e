"""Which parts of which billing periods a customer's plans cut a span of time into, and what was used in each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from token_meter.billing.cards import RateCard
from token_meter.billing.catalogue import AT_COST, LATEST, Catalogue, Terms
from token_meter.billing.line import Metered, Segment
from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plans import OWN, Period, Plan, Subscription, period_of, periods_between
from token_meter.bookkeeping.aggregates import is_aggregated


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a billing period in which one plan holds; `whole` is the plan's full period around it."""

    span: Period
    whole: Period
    terms: Terms


@dataclass(frozen=True, slots=True)
class Billing:
    """What one invoice is about: a period, and its parts in the order of time."""

    period: Period
    parts: tuple[Part, ...]

    @property
    def currency(self) -> str:
        """The currency of the last plan that holds in it."""
        plan = self.parts[-1].terms.plan
        return plan.content.currency if plan is not None else "USD"

    @property
    def plan(self) -> Plan | None:
        """The last plan that holds in it: it says how the invoice looks and when it is due."""
        last = self.parts[-1].terms.plan
        return last.content if last is not None else None


def has_fixed_charges(billing: Billing) -> bool:
    """Whether a period comes to something also without usage."""
    for part in billing.parts:
        plan = part.terms.plan.content if part.terms.plan is not None else None
        if plan is not None and (plan.fees or plan.minimum is not None):
            return True
        if any(rate.minimum is not None for card in part.terms.cards for rate in card.content.rates):
            return True
    return False


def terms_text(billing: Billing) -> str:
    """Which versions of which plans and cards hold in which parts of a period: versions never change."""
    parts = [
        (
            *(each.isoformat() for each in (part.span.start, part.span.stop, part.whole.start, part.whole.stop)),
            part.terms.label,
            *(card.label for card in part.terms.cards),
        )
        for part in billing.parts
    ]
    return json.dumps(parts, separators=(",", ":"))


def billings(catalogue: Catalogue, mode: str, customer: str, within: Period) -> list[Billing]:
    """The billing periods of a customer that end within a span.

    Periods of the calendar hold whatever plans hold in them, one after the other; a plan whose periods begin with the
    subscription has periods of its own.
    """
    calendar: dict[Period, list[Part]] = {}
    own: list[Billing] = []
    for span, terms in _spells(catalogue, mode, customer, within):
        plan = terms.plan.content if terms.plan is not None else None
        every = plan.period if plan is not None else "month"
        anchored = plan is not None and plan.anchor == "subscription" and terms.subscription is not None
        anchor = terms.subscription.start if anchored and terms.subscription is not None else None
        for whole in periods_between(span.start, span.stop, every, anchor):
            mine = whole.within(span)
            if mine is None:
                continue
            part = Part(mine, whole, terms)
            ended = _full(mine, terms.subscription, whole) if anchored else whole
            if not (within.start < ended.stop <= within.stop):
                continue
            if anchored:
                own.append(Billing(ended, (part,)))
            else:
                calendar.setdefault(whole, []).append(part)
    found = [Billing(period, tuple(parts)) for period, parts in calendar.items()]
    return sorted([*found, *own], key=lambda each: (each.period.stop, each.period.start))


def _full(mine: Period, subscription: Subscription | None, whole: Period) -> Period:
    """An anchored period ends with its subscription."""
    if subscription is not None and subscription.stop is not None and subscription.stop < whole.stop:
        return Period(whole.start, subscription.stop)
    return whole


def _spells(catalogue: Catalogue, mode: str, customer: str, within: Period) -> Iterator[tuple[Period, Terms]]:
    """Spans in which the plan does not change, from before the span that is asked about until its end.

    They begin a year earlier, so that the whole of every period that ends in the span is seen.
    """
    start = within.start.replace(year=within.start.year - 1, day=1)
    moment = start
    current: tuple[datetime, Terms] | None = None
    while moment < within.stop:
        terms, _, until = catalogue.terms(mode, customer, moment)
        if current is None:
            current = (moment, terms)
        elif _differs(current[1], terms):
            yield Period(current[0], moment), current[1]
            current = (moment, terms)
        moment = min(until, within.stop) if until != LATEST else within.stop
    if current is not None:
        yield Period(current[0], within.stop), current[1]


def _differs(one: Terms, other: Terms) -> bool:
    mine = one.plan.label if one.plan is not None else None
    theirs = other.plan.label if other.plan is not None else None
    sub = one.subscription.id if one.subscription is not None else None
    return mine != theirs or sub != (other.subscription.id if other.subscription is not None else None)


def segments_of(
    catalogue: Catalogue,
    billing: Billing,
    metered: Callable[[Period], Sequence[Metered]],
    aggregates: Callable[[Period, Sequence[MeterDefinition]], Mapping[str, int]],
) -> list[Segment]:
    """The parts of a billing period with what was used in them; `metered` and `aggregates` tell that for a span."""
    return [
        Segment(
            plan=part.terms.plan.content if part.terms.plan is not None else None,
            label=part.terms.label,
            cards=cards_named(catalogue, usage, part.terms),
            span=part.span,
            whole=part.whole,
            usage=usage,
            aggregates=aggregates(part.span, _aggregated(catalogue, usage)),
        )
        for part in billing.parts
        for usage in [metered(part.span)]
    ]


def _aggregated(catalogue: Catalogue, usage: Sequence[Metered]) -> list[MeterDefinition]:
    """The meters among this usage that are charged by something else than a sum or a count."""
    names = sorted({each.meter for each in usage})
    return [
        catalogue.meters[name] for name in names if name in catalogue.meters and is_aggregated(catalogue.meters[name])
    ]


def cards_named(catalogue: Catalogue, usage: Sequence[Metered], terms: Terms) -> Mapping[str, RateCard]:
    """The versions of the rate cards by which this usage was rated, and those that hold."""
    cards = {card.label: card.content for card in terms.cards}
    for each in usage:
        label = each.said.get("card")
        if label is not None and label not in cards:
            cards[label] = card_labelled(catalogue, str(label))
    return cards


def card_labelled(catalogue: Catalogue, label: str) -> RateCard:
    """The rate card of this name and version, or the rates written into the plan of that name. KeyError: none."""
    if label == AT_COST.label:
        return AT_COST.content
    name, _, number = label.partition("@")
    for version in catalogue.cards.get(name, ()):
        if version.label == label:
            return version.content
    for plan in catalogue.plans.get(name.removesuffix(OWN), ()):
        own = plan.content.own_card()
        if plan.number == int(number) and own is not None:
            return own
    raise KeyError(label)


def month_around(moment: datetime) -> Period:
    """The calendar month around a moment, in UTC."""
    return period_of(moment, "month")
