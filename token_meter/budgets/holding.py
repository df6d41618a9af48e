"""Holding and settling, step by step: what every store does inside one atomic step.

Written against `Rows`, the few things that a store keeps. The store in memory and the one in SQLite run this very code;
on PostgreSQL two functions in the database do the same in one round trip (migrations 0006 and 0007).
"""

from __future__ import annotations

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

    def reserve(self, key: Key, amount: int, limit: int | None) -> bool:
        """Hold an amount if the counter is there and, with all that is spent, held and lost, stays within the limit."""

    def add(self, key: Key, spent: int, held: int, lost: int) -> Counter | None:
        """Add to a counter; what it is now, None if it is not there."""

    def add_bucket(self, budget: str, subject: str, bucket: int, spent: int) -> None: ...
    def balance(self, credit: CreditAsk, now: int) -> int: ...
    def get(self, id: str) -> Held | None: ...

    def insert(self, hold: Held) -> bool:
        """Keep a new hold; False if there is one of its id."""

    def change(self, id: str, hold: Held) -> None:
        """What a hold has become, perhaps under another id."""

    def delete(self, id: str) -> None: ...
    def is_recorded(self, event: str) -> bool:
        """Whether an event is there that says more than that a call was made."""


def hold(rows: Rows, request: Request) -> Verdict:
    """Reserve all parts of a request, or nothing."""
    if request.generation is not None and rows.generation() != request.generation:
        return Verdict("stale")
    if not rows.insert(_held(request)):
        return Verdict("held")
    for place, part in enumerate(request.parts):
        limit, elsewhere = _limit(rows, part, request)
        within = None if limit is None else limit - elsewhere
        if not rows.reserve(part.key, part.amount, within):
            for done in request.parts[:place]:
                rows.add(done.key, 0, -done.amount, 0)
            rows.delete(request.id)
            return _why(rows.counter(part.key), place, part, limit, elsewhere)
    return Verdict("held")


def _limit(rows: Rows, part: Part, request: Request) -> tuple[int | None, int]:
    """What a part may come to, and what is spent elsewhere: in the buckets of a rolling window."""
    if part.budget == CREDIT and request.credit is not None:
        return rows.balance(request.credit, request.now), 0
    if not part.rolling or part.limit is None:
        return part.limit, 0
    return part.limit, rows.rolling(part.budget, part.subject, part.bucket - part.rolling)


def _why(counter: Counter | None, place: int, part: Part, limit: int | None, elsewhere: int) -> Verdict:
    if counter is None:
        return Verdict("missing", place)
    spent, held, lost, _ = counter
    return Verdict("refused", place, elsewhere if part.rolling else spent, held, lost, limit or 0)


def settle(rows: Rows, id: str, became: Became, amounts: Sequence[int], event: str | None) -> list[Level]:
    """End a hold, once."""
    kept = rows.get(id)
    if kept is None or kept.state == "settled" or kept.state == became:
        return []
    event = event or id
    if became != "released" and event != id and rows.is_recorded(event):
        # An event of the same id would have ended the hold; one of another id has been counted already.
        became = "released"
    levels = []
    for place, part in enumerate(kept.parts):
        amount = amounts[place] if became == "settled" else 0
        held = -part.amount if kept.state == "held" else 0
        lost = (part.amount if became == "lost" else 0) - (part.amount if kept.state == "lost" else 0)
        levels += _spend(rows, part, amount, held, lost)
    if became == "lost":
        rows.change(id, kept._replace(id=event, state="lost"))
    elif became == "settled":
        parts = tuple(part._replace(amount=amount) for part, amount in zip(kept.parts, amounts, strict=True))
        rows.change(id, kept._replace(id=event, state="settled", parts=parts))
    else:
        rows.delete(id)
    return levels


def charge(rows: Rows, request: Request) -> list[Level]:
    """Count what was spent without a hold."""
    if rows.get(request.id) is not None or rows.is_recorded(request.id):
        return []
    counted = tuple(part for part in request.parts if rows.counter(part.key) is not None)
    rows.insert(_held(request)._replace(state="settled", parts=counted))
    return [level for part in counted for level in _spend(rows, part, part.amount, 0, 0)]


def _spend(rows: Rows, part: Part, amount: int, held: int, lost: int) -> list[Level]:
    if part.start == ROLLING:
        # What is lost frees itself with its bucket, or a few timeouts would refuse calls for ever.
        rows.add(part.key, 0, held, 0)
        if amount + lost:
            rows.add_bucket(part.budget, part.subject, part.bucket, amount + lost)
        return []
    counter = rows.add(part.key, amount, held, lost)
    if not amount or counter is None:
        return []
    return [Level(*part.key, counter[0], counter[3])]


def _held(request: Request) -> Held:
    return Held(request.id, "held", request.sent, request.now, request.expires, request.parts, request.who)
