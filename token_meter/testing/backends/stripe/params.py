"""What the endpoints are given, read as strictly as Stripe does: v1 forms, v2 JSON, nothing that is not known.

Assumptions: the wording and codes of v2's refusals (its reference documents only those of the meter), that a v2 payload
value which is no string is refused, and that an empty list of streamed events is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from token_meter.testing.backends.base import Request
from token_meter.testing.backends.stripe.errors import ApiError
from token_meter.testing.backends.stripe.moments import seconds_of

IDENTIFIER_LENGTH_MAX: Final = 100
EVENT_NAME_LENGTH_MAX: Final = 100
STREAM_EVENTS_MAX: Final = 100
EVENT_FIELDS: Final = frozenset({"event_name", "payload", "identifier", "timestamp"})
CANCEL_FIELDS: Final = frozenset({"event_name", "type", "cancel"})
_FORM: Final = "application/x-www-form-urlencoded"
_JSON: Final = "application/json"
_KEY: Final = re.compile(r"([^\[\]]+)(?:\[([^\[\]]*)\])?")


class NewEvent(NamedTuple):
    """A meter event as it was sent. What is None was left to Stripe."""

    event_name: str
    payload: Mapping[str, str]
    identifier: str | None
    at: float | None


class Cancel(NamedTuple):
    """Which event an adjustment takes back."""

    event_name: str
    identifier: str


def form(request: Request) -> dict[str, Any]:
    """The fields of a v1 body: text, or a mapping where keys have brackets."""
    _media_type(request, _FORM)
    fields: dict[str, Any] = {}
    for name, value in parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True):
        match = _KEY.fullmatch(name)
        if match is None:
            raise _unknown([name])
        key, inner = match[1], match[2]
        if inner is None:
            fields[key] = value
        elif isinstance(inside := fields.setdefault(key, {}), dict):
            inside[inner] = value
        else:
            raise _invalid("hash", key)
    return fields


def document(request: Request) -> dict[str, Any]:
    """The fields of a v2 body."""
    _media_type(request, _JSON)
    try:
        fields = json.loads(request.body or b"{}")
    except ValueError:
        raise ApiError("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError("The body has to be a JSON object.", code="invalid_json")
    return fields


def known(fields: Mapping[str, Any], names: frozenset[str]) -> None:
    """Refuse what an endpoint does not know: a misspelt field must not be lost in silence."""
    if unknown := sorted(set(fields) - names):
        raise _unknown(unknown)


def v1_event(fields: Mapping[str, Any]) -> NewEvent:
    """The parameters of `POST /v1/billing/meter_events`."""
    known(fields, EVENT_FIELDS | {"expand"})
    return NewEvent(
        _text(fields, "event_name", EVENT_NAME_LENGTH_MAX),
        _payload(fields),
        _optional(fields, "identifier"),
        _unix(fields),
    )


def v2_event(fields: Mapping[str, Any]) -> NewEvent:
    """The parameters of `POST /v2/billing/meter_events`, and of one event of the stream."""
    known(fields, EVENT_FIELDS)
    return NewEvent(
        _text(fields, "event_name", EVENT_NAME_LENGTH_MAX),
        _payload(fields),
        _optional(fields, "identifier"),
        _moment(fields),
    )


def streamed(fields: Mapping[str, Any]) -> list[NewEvent]:
    """The parameters of `POST /v2/billing/meter_event_stream`: all of them well formed, or none is taken."""
    known(fields, frozenset({"events"}))
    events = fields.get("events")
    if events is None:
        raise _missing("events")
    if not isinstance(events, list) or not all(isinstance(each, dict) for each in events):
        raise _invalid("array", "events")
    if not 1 <= len(events) <= STREAM_EVENTS_MAX:
        raise ApiError(f"events must hold 1 to {STREAM_EVENTS_MAX} events; it holds {len(events)}.", param="events")
    return [v2_event(each) for each in events]


def cancel(fields: Mapping[str, Any], *, version: str) -> Cancel:
    """The parameters of `meter_event_adjustments`, on v1 and v2."""
    known(fields, CANCEL_FIELDS | {"expand"} if version == "v1" else CANCEL_FIELDS)
    event_name = _text(fields, "event_name", EVENT_NAME_LENGTH_MAX)
    if (kind := _text(fields, "type", EVENT_NAME_LENGTH_MAX)) != "cancel":
        raise ApiError(f"Invalid type: must be cancel, not {kind}.", code=_bad_cancel(version), param="type")
    inside = fields.get("cancel")
    if not isinstance(inside, dict) or "identifier" not in inside:
        raise ApiError("Missing required param: cancel[identifier].", code=_bad_cancel(version), param="cancel")
    known(inside, frozenset({"identifier"}))
    return Cancel(event_name, _text(inside, "identifier", IDENTIFIER_LENGTH_MAX))


def whole(text: str, param: str) -> int:
    """An integer in a form or a query."""
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise ApiError(f"Invalid integer: {text}", code="parameter_invalid_integer", param=param)
    return int(text)


def _bad_cancel(version: str) -> str | None:
    return "invalid_cancel_configuration" if version == "v2" else None


def _media_type(request: Request, wanted: str) -> None:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != wanted and (request.body or found):
        raise ApiError(f"Invalid request (check that your POST content type is {wanted}).")


def _text(fields: Mapping[str, Any], name: str, length_max: int) -> str:
    value = fields.get(name)
    if value is None:
        raise _missing(name)
    if not isinstance(value, str):
        raise _invalid("string", name)
    if not value:
        message = f"You passed an empty string for '{name}'. Leave it out, or give it a value."
        raise ApiError(message, code="parameter_invalid_empty", param=name)
    if len(value) > length_max:
        raise ApiError(f"Invalid string: {value[:10]}…; must be at most {length_max} characters", param=name)
    return value


def _optional(fields: Mapping[str, Any], name: str) -> str | None:
    return _text(fields, name, IDENTIFIER_LENGTH_MAX) if fields.get(name) is not None else None


def _payload(fields: Mapping[str, Any]) -> Mapping[str, str]:
    payload = fields.get("payload")
    if payload is None:
        raise _missing("payload")
    if not isinstance(payload, dict):
        raise _invalid("hash", "payload")
    for key, value in payload.items():
        if not isinstance(value, str):
            raise _invalid("string", f"payload[{key}]")
    return payload


def _unix(fields: Mapping[str, Any]) -> float | None:
    text = fields.get("timestamp")
    if text is None:
        return None
    if not isinstance(text, str):
        raise _invalid("integer", "timestamp")
    return float(whole(text, "timestamp"))


def _moment(fields: Mapping[str, Any]) -> float | None:
    text = fields.get("timestamp")
    if text is None:
        return None
    if (at := seconds_of(text)) is None:
        raise ApiError("Invalid timestamp: it has to be text like 2026-11-21T00:00:00.000Z.", param="timestamp")
    return at


def _missing(name: str) -> ApiError:
    return ApiError(f"Missing required param: {name}.", code="parameter_missing", param=name)


def _unknown(names: list[str]) -> ApiError:
    several = "s" if len(names) > 1 else ""
    message = f"Received unknown parameter{several}: {', '.join(names)}"
    return ApiError(message, code="parameter_unknown", param=names[0])


def _invalid(kind: str, name: str) -> ApiError:
    return ApiError(f"Invalid {kind}: {name}", param=name)
