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
    Became,
    Level,
    Request,
    Unreachable,
    Verdict,
    kept_parts,
)
from token_meter.errors import TokenMeterError
from token_meter.ledger.ledger import Ledger
from token_meter.ledger.tables import holds
from token_meter.ledger.text import to_stored

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

    def hold(self, request: Request) -> Verdict:
        """Reserve all parts or none."""
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

    def _run(self, statement: str, parameters: tuple[Any, ...], *, fetch: bool = False) -> Any:
        def step(connection: Any) -> Any:
            cursor = connection.execute(statement, parameters, prepare=True)
            return cursor.fetchall() if fetch else None

        try:
            return self._ledger.quickly(step)
        except TokenMeterError as problem:
            raise Unreachable(str(problem)) from problem
