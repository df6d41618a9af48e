"""Recording events: insert, deduplicate, notice conflicts, meet customers, add to the rollups, in one transaction.

What happens to an event whose id is already there:

- the same billing fields (`rows.prepare` says which): a duplicate, ignored. Delivery is at least once.
- other billing fields: a row in `conflicts`, once. What was recorded first stays: nothing is overwritten.
- one of the two is a placeholder (status unmetered, no quantities), the other a real event: the real one
  counts, whichever came first, and the placeholder is kept in `conflicts` as "superseded". A placeholder is
  written for a call whose process was believed dead; when that process was only slow, its real event follows
  under the same id. To keep the placeholder would lose money in silence, and to call it a conflict would wait
  for a human to decide what has only one answer: the placeholder holds no quantity. It stays visible, it is
  not counted as a conflict, and the result does not depend on the order of arrival.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from token_meter.event import MeterEvent
from token_meter.ledger.corrections import corrections_of, measures_of, placed, rating_text
from token_meter.ledger.first_sight import FirstSight
from token_meter.ledger.lateness import mark_late
from token_meter.ledger.migrate import HEAD, newer
from token_meter.ledger.rater import Rater
from token_meter.ledger.ratings import Ratings, Written
from token_meter.ledger.rollups import Memory, Rollups
from token_meter.ledger.rows import COLUMNS, Measure, Prepared, event_of, is_placeholder, measure_of
from token_meter.ledger.store import Store
from token_meter.ledger.tables import conflicts, events
from token_meter.ledger.text import to_json, to_stored
from token_meter.ledger.values import Recorded

TRANSACTION_EVENTS_MAX: Final = 2_000
"""So many events are written by one transaction; more are written by several."""

_IDS_MAX: Final = 500


@dataclass(slots=True)
class Outcome:
    """What one transaction found out about its events."""

    added: list[Measure] = field(default_factory=list)
    removed: list[Measure] = field(default_factory=list)
    conflicts: list[Prepared] = field(default_factory=list)
    superseded: list[tuple[MeterEvent, bytes]] = field(default_factory=list)
    duplicates: int = 0


def record(
    store: Store, connection: Connection, memory: Memory, batch: Sequence[Prepared], rater: Rater | None = None
) -> tuple[Recorded, Callable[[], None]]:
    """Record the batch in this transaction; call what comes second once it is committed, to remember what was met."""
    rollups = Rollups(store, connection, memory)
    if rollups.revision != HEAD:
        raise newer(store, rollups.revision)
    outcome = Outcome()
    unique = _fold(batch, outcome)
    ordered = [unique[identity] for identity in sorted(unique, key=str.encode)]
    ratings = Ratings(store, connection, memory, rater, catalogue=rollups.catalogue)
    written = ratings.written(ordered)
    inserted = store.insert_events(connection, [written[each.id].row for each in ordered])
    outcome.added.extend(written[each.id].measure for each in ordered if each.id in inserted)
    if inserted:
        mark_late(
            connection, rollups.closed, ((each.id, written[each.id].measure) for each in ordered if each.id in inserted)
        )
        _move_corrections(connection, inserted, written, outcome, rollups.closed)
    if len(inserted) < len(ordered):
        _meet(connection, [each for each in ordered if each.id not in inserted], written, outcome, rollups.closed)
    moment = batch[0].row[-1]
    first_sight = FirstSight(store, connection, memory)
    first_sight.meet(outcome.added, moment)
    measures = [*((each, 1) for each in outcome.added), *((each, -1) for each in outcome.removed)]
    rollups.add(measures)
    followed = rater.charged(store, connection, measures) if rater is not None else None
    _write_conflicts(store, connection, outcome, moment)

    def remember() -> None:
        rollups.remember()
        first_sight.remember()
        ratings.remember()
        if followed is not None:
            followed()

    return Recorded(len(outcome.added), outcome.duplicates, len(outcome.conflicts)), remember


def _move_corrections(
    connection: Connection, inserted: set[str], written: Mapping[str, Written], outcome: Outcome, closed: int
) -> None:
    """Corrections that came before the event they name count there from now on."""
    for row in corrections_of(connection, inserted):
        if row.id in inserted:
            continue  # it came in the same batch and knew where it belongs
        before = placed(measure_of(row), None)
        after = placed(measure_of(row), written[row.corrects].measure)
        outcome.removed.append(before)
        outcome.added.append(after)
        mark_late(connection, closed, [(row.id, after)])
        connection.execute(events.update().where(events.c.id == row.id).values(rating=rating_text(after)))


def _fold(batch: Sequence[Prepared], outcome: Outcome) -> dict[str, Prepared]:
    """One event for each id of the batch."""
    unique: dict[str, Prepared] = {}
    for offered in batch:
        kept = unique.setdefault(offered.id, offered)
        if kept is offered:
            continue
        if kept.digest != offered.digest and kept.placeholder and not offered.placeholder:
            unique[offered.id] = offered
            outcome.superseded.append((kept.event, kept.digest))
            outcome.duplicates += 1
        else:
            _refuse(offered, kept.digest, kept.placeholder, outcome)
    return unique


def _refuse(offered: Prepared, digest: bytes, placeholder: bool, outcome: Outcome) -> None:
    """Another event with this id and digest stays."""
    if offered.digest == digest:
        outcome.duplicates += 1
    elif offered.placeholder and not placeholder:
        outcome.superseded.append((offered.event, offered.digest))
        outcome.duplicates += 1
    else:
        outcome.conflicts.append(offered)


def _meet(
    connection: Connection, offered: Sequence[Prepared], written: Mapping[str, Written], outcome: Outcome, closed: int
) -> None:
    """Compare events whose ids are already there with what is there."""
    there = _existing(connection, [each.id for each in offered])
    for each in offered:
        row = there[each.id]
        kept_is_placeholder = is_placeholder(row.status, json.loads(row.usage))
        if bytes(row.digest) != each.digest and kept_is_placeholder and not each.placeholder:
            _supersede(connection, each.id, written[each.id], row, outcome)
            mark_late(connection, closed, [(each.id, written[each.id].measure)])
        else:
            _refuse(each, bytes(row.digest), kept_is_placeholder, outcome)


def _existing(connection: Connection, ids: Sequence[str]) -> dict[str, Row[Any]]:
    rows: dict[str, Row[Any]] = {}
    for start in range(0, len(ids), _IDS_MAX):
        mine = events.c.id.in_(ids[start : start + _IDS_MAX])
        # Two processes may bring the real event of one placeholder: the second must see what the first did.
        found = connection.execute(select(events).where(mine).order_by(events.c.id).with_for_update())
        rows.update((row.id, row) for row in found)
    return rows


def _supersede(connection: Connection, id: str, real: Written, row: Row[Any], outcome: Outcome) -> None:
    values = dict(zip(COLUMNS, real.row, strict=True))
    connection.execute(events.update().where(events.c.id == id).values(values))
    outcome.superseded.append((event_of(row), bytes(row.digest)))
    outcome.removed.extend(measures_of(connection, [row]))
    outcome.added.append(real.measure)


def _write_conflicts(store: Store, connection: Connection, outcome: Outcome, recorded: int) -> None:
    found = [(each.event, each.digest, "conflict") for each in outcome.conflicts]
    found += [(event, digest, "superseded") for event, digest in outcome.superseded]
    rows = [
        {
            "event_id": to_stored(event.id),
            "digest": digest,
            "kind": kind,
            "recorded": recorded,
            "document": to_json(event.to_json()),
        }
        for event, digest, kind in found
    ]
    store.insert_missing(connection, conflicts, sorted(rows, key=lambda row: (row["event_id"], row["digest"])))
