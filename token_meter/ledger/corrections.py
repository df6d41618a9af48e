"""Where corrections count: an event that corrects another takes its quantities away from where that one counts.

Usage is summed by when and by whom it was caused. A correction happens later, and what it takes back belongs to the
time, the customer and the prices of the event it names. As long as that event is not in the ledger, it takes away
from where it stands itself; when the event arrives, it moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Subquery, case, select

from token_meter.ledger.rater import UNRATED
from token_meter.ledger.rows import Measure, Prepared, measure_of
from token_meter.ledger.tables import EVENTS, SERIES_COLUMNS, events
from token_meter.ledger.text import to_json, to_stored

_CORRECTION: Final = SERIES_COLUMNS.index("correction")
_IDS_MAX: Final = 500


def rows_named(connection: Connection, ids: Iterable[str]) -> dict[str, Row[Any]]:
    """The events with these ids that are in the ledger."""
    wanted = sorted(set(ids))
    found: dict[str, Row[Any]] = {}
    for start in range(0, len(wanted), _IDS_MAX):
        mine = select(events).where(events.c.id.in_(wanted[start : start + _IDS_MAX]))
        found |= {row.id: row for row in connection.execute(mine)}
    return found


def corrections_of(connection: Connection, ids: Iterable[str]) -> list[Row[Any]]:
    """The corrections in the ledger that name one of these events."""
    wanted = sorted(set(ids))
    found: list[Row[Any]] = []
    for start in range(0, len(wanted), _IDS_MAX):
        mine = select(events).where(events.c.corrects.in_(wanted[start : start + _IDS_MAX]))
        found += connection.execute(mine.order_by(events.c.id)).all()
    return found


def measures_of(connection: Connection, rows: Sequence[Row[Any]]) -> list[Measure]:
    """What rollups need of stored events, corrections where they count."""
    corrected = rows_named(connection, [row.corrects for row in rows if row.corrects is not None])
    return [placed(measure_of(row), corrected.get(row.corrects)) if row.corrects else measure_of(row) for row in rows]


def placed(correction: Measure, original: Row[Any] | Measure | None) -> Measure:
    """A correction's measure, where the event it names counts: at its time, in its series, at its prices."""
    if original is None:
        return correction._replace(sign=-1, id="")
    there = original if isinstance(original, Measure) else measure_of(original)
    series = (*there.series[:_CORRECTION], True, *there.series[_CORRECTION + 1 :])
    kinds = [*correction.usage, EVENTS]
    rating = {name: there.rating.get(name, correction.rating.get(name, UNRATED)) for name in kinds}
    return there._replace(series=series, usage=correction.usage, rating=rating, sign=-there.sign, id="")


def originals(
    connection: Connection, prepared: Sequence[Prepared], measures: Mapping[str, Measure]
) -> dict[str, Row[Any] | Measure]:
    """The events that corrections among these name, from the ledger or from the same batch."""
    named = {to_stored(each.event.corrects) for each in prepared if each.event.corrects}
    if not named:
        return {}
    return {**{name: measures[name] for name in named if name in measures}, **rows_named(connection, named)}


def rating_text(measure: Measure) -> str | None:
    """The column of a correction's ratings."""
    return to_json(dict(measure.rating)) if measure.rating else None


def as_they_count() -> Subquery:
    """The corrections as a table like `events`, each with time, names and ratings of the event it names."""
    correction, original = events.alias("correction"), events.alias("original")
    there = original.c.id.is_not(None)
    own = ("id", "usage", "corrects")

    def column(name: str) -> ColumnElement[Any]:
        if name in own:
            return correction.c[name].label(name)
        return case((there, original.c[name]), else_=correction.c[name]).label(name)

    return (
        select(*(column(each.name) for each in events.columns))
        .select_from(correction.outerjoin(original, original.c.id == correction.c.corrects))
        .where(correction.c.corrects.is_not(None))
        .subquery("corrections")
    )
