"""Customers at first sight: whoever an event names is in the book from the transaction on that records it."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select, text

from token_meter.errors import Retry
from token_meter.ledger import Ledger, migrate
from token_meter.ledger.first_sight import FirstSight
from token_meter.ledger.opening import make_store, parse
from token_meter.ledger.rollups import REMEMBERED_MAX, Memory
from token_meter.ledger.rows import FACTS, prepare
from token_meter.ledger.tables import (
    SERIES_COLUMNS,
    VERSION_TABLE,
    conflicts,
    customers,
    days,
    hours,
    series,
    state,
)
from token_meter.ledger.tables import events as events_table
from token_meter.ledger.text import to_stored
from token_meter.testing.builders import make_event, make_events
from token_meter.usage import Usage


def book(ledger):
    """Everybody in it: (mode, id), in order."""
    with ledger.reading() as (_, connection):
        query = select(customers.c.mode, customers.c.id).order_by(customers.c.mode, customers.c.id)
        return [tuple(row) for row in connection.execute(query)]


def test_an_event_enters_its_customer(ledger):
    before = time.time_ns() // 1000

    ledger.record([make_event(1), make_event(2), make_event(3, customer="globex")])

    assert book(ledger) == [("live", "acme"), ("live", "globex")]
    with ledger.reading() as (_, connection):
        rows = connection.execute(select(customers)).mappings().all()
    for row in rows:
        assert before <= row["created"] == row["updated"] <= time.time_ns() // 1000
        assert {name: value for name, value in row.items() if name not in ("mode", "id", "created", "updated")} == {
            "name": None, "email": None, "currency": None, "time_zone": None, "external_ids": None, "details": None,
            "status": "active",
        }  # fmt: skip


def test_live_and_test_customers_are_apart(ledger):
    ledger.record([make_event(1), make_event(2, mode="test"), make_event(3, customer="globex", mode="test")])

    assert book(ledger) == [("live", "acme"), ("test", "acme"), ("test", "globex")]


def test_events_of_nobody_and_of_no_known_mode_enter_nobody(ledger):
    ledger.record([make_event(1, customer=None), make_event(2, customer=""), make_event(3, mode="staging")])

    assert book(ledger) == []
    assert len(ledger.events()) == 3


def test_a_customer_is_entered_once_however_the_events_come(ledger):
    batch = [make_event(number, customer=f"c{number % 3}") for number in range(9)]

    for start in range(0, 9, 2):
        ledger.record(batch[start : start + 2])
    ledger.record([*batch, *batch])

    assert book(ledger) == [("live", "c0"), ("live", "c1"), ("live", "c2")]


def test_hostile_names_are_entered_as_they_are_stored(ledger):
    names = ["\0", "\ud800", "\ue000", "é" * 512, "'; --", "%s", "Ω株🜚"]

    ledger.record([make_event(number, customer=name) for number, name in enumerate(names)])

    assert {id for _, id in book(ledger)} == {to_stored(name) for name in names}


def test_only_events_that_count_enter_their_customer(ledger):
    ledger.record([make_event(1)])

    ledger.record([make_event(1, customer="conflict")])
    ledger.record([make_event(2, status="unmetered", usage=Usage())])
    ledger.record([make_event(2, customer="globex")])

    assert ledger.summary().conflicts == 1
    assert book(ledger) == [("live", "acme"), ("live", "globex")]


def test_what_was_rolled_back_is_not_remembered(ledger):
    """A table is taken away, so that the transaction fails after the customer was entered."""
    ledger.record([make_event(1)])
    with ledger.writing() as (_, connection):
        connection.execute(text(f"ALTER TABLE {conflicts.name} RENAME TO elsewhere"))

    with pytest.raises(Retry):
        ledger.record([make_event(2, customer="globex"), make_event(1, customer="conflict")])
    assert book(ledger) == [("live", "acme")]

    with ledger.writing() as (_, connection):
        connection.execute(text(f"ALTER TABLE elsewhere RENAME TO {conflicts.name}"))
    ledger.record([make_event(2, customer="globex")])
    assert book(ledger) == [("live", "acme"), ("live", "globex")]


def test_known_customers_cost_no_statement(ledger):
    ledger.record([make_event(1)])
    with ledger.writing() as (_, connection):
        connection.execute(customers.delete())

    ledger.record(make_events(9))

    assert book(ledger) == [], "it was looked for again"


def test_numbering_anew_forgets_whom_it_knew(ledger):
    ledger.record([make_event(1)])
    with ledger.writing() as (_, connection):
        connection.execute(customers.delete())

    ledger.rebuild_rollups()
    ledger.record([make_event(2)])

    assert book(ledger) == [("live", "acme")]


def test_the_memory_is_bounded(ledger):
    memory = Memory(customers={("live", str(number)) for number in range(REMEMBERED_MAX + 1)})
    with ledger.writing() as (store, connection):
        first_sight = FirstSight(store, connection, memory)
        first_sight.meet([prepare(make_event(1), recorded=5).measure], 5)
    first_sight.remember()

    assert memory.customers == {("live", "acme")}
    assert book(ledger) == [("live", "acme")]


def test_writers_who_meet_the_same_customers_enter_each_once(url):
    def record(first):
        with Ledger(url) as ledger:
            for start in range(first, first + 60, 6):
                ledger.record([make_event(n, customer=f"c{-n % 7}") for n in range(start, start + 6)])

    writers = [threading.Thread(target=record, args=(first,)) for first in (0, 0, 30, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    with Ledger(url) as ledger:
        assert len(ledger.events()) == 90
        assert book(ledger) == [("live", f"c{number}") for number in range(7)]


# A ledger from before there were customers


@contextmanager
def first_revision(url):
    """A transaction in a ledger at revision 0001, as the first version of this package made it."""
    store = make_store(parse(url))
    try:
        store.create()
        with store.migrating() as connection:
            config = Config()
            config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
            connection.execute(text(f"INSERT INTO {state.name} (id, generation, created) VALUES (1, 1, 1)"))
            yield store, connection
    finally:
        store.engine.dispose()


def write_as_first_version(connection, number, prepared):
    """One event, in a series of its own, as the first version wrote it."""
    row = dict(zip(FACTS, prepared.row, strict=True))
    measured = dict(zip(SERIES_COLUMNS, (*prepared.measure.series, None), strict=True))
    place = {"series": number, "quantity": "events", "high": 0, "low": 1}
    for table, values in (
        (events_table, row),
        (series, {"id": number, "digest": str(number).encode(), **measured}),
        (hours, {"period": prepared.measure.hour, **place}),
        (days, {"period": prepared.measure.hour // 24, **place}),
    ):
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(text(f"INSERT INTO {table.name} ({names}) VALUES ({marks})"), values)


def revision(url):
    store = make_store(parse(url))
    try:
        with store.reading() as connection:
            return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    finally:
        store.engine.dispose()


def test_a_ledger_of_the_first_version_gets_the_customers_of_its_events(url):
    events = [
        make_event(1),
        make_event(2, model="other"),
        make_event(3, customer="globex\0", mode="test"),
        make_event(4, customer=None),
        make_event(5, customer=""),
        make_event(6, customer="x", mode="staging"),
    ]
    with first_revision(url) as (_, connection):
        prepared = [prepare(event, recorded=7) for event in events]
        for number, each in enumerate(prepared, 1000):
            write_as_first_version(connection, number, each)
    assert revision(url) == "0001"
    before = time.time_ns() // 1000

    with Ledger(url) as ledger:
        assert sorted(ledger.events(), key=lambda event: event.id) == events
        assert book(ledger) == [("live", "acme"), ("test", to_stored("globex\0"))]
        with ledger.reading() as (_, connection):
            rows = connection.execute(select(customers.c.status, customers.c.created, customers.c.updated)).all()
        assert all(row.status == "active" and before <= row.created == row.updated for row in rows)
        ledger.record([make_event(7), make_event(8, customer="initech")])
        assert ("live", "initech") in book(ledger)
    assert revision(url) == migrate.HEAD


def test_an_empty_ledger_of_the_first_version_opens(url):
    with first_revision(url):
        pass

    with Ledger(url) as ledger:
        assert book(ledger) == []
        ledger.record([make_event(1)])
        assert book(ledger) == [("live", "acme")]
