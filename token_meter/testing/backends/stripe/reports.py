"""What Stripe finds out after it said yes: events that tell of refused meter events, and the signature they come with.

The event has the shape of the API reference's example. What is delivered to a webhook is only a notification without
`data`; the rest is fetched from `GET /v2/core/events/{id}`.

Assumptions: windows of ten seconds, at most five samples, and that `request.identifier` is the event's identifier
(the SDK's docstring calls it the idempotency key of the request).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from token_meter.testing.backends.stripe.moments import rfc3339
from token_meter.testing.backends.stripe.rules import Refusal

SAMPLES_MAX: Final = 5
EVENTS_MAX: Final = 1_000
"""Events that are kept to be fetched; the oldest go first."""
WINDOW_SECONDS: Final = 10
TRIGGERED: Final = "v1.billing.meter.error_report_triggered"
NO_METER_FOUND: Final = "v1.billing.meter.no_meter_found"


@dataclass(slots=True)
class _Kind:
    count: int = 0
    samples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Window:
    first: float
    last: float
    kinds: dict[str, _Kind] = field(default_factory=dict)


class Reports:
    """Counts and samples, whose size does not depend on how much goes wrong. The caller holds the backend's lock."""

    def __init__(self, new_id: Callable[[str], str], *, livemode: bool) -> None:
        self._new_id = new_id
        self._livemode = livemode
        self._open: dict[str | None, _Window] = {}
        self._events: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def note(self, refusal: Refusal, *, meter: str | None, identifier: str, now: float) -> None:
        """An event that was taken and does not count."""
        window = self._open.setdefault(meter, _Window(now, now))
        window.last = now
        kind = window.kinds.setdefault(refusal.reason.code, _Kind())
        kind.count += 1
        if len(kind.samples) < SAMPLES_MAX:
            kind.samples.append((refusal.message, identifier))

    def close(self, now: float) -> list[dict[str, Any]]:
        """One event for each meter that had refusals since the last call, and one for those without a meter."""
        events = [self._event(meter, window, now) for meter, window in self._open.items()]
        self._open.clear()
        for event in events:
            self._events[event["id"]] = event
        while len(self._events) > EVENTS_MAX:
            self._events.popitem(last=False)
        return events

    def get(self, event: str) -> dict[str, Any] | None:
        """An event that was closed."""
        return self._events.get(event)

    def _event(self, meter: str | None, window: _Window, now: float) -> dict[str, Any]:
        total = sum(kind.count for kind in window.kinds.values())
        summary = "There is 1 invalid event" if total == 1 else f"There are {total} invalid events"
        document: dict[str, Any] = {
            "id": self._new_id("evt"),
            "object": "v2.core.event",
            "context": None,
            "created": rfc3339(now),
            "data": {
                "developer_message_summary": summary,
                "reason": {"error_count": total, "error_types": [_kind(*each) for each in window.kinds.items()]},
                "validation_end": rfc3339(math.ceil(window.last / WINDOW_SECONDS) * WINDOW_SECONDS),
                "validation_start": rfc3339(math.floor(window.first / WINDOW_SECONDS) * WINDOW_SECONDS),
            },
            "livemode": self._livemode,
            "reason": None,
            "type": NO_METER_FOUND if meter is None else TRIGGERED,
        }
        if meter is not None:
            url = f"/v1/billing/meters/{meter}"
            document["related_object"] = {"id": meter, "type": "billing.meter", "url": url}
        return document


def _kind(code: str, kind: _Kind) -> dict[str, Any]:
    samples = [{"error_message": message, "request": {"identifier": each}} for message, each in kind.samples]
    return {"code": code, "error_count": kind.count, "sample_errors": samples}


def notification(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a webhook gets to see of an event."""
    return {name: value for name, value in event.items() if name != "data"}


def signed(document: Mapping[str, Any], secret: str, *, now: float) -> tuple[bytes, dict[str, str]]:
    """A body and its headers, with a `Stripe-Signature` made at `now`."""
    body = json.dumps(document, separators=(",", ":")).encode()
    mac = hmac.new(secret.encode(), f"{int(now)}.".encode() + body, hashlib.sha256).hexdigest()
    return body, {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": f"t={int(now)},v1={mac}"}
