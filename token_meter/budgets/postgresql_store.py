"""Holds in the ledger's PostgreSQL: a function in the database for each step, so that it costs one round trip.

`synchronous_commit=off`: when the server fails, holds of the last fraction of a second may be gone; what was spent is
recorded with its event.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from token_meter.budgets.hold import (
    CREDIT_DECIMALS,
    MINE_MAX,
    Became,
    Level,
    Part,
    Request,
    Unreachable,
    Verdict,
    kept_parts,
    simple_part,
)
from token_meter.errors import TokenMeterError
from token_meter.ledger.ledger import Ledger
from token_meter.ledger.store import StatementRefused
from token_meter.ledger.tables import holds, spend, state
from token_meter.ledger.text import to_stored

# The usual case, one budget with a calendar window, in one statement: all of it happens or nothing does. Whatever
# else is the matter (no room, no counter, another state of the budgets), the function finds out. Numbers go as text:
# the driver would choose a type by their size, and the server prepare the statement anew for each.
_HOLD_ONE: Final = f"""
WITH reserved AS (
    UPDATE {spend.name} AS s SET held = s.held + %s::bigint
    WHERE s.budget = %s AND s.subject = %s AND s.start = %s::bigint
      AND s.spent + s.held + s.lost + %s::bigint <= %s::bigint
      AND EXISTS (
          SELECT 1 FROM {state.name} WHERE id = 1
          AND (%s::bigint IS NULL OR (budgets = %s::bigint AND catalogue = %s::bigint))
      )
    RETURNING 1
)
INSERT INTO {holds.name} (id, state, sent, created, expires, parts, who)
SELECT %s, 'held', %s::int, %s::bigint, %s::bigint, %s, %s FROM reserved RETURNING 1
"""
_SETTLE_ONE: Final = f"""
WITH ended AS (
    UPDATE {holds.name} SET state = 'settled', parts = %s WHERE id = %s AND state = 'held' RETURNING 1
)
UPDATE {spend.name} AS s SET held = s.held - %s::bigint, spent = s.spent + %s::bigint
WHERE s.budget = %s AND s.subject = %s AND s.start = %s::bigint AND EXISTS (SELECT 1 FROM ended)
RETURNING s.spent, s.noted
"""
UNIQUE_VIOLATION: Final = "23505"
_HOLD: Final = "SELECT token_meter_hold(%s)"
_SETTLE: Final = "SELECT token_meter_settle(%s)"
_CHARGE: Final = "SELECT token_meter_charge(%s, %s::jsonb, %s, %s)"
_SENT: Final = f"UPDATE {holds.name} SET sent = 1 WHERE id = ANY(%s)"
_EXPIRED: Final = f"SELECT id, sent FROM {holds.name} WHERE state = 'held' AND expires <= %s ORDER BY id LIMIT 1000"


_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class PostgresqlHolds:
    """A HoldStore in the ledger's own database."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._mine: dict[str, Part] = {}

    def hold(self, request: Request) -> Verdict:
        """Reserve all parts or none."""
        return Verdict("held") if self._hold_one(request) else self._hold(request)

    def _hold_one(self, request: Request) -> bool:
        """The usual case; False: it is none, or does not fit."""
        part = simple_part(request)
        if part is None:
            return False
        budgets, catalogue = map(str, request.generation) if request.generation is not None else (None, None)
        amount = str(part.amount)
        asked = (
            amount, part.budget, part.subject, str(part.start), amount, str(part.limit), budgets, budgets, catalogue,
            request.id, "1" if request.sent else "0", str(request.now), str(request.expires),
            kept_parts(request.parts), request.who,
        )  # fmt: skip
        held = bool(self._run(_HOLD_ONE, asked, fetch=True, again_is=[(1,)]))
        if held:
            if len(self._mine) >= MINE_MAX:
                self._mine.clear()  # they end in the longer way
            self._mine[request.id] = part
        return held

    def _hold(self, request: Request) -> Verdict:
        credit = request.credit
        asked = None
        if credit is not None:
            asked = {
                "mode": credit.mode, "customer": to_stored(credit.customer), "currency": credit.currency,
                "place": dict(credit.place), "decimals": CREDIT_DECIMALS,
            }  # fmt: skip
        # One text: each parameter more would cost the driver as much as the database needs for the whole step.
        said = self._ask(_HOLD, _encode([
            request.id, request.generation, request.parts, asked, request.now, request.expires, int(request.sent),
            kept_parts(request.parts), request.who,
        ]))  # fmt: skip
        if not said:
            return Verdict("held")
        found = json.loads(said)
        place = found.get("place", 0)
        if found["is"] != "refused":
            return Verdict(found["is"], place)
        return Verdict("refused", place, int(found["spent"]), found["held"], found["lost"], int(found["limit"]))

    def settle(self, id: str, became: Became, amounts: Sequence[int] = (), *, event: str | None = None) -> list[Level]:
        """End a hold, once."""
        part = self._mine.pop(id, None)
        if part is not None and became == "settled" and event in (None, id):
            [amount] = amounts
            parts = kept_parts([part._replace(amount=amount)])
            asked = (parts, id, str(part.amount), str(amount), part.budget, part.subject, str(part.start))
            rows = self._run(_SETTLE_ONE, asked, fetch=True)
            if rows:
                return [Level(*part.key, *rows[0])] if amount else []
        said = self._ask(_SETTLE, _encode([id, event or id, became, list(amounts)]))
        return [Level(*each) for each in json.loads(f"[{said[1:]}]")]

    def charge(self, request: Request) -> list[Level]:
        """Count what was spent without a hold."""
        parameters = (request.id, json.dumps(request.parts), request.now, request.who)
        levels = self._run(_CHARGE, parameters, fetch=True)[0][0]
        return [Level(*each) for each in levels]

    def mark_sent(self, ids: Sequence[str]) -> None:
        """From here on the provider may have got these requests."""
        self._run(_SENT, (list(ids),))

    def sweep(self, now: int) -> tuple[int, int]:
        """Look after holds that have expired."""
        given_back = lost = 0
        while expired := self._run(_EXPIRED, (now,), fetch=True):
            for id, sent in expired:
                self.settle(id, "lost" if sent else "released")
                given_back, lost = given_back + (not sent), lost + bool(sent)
        return given_back, lost

    def _ask(self, statement: str, asked: str) -> str:
        found: str = self._run(statement, (asked,), fetch=True)[0][0]
        return found

    def _run(self, statement: str, parameters: tuple[Any, ...], *, fetch: bool = False, again_is: Any = None) -> Any:
        """Run a statement. `again_is`: what it comes to where a row of its key is there already."""

        def step(connection: Any) -> Any:
            try:
                cursor = connection.execute(statement, parameters, prepare=True)
            except Exception as error:
                if again_is is not None and getattr(error, "sqlstate", None) == UNIQUE_VIOLATION:
                    return again_is
                raise
            return cursor.fetchall() if fetch else None

        try:
            return self._ledger.quickly(step)
        except StatementRefused:
            raise
        except TokenMeterError as problem:
            raise Unreachable(str(problem)) from problem
