"""A meter event as a row of the ledger and back, and the digest that decides what a conflict is."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, cast

from sqlalchemy import Row

from token_meter.event import SCHEMA, MeterEvent, Status
from token_meter.ledger.tables import ID_BYTES_MAX, JSON_BYTES_MAX, TEXT_BYTES_MAX, events
from token_meter.ledger.text import from_stored, mapping_from_stored, mapping_to_stored, to_json, to_stored
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

COLUMNS: Final = tuple(column.name for column in events.columns)

FACTS: Final = COLUMNS[:-2]
"""The columns of what the event says; after them comes how it is rated."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
HOUR: Final = 3_600_000_000
"""One hour in microseconds."""

NAMES_REMEMBERED_MAX: Final = 4_096
"""So many names a process remembers to be fit for storing."""

CONTEXT_THRESHOLDS: Final = (32_000, 64_000, 100_000, 128_000, 200_000, 256_000, 272_000, 512_000, 1_000_000)
"""Context sizes at which providers change prices. Rollups keep a call's context size only as far as these tell."""

# A price may hold above a threshold or from it on, so the threshold itself is a step of its own.
_STEPS: Final = (0, *(step for threshold in CONTEXT_THRESHOLDS for step in (threshold, threshold + 1)))


class Measure(NamedTuple):
    """What rollups need of one event: when (hours since 1970), under which series, how much, and how it is rated.

    `rating` maps token types to the numbers of ratings; what is not in it is not rated.
    """

    hour: int
    series: tuple[Any, ...]
    dimensions: Mapping[str, str]
    usage: Mapping[str, int]
    rating: Mapping[str, int] = MappingProxyType({})
    sign: int = 1
    """-1: its quantities are taken away."""
    id: str = ""
    """The event's own; empty for a correction, which counts where another event does."""
    time: int = 0
    """When it counts, in microseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An event ready to be written: checked, encoded, measured. `row` holds the `FACTS`."""

    event: MeterEvent
    id: str
    digest: bytes
    row: tuple[Any, ...]
    measure: Measure

    @property
    def placeholder(self) -> bool:
        """It says only that a call was made whose response nobody saw."""
        return is_placeholder(self.event.status, self.event.usage)


def is_placeholder(status: str, usage: Mapping[str, int]) -> bool:
    """An unmetered event without quantities: what recovery writes for a call believed lost."""
    return status == "unmetered" and not usage


