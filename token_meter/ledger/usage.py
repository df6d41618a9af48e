"""Usage by any grouping, exactly as if every event were summed, but read from rollups where they tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from operator import itemgetter
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    Subquery,
    cast,
    column,
    func,
    literal_column,
    select,
    text,
    true,
)

from token_meter.ledger.corrections import as_they_count
from token_meter.ledger.periods import DAY, Bucket, Cover, Slice, Span, cover, cover_by_events, slices
from token_meter.ledger.query import matching, read_bounds, total_of
from token_meter.ledger.rows import rolled_context
from token_meter.ledger.store import Store
from token_meter.ledger.tables import EVENTS, days, dimensions, events, hours, series
from token_meter.ledger.text import from_stored, to_stored
from token_meter.ledger.values import Filters, Search, UsageRow
from token_meter.usage import HEADLINES, TOKEN_TYPES, Usage

COLUMNS: Final = (
    "customer", "provider", "publisher", "model", "operation", "status", "meter", "mode", "host",
    "correction", "price_context",
)  # fmt: skip
"""What usage can be grouped by besides token_type, headline and dimensions."""

RATING: Final = "rating"
"""The group column of who reads costs: the number of the rating."""

UNGROUPABLE: Final = frozenset({"bucket", "events", RATING})
"""Names that a row uses for something else."""

RESERVED: Final = frozenset({*COLUMNS, *UNGROUPABLE, "token_type", "headline"})
"""Names that no declared dimension may have: in `by` they mean something else."""

PERIODS_LISTED_MAX: Final = 2_000
"""Up to so many periods are looked up one by one, which an index serves best; more are read as a range."""

_BROAD: Final = frozenset({"meter", "mode", "status"})
"""Filters that most series pass."""

_TYPE_ORDER: Final = {name: place for place, name in enumerate(TOKEN_TYPES)}

Totals: TypeAlias = dict[tuple[int, tuple[str | None, ...]], dict[str, int]]
"""By bucket and group: the sum of each token type, and under `EVENTS` the number of events."""


def read_usage(
    store: Store,
    connection: Connection,
    search: Search,
    *,
    by: Sequence[str],
    bucket: Bucket | None,
    zone: tzinfo,
) -> list[UsageRow]:
    """Answer within one transaction, so that rollups and events show the same moment."""
    parts, covered = covering(connection, search, by, bucket, zone)
    names = [name for name in by if name not in ("token_type", "headline")]
    totals: Totals = {}
    for query in queries(store, search.filters, names, covered):
        for number, *group, quantity, high, low in connection.execute(query):
            group_shown = tuple(shown(name, value) for name, value in zip(names, group, strict=True))
            sums = totals.setdefault((number, group_shown), {})
            sums[quantity] = sums.get(quantity, 0) + total_of(high, low)
    return _rows(by, names, [part.name for part in parts] if bucket else None, totals)


def covering(
    connection: Connection, search: Search, by: Sequence[str], bucket: Bucket | None, zone: tzinfo
) -> tuple[list[Slice], Cover]:
    """The buckets, and where their usage is read."""
    parts = _parts(connection, search, bucket, zone)
    return parts, cover(parts) if _rollups_tell(connection, search.filters, by) else cover_by_events(parts)


def _parts(connection: Connection, search: Search, bucket: Bucket | None, zone: tzinfo) -> list[Slice]:
    """The buckets that can hold anything (one nameless bucket if none were asked for)."""
    bounds = read_bounds(connection)
    if bounds is None:
        return []
    # Nothing lies outside: whole days around all events make open ends cheap, and far ends harmless.
    start, stop = bounds[0] // DAY * DAY, (bounds[1] // DAY + 1) * DAY
    start = start if search.since is None else max(start, search.since)
    stop = stop if search.until is None else min(stop, search.until)
    if start >= stop:
        return []
    return [Slice("", start, stop)] if bucket is None else slices(start, stop, bucket=bucket, zone=zone)


def _rollups_tell(connection: Connection, filters: Filters, by: Sequence[str]) -> bool:
    """Rollups know declared dimensions, as long as those have not more values than rollups hold."""
    wanted = {name for name in by if name not in RESERVED} | set(filters.dimensions)
    if not wanted:
        return True
    known = select(dimensions.c.name).where(dimensions.c.overflowed.is_(False))
    return {to_stored(name) for name in wanted} <= set(connection.execute(known).scalars())


def queries(
    store: Store,
    filters: Filters,
    names: Sequence[str],
    covered: Cover,
    customers: Sequence[str] | None = None,
) -> Iterator[Select[Any]]:
    """The statements that read what is covered: bucket, group, quantity, high, low. `RATING` may be among the names."""
    if covered.days:
        yield _grouped(_from_rollup(store, filters, names, days, covered.days, customers))
    if covered.hours:
        yield _grouped(_from_rollup(store, filters, names, hours, covered.hours, customers))
    if covered.events:
        for table, sign in ((events, 1), (as_they_count(), -1)):
            for counting in (False, True):
                rows = _from_events(store, filters, names, covered.events, table, sign, customers, counting=counting)
                yield _grouped(rows)


def _grouped(rows: Subquery) -> Select[Any]:
    *group, high, low = rows.c
    return select(*group, func.sum(high), func.sum(low)).group_by(*group)


def _from_rollup(
    store: Store,
    filters: Filters,
    names: Sequence[str],
    table: FromClause,
    spans: Sequence[Span],
    customers: Sequence[str] | None,
) -> Subquery:
    listed, within = _spans(spans, table.c.period)
    query = select(
        listed.c.column3.label("bucket"),
        *_group_columns(store, series, names, table.c.rating),
        table.c.quantity,
        table.c.high,
        table.c.low,
    ).select_from(listed.join(table, within).join(series, series.c.id == table.c.series))
    wanted = matching(store, series, filters)
    if customers is not None:
        wanted.append(series.c.customer.in_(customers))
    if customers is not None or filters.dimensions or not filters.columns().keys() <= _BROAD:
        # Few series: look each of them up in each period. Written as a join, both engines read all of the period.
        return query.where(store.among(table.c.series, select(series.c.id).where(*wanted))).subquery()
    return query.where(*wanted).subquery()


def _from_events(
    store: Store,
    filters: Filters,
    names: Sequence[str],
    spans: Sequence[Span],
    table: FromClause,
    sign: int,
    customers: Sequence[str] | None,
    *,
    counting: bool,
) -> Subquery:
    """Quantities of single events; those of corrections are taken away (`sign` -1) where they count."""
    listed, within = _spans(spans, table.c.time, listing=False)
    source = listed.join(table, within)
    quantity, high, low = _literal(f"'{EVENTS}'"), _literal("0"), _literal("1")
    if not counting:
        unfolded = store.unfold(table.c.usage)
        source = source.join(unfolded, true())
        value = cast(unfolded.c.value, BigInteger)
        quantity = unfolded.c.key
        high, low = value.bitwise_rshift(_literal("32")), value.bitwise_and(_literal("4294967295"))
    return (
        select(
            listed.c.column3.label("bucket"),
            *_group_columns(store, table, names, store.member(table.c.rating, quantity)),
            quantity.label("quantity"),
            (high * _literal(str(sign))).label("high"),
            (low * _literal(str(sign))).label("low"),
        )
        .select_from(source)
        .where(
            *matching(store, table, filters),
            *([table.c.corrects.is_(None)] if sign > 0 else []),
            *([table.c.customer.in_(customers)] if customers is not None else []),
        )
        .subquery()
    )


def _literal(sql: str) -> ColumnElement[Any]:
    return literal_column(sql)


def _group_columns(
    store: Store, table: FromClause, names: Sequence[str], rating: ColumnElement[Any]
) -> list[ColumnElement[Any]]:
    columns = [cast(rating, BigInteger) if name == RATING else _group_column(store, table, name) for name in names]
    return [column.label(f"group{place}") for place, column in enumerate(columns)]


def _group_column(store: Store, table: FromClause, name: str) -> ColumnElement[Any]:
    if name == "correction" and table is not series:
        return table.c.corrects.is_not(None)
    if name in COLUMNS:
        return table.c[name]
    return store.member(table.c.dimensions, to_stored(name))


def _spans(
    spans: Sequence[Span], place: ColumnElement[Any], *, listing: bool = True
) -> tuple[CTE, ColumnElement[bool]]:
    """The spans as a table (start, stop, bucket), and the condition that `place` lies in one of them."""
    if listing and sum(span.stop - span.start for span in spans) <= PERIODS_LISTED_MAX:
        listed = [Span(each, each + 1, span.bucket) for span in spans for each in range(span.start, span.stop)]
        table = _table_of(listed)
        return table, place == table.c.column1
    table = _table_of(spans)
    return table, (place >= table.c.column1) & (place < table.c.column2)


def _table_of(spans: Sequence[Span]) -> CTE:
    # Integers of our own, so they may stand in the statement; there can be more than it may have parameters.
    rows = ", ".join(f"({start}, {stop}, {bucket})" for start, stop, bucket in spans)
    # Both engines name the columns of VALUES column1, column2, ...
    return (
        text(f"VALUES {rows}")
        .columns(column("column1", BigInteger), column("column2", BigInteger), column("column3", Integer))
        .cte("spans")
    )


def _rows(by: Sequence[str], names: Sequence[str], starts: Sequence[str] | None, totals: Totals) -> list[UsageRow]:
    rows: list[tuple[tuple[Any, ...], UsageRow]] = []
    for (bucket, values), sums in totals.items():
        count = sums.get(EVENTS, 0)
        quantities = {name: sums[name] for name in sorted(sums) if sums[name] and name != EVENTS}
        if not count and not quantities:
            continue
        group = dict(zip(names, values, strict=True))
        for types, usage in split(by, quantities):
            named = {name: types[name] if name in types else group[name] for name in by}
            start = {"bucket": starts[bucket]} if starts else {}
            place = (bucket, *(order_of(name, value) for name, value in named.items()))
            rows.append((place, UsageRow({**start, **named}, Usage.of(usage), count)))
    rows.sort(key=itemgetter(0))
    return [row for _, row in rows]


def split(by: Sequence[str], quantities: dict[str, int]) -> Iterator[tuple[dict[str, str], dict[str, int]]]:
    """One part for each token type or headline, if one of them is in `by`."""
    if "token_type" in by:
        for name, quantity in quantities.items():
            yield {"token_type": name, "headline": _headline(name)}, {name: quantity}
    elif "headline" in by:
        for headline in sorted({_headline(name) for name in quantities}):
            mine = {name: quantity for name, quantity in quantities.items() if _headline(name) == headline}
            yield {"headline": headline}, mine
    else:
        yield {}, quantities


def _headline(name: str) -> str:
    return TOKEN_TYPES[name].headline if name in TOKEN_TYPES else "other"


def order_of(name: str, value: str | None) -> tuple[int, str]:
    """Rows are sorted as text, token types and headlines as in their table, what has no value last."""
    if value is None:
        return (10**6, "")
    if name == "token_type":
        return (_TYPE_ORDER.get(value, len(_TYPE_ORDER)), value)
    return (HEADLINES.index(value) if name == "headline" else 0, value)


def shown(name: str, value: Any) -> str | None:
    """A group value as the caller sees it."""
    if name == "correction":
        return "yes" if value else "no"
    if value is None:
        return None
    # Events hold the exact context size, rollups its step: the same for both.
    return rolled_context(value) if name == "price_context" else from_stored(value)
