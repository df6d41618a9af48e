"""What a call may cost, and what it did cost, at the prices and on the plan that will count when it is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from token_meter.billing.rating import EventRater
from token_meter.budgets.amounts import money, taken
from token_meter.budgets.bound import Bound
from token_meter.budgets.budget import Budget
from token_meter.event import MeterEvent
from token_meter.ledger.costs import NOT_RATED, RatedQuantity
from token_meter.ledger.rater import Rating
from token_meter.ledger.ratings import Read
from token_meter.ledger.tables import EVENTS
from token_meter.money import EXACT, ZERO, product
from token_meter.prices.windows import window_of
from token_meter.providers.asking import Ask
from token_meter.usage import TOKEN_TYPES, Usage

_INPUTS: Final = frozenset(
    name for name, row in TOKEN_TYPES.items() if row.headline in ("input", "cached input", "cache write")
)
_TOKENS: Final = frozenset(name for name, row in TOKEN_TYPES.items() if row.unit == "token")
_ALWAYS: Final = ("input", "cache_read", "output", "reasoning")
_INSTEAD: Final = frozenset({"audio_ms", "characters", "images"})
"""What some models bill instead of tokens."""
REMEMBERED_MAX: Final = 10_000


class Caller(NamedTuple):
    """Who calls which model where: what prices and plans ask for."""

    mode: str
    customer: str | None
    provider: str
    model: str | None
    publisher: str | None
    operation: str
    dimensions: Mapping[str, str]


class Rates:
    """Prices and plans of one moment of a ledger. One thread at a time."""

    def __init__(self, rater: EventRater) -> None:
        self._rater = rater
        self._reads: dict[Rating, Read] = {}
        self._dearest: dict[str, str | None] = {}

    @property
    def catalogue(self) -> Any:
        """The plans."""
        return self._rater.catalogue

    def window(self, caller: Caller) -> int | None:
        """The model's context window."""
        found = self._rater.book.find(caller.provider, caller.model)
        return None if found is None else window_of(found.provider, found.id)

    def needed(
        self,
        budget: Budget,
        caller: Caller,
        bound: Bound,
        ask: Ask,
        *,
        at: datetime,
        contexts: Sequence[Mapping[str, Any]],
        every: bool,
    ) -> int | None:
        """What a bound takes of a budget, in its smallest parts: of types and contexts the dearest. None: unpriced.

        `every`: not only the types that are usual, but all that the model may bill such a request by.
        """
        if budget.measure == "requests":
            return 1
        if budget.measure == "tokens":
            return bound.tokens
        names = [*_ALWAYS, *ask.types, *ask.expected, *bound.calls]
        if every:  # text is not billed as sound or pictures, but the answer may be
            names += _TOKENS if ask.opaque else _TOKENS - _INPUTS
        amounts = [self._needed(budget, caller, bound, at, names, ask.expected, each) for each in contexts]
        priced = [amount for amount in amounts if amount is not None]
        # A tier without a price is none that this model has; the standard always has to have one.
        return None if amounts[0] is None else budget.parts(max(priced))

    def _needed(
        self,
        budget: Budget,
        caller: Caller,
        bound: Bound,
        at: datetime,
        names: Sequence[str],
        expected: Sequence[str],
        context: Mapping[str, Any],
    ) -> Decimal | None:
        usage = Usage.of(dict.fromkeys(names, 1))
        rated = self._rated(_event(caller, usage, at, {**context, "context_tokens": bound.input}))
        units = {part.name: money(budget, part) for part in rated}
        instead = any(units.get(name) is not None for name in _INSTEAD.intersection(bound.calls))
        into = _dearest(units, _INPUTS)
        out = _dearest(units, _TOKENS - _INPUTS)
        if not instead:
            if (bound.input and into is None) or (bound.output and out is None):
                return None
            if any(units.get(name) is None for name in expected):
                return None
        amount = EXACT.add(product(into or ZERO, bound.input), product(out or ZERO, bound.output))
        for name in (*bound.calls, EVENTS):
            unit = units.get(name, ZERO)
            if unit is None and name not in _INSTEAD:
                return None
            amount = EXACT.add(amount, product(unit or ZERO, bound.calls.get(name, 1)))
        return amount

    def other_currency(self, budget: Budget, caller: Caller, at: datetime) -> str | None:
        """The currency in which a call is charged, if the budget counts another one."""
        if budget.measure != "charge":
            return None
        rated = self._rated(_event(caller, Usage.of(dict.fromkeys(_ALWAYS, 1)), at, {}))
        charged = {part.currency for part in rated if part.charge is not None}
        return min(charged) if charged and budget.currency not in charged else None

    def used(
        self,
        budgets: Sequence[Budget],
        caller: Caller,
        usage: Usage,
        *,
        at: datetime,
        context: Mapping[str, Any],
        status: str,
        answered: str | None,
    ) -> list[int]:
        """What a call that ended took of each budget, in its smallest parts."""
        if any(each.is_money for each in budgets):
            quantities = self._rated(_event(caller, usage, at, context, status=status, answered=answered))
        else:
            quantities = [RatedQuantity(name, quantity, NOT_RATED) for name, quantity in usage.items()]
        return [taken(budget, quantities, is_call=True) for budget in budgets]

    def contexts(self, caller: Caller, at: datetime) -> list[Mapping[str, Any]]:
        """In what a provider may serve a request that names nothing: service tiers and places, the standard first."""
        found = self._rater.book.find(caller.provider, caller.model)
        if found is None:
            return [{}]
        tiers = [dict(each) for each in sorted(found.contexts(at)) if [name for name, _ in each] == ["service_tier"]]
        geos = {
            factor.geo: {"geo": factor.geo} for factor in self._rater.book.factors
            if factor.kind == "geo" and factor.multiplier > 1 and factor.meets(caller.provider, found.id, at)
        }  # fmt: skip
        return [{**tier, **geo} for geo in ({}, *geos.values()) for tier in ({}, *tiers)]

    def dearest(self, caller: Caller, at: datetime) -> Caller | None:
        """The same call of the provider's dearest model; None: it has none with a price."""
        if caller.provider not in self._dearest:
            self._dearest[caller.provider] = self._find_dearest(caller.provider, at)
        model = self._dearest[caller.provider]
        return None if model is None else caller._replace(model=model)

    def _find_dearest(self, provider: str, at: datetime) -> str | None:
        best: tuple[Decimal, str] | None = None
        for model in self._rater.book.models():
            if model.provider != provider:
                continue
            cost = self._rater.book.cost(
                provider=provider, model=model.id, usage={"input": 1, "output": 4}, at=at
            ).amount
            if cost is not None and (best is None or cost > best[0]):
                best = (cost, model.id)
        return None if best is None else best[1]

    def _rated(self, event: MeterEvent) -> list[RatedQuantity]:
        ratings = self._rater.rate(event)
        return [
            RatedQuantity(name, quantity, self._read(ratings[name]))
            for name, quantity in [*event.usage.items(), (EVENTS, 1)]
            if name in ratings
        ]

    def _read(self, rating: Rating) -> Read:
        known = self._reads.get(rating)
        if known is None:
            if len(self._reads) >= REMEMBERED_MAX:
                self._reads.clear()
            cost, charge = (None if text is None else Decimal(text) for text in (rating.cost, rating.charge))
            known = self._reads[rating] = Read(0, cost, charge, rating.document)
        return known


def _event(
    caller: Caller,
    usage: Usage,
    at: datetime,
    context: Mapping[str, Any],
    *,
    status: Any = "complete",
    answered: str | None = None,
) -> MeterEvent:
    return MeterEvent(
        id="estimate", time=at, usage=usage, customer=caller.customer, provider=caller.provider,
        publisher=caller.publisher, model=answered or caller.model, model_requested=caller.model,
        operation=caller.operation, mode=caller.mode, status=status, price_context=context,  # type: ignore[arg-type]
        dimensions=caller.dimensions,
    )  # fmt: skip


def _dearest(units: Mapping[str, Decimal | None], names: Iterable[str]) -> Decimal | None:
    found = [unit for name in names if (unit := units.get(name)) is not None]
    return max(found, default=None)
