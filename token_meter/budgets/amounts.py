"""What some usage takes of a budget: the same before it is recorded, when it is, and when it is rated again."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from token_meter.billing.cards import BY_THE_PERIOD
from token_meter.budgets.budget import Budget
from token_meter.ledger.costs import RatedQuantity
from token_meter.ledger.tables import EVENTS
from token_meter.money import EXACT, ZERO, total
from token_meter.prices.factors import CURRENCY
from token_meter.usage import TOKEN_TYPES


def taken(budget: Budget, quantities: Iterable[RatedQuantity], *, is_call: bool) -> int:
    """So many of the budget's smallest parts one event takes, rounded up once."""
    if budget.measure == "requests":
        return int(is_call)
    if budget.measure == "tokens":
        return sum(each.quantity for each in quantities if _is_token(each.name))
    return budget.parts(total(money(budget, each) or ZERO for each in quantities))


def money(budget: Budget, part: RatedQuantity) -> Decimal | None:
    """What a quantity costs or is charged, in the budget's currency; None: that is not known.

    What is charged by the whole period (tiers, packages) has no price of its own before the period ends: it counts at
    what it costs us.
    """
    if budget.measure == "cost":
        return part.cost if part.rating.document.get("cost") else ZERO
    said = part.said
    if not said:
        return ZERO
    if part.charge is None and said.get("kind") in BY_THE_PERIOD:
        return _in(budget.currency, part.cost, said.get("exchange"))
    return part.charge if part.currency == budget.currency else None


def _in(currency: str, cost: Decimal | None, exchange: str | None) -> Decimal | None:
    if cost is None or currency == CURRENCY:
        return cost
    return None if exchange is None else EXACT.divide(cost, Decimal(exchange))


def _is_token(name: str) -> bool:
    return name != EVENTS and TOKEN_TYPES[name].unit == "token"
