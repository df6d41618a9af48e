"""The fake of Stripe, driven by Stripe's own SDK; and by hand, where the SDK is too polite to do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import requests
import stripe
from stripe import StripeClient

from token_meter.testing.backends import Chaos, Counted, FakeStripe
from token_meter.testing.backends.stripe.book import Book
from token_meter.testing.backends.stripe.errors import ApiError, conflict
from token_meter.testing.backends.stripe.limits import OneAtATime
from token_meter.testing.backends.stripe.moments import rfc3339
from token_meter.testing.backends.stripe.params import Cancel

DAY = 86_400
EVENTS_V1, EVENTS_V2 = "/v1/billing/meter_events", "/v2/billing/meter_events"
STREAM = "/v2/billing/meter_event_stream"
PAYLOAD = {"stripe_customer_id": "cus_1", "value": "25"}
TOKENS = {**PAYLOAD, "model": "openai/gpt-5", "token_type": "input"}
SECRET = "whsec_test"

Connect = Callable[..., StripeClient]


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    """An open fake with one meter and one customer, in which nothing broke by the end of the test."""
    with FakeStripe(customers=["cus_1"]) as fake:
        fake.add_meter("tokens", id="mtr_1")
        yield fake
        assert fake.errors == []


@pytest.fixture
def connect(fake: FakeStripe) -> Iterator[Connect]:
    """Makes SDK clients of the fake."""
    session = requests.Session()
    session.trust_env = False

    def connect(key: str = "sk_test_fake", retries: int = 0) -> StripeClient:
        return StripeClient(
            key,
            base_addresses={"api": fake.url, "meter_events": fake.url},
            max_network_retries=retries,
            http_client=stripe.RequestsClient(session=session, timeout=5),
        )

    yield connect
    session.close()


@pytest.fixture
def client(connect: Connect) -> StripeClient:
    """The SDK, with the key that is let in."""
    return connect()


@pytest.fixture
def http(fake: FakeStripe) -> Iterator[httpx.Client]:
    """Requests by hand, with the key and the version of the API."""
    headers = {"Authorization": "Bearer sk_test_fake", "Stripe-Version": "2026-10-28.endive"}
    with httpx.Client(base_url=fake.url, headers=headers, trust_env=False, verify=False) as http:
        yield http


def fields(identifier: str = "id1", **payload: str) -> dict[str, Any]:
    """What the SDK is given for one event of the meter `tokens`."""
    return {"event_name": "tokens", "identifier": identifier, "payload": {**PAYLOAD, **payload}}


def form(**changes: str | None) -> dict[str, str]:
    """The same as a form; None takes a field out."""
    plain = {"event_name": "tokens", "identifier": "id1"}
    plain |= {f"payload[{key}]": value for key, value in PAYLOAD.items()}
    return {name: value for name, value in {**plain, **changes}.items() if value is not None}


def open_stream(client: StripeClient, connect: Connect) -> Any:
    """The stream, entered as Stripe describes: a second client with the token of a session."""
    token = client.v2.billing.meter_event_session.create().authentication_token
    return connect(token).v2.billing.meter_event_stream


def minute(fake: FakeStripe, minutes: int = 0) -> int:
    """A minute boundary on the fake's clock."""
    return int(fake.clock.now()) // 60 * 60 + 60 * minutes


def values(fake: FakeStripe) -> list[int]:
    return [each.value for each in fake.counted]


# ---- counting ----


def test_v1_counts_what_the_sdk_sends(fake, client):
    at = int(fake.clock.now()) - 60
    event = client.v1.billing.meter_events.create(
        {"event_name": "tokens", "identifier": "id1", "timestamp": at, "payload": TOKENS}
    )

    [counted] = fake.counted
    assert counted == Counted("id1", "cus_1", "tokens", ("openai/gpt-5", "input"), 25, float(at), counted.received)
    assert abs(event.created - counted.received) <= 1
    assert event.to_dict() == {
        "object": "billing.meter_event",
        "created": event.created,
        "event_name": "tokens",
        "identifier": "id1",
        "livemode": False,
        "payload": TOKENS,
        "timestamp": at,
    }


def test_v2_counts_what_the_sdk_sends(fake, client):
    fake.add_token_billing_meter()
    moment = fake.clock.moment().replace(microsecond=250_000)
    text = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    event = client.v2.billing.meter_events.create(
        {"event_name": "token-billing-tokens", "identifier": "id1", "timestamp": text, "payload": TOKENS}
    )

    assert fake.totals() == {("cus_1", "token-billing-tokens", "openai/gpt-5", "input"): 25}
    assert fake.counted[0].at == moment.timestamp()
    assert (event.object, event.timestamp, event.livemode) == ("v2.billing.meter_event", text, False)
    assert event.created.endswith("Z")


def test_the_stream_counts_what_the_sdk_sends(fake, client, connect):
    stream = open_stream(client, connect)

    answer = stream.create({"events": [fields(f"id{number}", value=str(number)) for number in range(100)]})

    assert answer is None
    assert fake.totals() == {("cus_1", "tokens"): sum(range(100))}
    assert fake.counted_twice() == fake.error_reports() == []


def test_what_the_sender_leaves_out_is_filled_in(fake, client):
    event = client.v1.billing.meter_events.create({"event_name": "tokens", "payload": PAYLOAD})

    [counted] = fake.counted
    assert counted.identifier == event.identifier != ""
    assert counted.at == counted.received and event.timestamp == int(counted.at)


def test_negative_values_count_and_leading_zeros_are_no_digits(fake, client):
    client.v1.billing.meter_events.create(fields("id1", value="-7"))
    client.v2.billing.meter_events.create(fields("id2", value="000999999999999999"))

    assert fake.totals() == {("cus_1", "tokens"): 999_999_999_999_999 - 7}


