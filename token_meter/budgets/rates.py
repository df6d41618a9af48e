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
from token_meter.usage import TOKEN_TYPES, Usage

_INPUTS: Final = frozenset(
    name for name, row in TOKEN_TYPES.items() if row.headline in ("input", "cached input", "cache write")
)
_ALWAYS: Final = ("input", "cache_read", "output", "reasoning")
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
        *,
        at: datetime,
        types: Sequence[str],
        contexts: Sequence[Mapping[str, Any]],
    ) -> int | None:
        """What a bound takes of a budget, in its smallest parts: of types and contexts the dearest. None: unpriced."""
        if budget.measure == "requests":
            return 1
        if budget.measure == "tokens":
            return bound.tokens
        amounts = [self._needed(budget, caller, bound, at, types, context) for context in contexts]
        priced = [amount for amount in amounts if amount is not None]
        # A tier without a price is none that this model has; the standard always has to have one.
        return None if amounts[0] is None else budget.parts(max(priced))

    def _needed(
        self,
        budget: Budget,
        caller: Caller,
        bound: Bound,
        at: datetime,
        types: Sequence[str],
        context: Mapping[str, Any],
    ) -> Decimal | None:
        names = dict.fromkeys([*_ALWAYS, *types, *bound.calls])
        event = _event(caller, Usage.of(dict.fromkeys(names, 1)), at, {**context, "context_tokens": bound.input})
        rated = self._rated(event)
        into = _dearest(budget, (part for part in rated if part.name in _INPUTS))
        out = _dearest(budget, (part for part in rated if _is_output(part.name)))
        if (bound.input and into is None) or (bound.output and out is None):
            return None
        amount = EXACT.add(product(into or ZERO, bound.input), product(out or ZERO, bound.output))
        for part in rated:
            if part.name in bound.calls or part.name == EVENTS:
                unit = money(budget, part)
                if unit is None:
                    return None
                amount = EXACT.add(amount, product(unit, bound.calls.get(part.name, 1)))
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
        """The service tiers that a provider may serve a request of no named tier in, the standard first."""
        found = self._rater.book.find(caller.provider, caller.model)
        others = sorted(found.contexts(at)) if found is not None else []
        tiers = [dict(each) for each in others if [name for name, _ in each] == ["service_tier"]]
        return [{}, *tiers]

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


def _dearest(budget: Budget, parts: Iterable[RatedQuantity]) -> Decimal | None:
    units = [unit for part in parts if (unit := money(budget, part)) is not None]
    return max(units, default=None)


def _is_output(name: str) -> bool:
    return name != EVENTS and TOKEN_TYPES[name].unit == "token" and name not in _INPUTS
