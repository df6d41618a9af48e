"""LagoSink against a Lago that is as strict as the real one: batches that are refused as a whole, both of its stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from tests.sinks.kit import BackendConformance, down, event_ids, refusals, rejected, until
from token_meter import Meter
from token_meter.deliver import quarantined
from token_meter.errors import Retry, SinkError
from token_meter.event import MeterEvent
from token_meter.sinks import LagoSink, Rule
from token_meter.sinks import lago as module
from token_meter.sinks.http import KeyRefused
from token_meter.sinks.lago import CODES, lago_rules, url_of
from token_meter.testing import make_event
from token_meter.testing.backends import Chaos, FakeLago
from token_meter.testing.backends import lago as fake
from token_meter.testing.builders import EPOCH, make_events
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

KEY = "lago-secret-key"
SUBSCRIPTIONS = {"acme": "sub_1", "globex": "sub_2"}
MODEL = ("gpt-5-2025-08-07", "openai")
INPUT, OUTPUT = ("sub_1", "llm_input_tokens", *MODEL), ("sub_1", "llm_output_tokens", *MODEL)
Make = Callable[..., tuple[FakeLago, LagoSink]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens a Lago with these settings, and a sink for it."""
    opened: list[Any] = []

    def make(*, sink: dict[str, Any] | None = None, **settings: Any) -> tuple[FakeLago, LagoSink]:
        lago = FakeLago(key=KEY, **settings).start()
        options = {"customers": SUBSCRIPTIONS, "base_url": lago.url, **(sink or {})}
        opened.extend((LagoSink(KEY, **options), lago))
        return lago, opened[-2]

    yield make
    for each in opened:
        each.close()


@pytest.mark.parametrize("store", ["postgres", "clickhouse"], scope="class")
class TestConformance(BackendConformance):
    @pytest.fixture
    def sink(self, store: Any) -> Iterator[LagoSink]:
        settings: dict[str, Any] = {"strict": True, "subscriptions": {name: name for name in ("acme", *NAMES)}}
        with FakeLago(key=KEY, store=store, **settings) as self.lago:
            sink = LagoSink(KEY, base_url=self.lago.url, customers="same")
            yield sink
            sink.close()
        assert self.lago.errors == []

    refused = make_event(99, customer="stranger")

    def received(self, sink: Any) -> list[str]:
        return event_ids(self.lago.counted)

    def broken(self, sink: Any) -> Any:
        return down(self.lago)

    def test_keeps_large_quantities(self, sink: Any) -> None:
        if self.lago.store == "postgres":
            super().test_keeps_large_quantities(sink)


NAMES = ["Ωmega", "株式会社", "🜚", 'quote " and \\ and \n and \u2028', "'; DROP TABLE events; --"]


# ---- what goes out ----


