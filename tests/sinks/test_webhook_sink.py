"""WebhookSink against a receiver that believes signed CloudEvents and nothing else."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from tests.sinks.kit import down, refusals, rejected
from token_meter import Meter
from token_meter.deliver import quarantined, release
from token_meter.errors import Retry
from token_meter.event import MeterEvent
from token_meter.sinks import WebhookSink
from token_meter.sinks.http import KeyRefused
from token_meter.sinks.webhook import EVENTS_MAX
from token_meter.testing import make_event
from token_meter.testing.backends import Chaos, VirtualClock, WebhookReceiver
from token_meter.testing.backends.base import Request, Response
from token_meter.testing.backends.webhook import SECRET
from token_meter.testing.builders import full_event, make_events
from token_meter.testing.conformance import SinkConformance
from token_meter.usage import QUANTITY_MAX, Usage

OTHER = "whsec_" + base64.b64encode(b"another secret of no one").decode()
Make = Callable[..., tuple[WebhookReceiver, WebhookSink]]


class Keeping(WebhookReceiver):
    """Keeps the requests."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Response:
        with self.lock:
            self.requests.append(request)
        return super().answer(request)


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens a receiver with these settings, and a sink for it."""
    opened: list[Any] = []

    def make(*, sink: dict[str, Any] | None = None, **settings: Any) -> tuple[WebhookReceiver, WebhookSink]:
        receiver = Keeping(**settings).start()
        opened.extend((WebhookSink(f"{receiver.url}/hooks/usage", **{"secret": SECRET, **(sink or {})}), receiver))
        return receiver, opened[-2]

    yield make
    for each in opened:
        each.close()
    assert not [error for each in opened[1::2] for error in each.errors]


def kept(receiver: WebhookReceiver) -> list[str]:
    return [each["id"] for each in receiver.events]


class TestConformance(SinkConformance):
    deduplicates = True
    refused = make_event(999, customer="stranger")

    @pytest.fixture
    def sink(self) -> Iterator[WebhookSink]:
        with WebhookReceiver() as self.receiver:
            self.receiver.refuses = {"evt_999": "unknown customer"}
            sink = WebhookSink(self.receiver.url, secret=SECRET)
            yield sink
            sink.close()
        assert (self.receiver.errors, self.receiver.changed) == ([], [])

    def received(self, sink: Any) -> list[MeterEvent]:
        return [MeterEvent.from_json(each["data"]) for each in self.receiver.events]

    def broken(self, sink: Any) -> Any:
        return down(self.receiver)

    def test_keeps_every_field(self, sink: Any) -> None:
        """A placeholder without usage is left out: the real event follows under the same id."""
        batch = [full_event(1), make_event(2, usage=Usage()), make_event(3)]

        sink.send(batch)

        assert self.received(sink) == [batch[0], batch[2]]
        assert [each.to_json() for each in self.received(sink)] == [batch[0].to_json(), batch[2].to_json()]


# ---- what goes out ----


def test_the_cloud_event_of_an_event(make: Make) -> None:
    _, sink = make()

    (sketch,), refused = sink.sketch([make_event(1)])

    assert (sketch.method, sketch.url.rpartition("/hooks")[2], refused) == ("POST", "/usage", [])
    assert json.loads(sketch.body) == snapshot(
        [
            {
                "specversion": "1.0",
                "type": "token_meter.meter_event",
                "source": "token_meter",
                "id": "evt_1",
                "time": "2026-01-01T00:00:01.000000Z",
                "datacontenttype": "application/json",
                "data": {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 3, "output": 1},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "customer": "acme",
                    "provider": "openai",
                    "publisher": "openai",
                    "model": "gpt-5-2025-08-07",
                    "model_requested": "gpt-5",
                    "operation": "chat",
                    "response_id": "chatcmpl-1",
                    "host": "api.openai.com",
                    "mode": "live",
                },
                "subject": "acme",
            }
        ]
    )


def test_a_receiver_verifies_it_with_the_library_of_the_standard(make: Make) -> None:
    from standardwebhooks.webhooks import Webhook

    receiver, sink = make()

    sink.send([make_event(1, customer=None)])

    (request,) = receiver.requests  # type: ignore[attr-defined]
    (document,) = Webhook(SECRET).verify(request.body, dict(request.headers))
    assert (document["id"], "subject" in document) == ("evt_1", False)
    assert request.path == "/hooks/usage"
    assert request.headers["content-type"] == "application/cloudevents-batch+json"


def test_a_changed_body_or_another_secret_is_noticed(make: Make) -> None:
    from standardwebhooks.webhooks import Webhook, WebhookVerificationError

    receiver, sink = make()
    sink.send([make_event(1)])
    (request,) = receiver.requests  # type: ignore[attr-defined]

    for secret, body in ((OTHER, request.body), (SECRET, request.body.replace(b"acme", b"evil"))):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, dict(request.headers))


@pytest.mark.parametrize(
    "path", ["", "/", "/hooks/usage", "/hooks/usage/", "/hooks//", "/in?next=/a/", "/in?key=a%20b"]
)
def test_the_url_is_used_as_it_was_given(path: str) -> None:
    """Frameworks tell `/usage` from `/usage/`, and answer the wrong one with a redirect."""
    targets: list[str] = []

    class Raw(WebhookReceiver):
        def answer(self, request: Request) -> Response:
            query = "&".join(f"{name}={value}" for name, values in request.query.items() for value in values)
            targets.append(request.path + (f"?{query}" if query else ""))
            return super().answer(request)

    with Raw() as receiver:
        sink = WebhookSink(f"{receiver.url}{path}", secret=SECRET)
        sink.send([make_event(1)])
        (sketch,), _ = sink.sketch([make_event(1)])
        sink.close()

    assert targets == [path.replace("%20", " ") or "/"]
    assert sketch.url == f"{receiver.url}{path}"


def test_content_replaces_what_is_told(make: Make) -> None:
    def totals(event: MeterEvent) -> dict[str, Any] | None:
        return {"tokens": event.usage.tokens} if event.usage.tokens > 3 else None

    receiver, sink = make(sink={"content": totals, "source": "billing.example"})

    sink.send([make_event(1), make_event(2, usage=Usage(input=1))])

    assert [(each["id"], each["source"], each["data"]) for each in receiver.events] == [
        ("evt_1", "billing.example", {"tokens": 4})
    ]


def test_a_filter_leaves_events_out_and_nothing_is_posted_for_nothing(make: Make) -> None:
    receiver, sink = make(sink={"where": lambda event: event.customer == "acme"})

    sink.send([make_event(1, customer="globex"), make_event(2, usage=Usage())])
    sink.send([])
    sink.send([make_event(3, customer="globex"), make_event(4)])

    assert kept(receiver) == ["evt_4"]
    assert len(receiver.requests) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "function", "said"),
    [
        ("where", lambda event: event.dimensions["tier"], "KeyError: 'tier'"),
        ("content", lambda event: {"tier": event.dimensions["tier"]}, "KeyError: 'tier'"),
        ("content", lambda event: {"time": event.time}, "TypeError: Object of type datetime is not JSON serializable"),
        ("content", lambda event: {"share": math.nan}, "ValueError: Out of range float values are not JSON compliant"),
    ],
)
def test_a_function_that_fails_sets_its_event_aside_and_delivers_the_others(
    make: Make, option: str, function: Any, said: str
) -> None:
    def sometimes(event: MeterEvent) -> Any:
        return function(event) if event.id == "evt_2" else {"fine": True}

    receiver, sink = make(sink={option: sometimes})

    found = rejected(sink, make_events(3))

    assert list(found) == ["evt_2"]
    assert found["evt_2"].startswith(f"the function content= or where= of sink 'webhook' failed: {said}")
    assert kept(receiver) == ["evt_1", "evt_3"]
    assert [each.event.id for each in sink.sketch(make_events(3))[1]] == ["evt_2"]


def test_a_function_that_cannot_tell_now_says_retry(make: Make) -> None:
    def ask(event: MeterEvent) -> bool:
        raise Retry("the plans are not there")

    _, sink = make(sink={"where": ask})

    with pytest.raises(Retry, match="the plans are not there"):
        sink.send([make_event(1)])


def test_an_event_that_comes_twice_in_one_batch_is_posted_once(make: Make) -> None:
    receiver, sink = make(deduplicates=False)

    sink.send([make_event(1), make_event(1, usage=Usage()), make_event(2), make_event(1)])

    assert kept(receiver) == ["evt_1", "evt_2"]


def test_batches_hold_a_hundred_events(make: Make) -> None:
    receiver, sink = make()

    sink.send(make_events(250))

    sizes = [len(json.loads(each.body)) for each in receiver.requests]  # type: ignore[attr-defined]
    assert (sizes, EVENTS_MAX) == ([100, 100, 50], 100)
    assert len(receiver.events) == 250


def test_corrections_and_test_usage_are_told_as_they_are(make: Make) -> None:
    receiver, sink = make()

    sink.send([make_event(1, mode="test"), make_event(2, corrects="evt_1", usage=Usage())])

    assert [(each["data"]["mode"], each["data"].get("corrects")) for each in receiver.events] == [
        ("test", None),
        ("live", "evt_1"),
    ]


def test_quantities_and_names_of_any_kind_arrive(make: Make) -> None:
    receiver, sink = make()
    event = make_event(
        1,
        usage=Usage(input=QUANTITY_MAX),
        customer="Ω 株式会社",
        dimensions={"lone": "\ud800", "line": "\u2028", "🜚": '"\\'},
    )

    sink.send([event])

    assert [MeterEvent.from_json(each["data"]) for each in receiver.events] == [event]


# ---- what the receiver says ----


@pytest.mark.parametrize("names_refused", [True, False])
@pytest.mark.parametrize("bad", [{1}, {13}, {25}, {1, 2}, {1, 13, 25}, set(range(1, 26))])
def test_what_is_refused_is_set_aside_and_the_rest_is_there(make: Make, bad: set[int], names_refused: bool) -> None:
    """At once if the receiver names it, else narrowed down by halves."""
    receiver, sink = make(names_refused=names_refused)
    receiver.refuses = {f"evt_{number}": f"no plan {number}" for number in bad}

    found = rejected(sink, make_events(25))

    told = {f"evt_{number}": f"the webhook: no plan {number}" for number in bad}
    halved = dict.fromkeys(told, 'the webhook (HTTP 422): {"error":"this batch holds what is not wanted"}')
    assert found == (told if names_refused else halved)
    assert set(kept(receiver)) == {f"evt_{number}" for number in range(1, 26) if number not in bad}
    if names_refused:
        assert len(receiver.requests) == 1  # type: ignore[attr-defined]


def test_what_a_success_names_as_refused_is_refused(make: Make) -> None:
    """Receivers that take what they can answer 200 or 207 with a list of the rest."""
    receiver, sink = make()
    named = [{"id": "evt_2", "reason": "no plan"}, {"id": "unknown"}, "nonsense", {"id": "evt_3"}]
    receiver.answers = [Response.json({"rejected": named}, status=207)]

    assert rejected(sink, make_events(4)) == {
        "evt_2": "the webhook: no plan",
        "evt_3": "the webhook: no reason given",
    }


@pytest.mark.parametrize(
    "body", [b"", b"OK", b"[]", b'{"rejected": []}', b'{"rejected": "none"}', b'{"rejected": null}']
)
def test_any_other_success_is_one(make: Make, body: bytes) -> None:
    receiver, sink = make()
    receiver.answers = [Response(200, body)]

    assert rejected(sink, make_events(2)) == {}


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_these_refuse(make: Make, status: int) -> None:
    receiver, sink = make()
    receiver.answers = [Response(status, b"not this")]

    assert rejected(sink, [make_event(1)]) == {"evt_1": f"the webhook (HTTP {status}): not this"}


@pytest.mark.parametrize("status", [404, 405, 406, 410, 415, 418, 451])
def test_any_other_refusal_is_about_the_address(make: Make, status: int) -> None:
    receiver, sink = make()
    receiver.answers = [Response(status, b"nothing here")]

    with pytest.raises(
        Retry, match=f"the webhook answered HTTP {status}: nothing here. Nothing is wrong with the events; is"
    ):
        sink.send(make_events(3))
    sink.send(make_events(3))

    assert len(receiver.events) == 3


def test_a_receiver_that_takes_less_at_once_gets_less() -> None:
    class Small(WebhookReceiver):
        def answer(self, request: Request) -> Response:
            return Response(413, b"") if len(request.body) > 4_000 else super().answer(request)

    with Small() as small:
        sink = WebhookSink(small.url, secret=SECRET)
        found = rejected(sink, make_events(60))
        sink.close()

    assert found == {}
    assert sorted(kept(small)) == sorted(f"evt_{number}" for number in range(1, 61))


def test_a_redirect_is_not_followed(make: Make) -> None:
    receiver, sink = make()
    other, _ = make()
    receiver.answers = [Response(307, b"", {"Location": other.url})]

    with pytest.raises(Retry, match=r"the webhook redirects \(HTTP 307\)"):
        sink.send([make_event(1)])

    assert other.events == []


# ---- faults ----


@pytest.mark.parametrize("fault", ["error_before", "error_after", "reset_before", "unavailable", "throttled"])
def test_every_fault_is_a_retry_after_which_all_counts_once(make: Make, fault: Any) -> None:
    receiver, sink = make()
    receiver.chaos.script = [None, fault]

    with pytest.raises(Retry):
        sink.send(make_events(150))
    sink.send(make_events(150))

    assert len(receiver.events) == 150
    assert receiver.counted_twice() == []


def test_a_retry_is_the_same_message(make: Make) -> None:
    """Receivers of the standard know a message by its webhook-id."""
    receiver, sink = make()
    receiver.chaos.script = ["error_after"]

    with pytest.raises(Retry):
        sink.send(make_events(3))
    sink.send(make_events(3))
    sink.send(make_events(2))

    assert sorted(receiver.messages.values()) == [1, 2]
    assert receiver.changed == []


def test_the_same_ids_with_other_content_are_another_message(make: Make) -> None:
    """Else a receiver that knows messages would take the second for a retry of the first, and lose it."""
    receiver, sink = make(deduplicates=False)

    sink.send([make_event(1)])
    sink.send([make_event(1, usage=Usage(input=4))])

    assert len(receiver.messages) == 2
    assert receiver.changed == []


def test_waiting_as_long_as_the_receiver_asks(make: Make) -> None:
    _, sink = make(chaos=Chaos(script=["throttled"], retry_after=9))

    with pytest.raises(Retry) as caught:
        sink.send([make_event(1)])

    assert caught.value.after == 9


@pytest.mark.parametrize("offset", [-600.0, 600.0])
def test_a_clock_that_is_ten_minutes_off_heals_itself(make: Make, offset: float) -> None:
    """The receiver refuses the first signature as too old or too new; its answer tells its time."""
    receiver, sink = make(clock=VirtualClock(offset_seconds=offset))

    with pytest.raises(KeyRefused, match=r"the webhook refuses the signature \(HTTP 401\): .*webhook-timestamp is too"):
        sink.send([make_event(1)])
    sink.send([make_event(1)])

    assert kept(receiver) == ["evt_1"]


# ---- secrets ----


def test_a_wrong_secret_is_a_retry_and_a_new_one_is_used_at_once(make: Make) -> None:
    secrets = [OTHER, SECRET]
    receiver, sink = make(sink={"secret": lambda: secrets[0]})

    with pytest.raises(KeyRefused, match=r"the webhook refuses the signature \(HTTP 401\): .*no signature"):
        sink.send([make_event(1)])
    del secrets[0]
    sink.send([make_event(1)])
    receiver.rotate(OTHER)
    with pytest.raises(KeyRefused):
        sink.send([make_event(2)])
    secrets[0] = OTHER
    sink.send([make_event(2)])

    assert kept(receiver) == ["evt_1", "evt_2"]


def test_url_and_secret_come_from_the_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, _ = make()
    monkeypatch.setenv("TOKEN_METER_WEBHOOK_URL", f"{receiver.url}/from-the-environment")
    monkeypatch.delenv("TOKEN_METER_WEBHOOK_SECRET", raising=False)
    sink = WebhookSink()

    with pytest.raises(Retry, match=r"the webhook needs a key and has none: set \$TOKEN_METER_WEBHOOK_SECRET"):
        sink.send([make_event(1)])
    monkeypatch.setenv("TOKEN_METER_WEBHOOK_SECRET", SECRET)
    sink.send([make_event(1)])
    sink.close()
    monkeypatch.delenv("TOKEN_METER_WEBHOOK_URL")

    assert receiver.requests[0].path == "/from-the-environment"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"WebhookSink needs a URL: give it one, or set \$TOKEN_METER_WEBHOOK_URL"):
        WebhookSink()


@pytest.mark.parametrize("secret", ["whsec_", "whsec_not base64!", "ä"])
def test_a_secret_that_is_none_is_told_without_being_shown(make: Make, secret: str) -> None:
    _, sink = make(sink={"secret": secret})

    with pytest.raises(Retry, match="the webhook's secret is none: it is base64, usually after 'whsec_'") as caught:
        sink.send([make_event(1)])

    assert "not base64" not in str(caught.value)


def test_neither_secret_nor_path_stand_in_messages(make: Make) -> None:
    receiver, sink = make()
    receiver.stop()

    with pytest.raises(Retry) as caught:
        sink.send([make_event(1)])

    for text in (str(caught.value), repr(sink)):
        assert SECRET not in text
        assert "hooks" not in text
    assert repr(sink) == f"WebhookSink({receiver.url!r}, name='webhook')"


# ---- check ----


def test_check_posts_an_empty_signed_batch(make: Make) -> None:
    receiver, sink = make()
    _, wrong = make(sink={"secret": OTHER})

    assert sink.check() == ["the webhook takes our signature"]
    assert [each.body for each in receiver.requests] == [b"[]"]  # type: ignore[attr-defined]
    with pytest.raises(KeyRefused):
        wrong.check()
    receiver.answers = [Response(400, b"empty")]
    with pytest.raises(Retry, match="the webhook answers HTTP 400 to an empty batch: empty"):
        sink.check()


# ---- through a meter ----


def test_what_the_receiver_refuses_waits_and_is_released(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    receiver, _ = make()
    sink = WebhookSink(receiver.url, secret=SECRET)

    with Meter("usage.db", sink) as meter:
        first, second = (meter.record(Usage(input=number), model="gpt-5", customer="acme") for number in (1, 2))
        receiver.refuses = {first.id: "no contract"}
        meter.flush()
        (waiting,) = quarantined("usage.db.journal", "webhook")
        receiver.refuses = {}
        release("usage.db.journal", "webhook", ids="all")
        meter.flush()

    assert (waiting.id, waiting.reason) == (first.id, "the webhook: no contract")
    assert kept(receiver) == [second.id, first.id]
    assert [each["data"]["usage"] for each in receiver.events] == [{"input": 2}, {"input": 1}]


def test_refusals_keep_the_whole_event(make: Make) -> None:
    receiver, sink = make()
    receiver.refuses = {"evt_1": "x" * 1_000}

    (found,) = refusals(sink, [make_event(1)])

    assert found.event == make_event(1)
    assert len(found.reason) < 350


def test_the_time_of_signing_is_now(make: Make) -> None:
    receiver, sink = make()

    before = datetime.now(UTC).timestamp()
    sink.send([make_event(1)])
    sink.send([make_event(2)])

    stamps = [int(each.headers["webhook-timestamp"]) for each in receiver.requests]  # type: ignore[attr-defined]
    assert all(abs(stamp - before) < 30 for stamp in stamps)
