"""What a price change means: who uses the model, how much of it in the last 30 days, and what the change would cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_meter.ledger.values import ANY
from token_meter.money import EXACT, plain, total
from token_meter.prices.book import PriceBook
from token_meter.prices.change import Change
from token_meter.prices.stated import key_of
from token_meter.prices.tariff import Rated

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

DAYS: Final = 30
"""The usage of so many days stands for a month."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A change with what it means: live customers who used it in the last 30 days, how many units, and the difference.

    `impact` is in US dollars a month, exact: the quantity times what a unit costs more (discounts and such included).
    None where there was no price before: that usage had no cost to compare with.
    """

    change: Change
    customers: tuple[str | None, ...]
    quantity: int
    impact: Decimal | None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            **self.change.to_json(),
            "affected_customers": list(self.customers),
            "last_30d_quantity": self.quantity,
            "estimated_monthly_impact": None if self.impact is None else plain(self.impact),
        }


class _Share(NamedTuple):
    """A customer's quantity, and the same times the factors on its price."""

    customer: str | None
    quantity: int
    weighted: Decimal


class _Used(NamedTuple):
    customer: str | None
    provider: str | None
    model: str | None
    context: Mapping[str, Any]
    usage: Mapping[str, int]


def effects(ledger: Ledger, book: PriceBook, changes: Sequence[Change], *, now: datetime) -> list[Effect]:
    """What each change means, as if all of them came to be."""
    if not changes:
        return []
    rows = [change.price for change in changes if change.verdict]
    # What holds already keeps its place among the rows of the same date; what would hold comes last.
    waiting = [replace(row, status="active", recorded_at=now) for row in rows if row.status != "active"]
    holding = [row for row in rows if row.status == "active"]
    named = {row.id for row in rows}
    others = [row for row in book.rows if row.id not in named]
    before = book.with_rows(others)
    after = book.with_rows([*others, *holding, *waiting])
    used, rated = _by_model(ledger, after, now), _by_row(ledger, now)
    return [_effect(change, before, after, used, rated, now) for change in changes]


def _since(now: datetime) -> datetime:
    return now.replace(minute=0, second=0, microsecond=0) - timedelta(days=DAYS)


def _by_row(ledger: Ledger, now: datetime) -> dict[str, list[_Share]]:
    """The usage of the last 30 days by the price row that it is billed by."""
    found: dict[str, list[_Share]] = {}
    for row in ledger.costs(by=("customer",), since=_since(now), meter=ANY, mode="live"):
        for part in row.parts:
            said = part.rating.document.get("cost") or {}
            if "price" in said:
                weighted = Decimal(part.quantity)
                for _, multiplier, _ in said.get("factors", ()):
                    weighted = EXACT.multiply(weighted, Decimal(multiplier))
                found.setdefault(said["price"], []).append(_Share(row.group["customer"], part.quantity, weighted))
    return found


def _by_model(ledger: Ledger, book: PriceBook, now: datetime) -> dict[tuple[str, str], list[_Used]]:
    """The usage of the last 30 days by the model of the book that it is billed as."""
    found: dict[tuple[str, str], list[_Used]] = {}
    by = ("customer", "provider", "model", "price_context")
    for row in ledger.usage(by=by, since=_since(now), meter=ANY, mode="live"):
        customer, provider, name, context = (row.group[each] for each in by)
        model = book.find(provider, name)
        if model is not None:
            told = json.loads(context) if context else {}
            found.setdefault((model.provider, model.id), []).append(_Used(customer, provider, name, told, row.usage))
    return found


def _effect(
    change: Change,
    before: PriceBook,
    after: PriceBook,
    used: Mapping[tuple[str, str], Sequence[_Used]],
    rated: Mapping[str, Sequence[_Share]],
    now: datetime,
) -> Effect:
    shares: list[_Share] = []
    if change.old is not None and key_of(change.old) == key_of(change.price):
        # What is billed by the row says more than what would be: how long each request was is known only there.
        for id in {change.old.id, change.price.id}:
            shares += rated.get(id, ())
    if not shares:
        for each in used.get((change.price.provider, change.price.model), ()):
            for count, by in _touched(change, each, before, after, now):
                shares.append(_Share(each.customer, count, _weighted(count, by)))
    customers = {share.customer for share in shares}
    quantity, weighted = sum(share.quantity for share in shares), total(share.weighted for share in shares)
    impact = None
    if change.verdict and change.old is not None and change.new is not None:
        assert change.old.rate is not None and change.new.rate is not None
        impact = EXACT.multiply(weighted, EXACT.subtract(change.new.rate, change.old.rate))
    return Effect(change, tuple(sorted(customers, key=lambda name: name or "")), quantity, impact)


def _weighted(count: int, rated: Rated) -> Decimal:
    """The quantity times the factors on its price."""
    weighted = Decimal(count)
    for factor in rated.factors:
        weighted = EXACT.multiply(weighted, factor.multiplier)
    return weighted


def _touched(
    change: Change, used: _Used, before: PriceBook, after: PriceBook, now: datetime
) -> Iterator[tuple[int, Rated]]:
    """The quantities that would be billed by the row of this change, or are billed by the one that it ends."""
    ends = change.verdict is None or change.price.amount is None
    row = change.old if ends else change.price
    book, at = (before, now) if ends else (after, max(now, change.effective_from or now))
    for token_type, count in used.usage.items():
        rated = _rated(book, used, token_type, at)
        if rated is not None and row is not None and rated.price.id == row.id:
            yield count, rated


def _rated(book: PriceBook, used: _Used, token_type: str, at: datetime) -> Rated | None:
    # How long the context of a request was stands in its price context; the sum over many requests says nothing.
    tariff = book.tariff(provider=used.provider, model=used.model, at=at, context=used.context)
    return tariff.rated(token_type, used.context, {})