def test_the_body_of_a_batch(make: Make) -> None:
    _, sink = make()
    usage = Usage(input=900, cache_read=4000, output=150, reasoning=7, web_search=2)

    (sketch,), refused = sink.sketch([make_event(1, usage=usage, customer="acme")])

    assert (sketch.method, sketch.url.partition("/api")[2], refused) == ("POST", "/v1/events/batch", [])
    assert json.loads(sketch.body) == snapshot(
        {
            "events": [
                {
                    "transaction_id": "evt_1:llm_input_tokens",
                    "external_subscription_id": "sub_1",
                    "code": "llm_input_tokens",
                    "timestamp": 1767225601.0,
                    "properties": {
                        "model": "gpt-5-2025-08-07",
                        "provider": "openai",
                        "api": "chat",
                        "value": "900",
                    },
                },
                {
                    "transaction_id": "evt_1:llm_cached_input_tokens",
                    "external_subscription_id": "sub_1",
                    "code": "llm_cached_input_tokens",
                    "timestamp": 1767225601.0,
                    "properties": {
                        "model": "gpt-5-2025-08-07",
                        "provider": "openai",
                        "api": "chat",
                        "value": "4000",
                    },
                },
                {
                    "transaction_id": "evt_1:llm_output_tokens",
                    "external_subscription_id": "sub_1",
                    "code": "llm_output_tokens",
                    "timestamp": 1767225601.0,
                    "properties": {
                        "model": "gpt-5-2025-08-07",
                        "provider": "openai",
                        "api": "chat",
                        "value": "150",
                    },
                },
                {
                    "transaction_id": "evt_1:llm_reasoning_tokens",
                    "external_subscription_id": "sub_1",
                    "code": "llm_reasoning_tokens",
                    "timestamp": 1767225601.0,
                    "properties": {
                        "model": "gpt-5-2025-08-07",
                        "provider": "openai",
                        "api": "chat",
                        "value": "7",
                    },
                },
                {
                    "transaction_id": "evt_1:llm_tool_calls.web_search",
                    "external_subscription_id": "sub_1",
                    "code": "llm_tool_calls",
                    "timestamp": 1767225601.0,
                    "properties": {
                        "model": "gpt-5-2025-08-07",
                        "provider": "openai",
                        "api": "chat",
                        "tool": "web_search",
                        "value": "2",
                    },
                },
            ]
        }
    )


def test_the_codes_of_the_agent_sdk_are_used_where_it_has_them() -> None:
    """Whoever has metrics for that SDK needs no others for what both report."""
    sdk = pytest.importorskip("lago_agent_sdk")
    theirs = set(sdk.LagoConfig(api_key="x").metric_codes.values())

    assert theirs - set(CODES.values()) == {"llm_cost"} & theirs
    assert set(CODES) == set(TOKEN_TYPES)


def test_every_token_type_is_counted_and_they_add_up(make: Make) -> None:
    lago, sink = make()
    usage = Usage({name: 10**place for place, name in enumerate(TOKEN_TYPES, start=0) if place < 18})
    others = Usage({name: 7 for place, name in enumerate(TOKEN_TYPES) if place >= 18})

    sink.send([make_event(1, usage=usage), make_event(2, usage=others)])

    assert sum(lago.totals().values()) == sum(usage.values()) + sum(others.values())
    assert {key[1] for key in lago.totals()} == set(CODES.values())
    assert lago.dropped == []


def test_dimensions_and_properties_stand_on_each_event(make: Make) -> None:
    _, sink = make(
        sink={"dimensions": ["feature"], "properties": {"tier": lambda event: event.price_context.get("service_tier")}}
    )
    event = make_event(
        1, usage=Usage(input=1), dimensions={"feature": "chat"}, price_context={"service_tier": "flex"}, model=None
    )

    assert sent(sink, event)[0]["properties"] == {
        "provider": "openai", "api": "chat", "feature": "chat", "tier": "flex", "value": "1",
    }  # fmt: skip


def sent(sink: LagoSink, *events: MeterEvent) -> list[dict[str, Any]]:
    """The events that these make, as they would go out."""
    return [each for sketch in sink.sketch(events)[0] for each in json.loads(sketch.body)["events"]]


