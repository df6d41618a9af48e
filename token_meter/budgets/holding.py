"""Holding and settling, step by step: what every store does inside one atomic step.

Written against `Rows`, the few things that a store keeps. The store in memory and the one in SQLite run this very code;
on PostgreSQL two functions in the database do the same in one round trip (migration 0006).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from token_meter.budgets.hold import CREDIT, Became, CreditAsk, Generation, Held, Level, Part, Request, Verdict
from token_meter.budgets.window import ROLLING

Key = tuple[str, str, int]
Counter = tuple[int, int, int, int]
"""spent, held, lost, noted"""


class Rows(Protocol):
    """What a store keeps, inside one transaction."""

    def generation(self) -> Generation: ...
    def counter(self, key: Key) -> Counter | None: ...
    def rolling(self, budget: str, subject: str, after: int) -> int: ...
    def add(self, key: Key, spent: int, held: int, lost: int) -> None: ...
    def add_bucket(self, budget: str, subject: str, bucket: int, spent: int) -> None: ...
    def balance(self, credit: CreditAsk, now: int) -> int: ...
    def get(self, id: str) -> Held | None: ...
    def put(self, hold: Held) -> None: ...
    def delete(self, id: str) -> None: ...
    def is_recorded(self, event: str) -> bool: ...


def hold(rows: Rows, request: Request) -> Verdict:
    """Reserve all parts of a request, or nothing."""
    if request.generation is not None and rows.generation() != request.generation:
        return Verdict("stale")
    for place, part in enumerate(request.parts):
        counter = rows.counter(part.key)
        if counter is None:
            return Verdict("missing", place)
        spent, held, lost, _ = counter
        limit = part.limit
        if part.rolling:
            spent = rows.rolling(part.budget, part.subject, part.bucket - part.rolling)
        if part.budget == CREDIT and request.credit is not None:
            limit = rows.balance(request.credit, request.now)
        if limit is not None and spent + held + lost + part.amount > limit:
            return Verdict("refused", place, spent, held, lost, limit)
    if rows.get(request.id) is None:
        rows.put(_held(request))
        for part in request.parts:
            rows.add(part.key, 0, part.amount, 0)
    return Verdict("held")


def settle(rows: Rows, id: str, became: Became, amounts: Sequence[int], event: str | None) -> list[Level]:
    """End a hold, once."""
    kept = rows.get(id)
    if kept is None or kept.state == "settled" or kept.state == became:
        return []
    event = event or id
    spends = became == "settled" and not rows.is_recorded(event)  # else it has been counted already
    levels = []
    for place, part in enumerate(kept.parts):
        amount = amounts[place] if spends else 0
        was_held = part.amount if kept.state == "held" else 0
        was_lost = part.amount if kept.state == "lost" else 0
        rows.add(
            part.key,
            0 if part.start == ROLLING else amount,
            -was_held,
            (part.amount if became == "lost" else 0) - was_lost,
        )
        levels += _spent(rows, part, amount)
    if became == "lost":
        rows.put(kept._replace(state="lost"))
        return levels
    rows.delete(id)
    if spends:
        parts = tuple(part._replace(amount=amount) for part, amount in zip(kept.parts, amounts, strict=True))
        rows.put(kept._replace(id=event, state="settled", parts=parts))
    return levels


def charge(rows: Rows, request: Request) -> list[Level]:
    """Count what was spent without a hold."""
    if rows.get(request.id) is not None or rows.is_recorded(request.id):
        return []
    counted = tuple(part for part in request.parts if rows.counter(part.key) is not None)
    rows.put(_held(request)._replace(state="settled", parts=counted))
    levels = []
    for part in counted:
        rows.add(part.key, 0 if part.start == ROLLING else part.amount, 0, 0)
        levels += _spent(rows, part, part.amount)
    return levels


def _spent(rows: Rows, part: Part, amount: int) -> list[Level]:
    if not amount:
        return []
    if part.start == ROLLING:
        rows.add_bucket(part.budget, part.subject, part.bucket, amount)
        return []
    counter = rows.counter(part.key)
    return [] if counter is None else [Level(*part.key, counter[0], counter[3])]


def _held(request: Request) -> Held:
    parts = tuple(Part(*part[:5]) for part in request.parts)
    return Held(request.id, "held", request.sent, request.now, request.expires, parts, json.loads(request.who))
