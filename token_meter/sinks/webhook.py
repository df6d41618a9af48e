"""A webhook: whole meter events as CloudEvents in JSON batches, signed as Standard Webhooks says.

For destinations of your own. Sources: CloudEvents 1.0 JSON batch format; Standard Webhooks 1.0 (headers `webhook-id`,
`webhook-timestamp`, `webhook-signature`), by its own library.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from token_meter.errors import MissingExtra, Refusal, Rejected, Retry
from token_meter.event import MeterEvent, format_time
from token_meter.sinks.base import Sketch
from token_meter.sinks.http import Answer, Http, Secret, secret_of
from token_meter.sinks.lock import ForkLock

URL_VARIABLE: Final = "TOKEN_METER_WEBHOOK_URL"
SECRET_VARIABLE: Final = "TOKEN_METER_WEBHOOK_SECRET"
CONTENT_TYPE: Final = "application/cloudevents-batch+json"
EVENT_TYPE: Final = "token_meter.meter_event"
EVENTS_MAX: Final = 100
REASON_CHARACTERS_MAX: Final = 300

Content = Callable[[MeterEvent], Mapping[str, Any] | None]
"""What a receiver is told of an event; None: nothing."""


class WebhookSink:
    """Posts meter events to a URL of yours: a CloudEvent each, with the event's JSON form as `data`.

    `id` is the event's id, so a receiver counts each once; `webhook-id` is the same for the same batch. `secret`
    ("whsec_…", or a function; default: $TOKEN_METER_WEBHOOK_SECRET) signs every request; a receiver verifies it with
    any Standard Webhooks library. `content` replaces what is told (None leaves an event out), `where` filters.

    The receiver answers 2xx when it has everything. 4xx is taken for a refusal and narrowed down by halves to the
    events it will not take, or at once if it answers {"rejected": [{"id": …, "reason": …}]}, which says that it has
    taken the others. 401, 403, 404, 408, 410, 429 and 5xx mean later; `Retry-After` is respected.
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
        self._http = Http(given, what="the webhook", authorise=dict)
        self._lock = ForkLock()

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Post a batch. Retry while the receiver cannot take it, Rejected for what it refused of it."""
        wanted = [event for event in events if self._wants(event)]
        refusals: list[Refusal] = []
        if not wanted:
            return
        with self._lock:
            waiting: deque[Sequence[MeterEvent]] = deque(
                wanted[start : start + EVENTS_MAX] for start in range(0, len(wanted), EVENTS_MAX)
            )
            while waiting:
                piece = waiting.popleft()
                answer = self._post(piece)
                if not answer.ok:
                    refused, again = _judged(answer, piece)
                    refusals += refused
                    waiting.extendleft(reversed(again))
        if refusals:
            raise Rejected.each(refusals, rest_taken=True)

    def sketch(self, events: Sequence[MeterEvent]) -> tuple[list[Sketch], list[Refusal]]:
        """The requests that `send` would make for these events; it refuses none by itself."""
        wanted = [event for event in events if self._wants(event)]
        pieces = (wanted[start : start + EVENTS_MAX] for start in range(0, len(wanted), EVENTS_MAX))
        return [Sketch("POST", self._http.url, self._body(piece).decode()) for piece in pieces], []

    def check(self) -> list[str]:
        """Post an empty, signed batch, which every receiver can take. Raises SinkError."""
        answer = self._post([])
        if not answer.ok:
            raise Retry(f"the webhook answers HTTP {answer.status} to an empty batch: {answer.text}")
        return ["the webhook takes our signature"]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __repr__(self) -> str:
        return f"WebhookSink({self._http.server!r}, name={self.name!r})"

    def _wants(self, event: MeterEvent) -> bool:
        """Placeholders are left out: the real event follows under the same id."""
        if not event.usage and event.corrects is None:
            return False
        return self._where is None or self._where(event)

    def _body(self, events: Sequence[MeterEvent]) -> bytes:
        documents = []
        for event in events:
            data = self._content(event)
            if data is not None:
                documents.append(self._cloud_event(event, data))
        return json.dumps(documents, separators=(",", ":"), ensure_ascii=False).encode()

    def _cloud_event(self, event: MeterEvent, data: Mapping[str, Any]) -> dict[str, Any]:
        document = {
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
        return document

    def _post(self, events: Sequence[MeterEvent]) -> Answer:
        body = self._body(events)
        id = f"msg_{sha256(chr(0).join(event.id for event in events).encode()).hexdigest()[:32]}"
        answer = self._http.post("", body, headers={"Content-Type": CONTENT_TYPE, **self._signature(id, body)})
        if answer.status in (404, 410):
            raise Retry(f"the webhook is not at this address (HTTP {answer.status}). Is the URL right?")
        return answer

    def _signature(self, id: str, body: bytes) -> dict[str, str]:
        try:
            from standardwebhooks.webhooks import Webhook
        except ImportError:
            raise MissingExtra("the webhook sink needs: pip install 'token-meter[webhook]'") from None
        moment = datetime.now(UTC)
        try:
            signature = Webhook(self._secret()).sign(msg_id=id, timestamp=moment, data=body.decode())
        except Exception:  # noqa: BLE001 - the library has errors of its own for each way in which a secret is none
            raise Retry("the webhook's secret is none: it is base64, usually after 'whsec_'") from None
        return {
            "webhook-id": id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": signature,
        }


def _judged(answer: Answer, events: Sequence[MeterEvent]) -> tuple[list[Refusal], list[Sequence[MeterEvent]]]:
    """What was refused, and what has to be posted again without it."""
    document = answer.json()
    named = document.get("rejected") if isinstance(document, dict) else None
    if isinstance(named, list) and named:
        reasons = {str(each.get("id")): str(each.get("reason", "")) for each in named if isinstance(each, dict)}
        refused = [
            Refusal(event, f"the webhook: {reasons[event.id][:REASON_CHARACTERS_MAX] or 'no reason given'}")
            for event in events
            if event.id in reasons
        ]
        if refused:
            return refused, []
    if len(events) == 1:
        return [Refusal(events[0], f"the webhook (HTTP {answer.status}): {answer.text}")], []
    middle = len(events) // 2
    return [], [events[:middle], events[middle:]]