def test_a_meter_may_count_events_or_take_the_last_value_under_keys_of_its_own(fake, client, connect):
    calls = fake.add_meter("calls", aggregation="count", customer_key="who")
    seats = fake.add_meter("seats", aggregation="last", customer_key="who", value_key="seats")
    now = int(fake.clock.now())

    client.v1.billing.meter_events.create({"event_name": "calls", "payload": {"who": "cus_1"}})
    for value, at in (("4", now), ("5", now), ("9", now - 60)):
        client.v1.billing.meter_events.create(
            {"event_name": "seats", "timestamp": at, "payload": {"who": "cus_1", "seats": value}}
        )

    assert fake.totals() == {("cus_1", "calls"): 1, ("cus_1", "seats"): 5}
    assert [summary(client, fake, meter) for meter in (calls, seats)] == [1, 5]


def test_a_live_key_makes_live_objects():
    with FakeStripe(key="sk_live_x", customers=["cus_1"]) as fake, httpx.Client(trust_env=False, verify=False) as http:
        fake.add_meter("tokens")

        event = http.post(fake.url + EVENTS_V1, data=form(), headers={"Authorization": "Bearer rk_live_x"}).json()

    assert event["livemode"] is True


def test_a_key_has_to_look_like_one():
    with pytest.raises(ValueError, match="sk_test_") as caught:
        FakeStripe(key="my-password")

    assert "my-password" not in str(caught.value)


# ---- refusing ----

V1_REFUSALS = {
    "no event name": (form(event_name=None), "parameter_missing", "event_name", "Missing required param"),
    "no payload": ({"event_name": "tokens"}, "parameter_missing", "payload", "Missing required param"),
    "a payload that is text": ({"event_name": "tokens", "payload": "x"}, None, "payload", "Invalid hash"),
    "an unknown field": (form(event="tokens"), "parameter_unknown", "event", "Received unknown parameter: event"),
    "an unknown nested field": (form(**{"timestamp[x]": "1"}), None, "timestamp", "Invalid integer"),
    "no integer for a timestamp": (form(timestamp="1.5"), "parameter_invalid_integer", "timestamp", "Invalid integer"),
    "a long identifier": (form(identifier="x" * 101), None, "identifier", "at most 100 characters"),
    "an empty identifier": (form(identifier=""), "parameter_invalid_empty", "identifier", "empty string"),
    "no meter": (form(event_name="nope"), "resource_missing", "event_name", 'No active meter found for event name "nope"'),
    "an archived meter": (form(event_name="old"), "resource_missing", "event_name", "No active meter"),
    "no customer": (form(**{"payload[stripe_customer_id]": None}), None, "payload[stripe_customer_id]", "mapping key"),
    "an unknown customer": (
        form(**{"payload[stripe_customer_id]": "cus_2"}),
        "resource_missing",
        "payload[stripe_customer_id]",
        "No such customer: 'cus_2'",
    ),
    "no value": (form(**{"payload[value]": None}), None, "payload[value]", "Value key value not found"),
    "a fraction": (form(**{"payload[value]": "2.5"}), None, "payload[value]", "whole number. Received 2.5"),
    "an exponent": (form(**{"payload[value]": "1e3"}), None, "payload[value]", "whole number"),
    "digits of another script": (form(**{"payload[value]": "٢٥"}), None, "payload[value]", "whole number"),
    "16 digits": (form(**{"payload[value]": "1" * 16}), None, "payload[value]", "at most 15 digits"),
    "no dimension": (form(event_name="split"), None, "payload", "Dimension keys not found in payload: model, token_type"),
    "many dimensions": (form(**{f"payload[d{n}]": "x" for n in range(11)}), None, "payload", "more than 10 dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("case", V1_REFUSALS)
def test_v1_refuses_what_is_wrong(fake, http, case):
    fake.add_meter("old")
    fake.archive_meter("old")
    fake.add_meter("split", dimension_keys=("model", "token_type"))
    data, code, param, message = V1_REFUSALS[case]

    response = http.post(EVENTS_V1, data=data)

    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert (error.get("code"), error["param"]) == (code, param) and message in error["message"]
    assert fake.counted == []


V2_REFUSALS = {
    "no meter": ({"event_name": "nope"}, "no_meter"),
    "an archived meter": ({"event_name": "old"}, "archived_meter"),
    "no customer": ({"payload": {"value": "1"}}, "payload_no_customer_defined"),
    "an unknown customer": ({"payload": {**PAYLOAD, "stripe_customer_id": "cus_2"}}, "resource_missing"),
    "no value": ({"payload": {"stripe_customer_id": "cus_1"}}, "payload_no_value_defined"),
    "a fraction": ({"payload": {**PAYLOAD, "value": "2.5"}}, "payload_invalid_value"),
    "16 digits": ({"payload": {**PAYLOAD, "value": "1" * 16}}, "payload_invalid_value"),
    "a number for a value": ({"payload": {**PAYLOAD, "value": 25}}, None),
    "a list for a payload": ({"payload": []}, None),
    "a number for an identifier": ({"identifier": 1}, None),
    "an unknown field": ({"expand": []}, "parameter_unknown"),
    "seconds for a timestamp": ({"timestamp": 1_795_000_000}, None),
    "a timestamp without a zone": ({"timestamp": "2026-11-21T00:00:00"}, None),
    "a day for a timestamp": ({"timestamp": "2026-11-21"}, None),
    "a day that is none": ({"timestamp": "2026-13-41T00:00:00Z"}, None),
}


@pytest.mark.parametrize("case", V2_REFUSALS)
def test_v2_refuses_what_is_wrong(fake, http, case):
    fake.add_meter("old")
    fake.archive_meter("old")
    changes, code = V2_REFUSALS[case]

    response = http.post(EVENTS_V2, json={**fields(), **changes})

    error = response.json()["error"]
    assert response.status_code == 400 and error["message"]
    assert error.get("code") == code
    assert fake.counted == []


@pytest.mark.parametrize(
    ("seconds", "refused"),
    [(-35 * DAY + 60, None), (-35 * DAY - 60, "35 days in past"), (240, None), (360, "5 minutes in the future")],
)
def test_an_event_has_to_be_of_the_last_35_days(fake, client, seconds, refused):
    fake.clock.advance(-7 * DAY)
    event = {**fields(), "timestamp": int(fake.clock.now()) + seconds}

    if refused is None:
        client.v1.billing.meter_events.create(event)
    else:
        with pytest.raises(stripe.InvalidRequestError, match=refused) as caught:
            client.v1.billing.meter_events.create(event)
        assert caught.value.param == "timestamp"

    assert len(fake.counted) == (refused is None)


def test_the_sdk_raises_its_own_classes_for_refusals(fake, client, connect):
    with pytest.raises(stripe.InvalidRequestError) as v1:
        client.v1.billing.meter_events.create(fields(stripe_customer_id="cus_2"))
    with pytest.raises(stripe.InvalidRequestError) as v2:
        client.v2.billing.meter_events.create({**fields(), "event_name": "nope"})
    with pytest.raises(stripe.InvalidRequestError) as stream:
        open_stream(client, connect).create({"events": []})

    assert (v1.value.http_status, v1.value.code, v1.value.param) == (
        400,
        "resource_missing",
        "payload[stripe_customer_id]",
    )
    assert (v2.value.http_status, v2.value.code) == (400, "no_meter")
    assert stream.value.http_status == 400
    assert v1.value.request_id.startswith("req_")


def test_a_removed_customer_and_an_archived_meter_take_no_more(fake, client):
    client.v1.billing.meter_events.create(fields("id1"))
    fake.remove_customer("cus_1")
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        client.v1.billing.meter_events.create(fields("id2"))
    fake.add_customer("cus_1")
    fake.archive_meter("tokens")
    with pytest.raises(stripe.InvalidRequestError, match="No active meter"):
        client.v1.billing.meter_events.create(fields("id3"))
    fake.add_meter("tokens")
    client.v1.billing.meter_events.create(fields("id4"))

    assert [each.identifier for each in fake.counted] == ["id1", "id4"]


def test_meters_are_set_up_once_and_archived_if_they_exist(fake):
    with pytest.raises(ValueError, match="active meter for 'tokens'"):
        fake.add_meter("tokens")
    with pytest.raises(KeyError, match="no meter for 'nope'"):
        fake.archive_meter("nope")


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        (EVENTS_V1, "application/json", json.dumps(fields())),
        (EVENTS_V2, "application/x-www-form-urlencoded", "event_name=tokens"),
        (EVENTS_V2, "application/json", "{"),
        (EVENTS_V2, "application/json", "[]"),
    ],
)
def test_each_version_takes_only_its_own_encoding(fake, http, path, content_type, body):
    response = http.post(path, content=body, headers={"Content-Type": content_type})

    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    assert fake.counted == []


