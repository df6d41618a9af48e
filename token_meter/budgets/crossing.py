"""Thresholds of budgets that were crossed: each is told once, in the ledger's outbox.

Who crosses one writes no notice itself where a caller waits: a counter remembers the highest percentage that was told,
so whoever looks next finds what is missing, also after a crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, select

from token_meter.bookkeeping.notice_rows import write_notice
from token_meter.budgets.budget import Budget
from token_meter.budgets.command import command_of
from token_meter.budgets.holding import Key
from token_meter.budgets.snapshot import Snapshot
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import spend
from token_meter.money import plain

THRESHOLD: Final = "budget.threshold"
EXCEEDED: Final = "budget.exceeded"


def crossed(budget: Budget, spent: int, noted: int) -> list[int]:
    """The thresholds that so much spent has reached and nobody was told of."""
    limit = budget.parts_max
    return [each for each in budget.thresholds if each > noted and spent * 100 >= each * limit and spent > 0]


def tell_crossings(store: Store, connection: Connection, snapshot: Snapshot, keys: Iterable[Key]) -> int:
    """Write the notices that are missing for these counters, in this transaction; how many are new."""
    return sum(
        _tell(store, connection, snapshot.budgets[key[0]], key) for key in sorted(keys) if key[0] in snapshot.budgets
    )


def _tell(store: Store, connection: Connection, budget: Budget, key: Key) -> int:
    mine = (spend.c.budget == key[0]) & (spend.c.subject == key[1]) & (spend.c.start == key[2])
    row = connection.execute(select(spend.c.spent, spend.c.noted, spend.c.epoch).where(mine)).first()
    reached = [] if row is None else crossed(budget, row.spent, row.noted)
    if row is None or not reached:
        return 0
    connection.execute(spend.update().where(mine).values(noted=max(reached)))
    return sum(
        write_notice(
            store, connection, THRESHOLD, _key(THRESHOLD, budget, key, row.epoch, percent),
            {**about(budget, key, row.spent), "percent": percent,
             "message": f"{budget.whose(key[1])} has spent {percent} % of {budget.label!r}: "
                        f"{budget.shown(row.spent)} of {budget.shown(budget.parts_max)}"}, mode=budget.mode,
            customer=_customer(budget, key),
        )
        for percent in reached
    )  # fmt: skip


def tell_exceeded(
    store: Store, connection: Connection, budget: Budget, key: Key, period: int, details: dict[str, Any]
) -> bool:
    """Write that a budget has refused a call, once for each `period_of` it and limit; whether it is new."""
    mine = (spend.c.budget == key[0]) & (spend.c.subject == key[1]) & (spend.c.start == key[2])
    row = connection.execute(select(spend.c.spent, spend.c.epoch).where(mine)).first()
    if row is None:
        return False
    return write_notice(
        store, connection, EXCEEDED, _key(EXCEEDED, budget, (*key[:2], period), row.epoch, 0),
        {**about(budget, key, row.spent), **details}, mode=budget.mode, customer=_customer(budget, key),
    )  # fmt: skip


def period_of(budget: Budget, key: Key, now: int) -> int:
    """In which window a refusal falls: a rolling one has no beginning, so one of its length is told once."""
    return now // budget.window.length if budget.window.length else key[2]


def lower_noted(connection: Connection, budget: Budget) -> None:
    """The limit is another one: what it has not reached yet is told when it does."""
    rows = connection.execute(select(spend).where(spend.c.budget == budget.id, spend.c.noted > 0)).all()
    for row in rows:
        reached = max((each for each in budget.thresholds if row.spent * 100 >= each * budget.parts_max), default=0)
        if reached < row.noted:
            mine = (spend.c.budget == row.budget) & (spend.c.subject == row.subject) & (spend.c.start == row.start)
            connection.execute(spend.update().where(mine).values(noted=reached))


def find_untold(connection: Connection, snapshot: Snapshot, since: int) -> Sequence[Key]:
    """Counters of windows that began after a moment and may have crossed a threshold without being told."""
    query = select(spend.c.budget, spend.c.subject, spend.c.start, spend.c.spent, spend.c.noted)
    found = []
    for budget in snapshot.in_force:
        if budget.window.length:
            continue
        mine = query.where(spend.c.budget == budget.id, spend.c.spent > 0)
        if budget.window.kind != "lifetime":
            mine = mine.where(spend.c.start >= since)
        rows = connection.execute(mine).all()
        found += [(row[0], row[1], row[2]) for row in rows if crossed(budget, row.spent, row.noted)]
    return found


def about(budget: Budget, key: Key, spent: int) -> dict[str, Any]:
    """What a notice says of a budget."""
    return {
        "budget": budget.id,
        "label": budget.label,
        "subject": budget.whose(key[1]),
        "limit": plain(budget.limit),
        "spent": plain(budget.amount(spent)),
        "unit": budget.unit,
        "enforce": budget.enforce,
        "window": budget.window.shown,
        "since": None if key[2] < 0 else (EPOCH + MICROSECOND * key[2]).isoformat(),
        "change_it": command_of(budget),
    }


def _key(kind: str, budget: Budget, key: Key, epoch: int, percent: int) -> str:
    return "|".join(map(str, (kind, budget.id, key[1], key[2], epoch, plain(budget.limit), percent)))


def _customer(budget: Budget, key: Key) -> str | None:
    import json

    values = json.loads(key[1])
    named = dict(zip((name for name, _ in budget.scope), values, strict=True))
    return named.get("customer") or None
