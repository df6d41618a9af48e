"""Counters follow what is recorded, in the transaction that records it (decision D10).

An event that had a hold ends it: what was held, lost or settled is replaced by what the event takes, in the windows in
which the call was admitted. Any other event counts in the windows of its own time. What is taken back, rated again or
corrected counts there too. A placeholder for a call of which nobody knows what became keeps its hold charged, as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, select, tuple_

from token_meter.billing.catalogue import Catalogue
from token_meter.budgets.amounts import taken
from token_meter.budgets.budget import concerning
from token_meter.budgets.crossing import crossed, tell_crossings
from token_meter.budgets.hold import Part, read_parts
from token_meter.budgets.holding import Key
from token_meter.budgets.rows import add_to_counters, carried_for, carry_key, make_counters
from token_meter.budgets.snapshot import Snapshot, read_snapshot, span_of
from token_meter.budgets.window import ROLLING
from token_meter.ledger.costs import NOT_RATED, RatedQuantity
from token_meter.ledger.ratings import Read
from token_meter.ledger.rows import Measure, is_placeholder
from token_meter.ledger.store import Store
from token_meter.ledger.tables import EVENTS, SERIES_COLUMNS, holds, spend, state
from token_meter.ledger.text import from_stored

_FACTS: Final = ("customer", "provider", "publisher", "model", "operation")
_PLACES: Final = {name: SERIES_COLUMNS.index(name) for name in (*_FACTS, "status", "meter", "mode")}
_IDS_MAX: Final = 500
_KEYS_MAX: Final = 100
_UUID: Final = 36
_VERSION: Final = 14
"""Where a UUID says which version it is: 8 are those that follow from other ids."""

Delta = tuple[int, int, int]
"""spent, held, lost"""


class Following:
    """Made anew when budgets, plans or prices change."""

    def __init__(self, catalogue: Catalogue, connection: Connection) -> None:
        self._catalogue = catalogue
        self._snapshot = read_snapshot(connection)

    def follow(
        self,
        store: Store,
        connection: Connection,
        measures: Sequence[tuple[Measure, int]],
        learn: Callable[[set[int]], Mapping[int, Read]],
    ) -> None:
        """Count what these measures add (+1) or take away (-1). `learn` reads ratings by their numbers."""
        if connection.execute(select(state.c.budgets)).scalar() != self._snapshot.generation[0]:
            self._snapshot = read_snapshot(connection)
        if self._snapshot.is_idle and connection.execute(select(holds.c.id).limit(1)).first() is None:
            return
        ids = {each.id for each, _ in measures if each.id}
        # Those are counted by whoever ends their call, at the same moment and without a hold of that id.
        store.claim(connection, [id for id in ids if len(id) == _UUID and id[_VERSION] == "8"])
        found = _holds_of(connection, ids)
        numbers = {number for each, _ in measures for number in each.rating.values() if number}
        rates = learn(numbers) if any(each.is_money for each in self._snapshot.in_force) else {}
        deltas: dict[Key, Delta] = {}
        buckets: dict[Key, int] = {}
        carried: dict[Key, int] = {}
        done: list[str] = []
        lost: list[str] = []
        for measure, sign in measures:
            held = found.get(measure.id)
            if _is_placeholder(measure):
                # It says nothing of what was taken, when it comes and when it goes.
                if held is not None and held[0] == "held" and sign > 0:
                    _lose(held, deltas, buckets)
                    lost.append(measure.id)
                continue
            if held is not None and sign < 0:
                continue  # rated anew before it was recorded as ended: its hold was never counted as spent
            admitted = {} if held is None else {part.budget: part for part in held[1]}
            if held is not None:
                done.append(measure.id)
                _end(held, deltas, buckets)
            for part in self._parts(measure, rates, admitted):
                amount = sign * measure.sign * part.amount
                if part.start == ROLLING:
                    _fill(buckets, part, amount, deltas)
                else:
                    _add(deltas, part.key, spent=amount)
                if part.budget in admitted:
                    self._carry(measure, part, amount, carried)
        self._write(store, connection, deltas, buckets)
        self._write_carried(store, connection, carried)
        for at in range(0, len(done), _IDS_MAX):
            connection.execute(holds.delete().where(holds.c.id.in_(done[at : at + _IDS_MAX])))
        if lost:
            connection.execute(holds.update().where(holds.c.id.in_(lost)).values(state="lost"))

    def _parts(self, measure: Measure, rates: Mapping[int, Read], admitted: Mapping[str, Part]) -> Iterator[Part]:
        """What an event takes of each budget: where its call was admitted, else by its time."""
        facts = facts_of(measure)
        mode = str(measure.series[_PLACES["mode"]])
        mine = [each for each in self._snapshot.in_force if each.mode == mode]
        quantities = [
            RatedQuantity(name, quantity, rates.get(measure.rating.get(name, 0), NOT_RATED))
            for name, quantity in [*measure.usage.items(), (EVENTS, 1)]
        ]
        # A correction (it has no id of its own) is no call, and takes none back.
        is_call = bool(measure.id and facts["operation"] and measure.series[_PLACES["meter"]] == "llm_tokens")
        # A call counts where it was admitted, also when another model answered than the one that was asked for.
        for id, before in admitted.items():
            if (admitting := self._snapshot.budgets.get(id)) is not None:
                yield before._replace(amount=taken(admitting, quantities, is_call=is_call))
        for budget, subject in concerning(mine, facts):
            if budget.id in admitted:
                continue
            amount = taken(budget, quantities, is_call=is_call)
            span = span_of(budget, self._catalogue, facts["customer"], measure.time)
            yield Part(budget.id, subject, budget.start(span), amount, span.start)

    def _write(
        self,
        store: Store,
        connection: Connection,
        deltas: Mapping[Key, Delta],
        buckets: Mapping[Key, int],
    ) -> None:
        there = _there(connection, deltas)  # with what is spent and was told before
        add_to_counters(connection, [(key, delta) for key, delta in deltas.items() if key in there])
        wanted = {key: some for key, some in buckets.items() if some and (key[0], key[1], ROLLING) in there}
        rows = [
            {"budget": key[0], "subject": key[1], "start": key[2], "spent": 0, "held": 0, "lost": 0, "noted": 0,
             "epoch": 0}
            for key in sorted(wanted)
        ]  # fmt: skip
        store.insert_missing(connection, spend, rows)
        add_to_counters(connection, [(key, (some, 0, 0)) for key, some in wanted.items()])
        crossing = [
            key
            for key, (more, _, _) in deltas.items()
            if more > 0
            and key in there
            and (budget := self._snapshot.budgets.get(key[0])) is not None
            and crossed(budget, there[key][0] + more, there[key][1])
        ]
        tell_crossings(store, connection, self._snapshot, crossing)

    def _carry(self, measure: Measure, part: Part, amount: int, carried: dict[Key, int]) -> None:
        """A call that ended in a later window than it was admitted in: there its event is not to be counted again."""
        budget = self._snapshot.budgets.get(part.budget)
        if budget is None or part.start == ROLLING:
            return
        span = span_of(budget, self._catalogue, facts_of(measure)["customer"], measure.time)
        if span.start > part.start:
            key = carry_key(part.budget, part.subject, span.start)
            carried[key] = carried.get(key, 0) + amount

    def _write_carried(self, store: Store, connection: Connection, carried: Mapping[Key, int]) -> None:
        """Only for counters that are not there yet: they are made from what is recorded."""
        there = _there(connection, {carried_for(key): (0, 0, 0) for key in carried})
        wanted = [(key, some) for key, some in carried.items() if some and carried_for(key) not in there]
        make_counters(store, connection, [(key, 0) for key, _ in wanted])
        add_to_counters(connection, [(key, (some, 0, 0)) for key, some in wanted])

    @property
    def snapshot(self) -> Snapshot:
        """By what it goes."""
        return self._snapshot


def facts_of(measure: Measure) -> dict[str, str | None]:
    """What scopes may ask of an event: its dimensions, and what it says of itself."""
    own = {name: _text(measure.series[_PLACES[name]]) for name in _FACTS}
    return {**{name: from_stored(value) for name, value in measure.dimensions.items()}, **own}


Held = tuple[str, tuple[Part, ...]]
"""The state of a hold, and its parts; its id is known."""


def _holds_of(connection: Connection, ids: set[str]) -> dict[str, Held]:
    """The holds that wait for these events; nobody else changes them until this transaction ends."""
    wanted = sorted(ids)
    found: dict[str, Held] = {}
    for at in range(0, len(wanted), _IDS_MAX):
        mine = select(holds.c.id, holds.c.state, holds.c.parts).where(holds.c.id.in_(wanted[at : at + _IDS_MAX]))
        for row in connection.execute(mine.order_by(holds.c.id).with_for_update()):
            found[row.id] = (row.state, read_parts(row.parts))
    return found


def _there(connection: Connection, keys: Mapping[Key, Delta]) -> dict[Key, tuple[int, int]]:
    """Which of these counters exist, locked in the order in which holds lock them: what is spent, and was told."""
    found: dict[Key, tuple[int, int]] = {}
    wanted = sorted(keys)
    place = tuple_(spend.c.budget, spend.c.subject, spend.c.start)
    query = select(spend.c.budget, spend.c.subject, spend.c.start, spend.c.spent, spend.c.noted)
    for at in range(0, len(wanted), _KEYS_MAX):
        mine = query.where(place.in_(wanted[at : at + _KEYS_MAX]))
        ordered = mine.order_by(spend.c.budget, spend.c.subject, spend.c.start).with_for_update()
        found.update(((row[0], row[1], row[2]), (row[3], row[4])) for row in connection.execute(ordered))
    return found


def _end(held: Held, deltas: dict[Key, Delta], buckets: dict[Key, int]) -> None:
    """Take away what a hold had reserved, or what its call was settled with."""
    state, parts = held
    for part in parts:
        if state != "held" and part.start == ROLLING:
            _fill(buckets, part, -part.amount, deltas)
        elif state == "settled":
            _add(deltas, part.key, spent=-part.amount)
        elif state == "lost":
            _add(deltas, part.key, lost=-part.amount)
        else:
            _add(deltas, part.key, held=-part.amount)


def _lose(held: Held, deltas: dict[Key, Delta], buckets: dict[Key, int]) -> None:
    for part in held[1]:
        if part.start == ROLLING:
            _add(deltas, part.key, held=-part.amount)
            _fill(buckets, part, part.amount, deltas)
        else:
            _add(deltas, part.key, held=-part.amount, lost=part.amount)


def _fill(buckets: dict[Key, int], part: Part, amount: int, deltas: dict[Key, Delta]) -> None:
    """Count in the bucket of a rolling window, whose main counter says whether it is there."""
    key = (part.budget, part.subject, part.bucket)
    buckets[key] = buckets.get(key, 0) + amount
    _add(deltas, part.key)


def _add(deltas: dict[Key, Delta], key: Key, *, spent: int = 0, held: int = 0, lost: int = 0) -> None:
    was = deltas.get(key, (0, 0, 0))
    deltas[key] = (was[0] + spent, was[1] + held, was[2] + lost)


def _is_placeholder(measure: Measure) -> bool:
    return is_placeholder(str(measure.series[_PLACES["status"]]), measure.usage)


def _text(stored: object) -> str | None:
    return from_stored(str(stored)) if stored else None
