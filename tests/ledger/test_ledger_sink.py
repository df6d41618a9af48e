"""The ledger as a sink: conformance, retries, refusals."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from token_meter.errors import Rejected, Retry
from token_meter.ledger.opening import make_store, parse
from token_meter.sinks import LedgerSink
from token_meter.testing.builders import make_event, make_events
from token_meter.testing.conformance import SinkConformance


class TestConformance(SinkConformance):
    deduplicates = True
    refused = make_event(99, customer="x" * 2000)

    @pytest.fixture
    def sink(self, url):
        sink = LedgerSink(url)
        yield sink
        sink.close()

    def received(self, sink):
        return sink.ledger.events()


def test_a_sink_has_a_name_and_a_ledger(tmp_path):
    sink = LedgerSink(tmp_path / "usage.db", dimensions=["team"], name="main")
    sink.send(make_events(2))

    assert sink.name == "main"
    assert sink.ledger.events() == make_events(2)
    assert sink.ledger.summary().dimensions == ("team",)
    assert repr(sink) == f"LedgerSink(Ledger('sqlite:///{tmp_path}/usage.db'), name='main')"
    sink.close()


@contextmanager
def sink_at(url):
    sink = LedgerSink(url)
    try:
        yield sink
    finally:
        sink.close()


@pytest.mark.parametrize(
    "url", ["postgresql://nobody:secret@127.0.0.1:1/nowhere", "sqlite:////nowhere/at/all/usage.db", "sqlite:////"]
)
def test_a_ledger_that_cannot_be_opened_is_a_retry(url):
    with sink_at(url) as sink, pytest.raises(Retry, match="cannot open the ledger") as caught:
        sink.send([make_event(1)])

    assert "secret" not in str(caught.value)


def test_a_locked_ledger_is_a_retry(tmp_path):
    with sink_at(f"sqlite:///{tmp_path}/usage.db?timeout=0.01") as sink:
        sink.send([make_event(1)])
        other = make_store(parse(tmp_path / "usage.db"))
        with other.writing(), pytest.raises(Retry, match="locked"):
            sink.send([make_event(2)])
        other.engine.dispose()

        sink.send([make_event(2)])

        assert sink.ledger.events() == make_events(2)


def test_only_what_can_never_be_held_is_refused(tmp_path):
    with sink_at(tmp_path / "usage.db") as sink:
        with pytest.raises(Rejected, match="its model is longer than 1024 bytes") as caught:
            sink.send([make_event(1), make_event(2, model="x" * 1025), make_event(3)])

        assert [event.id for event in caught.value.events] == ["evt_2"]


def test_what_only_this_database_cannot_hold_is_refused_alone(postgresql, schema_url):
    """A database in an old encoding has no letters for some names: the server says so, for the whole batch."""
    name = schema_url.rpartition("%3D")[2]
    postgresql.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        before, _, after = schema_url.partition("?")
        with sink_at(f"{before.rpartition('/')[0]}/{name}?{after.replace(name, 'public')}") as sink:
            with pytest.raises(Rejected, match="the ledger cannot hold this event") as caught:
                sink.send([make_event(1, customer="Müller"), make_event(2, customer="株式会社"), make_event(3)])
            sink.send([make_event(1, customer="Müller"), make_event(3)])

            assert [event.id for event in caught.value.events] == ["evt_2"]
            assert sink.ledger.events() == [make_event(1, customer="Müller"), make_event(3)]
            assert sum(row.events for row in sink.ledger.usage()) == 2
    finally:
        postgresql.execute(f"DROP DATABASE {name} WITH (FORCE)")
