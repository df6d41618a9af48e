"""Usage with what it cost and what is charged for it: exact, because quantities are summed and then multiplied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection

from token_meter.ledger.periods import Bucket
from token_meter.ledger.query import total_of
from token_meter.ledger.rater import UNRATED
from token_meter.ledger.ratings import Read, read_ratings
from token_meter.ledger.store import Store
from token_meter.ledger.tables import EVENTS, UNITS
from token_meter.ledger.usage import RATING, covering, order_of, queries, shown, split
from token_meter.ledger.values import Search
from token_meter.money import EXACT, ZERO, product
from token_meter.usage import TOKEN_TYPES, Usage

NOT_RATED: Final = Read(
    UNRATED, None, None, {"cost": {"missing": "not rated yet"}, "charge": {"missing": "not rated yet"}}
)
"""Stands for the rating of what no rater has seen."""


class RatedQuantity(NamedTuple):
    """So many units of a token type (or calls, under `EVENTS`) with one rating."""

    name: str
    quantity: int
    rating: Read

    @property
    def cost(self) -> Decimal | None:
        """What they cost us (USD), exact; None: unpriced."""
        rate = self.rating.cost
        return None if rate is None else product(rate, self.quantity)

    @property
    def charge(self) -> Decimal | None:
        """What we charge for them, exact; None: unpriced, or charged by the period."""
        rate = self.rating.charge
        return None if rate is None else product(rate, self.quantity)

    @property
    def charge_in_dollars(self) -> Decimal | None:
        """The charge in the currency of the cost; None also where nobody said what its currency is worth."""
        if self.charge is None or self.currency == "USD":
            return self.charge
        exchange = self.said.get("exchange")
        return None if exchange is None else product(self.charge, Decimal(exchange))

    @property
    def said(self) -> Mapping[str, Any]:
        """How the charge came about; empty: nothing is charged."""
        return self.rating.document.get("charge") or {}

    @property
    def currency(self) -> str:
        """The currency of the charge."""
        return str(self.said.get("currency") or "USD")


@dataclass(frozen=True, slots=True)
class CostRow:
    """The usage, cost and charge of one group; `group` is as in a UsageRow.

    `cost` (USD) and `charges` (by currency) are exact and of what has a price; `unpriced` is usage without a provider's
    price, `uncharged` usage for which our price is missing, `by_period` usage whose charge depends on the whole period,
    `uncovered` values of meters that no rate of the customer's plan is about: nothing is charged for them.
    """

    group: Mapping[str, str | None]
    usage: Usage
    events: int
    parts: tuple[RatedQuantity, ...]

    @property
    def cost(self) -> Decimal:
        """What the provider charges for the part that has a price."""
        return _sum(part.cost for part in self.parts)

    @property
    def charges(self) -> dict[str, Decimal]:
        """What we charge, by currency."""
        found: dict[str, Decimal] = {}
        for part in self.parts:
            if part.charge is not None and part.said:
                found[part.currency] = EXACT.add(found.get(part.currency, ZERO), part.charge)
        return found

    @property
    def charge(self) -> Decimal | None:
        """What we charge, if that is in one currency; None if it is in several."""
        charges = self.charges
        return next(iter(charges.values()), ZERO) if len(charges) <= 1 else None

    @property
    def margin(self) -> Decimal | None:
        """Charge less cost of what has both, in US dollars; None for charges in a currency without an exchange rate."""
        both = [part for part in self.parts if part.cost is not None and part.charge is not None]
        if any(part.charge_in_dollars is None for part in both):
            return None
        return EXACT.subtract(_sum(part.charge_in_dollars for part in both), _sum(part.cost for part in both))

    @property
    def below_cost(self) -> bool:
        """Whether something is charged at less than it costs us, or not at all, because no rate of the plan is about
        it. What a correction takes away is as dear as it was."""
        return any(
            part.cost is not None and part.charge_in_dollars is not None
            and part.charge_in_dollars.copy_abs() < part.cost.copy_abs()
            for part in self.parts
        )  # fmt: skip

    @property
    def unpriced(self) -> Usage:
        """What has no provider's price."""
        return _usage(part for part in self.parts if part.rating.cost is None)

    @property
    def uncharged(self) -> Usage:
        """What should be charged and has no price of ours."""
        return _usage(part for part in self.parts if part.rating.charge is None and "missing" in part.said)

    @property
    def by_period(self) -> Usage:
        """What is charged by the total of a billing period."""
        return _usage(part for part in self.parts if part.rating.charge is None and "missing" not in part.said)

    @property
    def uncovered(self) -> Usage:
        """What was counted by meters of the operator's own, and no rate of the customer's plan is about."""
        return _usage(part for part in self.parts if part.name == UNITS and part.rating.number and not part.said)

    @property
    def provisional(self) -> Usage:
        """What is costed at a price whose rise waits for somebody to accept or reject it."""
        return _usage(part for part in self.parts if "rise" in (part.rating.document.get("cost") or {}))

    @property
    def reasons(self) -> dict[str, int]:
        """Why something has no provider's price, and of how many units that is true."""
        found: dict[str, int] = {}
        for part in self.parts:
            missing = (part.rating.document.get("cost") or {}).get("missing")
            if missing and part.quantity and part.name != EVENTS:
                found[missing] = found.get(missing, 0) + part.quantity
        return found


