"""Prepaid credit: grants, the order in which they burn, and the double-entry journal that they are a projection of.

A grant is never edited. What happens to it (drawn, settled, expired, refunded, void) is a posting whose entries sum to
zero: money that was paid for is deferred revenue until it is used; what expires unused is breakage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from token_meter.billing.fields import Amount, Currency, Frozen, Name, Text
from token_meter.errors import InvalidCredit
from token_meter.money import EXACT, ZERO, currency_of, decimal_of, settled, total

RECEIVABLE: Final = "receivable"
PROMOTION: Final = "promotion"
DEFERRED: Final = "deferred_revenue"
REVENUE: Final = "revenue"
BREAKAGE: Final = "breakage"
REFUNDED: Final = "refunded"

AGAINST: Final = {"draw": REVENUE, "settle": REVENUE, "expire": BREAKAGE}
"""The other account of a posting that lessens a grant."""


Scope: TypeAlias = tuple[tuple[str, str], ...]
"""What a grant pays for: names of `SCOPES` with patterns (`*` stands for any characters), sorted; empty: any usage."""

SCOPES: Final = ("meter", "provider", "model", "token_type")

Place: TypeAlias = tuple[str | None, ...]
"""What some usage is, as a scope describes it: one value for each of `SCOPES`."""


def scope_of(given: Mapping[str, str] | None) -> Scope:
    """A scope from a mapping. Raises ValueError for a name that is none of `SCOPES`, and for an empty pattern."""
    for name, pattern in (given or {}).items():
        if name not in SCOPES:
            raise ValueError(f"{name!r} cannot be the scope of credit. Known: {', '.join(SCOPES)}")
        if not isinstance(pattern, str) or not pattern.strip():
            raise ValueError(f"the {name} of a scope is text such as gpt-5*, not {pattern!r}")
    return tuple(sorted((given or {}).items()))


class Pack(Frozen):
    """What can be bought: so much credit for a price, for so many days (none: it never expires)."""

    name: Name
    title: Text = ""
    price: Amount
    amount: Amount
    currency: Currency = "USD"
    expires_days: int | None = Field(default=None, gt=0, le=36_500)
    priority: int = Field(default=50, ge=0, le=1000)
    scope: dict[str, str] = Field(default_factory=dict)

    @field_validator("scope")
    @classmethod
    def _is_scope(cls, value: dict[str, str]) -> dict[str, str]:
        return dict(scope_of(value))

    @model_validator(mode="after")
    def _grants_something(self) -> Self:
        if self.amount <= ZERO:
            raise ValueError("a pack grants an amount above 0")
        return self


@dataclass(frozen=True, slots=True)
class CreditGrant:
    """A prepaid amount. `remaining` and `drawn` are what its journal makes of it."""

    id: str
    customer: str
    amount: Decimal
    currency: str
    effective: datetime
    created: datetime
    kind: Literal["paid", "promotional"] = "paid"
    price: Decimal = ZERO
    priority: int = 50
    expires: datetime | None = None
    mode: str = "live"
    title: str = "Credit"
    remaining: Decimal = ZERO
    drawn: Decimal = ZERO
    scope: Scope = ()

    def pays_for(self, place: Place) -> bool:
        """Whether it is for this usage."""
        return pays_for(self.scope, place)

    def usable_at(self, moment: datetime) -> bool:
        """Whether usage of that moment may be paid with it."""
        return self.effective <= moment and (self.expires is None or moment < self.expires) and self.remaining > ZERO


class Entry(NamedTuple):
    """One side of a posting: debit positive, credit negative."""

    grant: str
    account: str
    amount: Decimal


class Part(NamedTuple):
    """So much from (or back to) one grant."""

    grant: CreditGrant
    amount: Decimal


def pays_for(scope: Scope, place: Place) -> bool:
    """Whether credit of this scope is for this usage."""
    told = dict(zip(SCOPES, place, strict=True))
    return all(fnmatchcase(told[name] or "", pattern) for name, pattern in scope)


ANYTHING: Final[Place] = (None,) * len(SCOPES)
"""Usage of which nothing is known: only credit without a scope pays for it."""


def checked_grant(grant: CreditGrant) -> CreditGrant:
    """The grant. Raises InvalidCredit for one that cannot be: nothing granted, over before it starts."""
    try:
        decimal_of(grant.amount, "amount")
        currency_of(grant.currency)
    except ValueError as problem:
        raise InvalidCredit(str(problem)) from None
    if grant.amount <= ZERO:
        raise InvalidCredit(f"a grant must be above 0, not {grant.amount}")
    if grant.price < ZERO:
        raise InvalidCredit(f"a price cannot be below 0: {grant.price}")
    if grant.price and grant.kind == "promotional":
        raise InvalidCredit("a promotional grant has no price: say that it is paid (--paid)")
    if grant.kind not in ("paid", "promotional"):
        raise InvalidCredit(f"a grant is paid or promotional, not {grant.kind!r}")
    if not 0 <= grant.priority <= 1000:
        raise InvalidCredit(f"a priority is between 0 (burns first) and 1000, not {grant.priority}")
    if grant.expires is not None and grant.expires <= grant.effective:
        raise InvalidCredit(
            f"the grant would expire at {grant.expires:%Y-%m-%d %H:%M}, before it starts at "
            f"{grant.effective:%Y-%m-%d %H:%M}"
        )
    return grant


def burn_order(grants: Iterable[CreditGrant]) -> list[CreditGrant]:
    """Priority first, then what expires earlier (what never does last), then what was created earlier."""
    return sorted(grants, key=_burns)


def _burns(grant: CreditGrant) -> tuple[int, bool, float, datetime, str]:
    expiry = grant.expires.timestamp() if grant.expires is not None else 0.0
    return (grant.priority, grant.expires is None, expiry, grant.created, grant.id)


def taken_from(
    grants: Iterable[CreditGrant], amount: Decimal, *, currency: str, at: datetime, place: Place = ANYTHING
) -> list[Part]:
    """From which grants an amount is taken, in burn order; less than the amount if there is not enough."""
    parts = []
    for grant in burn_order(grants):
        if amount <= ZERO:
            break
        if grant.currency == currency and grant.usable_at(at) and grant.pays_for(place):
            part = min(grant.remaining, amount)
            parts.append(Part(grant, part))
            amount = EXACT.subtract(amount, part)
    return parts


def given_back(grants: Iterable[CreditGrant], amount: Decimal, *, currency: str, place: Place = ANYTHING) -> list[Part]:
    """To which grants an amount goes back that usage had drawn: the one that burned last first."""
    parts = []
    for grant in reversed(burn_order(grants)):
        if amount <= ZERO:
            break
        if grant.currency == currency and grant.drawn > ZERO and grant.pays_for(place):
            part = min(grant.drawn, amount)
            parts.append(Part(grant, part))
            amount = EXACT.subtract(amount, part)
    return parts


def granting(grant: CreditGrant) -> list[Entry]:
    """The posting that makes a grant: what is paid is owed to us, what is given is promotion, all of it is deferred."""
    given = EXACT.subtract(grant.amount, grant.price)
    entries = [Entry(grant.id, DEFERRED, EXACT.minus(grant.amount))]
    if grant.price:
        entries.append(Entry(grant.id, RECEIVABLE, grant.price))
    if given:
        entries.append(Entry(grant.id, PROMOTION, given))
    return entries


def lessening(parts: Sequence[Part], kind: str) -> list[Entry]:
    """The posting that takes parts of grants: drawn by usage, expired, refunded. Negative parts go back."""
    entries = []
    for grant, amount in parts:
        entries += [Entry(grant.id, DEFERRED, amount), Entry(grant.id, AGAINST[kind], EXACT.minus(amount))]
    return entries


def refunding(grant: CreditGrant, part: Decimal) -> list[Entry]:
    """The posting that pays back a part of a grant, in the proportion in which it was paid for."""
    paid = settled(EXACT.divide(EXACT.multiply(part, grant.price), grant.amount))
    entries = [Entry(grant.id, DEFERRED, part), Entry(grant.id, REFUNDED, EXACT.minus(paid))]
    given = EXACT.subtract(part, paid)
    return [*entries, Entry(grant.id, PROMOTION, EXACT.minus(given))] if given else entries


def voiding(grant: CreditGrant) -> list[Entry]:
    """The posting that takes back what is left of a grant, in the proportion in which it was paid for."""
    left = grant.remaining
    owed = settled(EXACT.divide(EXACT.multiply(left, grant.price), grant.amount))
    entries = [Entry(grant.id, DEFERRED, left), Entry(grant.id, RECEIVABLE, EXACT.minus(owed))]
    given = EXACT.subtract(left, owed)
    return [*entries, Entry(grant.id, PROMOTION, EXACT.minus(given))] if given else entries


def check_balanced(entries: Sequence[Entry]) -> None:
    """Raises InvalidCredit for a posting that does not sum to zero: it is a mistake of ours, and nothing is written."""
    off = total(entry.amount for entry in entries)
    if off:
        raise InvalidCredit(f"the posting does not balance: it is off by {off}")
