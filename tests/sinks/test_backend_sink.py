"""What all billing sinks share: which events, whose they are, corrections, refusals event by event, what is sent twice."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.journal_kit import fork, wait
from tests.sinks.kit import RULES, BackendConformance, Books, Plain, PlainSink, down, event_ids, refusals, rejected
from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks import Measure, Rule
from token_meter.sinks.mapping import KEY_CHARACTERS_MAX
from token_meter.sinks.records import (
    IDENTIFIER_CHARACTERS_MAX,
    Record,
    Refused,
    identifier_of,
    milliseconds,
    parts_refused,
)
from token_meter.testing import make_event
from token_meter.testing.builders import EPOCH, make_events
from token_meter.usage import QUANTITY_MAX, Usage

IN, OUT = ("acme", "tokens_in", "gpt-5-2025-08-07"), ("acme", "tokens_out", "gpt-5-2025-08-07")
Make = Callable[..., PlainSink]


@pytest.fixture
def plain() -> Iterator[Plain]:
    with Plain() as backend:
        yield backend
    assert backend.errors == []
    assert backend.counted_twice() == []


@pytest.fixture
def make(plain: Plain) -> Iterator[Make]:
    """Makes sinks for the plain backend."""
    made: list[PlainSink] = []

    def make(**options: Any) -> PlainSink:
        made.append(PlainSink(plain.url, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path)
    yield books
    books.close()


class TestConformance(BackendConformance):
    @pytest.fixture
    def sink(self, plain: Plain, make: Make) -> PlainSink:
        self.plain = plain
        plain.refuses = lambda record: record["customer"] == "stranger"
        return make()

    refused = make_event(99, customer="stranger")

    def received(self, sink: Any) -> list[str]:
        return event_ids(self.plain.counted)

    def broken(self, sink: Any) -> Any:
        return down(self.plain)


# ---- which events ----


def test_a_placeholder_reports_nothing_and_the_real_event_everything(plain: Plain, make: Make) -> None:
    placeholder = make_event(1, usage=Usage(), status="unmetered")

    make().send([placeholder, make_event(2, usage=Usage())])
    make().send([placeholder, make_event(1)])

    assert plain.totals() == {IN: 3, OUT: 1}
    assert plain.sizes == [2]


def test_an_event_that_comes_twice_in_one_batch_is_sent_once(plain: Plain, make: Make) -> None:
    make().send([make_event(1), make_event(2), make_event(1)])

    assert plain.sizes == [4]
    assert plain.totals() == {IN: 6, OUT: 2}


def test_a_filter_leaves_events_out_and_says_nothing(plain: Plain, make: Make) -> None:
    make(where=lambda event: event.status != "estimated").send([make_event(1), make_event(2, status="estimated")])

    assert event_ids(plain.counted) == ["evt_1"]


def test_a_filter_that_fails_sets_its_event_aside_and_delivers_the_others(plain: Plain, make: Make) -> None:
    found = rejected(make(where=lambda event: event.dimensions["tier"] == "paid"), [make_event(1), tiered(2)])

    assert found == {"evt_1": "the filter where= of sink 'plain' failed: KeyError: 'tier'"}
    assert event_ids(plain.counted) == ["evt_2"]


def tiered(number: int) -> MeterEvent:
    return make_event(number, dimensions={"tier": "paid"})


def test_test_usage_never_reaches_a_live_backend(plain: Plain, make: Make) -> None:
    make().send([make_event(1, mode="test"), make_event(2)])

    assert event_ids(plain.counted) == ["evt_2"]


def test_live_usage_is_refused_by_a_sink_in_test_mode(plain: Plain, make: Make) -> None:
    found = rejected(make(mode="test"), [make_event(1, mode="test"), make_event(2)])

    assert list(found) == ["evt_2"]
    assert found["evt_2"].startswith("this is live usage and the sink 'plain' reports to a test account of Plain. Give")
    assert event_ids(plain.counted) == ["evt_1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"mode": "trial"}, "mode must be 'live' or 'test', not 'trial'"), ({"customers": "any"}, "customers must be")],
)
def test_wrong_options_are_refused_at_once(make: Make, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**options)


# ---- mappings ----


def test_an_event_makes_none_one_or_several_records(plain: Plain, make: Make) -> None:
    make().send([make_event(1, usage=Usage(images=1)), make_event(2, usage=Usage(input=1)), make_event(3)])

    assert [each.identifier for each in plain.counted] == ["evt_2:in", "evt_3:in", "evt_3:out"]


def test_a_function_may_report_whatever_it_likes(plain: Plain, make: Make) -> None:
    def seconds(event: MeterEvent) -> Iterator[Measure]:
        if event.usage.audio_ms:
            yield Measure(key="audio", meter="audio_seconds", value=-(-event.usage.audio_ms // 1000))

    make(mapping=seconds).send([make_event(1, usage=Usage(audio_ms=1001)), make_event(2)])

    assert plain.totals() == {("acme", "audio_seconds"): 2}


def double_keys(event: MeterEvent) -> list[Measure]:
    return [Measure(key="a", meter="x", value=1), Measure(key="a", meter="y", value=2)]


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (lambda event: 1 // 0, "ZeroDivisionError"),
        (lambda event: [{"meter": "x", "value": 1}], "TypeError: a mapping makes Measures, not dict"),
        (lambda event: [Measure(key="a", meter="x", value=0.5)], "TypeError: measure 'a': value must be an int, not float"),  # type: ignore[arg-type]
        (double_keys, "ValueError: it makes two measures with one key: a, a"),
    ],
)  # fmt: skip
def test_a_mapping_that_fails_sets_its_event_aside_with_the_error(
    plain: Plain, make: Make, mapping: Any, said: str
) -> None:
    def sometimes(event: MeterEvent) -> Any:
        return mapping(event) if event.id == "evt_2" else [Measure(key="a", meter="x", value=1)]

    found = rejected(make(mapping=sometimes), make_events(3))

    assert list(found) == ["evt_2"]
    assert found["evt_2"].startswith(f"the mapping of sink 'plain' failed: {said}")
    assert event_ids(plain.counted) == ["evt_1", "evt_3"]


@pytest.mark.parametrize("option", ["mapping", "where", "customers"])
def test_a_function_that_cannot_tell_now_says_retry(plain: Plain, make: Make, option: str) -> None:
    """Its database is down: that says nothing about the event."""

    def ask(event: MeterEvent) -> Any:
        raise Retry("the plans are not there", after=3)

    with pytest.raises(Retry, match="the plans are not there"):
        make(**{option: ask}).send([make_event(1)])


# ---- identifiers ----


@given(
    st.text(st.characters(), min_size=1, max_size=255),
    st.text(st.characters(exclude_characters=":"), min_size=1, max_size=KEY_CHARACTERS_MAX),
)
def test_an_identifier_is_short_plain_and_the_same_each_time(event: str, key: str) -> None:
    found = identifier_of(event, key)

    assert found == identifier_of(event, key)
    assert len(found) <= IDENTIFIER_CHARACTERS_MAX
    assert found.isascii()


ids = st.text(st.sampled_from("ab:-Ω"), min_size=1, max_size=4)
keys = st.text(st.sampled_from("ab-Ω"), min_size=1, max_size=4)


@given(ids, keys, ids, keys)
def test_different_measures_have_different_identifiers(event: str, key: str, other: str, another: str) -> None:
    assert (identifier_of(event, key) == identifier_of(other, another)) == ((event, key) == (other, another))


@pytest.mark.parametrize("id", ["x" * 255, "Ω-株式会社", "a:b", "lone \ud800 surrogate"])
def test_events_with_ids_of_any_kind_count_once(plain: Plain, make: Make, id: str) -> None:
    for _ in range(2):
        make().send([make_event(1, id=id)])

    assert plain.totals() == {IN: 3, OUT: 1}


def test_milliseconds_are_rounded_down_exactly() -> None:
    last = EPOCH + timedelta(microseconds=999_999)

    assert milliseconds(last) == 1_767_225_600_999
    assert [milliseconds(EPOCH + timedelta(milliseconds=each)) - 1_767_225_600_000 for each in range(1000)] == list(
        range(1000)
    )


# ---- customers ----


def test_registered_customers_are_those_of_the_ledger(plain: Plain, make: Make, books: Books) -> None:
    books.know("acme", plain="P1", stripe="cus_1")
    sink = make(customers="registered")
    sink.bind(books.accounts)

    found = refusals(sink, [make_event(1), make_event(2, customer="new & co")])

    assert {each.customer for each in plain.counted} == {"P1"}
    assert [(each.event.id, each.awaits) for each in found] == [("evt_2", "customer:new & co")]
    assert found[0].reason == (
        "customer 'new & co' has no id at Plain. It is sent when that is set: "
        "`token-meter customers set 'new & co' --external plain=ID`"
    )


def test_what_waits_for_an_id_is_ready_when_it_is_set(make: Make, books: Books) -> None:
    sink = make(customers="registered")
    sink.bind(books.accounts)
    books.know("acme", other="x")

    assert not sink.ready("customer:acme")
    books.know("acme", plain="P1")
    assert sink.ready("customer:acme")


def test_without_a_ledger_nobody_is_registered_and_the_message_says_why(make: Make) -> None:
    found = rejected(make(customers="registered"), [make_event(1)])

    assert "(and this meter needs a ledger, which holds customers)" in found["evt_1"]
    assert not make(customers="registered").ready("customer:acme")


def test_customers_of_test_mode_are_other_ones(plain: Plain, make: Make, books: Books) -> None:
    books.know("acme", plain="LIVE")
    sink = make(customers="registered", mode="test")
    sink.bind(books.accounts)

    found = rejected(sink, [make_event(1, mode="test")])
    books.know("acme", mode="test", plain="TEST")
    sink.send([make_event(1, mode="test")])

    assert found["evt_1"].endswith("`token-meter customers set acme --external plain=ID --mode test`")
    assert {each.customer for each in plain.counted} == {"TEST"}


def test_same_means_our_id_where_they_have_none_of_their_own(plain: Plain, make: Make, books: Books) -> None:
    books.know("acme", plain="P1")
    sink = make(customers="same")
    sink.bind(books.accounts)

    sink.send([make_event(1), make_event(2, customer="globex")])

    assert {each.customer for each in plain.counted} == {"P1", "globex"}


def test_customers_by_a_mapping(plain: Plain, make: Make) -> None:
    found = rejected(make(customers={"acme": "P1"}), [make_event(1), make_event(2, customer="globex")])

    assert {each.customer for each in plain.counted} == {"P1"}
    assert found == {"evt_2": "the sink 'plain' was given no id of Plain for 'globex'"}


def test_customers_by_a_function(plain: Plain, make: Make) -> None:
    sink = make(customers=lambda event: event.dimensions.get("account"))

    found = rejected(sink, [make_event(1, customer=None, dimensions={"account": "A7"}), make_event(2, customer="x")])

    assert {each.customer for each in plain.counted} == {"A7"}
    assert found == {"evt_2": "the sink 'plain' was given no id of Plain for 'x'"}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda event: event.dimensions["account"], "KeyError: 'account'"),
        (lambda event: 7, "TypeError: it has to return a text or None, not int"),
    ],
)
def test_a_function_for_customers_that_fails_sets_its_event_aside(make: Make, function: Any, said: str) -> None:
    found = rejected(make(customers=function), [make_event(1)])

    assert found == {"evt_1": f"the function customers= of sink 'plain' failed: {said}"}


@pytest.mark.parametrize("customers", ["registered", "same", {"acme": "P1"}])
def test_usage_of_nobody_is_refused(make: Make, customers: Any) -> None:
    found = rejected(make(customers=customers), [make_event(1, customer=None)])

    assert found == {
        "evt_1": "it has no customer. Enter a correction that names one (meter.record(..., corrects=...)) and discard "
        "this one, or give the sink 'plain' unattributed=<an id of Plain> and release it"
    }


@pytest.mark.parametrize("customers", ["registered", "same", {"acme": "P1"}, lambda event: None])
def test_usage_of_nobody_can_be_billed_to_the_house(plain: Plain, make: Make, customers: Any) -> None:
    make(customers=customers, unattributed="house").send([make_event(1, customer=None)])

    assert {each.customer for each in plain.counted} == {"house"}


# ---- corrections ----


def correction(number: int = 9, **fields: Any) -> MeterEvent:
    """An event that corrects evt_1."""
    return make_event(number, **{"corrects": "evt_1", "usage": Usage(), **fields})


def test_a_correction_takes_back_what_was_reported_at_the_time_of_it(plain: Plain, make: Make, books: Books) -> None:
    books.hold(make_event(1))
    sink = make()
    sink.bind(books.accounts)

    sink.send([make_event(1)])
    sink.send([correction()])

    assert plain.totals() == {IN: 0, OUT: 0}
    assert [(each.identifier, each.value, each.at) for each in plain.counted] == [
        ("evt_1:in", 3, make_event(1).time.timestamp()),
        ("evt_1:out", 1, make_event(1).time.timestamp()),
        ("evt_9:-in", -3, make_event(1).time.timestamp()),
        ("evt_9:-out", -1, make_event(1).time.timestamp()),
    ]


def test_a_correction_may_report_other_numbers_to_another_customer(plain: Plain, make: Make, books: Books) -> None:
    books.hold(make_event(1))
    sink = make()
    sink.bind(books.accounts)

    sink.send([make_event(1)])
    sink.send([correction(customer="globex", usage=Usage(input=5, reasoning=2))])

    assert plain.totals() == {
        IN: 0, OUT: 0, ("globex", "tokens_in", "gpt-5-2025-08-07"): 5, ("globex", "tokens_out", "gpt-5-2025-08-07"): 2,
    }  # fmt: skip


def test_a_correction_in_the_same_batch_needs_no_ledger(plain: Plain, make: Make) -> None:
    make().send([correction(), make_event(1)])

    assert plain.totals() == {IN: 0, OUT: 0}


def test_a_correction_that_comes_too_early_waits_for_what_it_corrects(plain: Plain, make: Make, books: Books) -> None:
    sink = make()
    sink.bind(books.accounts)

    (found,) = refusals(sink, [correction()])
    before = sink.ready(found.awaits)
    books.hold(make_event(1))

    assert found.reason == "it corrects the event evt_1, which is not in the ledger (yet)"
    assert (found.awaits, before, sink.ready(found.awaits)) == ("event:evt_1", False, True)
    assert rejected(sink, [make_event(1), correction()]) == {}
    assert plain.totals() == {IN: 0, OUT: 0}


def test_without_a_ledger_a_correction_says_what_it_needs(make: Make) -> None:
    found = rejected(make(), [correction()])

    assert found == {"evt_9": "it corrects the event evt_1, which is not in the ledger: give the meter a ledger"}


def test_usage_of_nobody_is_corrected_by_naming_a_customer(plain: Plain, make: Make, books: Books) -> None:
    """The way out that the refusal names: nothing of it was reported, so nothing is taken back."""
    nobody = make_event(1, customer=None)
    books.hold(nobody)
    sink = make()
    sink.bind(books.accounts)

    refused = rejected(sink, [nobody])
    named = rejected(sink, [correction(customer="acme", usage=nobody.usage)])

    assert (list(refused), named) == (["evt_1"], {})
    assert plain.totals() == {IN: 3, OUT: 1}


def test_what_was_billed_to_the_house_is_taken_back_from_it(plain: Plain, make: Make, books: Books) -> None:
    books.hold(make_event(1, customer=None))
    sink = make(unattributed="house")
    sink.bind(books.accounts)

    sink.send([make_event(1, customer=None)])
    sink.send([correction(customer="acme", usage=Usage(input=3))])

    assert {key[:2]: value for key, value in plain.totals().items()} == {
        ("house", "tokens_in"): 0, ("house", "tokens_out"): 0, ("acme", "tokens_in"): 3,
    }  # fmt: skip


def test_a_correction_of_what_waits_for_a_customers_id_waits_with_it(make: Make, books: Books) -> None:
    books.hold(make_event(1))
    sink = make(customers="registered")
    sink.bind(books.accounts)

    found = refusals(sink, [make_event(1), correction()])

    assert [(each.event.id, each.awaits) for each in found] == [("evt_1", "customer:acme"), ("evt_9", "customer:acme")]


@pytest.mark.parametrize("original", [make_event(1, mode="test"), make_event(1, status="estimated")])
def test_what_was_never_for_this_sink_is_not_taken_back(
    plain: Plain, make: Make, books: Books, original: MeterEvent
) -> None:
    books.hold(original)
    sink = make(where=lambda event: event.status != "estimated")
    sink.bind(books.accounts)

    sink.send([correction(usage=Usage(input=7))])

    assert [(each.identifier, each.value) for each in plain.counted] == [("evt_9:in", 7)]


def test_a_correction_of_a_correction_takes_back_only_what_that_one_reported(
    plain: Plain, make: Make, books: Books
) -> None:
    first = correction(usage=Usage(input=5))
    books.hold(make_event(1), first)
    sink = make()
    sink.bind(books.accounts)

    sink.send([make_event(1), first, make_event(10, corrects="evt_9", usage=Usage(input=4))])

    assert plain.totals() == {IN: 4, OUT: 0}


def test_a_mapping_that_fails_for_what_is_corrected_sets_the_correction_aside(make: Make, books: Books) -> None:
    books.hold(make_event(1))

    def broken(event: MeterEvent) -> list[Measure]:
        raise LookupError(event.id)

    sink = make(mapping=broken)
    sink.bind(books.accounts)

    assert rejected(sink, [correction()]) == {"evt_9": "the mapping of sink 'plain' failed: LookupError: evt_1"}


# ---- refusals ----


@pytest.mark.parametrize("bad", [{1}, {5}, {10}, {1, 10}, {4, 5}, set(range(1, 11))])
def test_exactly_what_is_bad_is_refused_and_the_rest_counts(plain: Plain, make: Make, bad: set[int]) -> None:
    plain.refuses = lambda record: int(record["id"].split(":")[0][4:]) in bad

    found = rejected(make(), make_events(10))

    assert set(found) == {f"evt_{number}" for number in bad}
    assert set(found.values()) == {'Plain (HTTP 400): {"error":"no"}'}
    assert set(event_ids(plain.counted)) == {f"evt_{number}" for number in range(1, 11) if number not in bad}


def test_of_an_event_only_the_part_that_was_refused_is_set_aside(plain: Plain, make: Make) -> None:
    plain.refuses = lambda record: record["meter"] == "tokens_in"
    event = make_event(1, usage=Usage(input=3, cache_read=2, output=1))

    (found,) = refusals(make(), [event])
    plain.refuses = lambda record: False
    make().send([found.event])

    assert found.event == replace(event, usage=Usage(input=3, cache_read=2))
    assert plain.totals() == {IN: 5, OUT: 1}


def test_an_event_that_was_refused_altogether_is_set_aside_as_it_is(plain: Plain, make: Make) -> None:
    plain.refuses = lambda record: True

    (found,) = refusals(make(), [make_event(1)])

    assert found.event == make_event(1)
    assert found.reason == 'Plain (HTTP 400): {"error":"no"}'  # once, not for each record


def test_of_a_correction_what_is_left_is_named(plain: Plain, make: Make) -> None:
    plain.refuses = lambda record: record["id"] == "evt_9:-in"

    (found,) = refusals(make(), [make_event(1), correction(usage=Usage(input=1))])
    plain.refuses = lambda record: False
    make().send([make_event(1), found.event])

    assert found.event == correction(usage=Usage(input=1), anomalies=("part:-in",))
    assert [each["id"] for each in plain.bodies[-1]] == ["evt_1:in", "evt_1:out", "evt_9:-in"]
    assert plain.totals() == {IN: 1, OUT: 0}


def test_of_measures_without_types_what_is_left_is_named(plain: Plain, make: Make) -> None:
    """Released through the quarantine, where it is written down as JSON."""

    def mapping(event: MeterEvent) -> list[Measure]:
        return [Measure(key=key, meter=key, value=len(event.anomalies)) for key in "abc"]

    plain.refuses = lambda record: record["meter"] in "ac"
    event = make_event(1, anomalies=("identity",))

    (found,) = refusals(make(mapping=mapping), [event])
    plain.refuses = lambda record: record["meter"] == "c"
    (again,) = refusals(make(mapping=mapping), [MeterEvent.from_json(found.event.to_json())])

    assert found.event.anomalies == ("identity", "part:a", "part:c")
    assert again.event.anomalies == ("identity", "part:c")
    assert plain.totals() == {("acme", "a"): 1, ("acme", "b"): 1}


def test_parts_of_many_events_are_those_of_their_own_records() -> None:
    first, second = make_events(2)

    def record(event: MeterEvent, rule: Rule) -> Record:
        measure = Measure(key=rule.key, meter=rule.meter, value=1, types=rule.types)
        return Record(event, measure, "acme", identifier_of(event.id, rule.key), event.time, 1)

    records = [record(event, rule) for event in (first, second) for rule in RULES]
    refused = [Refused(records[0], "a"), Refused(records[2], "b", "x"), Refused(records[3], "c")]

    found = parts_refused(records, refused)

    assert [(each.event, each.reason, each.awaits) for each in found] == [
        (replace(first, usage=Usage(input=3)), "a", None),
        (second, "b; c", "x"),
    ]
    assert parts_refused(records, []) == []


@pytest.mark.parametrize("status", [404, 405, 410, 415])
def test_a_wrong_address_refuses_no_event(plain: Plain, make: Make, status: int) -> None:
    """Nothing is wrong with the events: they wait in the journal, not in quarantine."""
    plain.refuses, plain.status = (lambda record: True), status

    with pytest.raises(
        Retry, match=f"Plain answered HTTP {status}: .*Nothing is wrong with the events; is {plain.url}"
    ):
        make().send(make_events(3))

    assert len(plain.bodies) == 1


# ---- what is sent twice ----


def test_after_a_failure_half_way_what_was_acknowledged_is_not_sent_again(plain: Plain, make: Make) -> None:
    sink = make()
    plain.chaos.script = [None, None, "error_before"]

    with pytest.raises(Retry):
        sink.send(make_events(8))
    sink.send(make_events(8))

    assert plain.sizes == [4] * 4
    assert plain.totals() == {IN: 24, OUT: 8}


def test_what_was_counted_without_being_told_so_counts_once(plain: Plain, make: Make) -> None:
    sink = make()
    plain.chaos.script = ["error_after"]

    with pytest.raises(Retry):
        sink.send(make_events(2))
    sink.send(make_events(2))
    sink.send(make_events(2))

    assert plain.totals() == {IN: 6, OUT: 2}
    assert plain.sizes == [4, 4, 4]  # what a later batch brings again is sent again


def test_what_was_refused_before_a_failure_is_refused_by_the_next_attempt_too(plain: Plain, make: Make) -> None:
    plain.refuses = lambda record: record["id"].startswith("evt_1:")
    sink = make()
    plain.chaos.script = [*[None] * 5, "unavailable"]  # the first request and its parts, down to single records

    with pytest.raises(Retry):
        sink.send(make_events(4))
    found = rejected(sink, make_events(4))

    assert list(found) == ["evt_1"]
    assert sorted(event_ids(plain.counted)) == ["evt_2", "evt_3", "evt_4"]


def test_a_forked_child_delivers_with_a_lock_of_its_own(plain: Plain, make: Make) -> None:
    sink = make()
    sink.send([make_event(1)])
    entered, go_on = threading.Event(), threading.Event()

    def deliver_for_ever() -> None:
        with sink._lock:
            entered.set()
            go_on.wait(10)

    holding = threading.Thread(target=deliver_for_ever)
    holding.start()
    entered.wait(10)
    status = wait(fork(lambda: sink.send([make_event(2)])))
    go_on.set()
    holding.join()

    assert status == 0
    assert event_ids(plain.counted) == ["evt_1", "evt_2"]


def test_close_is_for_good_only_until_the_next_batch(plain: Plain, make: Make) -> None:
    sink = make()
    sink.send([make_event(1)])
    sink.close()
    sink.close()
    sink.send([make_event(2)])

    assert event_ids(plain.counted) == ["evt_1", "evt_2"]


# ---- what can be asked of it ----


def test_a_sketch_is_what_would_be_sent(plain: Plain, make: Make) -> None:
    sink = make(customers={"acme": "P1"})
    events = [*make_events(3), make_event(1), make_event(4, customer=None)]

    sketches, refused = sink.sketch(events)
    rejected(sink, events)

    assert [(each.method, each.url) for each in sketches] == [("POST", f"{plain.url}/usage")] * 2
    assert [json.loads(each.body)["records"] for each in sketches] == plain.bodies
    assert [each.event.id for each in refused] == ["evt_4"]


def test_reported_says_what_would_count(make: Make) -> None:
    reported, refused = make().reported([make_event(1), make_event(2, customer=None)])

    assert [(event.id, told.customer, told.meter, told.value, told.time) for event, told in reported] == [
        ("evt_1", "acme", "tokens_in", 3, make_event(1).time),
        ("evt_1", "acme", "tokens_out", 1, make_event(1).time),
    ]
    assert [each.event.id for each in refused] == ["evt_2"]


def test_quantities_of_any_size_stay_exact(plain: Plain, make: Make) -> None:
    make().send([make_event(1, usage=Usage(input=QUANTITY_MAX, cache_read=QUANTITY_MAX, output=2**53 + 1))])

    assert plain.totals() == {IN: 2 * QUANTITY_MAX, OUT: 2**53 + 1}


def test_the_key_is_in_no_representation_or_refusal(plain: Plain, make: Make) -> None:
    plain.refuses = lambda record: True
    sink = make()

    texts = [repr(sink), str(sink.sketch([make_event(1)])), str(rejected(sink, [make_event(1)]))]
    plain.stop()
    with pytest.raises(Retry) as caught:
        sink.send([make_event(2)])

    assert not [text for text in [*texts, str(caught.value)] if "plain-secret" in text]
    assert re.fullmatch(r"PlainSink\('http://127\.0\.0\.1:\d+', name='plain', mode='live'\)", texts[0])


def test_many_refusals_say_their_reasons_in_short(make: Make) -> None:
    events = [make_event(number, customer=f"c{number}") for number in range(1, 11)]

    with pytest.raises(Rejected) as caught:
        make(customers={}).send(events)

    assert len(caught.value.refusals) == 10
    assert str(caught.value).endswith("for 'c3'; and 7 other reasons")