_Totals: TypeAlias = dict[tuple[int, tuple[str | None, ...]], dict[tuple[str, int], int]]


def read_costs(
    store: Store,
    connection: Connection,
    search: Search,
    *,
    by: Sequence[str],
    bucket: Bucket | None,
    zone: tzinfo,
    customers: Sequence[str] | None = None,
    known: dict[int, Read] | None = None,
) -> list[CostRow]:
    """Like `read_usage`, with costs; answered within one transaction.

    `customers`: of these only, as they are stored. `known`: ratings that were read before; more are added.
    """
    parts, covered = covering(connection, search, by, bucket, zone)
    names = [name for name in by if name not in ("token_type", "headline")]
    totals: _Totals = {}
    numbers: set[int] = set()
    for query in queries(store, search.filters, [*names, RATING], covered, customers):
        for place, *group, rating, quantity, high, low in connection.execute(query):
            seen = tuple(shown(name, value) for name, value in zip(names, group, strict=True))
            sums = totals.setdefault((place, seen), {})
            key = (quantity, int(rating or UNRATED))
            sums[key] = sums.get(key, 0) + total_of(high, low)
            numbers.add(key[1])
    known = {} if known is None else known
    known[UNRATED] = NOT_RATED
    known.update((each.number, each) for each in read_ratings(connection, sorted(numbers - known.keys())))
    return _rows(by, names, [part.name for part in parts] if bucket else None, totals, known)


def _rows(
    by: Sequence[str],
    names: Sequence[str],
    starts: Sequence[str] | None,
    totals: _Totals,
    known: Mapping[int, Read],
) -> list[CostRow]:
    rows: list[tuple[tuple[Any, ...], CostRow]] = []
    for (bucket, values), sums in totals.items():
        parts = [RatedQuantity(name, sums[name, number], known[number]) for name, number in sorted(sums)]
        parts = [part for part in parts if part.quantity]
        if not parts:
            continue
        group = dict(zip(names, values, strict=True))
        for types, mine in _parted(by, parts):
            named = {name: types[name] if name in types else group[name] for name in by}
            start = {"bucket": starts[bucket]} if starts else {}
            place = (bucket, *(order_of(name, value) for name, value in named.items()))
            counted = sum(part.quantity for part in parts if part.name == EVENTS)
            rows.append((place, CostRow({**start, **named}, _usage(mine), counted, tuple(mine))))
    rows.sort(key=itemgetter(0))
    return [row for _, row in rows]


def _parted(by: Sequence[str], parts: Sequence[RatedQuantity]) -> Iterator[tuple[dict[str, str], list[RatedQuantity]]]:
    """One part for each token type or headline, if one of them is in `by`."""
    quantities: dict[str, int] = {}
    for part in parts:
        if part.name != EVENTS:
            quantities[part.name] = quantities.get(part.name, 0) + part.quantity
    if "token_type" not in by and "headline" not in by:
        yield {}, list(parts)
        return
    for types, usage in split(by, quantities):
        yield types, [part for part in parts if part.name in usage]


def _usage(parts: Iterator[RatedQuantity] | Sequence[RatedQuantity] | Any) -> Usage:
    quantities: dict[str, int] = {}
    for part in parts:
        if part.name != EVENTS:
            quantities[part.name] = quantities.get(part.name, 0) + part.quantity
    ordered = sorted(quantities, key=lambda name: _ORDER.get(name, len(_ORDER)))
    return Usage.of({name: quantities[name] for name in ordered if quantities[name]})


_ORDER: Final = {name: place for place, name in enumerate(TOKEN_TYPES)}


def _sum(amounts: Iterator[Decimal | None] | Any) -> Decimal:
    total = ZERO
    for amount in amounts:
        if amount is not None:
            total = EXACT.add(total, amount)
    return total
