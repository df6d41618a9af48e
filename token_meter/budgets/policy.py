"""What holds for customers besides budgets: prepaid credit that must cover a call, and calls that are paused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, Self, TypeAlias

from token_meter.budgets.budget import EACH, ENFORCEMENTS, Enforce
from token_meter.errors import InvalidBudget
from token_meter.money import ZERO, currency_of, decimal_of, plain

POLICIES: Final = ("block", "overage")
FIELDS: Final = frozenset({"policy", "enforce", "currency", "low"})
Unreachable: TypeAlias = Literal["closed", "open"]


@dataclass(frozen=True, slots=True)
class CreditPolicy:
    """What happens when a customer's credit is used up: "block" refuses calls, "overage" invoices what is beyond it.

    `enforce` says how a call is measured against what is left, as for a budget. A notice is written when less than
    `low` is left.
    """

    policy: Literal["block", "overage"] = "overage"
    enforce: Enforce = "bounded"
    currency: str = "USD"
    low: Decimal | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """A policy from a mapping. Raises InvalidBudget saying what to write."""
        if unknown := sorted(set(given) - FIELDS):
            raise InvalidBudget(f"a credit policy has no {', '.join(unknown)}: it has {', '.join(sorted(FIELDS))}")
        policy, enforce = given.get("policy", "overage"), given.get("enforce", "bounded")
        if policy not in POLICIES:
            raise InvalidBudget(f"a credit policy is one of {', '.join(POLICIES)}, not {policy!r}")
        if enforce not in ENFORCEMENTS[:2]:
            raise InvalidBudget(f"credit is enforced strict or bounded, not {enforce!r}")
        try:
            low = given.get("low")
            amount = None if low is None else decimal_of(low, "low")
            currency = currency_of(given.get("currency") or "USD")
        except ValueError as problem:
            raise InvalidBudget(str(problem)) from None
        if amount is not None and amount < ZERO:
            raise InvalidBudget("what counts as low is an amount from 0 on")
        return cls(policy, enforce, currency, amount)

    def document(self) -> dict[str, Any]:
        """For JSON; `read` takes it back."""
        return {
            "policy": self.policy, "enforce": self.enforce, "currency": self.currency,
            "low": None if self.low is None else plain(self.low),
        }  # fmt: skip


OVERAGE: Final = CreditPolicy()


@dataclass(frozen=True, slots=True)
class Policies:
    """The credit policy of each customer, and what happens when the store of holds does not answer."""

    credit: Mapping[tuple[str, str], CreditPolicy] = field(default_factory=dict)
    """By mode and customer; `*` for those who have none of their own."""
    prepaid_unreachable: Unreachable = "closed"
    unreachable: Unreachable = "open"

    def of(self, mode: str, customer: str | None) -> CreditPolicy:
        """The policy for a customer; nobody in particular has credit to block on."""
        if customer is None:
            return OVERAGE
        return self.credit.get((mode, customer)) or self.credit.get((mode, EACH)) or OVERAGE

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """What `document` wrote."""
        credit = {
            (each["mode"], each["customer"]): CreditPolicy.read(
                {name: each[name] for name in FIELDS.intersection(each)}
            )
            for each in document.get("credit", ())
        }
        return cls(credit, document.get("prepaid_unreachable", "closed"), document.get("unreachable", "open"))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "credit": [
                {"mode": mode, "customer": customer, **policy.document()}
                for (mode, customer), policy in sorted(self.credit.items())
            ],
            "prepaid_unreachable": self.prepaid_unreachable,
            "unreachable": self.unreachable,
        }
