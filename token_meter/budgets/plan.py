"""What a call is to hold, worked out before a store is asked: of each budget that concerns it, and of its credit."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from token_meter.budgets import refusal
from token_meter.budgets.budget import Budget, concerning
from token_meter.budgets.hold import CREDIT, CreditAsk, Part, Request, subject_of
from token_meter.budgets.holding import Key
from token_meter.budgets.known import Known
from token_meter.budgets.learned import Learned
from token_meter.budgets.needs import Needs, credit_budget, facts_of
from token_meter.budgets.rates import Caller
from token_meter.budgets.snapshot import Snapshot, span_of
from token_meter.budgets.window import Span
from token_meter.providers.asking import Ask


class Holding(NamedTuple):
    """What a call holds, kept with it until it ends: each of `parts` of one of `budgets`, credit included."""

    id: str
    caller: Caller
    budgets: tuple[Budget, ...]
    parts: tuple[Part, ...]
    size: int
    """Bytes of text of the request; 0 where it names what was not measured: it teaches nothing of bytes and tokens."""

    process: int
    cut: tuple[Budget, str, int] | None = None
    """The budget (and whose) that ends a stream when it has shown so many tokens."""


class Plan(NamedTuple):
    """What is asked of a store, what the call holds if it agrees, and the windows of the budgets."""

    holding: Holding
    request: Request
    spans: Mapping[Key, Span]


def planned(
    id: str, caller: Caller, ask: Ask, snapshot: Snapshot, known: Known, learned: Learned, *, now: int, expires: int
) -> Plan | None:
    """What a call is to hold, moments in microseconds since 1970; None: nothing limits it.

    Raises BudgetExceeded for who is paused, and for what has no price or no worst case.
    """
    if (caller.mode, caller.customer or "") in snapshot.paused:
        raise refusal.paused(caller.customer or "")
    found = concerning(limits_of(snapshot, caller.mode), facts_of(caller))
    policy = snapshot.policies.of(caller.mode, caller.customer)
    blocks = policy.policy == "block"
    if not found and not blocks:
        return None
    with known.lock:
        rates = known.rates()
        needs = Needs(rates, caller, ask, learned, now)
        entries: list[tuple[Part, Budget, Span | None]] = []
        for budget, subject in found:
            span = span_of(budget, rates.catalogue, caller.customer, now)
            hard = budget.enforce != "soft"
            amount = needs.of(budget, subject) if hard else 0
            part = Part(
                budget.id, subject, budget.start(span), amount, span.start, budget.parts_max if hard else None,
                budget.window.reach,
            )  # fmt: skip
            entries.append((part, budget, span))
        credit = None
        if blocks and caller.customer is not None:
            budget = credit_budget(policy)
            subject = subject_of([caller.mode, policy.currency, caller.customer])
            amount = needs.of(budget, subject_of([caller.customer]))
            entries.append((Part(CREDIT, subject, 0, amount), budget, None))
            place = {"meter": "llm_tokens", "provider": caller.provider, "model": caller.model}
            credit = CreditAsk(caller.mode, caller.customer, policy.currency, place)
    entries.sort(key=lambda each: each[0].key)
    parts = tuple(part for part, _, _ in entries)
    holding = Holding(id, caller, tuple(budget for _, budget, _ in entries), parts,
                      0 if ask.opaque else ask.size or 0, os.getpid(),
                      needs.cut([(budget, part.subject) for part, budget, _ in entries]))  # fmt: skip
    request = Request(id, parts, now, expires, credit, snapshot.generation, True, _who(caller))
    return Plan(holding, request, {part.key: span for part, _, span in entries if span is not None})


def limits_of(snapshot: Snapshot, mode: str, *, hard_only: bool = False) -> Sequence[Budget]:
    """The budgets of a mode."""
    return [
        each for each in snapshot.in_force if each.mode == mode and not (hard_only and each.enforce == "soft")
    ]  # fmt: skip


def _who(caller: Caller) -> str:
    """Whose call it is, for people who look at holds."""
    return json.dumps({
        "customer": caller.customer, "provider": caller.provider, "model": caller.model,
        "dimensions": dict(caller.dimensions), "process": f"{socket.gethostname()}:{os.getpid()}",
    })  # fmt: skip
