"""The catalogue: every version of every rate card and plan, who is subscribed to what, and what holds for whom when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, Generic, NamedTuple, TypeVar

from token_meter.billing.cards import RateCard, at_cost
from token_meter.billing.meters import BUILT_IN, MeterDefinition
from token_meter.billing.plans import Period, Plan, Subscription, period_of

Kept = TypeVar("Kept", RateCard, Plan)

EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
LATEST: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Version(Generic[Kept]):
    """One version of a rate card or plan; it holds from a moment on, until the next does.

    `outlived`: it does not hold any more, because a later version was dated back to before it; who is pinned to it
    keeps it.
    """

    number: int
    effective_from: datetime
    content: Kept
    outlived: bool = False

    @property
    def label(self) -> str:
        """`standard@2`."""
        return f"{self.content.name}@{self.number}"


def outlived(dates: Sequence[tuple[int, int]]) -> list[bool]:
    """Of statements in the order in which they were recorded, each with (since when it holds, when it was recorded):
    whether a later one took its place.

    What is said later holds from its date on, also in place of what began to hold between that date and then. What was
    still to come by then comes.
    """
    return [
        any(since <= mine <= recorded for since, recorded in dates[place + 1 :])
        for place, (mine, _) in enumerate(dates)
    ]


class Chosen(NamedTuple):
    """The default plan from a moment on; None: none."""

    effective_from: datetime
    plan: str | None


class Terms(NamedTuple):
    """What holds for a customer: the plan (None: no plan) and its rate cards."""

    plan: Version[Plan] | None
    cards: tuple[Version[RateCard], ...]
    subscription: Subscription | None

    @property
    def label(self) -> str:
        """Under which a customer is charged, for people."""
        return self.plan.label if self.plan is not None else "no plan: at cost"


@dataclass(frozen=True)
class Catalogue:
    """Rate cards, plans and subscriptions as they are now, with all they were before."""

    cards: Mapping[str, Sequence[Version[RateCard]]] = field(default_factory=dict)
    plans: Mapping[str, Sequence[Version[Plan]]] = field(default_factory=dict)
    meters: Mapping[str, MeterDefinition] = field(default_factory=lambda: dict(BUILT_IN))
    subscriptions: Mapping[tuple[str, str], Sequence[Subscription]] = field(default_factory=dict)
    """By mode and customer, in the order of their start."""
    defaults: Sequence[Chosen] = ()
    estimated: Sequence[tuple[datetime, bool]] = ()
    """From when on usage that was estimated is charged, or not; before that it is."""

    def subscription_at(self, mode: str, customer: str | None, moment: datetime) -> Subscription | None:
        """The subscription in force."""
        mine = self.subscriptions.get((mode, customer or ""), ())
        return next((each for each in mine if each.holds_at(moment)), None)

    def plan_at(self, name: str, moment: datetime, version: int | None = None) -> Version[Plan] | None:
        """A plan's version: this one, or the one in force."""
        return _version(self.plans.get(name, ()), moment, version)

    def card_at(self, label: str, moment: datetime) -> Version[RateCard] | None:
        """A card's version: the pinned one of `standard@1`, or of `standard` the one in force."""
        name, _, pinned = label.partition("@")
        return _version(self.cards.get(name, ()), moment, int(pinned) if pinned.isdigit() else None)

    def bills_estimated(self, moment: datetime) -> bool:
        """Whether usage of this moment is charged that had to be estimated."""
        found = [wanted for since, wanted in self.estimated if since <= moment]
        return found[-1] if found else True

    def default_at(self, moment: datetime) -> str | None:
        """The plan of customers who have none of their own."""
        found = [each for each in self.defaults if each.effective_from <= moment]
        return found[-1].plan if found else None

    def terms(self, mode: str, customer: str | None, moment: datetime) -> tuple[Terms, datetime, datetime]:
        """What holds for a customer at a moment, and from when until when nothing about it changes."""
        subscription = self.subscription_at(mode, customer, moment)
        if subscription is not None:
            plan = self.plan_at(subscription.plan, moment, subscription.version)
        else:
            default = self.default_at(moment)
            plan = self.plan_at(default, moment) if default is not None else None
        cards = self._cards(plan, moment)
        start, stop = self._span(mode, customer, moment)
        return Terms(plan, cards, subscription), start, stop

    def period_at(self, mode: str, customer: str | None, moment: datetime) -> tuple[Terms, Period]:
        """What holds for a customer, and the billing period around a moment."""
        terms, _, _ = self.terms(mode, customer, moment)
        plan = terms.plan.content if terms.plan is not None else None
        anchored = plan is not None and plan.anchor == "subscription" and terms.subscription is not None
        anchor = terms.subscription.start if anchored and terms.subscription is not None else None
        return terms, period_of(moment, plan.period if plan is not None else "month", anchor)

    def _cards(self, plan: Version[Plan] | None, moment: datetime) -> tuple[Version[RateCard], ...]:
        if plan is None:
            return (AT_COST,)
        own = plan.content.own_card()
        cards = [Version(plan.number, plan.effective_from, own)] if own is not None else []
        found = (self.card_at(label, moment) for label in plan.content.rate_cards)
        return (*cards, *(card for card in found if card is not None))

    def _span(self, mode: str, customer: str | None, moment: datetime) -> tuple[datetime, datetime]:
        mine = self.subscriptions.get((mode, customer or ""), ())
        own = [each for each in (*(one.start for one in mine), *(one.stop for one in mine)) if each is not None]
        changes = sorted({*own, *self._changes})
        place = bisect_right(changes, moment)
        return (changes[place - 1] if place else EARLIEST, changes[place] if place < len(changes) else LATEST)

    @cached_property
    def _changes(self) -> Sequence[datetime]:
        """The moments at which what holds for everybody changes."""
        cards = [version.effective_from for versions in self.cards.values() for version in versions]
        plans = [version.effective_from for versions in self.plans.values() for version in versions]
        return [*cards, *plans, *(each.effective_from for each in self.defaults)]


def _version(versions: Sequence[Version[Kept]], moment: datetime, number: int | None) -> Version[Kept] | None:
    """The version with this number, or the one in force; before the first of them the first."""
    if number is not None:
        return next((each for each in versions if each.number == number), None)
    in_force = [each for each in versions if each.effective_from <= moment and not each.outlived]
    if in_force:
        return max(in_force, key=lambda each: (each.effective_from, each.number))
    return min(versions, key=lambda each: (each.outlived, each.effective_from), default=None)


AT_COST: Final = Version(1, EARLIEST, at_cost())
