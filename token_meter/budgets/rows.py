"""Counters of budgets as rows of the ledger, in transactions that also record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection, bindparam

from token_meter.budgets.holding import Key
from token_meter.ledger.store import Store
from token_meter.ledger.tables import spend

_SPEND: tuple[str, str, str] = ("budget", "subject", "start")


_CARRIED: Final = "~"


def carry_key(budget: str, subject: str, start: int) -> Key:
    """Where it is kept how much of what is recorded in a window was counted in the one before."""
    return (budget + _CARRIED, subject, start)


def carried_for(key: Key) -> Key:
    """The counter that a `carry_key` is about."""
    return (key[0].removesuffix(_CARRIED), *key[1:])


def make_counters(store: Store, connection: Connection, counters: Sequence[tuple[Key, int]]) -> None:
    """Have counters of these keys, those that are not there with so much spent."""
    rows = [
        {"budget": key[0], "subject": key[1], "start": key[2], "spent": spent, "held": 0, "lost": 0, "noted": 0,
         "epoch": 0}
        for key, spent in sorted(counters)
    ]  # fmt: skip
    store.insert_missing(connection, spend, rows)


def add_to_counters(connection: Connection, deltas: Iterable[tuple[Key, tuple[int, int, int]]]) -> None:
    """Add (spent, held, lost) to counters that are there. In the order of their keys: so writers never wait in a
    circle."""
    mine = (spend.c.budget == bindparam("b")) & (spend.c.subject == bindparam("s")) & (spend.c.start == bindparam("t"))
    statement = spend.update().where(mine).values(
        spent=spend.c.spent + bindparam("spent_"),
        held=spend.c.held + bindparam("held_"),
        lost=spend.c.lost + bindparam("lost_"),
    )  # fmt: skip
    rows = [
        {"b": key[0], "s": key[1], "t": key[2], "spent_": spent, "held_": held, "lost_": lost}
        for key, (spent, held, lost) in sorted(deltas)
        if spent or held or lost
    ]
    if rows:
        connection.execute(statement, rows)
