"""FakeLago is as strict as Lago, gives back what it was given, and takes what Lago's own SDK sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from token_meter.testing.backends.base import Chaos, VirtualClock
from token_meter.testing.backends.lago import FakeLago

KEY = "lago-test-key"
AT = 1_795_251_889
TAKEN = {"transaction_id": ["value_already_exist"]}


class Frozen(VirtualClock):
    """Stands still at AT, until it is moved."""

    def now(self) -> float:
        return AT + self.offset_seconds


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[FakeLago, httpx2.Client]]]:
    """Opens a fake with the given settings, and a client that knows its key."""
    opened: list[Any] = []

    def serve(**settings: Any) -> tuple[FakeLago, httpx2.Client]:
        lago = FakeLago(**settings).start()
        headers = {"authorization": f"Bearer {KEY}"}
        client = httpx2.Client(base_url=f"{lago.url}/api/v1", headers=headers, verify=False)
        opened.extend((lago, client))
        return lago, client

    yield serve
    for each in reversed(opened):
        each.close()


def event(identifier: str = "t1", value: Any = "100", **fields: Any) -> dict[str, Any]:
    properties = {"value": value, "model": "gpt-5", "provider": "openai", "token_type": "input"}
    return {
        "transaction_id": identifier,
        "external_subscription_id": "sub_1",
        "code": "llm_tokens",
        "timestamp": AT,
        "properties": properties,
        **fields,
    }


def send(client: httpx2.Client, *events: Any) -> tuple[int, Any]:
    answer = client.post("/events/batch", json={"events": list(events)})
    return answer.status_code, answer.json().get("error_details", answer.json())


def test_a_batch_is_counted_by_subscription_code_and_what_splits_it(serve):
    lago, client = serve()
    more = event("t3", "7", external_subscription_id="sub_2", properties={"value": 7})

    status, answer = send(client, event("t1", "100"), event("t2", 23), more)

    assert status == 200
    assert [row["transaction_id"] for row in answer["events"]] == ["t1", "t2", "t3"]
    assert lago.totals() == {("sub_1", "llm_tokens", "gpt-5", "openai", "input"): 123, ("sub_2", "llm_tokens"): 7}
    assert lago.counted[0]._replace(received=0) == (
        "t1",
        "sub_1",
        "llm_tokens",
        ("gpt-5", "openai", "input"),
        100,
        AT,
        0,
    )
    assert (lago.dropped, lago.counted_twice(), lago.errors) == ([], [], [])


def test_one_event_is_answered_with_the_event(serve):
    lago, client = serve(clock=(clock := VirtualClock()))

    answer = client.post("/events", json={"event": event(precise_total_amount_cents="0.1230", timestamp=AT + 0.25)})

    row = answer.json()["event"]
    assert clock.moment().strftime("%Y-%m") == row.pop("created_at")[:7]
    assert row == {
        "lago_id": "00000000-0000-0000-0000-000000000001",
        "transaction_id": "t1",
        "lago_customer_id": None,
        "code": "llm_tokens",
        "timestamp": "2026-11-21T09:04:49.250Z",
        "precise_total_amount_cents": "0.123",
        "properties": {"value": "100", "model": "gpt-5", "provider": "openai", "token_type": "input"},
        "lago_subscription_id": None,
        "external_subscription_id": "sub_1",
    }
    assert lago.cents == {("sub_1", "llm_tokens", "gpt-5", "openai", "input"): Decimal("0.123")}


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}])
def test_a_wrong_key_is_refused_before_anything_else(serve, header):
    lago, _ = serve()

    answers = [
        httpx2.post(f"{lago.url}/api/v1/events/batch", content=b"{", headers=header, verify=False),
        httpx2.get(f"{lago.url}/api/v1/billable_metrics", headers=header, verify=False),
    ]

    assert [(each.status_code, each.json()) for each in answers] == [
        (401, {"status": 401, "error": "Unauthorized"})
    ] * 2


@pytest.mark.parametrize(
    ("wrong", "details"),
    [
        ([event(), event("t2", transaction_id=None)], {"1": {"transaction_id": ["value_is_mandatory"]}}),
        ([event(code="")], {"0": {"code": ["value_is_mandatory"]}}),
        (
            [event(code=" ", transaction_id=["t1"])],
            {"0": {"transaction_id": ["value_is_mandatory"], "code": ["value_is_mandatory"]}},
        ),
        ([event(timestamp="2026-11-21T00:00:00Z")], {"0": {"timestamp": ["invalid_format"]}}),
        ([event(timestamp="")], {"0": {"timestamp": ["invalid_format"]}}),
        ([event(timestamp=True)], {"0": {"timestamp": ["invalid_format"]}}),
        ([event("t1"), event("t2"), event("t1")], {"2": TAKEN}),
        ([event("t1"), event("t1", external_subscription_id="sub_2")], {"1": TAKEN}),
        ([event("old"), event("t2")], {"0": TAKEN}),
        ([event(f"t{number}") for number in range(101)], {"events": ["too_many_events"]}),
        ([], {"events": ["no_events"]}),
        (["not an object"], {"events": ["no_events"]}),
    ],
)
def test_one_wrong_event_refuses_the_whole_batch(serve, wrong, details):
    lago, client = serve()
    send(client, event("old"))

    answer = client.post("/events/batch", json={"events": wrong})

    assert answer.status_code == 422
    assert answer.json() == {
        "status": 422,
        "error": "Unprocessable Entity",
        "code": "validation_errors",
        "error_details": details,
    }
    assert [each.identifier for each in lago.counted] == ["old"]
    assert client.get("/events").json()["meta"]["total_count"] == 1


def test_a_hundred_events_are_one_batch(serve):
    lago, client = serve()

    status, _ = send(client, *(event(f"t{number}", 1) for number in range(100)))

    assert (status, len(lago.counted)) == (200, 100)


def test_a_single_event_that_exists_already_is_refused_without_an_index(serve):
    lago, client = serve()
    send(client, event())

    answers = [
        client.post("/events", json={"event": event()}),
        client.post("/events", json={"event": event(code=None)}),
    ]

    assert [each.status_code for each in answers] == [422, 422]
    assert [each.json()["error_details"] for each in answers] == [TAKEN, {"code": ["value_is_mandatory"]}]
    assert len(lago.counted) == 1


def test_another_subscription_may_use_the_same_transaction_id(serve):
    lago, client = serve()

    statuses = [send(client, event(external_subscription_id=each))[0] for each in ("sub_1", "sub_2", "sub_1")]

    assert statuses == [200, 200, 422]
    assert [each.customer for each in lago.counted] == ["sub_1", "sub_2"]


@pytest.mark.parametrize(
    ("method", "content", "headers", "status"),
    [
        ("/events/batch", b"{", {"content-type": "application/json"}, 400),
        ("/events", b"[NaN]", {"content-type": "application/json"}, 400),
        ("/events", b"{}", {"content-type": "application/json"}, 400),
        ("/events", b'{"event": {}}', {"content-type": "application/json"}, 400),
        ("/events/batch", b'{"events": [{}]}', {"content-type": "text/plain"}, 422),
        ("/nowhere", b"{}", {"content-type": "application/json"}, 404),
    ],
)
def test_a_body_that_is_not_what_was_asked_for_is_refused(serve, method, content, headers, status):
    lago, client = serve()

    answer = client.post(method, content=content, headers=headers)

    assert (answer.status_code, answer.json()["status"], lago.counted) == (status, status, [])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"external_subscription_id": None}, "it names no subscription"),
        ({"external_subscription_id": "sub_9"}, "there is no subscription 'sub_9'"),
        ({"code": "llm_tokns"}, "there is no billable metric 'llm_tokns'"),
        ({"properties": "100"}, "its property 'value' is no number: None"),
        ({"properties": {"value": "1e3"}}, "its property 'value' is no number: '1e3'"),
        ({"properties": {"value": None}}, "its property 'value' is no number: None"),
        (
            {"properties": {"value": "0.5"}},
            "its property 'value' has a fraction: Lago bills it, this fake counts whole units",
        ),
        ({"timestamp": AT * 1000}, "its time lies in the year 58859: milliseconds, not seconds?"),
    ],
)
def test_what_lago_accepts_and_never_bills_is_dropped_with_a_reason(serve, fields, reason):
    lago, client = serve(subscriptions={"sub_1": "acme"}, metrics={"llm_tokens": "value"})

    status, answer = send(client, event("good", 5), event("bad", **fields))

    assert (status, len(answer["events"])) == (200, 2)
    assert [(each.identifier, each.value) for each in lago.counted] == [("good", 5)]
    assert [(each.identifier, each.reason) for each in lago.dropped] == [("bad", reason)]


def test_strict_refuses_what_would_not_be_billed(serve):
    lago, client = serve(strict=True, subscriptions={"sub_1": "acme"}, metrics={"llm_tokens": "value"})
    nowhere = event("t2", external_subscription_id=None, properties=[1])
    unknown = event("t3", external_subscription_id="sub_9", code="llm_tokns")

    status, details = send(client, event(), nowhere, unknown)

    assert (status, lago.counted, lago.dropped) == (422, [], [])
    assert details == {
        "1": {"external_subscription_id": ["value_is_mandatory"], "properties": ["value_is_invalid"]},
        "2": {"external_subscription_id": ["subscription_not_found"], "code": ["billable_metric_not_found"]},
    }


@pytest.mark.parametrize("value", [2**53 + 1, str(2**53 + 1), 10**30])
def test_large_quantities_are_exact(serve, value):
    lago, client = serve()

    send(client, event(value=value))

    assert [each.value for each in lago.counted] == [int(value)]


def test_a_time_is_seconds_as_number_or_text_and_now_if_it_is_missing(serve):
    clock = VirtualClock(offset_seconds=-1e8)
    lago, client = serve(clock=clock)
    missing = event("t4")
    del missing["timestamp"]

    send(client, event("t1", timestamp=AT + 0.5), event("t2", timestamp=str(AT)), event("t3", timestamp=None), missing)

    assert [each.at for each in lago.counted[:2]] == [AT + 0.5, AT]
    assert [abs(each.at - clock.now()) < 60 for each in lago.counted[2:]] == [True, True]


def test_clickhouse_takes_duplicates_and_bills_one(serve):
    lago, client = serve(store="clickhouse")
    send(client, event("t1", 1, precise_total_amount_cents="5"), event("t1", 2, precise_total_amount_cents="7"))

    status, _ = send(client, event("t1", 3, precise_total_amount_cents="9"), event("t2", 4))

    group = ("gpt-5", "openai", "input")
    assert (status, [each.value for each in lago.counted], lago.counted_twice()) == (200, [3, 4], [])
    assert lago.cents[("sub_1", "llm_tokens", *group)] == 9
    assert client.get("/events").json()["meta"]["total_count"] == 4


def test_clickhouse_bills_a_retry_with_another_time_again(serve):
    lago, client = serve(store="clickhouse")

    send(client, event(), event(timestamp=AT + 0.0004), event(timestamp=AT + 1))

    assert (len(lago.counted), lago.counted_twice()) == (2, ["t1"])


def test_clickhouse_does_not_validate_a_single_event(serve):
    lago, client = serve(store="clickhouse")

    single = client.post("/events", json={"event": event(code=None)})
    batch, _ = send(client, event(code=None))
    send(client, event("big", 10**12))

    assert (single.status_code, batch, lago.counted) == (200, 422, [])
    assert [each.reason for each in lago.dropped] == [
        "there is no billable metric ''",
        "its property 'value' has more than 12 digits: ClickHouse makes it 0",
    ]


def test_an_unknown_store_is_refused():
    with pytest.raises(ValueError, match="'postgres' or 'clickhouse', not 'mysql'"):
        FakeLago(store="mysql")  # type: ignore[arg-type]


def test_more_requests_than_allowed_in_a_second_wait_for_the_next(serve):
    clock = Frozen()
    lago, client = serve(clock=clock, events_per_second=2, reads_per_second=1)

    answers = [client.post("/events", json={"event": event(f"t{number}")}) for number in range(3)]
    answers += [client.get("/billable_metrics"), client.get("/billable_metrics")]
    clock.advance(1)
    answers.append(client.post("/events", json={"event": event("t9")}))

    headers = [
        tuple(each.headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining", "reset")) for each in answers
    ]
    assert [each.status_code for each in answers] == [200, 200, 429, 200, 429, 200]
    assert headers[:3] == [("2", "1", "1"), ("2", "0", "1"), ("2", "0", "1")]
    assert headers[3:] == [("1", "0", "1"), ("1", "0", "1"), ("2", "1", "1")]
    assert [each.identifier for each in lago.counted] == ["t0", "t1", "t9"]


def test_faults_speak_as_lago_does(serve):
    script: Any = ["throttled", "error_before", "unavailable", "error_after", None]
    lago, client = serve(chaos=Chaos(script=script, retry_after=7))

    answers = [client.post("/events", json={"event": event()}) for _ in range(5)]

    assert [(each.status_code, each.json()["status"]) for each in answers] == [
        (status, status) for status in (429, 500, 503, 500, 422)
    ]
    assert answers[0].headers["x-ratelimit-reset"] == "7"
    assert "x-ratelimit-reset" not in answers[4].headers
    assert len(lago.counted) == 1


def test_events_are_listed_newest_first_by_subscription_code_and_time(serve):
    _, client = serve()
    send(client, *(event(f"t{number}", number, timestamp=AT + number) for number in range(5)))
    send(client, event("other", external_subscription_id="sub_2"), event("code", code="llm_calls"))
    wanted = {"external_subscription_id": "sub_1", "code": "llm_tokens"}
    inside = {"timestamp_from": "2026-11-21T09:04:50Z", "timestamp_to": "2026-11-21T09:04:52.000Z", **wanted}

    everything = client.get("/events").json()
    chosen = client.get("/events", params=inside).json()
    first, second = (client.get("/events", params={**wanted, "per_page": 3, "page": page}).json() for page in (1, 2))
    nothing = client.get("/events", params={"code": "nothing"}).json()

    assert [row["transaction_id"] for row in everything["events"]] == ["t4", "t3", "t2", "t1", "code", "other", "t0"]
    assert [row["transaction_id"] for row in chosen["events"]] == ["t3", "t2", "t1"]
    assert [row["properties"]["value"] for row in first["events"] + second["events"]] == [4, 3, 2, 1, 0]
    assert first["meta"] == {"current_page": 1, "next_page": 2, "prev_page": None, "total_pages": 2, "total_count": 5}
    assert second["meta"] == {"current_page": 2, "next_page": None, "prev_page": 1, "total_pages": 2, "total_count": 5}
    assert nothing == {
        "events": [],
        "meta": {"current_page": 0, "next_page": None, "prev_page": None, "total_pages": 0, "total_count": 0},
    }


def test_a_list_grows_while_it_is_read(serve):
    _, client = serve()
    send(client, event("t1"))
    before = client.get("/events").json()["meta"]["total_count"]

    send(client, event("t2"))

    assert (before, client.get("/events").json()["meta"]["total_count"]) == (1, 2)


def test_a_time_that_cannot_be_read_is_refused_in_a_list(serve):
    _, client = serve()

    answer = client.get("/events", params={"timestamp_from": "yesterday"})

    assert (answer.status_code, answer.json()["error_details"]) == (422, {"timestamp_from": ["invalid_date"]})


def test_an_event_is_found_by_its_transaction_id(serve):
    _, client = serve()
    send(client, event("t 1", properties={"value": 1.5}, timestamp=AT * 1000))

    found, missing = client.get("/events/t%201"), client.get("/events/t2")

    assert found.json()["event"]["properties"] == {"value": 1.5}
    assert found.json()["event"]["timestamp"] == "58859-04-08T08:16:40.000Z"
    assert (missing.status_code, missing.json()["code"]) == (404, "event_not_found")


def test_current_usage_is_of_this_month(serve):
    metrics = {"llm_tokens": "value", "llm_calls": "n"}
    lago, client = serve(clock=Frozen(), subscriptions={"sub_1": "acme"}, metrics=metrics)
    send(client, event("t1", 10), event("t2", 5), event("old", 99, timestamp=AT - 40 * 86_400))

    answer = client.get("/customers/acme/current_usage", params={"external_subscription_id": "sub_1"}).json()
    unknown = client.get("/customers/globex/current_usage", params={"external_subscription_id": "sub_1"})
    inactive = client.get("/customers/acme/current_usage")

    usage = answer["customer_usage"]
    assert (usage["from_datetime"], usage["to_datetime"]) == ("2026-11-01T00:00:00Z", "2026-11-30T23:59:59Z")
    assert [
        (each["billable_metric"]["code"], each["units"], each["events_count"]) for each in usage["charges_usage"]
    ] == [
        ("llm_calls", "0.0", 0),
        ("llm_tokens", "15.0", 2),
    ]
    assert (unknown.status_code, unknown.json()["code"]) == (404, "customer_not_found")
    assert (inactive.status_code, inactive.json()["code"]) == (405, "no_active_subscription")
    assert sum(lago.totals().values()) == 114


def test_billable_metrics_are_listed(serve):
    _, client = serve(metrics={"b": "tokens", "a": "value"})

    answer = client.get("/billable_metrics", params={"per_page": 1}).json()

    assert [(row["code"], row["field_name"], row["aggregation_type"]) for row in answer["billable_metrics"]] == [
        ("a", "value", "sum_agg")
    ]
    assert answer["meta"]["total_count"] == 2


def test_the_real_sdk_delivers_through_faults_without_loss(serve):
    sdk = pytest.importorskip("lago_agent_sdk")
    lago, _ = serve(chaos=Chaos(script=["unavailable"]))
    failures: list[Exception] = []
    config = sdk.LagoConfig(api_key=KEY, api_url=f"{lago.url}/api/v1", on_error=lambda error, _: failures.append(error))
    client = sdk.LagoSDK(api_key=KEY, config=config)
    usage = sdk.CanonicalUsage(input=100, output=20, model="gpt-5", provider="openai", api="chat_completions")

    try:
        for number in range(150):
            client.emit(usage, subscription="sub_1", event_id=f"call_{number}")
        delivered = client.flush(timeout=10)
    finally:
        client.shutdown()
        client._lago_client.close()

    assert (delivered, [error.status for error in failures if isinstance(error, sdk.LagoApiError)]) == (True, [503])
    assert lago.totals() == {
        ("sub_1", "llm_input_tokens", "gpt-5", "openai"): 15_000,
        ("sub_1", "llm_output_tokens", "gpt-5", "openai"): 3_000,
    }
    assert (len(lago.counted), lago.counted_twice(), lago.dropped, lago.errors) == (300, [], [], [])


def test_the_real_sdk_isolates_a_duplicate_of_a_batch(serve):
    sdk = pytest.importorskip("lago_agent_sdk")
    lago, client = serve()
    send(client, event("call_1_tok_input", 100, code="llm_input_tokens"))
    sender = sdk.LagoSDK(api_key=KEY, config=sdk.LagoConfig(api_key=KEY, api_url=f"{lago.url}/api/v1"))
    usage = sdk.CanonicalUsage(input=100, output=20, model="gpt-5", provider="openai")

    try:
        sender.emit(usage, subscription="sub_1", event_id="call_1")
        sender.flush(timeout=10)
    finally:
        sender.shutdown()
        sender._lago_client.close()

    assert [(each.identifier, each.value) for each in lago.counted] == [
        ("call_1_tok_input", 100),
        ("call_1_tok_output", 20),
    ]
    assert lago.seen["POST", "/api/v1/events/batch", 422] >= 1


def test_the_real_sdk_prices_events_itself(serve):
    sdk = pytest.importorskip("lago_agent_sdk")
    lago, _ = serve()
    config = sdk.LagoConfig(api_key=KEY, api_url=f"{lago.url}/api/v1", pricing_mode="price", markup=1.3)
    config.pricing_provider = sdk.PricingProvider(fetcher=NoPrices())
    client = sdk.LagoSDK(api_key=KEY, config=config)

    try:
        client.emit(sdk.CanonicalUsage(input=1, model="gpt-5", provider="openai"), subscription="sub_1", usd_cost=0.5)
        client.flush(timeout=10)
    finally:
        client.shutdown()
        client._lago_client.close()

    assert dict(lago.cents) == {("sub_1", "llm_cost", "gpt-5", "openai"): Decimal("65")}
    assert [each.meter for each in lago.dropped] == ["llm_cost"]


class NoPrices:
    """A price list of the SDK that fetches nothing: no test goes out to the network."""

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        return lambda *_, **__: {}