@pytest.mark.parametrize("path", [EVENTS_V2, STREAM])
def test_v2_has_to_be_told_the_version_of_the_api(fake, client, http, path):
    token = client.v2.billing.meter_event_session.create().authentication_token
    del http.headers["Stripe-Version"]
    key = token if path == STREAM else "sk_test_fake"

    response = http.post(path, json={"events": [fields()]}, headers={"Authorization": f"Bearer {key}"})

    assert response.status_code == 400 and "Stripe-Version" in response.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/invoices"), ("POST", "/v1/x"), ("DELETE", EVENTS_V1)])
def test_what_is_not_there_is_404(fake, http, method, path):
    response = http.request(method, path)

    assert response.status_code == 404
    assert response.json()["error"]["message"] == f"Unrecognized request URL ({method}: {path})."


# ---- keys ----


def test_only_keys_that_are_let_in_are_let_in(fake, client, connect):
    connect("rk_test_fake").v1.billing.meter_events.create(fields("id1"))
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key") as unknown:
        connect("sk_test_other").v1.billing.meter_events.create(fields("id2"))
    fake.revoke_key()
    with pytest.raises(stripe.AuthenticationError, match="Expired API Key") as revoked:
        client.v2.billing.meter_events.create(fields("id3"))
    fake.keys = {"sk_test_new"}
    connect("sk_test_new").v2.billing.meter_events.create(fields("id4"))

    assert [each.identifier for each in fake.counted] == ["id1", "id4"]
    assert unknown.value.http_status == revoked.value.http_status == 401
    assert revoked.value.json_body["error"]["code"] == "api_key_expired"
    assert "other" not in unknown.value.http_body and "fake" not in revoked.value.http_body


def test_no_key_is_no_key(fake, http):
    del http.headers["Authorization"]

    responses = [http.get("/v1/account"), http.post(STREAM, json={"events": [fields()]})]

    assert [response.status_code for response in responses] == [401, 401]


def test_a_key_can_be_checked(fake, http):
    assert http.get("/v1/account").json()["object"] == "account"


