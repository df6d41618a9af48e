"""Usage: whatever is asked, the answer is the sum over the matching events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ledger import brute
from token_meter.ledger import ANY
from token_meter.testing.builders import make_event
from token_meter.usage import QUANTITY_MAX, Usage

START = datetime(2026, 3, 27, tzinfo=UTC)

ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "America/St_Johns", "America/Sao_Paulo", "Pacific/Chatham", "Pacific/Apia", "Africa/Cairo", "America/Havana",
]  # fmt: skip

# Around changes of the clock in those zones and a change of the month, and close enough to meet.
DAYS = [datetime(2026, month, day, tzinfo=UTC) for month, day in [(3, 28), (4, 4), (4, 30)]]
HOURS = [0, 1, 13, 14, 15, 16, 18, 19, 23, 24, 25]
minutes = st.sampled_from([0, 1, 14, 15, 29, 30, 31, 44, 45, 59])
instants = st.builds(
    lambda day, hour, minute, micro: (
        day.replace(tzinfo=UTC) + timedelta(hours=hour, minutes=minute, microseconds=micro)
    ),
    st.sampled_from(DAYS),
    st.sampled_from(HOURS),
    minutes,
    st.sampled_from([0, 0, 1, -1, 500_000]),
)

names = st.none() | st.sampled_from(["a", "b", "Ω\0"])
quantities = st.integers(0, 9) | st.sampled_from([2**32 - 1, 2**32, QUANTITY_MAX])
some_events = st.lists(
    st.builds(
        make_event,
        time=instants,
        usage=st.dictionaries(
            st.sampled_from(["input", "output", "cache_read", "reasoning", "web_search"]), quantities, max_size=3
        ).map(Usage),
        customer=names,
        provider=st.sampled_from(["openai", "google"]),
        model=names,
        status=st.sampled_from(["complete", "estimated"]),
        mode=st.sampled_from(["live", "test"]),
        corrects=st.none() | st.just("evt_0") | st.sampled_from([f"#{number}" for number in range(8)]),
        price_context=st.sampled_from([{}, {"batch": True}]),
        dimensions=st.dictionaries(st.sampled_from(["feature", "undeclared", "Ω\0"]), st.sampled_from(["x", "y\0"])),
    ),
    max_size=25,
)
groups = st.lists(
    st.sampled_from(
        [
            "customer",
            "provider",
            "model",
            "status",
            "mode",
            "correction",
            "token_type",
            "headline",
            "feature",
            "undeclared",
            "unseen",
            "Ω\0",
        ]
    ),
    unique=True,
    max_size=3,
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "customer": names,
        "model": names,
        "provider": st.just("openai"),
        "status": st.just("complete"),
        "dimensions": st.dictionaries(
            st.sampled_from(["feature", "undeclared"]), st.sampled_from(["x", "y\0"]) | st.none()
        ),
    },
)
questions = st.fixed_dictionaries(
    {
        "by": groups,
        "bucket": st.sampled_from([None, "hour", "day", "month"]),
        "time_zone": st.sampled_from(ZONES),
        "since": st.none() | instants,
        "until": st.none() | instants,
        "filters": filters,
    }
)


def correcting(event, batch, run):
    """The event, with `#3` for the third of the batch; what corrects nothing of the batch that counts corrects nothing."""
    if event.corrects is None or not event.corrects.startswith("#"):
        return event
    number = int(event.corrects[1:])
    plain = number < len(batch) and batch[number].corrects is None
    return replace(event, corrects=f"{run}/{number}" if plain else None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=some_events, asked=st.lists(questions, min_size=1, max_size=4), size=st.integers(1, 25))
def test_every_answer_equals_the_sum_over_the_events(ledger, batch, asked, size):
    run = uuid4().hex
    batch = [replace(event, id=f"{run}/{number}", meter=run) for number, event in enumerate(batch)]
    batch = [correcting(event, batch, run) for event in batch]
    for start in range(0, len(batch), size):
        ledger.record(batch[start : start + size])

    for question in asked:
        narrowed = question.pop("filters")
        rows = ledger.usage(**question, **narrowed, meter=run)
        assert brute.answered(rows) == brute.usage(batch, **question, **narrowed)
        assert len({frozenset(row.group.items()) for row in rows}) == len(rows)


def test_rows_are_ordered_and_read_by_name(ledger):
    ledger.record(
        [
            make_event(1, customer="b", usage=Usage(input=5, output=2)),
            make_event(2, customer=None),
            make_event(3, customer="a", usage=Usage(output=7, cache_read=1)),
        ]
    )

    rows = ledger.usage(by=("customer", "token_type"))

    assert [tuple(row.group.values()) for row in rows] == [
        ("a", "cache_read"), ("a", "output"), ("b", "input"), ("b", "output"), (None, "input"), (None, "output"),
    ]  # fmt: skip
    assert (rows[1]["customer"], rows[1]["token_type"], rows[1]["output"], rows[1]["input"]) == ("a", "output", 7, 0)
    assert (rows[1].usage, rows[1].events, rows[1]["events"]) == (Usage(output=7), 1, 1)
    with pytest.raises(KeyError):
        rows[1]["model"]


def test_headlines_sum_their_types_in_table_order(ledger):
    ledger.record([make_event(1, usage=Usage(reasoning=4, output=1, input=3, web_search=2, cache_read=5))])

    rows = ledger.usage(by="headline")

    assert [(row["headline"], dict(row.usage)) for row in rows] == [
        ("input", {"input": 3}),
        ("cached input", {"cache_read": 5}),
        ("output", {"output": 1, "reasoning": 4}),
        ("other", {"web_search": 2}),
    ]


def test_only_tokens_are_meant_unless_another_meter_is_named(ledger):
    ledger.record([make_event(1), make_event(2, meter="api_calls", usage=Usage(units=1))])

    assert [row.usage for row in ledger.usage(by=())] == [Usage(input=3, output=1)]
    assert [row.usage for row in ledger.usage(by=(), meter="api_calls")] == [Usage(units=1)]
    assert [row["meter"] for row in ledger.usage(by="meter", meter=ANY)] == ["api_calls", "llm_tokens"]


def test_an_unattributed_event_is_its_own_group_and_can_be_asked_for(ledger):
    ledger.record([make_event(1, customer=None), make_event(2)])

    assert [row.group for row in ledger.usage(by="customer")] == [{"customer": "acme"}, {"customer": None}]
    assert [row.events for row in ledger.usage(by=(), customer=None)] == [1]
    assert [row.events for row in ledger.usage(by=(), customer=ANY)] == [2]


def test_the_price_context_tells_prices_apart_and_not_every_size(ledger):
    sizes = [0, 31_999, 32_000, 32_001, 199_999, 200_000, 200_001, 5_000_000]
    ledger.record(
        [make_event(n, price_context={"context_tokens": size, "batch": True}) for n, size in enumerate(sizes, 1)]
        + [make_event(50), make_event(51, price_context={"context_tokens": "many"})]
    )

    whole = {row["price_context"]: row.events for row in ledger.usage(by="price_context")}
    part = {row["price_context"]: row.events for row in ledger.usage(by="price_context", since="2026-01-01T00:00:00.5")}

    assert (
        whole
        == part
        == {
            '{"batch":true,"context_tokens":0}': 2,
            '{"batch":true,"context_tokens":32000}': 1,
            '{"batch":true,"context_tokens":32001}': 1,
            '{"batch":true,"context_tokens":128001}': 1,
            '{"batch":true,"context_tokens":200000}': 1,
            '{"batch":true,"context_tokens":200001}': 1,
            '{"batch":true,"context_tokens":1000001}': 1,
            '{"context_tokens":"many"}': 1,
            None: 1,
        }
    )


def test_the_end_of_the_time_does_not_belong_to_it(ledger):
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
    ledger.record([make_event(n, time=noon + timedelta(microseconds=n)) for n in (-1, 0, 1)])

    def count(**limits):
        return sum(row.events for row in ledger.usage(by=(), **limits)), len(ledger.events(**limits))

    assert count(since=noon) == (2, 2)
    assert count(until=noon) == (1, 1)
    assert count(since=noon, until=noon + timedelta(microseconds=1)) == (1, 1)
    assert count(since=noon, until=noon) == (0, 0)
    assert count(since=noon + timedelta(hours=1), until=noon) == (0, 0)


@pytest.mark.parametrize(
    "since",
    [
        date(2026, 5, 2), "2026-05-02", "2026-05-02T00:00", datetime(2026, 5, 2),  # noqa: DTZ001
        "2026-05-01T18:30Z",
        "2026-05-01T20:30:00+02:00", datetime(2026, 5, 2, tzinfo=ZoneInfo("Asia/Kolkata")),
    ],
)  # fmt: skip
def test_a_time_without_an_offset_is_local(ledger, since):
    midnight = datetime(2026, 5, 1, 18, 30, tzinfo=UTC)
    ledger.record([make_event(1, time=midnight), make_event(2, time=midnight - timedelta(microseconds=1))])

    assert [row.events for row in ledger.usage(by=(), since=since, time_zone="Asia/Kolkata")] == [1]
    assert [event.id for event in ledger.events(since=since, time_zone="Asia/Kolkata")] == ["evt_1"]


def hourly(ledger, start, hours):
    ledger.record([make_event(n, time=start + timedelta(minutes=30 * n)) for n in range(hours * 2)])


@pytest.mark.parametrize(
    ("zone", "start", "expected"),
    [
        ("Europe/Berlin", "2026-03-28", {"2026-03-28T00:00:00+01:00": 48, "2026-03-29T00:00:00+01:00": 46}),
        ("Europe/Berlin", "2026-10-24", {"2026-10-24T00:00:00+02:00": 48, "2026-10-25T00:00:00+02:00": 50}),
        ("America/Sao_Paulo", "2018-11-03", {"2018-11-03T00:00:00-03:00": 48, "2018-11-04T01:00:00-02:00": 46}),
        ("America/Sao_Paulo", "2018-02-16", {"2018-02-16T00:00:00-02:00": 48, "2018-02-17T00:00:00-02:00": 50}),
        ("Pacific/Apia", "2011-12-29", {"2011-12-29T00:00:00-10:00": 48, "2011-12-31T00:00:00+14:00": 48}),
        ("Asia/Kathmandu", "2026-05-01", {"2026-05-01T00:00:00+05:45": 48, "2026-05-02T00:00:00+05:45": 48}),
    ],
)
def test_a_day_is_as_long_as_it_is_where_the_customer_lives(ledger, zone, start, expected):
    first = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone))
    hourly(ledger, first.astimezone(UTC), sum(expected.values()) // 2)

    rows = ledger.usage(by=(), bucket="day", time_zone=zone, since=start)

    assert {row["bucket"]: row.events for row in rows} == expected


def test_the_hour_that_comes_twice_is_two_hours(ledger):
    hourly(ledger, datetime(2026, 11, 1, 4, 30, tzinfo=UTC), 3)

    rows = ledger.usage(by=(), bucket="hour", time_zone="America/New_York")

    assert [(row["bucket"], row.events) for row in rows] == [
        ("2026-11-01T00:00:00-04:00", 1),
        ("2026-11-01T01:00:00-04:00", 2),
        ("2026-11-01T01:00:00-05:00", 2),
        ("2026-11-01T02:00:00-05:00", 1),
    ]


def test_a_clock_set_back_by_half_an_hour_makes_a_short_hour(ledger):
    hourly(ledger, datetime(2026, 4, 4, 14, 0, tzinfo=UTC), 3)

    rows = ledger.usage(by=(), bucket="hour", time_zone="Australia/Lord_Howe")

    assert [(row["bucket"], row.events) for row in rows] == [
        ("2026-04-05T01:00:00+11:00", 2),
        ("2026-04-05T01:30:00+10:30", 1),
        ("2026-04-05T02:00:00+10:30", 2),
        ("2026-04-05T03:00:00+10:30", 1),
    ]


def test_a_clock_set_forward_in_the_middle_of_an_hour_ends_it(ledger):
    hourly(ledger, datetime(2026, 9, 26, 13, tzinfo=UTC), 2)

    rows = ledger.usage(by=(), bucket="hour", time_zone="Pacific/Chatham")

    assert [(row["bucket"], row.events) for row in rows] == [
        ("2026-09-27T01:00:00+12:45", 1),
        ("2026-09-27T02:00:00+12:45", 1),
        ("2026-09-27T03:45:00+13:45", 1),
        ("2026-09-27T04:00:00+13:45", 1),
    ]


def test_a_bucket_cut_by_the_limits_keeps_its_name(ledger):
    hourly(ledger, START, 48)

    rows = ledger.usage(
        by=(), bucket="day", since=START + timedelta(hours=23, minutes=30), until=START + timedelta(hours=25)
    )

    assert [(row["bucket"], row.events) for row in rows] == [
        ("2026-03-27T00:00:00+00:00", 1),
        ("2026-03-28T00:00:00+00:00", 2),
    ]


def test_one_event_with_a_broken_clock_does_not_harm_the_others(ledger):
    wild = [make_event(1, time=datetime(1, 1, 2, tzinfo=UTC)), make_event(2, time=datetime(9999, 12, 30, tzinfo=UTC))]
    ledger.record([*wild, make_event(3, time=START)])

    assert [row.events for row in ledger.usage(by=())] == [3]
    assert [row.events for row in ledger.usage(by=(), bucket="month", since="2026-01-01", until="2027-01-01")] == [1]
    assert [row["bucket"][:4] for row in ledger.usage(by=(), bucket="month", until="2027-01-01")] == ["0001", "2026"]
    with pytest.raises(ValueError, match="more than 50000 buckets"):
        ledger.usage(by=(), bucket="day")


def test_an_empty_ledger_has_no_usage(ledger):
    assert ledger.usage() == []
    assert ledger.usage(by=("token_type",), bucket="day", since="2026-01-01", until="2026-02-01") == []


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"time_zone": "Mars/Olympus"}, "'Mars/Olympus' is no time zone"),
        ({"since": "yesterday"}, "'yesterday' is no time"),
        ({"bucket": "week"}, "bucket must be"),
        ({"by": ("bucket",)}, "cannot group by bucket"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(ledger, question, message):
    with pytest.raises(ValueError, match=message):
        ledger.usage(**question)


def test_a_filter_with_a_typing_error_is_refused(ledger):
    with pytest.raises(TypeError, match="custmer"):
        ledger.usage(custmer="acme")
