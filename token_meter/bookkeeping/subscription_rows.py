"""Subscriptions as rows of the ledger: written once, ended, cancelled; never removed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from token_meter.billing.plans import Subscription, overlapping
from token_meter.errors import InvalidPlan
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import subscriptions
from token_meter.ledger.text import from_stored, to_stored


def read_subscriptions(
    connection: Connection, *, customer: str | None = None, mode: str | None = None, with_cancelled: bool = False
) -> list[Subscription]:
    """The subscriptions, the earliest first; of one customer, of one mode, or all."""
    wanted = select(subscriptions).order_by(subscriptions.c.start, subscriptions.c.recorded, subscriptions.c.id)
    if customer is not None:
        wanted = wanted.where(subscriptions.c.customer == to_stored(customer))
    if mode is not None:
        wanted = wanted.where(subscriptions.c.mode == mode)
    if not with_cancelled:
        wanted = wanted.where(subscriptions.c.cancelled.is_(None))
    return [_subscription_of(row) for row in connection.execute(wanted)]


def read_subscription(connection: Connection, id: str) -> Subscription | None:
    """One subscription, also a cancelled one."""
    row = connection.execute(select(subscriptions).where(subscriptions.c.id == id)).first()
    return None if row is None else _subscription_of(row)


def insert_subscription(connection: Connection, made: Subscription) -> None:
    """Write a subscription; one without an end that is there already ends where this one starts.

    Raises InvalidPlan for a span that overlaps with another one's, or ends before it starts.
    """
    if made.stop is not None and made.stop <= made.start:
        raise InvalidPlan(f"a subscription must end after it starts: {made.start} .. {made.stop}")
    theirs = read_subscriptions(connection, customer=made.customer, mode=made.mode)
    for place, each in enumerate(theirs):
        if each.stop is None and each.start < made.start:
            stop_subscription(connection, each, made.start, by=made)
            theirs[place] = replace(each, stop=made.start)
    clash = overlapping(made, theirs)
    if clash is not None:
        raise InvalidPlan(_told(made, clash))
    connection.execute(
        subscriptions.insert(),
        {
            "id": made.id, "mode": made.mode, "customer": to_stored(made.customer), "plan": to_stored(made.plan),
            "version": made.version, "start": _micros(made.start),
            "stop": None if made.stop is None else _micros(made.stop),
            "recorded": _micros(made.created or made.start),
        },
    )  # fmt: skip


def stop_subscription(
    connection: Connection, subscription: Subscription, moment: datetime | None, *, by: Subscription | None = None
) -> None:
    """End a subscription, or let it go on (None); `by`: because that one begins."""
    mine = subscriptions.update().where(subscriptions.c.id == subscription.id)
    stop = None if moment is None else _micros(moment)
    connection.execute(mine.values(stop=stop, ended_by=None if by is None else by.id))


def cancel_subscription(connection: Connection, cancelled: Subscription, now: datetime) -> Subscription | None:
    """Mark a subscription as cancelled; the one that it ended goes on, up to where it ended. Returns that one."""
    mine = subscriptions.update().where(subscriptions.c.id == cancelled.id)
    connection.execute(mine.values(cancelled=_micros(now)))
    row = connection.execute(
        select(subscriptions).where((subscriptions.c.ended_by == cancelled.id) & subscriptions.c.cancelled.is_(None))
    ).first()
    if row is None:
        return None
    before = _subscription_of(row)
    theirs = read_subscriptions(connection, customer=cancelled.customer, mode=cancelled.mode)
    later = [each for each in theirs if each.start >= cancelled.start]
    heir = min(later, key=lambda each: each.start, default=None)
    stop_subscription(connection, before, None if heir is None else heir.start, by=heir)
    return replace(before, stop=None if heir is None else heir.start)


def _told(made: Subscription, clash: Subscription) -> str:
    until = f"until {clash.stop:%Y-%m-%d %H:%M}" if clash.stop else "without an end"
    return (
        f"{made.customer} has {clash.plan}@{clash.version} from {clash.start:%Y-%m-%d %H:%M} {until}: end that first, "
        f"cancel it (`token-meter plans cancel {clash.id}`), or choose another start"
    )


def _subscription_of(row: Any) -> Subscription:
    return Subscription(
        id=row.id,
        customer=from_stored(row.customer),
        plan=from_stored(row.plan),
        version=row.version,
        start=_time(row.start),
        stop=None if row.stop is None else _time(row.stop),
        mode=row.mode,
        created=_time(row.recorded),
        cancelled=None if row.cancelled is None else _time(row.cancelled),
    )


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND


def _time(micros: int) -> datetime:
    return EPOCH + MICROSECOND * micros
