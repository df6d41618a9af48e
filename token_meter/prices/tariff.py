"""What one model costs in one situation, token type by token type, for as long as nothing about that changes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from token_meter.money import EXACT, settled
from token_meter.prices.context import Situation, context_tokens_of
from token_meter.prices.factors import Factors
from token_meter.prices.model import Model
from token_meter.prices.price import Applied, Price


class Rated(NamedTuple):
    """One token type's price with its factors: `rate` is what one unit costs, exact.

    `rise`: a dearer price that would hold here, and waits for somebody to accept it: until then this one counts.
    """

    price: Price
    factors: tuple[Applied, ...]
    rate: Decimal
    rise: Price | None = None
    ends: bool = True
    """Whether `rate` has as few decimals as an amount may have: then a product with a quantity is exact as it is."""


class Tariff:
    """What one model costs in one situation, as long as nothing changes: [start, stop)."""

    __slots__ = ("_edges", "_found", "_why", "factors", "model", "place", "reason", "situation", "start", "stop")

    def __init__(
        self,
        factors: Factors,
        place: str,
        model: Model | None,
        situation: Situation,
        span: tuple[datetime, datetime],
        reason: str | None,
    ) -> None:
        self.factors = factors
        self.place = place
        self.model = model
        self.situation = situation
        self.start, self.stop = span
        self.reason = reason
        self._edges = sorted({_edge(price) for price in model.prices if price.above} if model is not None else ())
        self._found: list[dict[str, Rated]] = [{} for _ in range(len(self._edges) + 1)]
        self._why: dict[str, str] = {}

    def found(self, context: Mapping[str, Any] | None, usage: Mapping[str, int]) -> dict[str, Rated]:
        """The rates found so far for a request as long as this one; `rated` finds those that are not there."""
        if not self._edges:
            return self._found[0]
        return self._found[bisect_right(self._edges, context_tokens_of(context, usage))]

    def rated(self, token_type: str, context: Mapping[str, Any] | None, usage: Mapping[str, int]) -> Rated | None:
        """The rate of a token type for this request; None if there is none: see `why`."""
        tokens = context_tokens_of(context, usage)
        found = self._found[bisect_right(self._edges, tokens)]
        if token_type not in found:
            rated = self._resolve(token_type, tokens)
            if rated is None:
                return None
            found[token_type] = rated
        return found[token_type]

    def why(self, token_type: str) -> str:
        """Why a token type has no rate here."""
        return self._why[token_type]

    def _resolve(self, token_type: str, context_tokens: int) -> Rated | None:
        if self.model is None:
            self._why[token_type] = self.reason or "unknown model"
            return None
        ladder = self.model.ladder(token_type, self.situation.context, self.start)
        price = ladder.price(context_tokens) if ladder is not None else None
        if price is None or price.rate is None:
            self._why[token_type] = self._missing(token_type)
            return None
        factors, missing = self.factors.on(price, self.situation, self.start, place=self.place)
        if missing is not None:
            self._why[token_type] = missing
            return None
        rate = price.rate
        for factor in factors:
            rate = EXACT.multiply(rate, factor.multiplier)
        return Rated(price, factors, rate, self.model.rise(price, self.start), settled(rate) == rate)

    def _missing(self, token_type: str) -> str:
        assert self.model is not None
        name, context = f"{self.model.provider}/{self.model.id}", self.situation.context
        if context and context not in self.model.contexts(self.start):
            shown = ", ".join(f"{key}={value}" for key, value in context)
            return f"no price of {name} for {shown}{self._when()}"
        return f"no price of {name} for {token_type}{self._when()}"

    def _when(self) -> str:
        """The span in which that is so, as far as it is bounded."""
        since = f" from {self.start:%Y-%m-%d}" if self.start.year > 1 else ""
        return since + (f" until {self.stop:%Y-%m-%d}" if self.stop.year < 9999 else "")


def _edge(price: Price) -> int:
    """The number of context tokens at which a larger price begins."""
    assert price.above is not None
    return price.above if price.inclusive else price.above + 1