def test_a_session_lasts_fifteen_minutes(fake, client, connect):
    session = client.v2.billing.meter_event_session.create()
    stream = connect(session.authentication_token).v2.billing.meter_event_stream

    fake.clock.advance(890)
    stream.create({"events": [fields("id1")]})
    fake.clock.advance(20)
    with pytest.raises(stripe.TemporarySessionExpiredError) as expired:
        stream.create({"events": [fields("id2")]})
    open_stream(client, connect).create({"events": [fields("id3")]})

    assert session.object == "v2.billing.meter_event_session" and session.created < session.expires_at
    assert (expired.value.http_status, expired.value.code) == (401, "billing_meter_event_session_expired")
    assert [each.identifier for each in fake.counted] == ["id1", "id3"]


def test_keys_do_not_open_the_stream_and_sessions_open_nothing_else(fake, client, connect):
    token = client.v2.billing.meter_event_session.create().authentication_token

    with pytest.raises(stripe.AuthenticationError, match="session"):
        client.v2.billing.meter_event_stream.create({"events": [fields()]})
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key"):
        connect(token).v2.billing.meter_events.create(fields())

    assert fake.counted == []


# ---- identifiers ----


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_identifier_counts_once_in_24_hours_and_then_again(fake, client, version):
    fake.strict_identifiers = "accept"
    create = getattr(client, version).billing.meter_events.create

    create(fields(value="1"))
    create(fields(value="2"))
    fake.clock.advance(DAY - 60)
    again = create(fields(value="3"))
    fake.clock.advance(120)
    create(fields(value="4"))

    assert values(fake) == [1, 4]
    assert fake.counted_twice() == ["id1"]
    assert again.identifier == "id1"


def test_an_identifier_is_one_of_its_meter(fake, client):
    fake.add_meter("other")

    client.v1.billing.meter_events.create(fields())
    client.v1.billing.meter_events.create({**fields(), "event_name": "other"})

    assert fake.totals() == {("cus_1", "tokens"): 25, ("cus_1", "other"): 25}
    assert fake.counted_twice() == []


def test_a_refused_event_does_not_use_its_identifier(fake, client):
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.billing.meter_events.create(fields(value="x"))
    client.v1.billing.meter_events.create(fields())

    assert values(fake) == [25]


def test_a_repeated_identifier_is_refused(fake, client, http):
    client.v1.billing.meter_events.create(fields())

    with pytest.raises(stripe.InvalidRequestError, match="An event already exists with identifier id1") as v1:
        client.v1.billing.meter_events.create(fields())
    with pytest.raises(stripe.InvalidRequestError) as v2:
        client.v2.billing.meter_events.create(fields())

    assert (v1.value.http_status, v1.value.code, v1.value.headers["stripe-should-retry"]) == (400, None, "false")
    assert (v2.value.http_status, v2.value.code) == (400, "duplicate_meter_event")
    assert values(fake) == [25]


def test_the_stream_passes_over_a_repeated_identifier_without_a_word(fake, client, connect):
    client.v1.billing.meter_events.create(fields("id1"))

    open_stream(client, connect).create({"events": [fields("id1"), fields("id2", value="1"), fields("id2", value="2")]})

    assert values(fake) == [25, 1]
    assert fake.error_reports() == []


# ---- idempotency keys ----


def test_a_key_with_the_same_body_is_told_the_same(fake, http):
    first, second = (http.post(EVENTS_V1, data=form(), headers={"Idempotency-Key": "k"}) for _ in range(2))

    assert first.content == second.content
    assert "Idempotent-Replayed" not in first.headers and second.headers["Idempotent-Replayed"] == "true"
    assert values(fake) == [25]


def test_a_key_replays_even_what_would_be_refused_now(fake, http):
    statuses = [http.post(EVENTS_V2, json=fields(), headers={"Idempotency-Key": "k"}).status_code for _ in range(2)]

    assert statuses == [200, 200]
    assert values(fake) == [25]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_key_with_another_body_is_refused(fake, client, version):
    create = getattr(client, version).billing.meter_events.create
    create(fields("id1"), {"idempotency_key": "k"})

    with pytest.raises(stripe.IdempotencyError, match="same parameters") as caught:
        create(fields("id2"), {"idempotency_key": "k"})

    assert caught.value.http_status == 400
    assert [each.identifier for each in fake.counted] == ["id1"]


def test_v1_keeps_a_refusal_and_v2_tries_again(fake, client):
    options = {"idempotency_key": "k"}
    for version in (client.v1, client.v2):
        with pytest.raises(stripe.InvalidRequestError):
            version.billing.meter_events.create(fields(stripe_customer_id="cus_2"), options)
    fake.add_customer("cus_2")

    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        client.v1.billing.meter_events.create(fields(stripe_customer_id="cus_2"), options)
    client.v2.billing.meter_events.create(fields(stripe_customer_id="cus_2"), options)

    assert fake.totals() == {("cus_2", "tokens"): 25}


def test_v1_keeps_a_500_that_hides_a_success_and_v2_tells_of_it(fake, client):
    fake.chaos = Chaos(script=["error_after", None, "error_after", None])
    for version, identifier in ((client.v1, "id1"), (client.v2, "id2")):
        with pytest.raises(stripe.APIError):
            version.billing.meter_events.create(fields(identifier), {"idempotency_key": identifier})
        if version is client.v1:
            with pytest.raises(stripe.APIError) as kept:
                version.billing.meter_events.create(fields(identifier), {"idempotency_key": identifier})
        else:
            version.billing.meter_events.create(fields(identifier), {"idempotency_key": identifier})

    assert kept.value.http_status == 500 and kept.value.headers["Idempotent-Replayed"] == "true"
    assert [each.identifier for each in fake.counted] == ["id1", "id2"]


def test_a_replay_that_is_lost_leaves_what_was_kept(fake, http):
    fake.chaos = Chaos(script=[None, "error_after", None])

    statuses = [http.post(EVENTS_V1, data=form(), headers={"Idempotency-Key": "k"}).status_code for _ in range(3)]

    assert statuses == [200, 500, 200]


