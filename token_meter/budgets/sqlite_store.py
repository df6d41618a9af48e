"""Holds in the ledger's SQLite file: one immediate transaction each, on a connection of their own.

`synchronous=NORMAL`: after a power failure the last holds may be gone, and so are the processes that made them. What
was spent is not: that is recorded with its event.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from decimal import ROUND_FLOOR, Decimal
from typing import Any, Final

from token_meter.billing.credit import pays_for, scope_of
from token_meter.budgets import holding
from token_meter.budgets.hold import (
    CREDIT_DECIMALS,
    LEVEL_MAX,
    MINE_MAX,
    Became,
    CreditAsk,
    Generation,
    Held,
    Level,
    Part,
    Request,
    Unreachable,
    Verdict,
    kept_parts,
    read_parts,
    simple_part,
)
from token_meter.budgets.holding import Counter, Key
from token_meter.errors import TokenMeterError
from token_meter.ledger.ledger import Ledger
from token_meter.ledger.tables import events, grants, holds, spend, state
from token_meter.ledger.text import to_stored
from token_meter.money import EXACT, total

_GENERATION: Final = f"SELECT budgets, catalogue FROM {state.name} WHERE id = 1"
_COUNTER: Final = f"SELECT spent, held, lost, noted FROM {spend.name} WHERE budget = ? AND subject = ? AND start = ?"
_ROLLING: Final = f"SELECT sum(spent) FROM {spend.name} WHERE budget = ? AND subject = ? AND start > ? AND start >= 0"
_RESERVE: Final = (
    f"UPDATE {spend.name} SET held = held + ? WHERE budget = ? AND subject = ? AND start = ? "
    "AND (? IS NULL OR spent + held + lost + ? <= ?)"
)
_ADD: Final = (
    f"UPDATE {spend.name} SET spent = spent + ?, held = held + ?, lost = lost + ? "
    "WHERE budget = ? AND subject = ? AND start = ?"
)
_BUCKET: Final = (
    f"INSERT INTO {spend.name} (budget, subject, start, spent, held, lost, noted, epoch) "
    "VALUES (?, ?, ?, ?, 0, 0, 0, 0) ON CONFLICT DO UPDATE SET spent = spent + excluded.spent"
)
_GET: Final = f"SELECT id, state, sent, created, expires, parts, who FROM {holds.name} WHERE id = ?"
_INSERT: Final = (
    f"INSERT INTO {holds.name} (id, state, sent, created, expires, parts, who) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING"
)
_CHANGE: Final = f"UPDATE {holds.name} SET state = ?, parts = ? WHERE id = ?"
_MOVE: Final = f"UPDATE OR REPLACE {holds.name} SET id = ?, state = ?, parts = ? WHERE id = ?"
_END: Final = f"UPDATE {holds.name} SET state = 'settled', parts = ? WHERE id = ? AND state = 'held'"
_EXPIRED: Final = f"SELECT id, sent FROM {holds.name} WHERE state = 'held' AND expires <= ? LIMIT 1000"
_RECORDED: Final = f"SELECT 1 FROM {events.name} WHERE id = ? AND NOT (status = 'unmetered' AND usage = '{{}}')"
_GRANTS: Final = (
    f"SELECT remaining, scope FROM {grants.name} WHERE mode = ? AND customer = ? AND currency = ? "
    "AND effective <= ? AND (expires IS NULL OR expires > ?)"
)


Execute = Callable[..., sqlite3.Cursor]


class SqliteHolds:
    """A HoldStore in the ledger's own file."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._mine: dict[str, Part] = {}

    def hold(self, request: Request) -> Verdict:
        """Reserve all parts or none."""
        part = simple_part(request)
        if part is not None and self._in_one(lambda execute: _hold_one(execute, request, part)):
            if len(self._mine) >= MINE_MAX:
                self._mine.clear()  # they end in the longer way
            self._mine[request.id] = part
            return Verdict("held")
        return self._alone(lambda rows: holding.hold(rows, request))  # type: ignore[no-any-return]

    def settle(self, id: str, became: Became, amounts: Sequence[int] = (), *, event: str | None = None) -> list[Level]:
        """End a hold, once."""
        part = self._mine.pop(id, None)
        if part is not None and became == "settled" and event in (None, id):
            found = self._in_one(lambda execute: _settle_one(execute, id, part, amounts[0]))
            if found:
                return [Level(*part.key, found[0], found[3])] if amounts[0] else []
        return self._alone(  # type: ignore[no-any-return]
            lambda rows: holding.settle(rows, id, became, amounts, event)
        )

    def charge(self, request: Request) -> list[Level]:
        """Count what was spent without a hold."""
        return self._alone(lambda rows: holding.charge(rows, request))  # type: ignore[no-any-return]

    def mark_sent(self, ids: Sequence[str]) -> None:
        """From here on the provider may have got these requests."""
        self._alone(lambda rows: rows.mark_sent(ids))

    def sweep(self, now: int) -> tuple[int, int]:
        """Look after holds that have expired."""
        given_back = lost = 0
        while True:
            found = self._alone(lambda rows: rows.sweep(now))
            given_back, lost = given_back + found[0], lost + found[1]
            if not any(found):
                return given_back, lost

    def _in_one(self, action: Callable[[Execute], Any]) -> Any:
        """Do the usual case in few statements; what it comes to, or nothing, and then nothing has happened."""

        deadline = time.monotonic() + BUSY_SECONDS

        def step(connection: sqlite3.Connection) -> Any:
            execute = connection.execute
            _begin(connection, deadline)
            try:
                done = action(execute)
            except BaseException:
                execute("ROLLBACK")
                raise
            execute("COMMIT" if done else "ROLLBACK")
            return done

        try:
            return self._ledger.quickly(step)
        except TokenMeterError as problem:
            raise Unreachable(str(problem)) from problem

    def _alone(self, action: Callable[[_Rows], Any]) -> Any:
        deadline = time.monotonic() + BUSY_SECONDS

        def step(connection: sqlite3.Connection) -> Any:
            _begin(connection, deadline)
            try:
                result = action(_Rows(connection))
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result

        try:
            return self._ledger.quickly(step)
        except TokenMeterError as problem:
            raise Unreachable(str(problem)) from problem


