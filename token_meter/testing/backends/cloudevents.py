"""CloudEvents 1.0 as JSON over HTTP: one event or an array of them, and what makes one invalid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from token_meter.testing.backends.values import read_json

ONE: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
PLAIN: Final = "application/json"

REQUIRED: Final = ("specversion", "id", "source", "type")
OPTIONAL: Final = ("subject", "time", "datacontenttype", "dataschema")
NAME: Final = re.compile(r"[a-z0-9]+")
"""Of an attribute, extensions included."""
TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
"""RFC 3339; ISO 8601 allows more."""


class CloudEvent(NamedTuple):
    """One event, checked. `at` is seconds since 1970, None if it tells no time; `data` is {} if there is none."""

    id: str
    source: str
    type: str
    subject: str
    at: float | None
    data: Mapping[str, Any]


def read_events(body: bytes, content_type: str, *, required: tuple[str, ...] = REQUIRED) -> list[CloudEvent]:
    """Every event of a body. Raises ValueError for the first that is invalid; plain JSON may be one or an array."""
    try:
        document = read_json(body)
    except ValueError:
        raise ValueError("the body is no JSON") from None
    if content_type != PLAIN and isinstance(document, list) != (content_type == BATCH):
        raise ValueError(f"a body of {content_type} must be {'an array' if content_type == BATCH else 'one object'}")
    documents = document if isinstance(document, list) else [document]
    return [_event(index, each, required) for index, each in enumerate(documents)]


def _event(index: int, document: Any, required: tuple[str, ...]) -> CloudEvent:
    if not isinstance(document, dict):
        raise ValueError(f"event {index} is no object")
    if problem := next(_problems(document, required), None):
        raise ValueError(f"event {index}: {problem}")
    time = document.get("time")
    return CloudEvent(
        document["id"],
        document["source"],
        document["type"],
        document.get("subject") or "",
        None if time is None else datetime.fromisoformat(time.upper()).timestamp(),
        document.get("data") or {},
    )


def _problems(document: Mapping[str, Any], required: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with an event. An optional attribute may be null."""
    for name in required:
        if document.get(name) is None:
            yield f"{name} is missing"
    for name in (*REQUIRED, *OPTIONAL):
        value = document.get(name)
        if value is not None and not (isinstance(value, str) and value):
            yield f"{name} must be a text that is not empty"
    if document["specversion"] != "1.0":
        yield "specversion must be 1.0"
    if not _is_time(document.get("time")):
        yield "time must be as RFC 3339 says"
    if document.get("datacontenttype") not in (None, PLAIN):
        yield f"datacontenttype must be {PLAIN}"
    if not isinstance(document.get("data"), (dict, type(None))):
        yield "data must be an object"
    for name, value in document.items():
        if not NAME.fullmatch(name):
            yield f"{name!r} is no name of an attribute: lower-case letters and digits are"
        elif name not in (*REQUIRED, *OPTIONAL, "data") and not isinstance(value, (str, int, type(None))):
            yield f"{name} must be a text, a whole number, or true or false"


def _is_time(text: str | None) -> bool:
    if text is None:
        return True
    if not TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        return False
    return True