def test_a_key_that_is_misused_leaves_what_was_kept(fake, http):
    fake.chaos = Chaos(script=[None, "error_after", None])
    key = {"Idempotency-Key": "k"}

    statuses = [
        http.post(EVENTS_V1, data=form(identifier=identifier), headers=key).status_code
        for identifier in ("id1", "id2", "id1")
    ]

    assert statuses == [200, 500, 200]


def test_unreadable_parameters_are_not_kept(fake, client):
    with pytest.raises(stripe.InvalidRequestError, match="at most 100"):
        client.v1.billing.meter_events.create(fields("x" * 101), {"idempotency_key": "k"})
    client.v1.billing.meter_events.create(fields("id1"), {"idempotency_key": "k"})

    assert values(fake) == [25]


@pytest.mark.parametrize(("version", "days"), [("v1", 1), ("v2", 30)])
def test_a_key_is_kept_for_a_day_on_v1_and_for_thirty_on_v2(fake, client, version, days):
    create = getattr(client, version).billing.meter_events.create
    create(fields("id1"), {"idempotency_key": "k"})

    fake.clock.advance(days * DAY - 60)
    with pytest.raises(stripe.IdempotencyError):
        create(fields("id2"), {"idempotency_key": "k"})
    fake.clock.advance(120)
    create(fields("id3"), {"idempotency_key": "k"})

    assert [each.identifier for each in fake.counted] == ["id1", "id3"]


def test_a_key_must_not_be_too_long(fake, client):
    with pytest.raises(stripe.IdempotencyError, match="255"):
        client.v1.billing.meter_events.create(fields(), {"idempotency_key": "k" * 256})


# ---- limits ----


def at_once(create: Callable[[dict[str, Any]], Any], events: list[dict[str, Any]]) -> list[Exception | None]:
    """Send each from a thread of its own at the same moment, and say what became of it."""
    barrier = threading.Barrier(len(events))

    def send(event: dict[str, Any]) -> Exception | None:
        barrier.wait()
        try:
            create(event)
        except stripe.StripeError as error:
            return error
        return None

    with ThreadPoolExecutor(len(events)) as pool:
        return list(pool.map(send, events))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_second_call_for_the_same_customer_and_meter_is_refused(fake, client, version):
    fake.work_seconds, fake.busy = 0.3, "lock_timeout"

    outcomes = at_once(getattr(client, version).billing.meter_events.create, [fields(f"id{n}") for n in range(8)])

    refused = [error for error in outcomes if error is not None]
    assert refused and all(isinstance(error, stripe.RateLimitError) for error in refused)
    assert {(error.http_status, error.json_body["error"]["code"]) for error in refused} == {(429, "lock_timeout")}
    assert len(fake.counted) == 8 - len(refused)


def test_v2_refuses_it_with_a_conflict_as_documented(fake, client):
    fake.work_seconds = 0.3

    outcomes = at_once(client.v2.billing.meter_events.create, [fields(f"id{n}") for n in range(8)])

    refused = [error for error in outcomes if error is not None]
    codes = {(type(error), error.http_status, error.json_body["error"]["code"]) for error in refused}
    assert codes == {(stripe.APIError, 409, "too_many_concurrent_requests")}


def test_other_customers_and_other_meters_are_not_in_the_way(fake, client):
    fake.work_seconds = 0.1
    fake.add_meter("other")
    fake.add_customer("cus_2")
    events = [
        {**fields(f"{customer} {meter}", stripe_customer_id=customer), "event_name": meter}
        for customer in ("cus_1", "cus_2")
        for meter in ("tokens", "other")
    ]

    outcomes = at_once(client.v1.billing.meter_events.create, events)

    assert outcomes == [None] * 4
    assert len(fake.totals()) == 4


def test_what_is_worked_on_is_free_again_even_after_a_failure():
    busy = OneAtATime()

    with pytest.raises(ZeroDivisionError), busy.entering("a", conflict):
        with pytest.raises(ApiError), busy.entering("a", conflict):
            pass
        with busy.entering("b", conflict):
            raise ZeroDivisionError

    with busy.entering("a", conflict):
        pass


def test_a_lock_timeout_is_not_kept_for_its_key(fake, client):
    fake.work_seconds = 0.3
    events = [fields(f"id{number}") for number in range(8)]

    def create(event: dict[str, Any]) -> Any:
        return client.v1.billing.meter_events.create(event, {"idempotency_key": event["identifier"]})

    outcomes = at_once(create, events)
    fake.work_seconds = 0.0
    for event in events:
        create(event)

    assert any(outcomes)
    assert sorted(each.identifier for each in fake.counted) == [event["identifier"] for event in events]


def test_a_key_cannot_be_used_twice_at_a_time(fake, client):
    fake.work_seconds = 0.3

    outcomes = at_once(
        lambda event: client.v1.billing.meter_events.create(event, {"idempotency_key": "k"}), [fields()] * 6
    )

    refused = {(error.http_status, error.json_body["error"]["code"]) for error in outcomes if error is not None}
    assert refused == {(409, "idempotency_key_in_use")}
    assert values(fake) == [25]