BUSY_SECONDS: Final = 3.0
"""So long a hold waits for whoever writes, such as a reporter that records a batch; in line behind others as well."""

POLL_SECONDS: Final = 0.001
"""SQLite's own waiting sleeps a tenth of a second at a time, and misses its turn."""


def _begin(connection: sqlite3.Connection, deadline: float) -> None:
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def _hold_one(execute: Execute, request: Request, part: Part) -> bool:
    if request.generation is not None and execute(_GENERATION).fetchone() != request.generation:
        return False
    if execute(_RESERVE, (part.amount, *part[:3], part.limit, part.amount, part.limit)).rowcount != 1:
        return False
    row = (request.id, "held", request.sent, request.now, request.expires, kept_parts(request.parts), request.who)
    return bool(execute(_INSERT, row).rowcount == 1)


def _settle_one(execute: Execute, id: str, part: Part, amount: int) -> Counter | None:
    if execute(_END, (kept_parts((part._replace(amount=amount),)), id)).rowcount != 1:
        return None
    execute(_ADD, (amount, -part.amount, 0, *part[:3]))
    return execute(_COUNTER, part[:3]).fetchone()  # type: ignore[no-any-return]


class _Rows:
    """`holding.Rows` on a connection that is inside a transaction."""

    __slots__ = ("_execute",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def generation(self) -> Generation:
        return self._execute(_GENERATION).fetchone()  # type: ignore[no-any-return]

    def counter(self, key: Key) -> Counter | None:
        return self._execute(_COUNTER, key).fetchone()  # type: ignore[no-any-return]

    def rolling(self, budget: str, subject: str, after: int) -> int:
        return self._execute(_ROLLING, (budget, subject, after)).fetchone()[0] or 0

    def reserve(self, key: Key, amount: int, limit: int | None) -> bool:
        return self._execute(_RESERVE, (amount, *key, limit, amount, limit)).rowcount == 1

    def add(self, key: Key, spent: int, held: int, lost: int) -> Counter | None:
        self._execute(_ADD, (spent, held, lost, *key))
        return self.counter(key)

    def add_bucket(self, budget: str, subject: str, bucket: int, spent: int) -> None:
        self._execute(_BUCKET, (budget, subject, bucket, spent))

    def balance(self, credit: CreditAsk, now: int) -> int:
        place = tuple(credit.place.get(name) for name in ("meter", "provider", "model", "token_type"))
        who = (credit.mode, to_stored(credit.customer), credit.currency, now, now)
        usable = [
            Decimal(remaining)
            for remaining, scope in self._execute(_GRANTS, who)
            if not scope or pays_for(scope_of(json.loads(scope)), place)
        ]
        left = int(EXACT.multiply(total(usable), 10**CREDIT_DECIMALS).to_integral_value(rounding=ROUND_FLOOR))
        return min(left, LEVEL_MAX)

    def get(self, id: str) -> Held | None:
        row = self._execute(_GET, (id,)).fetchone()
        return None if row is None else Held(row[0], row[1], bool(row[2]), row[3], row[4], read_parts(row[5]), row[6])

    def insert(self, hold: Held) -> bool:
        row = (hold.id, hold.state, hold.sent, hold.created, hold.expires, kept_parts(hold.parts), hold.who)
        return self._execute(_INSERT, row).rowcount == 1

    def change(self, id: str, hold: Held) -> None:
        if hold.id == id:
            self._execute(_CHANGE, (hold.state, kept_parts(hold.parts), id))
        else:
            self._execute(_MOVE, (hold.id, hold.state, kept_parts(hold.parts), id))

    def delete(self, id: str) -> None:
        self._execute(f"DELETE FROM {holds.name} WHERE id = ?", (id,))

    def is_recorded(self, event: str) -> bool:
        return self._execute(_RECORDED, (event,)).fetchone() is not None

    def mark_sent(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._execute(f"UPDATE {holds.name} SET sent = 1 WHERE id = ?", (id,))

    def sweep(self, now: int) -> tuple[int, int]:
        expired = self._execute(_EXPIRED, (now,)).fetchall()
        for id, sent in expired:
            holding.settle(self, id, "lost" if sent else "released", (), None)
        return sum(not sent for _, sent in expired), sum(sent for _, sent in expired)
