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
    never = part.amount > verdict.limit
    resets_at = None if never or budget.window.kind == "lifetime" else EPOCH + MICROSECOND * span.stop
    said = [
        f"the budget {_named(budget, subject)} leaves no room for this call: it may take {budget.shown(part.amount)}"
    ]
    if never:
        said.append(
            f", which is more than the whole budget of {budget.shown(verdict.limit)}: waiting does not help. Name a "
            "smaller maximum of output tokens, or raise it"
        )
    else:
        said.append(f", and {_spent(budget, verdict)} is spent{_reserved(budget, verdict)}.")
        if budget.window.length:
            said.append(f" It frees itself over {budget.window}.")
        elif resets_at is not None:
            said.append(f" It begins anew at {resets_at:%Y-%m-%dT%H:%M:%SZ}.")
        said.append(" To raise it")
    command = command_of(budget)
    return BudgetExceeded(
        f"{''.join(said)}: {command}",
        reason="budget", budget=budget.label, scope=budget.whose(subject), unit=budget.unit, limit=budget.limit,
        spent=spent, held=budget.amount(verdict.held + verdict.lost), needed=needed, resets_at=resets_at,
        retry_after=_after(resets_at, now), command=command,
    )  # fmt: skip


def _named(budget: Budget, subject: str) -> str:
    """The budget, and whose it is where its label does not say so."""
    whose = budget.whose(subject)
    return repr(budget.label) if budget.label.endswith(f"for {whose}") else f"{budget.label!r} of {whose}"


def _spent(budget: Budget, verdict: Verdict) -> str:
    of = budget.shown(verdict.limit)
    return f"{plain(budget.amount(verdict.spent)) if budget.is_money else f'{verdict.spent:,}'} of {of}"


def _reserved(budget: Budget, verdict: Verdict) -> str:
    under_way = f" and {budget.shown(verdict.held)} held by calls under way" if verdict.held else ""
    if not verdict.lost:
        return under_way
    return (
        f"{under_way} and {budget.shown(verdict.lost)} charged for calls that nobody knows the end of (`token-meter "
        "budgets holds --lost`)"
    )


def used_up(budget: Budget, subject: str, tokens: int) -> BudgetExceeded:
    """A stream has shown as much as was held for it."""
    command = command_of(budget, cut_off=False)
    return BudgetExceeded(
        f"the stream was ended: the {tokens:,} tokens of output that {_named(budget, subject)} held "
        "for it are used up. What it has shown is billed. Name a larger maximum of output tokens, raise the budget, or "
        f"let streams run on: {command}",
        reason="cut_off", budget=budget.label, scope=budget.whose(subject), unit=budget.unit, limit=budget.limit,
        command=command,
    )  # fmt: skip


def no_bound(budget: Budget, subject: str, why: str) -> BudgetExceeded:
    """A strict budget refuses what has no worst case."""
    return BudgetExceeded(
        f"the budget {_named(budget, subject)} is strict, and this call has no worst case: {why}. Or have it bounded",
        reason="no_worst_case", budget=budget.label, scope=budget.whose(subject), unit=budget.unit, limit=budget.limit,
    )  # fmt: skip


def no_price(budget: Budget, subject: str, model: str | None, provider: str) -> BudgetExceeded:
    """A budget of money cannot hold what has no price."""
    return BudgetExceeded(
        f"the budget {_named(budget, subject)} counts money, and {provider} {model} has no price for all that a call "
        "may take: give it one in your price overrides or run `token-meter prices sync`, or set the budget's "
        "`unpriced` to dearest or allow",
        reason="unpriced", budget=budget.label, scope=budget.whose(subject), unit=budget.unit, limit=budget.limit,
    )  # fmt: skip


def other_currency(budget: Budget, subject: str, charged: str) -> BudgetExceeded:
    """A budget cannot count charges in another currency than its own."""
    return BudgetExceeded(
        f"the budget {_named(budget, subject)} counts {budget.currency}, and this call is charged in {charged}: set "
        f"one in {charged} instead, or one of cost (USD)",
        reason="currency", budget=budget.label, scope=budget.whose(subject), unit=budget.unit, limit=budget.limit,
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
        reason="credit", budget="credit", scope=f"customer={customer}", unit=policy.currency, limit=balance,
        spent=pending, held=held, needed=needed, command=f"token-meter credits grant {who} AMOUNT",
    )  # fmt: skip


def paused(customer: str) -> BudgetExceeded:
    """A customer is paused."""
    command = f"token-meter customers resume {shlex.quote(customer)}"
    return BudgetExceeded(
        f"{customer} is paused: no call is made for them until `{command}`",
        reason="paused", budget="paused", scope=f"customer={customer}", command=command,
    )  # fmt: skip


def unreachable(scope: str, reason: object) -> BudgetExceeded:
    """Nobody can say what is left, and the operator wants no call then."""
    return BudgetExceeded(
        f"what {scope} may spend cannot be looked up, and the setting for that is closed: {reason}. Calls go on when "
        "the ledger answers again, or with `token-meter budgets unreachable --prepaid open --others open`",
        reason="unreachable", budget="unreachable", scope=scope, retry_after=1.0,
    )  # fmt: skip


def _after(moment: datetime | None, now: int) -> float | None:
    return None if moment is None else max(0.0, ((moment - EPOCH) // MICROSECOND - now) / 1_000_000)
