"""What goes to Stripe and comes back: paths, bodies, and what its errors mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import urlencode

from token_meter.sinks.http import Answer
from token_meter.sinks.json_text import quote, quoted
from token_meter.sinks.records import Call, Record

Api = Literal["v1", "v2", "stream"]
STREAM_PATH: Final = "/v2/billing/meter_event_stream"
CANCEL_PATHS: Final = {
    "v1": "/v1/billing/meter_event_adjustments",
    "v2": "/v2/billing/meter_event_adjustments",
    "stream": "/v2/billing/meter_event_adjustments",
}
JSON: Final = {"Content-Type": "application/json"}
FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}
KEY_HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "idempotent-replayed"
"""Stripe's answer says with it that it is the one of an earlier request with the same idempotency key."""

ALREADY: Final = re.compile(r"already exists with (?:this )?identifier|duplicate_meter_event|already (?:been )?cancel")
"""Stripe has it: what was to be done is done. v2 documents its code for it; what v1 says was seen by others."""
FUTURE: Final = re.compile(r"timestamp_in_future|in the future", re.IGNORECASE)
TOO_LATE: Final = re.compile(r"24 hours|too (?:old|late)", re.IGNORECASE)
METER: Final = re.compile(r"archived_meter|no_meter|no active meter|meter is (?:archived|inactive)", re.IGNORECASE)
CUSTOMER: Final = re.compile(r"customer_not_found|no such customer", re.IGNORECASE)

_REFUSING: Final = frozenset({400, 404, 409, 413, 422})
_NOT_ABOUT_IT: Final = re.compile(r"api_error|idempotency_error|rate_limit|Unrecognized request URL|API version")


def form(record: Record, payload: Mapping[str, str], moment: datetime) -> Call:
    """One meter event for v1, which takes forms and whole seconds."""
    fields = {
        "event_name": record.measure.meter,
        "identifier": record.identifier,
        "timestamp": str(int(moment.timestamp())),
        **{f"payload[{name}]": text for name, text in payload.items()},
    }
    return Call("/v1/billing/meter_events", urlencode(fields).encode(), FORM, (record,))


def single(record: Record, payload: str, moment: datetime) -> Call:
    """One meter event for v2, which takes JSON."""
    return Call("/v2/billing/meter_events", as_json(record, payload, moment).encode(), JSON, (record,))


def as_json(record: Record, payload: str, moment: datetime) -> str:
    """A meter event as v2 wants it, with the members of its payload as JSON."""
    return (
        f'{{"event_name":{quoted(record.measure.meter)},"identifier":{quote(record.identifier)},'
        f'"timestamp":"{_rfc3339(moment)}","payload":{{{payload}}}}}'
    )


def cancellation(record: Record, api: Api) -> Call:
    """The request that takes an event back that Stripe received less than 24 hours ago."""
    name = record.measure.meter
    if api == "v1":
        flat = {"event_name": name, "type": "cancel", "cancel[identifier]": record.reverses}
        return Call(CANCEL_PATHS[api], urlencode(flat).encode(), FORM, (record,))
    fields = {"event_name": name, "type": "cancel", "cancel": {"identifier": record.reverses}}
    return Call(CANCEL_PATHS[api], json.dumps(fields, separators=(",", ":")).encode(), JSON, (record,))


def is_cancellation(call: Call) -> bool:
    """Whether it takes an event back."""
    return call.path in CANCEL_PATHS.values()


@lru_cache(maxsize=1024)
def _rfc3339(moment: datetime) -> str:
    """Remembered because the records of one event have one time."""
    aware = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{aware.isoformat('T', 'milliseconds')[:-6]}Z"


def error(answer: Answer) -> tuple[str, str]:
    """Code and message of Stripe's error."""
    found = _error(answer)
    if found is None:
        return "", answer.text or f"HTTP {answer.status}"
    return str(found.get("code") or ""), str(found.get("message") or found.get("code") or answer.status)


def refuses(answer: Answer) -> bool:
    """Whether Stripe says that something is wrong with what was sent.

    Anything else is about the address, a proxy on the way, or Stripe's own trouble, and changes nothing for the events.
    """
    found = _error(answer)
    if found is None or answer.status not in _REFUSING:
        return False
    return not _NOT_ABOUT_IT.search(f"{found.get('type')} {found.get('message')}")


def _error(answer: Answer) -> Mapping[str, Any] | None:
    body = answer.json()
    found = body.get("error") if isinstance(body, dict) else None
    return found if isinstance(found, dict) else None
