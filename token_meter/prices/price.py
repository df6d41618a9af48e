"""A price: what one provider charges for one token type of one model, from when on, and who says so.

Prices are facts with a date and are never edited: a change is another row, a mistake is corrected by another row.
A factor is a multiplier on prices: a negotiated discount, a geography's surcharge, an exchange rate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from token_meter.money import EXACT, decimal_of, plain
from token_meter.usage import TOKEN_TYPES

Context: TypeAlias = tuple[tuple[str, str], ...]
"""What a price holds for besides the standard: sorted pairs like ("batch", "yes"), ("service_tier", "flex")."""

Status: TypeAlias = Literal["active", "held", "rejected"]

PER: Final[Mapping[str, int]] = {
    "token": 1_000_000, "call": 1_000, "millisecond": 3_600_000, "character": 1_000_000, "image": 1, "unit": 1,
}  # fmt: skip
"""How many units of a token type a price is usually stated for: a million tokens, a thousand calls, an hour."""

PER_NAMES: Final[Mapping[str, str]] = {
    "token": "1M tokens", "call": "1K calls", "millisecond": "hour", "character": "1M characters", "image": "image",
    "unit": "unit",
}  # fmt: skip

STANDARD: Final[Context] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One row of the price book.

    `amount` of `currency` for `per` units of `token_type` (a Decimal; None: from then on the provider states none).
    It holds in `context` only, for requests with more than `above` context tokens (with `inclusive`: that many or
    more), between `daily` minutes of the UTC day if given, from `effective_from` (UTC, None: always) until
    `effective_to` (not included). `recorded_at` is when the book learned of it, `source` who says so.
    """

    provider: str
    model: str
    token_type: str
    amount: Decimal | None
    per: int
    currency: str = "USD"
    context: Context = STANDARD
    above: int | None = None
    inclusive: bool = False
    daily: tuple[int, int] | None = None
    effective_from: datetime | None = None
    effective_to: datetime | None = None
    recorded_at: datetime | None = None
    publisher: str | None = None
    display_name: str | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    evidence: str = ""
    status: Status = "active"

    @property
    def unit(self) -> str:
        """What is counted: token, call, millisecond, ..."""
        return TOKEN_TYPES[self.token_type].unit

    @property
    def rate(self) -> Decimal | None:
        """The price of one unit, exact."""
        return None if self.amount is None else rate_of(self.amount, self.per)

    @property
    def per_million(self) -> Decimal | None:
        """The price of a million units, by which prices are compared."""
        return None if self.amount is None else EXACT.divide(EXACT.multiply(self.amount, Decimal(1_000_000)), self.per)

    @property
    def id(self) -> str:
        """The name of this row: a hash of what it says. The same facts have the same id wherever they come from."""
        facts = [
            self.provider, self.model, self.token_type, None if self.amount is None else plain(self.amount), self.per,
            self.currency, self.context, self.above, self.inclusive, self.daily, moment_text(self.effective_from),
            moment_text(self.effective_to), self.source,
        ]  # fmt: skip
        return "prc_" + blake2b(json.dumps(facts, separators=(",", ":")).encode(), digest_size=10).hexdigest()

    def holds_at(self, at: datetime) -> bool:
        """Whether it is in force at this moment (context and size aside)."""
        if self.effective_from is not None and at < self.effective_from:
            return False
        if self.effective_to is not None and at >= self.effective_to:
            return False
        return self.daily is None or in_window(at, self.daily)

    def holds_for(self, context_tokens: int) -> bool:
        """Whether a request with so many context tokens is one it holds for."""
        if self.above is None:
            return True
        return context_tokens >= self.above if self.inclusive else context_tokens > self.above

    def to_json(self) -> dict[str, Any]:
        """The row for programs: amounts as text, moments in RFC 3339."""
        return {
            "id": self.id,
            "publisher": self.publisher,
            "provider": self.provider,
            "model": self.model,
            "display_name": self.display_name,
            **({"aliases": list(self.aliases)} if self.aliases else {}),
            "token_type": self.token_type,
            "amount": None if self.amount is None else plain(self.amount),
            "per": self.per,
            "unit": self.unit,
            "currency": self.currency,
            "context": dict(self.context),
            "above_context_tokens": self.above,
            "inclusive": self.inclusive,
            "daily": None if self.daily is None else list(self.daily),
            "effective_from": moment_text(self.effective_from),
            "effective_to": moment_text(self.effective_to),
            "recorded_at": moment_text(self.recorded_at),
            "source": self.source,
            "evidence": self.evidence,
            "status": self.status,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Price:
        """Read what `to_json` wrote. Raises ValueError for what is no price."""
        try:
            amount = document["amount"]
            daily = document.get("daily")
            price = cls(
                provider=str(document["provider"]),
                model=str(document["model"]),
                token_type=str(document["token_type"]),
                amount=None if amount is None else decimal_of(amount, "amount"),
                per=int(document["per"]),
                currency=document.get("currency") or "USD",
                context=tuple(sorted((str(key), str(value)) for key, value in (document.get("context") or {}).items())),
                above=document.get("above_context_tokens"),
                inclusive=bool(document.get("inclusive")),
                daily=None if daily is None else (int(daily[0]), int(daily[1])),
                effective_from=moment_of(document.get("effective_from")),
                effective_to=moment_of(document.get("effective_to")),
                recorded_at=moment_of(document.get("recorded_at")),
                publisher=document.get("publisher"),
                display_name=document.get("display_name"),
                aliases=tuple(map(str, document.get("aliases") or ())),
                source=document.get("source") or "",
                evidence=document.get("evidence") or "",
                status=document.get("status") or "active",
            )
        except (KeyError, TypeError, ValueError, IndexError) as problem:
            raise ValueError(f"this is no price ({problem})") from None
        if price.token_type not in TOKEN_TYPES:
            raise ValueError(f"this is no price: {price.token_type!r} is no token type")
        return price


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A multiplier on the prices of a provider's models: kind "discount", "geo" or "exchange".

    `model` is a model id, a prefix ending in `*`, or `*`. A "geo" factor holds for requests served in `geo`, and for
    tokens only; an "exchange" factor turns amounts of `currency` into the book's currency.
    """

    kind: Literal["discount", "geo", "exchange"]
    multiplier: Decimal
    provider: str = "*"
    model: str = "*"
    geo: str | None = None
    currency: str | None = None
    effective_from: datetime | None = None
    effective_to: datetime | None = None
    source: str = ""

    def meets(self, provider: str, model: str, at: datetime) -> bool:
        """Whether it holds for this provider's model at this moment."""
        if self.provider not in ("*", provider):
            return False
        if not (model.startswith(self.model[:-1]) if self.model.endswith("*") else model == self.model):
            return False
        return (self.effective_from is None or at >= self.effective_from) and (
            self.effective_to is None or at < self.effective_to
        )


class Applied(NamedTuple):
    """A factor as it went into a rate."""

    kind: str
    multiplier: Decimal
    source: str


class CostLine(NamedTuple):
    """The cost of one token type: `amount` = `quantity` x `rate`; the rate is the price of one unit with its factors.

    Of a type without a price `price`, `rate` and `amount` are None, and `reason` says what is missing.
    """

    token_type: str
    quantity: int
    rate: Decimal | None
    amount: Decimal | None
    price: Price | None
    factors: tuple[Applied, ...]
    reason: str | None


class Cost(NamedTuple):
    """What a usage costs, exact. `amount` is None as long as a price is missing: then `unpriced` names the types."""

    amount: Decimal | None
    lines: tuple[CostLine, ...]
    currency: str
    book: str

    @property
    def status(self) -> Literal["priced", "unpriced"]:
        """Whether every token type has a price."""
        return "unpriced" if self.amount is None else "priced"

    @property
    def unpriced(self) -> tuple[CostLine, ...]:
        """The lines without a price."""
        return tuple(line for line in self.lines if line.amount is None)


def rate_of(amount: Decimal, per: int) -> Decimal:
    """The price of one unit, exact where `amount / per` ends."""
    return EXACT.divide(amount, Decimal(per))


def in_window(at: datetime, daily: tuple[int, int]) -> bool:
    """Whether a moment lies between two minutes of the UTC day; the second may be of the next day."""
    minute = at.hour * 60 + at.minute
    start, stop = daily
    return start <= minute < stop if start <= stop else minute >= start or minute < stop


def moment_of(value: object) -> datetime | None:
    """A moment in UTC from a date, a datetime or ISO text (without a zone: UTC). Raises ValueError else."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is no date: write 2026-11-01 or 2026-11-01T15:00Z") from None
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise ValueError(f"{value!r} is no date")


@lru_cache(maxsize=4096)
def moment_text(moment: datetime | None) -> str | None:
    """A moment as RFC 3339 text; just its date where it is a UTC midnight."""
    if moment is None:
        return None
    at = moment.astimezone(UTC)
    if (at.hour, at.minute, at.second, at.microsecond) == (0, 0, 0, 0):
        return at.date().isoformat()
    return at.isoformat().replace("+00:00", "Z")
