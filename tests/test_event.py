"""The meter event: its JSON form, which is stable, and its ids, which are unique."""

from __future__ import annotations

import copy
import json
import os
import re
import threading
import warnings
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from token_meter import InvalidEvent, MeterEvent, NewerSchema, Usage
from token_meter.clock import Stamps
from token_meter.event import SCHEMA, format_time, new_id, parse_time
from token_meter.testing.builders import full_event, make_event, single_events


@properties(max_examples=150)
@given(single_events())
def test_the_json_form_round_trips(event: MeterEvent) -> None:
    text = json.dumps(event.to_json())

    assert MeterEvent.from_json(json.loads(text)) == event
    assert json.dumps(MeterEvent.from_json(json.loads(text)).to_json()) == text


def test_every_field_round_trips_and_empty_ones_are_left_out() -> None:
    full = full_event()

    assert MeterEvent.from_json(json.loads(json.dumps(full.to_json()))) == full
    assert set(full.to_json()) == {each.name for each in fields(MeterEvent)}
    assert set(MeterEvent(id="e", time=full.time, usage=Usage()).to_json()) == {
        "schema", "id", "time", "usage", "status", "meter", "mode",
    }  # fmt: skip


def test_the_json_form_of_today_is_read_for_ever() -> None:
    """This document stands in journals: it must be read the same by every later version."""
    document = {
        "schema": 1, "id": "019aa", "time": "2026-01-01T00:00:01.000002Z", "usage": {"input": 3, "output": 1},
        "status": "partial", "meter": "llm_tokens", "customer": "acme", "dimensions": {"team": "blue"},
        "provider": "azure", "publisher": "openai", "model": "gpt-5-2025-08-07", "model_requested": "gpt-5",
        "operation": "chat", "duration_ms": 12, "anomalies": ["closed"], "price_context": {"service_tier": "flex"},
        "response_id": "r", "host": "h", "mode": "test", "estimator": "bytes/4", "corrects": "019ab",
        "raw_usage": {"prompt_tokens": 3},
    }  # fmt: skip
    event = MeterEvent.from_json(document)

    assert event.to_json() == document
    assert (event.usage, event.time.microsecond, event.anomalies) == (Usage(input=3, output=1), 2, ("closed",))


def test_fields_of_a_later_minor_version_are_ignored_and_later_schemas_are_refused() -> None:
    document = make_event().to_json()

    assert MeterEvent.from_json({**document, "quantum": 1}) == make_event()
    for schema in (SCHEMA + 1, "1", 1.5, None):
        with pytest.raises(NewerSchema, match="upgrade"):
            MeterEvent.from_json({**document, "schema": schema})


@pytest.mark.parametrize(
    "change",
    [{"id": None}, {"time": None}, {"time": "yesterday"}, {"usage": None}, {"usage": {"tokens": 1}},
     {"usage": {"input": -1}}, {"usage": [1]}, {"status": "sure"}, {"anomalies": 7}, {"time": 7}],
    ids=str,
)  # fmt: skip
def test_what_is_no_event_is_refused(change: dict[str, Any]) -> None:
    document = {**make_event().to_json(), **change}
    document = {name: value for name, value in document.items() if value is not None}
    with pytest.raises(InvalidEvent, match="not a meter event"):
        MeterEvent.from_json(document)


def test_events_are_frozen_and_hashed_by_id() -> None:
    event = make_event()
    with pytest.raises(FrozenInstanceError):
        event.customer = "globex"  # type: ignore[misc]

    assert len({event, copy.copy(event), replace(event, customer="globex")}) == 2
    assert hash(event) == hash(replace(event, customer="globex"))


# ---- time ---------------------------------------------------------------------------------------------------------

moments = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.timezones() | st.just(UTC))  # noqa: DTZ001


@properties(max_examples=100)
@given(moments, moments)
def test_times_round_trip_and_their_text_sorts_as_they_do(a: datetime, b: datetime) -> None:
    assert parse_time(format_time(a)) == a
    assert (format_time(a) < format_time(b)) == (a.astimezone(UTC) < b.astimezone(UTC))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", format_time(a))


def test_times_of_others_are_read() -> None:
    expected = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for text in (
        "2026-01-02T03:04:05Z",
        "2026-01-02T05:04:05+02:00",
        "2026-01-02T03:04:05",
        "2026-01-02 03:04:05.000Z",
    ):
        assert parse_time(text) == expected
    assert format_time(datetime(2026, 1, 2, 3, 4, 5)) == format_time(expected)  # noqa: DTZ001
    assert format_time(expected.astimezone(timezone(timedelta(hours=14)))) == format_time(expected)


@properties(max_examples=200)
@given(st.lists(st.integers(min_value=0, max_value=4 * 10**18), min_size=1, max_size=5))
def test_stamps_are_the_formatted_time_whichever_way_the_clock_steps(moments: list[int]) -> None:
    stamps = Stamps()
    for now_ns in moments:
        micros = now_ns // 1000
        expected = datetime.fromtimestamp(micros // 10**6, UTC) + timedelta(microseconds=micros % 10**6)
        assert stamps.text(now_ns) == format_time(expected)


# ---- ids ----------------------------------------------------------------------------------------------------------


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    ids = [new_id() for _ in range(2000)]

    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", id) for id in ids)
    assert len(set(ids)) == len(ids)
    assert [id[:13] for id in ids] == sorted(id[:13] for id in ids)


def test_ids_are_unique_across_threads() -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.extend([new_id() for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(ids)) == 8000


def test_ids_are_unique_across_a_fork() -> None:
    new_id()  # some randomness is drawn in advance: a child must not use the same
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            os.write(writer, "\n".join(new_id()[14:] for _ in range(200)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    mine = {new_id()[14:] for _ in range(200)}
    with os.fdopen(reader) as theirs:
        other = set(theirs.read().split())
    os.waitpid(child, 0)

    assert len(mine) == len(other) == 200
    assert not mine & other
