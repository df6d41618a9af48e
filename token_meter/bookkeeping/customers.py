"""Whoever is subscribed or granted credit is in the customer book: fees and packs are invoiced to everybody in it."""

from __future__ import annotations

from sqlalchemy import Connection

from token_meter.ledger.store import Store
from token_meter.ledger.tables import customers
from token_meter.ledger.text import to_stored


def enter(store: Store, connection: Connection, *, mode: str, customer: str, moment: int) -> None:
    """Enter a customer who is not in the book yet."""
    row = {"mode": mode, "id": to_stored(customer), "status": "active", "created": moment, "updated": moment}
    store.insert_missing(connection, customers, [row])
