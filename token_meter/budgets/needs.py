"""What one request needs of budgets of any kind, before it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from token_meter.budgets import refusal
from token_meter.budgets.bound import Bound, Unbounded, likely, worst
from token_meter.budgets.budget import Budget, Enforce
from token_meter.budgets.hold import CREDIT_DECIMALS
from token_meter.budgets.learned import Learned
from token_meter.budgets.policy import CreditPolicy
from token_meter.budgets.rates import Caller, Rates
from token_meter.ledger.rows import EPOCH
from token_meter.providers.asking import Ask


class Needs:
    """What one request needs of budgets of any kind; each bound is worked out once."""

    def __init__(self, rates: Rates, caller: Caller, ask: Ask, learned: Learned, now: int) -> None:
        self._rates = rates
        self._caller = caller
        self._ask = ask
        self._learned = learned
        self._at = EPOCH + timedelta(microseconds=now)
        self._window = rates.window(caller)
        self._bounds: dict[tuple[Enforce, bool], Bound | Unbounded] = {}

    def of(self, budget: Budget, subject: str) -> int:
        """The amount to hold for somebody. Raises BudgetExceeded where there is none."""
        if budget.measure == "requests":
            return 1
        bound = self._bound(budget)
        if isinstance(bound, Unbounded):
            raise refusal.no_bound(budget, subject, bound.why)
        amount = self._needed(budget, self._caller, bound)
        if amount is None and budget.unpriced == "dearest":
            dearest = self._rates.dearest(self._caller, self._at)
            amount = None if dearest is None else self._needed(budget, dearest, bound)
        if amount is None and budget.unpriced == "allow":
            return 0
        if amount is None:
            if charged := self._rates.other_currency(budget, self._caller, self._at):
                raise refusal.other_currency(budget, subject, charged)
            raise refusal.no_price(budget, subject, self._caller.model, self._caller.provider)
        return amount

    def cut(self, entries: Sequence[tuple[Budget, str]]) -> tuple[Budget, str, int] | None:
        """The budget that wants a stream to end at what is held for it, and how many tokens of output that are."""
        found = [
            (budget, subject, bound.output)
            for budget, subject in entries
            if budget.cut_off and budget.enforce != "soft"
            and isinstance(bound := self._bound(budget), Bound) and bound.output
        ]  # fmt: skip
        return min(found, key=lambda each: each[2], default=None)

    def _bound(self, budget: Budget) -> Bound | Unbounded:
        kind = budget.enforce, budget.tokenize
        if kind not in self._bounds:
            self._bounds[kind] = worst(self._ask, self._window) if budget.enforce == "strict" else self._likely(budget)
        return self._bounds[kind]

    def _likely(self, budget: Budget) -> Bound:
        caller = self._caller
        return likely(
            self._ask, self._window, self._learned,
            customer=caller.customer, model=caller.model or "", tokenize=budget.tokenize,
        )  # fmt: skip

    def _needed(self, budget: Budget, caller: Caller, bound: Bound) -> int | None:
        asked = self._ask.context
        contexts: Sequence[Mapping[str, Any]] = [asked]
        if budget.enforce == "strict":
            contexts = [{**each, **asked} for each in self._rates.contexts(caller, self._at)]
        return self._rates.needed(
            budget, caller, bound, self._ask, at=self._at, contexts=contexts, every=budget.enforce == "strict"
        )


def credit_budget(policy: CreditPolicy) -> Budget:
    """Prepaid credit as a budget: what it counts, and how."""
    budget = Budget.read({
        "scope": {"customer": "*"}, "limit": 0, "currency": policy.currency, "enforce": policy.enforce,
        "name": "prepaid credit",
    })  # fmt: skip
    object.__setattr__(budget, "decimals", CREDIT_DECIMALS)
    return budget


def facts_of(caller: Caller) -> dict[str, str | None]:
    return {
        **caller.dimensions, "customer": caller.customer, "provider": caller.provider, "publisher": caller.publisher,
        "model": caller.model, "operation": caller.operation,
    }  # fmt: skip
