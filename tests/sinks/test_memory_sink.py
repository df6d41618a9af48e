"""The sink that keeps events in memory."""

from __future__ import annotations

import pytest

from token_meter.sinks import MemorySink
from token_meter.testing.builders import make_event, make_events
from token_meter.testing.conformance import SinkConformance


class TestConformance(SinkConformance):
    deduplicates = True

    @pytest.fixture
    def sink(self):
        return MemorySink()

    def received(self, sink):
        return sink.events


def test_events_stay_in_order_and_the_first_of_an_id_stays():
    sink = MemorySink(name="mine")
    sink.send(make_events(2))
    sink.send([make_event(2, customer="other"), make_event(3)])

    assert sink.events == [make_event(1), make_event(2), make_event(3)]
    assert sink.events[1].customer == "acme"
    assert sink.name == "mine"


def test_the_list_is_a_copy_and_clear_makes_room_for_the_same_events():
    sink = MemorySink()
    sink.send(make_events(2))
    sink.events.clear()
    kept = sink.events
    sink.clear()
    cleared = sink.events
    sink.send(make_events(1))
    sink.close()

    assert (kept, cleared, sink.events) == (make_events(2), [], make_events(1))
