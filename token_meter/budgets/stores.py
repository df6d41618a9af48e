"""The store of holds that belongs to a ledger."""

from __future__ import annotations

from token_meter.budgets.hold import HoldStore
from token_meter.ledger.ledger import Ledger


def holds_of(ledger: Ledger) -> HoldStore:
    """The holds in a ledger's own database."""
    if ledger.file is not None:
        from token_meter.budgets.sqlite_store import SqliteHolds

        return SqliteHolds(ledger)
    from token_meter.budgets.postgresql_store import PostgresqlHolds

    return PostgresqlHolds(ledger)
