"""Several processes and one ledger: sums stay exact through races, crashes, forks and upgrades."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import text

from tests.ledger import brute
from tests.ledger.worker import numbered
from tests.workers import together, workers
from token_meter.errors import NewerSchema, Retry
from token_meter.ledger import Ledger
from token_meter.ledger.migrate import HEAD
from token_meter.ledger.opening import make_store, parse
from token_meter.ledger.tables import VERSION_TABLE
from token_meter.testing.builders import make_event, make_events

WORKER = "tests.ledger.worker"


def assert_rollups_equal_events(ledger):
    by = ("customer", "model", "status", "feature", "token_type")
    for bucket in (None, "hour", "day"):
        assert brute.answered(ledger.usage(by=by, bucket=bucket)) == brute.usage(ledger.events(), by=by, bucket=bucket)


def test_four_writers_of_the_same_events_record_each_once(url):
    Ledger(url).close()
    with workers(WORKER, *(("record", url, 0, 1000, seed) for seed in range(4))) as writers:
        results = together(writers)

    assert sum(result["inserted"] for result in results) == 1000
    assert [result["busy"] for result in results] == [0] * 4
    with Ledger(url) as ledger:
        assert sorted(ledger.events(), key=lambda event: event.usage.input) == [numbered(n) for n in range(1000)]
        assert ledger.summary().conflicts == 0
        assert_rollups_equal_events(ledger)


def test_a_killed_writer_leaves_whole_batches_and_right_sums(url):
    chance = random.Random(5)
    acknowledged = 0
    for attempt in range(3):
        with workers(WORKER, ("record", url, attempt * 1000, 1000, attempt)) as (writer,):
            writer.wait_for("ready")
            writer.go()
            batches = chance.randrange(1, 15)
            writer.wait_for(f"recorded {batches * 50}")
            writer.kill()
            acknowledged += batches * 50

    with Ledger(url) as ledger:
        assert len(ledger.events()) >= acknowledged
        assert len(ledger.events()) % 50 == 0
        assert_rollups_equal_events(ledger)
        ledger.record([numbered(n) for n in range(3000)])
        assert len(ledger.events()) == 3000
        assert_rollups_equal_events(ledger)


def test_processes_that_open_a_new_ledger_at_once_make_it_once(url):
    with workers(WORKER, *(("first_use", url, number) for number in range(5))) as starters:
        results = together(starters)

    assert results == [{"inserted": 1}] * 5
    with Ledger(url) as ledger:
        assert [event.id for event in ledger.events()] == [f"evt_{number}" for number in range(5)]
        assert ledger.summary().dimensions == ("feature",)


def test_a_fork_in_the_middle_of_recording_harms_neither_side(url):
    with workers(WORKER, ("fork", url, 5, 40)) as (forking,):
        result = forking.result()

    assert result == {"codes": [0] * 5, "events": 240}
    with Ledger(url) as ledger:
        assert sorted(ledger.events(), key=lambda event: event.usage.input) == [numbered(n) for n in range(240)]
        assert_rollups_equal_events(ledger)
        if ledger.file is not None:
            with closing(sqlite3.connect(ledger.file)) as raw:
                assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextmanager
def raw_writing(url):
    """A writing transaction beside the ledger."""
    store = make_store(parse(url))
    try:
        with store.writing() as connection:
            yield connection
    finally:
        store.engine.dispose()


def test_a_ledger_of_a_newer_version_is_left_alone(url):
    with Ledger(url) as running:
        running.record([make_event(1)])
        with raw_writing(url) as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

        with pytest.raises(NewerSchema, match="revision 9999, written by a newer version"):
            running.record([make_event(2)])
        with Ledger(url) as started, pytest.raises(NewerSchema, match="Upgrade token_meter"):
            started.events()
        with Ledger(url, dimensions=["new"]) as started, pytest.raises(NewerSchema):
            started.record([make_event(2)])

        with raw_writing(url) as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'"))
        assert running.events() == [make_event(1)]
        running.record([make_event(2)])


def test_a_writer_that_finds_the_file_locked_is_told_to_retry_and_readers_go_on(tmp_path):
    with Ledger(f"sqlite:///{tmp_path}/usage.db?timeout=0.01") as ledger:
        ledger.record([make_event(1)])
        with raw_writing(ledger.url):
            with pytest.raises(Retry, match="database is locked"):
                ledger.record([make_event(2)])
            assert ledger.events() == [make_event(1)]
            assert sum(row.events for row in ledger.usage()) == 1

        ledger.record([make_event(2)])

        assert ledger.events() == make_events(2)


def test_a_lost_server_connection_is_a_retry_and_then_forgotten(schema_url, postgresql):
    name = f"tm-{os.getpid()}-{id(schema_url)}"
    with Ledger(f"{schema_url}&application_name={name}") as ledger:
        ledger.record([make_event(1)])
        with ledger._opened.reading():
            terminate(postgresql, name)
        terminate(postgresql, name)

        ledger.record(make_events(3))

        assert ledger.events() == make_events(3)


def terminate(postgresql, name):
    postgresql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (name,))
