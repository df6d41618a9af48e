"""A meter event as a row: the few columns a person reads, and the flat row of an export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import tzinfo
from typing import Any, Final

from token_meter.cli.tables import Column, Row
from token_meter.event import MeterEvent
from token_meter.usage import TOKEN_TYPES

SHORT_ID: Final = 12
"""So many characters of an id a terminal shows: the end, which is the random part."""

LINES_AT_ONCE: Final = 1_000

COLUMNS: Final = (
    Column("time", whole=True),
    Column("customer"),
    Column("model"),
    Column("operation", quiet=True, expendable=True),
    Column("input", number=True),
    Column("cached", number=True),
    Column("output", number=True),
    Column("status", whole=True),
    Column("id", quiet=True, whole=True),
)
TEXT_COLUMNS: Final = (
    "time", "id", "customer", "provider", "publisher", "model", "model_requested", "operation", "status", "meter",
    "mode", "host", "response_id", "corrects", "estimator", "duration_ms", "dimensions", "price_context", "anomalies",
)  # fmt: skip
EXPORT_COLUMNS: Final = tuple(Column(name) for name in (*TEXT_COLUMNS, "tokens", *TOKEN_TYPES))


def short_row(event: MeterEvent, zone: tzinfo, *, short: bool) -> Row:
    """What fits on one line; `short` for a terminal, which need not tell the year nor all of the id."""
    headlines = event.usage.by_headline()
    return {
        "time": event.time.astimezone(zone).strftime("%m-%d %H:%M:%S" if short else "%Y-%m-%d %H:%M:%S"),
        "customer": event.customer,
        "model": event.model or event.model_requested,
        "operation": event.operation,
        "input": headlines.get("input", 0),
        "cached": headlines.get("cached input", 0) + headlines.get("cache write", 0),
        "output": headlines.get("output", 0) + headlines.get("cached output", 0),
        "status": event.status,
        "id": event.id[-SHORT_ID:] if short else event.id,
    }


def export_row(event: MeterEvent) -> Row:
    """All of it but the raw usage: one column per token type, mappings as JSON."""
    document = event.to_json()
    row: dict[str, Any] = {name: document.get(name) for name in TEXT_COLUMNS}
    for name in ("dimensions", "price_context"):
        row[name] = json.dumps(row[name], separators=(",", ":")) if row[name] else None
    row["anomalies"] = " ".join(event.anomalies) or None
    return row | dict(event.usage) | {"tokens": event.usage.tokens}


def json_lines(events: Iterable[MeterEvent]) -> Iterator[str]:
    """The stable JSON form, a line each, in pieces of sensible size."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    lines: list[str] = []
    for event in events:
        lines.append(encode(event.to_json()) + "\n")
        if len(lines) == LINES_AT_ONCE:
            yield "".join(lines)
            lines.clear()
    yield "".join(lines)