def test_too_many_requests_are_refused_until_the_clock_moves():
    with FakeStripe(customers=["cus_1"], rate_per_second=0.001, stream_rate_per_second=0.001) as fake:
        fake.add_meter("tokens")
        headers = {"Authorization": "Bearer sk_test_fake", "Stripe-Version": "2026-10-28.endive"}
        with httpx.Client(base_url=fake.url, headers=headers, trust_env=False, verify=False) as http:
            session = http.post("/v2/billing/meter_event_session", json={}).json()
            refused = http.post(EVENTS_V1, data=form())
            fake.clock.advance(1001)
            taken = http.post(EVENTS_V1, data=form())
            fake.clock.advance(5000)
            burst = [http.get("/v1/account").status_code for _ in range(2)]
            fake.clock.advance(-6001)
            token = {"Authorization": f"Bearer {session['authentication_token']}"}
            streamed = [http.post(STREAM, json={"events": [fields("id2")]}, headers=token) for _ in range(2)]

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit")
    assert "Retry-After" not in refused.headers
    assert taken.status_code == 200 and burst == [200, 429]
    assert [each.status_code for each in streamed] == [200, 429]
    assert streamed[1].json()["error"]["type"] == "rate_limit"


# ---- the stream ----

MALFORMED = {
    "101 events": [fields(f"id{number}") for number in range(101)],
    "no event": [],
    "no list": {"event_name": "tokens"},
    "no object": ["tokens"],
    "no event name": [fields("id1"), {"payload": PAYLOAD}],
    "a number for a value": [fields("id1"), {"event_name": "tokens", "payload": {**PAYLOAD, "value": 1}}],
    "a long identifier": [fields("id1"), fields("x" * 101)],
    "seconds for a timestamp": [fields("id1"), {**fields("id2"), "timestamp": 1_795_000_000}],
    "an unknown field": [fields("id1"), {**fields("id2"), "value": "1"}],
    "no events at all": None,
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_batch_is_refused_as_a_whole(fake, client, connect, case):
    stream = open_stream(client, connect)

    with pytest.raises(stripe.InvalidRequestError) as caught:
        stream.create({"events": MALFORMED[case]})

    assert caught.value.http_status == 400
    assert fake.counted == [] and fake.error_reports() == []


def test_the_stream_takes_what_is_wrong_and_reports_it_later(fake, client, connect):
    fake.add_meter("old", id="mtr_old")
    fake.archive_meter("old")
    fake.add_meter("split", id="mtr_split", dimension_keys=("model",))
    now = fake.clock.now()
    wrong = [
        {**fields("old"), "event_name": "old"},
        {**fields("nowhere"), "event_name": "nope"},
        {**fields("split"), "event_name": "split"},
        fields("customer", stripe_customer_id="cus_2"),
        {**fields("mapping"), "payload": {"value": "1"}},
        fields("value", value="1.5"),
        {**fields("no value"), "payload": {"stripe_customer_id": "cus_1"}},
        fields("digits", value="1" * 16),
        fields("dimensions", **{f"d{number}": "x" for number in range(11)}),
        {**fields("future"), "timestamp": rfc3339(now + 600)},
        {**fields("past"), "timestamp": rfc3339(now - 36 * DAY)},
    ]

    open_stream(client, connect).create({"events": [*wrong, fields("right")]})
    reports = {each.get("related_object", {}).get("id"): each for each in fake.error_reports()}

    assert [each.identifier for each in fake.counted] == ["right"]
    codes = {
        meter: {kind["code"]: kind["error_count"] for kind in report["data"]["reason"]["error_types"]}
        for meter, report in reports.items()
    }
    assert codes == {
        "mtr_old": {"archived_meter": 1},
        None: {"no_meter": 1},
        "mtr_split": {"missing_dimension_payload_keys": 1},
        "mtr_1": {
            "meter_event_customer_not_found": 1,
            "meter_event_no_customer_defined": 1,
            "meter_event_invalid_value": 2,
            "meter_event_value_too_many_digits": 1,
            "meter_event_dimension_count_too_high": 1,
            "timestamp_in_future": 1,
            "timestamp_too_far_in_past": 1,
        },
    }
    assert reports[None]["type"] == "v1.billing.meter.no_meter_found"
    assert {report["type"] for meter, report in reports.items() if meter} == {"v1.billing.meter.error_report_triggered"}
    assert fake.error_reports() == []


def test_a_report_has_the_documented_shape_and_at_most_five_samples(fake, client, connect):
    stream = open_stream(client, connect)
    stream.create({"events": [{**fields(f"id{number}"), "payload": {"value": "1"}} for number in range(7)]})

    [report] = fake.error_reports()

    data = report.pop("data")
    assert report == {
        "id": report["id"],
        "object": "v2.core.event",
        "context": None,
        "created": report["created"],
        "livemode": False,
        "reason": None,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
        "type": "v1.billing.meter.error_report_triggered",
    }
    message = "Customer mapping key stripe_customer_id not found in payload."
    samples = [{"error_message": message, "request": {"identifier": f"id{number}"}} for number in range(5)]
    kind = {"code": "meter_event_no_customer_defined", "error_count": 7, "sample_errors": samples}
    assert data == {
        "developer_message_summary": "There are 7 invalid events",
        "reason": {"error_count": 7, "error_types": [kind]},
        "validation_end": data["validation_end"],
        "validation_start": data["validation_start"],
    }
    assert data["validation_start"] < data["validation_end"]


def test_a_signed_notification_leads_the_sdk_to_the_report(fake, client, connect):
    open_stream(client, connect).create({"events": [fields("id1", value="x")]})
    [report] = fake.error_reports()
    body, headers = fake.signed(fake.notification(report), SECRET)

    found = client.parse_event_notification(body, headers["Stripe-Signature"], SECRET)

    event = found.fetch_event()
    assert type(found).__name__ == "V1BillingMeterErrorReportTriggeredEventNotification"
    assert "data" not in json.loads(body)
    assert event.data.reason.error_types[0].code == "meter_event_invalid_value"
    assert event.data.reason.error_types[0].sample_errors[0].request.identifier == "id1"
    assert found.fetch_related_object().event_name == "tokens"


def test_a_signature_fits_one_body_one_secret_and_one_time(fake):
    body, headers = fake.signed({"object": "v2.core.event"}, SECRET)
    header = headers["Stripe-Signature"]
    fake.clock.advance(-600)
    old, old_headers = fake.signed({"object": "v2.core.event"}, SECRET)

    assert stripe.WebhookSignature.verify_header(body, header, SECRET, tolerance=300)
    for wrong in [
        (body + b" ", header, SECRET),
        (body, header, "whsec_other"),
        (old, old_headers["Stripe-Signature"], SECRET),
    ]:
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.WebhookSignature.verify_header(*wrong, tolerance=300)


def test_an_event_that_nobody_reported_is_404(fake, http):
    assert http.get("/v2/core/events/evt_1").status_code == 404


# ---- adjustments ----


def adjustment(identifier: str = "id1") -> dict[str, Any]:
    return {"event_name": "tokens", "type": "cancel", "cancel": {"identifier": identifier}}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_cancelled_event_is_billed_no_longer(fake, client, version):
    billing = getattr(client, version).billing
    billing.meter_events.create(fields("id1", value="1"))
    billing.meter_events.create(fields("id2", value="2"))

    made = billing.meter_event_adjustments.create(adjustment())

    assert fake.totals() == {("cus_1", "tokens"): 2}
    assert (made.status, made.type, made.cancel.identifier) == ("pending", "cancel", "id1")
    assert ("id" in made) == (version == "v2")
    assert summary(client, fake) == 2


def test_an_event_of_the_stream_can_be_cancelled(fake, client, connect):
    open_stream(client, connect).create({"events": [fields("id1"), fields("id2", value="2")]})

    client.v2.billing.meter_event_adjustments.create(adjustment())

    assert values(fake) == [2]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_only_what_is_there_can_be_cancelled_and_only_once(fake, client, version):
    create = getattr(client, version).billing.meter_event_adjustments.create
    client.v1.billing.meter_events.create(fields("id1"))
    create(adjustment())

    for identifier in ("id1", "nope"):
        with pytest.raises(stripe.InvalidRequestError, match="No such meter event") as caught:
            create(adjustment(identifier))
        assert (caught.value.http_status, caught.value.code) == (400, "resource_missing")


def test_an_event_can_be_cancelled_for_24_hours(fake, client):
    for identifier in ("id1", "id2"):
        client.v1.billing.meter_events.create(fields(identifier))

    fake.clock.advance(DAY - 60)
    client.v1.billing.meter_event_adjustments.create(adjustment("id1"))
    fake.clock.advance(120)
    with pytest.raises(stripe.InvalidRequestError, match="more than 24 hours ago"):
        client.v1.billing.meter_event_adjustments.create(adjustment("id2"))

    assert [each.identifier for each in fake.counted] == ["id2"]


def test_the_identifier_of_a_cancelled_event_stays_used_for_its_24_hours(fake, client):
    client.v1.billing.meter_events.create(fields("id1", value="1"))
    client.v1.billing.meter_event_adjustments.create(adjustment())

    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        client.v1.billing.meter_events.create(fields("id1", value="2"))
    fake.clock.advance(DAY + 60)
    client.v1.billing.meter_events.create(fields("id1", value="3"))
    before = values(fake)
    client.v1.billing.meter_event_adjustments.create(adjustment())

    assert before == [3] and fake.counted == []


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "range"},
        {"cancel": {}},
        {"cancel": None},
        {"cancel": {"identifier": "id1", "x": "y"}},
        {"event_name": None},
    ],
)
def test_an_adjustment_has_to_be_complete(fake, http, changes):
    fake.add_meter("other")
    http.post(EVENTS_V2, json=fields())

    response = http.post("/v2/billing/meter_event_adjustments", json={**adjustment(), **changes})

    assert response.status_code == 400
    assert values(fake) == [25]


