"""The builders and strategies of meter events."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

from hypothesis import Phase, find, given, settings

from token_meter.event import STATUSES, MeterEvent
from token_meter.testing.builders import events, full_event, make_event, make_events, single_events, usages
from token_meter.usage import TOKEN_TYPES, Usage


def test_an_event_has_sensible_fields_and_any_can_be_given():
    event = make_event(2, customer=None, usage=Usage(output=9))

    assert (event.id, event.response_id, event.customer, event.usage) == ("evt_2", "chatcmpl-2", None, Usage(output=9))
    assert event.to_json()["time"] == "2026-01-01T00:00:02.000000Z"
    assert [each.id for each in make_events(3, model="m")] == ["evt_1", "evt_2", "evt_3"]
    assert make_events(3, model="m")[2].model == "m"


def test_a_full_event_leaves_no_field_empty():
    event = full_event()

    defaults = MeterEvent(id="x", time=event.time, usage=Usage())
    same = {each.name for each in fields(MeterEvent) if getattr(event, each.name) == getattr(defaults, each.name)}
    assert same == {"time", "meter", "schema"}
    assert set(event.usage) == set(TOKEN_TYPES)
    assert MeterEvent.from_json(event.to_json()) == event


@given(events(max_size=5))
@settings(max_examples=50, deadline=None)
def test_strategies_make_valid_events_with_ids_of_their_own(batch):
    assert len({event.id for event in batch}) == len(batch)
    for event in batch:
        assert MeterEvent.from_json(event.to_json()) == event


def test_strategies_reach_the_interesting_cases():
    quick = settings(phases=[Phase.generate], deadline=None, database=None, max_examples=5000)
    reached = lambda strategy, condition: find(strategy, condition, settings=quick)  # noqa: E731

    assert reached(usages(), lambda usage: usage.tokens > 2**53).tokens > 2**53
    for status in STATUSES:
        assert reached(single_events(), lambda event, status=status: event.status == status)
    assert reached(events(), lambda batch: len(batch) > 1 and batch[0].time > batch[1].time)
    assert len(reached(events(min_size=2, quantity_max=5), lambda batch: True)) > 1


def test_hypothesis_is_loaded_only_for_strategies():
    program = "import sys, token_meter.testing.builders as e; e.make_event(); a = 'hypothesis' in sys.modules; "
    program += "e.events(); print(a, 'hypothesis' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout.split() == ["False", "True"]
