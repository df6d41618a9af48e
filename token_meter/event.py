"""The meter event: one immutable, attributed record of usage, and its JSON form.

The JSON form is what stands in the journal, what every sink receives and what the ledger stores. It is
versioned by `schema`; fields are added, never renamed or given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, Literal

from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.schema import SCHEMA as SCHEMA
from token_meter.schema import STATUSES as STATUSES
from token_meter.schema import Status as Status
from token_meter.schema import new_id as new_id
from token_meter.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterEvent:
    """One immutable, attributed record of usage.

    `time` is the completion in UTC. `provider` served the request and sets the cost, `publisher` made the model;
    `model` is the one that answered, `model_requested` the one asked for. `price_context` holds what a price
    depends on besides the model and cannot be recovered later: service_tier, batch, speed, geo, context_tokens.
    `status` says how sure the quantities are, `estimator` who estimated them, `anomalies` what did not add up.
    `corrects` is the id of an event that this one reverses or reassigns. `raw_usage` is the provider's own usage
    block, numbers and enums only.
    """

    id: str
    time: datetime
    usage: Usage
    duration_ms: int | None = None
    meter: str = "llm_tokens"
    customer: str | None = None
    provider: str | None = None
    publisher: str | None = None
    model: str | None = None
    model_requested: str | None = None
    operation: str | None = None
    status: Status = "complete"
    estimator: str | None = None
    anomalies: tuple[str, ...] = ()
    price_context: Mapping[str, Any] = field(default_factory=dict)
    dimensions: Mapping[str, str] = field(default_factory=dict)
    response_id: str | None = None
    host: str | None = None
    mode: Literal["live", "test"] = "live"
    corrects: str | None = None
    raw_usage: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    def __hash__(self) -> int:
        return hash(self.id)

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form: sparse (empty fields are left out), time in RFC 3339 with microseconds."""
        document: dict[str, Any] = {"schema": self.schema, "id": self.id, "time": format_time(self.time)}
        document["usage"] = dict(self.usage)
        document["status"] = self.status
        for name in _SPARSE:
            value = getattr(self, name)
            if value:
                document[name] = list(value) if isinstance(value, tuple) else value
        if self.duration_ms is not None:
            document["duration_ms"] = self.duration_ms
        if self.raw_usage is not None:
            document["raw_usage"] = self.raw_usage
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> MeterEvent:
        """Read the JSON form; unknown fields of the same schema are ignored.

        Raises NewerSchema for a document of a later version and InvalidEvent for one that is no meter event.
        """
        schema = document.get("schema", SCHEMA)
        if not isinstance(schema, int) or schema > SCHEMA:
            raise NewerSchema(
                f"this event has schema {schema!r}; this version of token_meter reads up to {SCHEMA}: upgrade it"
            )
        try:
            event = object.__new__(cls)
            for name, put, default in _PLAIN:
                put(event, document.get(name, default))
            for name, put in _MAPPINGS:
                put(event, document.get(name, {}))
            _ID(event, document["id"])
            _TIME(event, parse_time(document["time"]))
            _USAGE(event, Usage(document["usage"]))
            _ANOMALIES(event, tuple(document.get("anomalies") or ()))
            if event.status not in STATUSES:
                raise ValueError(f"status must be one of {', '.join(STATUSES)}")
            return event
        except (KeyError, TypeError, ValueError) as problem:
            raise InvalidEvent(f"not a meter event ({problem!r})") from problem


def _setter(name: str) -> Any:
    """Reading a journal makes many events; setting their slots takes half of the time of calling the class."""
    return getattr(MeterEvent, name).__set__


_ID: Final = _setter("id")
_TIME: Final = _setter("time")
_USAGE: Final = _setter("usage")
_ANOMALIES: Final = _setter("anomalies")
_PLAIN: Final = tuple(
    (each.name, _setter(each.name), each.default)
    for each in fields(MeterEvent)
    if each.default is not MISSING and each.name != "anomalies"
)
_MAPPINGS: Final = tuple(
    (each.name, _setter(each.name)) for each in fields(MeterEvent) if each.default_factory is not MISSING
)
_SPARSE: Final = (
    "meter", "customer", "provider", "publisher", "model", "model_requested", "operation", "estimator",
    "anomalies", "price_context", "dimensions", "response_id", "host", "mode", "corrects",
)  # fmt: skip


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with exactly six decimals, so that text order is time order; a time without a zone is UTC."""
    aware = moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return f"{aware.isoformat(timespec='microseconds')[:-6]}Z"


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time; one without an offset is taken as UTC."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
