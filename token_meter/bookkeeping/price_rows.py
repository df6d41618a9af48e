"""The price rows that a ledger has beside the shipped book: synced, corrected, held and rejected. They only grow."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, func, select

from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import prices
from token_meter.prices.price import Price, Status


def read_rows(connection: Connection) -> list[Price]:
    """Every row as it stands now: of those with one id the last one says what became of it."""
    last = select(func.max(prices.c.number)).group_by(prices.c.price)
    found = connection.execute(select(prices).where(prices.c.number.in_(last)).order_by(prices.c.number))
    return [_price(row) for row in found]


def read_history(connection: Connection) -> list[Price]:
    """Every row and every decision about it, in the order in which they were recorded."""
    return [_price(row) for row in connection.execute(select(prices).order_by(prices.c.number))]


def write_rows(connection: Connection, rows: Sequence[Price], *, recorded: int | None = None) -> None:
    """Add rows, recorded now."""
    now = time.time_ns() // 1000 if recorded is None else recorded
    if rows:
        connection.execute(
            prices.insert(),
            [
                {
                    "price": each.id,
                    "provider": each.provider,
                    "model": each.model,
                    "status": each.status,
                    "recorded": now,
                    "document": json.dumps(each.to_json(), sort_keys=True),
                }
                for each in rows
            ],
        )


def decide(connection: Connection, price: Price, status: Status) -> Price:
    """What became of a row: another row that says so."""
    decided = replace(price, status=status)
    write_rows(connection, [decided])
    return decided


def _price(row: object) -> Price:
    price = Price.from_json(json.loads(row.document))  # type: ignore[attr-defined]
    recorded = EPOCH + MICROSECOND * row.recorded  # type: ignore[attr-defined]
    return replace(price, recorded_at=recorded, status=row.status)  # type: ignore[attr-defined]
