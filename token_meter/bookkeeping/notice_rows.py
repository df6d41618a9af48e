"""Notices: what somebody should know or do, written once per occasion in the transaction that found it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, func, select

from token_meter.billing.credit import CreditGrant
from token_meter.bookkeeping.credit_rows import read_grants
from token_meter.bookkeeping.settings import read_setting
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import grants, notices
from token_meter.ledger.text import from_stored, to_stored
from token_meter.money import ZERO, decimal_of, plain, total

DEPLETED: Final = "credit.depleted"
RECHARGE: Final = "credit_recharge"
"""The setting with the rules, by mode and customer."""


def write_notice(
    store: Store,
    connection: Connection,
    kind: str,
    key: str,
    document: Mapping[str, Any],
    *,
    mode: str = "live",
    customer: str | None = None,
) -> bool:
    """Write a notice unless it is there; whether it is new. `key` is its idempotency key for whoever acts on it."""
    row = {
        "kind": kind, "key": key, "mode": mode, "customer": None if customer is None else to_stored(customer),
        "recorded": time.time_ns() // 1000, "document": json.dumps(dict(document), sort_keys=True),
    }  # fmt: skip
    return store.insert_if_missing(connection, notices, row)


def read_notices(connection: Connection, after: int = 0) -> list[dict[str, Any]]:
    """Notices behind a number, oldest first."""
    query = select(notices).where(notices.c.number > after).order_by(notices.c.number)
    return [
        {
            "number": row.number,
            "kind": row.kind,
            "key": row.key,
            "mode": row.mode,
            "customer": None if row.customer is None else from_stored(row.customer),
            "recorded": (EPOCH + MICROSECOND * row.recorded).isoformat(timespec="seconds"),
            "document": json.loads(row.document),
        }
        for row in connection.execute(query)
    ]


def note_recharge(store: Store, connection: Connection, mode: str, customer: str, currency: str) -> None:
    """A customer whose balance fell below the threshold of their rule should be charged for more credit."""
    rules = read_setting(connection, RECHARGE) or {}
    rule = rules.get(f"{mode}/{customer}")
    if rule is None or rule["currency"] != currency:
        return
    mine = read_grants(connection, mode, customer)
    left = balance_of(mine, currency)
    if left >= decimal_of(rule["threshold"], "threshold"):
        return
    # One notice for each level that the grants were at: a new purchase makes another one possible.
    last = connection.execute(
        select(func.max(grants.c.recorded)).where(grants.c.mode == mode, grants.c.customer == to_stored(customer))
    ).scalar()
    document = {"customer": customer, "balance": plain(left), "currency": currency, **rule}
    key = f"recharge|{mode}|{customer}|{last}"
    write_notice(store, connection, "credit.recharge", key, document, mode=mode, customer=customer)


def balance_of(mine: list[CreditGrant], currency: str) -> Any:
    """What can be used now."""
    now = EPOCH + MICROSECOND * (time.time_ns() // 1000)
    return total([grant.remaining for grant in mine if grant.currency == currency and grant.usable_at(now)] or [ZERO])


def note_depleted(store: Store, connection: Connection, mode: str, customer: str, currency: str, message: str) -> bool:
    """A customer's credit did not cover a call: told once for each level that their grants were at."""
    last = connection.execute(
        select(func.max(grants.c.recorded)).where(grants.c.mode == mode, grants.c.customer == to_stored(customer))
    ).scalar()
    document = {
        "customer": customer, "currency": currency, "message": message,
        "balance": plain(balance_of(read_grants(connection, mode, customer), currency)),
        "what_now": f"calls are refused. token-meter credits grant {customer} AMOUNT, or "
        f"token-meter credits policy {customer} overage",
    }  # fmt: skip
    key = f"{DEPLETED}|{mode}|{customer}|{currency}|{last}"
    return write_notice(store, connection, DEPLETED, key, document, mode=mode, customer=customer)
