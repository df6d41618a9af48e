"""Plans: rate cards, fixed fees, included usage and recurring credit for a period; and subscriptions to them.

name: pro
period: month
fees: [{title: Base fee, amount: 20.00}]
included: [{meter: llm_tokens, quantity: 1_000_000}]
rate_cards: [standard]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from token_meter.billing.cards import Rate, RateCard
from token_meter.billing.credit import Pack, scope_of
from token_meter.billing.fields import Amount, Currency, Frozen, MeterName, Name, Quantity, Share, Text, given
from token_meter.billing.meters import LLM_TOKENS, MeterDefinition
from token_meter.money import EXACT

PERIODS: Final = ("day", "week", "month", "quarter", "year")
LEVELS: Final = ("token_type", "model", "meter", "total")
OWN: Final = " (plan)"
"""What is behind a plan's name in the name of the card that its own rates are."""
INCLUDED_WHERE: Final = ("provider", "model", "token_type")


class Fee(Frozen):
    """A fixed amount for each period; in proportion to the days of a period that a subscription does not fill."""

    title: Text
    amount: Amount
    prorate: bool = True


class Included(Frozen):
    """What a period's fees pay for already: so many units of a meter, or usage for so much money."""

    meter: MeterName = LLM_TOKENS
    quantity: Quantity | None = None
    amount: Amount | None = None
    where: dict[str, str] = Field(default_factory=dict)

    @field_validator("where")
    @classmethod
    def _is_known(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in INCLUDED_WHERE:
                raise ValueError(f"{name!r} cannot narrow what is included. Known: {', '.join(INCLUDED_WHERE)}")
        return value

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        if len(given(self, "quantity", "amount")) != 1:
            raise ValueError("give either a quantity (units of the meter) or an amount (money)")
        return self


class RecurringCredit(Frozen):
    """Credit granted at the start of each period; it expires at its end unless `rolls_over`."""

    amount: Amount
    kind: Literal["paid", "promotional"] = "promotional"
    priority: int = Field(default=50, ge=0, le=1000)
    rolls_over: bool = False
    scope: dict[str, str] = Field(default_factory=dict)

    @field_validator("scope")
    @classmethod
    def _is_scope(cls, value: dict[str, str]) -> dict[str, str]:
        return dict(scope_of(value))


class Discount(Frozen):
    """A share taken off usage, fees or both."""

    title: Text = "Discount"
    percent: Share
    on: Literal["usage", "fees", "all"] = "usage"


class Plan(Frozen):
    """What a customer subscribes to. `anchor`: periods begin with the calendar's, or with the subscription."""

    name: Name
    title: Text = ""
    currency: Currency = "USD"
    period: Literal["day", "week", "month", "quarter", "year"] = "month"
    anchor: Literal["calendar", "subscription"] = "calendar"
    rate_cards: list[str] = Field(default_factory=list, max_length=20)
    rates: list[Rate] = Field(default_factory=list, max_length=200)
    fees: list[Fee] = Field(default_factory=list, max_length=100)
    included: list[Included] = Field(default_factory=list, max_length=100)
    credits: list[RecurringCredit] = Field(default_factory=list, max_length=20)
    discounts: list[Discount] = Field(default_factory=list, max_length=20)
    minimum: Amount | None = None
    show: Literal["token_type", "model", "meter", "total"] = "token_type"
    due_days: int = Field(default=30, ge=0, le=365)

    @model_validator(mode="after")
    def _charges_something(self) -> Self:
        if not (self.rate_cards or self.rates or self.fees):
            raise ValueError("a plan needs rate_cards, rates or fees")
        return self

    def own_card(self) -> RateCard | None:
        """The rates written into the plan itself, as a card whose name no other card has."""
        if not self.rates:
            return None
        return RateCard(name=f"{self.name}{OWN}", currency=self.currency, rates=self.rates)


class PlansFile(Frozen):
    """A YAML file of meters, rate cards, plans and packs of credit."""

    meters: list[MeterDefinition] = Field(default_factory=list, max_length=200)
    rate_cards: list[RateCard] = Field(default_factory=list, max_length=200)
    plans: list[Plan] = Field(default_factory=list, max_length=200)
    packs: list[Pack] = Field(default_factory=list, max_length=200)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A customer on a version of a plan, from `start` until `stop` (not included; None: until further notice)."""

    id: str
    customer: str
    plan: str
    version: int
    start: datetime
    stop: datetime | None = None
    mode: str = "live"
    created: datetime | None = None
    cancelled: datetime | None = None
    """When it was taken back, as if it had never been."""

    def holds_at(self, moment: datetime) -> bool:
        """Whether it is in force."""
        return self.cancelled is None and self.start <= moment and (self.stop is None or moment < self.stop)


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """A span of time [start, stop) in UTC."""

    start: datetime
    stop: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.stop.tzinfo is None or self.stop <= self.start:
            raise ValueError(f"a period must end after it starts: {self.start} .. {self.stop}")

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d} .. {self.stop:%Y-%m-%d}"

    @property
    def days(self) -> Decimal:
        """How many days it has, exact."""
        return EXACT.divide(Decimal((self.stop - self.start) // _MICROSECOND), Decimal(86_400_000_000))

    def within(self, other: Period) -> Period | None:
        """What both have in common."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Period(start, stop) if start < stop else None


_MICROSECOND: Final = timedelta(microseconds=1)


def period_of(moment: datetime, every: str, anchor: datetime | None = None) -> Period:
    """The period around a moment: the calendar's (UTC, weeks from Monday), or counted from an anchor.

    Months are counted from the anchor's own day: from January 31 on, periods begin on February 28, March 31, ...
    """
    base = anchor if anchor is not None else datetime(1970, 1, 5 if every == "week" else 1, tzinfo=UTC)
    number = _number(moment, every, base)
    while start_of(number, every, base) > moment:
        number -= 1
    while start_of(number + 1, every, base) <= moment:
        number += 1
    return Period(start_of(number, every, base), start_of(number + 1, every, base))


def periods_between(start: datetime, stop: datetime, every: str, anchor: datetime | None = None) -> Iterator[Period]:
    """Every period that begins before `stop` and ends after `start`."""
    period = period_of(start, every, anchor)
    while period.start < stop:
        yield period
        period = period_of(period.stop, every, anchor)


def _number(moment: datetime, every: str, base: datetime) -> int:
    """Which period this is, or one near it."""
    if every in _DAYS:
        return (moment - base).days // _DAYS[every]
    return ((moment.year - base.year) * 12 + moment.month - base.month) // _MONTHS[every]


_DAYS: Final = {"day": 1, "week": 7}
_MONTHS: Final = {"month": 1, "quarter": 3, "year": 12}


def start_of(number: int, every: str, base: datetime) -> datetime:
    """When the period with this number, counted from the base, begins."""
    if every in _DAYS:
        return base + timedelta(days=number * _DAYS[every])
    months = base.year * 12 + base.month - 1 + number * _MONTHS[every]
    year, month = divmod(months, 12)
    return base.replace(year=year, month=month + 1, day=min(base.day, _last_day(year, month + 1)))


def _last_day(year: int, month: int) -> int:
    from calendar import monthrange

    return monthrange(year, month)[1]


def overlapping(one: Subscription, others: Sequence[Subscription]) -> Subscription | None:
    """The first of the others that is in force at the same time for the same customer."""
    for other in others:
        if other.id == one.id or (other.customer, other.mode) != (one.customer, one.mode):
            continue
        if (one.stop is None or other.start < one.stop) and (other.stop is None or one.start < other.stop):
            return other
    return None
