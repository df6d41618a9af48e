"""A webhook: whole meter events as CloudEvents in JSON batches, signed as Standard Webhooks says.

For destinations of your own. Sources: CloudEvents 1.0 JSON batch format; Standard Webhooks 1.0 (headers `webhook-id`,
`webhook-timestamp`, `webhook-signature`), by its own library.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple

from token_meter.errors import MissingExtra, Refusal, Rejected, Retry
from token_meter.event import MeterEvent, format_time
from token_meter.sinks.base import Sketch
from token_meter.sinks.http import REFUSING, Answer, Http, Secret, secret_of
from token_meter.sinks.lock import ForkLock
from token_meter.sinks.recording import STEP_EVENTS
from token_meter.steps import Steps, worked_off

URL_VARIABLE: Final = "TOKEN_METER_WEBHOOK_URL"
SECRET_VARIABLE: Final = "TOKEN_METER_WEBHOOK_SECRET"
CONTENT_TYPE: Final = "application/cloudevents-batch+json"
EVENT_TYPE: Final = "token_meter.meter_event"
EVENTS_MAX: Final = 100
REASON_CHARACTERS_MAX: Final = 300

Content = Callable[[MeterEvent], Mapping[str, Any] | None]
"""What a receiver is told of an event; None: nothing."""


class Told(NamedTuple):
    """An event and the CloudEvent that tells of it, in JSON."""

    event: MeterEvent
    text: str


class Prepared(list[MeterEvent]):
    """Events, with what a webhook is told of them."""

    __slots__ = ("refusals", "sink", "told")

    sink: WebhookSink
    told: list[Told]
    refusals: list[Refusal]
    """Those for which a function of the user's failed."""


