"""Reading events, pages of events, conflicts and totals."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, FromClause, Select, func, select, tuple_

from token_meter.event import MeterEvent
from token_meter.ledger.rows import EPOCH, MICROSECOND, event_of
from token_meter.ledger.store import Store
from token_meter.ledger.tables import EVENTS, conflicts, days, dimensions, events, series
from token_meter.ledger.text import from_stored, to_stored
from token_meter.ledger.values import Conflict, Cursor, Filters, LedgerSummary, Search

Order: TypeAlias = Literal["asc", "desc"]


def matching(store: Store, table: FromClause, filters: Filters) -> list[ColumnElement[bool]]:
    """These filters as conditions on `events` or on `series`, which name their columns alike."""
    conditions = [_is(table.c[name], value) for name, value in filters.columns().items()]
    for name, value in filters.dimensions.items():
        conditions.append(_is(store.member(table.c.dimensions, to_stored(name)), value))
    return conditions


def _is(column: ColumnElement[Any], value: str | None) -> ColumnElement[bool]:
    return column.is_(None) if value is None else column == to_stored(value)


def total_of(high: Any, low: Any) -> int:
    """The sum whose two halves a database summed (PostgreSQL sums to exact decimals)."""
    return (int(high) << 32) + int(low)


def read_events(
    store: Store,
    connection: Connection,
    search: Search,
    *,
    after: Cursor | None,
    order: Order,
    limit: int,
) -> list[MeterEvent]:
    """At most `limit` events in the order (time, id), from behind the cursor on."""
    place = tuple_(events.c.time, events.c.id)
    query = select(events).where(*selected(store, search))
    if after is not None:
        there = tuple_(after.time, after.id)
        query = query.where(place > there if order == "asc" else place < there)
    query = _ordered(query, order).limit(limit)
    return [event_of(row) for row in connection.execute(query)]


def selected(store: Store, search: Search) -> list[ColumnElement[bool]]:
    """A whole search as conditions on `events`."""
    conditions = matching(store, events, search.filters)
    if search.since is not None:
        conditions.append(events.c.time >= search.since)
    if search.until is not None:
        conditions.append(events.c.time < search.until)
    return conditions


def _ordered(query: Select[Any], order: Order) -> Select[Any]:
    if order == "asc":
        return query.order_by(events.c.time, events.c.id)
    if order == "desc":
        return query.order_by(events.c.time.desc(), events.c.id.desc())
    raise ValueError(f"order must be 'asc' or 'desc', not {order!r}")


def cursor_of(event: MeterEvent) -> Cursor:
    """The place of this event in the order (time, id)."""
    return Cursor((event.time - EPOCH) // MICROSECOND, to_stored(event.id))


def read_conflicts(connection: Connection, limit: int) -> list[Conflict]:
    """The latest conflicts and superseded placeholders, newest first."""
    query = (
        select(conflicts.c.kind, conflicts.c.recorded, conflicts.c.event_id, conflicts.c.document)
        .order_by(conflicts.c.recorded.desc(), conflicts.c.event_id, conflicts.c.digest)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    kept = {row.event_id: read_event(connection, row.event_id) for row in rows}
    return [
        Conflict(
            id=from_stored(row.event_id),
            kind=row.kind,
            recorded=EPOCH + MICROSECOND * row.recorded,
            kept=kept[row.event_id],
            offered=MeterEvent.from_json(json.loads(row.document)),
        )
        for row in rows
    ]


def read_event(connection: Connection, identity: str) -> MeterEvent | None:
    """The event with this id, as it is stored; None if there is none."""
    row = connection.execute(select(events).where(events.c.id == identity)).first()
    return None if row is None else event_of(row)


def read_bounds(connection: Connection) -> tuple[int, int] | None:
    """The first and the last time of any event, None if there is none."""
    # One subquery each: together SQLite would read every event instead of both ends of the index.
    first = select(func.min(events.c.time)).scalar_subquery()
    last = select(func.max(events.c.time)).scalar_subquery()
    found = connection.execute(select(first, last)).one()
    return None if found[0] is None else (found[0], found[1])


def read_pending(connection: Connection) -> int:
    """How many events are not rated, or lack a price."""
    return int(connection.execute(select(func.count()).where(events.c.pending == 1)).scalar_one())


def read_summary(connection: Connection) -> LedgerSummary:
    """Totals, from rollups wherever they tell."""
    by_series = (
        select(series.c.status, series.c.customer, func.sum(days.c.high), func.sum(days.c.low))
        .join_from(days, series, days.c.series == series.c.id)
        .where(days.c.quantity == EVENTS)
        .group_by(series.c.status, series.c.customer)
    )
    totals = [(status, customer, total_of(high, low)) for status, customer, high, low in connection.execute(by_series)]
    rows = [row for row in totals if row[2]]
    by_status: dict[str, int] = {}
    for status, _, number in rows:
        by_status[status] = by_status.get(status, 0) + number
    with_anomalies = select(func.count()).select_from(events).where(events.c.anomalies.is_not(None))
    counted = connection.execute(select(conflicts.c.kind, func.count().label("number")).group_by(conflicts.c.kind))
    kinds: dict[str, int] = {row.kind: row.number for row in counted}
    bounds = read_bounds(connection)
    declared = connection.execute(select(dimensions.c.name, dimensions.c.overflowed).order_by(dimensions.c.name)).all()
    return LedgerSummary(
        events=sum(by_status.values()),
        by_status=dict(sorted(by_status.items())),
        unattributed=sum(number for _, customer, number in rows if customer is None),
        with_anomalies=connection.execute(with_anomalies).scalar_one(),
        conflicts=kinds.get("conflict", 0),
        superseded=kinds.get("superseded", 0),
        first=None if bounds is None else EPOCH + MICROSECOND * bounds[0],
        last=None if bounds is None else EPOCH + MICROSECOND * bounds[1],
        customers=len({customer for _, customer, _ in rows if customer is not None}),
        dimensions=tuple(from_stored(name) for name, _ in declared),
        dimensions_overflowed=tuple(from_stored(name) for name, overflowed in declared if overflowed),
    )
