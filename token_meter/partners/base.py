"""What the partner files and the intake agree on: rows, what may be wrong with one, and the event made of it.

Row          one record of a partner as it came, from a file, an API or a callback: hostile until read
Skip         raised by a reading function: this row consumed nothing at a provider, and why
Unreadable   raised by a reading function: this row cannot be read, and why
Partner      a table: how each kind of record is told and read, where the records can be pulled from
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_meter.errors import TokenMeterError
from token_meter.event import MeterEvent
from token_meter.providers.base import RAW_USAGE_BYTES_MAX, raw_numbers
from token_meter.providers.publishers import publisher_of
from token_meter.schema import Status
from token_meter.usage import QUANTITY_MAX, Usage

if TYPE_CHECKING:
    from token_meter.partners.client import Client
    from token_meter.partners.walking import Pages

Row = Mapping[str, Any]

AGGREGATE: Final = "aggregate"
"""The operation of an event that stands for many calls."""

SHOWN_CHARACTERS_MAX: Final = 40
EARLIEST: Final = datetime(2015, 1, 1, tzinfo=UTC)
FUTURE_MAX: Final = timedelta(days=2)
"""A record of the day after tomorrow is a mistake in its time, and would be billed in the wrong month."""


class PartnerError(TokenMeterError):
    """Usage of a partner could not be brought in; nothing was lost, and the message says what to do."""


class Skip(Exception):
    """The row is fine and consumed nothing at a provider; the text is a reason that is counted."""


class Unreadable(ValueError):
    """The row cannot be read; the text says why, without the content of the call."""


class Kind(NamedTuple):
    """One kind of record: how it is told from the others, and the function that makes an event of it."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], MeterEvent]


class Feed(NamedTuple):
    """Where a partner gives its records out.

    `url` is the base URL (None: it has to be named), `variable` the environment variable with the key. `parameters`
    are what may be given along, those in `required` must be. `pages` walks through a span of time, `lookup` reads
    single records by id, where there is such a thing. `overlap` is how far back a pull reads again.
    """

    url: str | None
    variable: str
    pages: Callable[[Client, datetime, datetime, Mapping[str, str]], Pages]
    overlap: timedelta
    parameters: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    lookup: Callable[[Client, str], Row] | None = None


@dataclass(frozen=True, slots=True)
class Partner:
    """One partner: its kinds of records (the first that fits is taken), and where they can be pulled from.

    `customer_fields` name the customer unless told otherwise; the first that is there counts. `lists` are the fields
    in which an answer or an exported document holds its records.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    customer_fields: tuple[str, ...]
    feed: Feed
    lists: tuple[str, ...] = ("data",)
    looks_like: str = field(default="")

    def read(self, row: Row) -> MeterEvent:
        """The event of a row, without customer and dimensions. Raises Skip and Unreadable."""
        for kind in self.kinds:
            if kind.fits(row):
                return kind.read(row)
        seen = ", ".join(shown(name) for name in list(row)[:6]) or "nothing"
        raise Unreadable(f"is no record of {self.title}: it has {seen}; expected {self.looks_like}")


def entry(
    partner: str,
    identity: tuple[str, ...],
    *,
    time: datetime,
    usage: Usage,
    model: str | None,
    provider: str | None,
    model_requested: str | None = None,
    operation: str | None = None,
    status: Status = "complete",
    estimator: str | None = None,
    anomalies: list[str] | None = None,
    price_context: Mapping[str, Any] | None = None,
    duration_ms: int | None = None,
    response_id: str | None = None,
    host: str | None = None,
    raw_usage: Mapping[str, Any] | None = None,
) -> MeterEvent:
    """The event of a record. Its id is derived from what identifies the record, so that reading it again, from
    wherever, is the same event."""
    return MeterEvent(
        id=derived_id(partner, *identity),
        time=time,
        usage=usage,
        provider=provider,
        publisher=publisher_of(model),
        model=model,
        model_requested=None if model_requested == model else model_requested,
        operation=operation,
        status=status,
        estimator=estimator,
        anomalies=tuple(dict.fromkeys(anomalies or ()))[:16],
        price_context={name: value for name, value in (price_context or {}).items() if value is not None},
        duration_ms=duration_ms,
        response_id=response_id,
        host=host,
        raw_usage=_raw(raw_usage),
    )


def derived_id(*identity: str) -> str:
    """A UUIDv8 (RFC 9562) of 122 bits of a digest: of one length, whatever a partner's ids look like."""
    key = json.dumps(identity, ensure_ascii=True)
    text = hashlib.sha256(key.encode()).hexdigest()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-{'89ab'[int(text[16], 16) % 4]}{text[17:20]}-{text[20:32]}"


