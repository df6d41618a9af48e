"""What goes to Stripe and comes back: paths, bodies, and what its errors mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import urlencode

from token_meter.sinks.backend import Call, Record
from token_meter.sinks.http import Answer

Api = Literal["v1", "v2", "stream"]
STREAM_PATH: Final = "/v2/billing/meter_event_stream"
JSON: Final = {"Content-Type": "application/json"}
FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}

ALREADY: Final = re.compile(r"already exists with (?:this )?identifier|duplicate_meter_event|already (?:been )?cancel")
"""Stripe has it: what was to be done is done. (That a repeated identifier can be an error is not documented.)"""
FUTURE: Final = re.compile(r"timestamp_in_future|in the future", re.IGNORECASE)
TOO_LATE: Final = re.compile(r"24 hours|window|too (?:old|late)", re.IGNORECASE)
METER: Final = re.compile(r"archived_meter|no_meter|no active meter|meter is (?:archived|inactive)", re.IGNORECASE)
CUSTOMER: Final = re.compile(r"customer_not_found|no such customer", re.IGNORECASE)


def single(record: Record, api: Api, *, payload: Mapping[str, str], moment: datetime) -> Call:
    """One meter event. v1 takes forms and whole seconds, v2 JSON and RFC 3339."""
    if api == "v1":
        fields = {
            "event_name": record.measure.meter,
            "identifier": record.identifier,
            "timestamp": str(int(moment.timestamp())),
            **{f"payload[{name}]": text for name, text in payload.items()},
        }
        return Call("/v1/billing/meter_events", urlencode(fields).encode(), FORM, (record,))
    return Call("/v2/billing/meter_events", as_json(document(record, payload, moment)), JSON, (record,))


def cancellation(record: Record, api: Api) -> Call:
    """The request that takes an event back that Stripe received less than 24 hours ago."""
    name = record.measure.meter
    if api == "v1":
        flat = {"event_name": name, "type": "cancel", "cancel[identifier]": record.reverses}
        return Call("/v1/billing/meter_event_adjustments", urlencode(flat).encode(), FORM, (record,))
    fields = {"event_name": name, "type": "cancel", "cancel": {"identifier": record.reverses}}
    return Call("/v2/billing/meter_event_adjustments", as_json(fields), JSON, (record,))


def document(record: Record, payload: Mapping[str, str], moment: datetime) -> dict[str, Any]:
    """A meter event as v2 wants it."""
    return {
        "event_name": record.measure.meter,
        "identifier": record.identifier,
        "timestamp": f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z",
        "payload": payload,
    }


def error(answer: Answer) -> tuple[str, str]:
    """Code and message of Stripe's error."""
    body = answer.json()
    found = body.get("error") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        return "", answer.text or f"HTTP {answer.status}"
    return str(found.get("code") or ""), str(found.get("message") or found.get("code") or answer.status)


def as_json(body: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(body, separators=(",", ":")).encode()
