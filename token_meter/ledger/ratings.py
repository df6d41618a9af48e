"""Ratings inside one writing transaction: ask the rater, number what is new, and rate again what was rated before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, bindparam, select

from token_meter.event import MeterEvent
from token_meter.ledger.corrections import corrections_of, originals, placed, rating_text
from token_meter.ledger.lateness import mark_late
from token_meter.ledger.rater import Rater, Rating
from token_meter.ledger.rollups import REMEMBERED_MAX, Memory, Rollups
from token_meter.ledger.rows import Measure, Prepared, event_of, measure_of
from token_meter.ledger.store import Store
from token_meter.ledger.tables import events, ratings, reratings
from token_meter.ledger.text import to_json, to_stored

PAGE: Final = 1_000
"""So many events are rated again in one transaction."""

_CHUNK: Final = 500


class Numbered(NamedTuple):
    """The ratings of an event by their numbers: as a mapping, as its column, and whether something is missing."""

    numbers: Mapping[str, int]
    text: str | None
    pending: int


UNASKED: Final = Numbered({}, None, 1)
"""What no rater has seen."""


class Written(NamedTuple):
    """An event as it is written: its whole row, and what rollups need of it."""

    row: tuple[object, ...]
    measure: Measure


class Ratings:
    """The ratings of one writing transaction. `remember` after its commit, or nothing is remembered."""

    def __init__(
        self, store: Store, connection: Connection, memory: Memory, rater: Rater | None, *, catalogue: int
    ) -> None:
        self._store = store
        self._connection = connection
        self._memory = memory
        self._rater = rater
        self._new: dict[Rating, int] = {}
        self._numbered: dict[int, tuple[Mapping[str, Rating], Numbered]] = {}
        self._catalogue = memory.catalogue
        if rater is not None and memory.catalogue != catalogue:
            rater.renew(store, connection)
            self._catalogue = catalogue

    def written(self, prepared: Sequence[Prepared]) -> dict[str, Written]:
        """How these events are to be written, by id."""
        numbered = self.numbers([each.event for each in prepared])
        written = {
            each.id: Written((*each.row, of.text, of.pending), each.measure._replace(rating=of.numbers))
            for each, of in zip(prepared, numbered, strict=True)
        }
        corrected = originals(self._connection, prepared, {name: each.measure for name, each in written.items()})
        for each in prepared:
            if each.event.corrects:
                measure = placed(written[each.id].measure, corrected.get(to_stored(each.event.corrects)))
                row = (*each.row, rating_text(measure), 0)  # it is rated with the event it names
                written[each.id] = Written(row, measure)
        return written

    def numbers(self, given: Sequence[MeterEvent]) -> list[Numbered]:
        """The ratings of these events."""
        if self._rater is None:
            return [UNASKED] * len(given)
        rated = [self._rater.rate(event) for event in given]
        known, new = self._memory.ratings, self._new
        unknown = {
            rating
            for answer in {id(each): each for each in rated}.values()
            for rating in answer.values()
            if rating not in known and rating not in new
        }
        if unknown:
            self._number(unknown)
        return [self._of(answer) for answer in rated]

    def _of(self, answer: Mapping[str, Rating]) -> Numbered:
        kept = self._numbered.get(id(answer))
        if kept is None:
            numbers = {name: self._memory.ratings.get(rating) or self._new[rating] for name, rating in answer.items()}
            pending = int(any(rating.pending for rating in answer.values()))
            kept = self._numbered[id(answer)] = (answer, Numbered(numbers, to_json(numbers), pending))
        return kept[1]

    def _number(self, unknown: Iterable[Rating]) -> None:
        """Find or give the numbers of ratings this process has not met."""
        rows = {rating.digest: rating for rating in unknown}
        found = self._find(sorted(rows))
        missing = sorted(rows.keys() - found.keys())
        if missing:
            new = [
                {"digest": each.digest, "cost": each.cost, "charge": each.charge, "document": each.text}
                for each in map(rows.__getitem__, missing)
            ]
            self._store.insert_missing(self._connection, ratings, new)
            found |= self._find(missing)
        self._new |= {rows[digest]: number for digest, number in found.items()}

    def _find(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for start in range(0, len(digests), _CHUNK):
            chunk = ratings.c.digest.in_(digests[start : start + _CHUNK])
            rows = self._connection.execute(select(ratings.c.digest, ratings.c.id).where(chunk))
            found |= {bytes(digest): number for digest, number in rows}
        return found

    def remember(self) -> None:
        """The transaction is committed: its numbers are true for everyone."""
        if len(self._memory.ratings) > REMEMBERED_MAX:
            self._memory.ratings.clear()
        self._memory.ratings.update(self._new)
        self._memory.catalogue = self._catalogue


class Rerated(NamedTuple):
    """What rating again did with one page of events; `after` is where the next page begins, None at the end."""

    seen: int
    changed: int
    after: tuple[int, str] | None


def rate_again(
    store: Store,
    connection: Connection,
    memory: Memory,
    rater: Rater,
    *,
    where: Sequence[ColumnElement[bool]],
    after: tuple[int, str] | None,
    recorded: int,
    reason: str,
) -> tuple[Rerated, Callable[[], None]]:
    """Rate a page of the matching events as prices and plans are now.

    What changes is taken out of the rollups under its old rating and put in under the new one, and stands in
    `reratings` from then on: before, after, when and why. Call what comes second after the commit.
    """
    rollups = Rollups(store, connection, memory)
    again = Ratings(store, connection, memory, rater, catalogue=rollups.catalogue)
    page = select(events).where(*where, events.c.corrects.is_(None)).order_by(events.c.time, events.c.id).limit(PAGE)
    if after is not None:
        time, identity = after
        page = page.where((events.c.time > time) | ((events.c.time == time) & (events.c.id > identity)))
    rows = connection.execute(page.with_for_update()).all()
    numbered = again.numbers([event_of(row) for row in rows])
    changed = [(row, of) for row, of in zip(rows, numbered, strict=True) if row.rating != of.text]
    moved = {
        row.id: (before, before._replace(rating=of.numbers)) for row, of in changed for before in [measure_of(row)]
    }
    measures = [*((before, -1) for before, _ in moved.values()), *((now, 1) for _, now in moved.values())]
    measures += _with_corrections(connection, moved)
    rollups.add(measures)
    followed = rater.charged(store, connection, measures)
    if changed:
        _post(connection, changed, recorded, reason)
        mark_late(connection, rollups.closed, ((name, now) for name, (_, now) in moved.items()))
    end = (rows[-1].time, rows[-1].id) if len(rows) == PAGE else None

    def remember() -> None:
        rollups.remember()
        again.remember()
        followed()

    return Rerated(len(rows), len(changed), end), remember


def _with_corrections(
    connection: Connection, moved: Mapping[str, tuple[Measure, Measure]]
) -> Iterator[tuple[Measure, int]]:
    """Corrections of events that are rated again are rated like them."""
    for row in corrections_of(connection, moved):
        before, now = moved[row.corrects]
        after = placed(measure_of(row), now)
        yield placed(measure_of(row), before), -1
        yield after, 1
        connection.execute(events.update().where(events.c.id == row.id).values(rating=rating_text(after)))


def _post(connection: Connection, changed: Sequence[tuple[Row[Any], Numbered]], recorded: int, reason: str) -> None:
    """Point the events at their new ratings, and write down what was before for those that had one."""
    again = [(row, of) for row, of in changed if row.rating is not None]
    posted = [
        {
            "event_id": row.id,
            "before": row.rating,
            "after": of.text,
            "recorded": recorded,
            "reason": reason,
        }
        for row, of in again
    ]
    if posted:
        connection.execute(reratings.insert(), posted)
    pointer = events.update().where(events.c.id == bindparam("event"))
    connection.execute(
        pointer.values(rating=bindparam("numbers"), pending=bindparam("missing")),
        [{"event": row.id, "numbers": of.text, "missing": of.pending} for row, of in changed],
    )


class Read(NamedTuple):
    """A rating as it stands in the ledger."""

    number: int
    cost: Decimal | None
    charge: Decimal | None
    document: Mapping[str, Any]


def read_ratings(connection: Connection, numbers: Sequence[int]) -> Iterator[Read]:
    """The ratings with these numbers."""
    for start in range(0, len(numbers), _CHUNK):
        mine = ratings.c.id.in_(numbers[start : start + _CHUNK])
        for row in connection.execute(select(ratings).where(mine)):
            yield Read(row.id, _decimal(row.cost), _decimal(row.charge), json.loads(row.document))


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