class WebhookSink:
    """Posts meter events to a URL of yours: a CloudEvent each, with the event's JSON form as `data`.

    `id` is the event's id, so a receiver counts each once; `webhook-id` is the same for the same batch. `secret`
    ("whsec_…", or a function; default: $TOKEN_METER_WEBHOOK_SECRET) signs every request; a receiver verifies it with
    any Standard Webhooks library. `content` replaces what is told (None leaves an event out), `where` filters.

    The receiver answers 2xx when it has everything. 400, 409, 413 and 422 refuse: what it will not take is found by
    halves, or at once if it answers {"rejected": [{"id": …, "reason": …}]}, which says that it has taken the others
    (with 2xx, too). Anything else means later; `Retry-After` is respected.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        secret: Secret | None = None,
        source: str = "token_meter",
        content: Content | None = None,
        where: Callable[[MeterEvent], bool] | None = None,
        name: str = "webhook",
    ) -> None:
        given = url or os.environ.get(URL_VARIABLE, "")
        if not given:
            raise ValueError(f"WebhookSink needs a URL: give it one, or set ${URL_VARIABLE}")
        self.name = name
        self._secret = secret_of(secret, variable=SECRET_VARIABLE, what="the webhook")
        self._source = source
        self._content: Content = content or MeterEvent.to_json
        self._where = where
        self._http = Http(given, what="the webhook", authorise=dict, credential="signature")
        # `Http` takes slashes off the end of a base URL; of a whole one they are a part.
        self._path = given[len(given.rstrip("/")) :]
        self._lock = ForkLock()

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Post a batch. Retry while the receiver cannot take it, Rejected for what it refused of it."""
        ready = events if isinstance(events, Prepared) and events.sink is self else worked_off(self.prepare(events))
        refusals = list(ready.refusals)
        with self._lock:
            waiting = deque(_pieces(ready.told))
            while waiting:
                piece = waiting.popleft()
                refused, again = _judged(self._post(piece), piece)
                refusals += refused
                waiting.extendleft(reversed(again))
        if refusals:
            raise Rejected.each(refusals, rest_taken=True)

    def prepare(self, events: Sequence[MeterEvent]) -> Steps[Prepared]:
        """Put a batch into CloudEvents, in small steps: each event once."""
        ready = Prepared(events)
        told: dict[str, Told] = {}
        ready.sink, ready.refusals = self, []
        for number, event in enumerate(events, 1):
            try:
                text = self._text(event)
            except Retry:
                raise
            except Exception as problem:  # noqa: BLE001 - the user's own functions; the event waits in quarantine
                reason = (
                    f"the function content= or where= of sink {self.name!r} failed: {type(problem).__name__}: {problem}"
                )
                ready.refusals.append(Refusal(event, reason))
            else:
                if text is not None:
                    told[event.id] = Told(event, text)
            if number % STEP_EVENTS == 0:
                yield
        ready.told = list(told.values())
        return ready

    def sketch(self, events: Sequence[MeterEvent]) -> tuple[list[Sketch], list[Refusal]]:
        """The requests that `send` would make for these events, and what it would refuse before it makes any."""
        ready = worked_off(self.prepare(events))
        url = f"{self._http.url}{self._path}"
        return [Sketch("POST", url, _body(piece).decode()) for piece in _pieces(ready.told)], ready.refusals

    def check(self) -> list[str]:
        """Post an empty, signed batch, which every receiver can take. Raises SinkError."""
        answer = self._post(())
        if not answer.ok:
            raise Retry(f"the webhook answers HTTP {answer.status} to an empty batch: {answer.text}")
        return ["the webhook takes our signature"]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __repr__(self) -> str:
        return f"WebhookSink({self._http.server!r}, name={self.name!r})"

    # ---- what is told ----

    def _text(self, event: MeterEvent) -> str | None:
        """The CloudEvent; None for one that is left out, as placeholders are: the real event has the same id."""
        if not event.usage and event.corrects is None:
            return None
        if self._where is not None and not self._where(event):
            return None
        data = self._content(event)
        if data is None:
            return None
        document: dict[str, Any] = {
            "specversion": "1.0",
            "type": EVENT_TYPE,
            "source": self._source,
            "id": event.id,
            "time": format_time(event.time),
            "datacontenttype": "application/json",
            "data": data,
        }
        if event.customer is not None:
            document["subject"] = event.customer
        # In ASCII: a lone surrogate in a name is no UTF-8 and would hold up everything.
        return _encode(document)

    # ---- posting ----

    def _post(self, told: Sequence[Told]) -> Answer:
        """Post, and raise Retry for whatever says nothing about the events."""
        body = _body(told)
        answer = self._http.post(self._path, body, headers={"Content-Type": CONTENT_TYPE, **self._signature(body)})
        if not answer.ok and answer.status not in REFUSING:
            raise Retry(
                f"the webhook answered HTTP {answer.status}: {answer.text or 'nothing'}. Nothing is wrong with the "
                "events; is the URL right?"
            )
        return answer

    def _signature(self, body: bytes) -> dict[str, str]:
        try:
            from standardwebhooks.webhooks import Webhook
        except ImportError:
            raise MissingExtra("the webhook sink needs: pip install 'token-meter[webhook]'") from None
        secret = self._secret()
        id = f"msg_{sha256(body).hexdigest()[:32]}"
        # By the receiver's clock, once an answer has told it: it refuses what is older than some minutes.
        moment = datetime.fromtimestamp(int(self._http.their_time), UTC)
        try:
            signature = Webhook(secret).sign(msg_id=id, timestamp=moment, data=body.decode())
        except Exception:  # noqa: BLE001 - the library has errors of its own for each way in which a secret is none
            raise Retry("the webhook's secret is none: it is base64, usually after 'whsec_'") from None
        return {
            "webhook-id": id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": signature,
        }


_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _pieces(told: Sequence[Told]) -> Iterator[Sequence[Told]]:
    for start in range(0, len(told), EVENTS_MAX):
        yield told[start : start + EVENTS_MAX]


def _body(told: Sequence[Told]) -> bytes:
    return f"[{','.join(each.text for each in told)}]".encode()


def _judged(answer: Answer, told: Sequence[Told]) -> tuple[list[Refusal], list[Sequence[Told]]]:
    """What was refused, and what has to be posted again without it."""
    reasons = _named(answer)
    refused = [Refusal(each.event, reasons[each.event.id]) for each in told if each.event.id in reasons]
    if refused or answer.ok:
        return refused, []
    if len(told) == 1:
        return [Refusal(told[0].event, f"the webhook (HTTP {answer.status}): {answer.text}")], []
    middle = len(told) // 2
    return [], [told[:middle], told[middle:]]


def _named(answer: Answer) -> dict[str, str]:
    """The reasons for the events that an answer names as refused, by id."""
    document = answer.json() if answer.body else None
    named = document.get("rejected") if isinstance(document, dict) else None
    if not isinstance(named, list):
        return {}
    reasons = ((str(each.get("id")), str(each.get("reason") or "")) for each in named if isinstance(each, dict))
    return {id: f"the webhook: {reason[:REASON_CHARACTERS_MAX] or 'no reason given'}" for id, reason in reasons}