# ---- reading back ----


def summary(client: StripeClient, fake: FakeStripe, meter: str = "mtr_1") -> float:
    """What one customer used in the last days."""
    found = client.v1.billing.meters.event_summaries.list(
        meter, {"customer": "cus_1", "start_time": minute(fake, -5000), "end_time": minute(fake, 2)}
    )
    [only] = found.data
    return only.aggregated_value


def test_meters_are_listed_newest_first_and_by_status(fake, client):
    fake.add_meter("old", id="mtr_2")
    fake.archive_meter("old")
    fake.add_meter("new", id="mtr_3", aggregation="count")
    meters = client.v1.billing.meters

    pages = meters.list({"limit": 2})

    assert [meter.id for meter in pages.auto_paging_iter()] == ["mtr_3", "mtr_2", "mtr_1"]
    assert (len(pages.data), pages.has_more, pages.url) == (2, True, "/v1/billing/meters")
    assert [meter.id for meter in meters.list({"status": "inactive"}).data] == ["mtr_2"]
    before = [meters.list({"ending_before": "mtr_1", "limit": limit}) for limit in (1, 2)]
    assert [[meter.id for meter in each.data] for each in before] == [["mtr_2"], ["mtr_3", "mtr_2"]]
    assert [each.has_more for each in before] == [True, False]
    one = meters.retrieve("mtr_1")
    assert one.to_dict() == {
        "id": "mtr_1",
        "object": "billing.meter",
        "created": one.created,
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
        "default_aggregation": {"formula": "sum"},
        "display_name": "tokens",
        "event_name": "tokens",
        "event_time_window": None,
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": one.updated,
        "value_settings": {"event_payload_key": "value"},
    }


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"status": "gone"}, {"starting_after": "mtr_9"}, {"page": 2}],
)
def test_a_list_is_asked_for_in_known_words(fake, http, query):
    assert http.get("/v1/billing/meters", params=query).status_code == 400