def prepare(event: MeterEvent, *, recorded: int) -> Prepared:
    """Encode one event; ValueError with the reason if no ledger can ever hold it.

    The digest is taken over the fields that money depends on: customer, provider, publisher, model, usage,
    meter, price_context, status, mode, corrects and all dimensions. Time, duration, raw_usage, anomalies and
    the rest are not in it: a poll repeated by another process, or a manual record sent again, differs in
    those and is the same event. Stored digests outlive this code: never change what goes in.
    """
    _check_shape(event)
    time = (event.time - EPOCH) // MICROSECOND
    identity = _text("id", event.id, ID_BYTES_MAX)
    customer = _name("customer", event.customer)
    provider = _name("provider", event.provider)
    publisher = _name("publisher", event.publisher)
    model = _name("model", event.model)
    operation = _name("operation", event.operation)
    host = _name("host", event.host)
    corrects = _optional("corrects", event.corrects)
    status = _text("status", event.status)
    meter = _text("meter", event.meter)
    mode = _text("mode", event.mode)
    quantities = _quantities(event.usage)
    usage = _usage_json(quantities)
    context = _json("price_context", event.price_context)
    named, dimensions = _dimensions(tuple(event.dimensions.items()))
    billing = [customer, provider, publisher, model, usage, meter, context, status, mode, corrects, dimensions]
    digest = blake2b(to_json(billing).encode(), digest_size=16).digest()
    row = (
        identity, time, customer, provider, publisher, model, _name("model_requested", event.model_requested),
        operation, status, meter, mode, host, _optional("response_id", event.response_id), corrects,
        _optional("estimator", event.estimator), _duration(event.duration_ms), usage, context, dimensions,
        _json("anomalies", list(event.anomalies)), _json("raw_usage", _more(event)), digest, recorded,
    )  # fmt: skip
    rolled = None if context is None else rolled_context(context, event.price_context)
    key = (customer, provider, publisher, model, operation, status, meter, mode, host, corrects is not None, rolled)
    return Prepared(event, identity, digest, row, Measure(time // HOUR, key, named, quantities, id=identity, time=time))


def event_of(row: Row[Any]) -> MeterEvent:
    """The event that this row was made of."""
    more = json.loads(row.more) if row.more else {}
    return MeterEvent(
        id=from_stored(row.id),
        time=EPOCH + MICROSECOND * row.time,
        usage=Usage.of(json.loads(row.usage)),
        duration_ms=row.duration_ms,
        meter=from_stored(row.meter),
        customer=_read(row.customer),
        provider=_read(row.provider),
        publisher=_read(row.publisher),
        model=_read(row.model),
        model_requested=_read(row.model_requested),
        operation=_read(row.operation),
        status=cast(Status, from_stored(row.status)),
        estimator=_read(row.estimator),
        anomalies=tuple(json.loads(row.anomalies)) if row.anomalies else (),
        price_context=json.loads(row.price_context) if row.price_context else {},
        dimensions=mapping_from_stored(row.dimensions),
        response_id=_read(row.response_id),
        host=_read(row.host),
        mode=cast('Literal["live", "test"]', from_stored(row.mode)),
        corrects=_read(row.corrects),
        raw_usage=more.get("raw_usage"),
        schema=more.get("schema", SCHEMA),
    )


def measure_of(row: Row[Any]) -> Measure:
    """What rollups need of a stored event: the same as when it was prepared."""
    context = None if row.price_context is None else rolled_context(row.price_context)
    key = (
        row.customer, row.provider, row.publisher, row.model, row.operation, row.status, row.meter, row.mode,
        row.host, row.corrects is not None, context,
    )  # fmt: skip
    dimensions = json.loads(row.dimensions) if row.dimensions else {}
    rating = json.loads(row.rating) if row.rating else {}
    return Measure(row.time // HOUR, key, dimensions, json.loads(row.usage), rating, id=row.id, time=row.time)


def context_step(tokens: int) -> int:
    """The least context size that every known price treats like this one."""
    return _STEPS[bisect_right(_STEPS, tokens) - 1] if tokens >= 0 else tokens


def rolled_context(text: str, context: Mapping[str, Any] | None = None) -> str:
    """A price context (as JSON, and itself if at hand) as rollups keep it: with the step of its context size."""
    # The exact size differs from call to call and would make as many series as calls.
    if '"context_tokens"' not in text:
        return text
    if context is None:
        context = json.loads(text)
    tokens = context.get("context_tokens")
    return text if type(tokens) is not int else to_json({**context, "context_tokens": context_step(tokens)})


def _check_shape(event: MeterEvent) -> None:
    if not isinstance(event.time, datetime) or event.time.tzinfo is None:
        raise ValueError("its time is no moment with a time zone")
    if not event.id:
        raise ValueError("it has no id")
    for name in ("usage", "price_context", "dimensions"):
        if not isinstance(getattr(event, name), Mapping):
            raise ValueError(f"its {name} is no mapping")


def _text(name: str, value: object, bytes_max: int = TEXT_BYTES_MAX) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {name} is no text but {type(value).__name__}")
    if type(value) is not str:
        value = str.__str__(value)  # the text of an enumeration's member, not its name
    stored = to_stored(value)
    if len(stored) * 4 > bytes_max and len(stored.encode()) > bytes_max:
        raise ValueError(f"its {name} is longer than {bytes_max} bytes")
    return stored


def _optional(name: str, value: object) -> str | None:
    return None if value is None else _text(name, value)


# The same names come again and again.
_name: Final = lru_cache(maxsize=NAMES_REMEMBERED_MAX)(_optional)


def _read(value: str | None) -> str | None:
    return None if value is None else from_stored(value)


def _quantities(usage: Mapping[str, int]) -> dict[str, int]:
    quantities = dict(usage)
    for name, quantity in quantities.items():
        if name not in TOKEN_TYPES:
            raise ValueError(f"{name!r} is no token type")
        if type(quantity) is not int or not 0 <= quantity <= QUANTITY_MAX:
            raise ValueError(f"its quantity of {name} is no integer between 0 and 2**63-1")
    return quantities if all(quantities.values()) else {name: some for name, some in quantities.items() if some}


def _usage_json(quantities: Mapping[str, int]) -> str:
    """The same as `to_json`, at a third of its price: names need no escape."""
    return "{" + ",".join([f'"{name}":{quantities[name]}' for name in sorted(quantities)]) + "}"


def _check_dimensions(dimensions: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], str | None]:
    for name, value in dimensions:
        _text("dimension name", name)
        _text(f"dimension {name!r}", value)
    stored = mapping_to_stored(dict(dimensions))
    return stored, _json("dimensions", stored)


# The same customers come again, with the same dimensions. Nobody changes the dictionary.
_dimensions: Final = lru_cache(maxsize=NAMES_REMEMBERED_MAX)(_check_dimensions)


def _json(name: str, value: Any) -> str | None:
    if not value:
        return None
    try:
        text = to_json(value)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ValueError(f"its {name} is no JSON ({problem})") from None
    if len(text) > JSON_BYTES_MAX:
        raise ValueError(f"its {name} is longer than {JSON_BYTES_MAX} bytes as JSON")
    return text


def _duration(value: object) -> int | None:
    if value is None:
        return None
    # It may be negative: clocks step back, and no event is refused for that.
    if type(value) is not int or not -QUANTITY_MAX <= value <= QUANTITY_MAX:
        raise ValueError("its duration_ms is no integer of 64 bits")
    return value


def _more(event: MeterEvent) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if event.raw_usage is not None:
        more["raw_usage"] = event.raw_usage
    if event.schema != SCHEMA:
        more["schema"] = event.schema
    return more
