"""Reading events back: filters, order, pages, totals."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from token_meter.ledger import ANY, Cursor, EventPage, LedgerSummary
from token_meter.testing.builders import EPOCH, make_event, make_events
from token_meter.usage import Usage

FIELDS = ["customer", "provider", "publisher", "model", "operation", "status", "meter", "mode", "host"]


def ids(events):
    return [event.id for event in events]


def test_events_are_found_by_each_field(ledger):
    others = {field: {"mode": "test", "status": "partial"}.get(field, "other") for field in FIELDS}
    ledger.record([make_event(0), *(make_event(n, **{field: others[field]}) for n, field in enumerate(FIELDS, 1))])

    for number, (field, other) in enumerate(others.items(), 1):
        assert ids(ledger.events(**{field: other})) == [f"evt_{number}"]
        assert len(ledger.events(**{field: ANY})) == len(FIELDS) + 1
        assert ids(ledger.events(**{field: None})) == []
        assert sum(row.events for row in ledger.usage(by=(), **{"meter": ANY, field: other})) == 1


def test_events_are_found_by_what_they_lack(ledger):
    ledger.record(
        [make_event(1, customer=None), make_event(2, dimensions={"feature": "x"}), make_event(3, customer="")]
    )

    assert ids(ledger.events(customer=None)) == ["evt_1"]
    assert ids(ledger.events(customer="")) == ["evt_3"]
    assert ids(ledger.events(dimensions={"feature": None})) == ["evt_1", "evt_3"]
    assert ids(ledger.events(dimensions={"feature": "x", "other": None})) == ["evt_2"]


def test_one_event_is_found_by_its_id(ledger):
    strange = make_event(9, id="nul \x00 and ü %_'", customer="globex")
    ledger.record([*make_events(3), strange])

    assert ledger.event("evt_2") == make_event(2)
    assert ledger.event(strange.id) == strange
    assert [ledger.event(id) for id in ("evt_", "EVT_2", "evt_2 ", "", "nul ", "x" * 5_000)] == [None] * 6


def test_one_event_is_the_one_that_counts(ledger):
    """Of a conflict the first; of a placeholder and its real event the real one."""
    ledger.record([make_event(1), make_event(2, usage=Usage(), status="unmetered")])
    ledger.record([make_event(1, customer="globex"), make_event(2)])

    assert ledger.event("evt_1") == make_event(1)
    assert ledger.event("evt_2") == make_event(2)


def test_order_and_limit(ledger):
    ledger.record(list(reversed(make_events(5))))

    assert ids(ledger.events()) == ["evt_1", "evt_2", "evt_3", "evt_4", "evt_5"]
    assert ids(ledger.events(order="desc", limit=2)) == ["evt_5", "evt_4"]
    assert ledger.events(limit=0) == []
    with pytest.raises(ValueError, match="order must be"):
        ledger.events(order="sideways")


pages = st.tuples(st.integers(1, 7), st.sampled_from(["asc", "desc"]))
placed = st.lists(
    st.tuples(st.integers(0, 3), st.text(st.characters(), max_size=3)), max_size=20, unique_by=lambda each: each[1]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=placed, paging=pages, data=st.data())
def test_pages_follow_each_other_without_gap_or_overlap(ledger, places, paging, data):
    size, order = paging
    run = f"run-{len(ledger.events())}-"
    batch = [
        make_event(1, id=run + name, customer=run, time=EPOCH + timedelta(seconds=second)) for second, name in places
    ]
    ledger.record(batch)
    expected = sorted(batch, key=lambda event: (event.time, to_bytes(event.id)), reverse=order == "desc")

    iterated = list(ledger.iter_events(customer=run, order=order, page_size=size))
    paged, after = [], None
    while True:
        page = ledger.page(customer=run, order=order, limit=size, after=after)
        paged += page.events
        after = page.next
        if after is None:
            break

    assert iterated == expected
    assert paged == expected


def to_bytes(text):
    from token_meter.ledger.text import to_stored

    return to_stored(text).encode()


def test_reading_on_while_events_arrive_misses_none_and_repeats_none(ledger):
    ledger.record(make_events(6))
    reader = ledger.iter_events(page_size=2)
    seen = [next(reader), next(reader)]

    ledger.record([make_event(7), make_event(8), make_event(100, time=EPOCH)])
    seen += list(reader)

    assert ids(seen) == [f"evt_{number}" for number in range(1, 9)]


def test_a_reader_may_record_between_two_events(ledger):
    ledger.record(make_events(3))

    for event in ledger.iter_events(page_size=1):
        ledger.record([replace(event, id=f"{event.id}/again", time=event.time - timedelta(days=1))])

    assert len(ledger.events()) == 6


def test_a_cursor_is_text_and_comes_back(ledger):
    ledger.record(make_events(3))
    first = ledger.page(limit=2)
    second = ledger.page(limit=2, after=first.next)

    assert ids(first.events) == ["evt_3", "evt_2"]
    assert second == EventPage(ledger.events(limit=1), None)
    assert Cursor.read(first.next) == Cursor(int((EPOCH.timestamp() + 2) * 1_000_000), "evt_2")
    assert list(ledger.iter_events(after=first.next)) == ledger.events()[2:]


@pytest.mark.parametrize("text", ["", "nonsense", "bm9uc2Vuc2U", "WzEsMl0", "WyJhIiwiYiJd", "é", "null"])
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(ValueError, match="is no cursor"):
        Cursor.read(text)


def test_a_page_has_a_size_limit(ledger):
    with pytest.raises(ValueError, match="between 1 and 10000"):
        ledger.page(limit=10_001)
    with pytest.raises(ValueError, match="between 1 and 10000"):
        ledger.iter_events(page_size=0)


def test_summary_of_an_empty_ledger(ledger):
    assert ledger.summary() == LedgerSummary(
        events=0, by_status={}, unattributed=0, with_anomalies=0, conflicts=0, superseded=0, first=None, last=None,
        customers=0, dimensions=("feature",), dimensions_overflowed=(),
    )  # fmt: skip


def test_summary_counts_what_a_human_wants_to_know(ledger):
    ledger.record(
        [
            make_event(1),
            make_event(2, status="estimated", customer="globex", meter="api_calls"),
            make_event(3, status="unmetered", usage=Usage(), customer=None, anomalies=("no_response",)),
            make_event(4, status="unmetered", usage=Usage()),
        ]
    )
    ledger.record([make_event(1, customer="initech"), make_event(4)])

    assert ledger.summary() == LedgerSummary(
        events=4, by_status={"complete": 2, "estimated": 1, "unmetered": 1}, unattributed=1, with_anomalies=1,
        conflicts=1, superseded=1, first=make_event(1).time, last=make_event(4).time, customers=2,
        dimensions=("feature",), dimensions_overflowed=(),
    )  # fmt: skip


def test_conflicts_come_newest_first_and_limited(ledger):
    for number in range(1, 4):
        ledger.record([make_event(number)])
        ledger.record([make_event(number, customer="globex")])

    found = ledger.conflicts(limit=2)

    assert [conflict.id for conflict in found] == ["evt_3", "evt_2"]
    assert found[0].recorded > datetime(2026, 1, 1, tzinfo=UTC)
