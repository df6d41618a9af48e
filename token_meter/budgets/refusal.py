"""Why a call is refused, in words: what is used up, by whom, when it begins anew, and how to raise it."""

from __future__ import annotations

import shlex
from datetime import datetime
from decimal import Decimal

from token_meter.budgets.budget import Budget
from token_meter.budgets.command import command_of
from token_meter.budgets.hold import CREDIT_DECIMALS, Part, Verdict
from token_meter.budgets.policy import CreditPolicy
from token_meter.budgets.window import Span
from token_meter.errors import BudgetExceeded
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.money import EXACT, ZERO, plain, total


def no_room(budget: Budget, subject: str, part: Part, verdict: Verdict, span: Span, now: int) -> BudgetExceeded:
    """A budget has not enough left."""
    needed, spent = budget.amount(part.amount), budget.amount(verdict.spent)
    held = budget.amount(verdict.held + verdict.lost)
    resets_at = None if budget.window.kind == "lifetime" else EPOCH + MICROSECOND * span.stop
    begins = f" It begins anew at {resets_at:%Y-%m-%dT%H:%M:%SZ}." if resets_at is not None else ""
    if budget.window.length:
        begins = f" It frees itself over {budget.window}."
    under_way = f" and {_shown(budget, budget.amount(verdict.held))} held by calls under way" if verdict.held else ""
    if verdict.lost:
        under_way += (
            f" and {_shown(budget, budget.amount(verdict.lost))} charged for calls that nobody knows the end of "
            "(`token-meter budgets holds --lost`)"
        )
    return BudgetExceeded(
        f"the budget {budget.label!r} of {budget.whose(subject)} leaves no room for this call: it may take "
        f"{_shown(budget, needed)}, and {_shown(budget, spent)} of {_shown(budget, budget.limit)} is spent{under_way}."
        f"{begins} To raise it: `{command_of(budget)}`",
        budget=budget.label, scope=budget.whose(subject), unit=_unit(budget), limit=budget.limit, spent=spent,
        held=held, needed=needed, resets_at=resets_at, retry_after=_after(resets_at, now),
    )  # fmt: skip


def used_up(budget: Budget, subject: str, tokens: int) -> BudgetExceeded:
    """A stream has shown as much as was held for it."""
    return BudgetExceeded(
        f"the stream was ended: the {tokens:,} tokens of output that {budget.label!r} of {budget.whose(subject)} held "
        "for it are used up. What it has shown is billed. Name a larger maximum of output tokens, raise the budget, or "
        f"let streams run on: `{command_of(budget, cut_off=False)}`",
        budget=budget.label, scope=budget.whose(subject), unit=_unit(budget), limit=budget.limit,
    )  # fmt: skip


def no_bound(budget: str, scope: str, why: str) -> BudgetExceeded:
    """A strict budget refuses what has no worst case."""
    return BudgetExceeded(
        f"{budget} of {scope} is strict, and this call has no worst case: {why}. Or use `enforce=\"bounded\"`.",
        budget=budget, scope=scope,
    )  # fmt: skip


def no_price(budget: str, scope: str, model: str | None, provider: str) -> BudgetExceeded:
    """A budget of money cannot hold what has no price."""
    return BudgetExceeded(
        f"{budget} of {scope} counts money, and {provider} {model} has no price: give it one in your price overrides "
        'or run `token-meter prices sync`, or set the budget\'s `unpriced` to "dearest" or "allow"',
        budget=budget, scope=scope,
    )  # fmt: skip


def no_credit(customer: str, policy: CreditPolicy, part: Part, verdict: Verdict) -> BudgetExceeded:
    """A customer's prepaid credit does not cover the call."""
    needed, balance, pending, held = (
        Decimal(plain(EXACT.scaleb(Decimal(each), -CREDIT_DECIMALS)))
        for each in (part.amount, verdict.limit, verdict.spent, verdict.held + verdict.lost)
    )
    left = EXACT.subtract(balance, total([pending, held]))
    who = shlex.quote(customer)
    return BudgetExceeded(
        f"the prepaid credit of {customer} does not cover this call: it may take {plain(needed)} {policy.currency}, "
        f"and {plain(max(left, ZERO))} is left ({plain(balance)} less {plain(pending)} used just now and {plain(held)} "
        f"held by calls under way). Grant more with `token-meter credits grant {who} AMOUNT`, or let it run "
        f"on with `token-meter credits policy {who} overage`",
        budget="credit", scope=f"customer={customer}", unit=policy.currency, limit=balance, spent=pending, held=held,
        needed=needed,
    )  # fmt: skip


def paused(customer: str) -> BudgetExceeded:
    """A customer is paused."""
    return BudgetExceeded(
        f"{customer} is paused: no call is made for them until `token-meter customers resume {shlex.quote(customer)}`",
        budget="paused", scope=f"customer={customer}",
    )  # fmt: skip


def unreachable(scope: str, reason: object) -> BudgetExceeded:
    """Nobody can say what is left, and the operator wants no call then."""
    return BudgetExceeded(
        f"what {scope} may spend cannot be looked up, and the setting for that is closed: {reason}. Calls go on when "
        "the ledger answers again, or with `token-meter budgets unreachable --prepaid open --others open`",
        budget="unreachable", scope=scope, retry_after=1.0,
    )  # fmt: skip


def _unit(budget: Budget) -> str:
    return budget.currency if budget.is_money else budget.measure


def _shown(budget: Budget, amount: Decimal) -> str:
    return f"{plain(amount)} {_unit(budget)}" if budget.is_money else f"{int(amount):,} {_unit(budget)}"


def _after(moment: datetime | None, now: int) -> float | None:
    return None if moment is None else max(0.0, ((moment - EPOCH) // MICROSECOND - now) / 1_000_000)
