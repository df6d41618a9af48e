"""The journal lines of a call, built in the caller's thread: this file is the hot path, so it formats by hand.

The result is exactly `MeterEvent.to_json()` as JSON text (tests/test_lines.py compares them), without building the
event object first. What never changes during a call (customer, provider, model asked for, ...) is formatted once and
remembered for the calls that share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from token_meter.providers.base import RAW_USAGE_BYTES_MAX, Call, Reading, raw_numbers
from token_meter.providers.publishers import publisher_of
from token_meter.schema import SCHEMA

_encode: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@lru_cache(maxsize=8192)
def _quoted(text: str) -> str:
    return _encode(text)


@lru_cache(maxsize=4096)
def _static(
    customer: str | None, dimensions: tuple[tuple[str, str], ...], provider: str, model_requested: str | None,
    operation: str, host: str, mode: str,
) -> str:  # fmt: skip
    named = {
        "customer": customer, "dimensions": dict(dimensions) or None, "provider": provider,
        "model_requested": model_requested, "operation": operation, "host": host or None, "mode": mode,
    }  # fmt: skip
    return _encode({name: value for name, value in named.items() if value is not None})[1:-1]


def static_part(call: Call, mode: str) -> str:
    """The fields that every line of a call shares."""
    who = call.attribution
    return _static(
        who.customer,
        tuple(who.dimensions.items()),
        call.provider,
        call.model_requested,
        call.operation,
        call.host,
        mode,
    )


def opened(call: Call, *, at: str) -> bytes:
    """The line written before a call is sent: enough to bill it as `unmetered` should nothing follow."""
    publisher = _publisher(call.model_requested)
    return f'{{"kind":"opened","id":"{call.id}","time":"{at}",{call.static}{publisher}}}\n'.encode()


def event(call: Call, reading: Reading, *, id: str, at: str, duration_ms: int) -> bytes:
    """The line of one billed reading of a call."""
    usage = reading.usage
    quantities = ",".join([f'"{name}":{count}' for name, count in usage.items()]) if usage else ""
    model = reading.model
    text = (
        f'{{"kind":"event","call":"{call.id}","schema":{SCHEMA},"id":"{id}","time":"{at}",'
        f'"usage":{{{quantities}}},"status":"{reading.status}","meter":"llm_tokens",{call.static}'
        f'{_named(model)},"duration_ms":{duration_ms}'
    )
    if reading.price_context:
        text += f',"price_context":{{{_context(reading.price_context)}}}'
    if reading.response_id:
        text += f',"response_id":{_id(reading.response_id)}'
    if reading.estimator:
        text += f',"estimator":{_quoted(reading.estimator)}'
    if reading.anomalies:
        text += f',"anomalies":{_encode(list(dict.fromkeys(reading.anomalies))[:16])}'
    if reading.raw_usage is not None and (raw := raw_usage(reading.raw_usage)):
        text += f',"raw_usage":{raw}'
    return (text + "}\n").encode()


def answered(call: Call, excerpt: str, *, at: str, duration_ms: int) -> bytes:
    """The line of an answer that is written as it came: `answers.completed` makes the event of it."""
    return (
        f'{{"kind":"event","call":"{call.id}","schema":{SCHEMA},"id":"{call.id}","time":"{at}","meter":"llm_tokens",'
        f'{call.static},"duration_ms":{duration_ms},"dialect":"{call.endpoint.dialect}","answer":{excerpt}}}\n'
    ).encode()


def void(call: Call, reason: str) -> bytes:
    """The line of a call that ended and billed nothing."""
    return f'{{"kind":"void","call":"{call.id}","reason":{_quoted(reason)}}}\n'.encode()


def recorded(document: Mapping[str, Any]) -> bytes:
    """The line of an event that was entered by hand."""
    return (_encode({"kind": "event", **document}) + "\n").encode()


@lru_cache(maxsize=4096)
def _publisher(model: str | None) -> str:
    publisher = publisher_of(model)
    return f',"publisher":{_encode(publisher)}' if publisher else ""


@lru_cache(maxsize=4096)
def _named(model: str | None) -> str:
    if not model:
        return ""
    return f',"model":{_encode(model)}' + _publisher(model)


def _context(context: Mapping[str, Any]) -> str:
    return ",".join([f'"{name}":{value if type(value) is int else _scalar(value)}' for name, value in context.items()])


def _scalar(value: Any) -> str:
    return _quoted(value) if type(value) is str else _encode(value)


def _id(text: str) -> str:
    """Ids do not repeat, so they are not remembered; most need no escaping."""
    return f'"{text}"' if text.isascii() and text.replace("-", "").replace("_", "").isalnum() else _encode(text)


def raw_usage(block: Mapping[str, Any]) -> str:
    """The provider's usage block as JSON, numbers and enums only (D12), or "" if it is too large.

    A text with two quotes per key and no others holds no string value, so it needs no filtering.
    """
    quoted = getattr(block, "text", None)
    try:
        text = quoted if quoted is not None and quoted.isprintable() and quoted.isascii() else _encode(block)
    except (ValueError, TypeError, RecursionError):
        return ""
    if text.count('"') != 2 * text.count('":') or "\\" in text or "NaN" in text or "Infinity" in text:
        text = _encode(raw_numbers(block))
    return text if len(text) <= RAW_USAGE_BYTES_MAX else ""
