"""The Stripe sink on the wire: what goes out, one at a time per customer and meter, and that everything counts once."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest

from tests.sinks.stripe_kit import CUSTOMERS, DAY, HOUR, KEY, Bench, Watched, billed, event, now, spend, token_fake
from token_meter.errors import Rejected, Retry, SinkError
from token_meter.sinks import LedgerSink, Measure, Rule, StripeSink, stripe, stripe_lanes, stripe_session
from token_meter.sinks.http import KeyRefused
from token_meter.sinks.mapping import types_of
from token_meter.sinks.stripe import TOKEN_BILLING, TOKEN_TYPES, token_billing
from token_meter.sinks.stripe_models import normalised, stripe_model
from token_meter.testing.backends import Chaos, VirtualClock
from token_meter.testing.builders import make_event
from token_meter.testing.conformance import SinkConformance
from token_meter.usage import HEADLINES, Usage
from token_meter.usage import TOKEN_TYPES as ALL_TYPES

APIS = ("v1", "v2", "stream")
SINGLE_PATHS = {"v1": "/v1/billing/meter_events", "v2": "/v2/billing/meter_events"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stripe, "PAUSE_SECONDS", 0.002)


@pytest.fixture
def fake():
    with token_fake() as fake:
        yield fake
        assert fake.errors == []


@pytest.fixture
def make(fake):
    """Makes sinks of the fake; what a test does not say is as simple as possible."""
    made = []

    def make(api="v2", **options):
        chosen = {"base_url": fake.url, "customers": CUSTOMERS, "now": fake.clock.now, **options}
        sink = StripeSink(chosen.pop("api_key", KEY), api=api, **chosen)
        made.append(sink)
        return sink

    yield make
    for sink in made:
        sink.close()


def refusals(sink, events):
    """Send, and give back what was refused."""
    try:
        sink.send(events)
    except Rejected as rejected:
        return list(rejected.refusals)
    return []


def only(number=1, **fields):
    """An event with one record."""
    return event(number, usage=Usage(input=25), **fields)


# ---- on the wire ----


def test_v1_takes_a_form_with_whole_seconds(fake, make):
    one = only(time=datetime(2026, 11, 21, 0, 0, 0, 900_000, tzinfo=UTC))
    fake.clock.advance(one.time.timestamp() - fake.clock.now())

    make("v1").send([one])

    [request] = fake.requests
    assert (request.method, request.path) == ("POST", "/v1/billing/meter_events")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["stripe-version"] == "2026-10-28.endive"
    assert dict(parse_qsl(request.body.decode())) == {
        "event_name": "token-billing-tokens",
        "identifier": "evt_1:input",
        "timestamp": "1795219200",
        "payload[model]": "openai/gpt-5",
        "payload[token_type]": "input",
        "payload[stripe_customer_id]": "cus_acme",
        "payload[value]": "25",
    }


def test_v2_takes_json_with_milliseconds(fake, make):
    one = only(time=datetime(2026, 11, 21, 0, 0, 0, 1_999, tzinfo=UTC))
    fake.clock.advance(one.time.timestamp() - fake.clock.now())

    make("v2").send([one])

    [request] = fake.requests
    assert (request.method, request.path) == ("POST", "/v2/billing/meter_events")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["stripe-version"] == "2026-10-28.endive"
    assert request.body.decode() == (
        '{"event_name":"token-billing-tokens","identifier":"evt_1:input","timestamp":"2026-11-21T00:00:00.001Z",'
        '"payload":{"model":"openai/gpt-5","token_type":"input","stripe_customer_id":"cus_acme","value":"25"}}'
    )


def test_the_stream_takes_a_hundred_in_a_request_with_the_token_of_a_session(fake, make):
    make("stream").send([only(number) for number in range(1, 251)])

    session, *streamed = fake.requests
    assert (session.path, session.body, session.headers["authorization"]) == (
        "/v2/billing/meter_event_session",
        b"{}",
        f"Bearer {KEY}",
    )
    assert {each.path for each in streamed} == {"/v2/billing/meter_event_stream"}
    assert [len(json.loads(each.body)["events"]) for each in streamed] == [100, 100, 50]
    assert all(each.headers["authorization"].startswith("Bearer mes_token_") for each in streamed)
    assert json.loads(streamed[0].body)["events"][0] == {
        "event_name": "token-billing-tokens",
        "identifier": "evt_1:input",
        "timestamp": json.loads(streamed[0].body)["events"][0]["timestamp"],
        "payload": {
            "model": "openai/gpt-5",
            "token_type": "input",
            "stripe_customer_id": "cus_acme",
            "value": "25",
        },
    }
    assert fake.totals() == billed(("input", 250 * 25))


@pytest.mark.parametrize("api", APIS)
def test_what_would_be_sent_can_be_looked_at(fake, make, api):
    one = event(usage=Usage(input=3, output=1))

    sketches, refused = make(api).sketch([one, event(2, customer="nobody")])

    bodies = "".join(each.body for each in sketches)
    assert len(sketches) == (1 if api == "stream" else 2)
    assert "evt_1" in bodies and "evt_2" not in bodies
    assert [each.event.id for each in refused] == ["evt_2"]
    assert fake.requests == []


def test_an_identifier_is_never_longer_than_stripe_takes(fake, make):
    sink = make()
    long = [only(customer="acme", id="x" * length) for length in (93, 94, 95, 255)]
    sink.send([*long, only(id="日本語")])
    sink.send(long)

    identifiers = [each.identifier for each in fake.counted]
    assert identifiers[:2] == ["x" * 93 + ":input", "x" * 94 + ":input"]
    assert {len(each) for each in identifiers[2:]} == {64}
    assert len(set(identifiers)) == 5


def test_of_two_events_with_one_id_the_first_counts_as_in_the_ledger(fake, make):
    make().send([event(usage=Usage(input=1)), event(usage=Usage(input=2))])

    assert fake.totals() == billed(("input", 1))


# ---- token billing ----


def test_every_token_is_reported_once_under_the_spelling_of_its_headline(fake, make):
    tokens = [name for name, row in ALL_TYPES.items() if row.unit == "token"]
    usage = Usage({name: 3**place for place, name in enumerate(tokens)})

    make().send([event(usage=usage)])

    headlines = usage.by_headline()
    assert fake.totals() == billed(
        ("input", headlines["input"] + headlines["cache write"]),
        ("cached_input", headlines["cached input"]),
        ("output", headlines["output"] + headlines["cached output"]),
    )
    rules = token_billing()
    assert sorted(name for rule in rules for name in rule.types) == sorted(tokens)
    assert {rule.key: rule.properties["token_type"] for rule in rules} == {
        "input": "input",
        "cached_input": "cached_input",
        "output": "output",
    }


def test_zero_makes_no_event_and_tools_and_milliseconds_are_no_tokens(fake, make):
    make().send([event(usage=Usage(input=0, output=4, web_search=3, audio_ms=900))])

    assert fake.totals() == billed(("output", 4))
    assert len(fake.requests) == 1


def test_the_spelling_of_token_types_can_be_chosen_and_a_type_be_left_out(fake, make):
    spelling = {**TOKEN_TYPES, "cached input": "input_cached", "cache write": "input_cached", "output": ""}

    make(token_types=spelling).send([event(usage=Usage(input=1, cache_read=2, cache_write_1h=4, output=8))])

    assert fake.totals() == billed(("input", 1), ("input_cached", 6))


def test_a_headline_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"'inputs', which is no headline. Known: input, cached input"):
        StripeSink(KEY, token_types={"inputs": "input"})

    assert set(TOKEN_TYPES) < set(HEADLINES)


MODELS = [
    # As Stripe's own clients do.
    ("anthropic", "claude-3-5-sonnet-20241022", "claude-3.5-sonnet"),
    ("anthropic", "claude-opus-4-5-20251101", "claude-opus-4.5"),
    ("anthropic", "claude-3-opus-latest-20240229", "claude-3-opus"),
    ("anthropic", "claude-3-7-sonnet-latest", "claude-3.7-sonnet"),
    ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4"),
    ("anthropic", "claude-haiku-4-5", "claude-haiku-4.5"),
    ("anthropic", "claude-2.1", "claude-2.1"),
    ("openai", "gpt-4o-2024-11-20", "gpt-4o"),
    ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
    ("openai", "gpt-4-0613", "gpt-4-0613"),
    ("openai", "gpt-5-mini-2025-08-07", "gpt-5-mini"),
    ("openai", "o3-pro-2025-06-10", "o3-pro"),
    ("google", "gemini-2.5-pro", "gemini-2.5-pro"),
    ("google", "gemini-1.5-pro-002", "gemini-1.5-pro-002"),
    ("mistral", "mistral-large-2411", "mistral-large-2411"),
    ("mistral", "some-model-2024-05-13", "some-model-2024-05-13"),
    # What passes those unchanged and matches no price.
    ("anthropic", "claude-sonnet-4-5@20250929", "claude-sonnet-4.5"),
    ("anthropic", "claude-opus-4-1@latest", "claude-opus-4.1"),
    ("anthropic", "anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3.5-sonnet"),
    ("anthropic", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4.5"),
    ("anthropic", "global.anthropic.claude-opus-4-6-v1", "claude-opus-4.6"),
    ("anthropic", "anthropic.claude-v2:1", "claude-v2:1"),
    ("anthropic", "anthropic.claude-3-haiku-20240307-v1:0:48k", "claude-3-haiku"),
    (
        "anthropic",
        "arn:aws:bedrock:us-east-1:123:inference-profile/us.anthropic.claude-3-5-haiku-20241022-v1:0",
        "claude-3.5-haiku",
    ),
    ("anthropic", "publishers/anthropic/models/claude-sonnet-4@20250514", "claude-sonnet-4"),
    ("openai", "azure/gpt-4o-2024-11-20", "gpt-4o"),
    ("openai", "openai/gpt-5-2025-08-07", "gpt-5"),
    ("openai", "ft:gpt-4o-mini-2024-07-18:org::x", "ft:gpt-4o-mini"),
    ("openai", "ft:gpt-4o-2024-05-13:org::x", "ft:gpt-4o-2024-05-13"),
    ("google", "models/gemini-2.5-pro", "gemini-2.5-pro"),
    ("google", "publishers/google/models/gemini-2.5-flash", "gemini-2.5-flash"),
    ("google", "google/gemini-2.5-flash", "gemini-2.5-flash"),
]


@pytest.mark.parametrize(("publisher", "model", "wanted"), MODELS, ids=lambda value: value)
def test_models_are_spelled_without_dates_and_clouds(publisher, model, wanted):
    assert normalised(model, publisher=publisher) == wanted
    assert normalised(wanted, publisher=publisher) == wanted


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"provider": "openai", "publisher": "openai", "model": "gpt-5-2025-08-07"}, "openai/gpt-5"),
        ({"provider": "azure", "publisher": "openai", "model": "gpt-4o-2024-11-20"}, "azure/gpt-4o"),
        (
            {"provider": "bedrock", "publisher": "anthropic", "model": "anthropic.claude-opus-4-5-20251101-v1:0"},
            "bedrock/claude-opus-4.5",
        ),
        (
            {"provider": "vertex", "publisher": "anthropic", "model": "claude-sonnet-4-5@20250929"},
            "anthropic/claude-sonnet-4.5",
        ),
        ({"provider": "openai", "publisher": "openai", "model": None, "model_requested": "gpt-5"}, "openai/gpt-5"),
        ({"provider": "openai", "publisher": None, "model": None, "model_requested": None}, "openai/unknown"),
        ({"provider": None, "publisher": None, "model": "m", "model_requested": None}, "unknown/m"),
        ({"provider": "Groq", "publisher": "meta", "model": "llama-3.3-70b"}, "groq/llama-3.3-70b"),
    ],
)
def test_a_model_stands_behind_its_provider(fields, wanted):
    assert stripe_model(make_event(**fields)) == wanted


def test_how_models_are_spelled_can_be_replaced(fake, make):
    make(model=lambda event: f"mine/{event.model}").send([only()])

    assert fake.totals() == billed(("input", 25), model="mine/gpt-5-2025-08-07")


# ---- meters of one's own ----


def test_any_event_name_and_payload_can_be_reported(fake, make):
    fake.add_meter("prompt_tokens", customer_key="who", value_key="tokens")
    fake.add_meter("requests", customer_key="who", value_key="tokens")
    fake.add_meter("pages", customer_key="who", value_key="tokens")
    rules = [
        Rule(key="in", meter="prompt_tokens", types=types_of("input", "cached input"), properties={"kind": "prompt"}),
        Rule(key="calls", meter="requests"),
        Rule(key="pages", meter="pages", source="pages"),
    ]
    sink = make(
        mapping=rules,
        properties={"feature": lambda event: event.dimensions.get("feature")},
        customer_key="who",
        value_key="tokens",
    )

    sink.send(
        [
            event(1, usage=Usage(input=7, cache_read=3, output=9), dimensions={"feature": "chat"}),
            event(2, usage=Usage(units=12), meter="pages"),
            event(3, usage=Usage(units=12), meter="other"),
        ]
    )

    payloads = {json.loads(body)["event_name"]: json.loads(body)["payload"] for _, body in fake.posted()}
    assert payloads == {
        "prompt_tokens": {"feature": "chat", "kind": "prompt", "who": "cus_acme", "tokens": "10"},
        "requests": {"feature": "chat", "who": "cus_acme", "tokens": "1"},
        "pages": {"who": "cus_acme", "tokens": "12"},
    }


def test_a_mapping_can_be_a_function(fake, make):
    fake.add_meter("audio_seconds")

    def mapping(event):
        if event.usage.audio_ms:
            yield Measure(key="audio", meter="audio_seconds", value=-(-event.usage.audio_ms // 1000))

    make(mapping=mapping).send([event(1, usage=Usage(audio_ms=1_500)), event(2, usage=Usage(input=3))])

    assert fake.totals() == {("cus_acme", "audio_seconds"): 2}


def test_a_mapping_that_raises_stops_only_its_own_event(fake, make):
    def mapping(event):
        if event.id == "evt_1":
            raise ZeroDivisionError("oh")
        yield Measure(key="x", meter=TOKEN_BILLING, value=1, properties={"model": "m", "token_type": "input"})

    refused = refusals(make(mapping=mapping), [event(1), event(2)])

    assert [each.event.id for each in refused] == ["evt_1"]
    assert "of sink 'stripe' failed: ZeroDivisionError: oh" in refused[0].reason
    assert fake.totals() == billed(("input", 1), model="m")


def test_a_filter_leaves_events_out(fake, make):
    make(where=lambda event: event.status != "estimated").send([only(1), only(2, status="estimated")])

    assert [each.identifier for each in fake.counted] == ["evt_1:input"]


def test_placeholders_are_left_out(fake, make):
    make().send([event(usage=Usage(), status="unmetered")])

    assert fake.requests == []


# ---- whose it is ----


def test_customers_are_found_by_a_mapping_a_function_or_the_same_id(fake, make):
    fake.add_customer("acme")
    ways = {
        "mapping": {"acme": "cus_acme"},
        "function": lambda event: CUSTOMERS.get(event.customer),
        "same": "same",
    }

    for number, (name, customers) in enumerate(ways.items(), start=1):
        make(customers=customers, name=name).send([only(number)])

    assert [each.customer for each in fake.counted] == ["cus_acme", "cus_acme", "acme"]


def test_usage_of_nobody_is_refused_unless_somebody_pays_for_it(fake, make):
    refused = refusals(make(), [only(1, customer=None)])
    make(unattributed="cus_globex").send([only(2, customer=None)])

    assert [each.identifier for each in fake.counted] == ["evt_2:input"]
    assert fake.counted[0].customer == "cus_globex"
    assert "it has no customer. Enter a correction that names one" in refused[0].reason


# ---- live and test ----


def test_a_live_sink_leaves_test_usage_out(fake, make):
    make().send([only(1, mode="test"), only(2)])

    assert [each.identifier for each in fake.counted] == ["evt_2:input"]


def test_a_sink_with_a_test_key_refuses_live_usage_and_reports_test_usage():
    with token_fake(key="sk_test_fake") as fake:
        sink = StripeSink("sk_test_fake", base_url=fake.url, customers=CUSTOMERS)
        with sink_closed(sink):
            refused = refusals(sink, [only(1), only(2, mode="test")])

    assert sink.mode == "test"
    assert [each.event.id for each in refused] == ["evt_1"]
    assert "this is live usage" in refused[0].reason and "Give it the live key and release" in refused[0].reason
    assert [each.identifier for each in fake.counted] == ["evt_2:input"]


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        ("sk_test_1", "test"),
        ("rk_test_1", "test"),
        (" rk_live_1\n", "live"),
        ("sk_org_test_1", "test"),
        (lambda: "sk_test_1", "test"),
        (lambda: 1 // 0, "live"),
        (lambda: None, "live"),
        ("something else", "live"),
        (None, "live"),
    ],
)
def test_the_mode_is_the_one_of_the_key(key, mode, monkeypatch):
    monkeypatch.delenv("STRIPE_API_KEY", raising=False)

    assert StripeSink(key).mode == mode


def test_the_key_may_stand_in_the_environment(fake, make, monkeypatch):
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_fake")
    test = StripeSink()
    monkeypatch.setenv("STRIPE_API_KEY", KEY)
    sink = make(api_key=None)

    sink.send([only()])

    assert (test.mode, sink.mode, len(fake.counted)) == ("test", "live", 1)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(("mode", "key"), [("live", "sk_test_fake"), ("test", KEY)])
def test_a_key_of_the_other_mode_is_never_used(fake, make, api, mode, key):
    fake.keys |= {"sk_test_fake"}
    sink = make(api, api_key=key, mode=mode)

    with pytest.raises(KeyRefused, match=f"sink 'stripe' reports {mode} usage. Nothing is sent and nothing is lost"):
        sink.send([only(mode=mode)])

    assert fake.requests == []


def test_a_key_that_turns_into_one_of_the_other_mode_is_not_used_either(fake, make):
    keys = [KEY, KEY, "sk_test_fake"]
    fake.keys |= {"sk_test_fake"}
    sink = make(api_key=lambda: keys.pop(0) if len(keys) > 1 else keys[0])
    sink.send([only(1)])

    with pytest.raises(KeyRefused, match="the key is one for test mode"):
        sink.send([only(2)])

    assert [each.identifier for each in fake.counted] == ["evt_1:input"]


# ---- keys and secrets ----


@pytest.mark.parametrize("api", APIS)
def test_a_key_that_is_changed_is_used_at_once(fake, make, api):
    keys = [KEY]
    sink = make(api, api_key=lambda: keys[-1])
    sink.send([only(1)])
    fake.keys = {"rk_live_new"}
    keys.append("rk_live_new")

    sink.send([only(2)])

    assert len(fake.counted) == 2
    assert {each.headers["authorization"] for each in fake.requests if "stream" not in each.path} == {
        f"Bearer {KEY}",
        "Bearer rk_live_new",
    }


@pytest.mark.parametrize("api", APIS)
def test_a_wrong_key_is_no_fault_of_the_events(fake, make, api):
    sink = make(api, api_key="sk_live_wrong")

    with pytest.raises(KeyRefused, match=r"Stripe refuses the key \(HTTP 401\).*Nothing is lost"):
        sink.send([only()])

    assert len(fake.requests) == 1  # once: asking again with the same key is pointless


def test_without_a_key_nothing_is_sent_and_the_variable_is_named(make, monkeypatch):
    monkeypatch.delenv("STRIPE_API_KEY", raising=False)

    with pytest.raises(Retry, match=r"set \$STRIPE_API_KEY"):
        make(api_key=None).send([only()])


def test_secrets_are_never_shown(fake, make, caplog, tmp_path):
    secret = "sk_live_hush_hush_hush"
    sink = make(api_key=secret, webhook_secret="whsec_hush_hush")
    told = [repr(sink), str(sink), f"{sink.__dict__.keys()}"]
    with caplog.at_level(logging.DEBUG):
        for fault in (None, "error_before", "reset_before"):
            fake.chaos = Chaos(script=[fault] * 9)
            with pytest.raises(Retry) as caught:
                sink.send([only()])
            told += [str(caught.value), repr(caught.value)]
    told.append(caplog.text)

    assert not [text for text in told if "hush" in text]


def test_a_server_that_quotes_the_key_does_not_get_it_into_messages(make):
    class Parrot(Watched):
        def answer(self, request):
            return super().answer(request)._replace(status=500, body=request.headers["authorization"].encode())

    with Parrot() as parrot:
        sink = make(base_url=parrot.url)
        with pytest.raises(Retry) as caught:
            sink.send([only()])

    assert "HTTP 500" in str(caught.value) and KEY not in str(caught.value)


# ---- one at a time, and several at a time ----


class Crowd(Watched):
    """Notices how many requests are under way at once, altogether and for one customer and meter."""

    def __init__(self, **options):
        super().__init__(**options)
        self.under_way = []
        self.most = 0

    def answer(self, request):
        if request.path not in SINGLE_PATHS.values():
            return super().answer(request)
        with self.lock:
            self.under_way.append(request)
            self.most = max(self.most, len(self.under_way))
        try:
            return super().answer(request)
        finally:
            with self.lock:
                self.under_way.remove(request)


@pytest.mark.parametrize("api", ["v1", "v2"])
@pytest.mark.parametrize("busy", ["conflict", "lock_timeout"])
def test_never_two_requests_of_one_customer_and_meter_and_several_customers_at_a_time(api, busy):
    customers = {f"customer {number}": f"cus_{number}" for number in range(6)}
    with Crowd(customers=customers.values(), work_seconds=0.01, busy=busy) as fake:
        for name in ("a", "b"):
            fake.add_meter(name)
        rules = [Rule(key=name, meter=name, types=("input",)) for name in ("a", "b")]
        # Two of ours may be one at Stripe.
        sink = StripeSink(KEY, api=api, base_url=fake.url, customers={**customers, "twin": "cus_0"}, mapping=rules)
        names = [*customers, "twin"]
        batch = [event(n, customer=names[n % 7], usage=Usage(input=1)) for n in range(28)]
        with sink_closed(sink):
            sink.send(batch)

    assert {status for _, _, status in fake.seen} == {200}
    assert len(fake.counted) == 56 and fake.counted_twice() == []
    assert 2 <= fake.most <= 8


def test_how_many_requests_are_under_way_has_a_limit():
    customers = {f"customer {number}": f"cus_{number}" for number in range(9)}
    with Crowd(customers=customers.values(), work_seconds=0.01) as fake:
        fake.add_token_billing_meter()
        sink = StripeSink(KEY, base_url=fake.url, customers=customers, in_flight=2)
        with sink_closed(sink):
            sink.send([event(n, customer=f"customer {n}", usage=Usage(input=1)) for n in range(9)])

    assert fake.most == 2
    for wrong in (0, 65):
        with pytest.raises(ValueError, match="in_flight must be between 1 and 64"):
            StripeSink(KEY, in_flight=wrong)


def test_another_program_that_is_busy_with_a_customer_is_waited_for(fake, make):
    """A second sink, as in another process, sends for the same customer at the same time."""
    fake.work_seconds = 0.004
    failures = []

    def report(sink, numbers):
        for number in numbers:
            for _ in range(50):
                try:
                    sink.send([only(number)])
                    break
                except Retry as retry:
                    failures.append(str(retry))

    threads = [
        threading.Thread(target=report, args=(make(name=f"s{part}"), range(part * 10, part * 10 + 10)))
        for part in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert fake.totals() == billed(("input", 20 * 25))
    assert fake.counted_twice() == []
    assert all("Stripe is busy with this customer and meter (HTTP 409)" in failure for failure in failures)


def test_a_failure_stops_what_has_not_begun():
    done = []

    def work(call):
        done.append(call)
        if call == "b1":
            raise Retry("down")
        return []

    with pytest.raises(Retry, match="down"):
        stripe_lanes.in_lanes(work, [["a1"], ["b1", "b2"], ["c1"]], in_flight=1, until=time.monotonic() + 60)

    assert done == ["a1", "b1"]


def test_a_batch_is_not_sent_for_longer_than_identifiers_are_sure_to_be_known():
    done = []

    with pytest.raises(Retry, match="Stripe is slow: the batch is not through after 240 s"):
        stripe_lanes.in_lanes(lambda call: done.append(call) or [], [["a"]], in_flight=1, until=time.monotonic() - 1)

    assert done == []


def test_where_no_thread_can_be_started_one_does_all_of_the_work(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    done = []
    monkeypatch.setattr(threading.Thread, "start", refuse)

    stripe_lanes.in_lanes(
        lambda call: done.append(call) or [], [["a"], ["b"], ["c"]], in_flight=3, until=time.monotonic() + 60
    )

    assert done == ["a", "b", "c"]


# ---- what goes wrong on the way ----

FAULTS = ("error_before", "error_after", "reset_before", "reset_after", "unavailable", "throttled", "slow")


@pytest.mark.parametrize("strict", ["refuse", "accept"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("api", APIS)
def test_whatever_goes_wrong_everything_counts_once(fake, make, api, fault, strict):
    fake.strict_identifiers = strict
    sink = make(api, in_flight=4)
    batch = [
        event(number, customer=("acme", "globex")[number % 2], usage=Usage(input=number, output=1))
        for number in range(1, 9)
    ]
    fake.chaos = Chaos(**{fault: 0.4}, seed=7, slow_seconds=0.001)

    sent_until_taken(sink, batch)

    assert fake.counted_twice() == []
    assert fake.totals() == {
        **billed(("input", 1 + 3 + 5 + 7), ("output", 4), customer="cus_globex"),
        **billed(("input", 2 + 4 + 6 + 8), ("output", 4), customer="cus_acme"),
    }


@pytest.mark.parametrize("api", APIS)
def test_an_answer_that_never_comes_is_no_answer(fake, make, api, monkeypatch):
    monkeypatch.setattr("token_meter.sinks.http.READ_SECONDS", 0.05)
    sink = make(api)
    fake.chaos = Chaos(script=[*([None] if api == "stream" else []), "hang_after"], hang_seconds=0.2)

    sent_until_taken(sink, [only()])

    assert [each.identifier for each in fake.counted] == ["evt_1:input"]


@pytest.mark.parametrize("api", APIS)
def test_one_busy_moment_does_not_put_off_the_batch(fake, make, api):
    sink = make(api)
    fake.chaos = Chaos(script=["throttled", "unavailable", "throttled"] if api != "stream" else [None, "throttled"])

    sink.send([only()])

    assert len(fake.counted) == 1


def test_a_long_wait_that_stripe_asks_for_is_left_to_who_delivers(fake, make):
    sink = make()
    fake.chaos = Chaos(script=["throttled"], retry_after=30)

    with pytest.raises(Retry) as caught:
        sink.send([only()])

    assert caught.value.after == 30
    assert len(fake.requests) == 0 and sum(fake.seen.values()) == 1


def test_what_was_acknowledged_is_not_sent_again_by_the_same_process(fake, make):
    sink = make()
    fake.chaos = Chaos(script=[None, None, *["unavailable"] * 4])
    batch = [only(1), only(2), only(3)]

    with pytest.raises(Retry, match="503"):
        sink.send(batch)
    before = len(fake.requests)
    sink.send(batch)

    assert (before, len(fake.requests)) == (2, 3)


def test_an_outage_is_not_met_once_for_every_customer(fake, make):
    customers = {f"customer {number}": "cus_acme" for number in range(50)} | {"acme": "cus_acme"}
    fake.add_meter("m")
    sink = make(customers=lambda event: event.customer, in_flight=2)
    fake.down = True

    with pytest.raises(Retry):
        sink.send([only(number, customer=f"customer {number}") for number in range(50)])

    assert customers and sum(fake.seen.values()) <= 2 * stripe.TRIES


@pytest.mark.parametrize("api", APIS)
def test_an_answer_that_is_not_stripes_refuses_nothing(fake, make, api):
    sink = make(api, base_url=f"{fake.url}/nowhere")

    with pytest.raises(Retry, match=r"HTTP 404"):
        sink.send([only()])

    assert fake.counted == []


def test_an_error_page_of_a_proxy_refuses_nothing(make):
    class Proxy(Watched):
        def answer(self, request):
            return super().answer(request)._replace(status=400, body=b"<h1>Bad gateway to hell</h1>")

    with Proxy() as proxy:
        sink = make(base_url=proxy.url)
        with pytest.raises(Retry, match="Nothing is wrong with the events"):
            sink.send([only()])


def test_of_a_malformed_stream_only_the_malformed_event_is_refused(fake, make):
    """An event name that is too long makes Stripe refuse a whole request; it is found by halves."""
    rules = [Rule(key="x", meter="", source="*")]
    fake.add_meter("good")
    batch = [event(n, meter="good" if n != 37 else "b" * 101, usage=Usage(units=1)) for n in range(1, 101)]

    refused = refusals(make("stream", mapping=rules), batch)

    assert [each.event.id for each in refused] == ["evt_37"]
    assert "at most 100 characters" in refused[0].reason
    assert len(fake.counted) == 99 and fake.counted_twice() == []


# ---- sessions of the stream ----


def test_a_session_is_opened_once_and_renewed_before_it_ends(fake, make):
    sink = make("stream")

    for number, seconds in enumerate((0, 600, 200, 100, 10), start=1):
        fake.clock.advance(seconds)
        sink.send([only(number, ago=60 - seconds)])

    sessions = [each for each in fake.requests if each.path == stripe_session.SESSION_PATH]
    assert len(sessions) == 2
    assert {status for _, _, status in fake.seen} == {200}
    assert len(fake.counted) == 5


def test_a_session_that_stripe_ends_early_is_replaced(fake, make):
    sink = make("stream", now=time.time)
    sink.send([only(1)])
    fake.clock.advance(901)  # Stripe's clock, not ours

    sink.send([only(2)])

    assert len(fake.counted) == 2
    assert fake.seen[("POST", "/v2/billing/meter_event_stream", 401)] == 1
    assert fake.seen[("POST", stripe_session.SESSION_PATH, 200)] == 2


def test_a_session_that_cannot_be_opened_is_a_reason_to_wait(fake, make):
    sink = make("stream")
    fake.chaos = Chaos(script=["unavailable"] * stripe.TRIES)

    with pytest.raises(Retry, match="503"):
        sink.send([only()])

    assert fake.counted == []


# ---- events that come again ----


def test_an_object_that_is_read_again_days_later_is_not_reported_again(fake, make, tmp_path):
    """Stripe has forgotten the identifier by then; the ledger has not."""
    sink = make(customers=CUSTOMERS)
    ledger = LedgerSink(tmp_path / "usage.db")
    accounts = bound(sink, ledger)
    job = only(id="job-1", ago=60.0)
    again = replace(job, time=job.time + timedelta(days=3))
    minted = only(2, id="019ab3f0-0000-7000-8000-000000000000", time=now())
    for each in (job, minted):
        ledger.send([each])
        sink.send([each])
    fake.clock.advance(3 * DAY)

    for each in (again, replace(again, id=job.id)):
        ledger.send([each])
        sink.send([each])
    ledger.close()

    assert accounts is not None
    assert [each.identifier for each in fake.counted] == [
        "job-1:input",
        "019ab3f0-0000-7000-8000-000000000000:input",
    ]


def test_a_placeholder_in_the_ledger_does_not_make_the_real_event_a_repeat(fake, make, tmp_path):
    sink = make(customers=CUSTOMERS)
    ledger = LedgerSink(tmp_path / "usage.db")
    bound(sink, ledger)
    real = only(id="resp_1", ago=60.0)
    ledger.send([replace(real, usage=Usage(), status="unmetered", time=real.time - timedelta(days=2))])

    sink.send([real])
    ledger.close()

    assert [each.identifier for each in fake.counted] == ["resp_1:input"]


# ---- reading back, and checking ----


@pytest.mark.parametrize("api", APIS)
def test_what_stripe_counted_can_be_read_by_whole_minutes(fake, make, api):
    sink = make(api)
    minute = now().replace(second=0, microsecond=0) - timedelta(minutes=5)
    inside = [only(n, time=minute + timedelta(seconds=n)) for n in range(3)]
    sink.send([*inside, only(8, time=minute - timedelta(seconds=1)), only(9, time=minute + timedelta(seconds=60))])
    pairs = [
        ("cus_acme", TOKEN_BILLING),
        ("cus_globex", TOKEN_BILLING),
        ("cus_gone", TOKEN_BILLING),
        ("cus_acme", "no"),
    ]

    found = sink.counted(since=minute, until=minute + timedelta(minutes=1), pairs=pairs)

    assert found == {pairs[0]: 75, pairs[1]: 0, pairs[2]: 0, pairs[3]: 0}


def test_what_an_archived_meter_counted_can_still_be_read(fake, make):
    sink = make()
    sink.send([only()])
    fake.archive_meter(TOKEN_BILLING)
    minute = now().replace(second=0, microsecond=0)

    found = sink.counted(
        since=minute - timedelta(hours=1), until=minute + timedelta(minutes=2), pairs=[("cus_acme", TOKEN_BILLING)]
    )

    assert found == {("cus_acme", TOKEN_BILLING): 25}


def test_what_would_be_counted_is_what_is_counted(fake, make):
    batch = [event(1, usage=Usage(input=3, output=1)), event(2, customer="nobody"), event(3, mode="test")]
    sink = make()

    reported, refused = sink.reported(batch)

    sums = {}
    for _, each in reported:
        sums[each.customer, each.meter] = sums.get((each.customer, each.meter), 0) + each.value
    refusals(sink, batch)
    counted = {}
    for each in fake.counted:
        counted[each.customer, each.meter] = counted.get((each.customer, each.meter), 0) + each.value
    assert sums == counted == {("cus_acme", TOKEN_BILLING): 4}
    assert [each.event.id for each in refused] == ["evt_2"]


def test_checking_proves_the_key_and_the_meters(fake, make):
    assert make().check() == [
        "Stripe takes the key (live mode): 1 active meters",
        "meter token-billing-tokens is active",
    ]


def test_many_meters_are_read_page_by_page(fake, make):
    for number in range(120):
        fake.add_meter(f"m{number}")

    lines = make(mapping=[Rule(key="x", meter="m0")]).check()

    assert lines[0] == "Stripe takes the key (live mode): 121 active meters"


@pytest.mark.parametrize(
    ("options", "meter", "message"),
    [
        ({"event_name": "nope"}, {}, "no active meter with the event name nope .there is: m, token-billing-tokens."),
        ({"event_name": "m"}, {"aggregation": "count"}, "meter m counts events where 'input' reports amounts"),
        ({"event_name": "m"}, {"aggregation": "last"}, "meter m takes the last value where"),
        ({"event_name": "m"}, {"customer_key": "who"}, "under 'who': give the sink customer_key='who'"),
        ({"event_name": "m"}, {"value_key": "n"}, "under 'n': give the sink value_key='n'"),
        ({"api_key": "sk_live_wrong"}, {}, "Stripe refuses the key"),
        ({"api_key": "sk_test_fake", "mode": "live"}, {}, "the key is one for test mode"),
    ],
)
def test_checking_says_what_is_wrong(fake, make, options, meter, message):
    fake.add_meter("m", **meter)

    with pytest.raises(SinkError, match=message):
        make(**options).check()


def test_a_meter_that_counts_events_is_right_for_calls(fake, make):
    fake.add_meter("calls", aggregation="count")

    assert "meter calls is active" in make(mapping=[Rule(key="calls", meter="calls")]).check()


def test_checking_finds_an_archived_meter(fake, make):
    sink = make()
    sink.check()
    fake.archive_meter(TOKEN_BILLING)

    with pytest.raises(SinkError, match="no active meter"):
        sink.check()


# ---- with a meter ----


@pytest.mark.parametrize("api", APIS)
def test_a_meter_reports_to_the_ledger_and_to_stripe(fake, tmp_path, api):
    bench = Bench(tmp_path, fake, api=api)
    with bench.meter() as meter:
        for tokens in (1, 10, 100):
            spend(meter, tokens)
            spend(meter, tokens, customer="globex")
        bench.deliver(meter)

        assert meter.health().ok
    assert bench.tokens() == {"cus_acme": 111, "cus_globex": 111}


def test_options_that_are_none_are_refused():
    for options in ({"api": "v3"}, {"mode": "prod"}, {"customers": "all"}, {"base_url": "api.stripe.com"}):
        with pytest.raises(ValueError):
            StripeSink(KEY, **options)


# ---- the suite that every sink passes ----


class StripeConformance(SinkConformance):
    """Stripe keeps ids and values, and takes no others than those of its documentation."""

    api = "v2"
    deduplicates = True
    refused = make_event(99, customer="nobody")
    # These send usage of test mode, without quantities, or of 19 digits: tested above and in test_stripe_errors.
    test_keeps_every_field = None
    test_keeps_large_quantities = None

    @pytest.fixture
    def sink(self):
        offset = make_event(1).time.timestamp() + HOUR - time.time()
        with token_fake(clock=VirtualClock(offset_seconds=offset)) as fake:
            sink = StripeSink(
                KEY,
                api=self.api,
                base_url=fake.url,
                customers=lambda event: None if event.customer == "nobody" else "cus_acme",
                now=fake.clock.now,
            )
            sink.fake = fake
            yield sink
            sink.close()

    def received(self, sink):
        """The ids of events: as often as their records were counted."""
        identifiers = [each.identifier for each in sink.fake.counted]
        ids = dict.fromkeys(identifier.rpartition(":")[0] for identifier in identifiers)
        times = {id: max(identifiers.count(each) for each in identifiers if each.startswith(f"{id}:")) for id in ids}
        return [id for id, count in times.items() for _ in range(count)]

    @contextmanager
    def broken(self, sink):
        sink.fake.down = True
        yield
        sink.fake.down = False


class TestV1Conforms(StripeConformance):
    api = "v1"


class TestV2Conforms(StripeConformance):
    api = "v2"


class TestStreamConforms(StripeConformance):
    api = "stream"


# ---- helpers ----


def sent_until_taken(sink, batch, *, times=200):
    """Send like a reporter does: again after each Retry."""
    for _ in range(times):
        try:
            sink.send(batch)
        except Retry:
            continue
        return
    raise AssertionError("it was never taken")


def bound(sink, ledger):
    """Let the sink work with the ledger, as a meter does."""
    from token_meter.accounts.directory import LedgerAccounts

    accounts = LedgerAccounts(ledger.ledger)
    sink.bind(accounts)
    return accounts


@contextmanager
def sink_closed(sink):
    try:
        yield sink
    finally:
        sink.close()
