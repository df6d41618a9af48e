"""Recording: each id once, nothing lost, nothing overwritten, whatever the order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from token_meter.errors import Rejected
from token_meter.event import STATUSES, MeterEvent
from token_meter.ledger import ANY, Recorded
from token_meter.testing.builders import events, full_event, make_event, make_events
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

ON_BOTH = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NAUGHTY = [
    "", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\ue000", "\ue0000000", "Ωmega 株式会社 🜚", "e\u0301",
    "\n\r\t\u2028", "'; DROP TABLE events; --", '"{},\\', "%s %(x)s :name ?", "NULL", "(other)", "x" * 1024, "é" * 512,
]  # fmt: skip

names = st.text(st.characters(), max_size=8) | st.sampled_from(NAUGHTY)
texts = st.none() | names
required = st.text(st.characters(), min_size=1, max_size=8)
numbers = st.integers(min_value=0, max_value=QUANTITY_MAX)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC) | offsets)  # noqa: DTZ001

any_event = st.builds(
    MeterEvent,
    id=st.text(st.characters(), max_size=8),
    time=times,
    usage=st.dictionaries(st.sampled_from(list(TOKEN_TYPES)), numbers).map(Usage),
    duration_ms=st.none() | st.integers(-(2**63) + 1, QUANTITY_MAX),
    meter=required,
    customer=texts,
    provider=texts,
    publisher=texts,
    model=texts,
    model_requested=texts,
    operation=texts,
    status=st.sampled_from(STATUSES),
    estimator=texts,
    anomalies=st.lists(st.text(), max_size=3).map(tuple),
    price_context=st.dictionaries(st.text(max_size=5) | st.just("context_tokens"), json_values, max_size=4),
    dimensions=st.dictionaries(names, names, max_size=4),
    response_id=texts,
    host=texts,
    mode=st.sampled_from(["live", "test"]),
    corrects=texts,
    raw_usage=st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=4),
)


@ON_BOTH
@given(batch=st.lists(any_event, max_size=4))
def test_every_field_of_every_event_comes_back(ledger, batch):
    batch = [replace(event, id=f"{event.id}{uuid4()}", meter=f"{event.meter}{uuid4()}") for event in batch]

    recorded = ledger.record(batch)

    assert recorded == Recorded(inserted=len(batch))
    for event in batch:
        assert ledger.events(meter=event.meter) == [event]


def test_an_event_with_every_field_comes_back(ledger):
    ledger.record([full_event()])

    assert ledger.events() == [full_event()]
    assert ledger.events()[0].to_json() == full_event().to_json()


def test_recording_again_changes_nothing(ledger):
    batch = make_events(3)

    assert ledger.record(batch) == Recorded(inserted=3)
    assert ledger.record(batch) == Recorded(duplicates=3)
    assert ledger.record([*batch[1:], make_event(4)]) == Recorded(inserted=1, duplicates=2)
    assert ledger.record([]) == Recorded()
    assert ledger.events() == make_events(4)
    assert usage_of(ledger) == (Usage(input=12, output=4), 4)


def test_an_event_twice_in_one_batch_is_one_event(ledger):
    assert ledger.record([make_event(1), make_event(2), make_event(1)]) == Recorded(inserted=2, duplicates=1)
    assert usage_of(ledger) == (Usage(input=6, output=2), 2)


@ON_BOTH
@given(batch=events(max_size=12), random=st.randoms(use_true_random=False), size=st.integers(1, 13))
def test_order_and_batches_and_repetition_do_not_matter(ledger, batch, random, size):
    def answer(deliveries):
        run = uuid4().hex
        for delivered in deliveries:
            ledger.record([replace(event, id=f"{run}/{event.id}", meter=run) for event in delivered])
        by = ("customer", "model", "status", "token_type")
        return [(row.group, row.usage, row.events) for row in ledger.usage(by=by, bucket="day", meter=run)]

    shuffled = random.sample(batch, k=len(batch)) + batch[:3]

    assert answer([batch]) == answer([shuffled[start : start + size] for start in range(0, len(shuffled), size)])


BILLING = [
    {"customer": "globex"}, {"customer": None}, {"provider": "azure"}, {"publisher": None}, {"model": "gpt-5"},
    {"usage": Usage(input=3, output=2)}, {"usage": Usage()}, {"meter": "api_calls"}, {"price_context": {"batch": True}},
    {"status": "partial"}, {"mode": "test"}, {"corrects": "evt_0"}, {"dimensions": {"feature": "chat"}},
    {"dimensions": {"undeclared": "x"}},
]  # fmt: skip
OTHERWISE = [
    {"time": datetime(2026, 2, 1, tzinfo=UTC)}, {"duration_ms": 5}, {"raw_usage": {"a": 1}}, {"anomalies": ("odd",)},
    {"response_id": None}, {"host": None}, {"estimator": "me"}, {"model_requested": None}, {"operation": None},
]  # fmt: skip


def test_another_event_under_the_same_id_is_a_conflict_that_stays_visible(ledger):
    originals = make_events(len(BILLING))
    others = [replace(event, **change) for event, change in zip(originals, BILLING, strict=True)]
    ledger.record(originals)

    assert ledger.record(others) == Recorded(conflicts=len(others))
    assert ledger.record([*others, *others]) == Recorded(duplicates=len(others), conflicts=len(others))
    assert ledger.events() == originals
    assert usage_of(ledger) == (sum((event.usage for event in originals), Usage()), len(originals))
    assert ledger.summary().conflicts == len(others)
    found = {conflict.id: (conflict.kind, conflict.kept, conflict.offered) for conflict in ledger.conflicts()}
    assert found == {event.id: ("conflict", event, other) for event, other in zip(originals, others, strict=True)}


def test_a_repeated_read_of_the_same_object_is_no_conflict(ledger):
    originals = make_events(len(OTHERWISE))
    ledger.record(originals)

    again = [replace(event, **change) for event, change in zip(originals, OTHERWISE, strict=True)]

    assert ledger.record(again) == Recorded(duplicates=len(again))
    assert ledger.events() == originals
    assert ledger.conflicts() == []


def test_a_conflict_inside_one_batch_is_one_too(ledger):
    assert ledger.record([make_event(1), make_event(1, customer="globex")]) == Recorded(inserted=1, conflicts=1)
    assert ledger.events() == [make_event(1)]
    assert [conflict.offered.customer for conflict in ledger.conflicts()] == ["globex"]


def test_the_real_event_counts_and_its_placeholder_stays_visible_in_any_order(ledger):
    placeholders = [
        make_event(number, status="unmetered", usage=Usage(), anomalies=("no_response",), model=None)
        for number in (1, 2, 3)
    ]
    ledger.record([placeholders[0]])
    ledger.record(make_events(3)[1:2])

    assert ledger.record([make_event(1)]) == Recorded(inserted=1)
    assert ledger.record([placeholders[1]]) == Recorded(duplicates=1)
    assert ledger.record([placeholders[2], make_event(3)]) == Recorded(inserted=1, duplicates=1)
    assert ledger.record([*placeholders, *make_events(3)]) == Recorded(duplicates=6)

    assert ledger.events() == make_events(3)
    assert [(row.group, row.usage, row.events) for row in ledger.usage(by=("status", "model"))] == [
        ({"status": "complete", "model": "gpt-5-2025-08-07"}, Usage(input=9, output=3), 3)
    ]
    found = sorted(ledger.conflicts(), key=lambda conflict: conflict.id)
    assert [conflict.kind for conflict in found] == ["superseded"] * 3
    assert [conflict.offered for conflict in found] == placeholders
    assert (ledger.summary().conflicts, ledger.summary().superseded) == (0, 3)
    assert ledger.summary().by_status == {"complete": 3}


def test_two_different_real_events_after_a_placeholder_are_a_conflict(ledger):
    ledger.record([make_event(1, status="unmetered", usage=Usage())])

    assert ledger.record([make_event(1), make_event(1, customer="globex")]) == Recorded(inserted=1, conflicts=1)
    assert ledger.events() == [make_event(1)]


def test_sums_beyond_what_a_database_integer_holds_are_exact(ledger):
    batch = [make_event(number, usage=Usage(input=QUANTITY_MAX, output=number)) for number in range(1, 8)]
    ledger.record(batch[:4])
    ledger.record(batch[4:])
    everything = Usage.of({"input": 7 * QUANTITY_MAX, "output": 28})

    assert usage_of(ledger) == (everything, 7)
    assert usage_of(ledger, since="2026-01-01T00:00:00.5") == (everything, 7)
    assert ledger.usage(by=("never seen",))[0].usage == everything


def test_hostile_text_is_kept_searched_and_grouped(ledger):
    batch = [
        make_event(
            number, id=f"{text[:100]}/{number}", customer=text, model=text, dimensions={"feature": text, text: text}
        )
        for number, text in enumerate(NAUGHTY)
        if len(text) < 1000
    ]

    assert ledger.record(batch) == Recorded(inserted=len(batch))
    assert ledger.record(batch) == Recorded(duplicates=len(batch))
    assert sorted(ledger.events(), key=lambda event: event.time) == batch
    for event in batch:
        text = event.customer
        assert ledger.events(customer=text, model=text, dimensions={text: text, "feature": text}) == [event]
        [row] = ledger.usage(by=("customer", "feature", text), customer=text, dimensions={"feature": text})
        assert (row.group, row.events) == ({"customer": text, "feature": text, text: text}, 1)
    assert {row["feature"] for row in ledger.usage(by="feature")} == {event.customer for event in batch}
    assert len(ledger.page(limit=len(batch)).events) == len(batch)


def test_an_event_the_ledger_can_never_hold_is_refused_alone(ledger):
    good = make_events(2)
    bad = [
        make_event(10, id=""),
        make_event(11, id="x" * 513),
        make_event(12, customer="x" * 1025),
        make_event(13, model="é" * 513),
        make_event(14, dimensions={"x" * 1025: "y"}),
        make_event(15, dimensions={str(number): "y" * 1000 for number in range(70)}),
        make_event(16, raw_usage={"x": "y" * 70_000}),
        make_event(17, customer=5),
        make_event(18, dimensions={"a": 5}),
        make_event(19, dimensions={"a": ["unhashable"]}),
        make_event(20, time=datetime(2026, 1, 1)),  # noqa: DTZ001
        make_event(21, usage=Usage.of({"input": -1})),
        make_event(22, usage=Usage.of({"input": 2**63})),
        make_event(23, usage=Usage.of({"input": 1.5})),
        make_event(24, usage=Usage.of({"nonsense": 1})),
        make_event(25, duration_ms=2**63),
        make_event(26, price_context={"x": object()}),
        make_event(27, price_context=[1]),
        make_event(28, raw_usage={1: "x", "y": 2}),
        make_event(29, status=None),
    ]

    with pytest.raises(Rejected) as caught:
        ledger.record([good[0], *bad, good[1]])

    assert [event.id for event in caught.value.events] == [event.id for event in bad]
    assert ledger.record(good) == Recorded(inserted=2)
    assert ledger.events() == good
    for event in bad:
        with pytest.raises(Rejected, match="the ledger cannot hold this event: "):
            ledger.record([event])


def test_more_events_than_one_transaction_takes(ledger):
    assert ledger.record(make_events(4_500)) == Recorded(inserted=4_500)
    assert usage_of(ledger) == (Usage(input=13_500, output=4_500), 4_500)


def test_rebuilding_the_rollups_changes_no_answer(ledger):
    batch = [
        make_event(number, customer=f"c{number % 3}", dimensions={"feature": str(number % 5)}) for number in range(99)
    ]
    ledger.record([replace(event, time=event.time + timedelta(hours=number)) for number, event in enumerate(batch)])
    ledger.record([make_event(99, status="unmetered", usage=Usage())])
    ledger.record([make_event(99)])
    question = {"by": ("customer", "feature"), "bucket": "day"}
    before = ledger.usage(**question)

    ledger.rebuild_rollups()
    after = ledger.usage(**question)
    ledger.record([make_event(100)])

    assert before == after
    assert sum(row.events for row in ledger.usage(meter=ANY)) == 101


def usage_of(ledger, **filters):
    """The one row of everything, from all meters and modes."""
    [row] = ledger.usage(by=(), meter=ANY, **filters)
    return row.usage, row.events
