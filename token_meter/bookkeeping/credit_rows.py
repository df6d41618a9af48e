"""Grants and their journal as rows of the ledger."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select

from token_meter.billing.credit import (
    DEFERRED,
    REVENUE,
    CreditGrant,
    Entry,
    Part,
    check_balanced,
    lessening,
    scope_of,
)
from token_meter.billing.invoice import Bought
from token_meter.billing.plans import Period
from token_meter.errors import InvalidCredit
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import entries, grants
from token_meter.ledger.text import from_stored, to_stored
from token_meter.money import EXACT, ZERO, plain, total


def read_grants(connection: Connection, mode: str, customer: str, *, locked: bool = False) -> list[CreditGrant]:
    """The grants of a customer. `locked`: nobody else draws from them until this transaction ends."""
    mine = (grants.c.mode == mode) & (grants.c.customer == to_stored(customer))
    query = select(grants).where(mine).order_by(grants.c.id)
    return [grant_of(row) for row in connection.execute(query.with_for_update() if locked else query)]


def grant_of(row: Any) -> CreditGrant:
    """A row as a grant."""
    return CreditGrant(
        id=row.id,
        customer=from_stored(row.customer),
        amount=Decimal(row.amount),
        currency=row.currency,
        effective=EPOCH + MICROSECOND * row.effective,
        created=EPOCH + MICROSECOND * row.recorded,
        kind=row.kind,
        price=Decimal(row.price),
        priority=row.priority,
        expires=None if row.expires is None else EPOCH + MICROSECOND * row.expires,
        mode=row.mode,
        title=row.title,
        remaining=Decimal(row.remaining),
        drawn=Decimal(row.drawn),
        scope=scope_of(json.loads(row.scope)) if row.scope else (),
    )


def insert_grant(store: Store, connection: Connection, grant: CreditGrant) -> bool:
    """Insert a grant unless one of its id is there; whether it is new. Its posting is written by `post`."""
    row = {
        "id": grant.id, "mode": grant.mode, "customer": to_stored(grant.customer), "kind": grant.kind,
        "currency": grant.currency, "amount": plain(grant.amount), "price": plain(grant.price),
        "priority": grant.priority, "effective": micros(grant.effective),
        "expires": None if grant.expires is None else micros(grant.expires), "recorded": micros(grant.created),
        "title": grant.title, "remaining": plain(grant.amount), "drawn": "0",
        "scope": json.dumps(dict(grant.scope), sort_keys=True) if grant.scope else None,
    }  # fmt: skip
    return store.insert_if_missing(connection, grants, row)


def post(
    connection: Connection,
    posted: Sequence[Entry],
    grants_touched: Iterable[CreditGrant],
    *,
    kind: str,
    reason: str,
    service: int | None = None,
) -> None:
    """Write a posting and bring the projections of its grants up to date. Raises InvalidCredit if it does not balance,
    or if a grant would go below zero: then nothing is written."""
    check_balanced(posted)
    known = {grant.id: grant for grant in grants_touched}
    posting, now = uuid.uuid4().hex, time.time_ns() // 1000
    rows = [
        {
            "posting": posting, "kind": kind, "mode": known[each.grant].mode,
            "customer": to_stored(known[each.grant].customer), "grant_id": each.grant, "account": each.account,
            "currency": known[each.grant].currency, "amount": plain(each.amount), "service": service, "recorded": now,
            "reason": reason,
        }
        for each in posted
        if each.amount
    ]  # fmt: skip
    if rows:
        connection.execute(entries.insert(), rows)
    for grant in known.values():
        _project(connection, grant, [each for each in posted if each.grant == grant.id], kind)


def _project(connection: Connection, grant: CreditGrant, mine: Sequence[Entry], kind: str) -> None:
    if kind == "grant":
        return
    less = total(each.amount for each in mine if each.account == DEFERRED)
    drawn = EXACT.minus(total(each.amount for each in mine if each.account == REVENUE))
    remaining = EXACT.subtract(grant.remaining, less)
    if remaining < ZERO or remaining > grant.amount:
        raise InvalidCredit(f"grant {grant.id} would have {remaining} of {grant.amount} left")
    values = {"remaining": plain(remaining), "drawn": plain(EXACT.add(grant.drawn, drawn))}
    connection.execute(grants.update().where(grants.c.id == grant.id).values(**values))


def bought_in(
    mine: Iterable[CreditGrant],
    period: Period,
    currency: str,
    owed: Callable[[CreditGrant], Decimal],
    told: Mapping[str, Decimal],
) -> list[Bought]:
    """The packs among a customer's grants that were bought in a period, and what is owed for them and on no invoice yet
    (`told` is what is). Below zero where a pack was taken back after it had been invoiced."""
    bought = []
    for grant in sorted(mine, key=lambda each: (each.created, each.id)):
        inside = period.start <= grant.created < period.stop
        if grant.price > ZERO and grant.currency == currency and (inside or grant.id in told):
            amount = EXACT.subtract(owed(grant), told.get(grant.id, ZERO))
            title = grant.title if amount > ZERO else f"{grant.title}, taken back"
            bought += [Bought(grant.id, title, amount)] if amount else []
    return bought


def settle(
    connection: Connection, mode: str, customer: str, stop: datetime, missing: Mapping[str, Decimal], number: str
) -> None:
    """Draw what an invoice uses of each grant beyond what its usage has drawn; give back what was drawn beyond that
    (below zero)."""
    known = {grant.id: grant for grant in read_grants(connection, mode, customer, locked=True)}
    parts = [Part(known[id], amount) for id, amount in sorted(missing.items())]
    post(
        connection, lessening(parts, "settle"), [grant for grant, _ in parts], kind="settle",
        reason=f"invoice {number}", service=micros(stop) - 1,
    )  # fmt: skip


def micros(moment: datetime) -> int:
    """Microseconds since 1970 in UTC."""
    return (moment - EPOCH) // MICROSECOND
