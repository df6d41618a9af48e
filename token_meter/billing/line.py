"""A line of an invoice, what is held for want of a price, and what lines are made of: usage with its rating, in parts
of a billing period."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from token_meter.billing.cards import RateCard
from token_meter.billing.plans import Period, Plan
from token_meter.ledger.ratings import Read
from token_meter.money import EXACT, decimal_of, plain
from token_meter.prices.price import moment_of, moment_text
from token_meter.usage import TOKEN_TYPES

Kind: TypeAlias = Literal["usage", "included", "minimum", "fee", "discount", "pack", "correction", "credit", "tax"]


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
        """Where its line stands: by what it is, never by what was recorded first."""
        said, charge = self.said, self.rating.charge
        rating = {name: value for name, value in self.rating.document.items() if name != "book"}
        return (
            number_of(said.get("card", "")), said.get("rate", 0), self.charged_meter, self.model or "",
            self.provider or "", _TYPE_ORDER.get(self.name, len(_TYPE_ORDER)), charge is None, charge or 0,
            json.dumps(rating, sort_keys=True),
        )  # fmt: skip


def number_of(label: str) -> tuple[str, int]:
    """A label of a version, such as `standard@10`, for sorting: it comes after `standard@2`."""
    name, _, number = label.rpartition("@")
    return (name, int(number)) if number.isdigit() else (label, 0)


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


def of_usage(line: Line) -> Decimal:
    """How much of a line is about usage, which credit pays for; a discount may be on fees as well."""
    told = line.math.get("usage") if line.math is not None else None
    return line.exact if told is None else decimal_of_exact(told)


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


def line_of(document: Mapping[str, Any]) -> Line:
    """A line back from its JSON form. Raises KeyError, TypeError or ValueError if it is none."""
    amount = document.get("amount")
    rate = document.get("rate")
    return Line(
        kind=document["kind"],
        key=document["key"],
        title=document["title"],
        service=period_of_text(document["service_start"], document["service_stop"]),
        exact=decimal_of_exact(document["exact"]),
        meter=document.get("meter"),
        provider=document.get("provider"),
        model=document.get("model"),
        token_type=document.get("token_type"),
        quantity=document.get("quantity"),
        rate=None if rate is None else decimal_of_exact(rate),
        card=document.get("card"),
        math=document.get("math"),
        amount=None if amount is None else decimal_of(amount, "amount"),
        corrects=document.get("corrects"),
    )


def period_of_text(start: str, stop: str) -> Period:
    """A period back from its two ends. Raises ValueError if one is missing."""
    begins, ends = moment_of(start), moment_of(stop)
    if begins is None or ends is None:
        raise ValueError("it has no period")
    return Period(begins, ends)


def decimal_of_exact(text: str) -> Decimal:
    """An exact amount back from its text: it may have as many digits as `EXACT` carries."""
    number = EXACT.create_decimal(text)
    if not number.is_finite():
        raise ValueError(f"{text!r} is no amount")
    return number
