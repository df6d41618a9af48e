"""WebhookReceiver believes what Standard Webhooks' own library signs, and counts every event once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from token_meter.event import MeterEvent
from token_meter.testing import make_event
from token_meter.testing.backends.base import Chaos, Response, VirtualClock
from token_meter.testing.backends.webhook import SECRET, WebhookReceiver
from token_meter.usage import Usage

standardwebhooks = pytest.importorskip("standardwebhooks")

AT = 1_795_251_889
BATCH = "application/cloudevents-batch+json"
OTHER = "whsec_b3RoZXI="


class Frozen(VirtualClock):
    """Stands still at AT, until it is moved."""

    def now(self) -> float:
        return AT + self.offset_seconds


@pytest.fixture
def serve() -> Iterator[Callable[..., WebhookReceiver]]:
    """Opens a receiver with the given settings."""
    opened: list[WebhookReceiver] = []

    def serve(**settings: Any) -> WebhookReceiver:
        opened.append(WebhookReceiver(clock=Frozen(), **settings).start())
        return opened[-1]

    yield serve
    for receiver in opened:
        receiver.close()


def event(identifier: str = "e1", data: Any = None, **fields: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": "token_meter.meter_event",
        "id": identifier,
        "source": "token_meter",
        "subject": "acme",
        "time": "2026-11-21T09:04:49Z",
        "data": {"usage": {"input": 100, "output": 20}, "model": "gpt-5", "provider": "openai"}
        if data is None
        else data,
        **fields,
    }


def signed(body: bytes, *, secret: str = SECRET, at: int = AT, message: str = "msg_1") -> dict[str, str]:
    moment = datetime.fromtimestamp(at, UTC)
    signature = standardwebhooks.Webhook(secret).sign(msg_id=message, timestamp=moment, data=body.decode())
    return {"webhook-id": message, "webhook-timestamp": str(at), "webhook-signature": signature}


def send(receiver: WebhookReceiver, *events: Any, **signing: Any) -> httpx2.Response:
    body = json.dumps(list(events), ensure_ascii=False).encode()
    return post(receiver, body, signed(body, **signing))


def post(receiver: WebhookReceiver, body: bytes, headers: dict[str, str], content_type: str = BATCH) -> httpx2.Response:
    headers = {"content-type": content_type, **headers}
    return httpx2.post(f"{receiver.url}/hooks/usage", content=body, headers=headers, verify=False)


def test_a_signed_batch_is_counted_by_token_type(serve):
    receiver = serve()

    answer = send(receiver, event(), event("e2", {"usage": {"input": 3}}, subject="globex"))

    assert (answer.status_code, answer.content) == (204, b"")
    assert receiver.totals() == {
        ("acme", "token_meter.meter_event", "gpt-5", "openai", "input"): 100,
        ("acme", "token_meter.meter_event", "gpt-5", "openai", "output"): 20,
        ("globex", "token_meter.meter_event", "input"): 3,
    }
    group = ("gpt-5", "openai", "input")
    assert receiver.counted[0] == ("e1/input", "acme", "token_meter.meter_event", group, 100, AT, AT)
    assert receiver.events[1] == {
        "id": "e2",
        "source": "token_meter",
        "type": "token_meter.meter_event",
        "subject": "globex",
        "at": AT,
        "data": {"usage": {"input": 3}},
    }
    assert (receiver.counted_twice(), receiver.errors) == ([], [])


def test_a_whole_meter_event_comes_back_as_it_was(serve):
    receiver = serve()
    sent = make_event(id="evt_ü", customer="acme", model="gpt-5", usage=Usage(input=2**53 + 1, cache_read=5))

    send(receiver, event(sent.id, sent.to_json()))

    assert [MeterEvent.from_json(each["data"]) for each in receiver.events] == [sent]
    assert [(each.meter, each.value) for each in receiver.counted] == [("llm_tokens", 2**53 + 1), ("llm_tokens", 5)]


@pytest.mark.parametrize(
    ("data", "counted"),
    [
        ({"tokens": 7, "type": "input"}, [("e1", ("input",), 7)]),
        ({"value": "8"}, [("e1", (), 8)]),
        ({}, [("e1", (), 1)]),
        ({"usage": {}}, []),
    ],
)
def test_other_data_is_read_by_its_value_or_as_one(serve, data, counted):
    receiver = serve()

    send(receiver, event("e1", data))

    assert [(each.identifier, each.group, each.value) for each in receiver.counted] == counted


def test_an_event_is_kept_once_by_source_and_id(serve):
    receiver, other = serve(), serve(deduplicates=False)

    for each in (receiver, other):
        send(each, event(), event(), event(source="elsewhere"))
        send(each, event(), message="msg_2")

    assert [len(each.events) for each in (receiver, other)] == [2, 4]
    assert receiver.messages == {"msg_1": 1, "msg_2": 1}


BODY = json.dumps([event()]).encode()


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({}, "webhook-id, webhook-timestamp, webhook-signature are needed"),
        ({**signed(BODY), "webhook-id": ""}, "webhook-id, webhook-timestamp, webhook-signature are needed"),
        ({**signed(BODY), "webhook-id": "msg_2"}, "no signature of version v1 matches"),
        ({**signed(BODY), "webhook-timestamp": str(AT + 1)}, "no signature of version v1 matches"),
        ({**signed(BODY), "webhook-timestamp": "now"}, "webhook-timestamp must be seconds since 1970"),
        ({**signed(BODY), "webhook-timestamp": "9" * 5000}, "webhook-timestamp must be seconds since 1970"),
        (signed(BODY, at=AT - 301), "webhook-timestamp is too old"),
        (signed(BODY, at=AT + 301), "webhook-timestamp is too new"),
        (signed(BODY, secret=OTHER), "no signature of version v1 matches"),
        (signed(BODY + b" "), "no signature of version v1 matches"),
        (
            {**signed(BODY), "webhook-signature": signed(BODY)["webhook-signature"].replace("v1,", "v2,")},
            "no signature of version v1 matches",
        ),
        ({**signed(BODY), "webhook-signature": "v1,?? v1 ,"}, "no signature of version v1 matches"),
    ],
)
def test_what_is_not_signed_right_is_not_believed(serve, headers, problem):
    receiver = serve()

    answer = post(receiver, BODY, headers)

    assert (answer.status_code, answer.json()) == (401, {"error": problem})
    assert (receiver.events, receiver.messages, receiver.errors) == ([], {}, [])


def test_one_of_several_signatures_is_enough_while_a_secret_is_changed(serve):
    receiver = serve()
    old, new = signed(BODY), signed(BODY, secret=OTHER)
    receiver.rotate(OTHER)

    refused = post(receiver, BODY, old)
    taken = post(receiver, BODY, {**old, "webhook-signature": f"{old['webhook-signature']} {new['webhook-signature']}"})

    assert (refused.status_code, taken.status_code) == (401, 204)


def test_a_timestamp_is_compared_with_the_clock_of_the_receiver(serve):
    receiver = serve()
    receiver.clock.advance(300)
    last = send(receiver, event())

    receiver.clock.advance(1)

    assert (last.status_code, send(receiver, event()).status_code) == (204, 401)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "error"),
    [
        (BODY, "text/plain", 415, f"the content type must be {BATCH}, not 'text/plain'"),
        (b"{", BATCH, 400, "the body is no JSON"),
        (b"{}", BATCH, 400, f"a body of {BATCH} must be an array"),
        (json.dumps([event(specversion="0.3")]).encode(), BATCH, 400, "event 0: specversion must be 1.0"),
        (
            json.dumps([event(), event("e2", {"value": 0.5})]).encode(),
            BATCH,
            400,
            "event 'e2': value must be a whole number",
        ),
        (
            json.dumps([event("e2", {"usage": {"input": -0.5}})]).encode(),
            BATCH,
            400,
            "event 'e2': input must be a whole number",
        ),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_whole(serve, body, content_type, status, error):
    receiver = serve()

    answer = post(receiver, body, signed(body), content_type)

    assert (answer.status_code, answer.json(), receiver.counted) == (status, {"error": error}, [])


def test_one_event_and_plain_json_are_taken_too(serve):
    receiver = serve()
    one = json.dumps(event("e1")).encode()

    answers = [
        post(receiver, one, signed(one), f"{each}; charset=utf-8")
        for each in ("application/cloudevents+json", "application/json")
    ]
    answers.append(send(receiver))

    assert ([each.status_code for each in answers], len(receiver.events)) == ([204, 204, 204], 1)


def test_only_posts_are_answered(serve):
    receiver = serve()

    answer = httpx2.get(receiver.url, verify=False)

    assert (answer.status_code, answer.json()) == (405, {"error": "GET is not POST"})


def test_events_that_are_not_wanted_are_named_while_the_others_are_taken(serve):
    receiver = serve()
    receiver.refuses["e2"] = "customer unknown"

    answer = send(receiver, event("e1"), event("e2"), event("e3"))

    assert (answer.status_code, answer.json()) == (422, {"rejected": [{"id": "e2", "reason": "customer unknown"}]})
    assert [each["id"] for each in receiver.events] == ["e1", "e3"]


def test_events_that_are_not_wanted_refuse_the_batch_if_they_are_not_named(serve):
    receiver = serve(names_refused=False)
    receiver.refuses["e2"] = "customer unknown"

    answers = [send(receiver, event("e1"), event("e2")), send(receiver, event("e1"))]

    assert [each.status_code for each in answers] == [422, 204]
    assert [each["id"] for each in receiver.events] == ["e1"]


def test_answers_and_faults_are_scripted(serve):
    receiver = serve(chaos=Chaos(script=["throttled", "error_after", None, None, None, None], retry_after=7))
    receiver.answers = [Response(410), Response(503, headers={"Retry-After": "Sat, 21 Nov 2026 09:05:00 GMT"})]

    throttled, first, *others = (send(receiver, event(), message=f"msg_{number}") for number in range(6))

    assert (throttled.status_code, throttled.headers["retry-after"]) == (429, "7")
    # The first answer is what is hidden by the fault after it.
    assert [first.status_code, *(each.status_code for each in others)] == [500, 503, 204, 204, 204]
    assert others[0].headers["retry-after"] == "Sat, 21 Nov 2026 09:05:00 GMT"
    assert len(receiver.events) == 1


def test_a_retry_with_another_body_is_noticed(serve):
    receiver = serve()
    send(receiver, event("e1"), message="msg_1")

    send(receiver, event("e1"), message="msg_1")
    send(receiver, event("e2"), message="msg_1")

    assert (receiver.messages, receiver.changed) == ({"msg_1": 3}, ["msg_1"])


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_a"])
def test_a_secret_that_is_none_is_refused(secret):
    with pytest.raises(ValueError, match="the secret must be whsec_ and then base64"):
        WebhookReceiver(secret=secret)
