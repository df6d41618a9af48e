"""The ledger: the append-only store of meter events, with rollups, in SQLite or PostgreSQL.

`Ledger` and its errors load SQLAlchemy when first asked for; the plain values do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from token_meter.ledger.values import (
    ANY,
    Conflict,
    Cursor,
    EventPage,
    LedgerSummary,
    Recorded,
    UsageRow,
)

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger
    from token_meter.ledger.store import LedgerError

__all__ = [
    "ANY",
    "Conflict",
    "Cursor",
    "EventPage",
    "Ledger",
    "LedgerError",
    "LedgerSummary",
    "Recorded",
    "UsageRow",
]


def __getattr__(name: str) -> Any:
    if name == "Ledger":
        from token_meter.ledger.ledger import Ledger

        return Ledger
    if name == "LedgerError":
        from token_meter.ledger.store import LedgerError

        return LedgerError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