@pytest.mark.parametrize("option", [{"dimensions": ["value"]}, {"properties": {"value": lambda event: "x"}}])
def test_a_property_cannot_take_the_place_of_the_quantity(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'value' is what Lago sums"):
        LagoSink(KEY, **option)


def test_other_codes_and_a_table_of_ones_own(make: Make) -> None:
    _, coded = make(sink={"codes": {**CODES, "output": "my_output"}})
    _, mapped = make(sink={"mapping": [Rule(key="all", meter="all_tokens", types=("input", "output"))]})

    assert [each["code"] for each in sent(coded, make_event(1))] == ["llm_input_tokens", "my_output"]
    assert [(each["code"], each["properties"]["value"]) for each in sent(mapped, make_event(1))] == [
        ("all_tokens", "4")
    ]
    assert mapped.rules is not None


def test_meters_of_ones_own_are_metrics_of_their_name(make: Make) -> None:
    lago, sink = make()

    sink.send([make_event(1, usage=Usage(units=12), meter="pages", model=None, provider=None, operation=None)])

    assert lago.totals() == {("sub_1", "pages"): 12}


def test_times_are_milliseconds_rounded_down(make: Make) -> None:
    """Rounded up, the last event of a month would be one of the next."""
    _, sink = make()

    found = [
        sent(sink, make_event(1, time=EPOCH + timedelta(microseconds=microseconds)))[0]["timestamp"]
        for microseconds in (0, 999, 1_000, 999_999)
    ]

    assert found == [1767225600.0, 1767225600.0, 1767225600.001, 1767225600.999]


@pytest.mark.parametrize(
    "given",
    [
        "http://127.0.0.1:3000",
        "http://127.0.0.1:3000/",
        "http://127.0.0.1:3000/api/v1",
        "http://127.0.0.1:3000/api/v1/",
    ],
)
def test_the_address_may_be_given_as_the_agent_sdk_wants_it(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAGO_API_URL", given)

    assert url_of(given) == url_of(None) == "http://127.0.0.1:3000"
    monkeypatch.delenv("LAGO_API_URL")
    assert url_of(None) == "https://api.getlago.com"


def test_batches_hold_a_hundred_records(make: Make) -> None:
    lago, sink = make()

    sink.send(make_events(130))

    assert lago.seen == {("POST", "/api/v1/events/batch", 200): 3}
    assert lago.totals() == {INPUT: 390, OUTPUT: 130}


# ---- poison ----


def strict(make: Make, **settings: Any) -> tuple[FakeLago, LagoSink]:
    """A Lago that refuses what today's takes and never bills: what our own records can be refused for."""
    known = {"subscriptions": {"sub_1": "acme"}, "metrics": dict.fromkeys(CODES.values(), "value")}
    return make(strict=True, **{**known, **settings})


@pytest.mark.parametrize("bad", [{1}, {25}, {50}, {1, 2}, {1, 25, 50}, set(range(1, 51))])
@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
def test_poison_is_isolated_and_the_rest_is_sent_in_one_more_request(make: Make, store: str, bad: set[int]) -> None:
    lago, sink = strict(make, store=store)
    events = [make_event(number, customer="globex" if number in bad else "acme") for number in range(1, 51)]

    found = rejected(sink, events)

    assert found == {f"evt_{each}": "Lago: external_subscription_id: subscription_not_found" for each in bad}
    assert lago.totals() == ({INPUT: 3 * (50 - len(bad)), OUTPUT: 50 - len(bad)} if len(bad) < 50 else {})
    assert sum(lago.seen.values()) == (1 if len(bad) == 50 else 2)


def test_two_kinds_of_poison_each_with_its_reason(make: Make) -> None:
    metrics = {code: "value" for code in CODES.values() if code != "llm_output_tokens"}
    lago, sink = strict(make, metrics=metrics)
    both = make_event(1, customer="globex")
    half = make_event(2)

    found = refusals(sink, [both, half, make_event(3, usage=Usage(input=5))])

    assert [(each.event, each.reason) for each in found] == [
        (
            both,
            "Lago: external_subscription_id: subscription_not_found; "
            "Lago: external_subscription_id: subscription_not_found; code: billable_metric_not_found",
        ),
        (make_event(2, usage=Usage(output=1)), "Lago: code: billable_metric_not_found"),
    ]
    assert lago.totals() == {INPUT: 8}


def test_of_a_divided_event_the_released_part_counts_once(make: Make) -> None:
    metrics = {code: "value" for code in CODES.values() if code != "llm_output_tokens"}
    lago, sink = strict(make, metrics=metrics)

    (found,) = refusals(sink, [make_event(1)])
    lago.metrics = dict.fromkeys(CODES.values(), "value")
    sink.send([found.event])
    sink.send([make_event(1)])

    assert lago.totals() == {INPUT: 3, OUTPUT: 1}


def test_what_is_there_already_is_no_poison(make: Make) -> None:
    lago, sink = make()

    sink.send(make_events(3))
    sink.send(make_events(5))
    sink.send(make_events(5))

    assert lago.totals() == {INPUT: 15, OUTPUT: 5}
    assert lago.counted_twice() == []


@pytest.mark.parametrize("place", [1, 3, 5])
def test_duplicates_and_poison_mixed(make: Make, place: int) -> None:
    lago, sink = strict(make)
    events = [make_event(number, customer="globex" if number == place else "acme") for number in range(1, 6)]
    old = [event for event in events if event.id in ("evt_2", "evt_4")]

    sink.send(old)
    found = rejected(sink, events)

    assert list(found) == [f"evt_{place}"]
    assert lago.totals() == {INPUT: 12, OUTPUT: 4}
    assert lago.counted_twice() == []


def test_an_event_that_is_there_and_wrong_besides_is_refused() -> None:
    """The reason names both; only an event about which nothing else is wrong is taken for delivered."""

    class Both(FakeLago):
        def answer(self, request: Any) -> Any:
            reasons = {"transaction_id": ["value_already_exist"], "code": ["value_is_mandatory"]}
            return fake.invalid({"0": reasons})

    with Both(key=KEY) as lago:
        sink = LagoSink(KEY, base_url=lago.url, customers=SUBSCRIPTIONS)
        found = rejected(sink, [make_event(1, usage=Usage(input=1))])
        sink.close()

    assert found == {"evt_1": "Lago: transaction_id: value_already_exist; code: value_is_mandatory"}


@pytest.mark.parametrize("limit", [1, 7, 60])
def test_a_server_with_a_smaller_limit_gets_smaller_batches(
    make: Make, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "BATCH_MAX", limit)
    lago, sink = make()

    assert rejected(sink, make_events(50)) == {}
    assert lago.totals() == {INPUT: 150, OUTPUT: 50}


@pytest.mark.parametrize(
    "details", [None, "wrong", {"x": "y"}, {"400": ["a"]}, {"-1": ["a"]}, {"events": ["no_events"]}, {"0": "plain"}]
)
def test_a_refusal_of_another_form_is_narrowed_down(details: Any) -> None:
    """Whatever Lago says about it: the events it will take are not held up by the one it will not."""

    class Odd(FakeLago):
        def answer(self, request: Any) -> Any:
            events = json.loads(request.body)["events"]
            poison = [place for place, each in enumerate(events) if each["transaction_id"].startswith("evt_3:")]
            if poison:
                told = {str(poison[0]): "plain"} if details == {"0": "plain"} else details
                return fake.invalid(told)
            return super().answer(request)

    with Odd(key=KEY) as lago:
        sink = LagoSink(KEY, base_url=lago.url, customers=SUBSCRIPTIONS)
        found = rejected(sink, make_events(5))
        sink.close()

    assert list(found) == ["evt_3"]
    assert found["evt_3"].startswith("Lago")
    assert lago.totals() == {INPUT: 12, OUTPUT: 4}


# ---- chaos ----


@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
@pytest.mark.parametrize(
    "fault", ["error_before", "error_after", "reset_before", "reset_after", "unavailable", "throttled"]
)
def test_every_fault_is_a_retry_after_which_all_counts_once(make: Make, store: str, fault: Any) -> None:
    lago, sink = make(store=store)
    lago.chaos.script = [None, fault]

    with pytest.raises(Retry):
        sink.send(make_events(80))
    sink.send(make_events(80))

    assert lago.totals() == {INPUT: 240, OUTPUT: 80}
    assert lago.counted_twice() == []


def test_throttling_says_how_long(make: Make) -> None:
    _, sink = make(chaos=Chaos(script=["throttled"], retry_after=4))

    with pytest.raises(Retry, match="Lago answered HTTP 429") as caught:
        sink.send([make_event(1)])

    assert caught.value.after == 4


def test_a_wrong_key_is_a_retry_and_a_new_one_is_used_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lago, _ = make()
    keys = ["revoked-key", KEY]
    rotating = LagoSink(lambda: keys[0], base_url=lago.url, customers=SUBSCRIPTIONS)

    with pytest.raises(KeyRefused, match=r'^Lago refuses the key \(HTTP 401\): {"status":401,"error":"Unauthorized"}'):
        rotating.send([make_event(1)])
    del keys[0]
    rotating.send([make_event(1)])
    rotating.close()

    monkeypatch.setenv("LAGO_API_KEY", "wrong")
    environment = LagoSink(base_url=lago.url, customers=SUBSCRIPTIONS)
    with pytest.raises(KeyRefused):
        environment.send([make_event(2)])
    monkeypatch.setenv("LAGO_API_KEY", KEY)
    environment.send([make_event(2)])
    environment.close()

    assert lago.totals() == {INPUT: 6, OUTPUT: 2}


def test_without_a_key_it_says_where_one_is_expected(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAGO_API_KEY", raising=False)
    sink = LagoSink(base_url="http://127.0.0.1:1", customers=SUBSCRIPTIONS)

    with pytest.raises(Retry, match=r"Lago needs a key and has none: set \$LAGO_API_KEY, or give the key"):
        sink.send([make_event(1)])


def test_the_key_is_shown_nowhere(make: Make) -> None:
    lago, sink = strict(make)
    shown = [repr(sink), str(sink.sketch([make_event(1)])), str(rejected(sink, [make_event(1, customer="globex")]))]
    lago.stop()
    with pytest.raises(Retry) as caught:
        sink.send([make_event(2)])

    assert not [text for text in [*shown, str(caught.value)] if KEY in text]


def test_a_wrong_address_refuses_no_event(make: Make) -> None:
    lago, _ = make()
    wrong = LagoSink(KEY, base_url=f"{lago.url}/elsewhere", customers=SUBSCRIPTIONS)

    with pytest.raises(Retry, match=r"Lago answered HTTP 404: .* Nothing is wrong with the events"):
        wrong.send([make_event(1)])
    wrong.close()


# ---- values ----


def test_corrections_are_negative_values(make: Make) -> None:
    lago, sink = make()
    correction = make_event(2, corrects="evt_1", customer="globex", usage=Usage(input=3))

    sink.send([make_event(1), correction])

    assert lago.totals() == {INPUT: 0, OUTPUT: 0, ("sub_2", "llm_input_tokens", *MODEL): 3}
    assert [each.value for each in lago.counted] == [3, 1, -3, -1, 3]


def test_the_largest_quantity_is_exact(make: Make) -> None:
    lago, sink = make()

    sink.send([make_event(1, usage=Usage(input=QUANTITY_MAX, tool_input=QUANTITY_MAX))])

    assert lago.totals() == {INPUT: 2 * QUANTITY_MAX}
    assert counted(sink, [("sub_1", "llm_input_tokens")]) == {("sub_1", "llm_input_tokens"): 2 * QUANTITY_MAX}


def test_names_in_any_script_arrive(make: Make) -> None:
    lago, sink = make(sink={"customers": "same", "dimensions": ["team"]})
    event = make_event(
        1, customer="Ω 株式会社", model="模型-🜚", dimensions={"team": "lone \ud800"}, usage=Usage(input=1)
    )

    sink.send([event])

    assert lago.totals() == {("Ω 株式会社", "llm_input_tokens", "模型-🜚", "openai"): 1}


# ---- what Lago counted ----


def counted(sink: LagoSink, pairs: Sequence[tuple[str, str]], **period: datetime) -> dict[tuple[str, str], int]:
    since = period.get("since", EPOCH)
    return sink.counted(since=since, until=period.get("until", EPOCH + timedelta(days=31)), pairs=pairs)


@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
def test_counted_sums_a_period_page_by_page(make: Make, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 10)
    lago, sink = make(store=store)
    sink.send([make_event(number) for number in range(60)])
    lago.chaos.script = ["error_after"]
    with pytest.raises(Retry):
        sink.send([make_event(60)])
    sink.send([make_event(60)])  # ClickHouse lists it twice

    pairs = [("sub_1", "llm_input_tokens"), ("sub_1", "llm_output_tokens"), ("sub_2", "llm_input_tokens")]
    minute = {"since": EPOCH + timedelta(seconds=10), "until": EPOCH + timedelta(seconds=40)}

    assert list(counted(sink, pairs).values()) == [183, 61, 0]
    assert list(counted(sink, pairs, **minute).values()) == [90, 30, 0]


def test_counted_begins_and_ends_exactly(make: Make) -> None:
    _, sink = make()
    times = [
        EPOCH - timedelta(milliseconds=1),
        EPOCH,
        EPOCH + timedelta(seconds=1, microseconds=-1),
        EPOCH + timedelta(seconds=1),
    ]
    sink.send([make_event(10**place, time=time, usage=Usage(input=10**place)) for place, time in enumerate(times)])

    found = counted(sink, [("sub_1", "llm_input_tokens")], until=EPOCH + timedelta(seconds=1))

    assert found == {("sub_1", "llm_input_tokens"): 110}


def test_what_others_reported_is_summed_if_it_is_a_whole_number(make: Make) -> None:
    import requests

    lago, sink = make()
    events = [
        {"transaction_id": str(place), "external_subscription_id": "sub_1", "code": "llm_input_tokens",
         "timestamp": EPOCH.timestamp(), "properties": {"value": value}}
        for place, value in enumerate(["5", 7, "2.0", 3.0])
    ]  # fmt: skip

    def enter(event: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        assert requests.post(f"{lago.url}/api/v1/events", json={"event": event}, headers=headers, timeout=10).ok

    for event in events:
        enter(event)
    assert counted(sink, [("sub_1", "llm_input_tokens")]) == {("sub_1", "llm_input_tokens"): 17}
    enter({**events[0], "transaction_id": "half", "properties": {"value": "0.5"}})
    with pytest.raises(SinkError, match=r"Lago's event half has the value '0.5', which is no whole number: something"):
        counted(sink, [("sub_1", "llm_input_tokens")])


def test_counted_gives_up_loudly(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 1)
    monkeypatch.setattr(module, "PAGES_MAX", 2)
    lago, sink = make()
    sink.send(make_events(3))

    with pytest.raises(Retry, match="Lago lists more than 2 events: ask for a shorter period"):
        counted(sink, [("sub_1", "llm_input_tokens")])
    lago.down = True
    with pytest.raises(Retry, match="HTTP 503"):
        counted(sink, [("sub_1", "llm_input_tokens")])


# ---- check ----


def test_check_names_the_metrics_that_are_there_and_those_that_are_not(make: Make) -> None:
    lago, sink = make(
        metrics={"llm_input_tokens": "value", "llm_output_tokens": "tokens", "other": "value"},
        sink={
            "codes": {
                "input": "llm_input_tokens",
                "output": "llm_output_tokens",
                "reasoning": "llm_reasoning_tokens",
                "images": "llm_other_tokens",
            }
        },
    )

    assert sink.check() == [
        "Lago takes the key: 3 billable metrics",
        "billable metric llm_input_tokens is there",
        "billable metric llm_output_tokens is there, but does not sum `value` (sum_agg of tokens): is that meant?",
        "Lago takes usage of codes without a billable metric and never bills it: llm_other_tokens, llm_reasoning_tokens",
    ]
    assert lago.counted == []


def test_check_reads_every_page(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 2)
    _, sink = make(metrics=dict.fromkeys(CODES.values(), "value"))

    assert len(sink.check()) == 1 + len(set(CODES.values()))


def test_check_is_wrong_when_no_metric_is_there(make: Make) -> None:
    _, sink = make(metrics={"other": "value"}, sink={"mapping": [Rule(key="a", meter="tokens", types=("input",))]})

    with pytest.raises(SinkError, match=r"Lago has no billable metric for any code of this sink: tokens. Create them"):
        sink.check()


def test_check_of_a_function_proves_the_key_alone(make: Make) -> None:
    lago, sink = make(sink={"mapping": lambda event: []})

    assert sink.check() == ["Lago takes the key: 0 billable metrics"]
    wrong = LagoSink("wrong", base_url=lago.url)
    with pytest.raises(KeyRefused):
        wrong.check()
    wrong.close()


# ---- through a meter ----


def test_an_event_waits_for_its_customers_id_and_goes_by_itself(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_meter.delivery.AWAITED_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    lago, _ = make()

    with Meter("usage.db", LagoSink(KEY, base_url=lago.url)) as meter:
        meter.customers.edit("globex", external_ids={"lago": "sub_2"})
        for customer in ("acme", "globex"):
            meter.record(Usage(input=3), model="gpt-5", provider="openai", customer=customer)
        meter.flush()
        (waiting,) = quarantined("usage.db.journal", "lago")
        before = lago.totals()
        meter.customers.edit("acme", external_ids={"lago": "sub_1"})
        until(lambda: len(lago.counted) == 2)
        meter.flush()

    assert (waiting.state, waiting.event and waiting.event["customer"]) == ("waiting", "acme")
    assert "`token-meter customers set acme --external lago=ID`" in (waiting.reason or "")
    assert before == {("sub_2", "llm_input_tokens", "gpt-5", "openai"): 3}
    assert lago.totals() == {**before, ("sub_1", "llm_input_tokens", "gpt-5", "openai"): 3}
    assert [each.state for each in quarantined("usage.db.journal", "lago")] == ["delivered"]


def test_usage_of_nobody_is_corrected_and_the_correction_is_billed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out that docs/backends.md tells."""
    from token_meter.deliver import discard

    monkeypatch.chdir(tmp_path)
    lago, _ = make()

    with Meter("usage.db", LagoSink(KEY, base_url=lago.url)) as meter:
        meter.customers.edit("acme", external_ids={"lago": "sub_1"})
        nobody = meter.record(Usage(input=3), model="gpt-5", provider="openai")
        meter.flush()
        meter.record(nobody.usage, model="gpt-5", provider="openai", customer="acme", corrects=nobody.id)
        meter.flush()
        discard("usage.db.journal", "lago", ids=[nobody.id], reason="entered again")

    assert lago.totals() == {("sub_1", "llm_input_tokens", "gpt-5", "openai"): 3}


def test_many_faults_lose_and_double_nothing(make: Make) -> None:
    lago, sink = make(chaos=Chaos(error_before=0.1, error_after=0.2, reset_after=0.1, unavailable=0.1, seed=7))
    events = [
        make_event(number, time=datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=number)) for number in range(300)
    ]

    for start in range(0, 300, 60):
        while True:
            try:
                sink.send(events[start : start + 60])
            except Retry:
                continue
            break

    assert lago.totals() == {INPUT: 900, OUTPUT: 300}
    assert lago.counted_twice() == []


def test_one_rule_stands_for_each_code_and_tool() -> None:
    keys = [rule.key for rule in lago_rules()]

    assert len(keys) == len(set(keys))
    assert [key for key in keys if key.startswith("llm_tool_calls")] == [
        "llm_tool_calls.web_search",
        "llm_tool_calls.file_search",
        "llm_tool_calls.code_interpreter",
        "llm_tool_calls.image_generation",
    ]
