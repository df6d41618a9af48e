"""The factors on prices: discounts, geographies, exchange rates. The operator's go before the shipped ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from token_meter.money import ONE
from token_meter.prices.context import Situation
from token_meter.prices.price import Applied, Factor, Price

CURRENCY: Final = "USD"
"""Providers state their prices in it; costs are in it."""


class Factors:
    """Every factor of a book. `own` are the operator's, with the book's ids of the models that they name."""

    __slots__ = ("_groups", "own")

    def __init__(self, own: Sequence[Factor], shipped: Sequence[Factor]) -> None:
        self.own = tuple(own)
        self._groups = (self.own, tuple(shipped))

    def on(
        self, price: Price, situation: Situation, at: datetime, *, place: str | None = None
    ) -> tuple[tuple[Applied, ...], str | None]:
        """The factors on a price, and what is missing (then the price cannot be used). `place` is the provider that
        bills by it, if that is not the one whose price it is."""
        applied: list[Applied] = []
        billing = replace(price, provider=place) if place is not None and place != price.provider else price
        if not price.amount:
            return (), None
        discount = self._of("discount", billing, at)
        if discount is not None and discount.multiplier != ONE:
            applied.append(Applied("discount", discount.multiplier, discount.source))
        if situation.geo is not None and price.unit == "token":
            geo = self._of("geo", billing, at, geo=situation.geo)
            if geo is None:
                return (), f"no price of {billing.provider}/{price.model} for geo={situation.geo}"
            if geo.multiplier != ONE:
                applied.append(Applied("geo", geo.multiplier, geo.source))
        if price.currency != CURRENCY:
            exchange = self._of("exchange", price, at, currency=price.currency)
            if exchange is None:
                return (), f"no exchange rate from {price.currency} to {CURRENCY} at {at:%Y-%m-%d}"
            applied.append(Applied("exchange", exchange.multiplier, exchange.source))
        return tuple(applied), None

    def exchange(self, currency: str, at: datetime) -> Decimal | None:
        """What one unit of this currency was worth in US dollars, as the operator said; None if they did not."""
        meeting = [
            each for each in self if each.kind == "exchange" and each.currency == currency and each.meets("", "", at)
        ]
        return max(meeting, key=_particular).multiplier if meeting else None

    def changes(self) -> list[datetime]:
        """Every moment at which a factor begins or ends."""
        return [edge for each in self for edge in (each.effective_from, each.effective_to) if edge is not None]

    def __iter__(self) -> Iterator[Factor]:
        for group in self._groups:
            yield from group

    def _of(
        self, kind: str, price: Price, at: datetime, *, geo: str | None = None, currency: str | None = None
    ) -> Factor | None:
        """The operator's before the shipped ones; the most particular, of those the latest."""
        for group in self._groups:
            meeting = [
                each
                for each in group
                if each.kind == kind
                and each.geo == geo
                and each.currency == currency
                and each.meets(price.provider, price.model, at)
            ]
            if meeting:
                return max(meeting, key=_particular)
        return None


def _particular(factor: Factor) -> tuple[int, int, float]:
    exact = 0 if factor.model.endswith("*") else 1
    start = factor.effective_from.timestamp() if factor.effective_from is not None else float("-inf")
    return (exact, len(factor.model), start)