def test_a_meter_that_is_not_there_is_404(fake, client):
    with pytest.raises(stripe.InvalidRequestError, match="No such billing meter") as caught:
        client.v1.billing.meters.retrieve("mtr_9")

    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


def test_a_summary_adds_up_what_one_customer_used_in_a_range(fake, client):
    fake.add_customer("cus_2")
    start = minute(fake, -10)
    for number, (customer, at) in enumerate(
        [("cus_1", start - 1), ("cus_1", start), ("cus_1", start + 299), ("cus_1", start + 300), ("cus_2", start)]
    ):
        client.v1.billing.meter_events.create(
            {**fields(f"id{number}", value=str(10**number), stripe_customer_id=customer), "timestamp": at}
        )

    found = client.v1.billing.meters.event_summaries.list(
        "mtr_1", {"customer": "cus_1", "start_time": start, "end_time": start + 300}
    )

    [only] = found.data
    assert only.to_dict() == {
        "id": only.id,
        "object": "billing.meter_event_summary",
        "aggregated_value": 110,
        "end_time": start + 300,
        "livemode": False,
        "meter": "mtr_1",
        "start_time": start,
    }


@pytest.mark.parametrize(("window", "seconds"), [("hour", 3600), ("day", DAY)])
def test_summaries_by_hours_and_days_come_in_pages(fake, client, window, seconds):
    today = int(fake.clock.now()) // DAY * DAY
    start = today - 20 * DAY
    for number in range(12):
        at = start + number * seconds + 1
        client.v1.billing.meter_events.create({**fields(f"id{number}", value=str(number + 1)), "timestamp": at})
    client.v1.billing.meter_events.create({**fields("more", value="100"), "timestamp": start + 2})

    pages = client.v1.billing.meters.event_summaries.list(
        "mtr_1",
        {"customer": "cus_1", "start_time": start, "end_time": today, "value_grouping_window": window, "limit": 5},
    )

    assert (len(pages.data), pages.has_more) == (5, True)
    assert [(each.start_time, each.end_time, each.aggregated_value) for each in pages.auto_paging_iter()] == [
        (start + number * seconds, start + (number + 1) * seconds, number + 1 + 100 * (number == 0))
        for number in reversed(range(12))
    ]


def test_summaries_lag_behind(fake, client):
    fake.summary_lag_seconds = 300.0
    client.v1.billing.meter_events.create(fields())

    before = summary(client, fake)
    fake.clock.advance(301)

    assert (before, summary(client, fake)) == (0, 25)
    assert fake.totals() == {("cus_1", "tokens"): 25}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"start_time": DAY + 1}, "start_time"),
        ({"end_time": 2 * DAY + 59}, "end_time"),
        ({"end_time": 2 * DAY + 60, "value_grouping_window": "hour"}, "end_time"),
        ({"start_time": DAY + 3600, "value_grouping_window": "day"}, "start_time"),
        ({"value_grouping_window": "week"}, "value_grouping_window"),
        ({"start_time": 2 * DAY}, "end_time"),
        ({"customer": None}, "customer"),
        ({"customer": "cus_2"}, "customer"),
        ({"start_time": None}, "start_time"),
        ({"start_time": "now"}, "start_time"),
        ({"group_by": "model"}, "group_by"),
    ],
)
def test_a_summary_is_asked_for_in_whole_minutes_hours_or_days(fake, http, changes, param):
    asked = {"customer": "cus_1", "start_time": DAY, "end_time": 2 * DAY, **changes}
    query = {name: value for name, value in asked.items() if value is not None}

    response = http.get("/v1/billing/meters/mtr_1/event_summaries", params=query)

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# ---- what goes wrong on the way ----


@pytest.mark.parametrize("fault", ["error_after", "reset_after", "hang_after"])
def test_an_event_whose_answer_was_lost_counts_once_when_it_is_sent_again(fake, client, fault):
    fake.chaos = Chaos(script=[fault], hang_seconds=0.1)

    with pytest.raises((stripe.APIError, stripe.APIConnectionError)):
        client.v2.billing.meter_events.create(fields())
    lost = values(fake)
    with pytest.raises(stripe.InvalidRequestError) as again:
        client.v2.billing.meter_events.create(fields())

    assert lost == values(fake) == [25]
    assert again.value.code == "duplicate_meter_event"


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        ("error_before", stripe.APIError, 500),
        ("unavailable", stripe.APIError, 503),
        ("throttled", stripe.RateLimitError, 429),
        ("reset_before", stripe.APIConnectionError, None),
    ],
)
def test_what_fails_before_it_is_counted_is_not_counted(fake, client, fault, error, status):
    fake.chaos = Chaos(script=[fault])

    with pytest.raises(error) as caught:
        client.v1.billing.meter_events.create(fields())

    assert caught.value.http_status == status
    assert fake.counted == []


def test_another_process_can_set_up_customers_and_meters(fake, http):
    http.post("/_/customer", json={"id": "cus_2"})
    http.post("/_/meter", json={"event_name": "other"})
    http.post(EVENTS_V2, json={**fields(stripe_customer_id="cus_2"), "event_name": "other"})

    assert http.get("/_/state").json()["totals"] == [[["cus_2", "other"], 25]]


def test_the_book_shares_what_repeats_and_forgets_what_is_cancelled():
    counted: list[Counted] = []
    book = Book(counted)

    for number in range(1000):
        book.add(Counted(f"id{number}", "cus_1", "tokens", ("gpt" + "-5",), number, 0.0, float(number)))
    book.cancel(Cancel("tokens", "id999"), now=1000.0)

    assert len(counted) == len(book.of("cus_1", "tokens")) == 999
    assert len({id(each.group) for each in counted}) == 1
