"""Rollups: integer quantities per hour and day, series and token type, in the transaction that adds the events.

A series is one combination of everything usage is split by (`tables.SERIES_COLUMNS`). A process remembers the
numbers of the series it met; the ledger's `generation` tells it when they were given out anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import Connection, func, select, text

from token_meter.ledger.corrections import measures_of
from token_meter.ledger.rater import UNRATED, Rating
from token_meter.ledger.rows import Measure
from token_meter.ledger.store import QuantityRow, Store
from token_meter.ledger.tables import (
    DIMENSION_VALUES_MAX,
    EVENTS,
    OTHER,
    SERIES_COLUMNS,
    VERSION_TABLE,
    days,
    dimension_values,
    dimensions,
    events,
    hours,
    series,
    state,
)
from token_meter.ledger.text import to_json

REMEMBERED_MAX: Final = 200_000
"""So many series (and as many dimension values) a process remembers; then it starts over."""

_CHUNK: Final = 500
_REBUILD_PAGE: Final = 2_000
_LOW: Final = 2**32 - 1
_STATE: Final = text(
    f"SELECT s.generation, s.catalogue, s.closed, v.version_num FROM {state.name} AS s CROSS JOIN {VERSION_TABLE} AS v "
    "WHERE s.id = 1"
)

SeriesKey = tuple[Any, ...]
DimensionValue = tuple[str, str]
CustomerKey = tuple[str, str]
"""(mode, id), as `tables.customers` has them."""
Totals = dict[tuple[int, int], dict[tuple[str, int], int]]
"""By period and series: the sum of each token type and rating, and under `EVENTS` the number of events."""


@dataclass(slots=True)
class Memory:
    """What one process remembers between transactions; only committed numbers get in."""

    generation: int = 0
    declared: tuple[str, ...] = ()
    series: dict[SeriesKey, int] = field(default_factory=dict)
    values: set[DimensionValue] = field(default_factory=set)
    customers: set[CustomerKey] = field(default_factory=set)
    ratings: dict[Rating, int] = field(default_factory=dict)
    catalogue: int = -1
    """The state of prices and plans that the rater has read."""


class Rollups:
    """The rollups inside one writing transaction. `remember` after its commit, or nothing is remembered."""

    def __init__(self, store: Store, connection: Connection, memory: Memory) -> None:
        self._store = store
        self._connection = connection
        self._memory = memory
        self._new_series: dict[SeriesKey, int] = {}
        self._new_values: set[DimensionValue] = set()
        generation, self.catalogue, self.closed, self.revision = connection.execute(_STATE).one()
        if generation != memory.generation:
            self._forget(generation)

    def add(self, measures: Iterable[tuple[Measure, int]]) -> None:
        """Add (+1) or take away (-1) these events."""
        keyed = [(self._key(measure), measure, sign) for measure, sign in measures]
        unknown = {key for key, _, _ in keyed if key not in self._memory.series}
        if unknown:
            self._number(unknown)
        totals: Totals = {}
        for key, measure, direction in keyed:
            sign = direction * measure.sign
            number = self._memory.series.get(key) or self._new_series[key]
            sums = totals.setdefault((measure.hour, number), {})
            rating = measure.rating
            counted = (EVENTS, rating.get(EVENTS, UNRATED))
            sums[counted] = sums.get(counted, 0) + sign
            for name, quantity in measure.usage.items():
                kind = (name, rating.get(name, UNRATED))
                sums[kind] = sums.get(kind, 0) + sign * quantity
        self._store.add_quantities(self._connection, hours, _rows(totals))
        self._store.add_quantities(self._connection, days, _rows(_by_day(totals)))

    def remember(self) -> None:
        """The transaction is committed: what it numbered is true for everyone."""
        memory = self._memory
        if len(memory.series) > REMEMBERED_MAX or len(memory.values) > REMEMBERED_MAX:
            memory.series.clear()
            memory.values.clear()
        memory.series.update(self._new_series)
        memory.values.update(self._new_values)

    def _forget(self, generation: int) -> None:
        names = self._connection.execute(select(dimensions.c.name).order_by(dimensions.c.name)).scalars()
        memory = self._memory
        memory.generation, memory.declared = generation, tuple(names)
        memory.series.clear()
        memory.values.clear()
        memory.customers.clear()

    def _key(self, measure: Measure) -> SeriesKey:
        declared = self._memory.declared
        if not declared or not measure.dimensions:
            return (*measure.series, ())
        given = measure.dimensions
        return (*measure.series, tuple((name, given[name]) for name in declared if name in given))

    def _number(self, keys: set[SeriesKey]) -> None:
        """Find or give the numbers of series this process has not met."""
        self._admit({pair for key in keys for pair in key[-1]} - self._memory.values)
        rows = {key: self._series_row(key) for key in keys}
        unique = {row["digest"]: row for row in rows.values()}
        numbers = self._find(sorted(unique))
        missing = sorted(unique.keys() - numbers.keys())
        if missing:
            self._store.insert_missing(self._connection, series, [unique[digest] for digest in missing])
            numbers.update(self._find(missing))
        self._new_series.update((key, numbers[row["digest"]]) for key, row in rows.items())

    def _find(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        numbers: dict[bytes, int] = {}
        for chunk in _chunks(digests):
            found = self._connection.execute(select(series.c.digest, series.c.id).where(series.c.digest.in_(chunk)))
            numbers.update((bytes(digest), number) for digest, number in found)
        return numbers

    def _series_row(self, key: SeriesKey) -> dict[str, Any]:
        named = {pair[0]: pair[1] if self._is_admitted(pair) else OTHER for pair in key[-1]}
        row = dict(zip(SERIES_COLUMNS, (*key[:-1], to_json(named) if named else None), strict=True))
        row["digest"] = blake2b(to_json(list(row.values())).encode(), digest_size=16).digest()
        return row

    def _is_admitted(self, pair: DimensionValue) -> bool:
        return pair in self._memory.values or pair in self._new_values

    def _admit(self, pairs: set[DimensionValue]) -> None:
        """Let new values of declared dimensions into the rollups while there is room for them."""
        for name in sorted({name for name, _ in pairs}):
            self._admit_values(name, sorted(value for each, value in pairs if each == name))

    def _admit_values(self, name: str, values: Sequence[str]) -> None:
        mine = dimension_values.c.name == name
        known: set[str] = set()
        for chunk in _chunks(values):
            condition = mine & dimension_values.c.value.in_(chunk)
            known.update(self._connection.execute(select(dimension_values.c.value).where(condition)).scalars())
        new = [value for value in values if value not in known]
        if new:
            count = self._connection.execute(select(func.count()).where(mine)).scalar_one()
            admitted = new[: max(0, DIMENSION_VALUES_MAX - count)]
            rows = [{"name": name, "value": value} for value in admitted]
            self._store.insert_missing(self._connection, dimension_values, rows)
            known.update(admitted)
            if len(admitted) < len(new):
                overflow = dimensions.update().where(dimensions.c.name == name, dimensions.c.overflowed.is_(False))
                self._connection.execute(overflow.values(overflowed=True))
        self._new_values.update((name, value) for value in known)


def rebuild(store: Store, connection: Connection) -> None:
    """Make every rollup anew from the events, under the migration lock (the caller holds it).

    It reads every event once (one to three minutes a million); writers wait meanwhile, or try again later.
    """
    for table in (hours, days, series, dimension_values):
        connection.execute(table.delete())
    connection.execute(dimensions.update().values(overflowed=False))
    connection.execute(state.update().values(generation=state.c.generation + 1))
    rollups = Rollups(store, connection, Memory())
    for page in _pages(connection):
        rollups.add((measure, 1) for measure in page)
        rollups.remember()


def _pages(connection: Connection) -> Iterator[list[Measure]]:
    after = ""
    while True:
        page = select(events).where(events.c.id > after).order_by(events.c.id).limit(_REBUILD_PAGE)
        rows = connection.execute(page).all()
        if not rows:
            return
        yield measures_of(connection, rows)
        after = rows[-1].id


def _by_day(totals: Totals) -> Totals:
    daily: Totals = {}
    for (hour, number), sums in totals.items():
        day = daily.setdefault((hour // 24, number), {})
        for kind, total in sums.items():
            day[kind] = day.get(kind, 0) + total
    return daily


def _rows(totals: Totals) -> list[QuantityRow]:
    """Rows sorted by their key, so that all writers take the row locks in one order."""
    return [
        (*place, *kind, sums[kind] >> 32, sums[kind] & _LOW)
        for place in sorted(totals)
        for sums in (totals[place],)
        for kind in sorted(sums)
        if sums[kind]
    ]


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