def _raw(block: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What the partner said in numbers and enums (decision D12), or nothing if that is too much."""
    kept = raw_numbers(dict(block)) if block else None
    if not kept or len(json.dumps(kept)) > RAW_USAGE_BYTES_MAX:
        return None
    return kept  # type: ignore[no-any-return]


# ---- fields of rows: JSON, or the text of a CSV cell ---------------------------------------------------------------

_WHOLE: Final = re.compile(r"(\d{1,19})(?:\.0*)?", re.ASCII)
_NUMBER: Final = re.compile(r"\d{9,20}(?:\.\d*)?", re.ASCII)


def shown(value: object) -> str:
    """A value as it may stand in a message: short."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[: SHOWN_CHARACTERS_MAX - 1]}…"


def count(row: Row, name: str) -> int | None:
    """A quantity; None where there is none. Raises Unreadable for what is no quantity."""
    value = row.get(name)
    if value is None or value == "":
        return None
    if type(value) is int and 0 <= value <= QUANTITY_MAX:
        return value
    if type(value) is float and value.is_integer() and 0 <= value <= QUANTITY_MAX:
        return int(value)
    if type(value) is str and (match := _WHOLE.fullmatch(value.strip())) and int(match[1]) <= QUANTITY_MAX:
        return int(match[1])
    raise Unreadable(f"{name} is {shown(value)}, which is no quantity")


def amount(row: Row, name: str) -> float | None:
    """What the partner charged, only to be shown and to see whether it charged at all; None for what is no number."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e12 else None


def words(row: Row, name: str) -> str | None:
    """A text of sane length, or None."""
    value = row.get(name)
    return value.strip() or None if type(value) is str and len(value) <= 512 else None


def needed(row: Row, name: str) -> str:
    """A text that a record cannot do without: what identifies it."""
    value = row.get(name)
    if type(value) is not str or not value.strip() or len(value) > 4096:
        raise Unreadable(f"{name} is {shown(value)}, which identifies nothing")
    return value.strip()


def yes(row: Row, name: str) -> bool:
    """Whether a field says so: true in JSON, `true`, `t` or `1` in a cell."""
    return str(row.get(name)).strip().lower() in ("true", "t", "1", "yes")


def nested(row: Row, name: str) -> dict[str, Any]:
    """An object, which some exports hold as the text of one. Raises Unreadable for text that is none."""
    value = row.get(name)
    if type(value) is str and value.strip() not in ("", "null"):
        value = parsed(value, name)
    if isinstance(value, Mapping):
        return dict(value)
    if value is None or value == "" or value == "null" or value == []:
        return {}
    raise Unreadable(f"{name} is {shown(value)}, which is no object")


def parsed(text: str | bytes, name: str) -> Any:
    """Text as JSON. Raises Unreadable."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
        return json.loads(decoded, parse_constant=_no_number)
    except RecursionError:
        raise Unreadable(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"{name} is no JSON: {_without_the_text(error)}") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _without_the_text(error: ValueError) -> str:
    """A decoder's complaint without what it complains about."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)[:SHOWN_CHARACTERS_MAX]


def moment(row: Row, *names: str) -> datetime:
    """The first of these fields that is there, as a time; without a zone it is UTC. Raises Unreadable."""
    name = next((each for each in names if row.get(each) not in (None, "")), names[0])
    found = instant(row.get(name))
    if found is None:
        raise Unreadable(f"{name} is {shown(row.get(name))}, which is no time")
    if not EARLIEST <= found <= datetime.now(UTC) + FUTURE_MAX:
        raise Unreadable(f"{name} is {shown(row.get(name))}, which cannot be when this happened")
    return found


def instant(value: object) -> datetime | None:
    """RFC 3339 in its many dialects, or seconds (milliseconds, micro-, nanoseconds) since 1970; None for neither."""
    try:
        if type(value) is str:
            text = value.strip()
            if _NUMBER.fullmatch(text):
                return _since_1970(float(text) if "." in text else int(text))
            found = datetime.fromisoformat(text.removesuffix(" UTC"))
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        if type(value) is int or type(value) is float:
            return _since_1970(value)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _since_1970(number: float) -> datetime:
    """By size: seconds have ten digits in our time, and each finer unit three more."""
    microseconds = number * 1_000_000
    for unit in (1, 1_000, 1_000_000, 1_000_000_000):
        if number < 1e11 * unit:
            microseconds = number * 1_000_000 // unit if isinstance(number, int) else round(number * 1_000_000 / unit)
            break
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(microseconds))
