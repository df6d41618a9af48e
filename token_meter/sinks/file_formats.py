"""The formats of `FilesSink`: how events become a part, how a part grows, and which events stand in one.

JSON lines hold the stable JSON form of an event. CSV and Parquet share one flat table, `COLUMNS`: readers go by the
names, columns may be added, none is ever renamed. Everything here turns values into values; nothing opens a file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, Literal, Protocol

from token_meter.errors import MissingExtra
from token_meter.event import MeterEvent, format_time
from token_meter.sinks.native import native_work
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES

Name = Literal["jsonl", "csv", "parquet"]
Cell = str | int | datetime | None

TEXTS: Final = (
    "customer", "provider", "publisher", "model", "model_requested", "operation", "status", "meter", "mode",
    "response_id", "corrects", "estimator", "host",
)  # fmt: skip
JSON_TEXTS: Final = ("dimensions", "price_context", "anomalies", "raw_usage")
"""What has no fixed shape stands in the table as JSON text."""
COLUMNS: Final = ("id", "time", *TEXTS, "duration_ms", *JSON_TEXTS, "schema", *TOKEN_TYPES)
"""The flat table: a row for each event, a column for each token type (0 where nothing was used)."""

CELL_CHARACTERS_MAX: Final = 131_072
"""The longest CSV field that Python's own reader takes."""
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula."""
GUARD: Final = "'"
"""Stands in CSV before text that begins like a formula."""

_NOTHING: Final = dict.fromkeys(TOKEN_TYPES, 0)
MARK_BYTES_MAX: Final = 64
_UUID_7: Final = re.compile("([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_MS: Final = 24 * 60 * 60 * 1000
UNWRITABLE: Final = (AttributeError, OverflowError, RecursionError, TypeError, ValueError)
"""What `row` raises for an event that its format cannot hold."""


class Format(Protocol):
    """One format. A part is the whole content of a file."""

    suffix: str

    def row(self, event: MeterEvent) -> Any:
        """The event in this format. Raises one of UNWRITABLE for what it cannot hold."""

    def can_grow(self, part: bytes) -> bool:
        """Whether rows of today can be added to a part, or it was written with other columns."""

    def grown(self, part: bytes | None, rows: Sequence[Any]) -> bytes:
        """The part with more rows at its end; None: a new one."""

    def marks(self, part: bytes) -> list[bytes]:
        """The mark of each event in a part. Raises ValueError or LookupError when it is no part of ours."""


def mark_of(id: str, *, placeholder: bool) -> bytes:
    """What an event is known by: its id, and whether it is only a placeholder for one that may follow.

    Ids begin with the time, so marks of one hour stand together in the index.
    """
    name = id.encode("utf-8", "surrogatepass")
    if len(name) > MARK_BYTES_MAX:
        name = blake2b(name, digest_size=32).digest()
    return (b"?" if placeholder else b"=") + name


def event_mark(event: MeterEvent) -> bytes:
    """The mark of an event."""
    return mark_of(event.id, placeholder=event.status == "unmetered" and not event.usage)


class JsonLines:
    """One event per line, in the stable JSON form."""

    suffix = "jsonl"

    def row(self, event: MeterEvent) -> bytes:
        return json.dumps(event.to_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n"

    def can_grow(self, part: bytes) -> bool:
        return part.endswith(b"\n")

    def grown(self, part: bytes | None, rows: Sequence[bytes]) -> bytes:
        return (part or b"") + b"".join(rows)

    def marks(self, part: bytes) -> list[bytes]:
        events = map(json.loads, part.splitlines())
        return [
            mark_of(event["id"], placeholder=event.get("status") == "unmetered" and not event.get("usage"))
            for event in events
        ]


class Csv:
    """RFC 4180 in UTF-8, with a header. Text that a spreadsheet would run as a formula has an apostrophe before it."""

    suffix = "csv"

    def row(self, event: MeterEvent) -> list[str | int]:
        return [cell if isinstance(cell, int) else _csv_text(cell) for cell in cells(event)]

    def can_grow(self, part: bytes) -> bool:
        return part.startswith(_HEADER) and part.endswith(b"\r\n")

    def grown(self, part: bytes | None, rows: Sequence[list[str | int]]) -> bytes:
        return (part or _HEADER) + _csv_lines(rows)

    def marks(self, part: bytes) -> list[bytes]:
        rows = csv.DictReader(io.StringIO(part.decode(), newline=""), strict=True)
        try:
            _known(rows.fieldnames or ())
            return [mark_of(unguarded(row["id"]), placeholder=_is_placeholder(row)) for row in rows]
        except csv.Error as problem:
            raise ValueError(str(problem)) from problem


class Parquet:
    """Columns with types: `time` is a moment in UTC with microseconds, quantities are 64-bit integers."""

    suffix = "parquet"

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtra("Parquet files need: pip install 'token-meter[parquet]'") from None
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        types = dict.fromkeys(COLUMNS, pyarrow.int64()) | dict.fromkeys((*TEXTS, *JSON_TEXTS), pyarrow.string())
        types |= {"id": pyarrow.string(), "time": pyarrow.timestamp("us", tz="UTC")}
        self._schema = pyarrow.schema(list(types.items()))

    def row(self, event: MeterEvent) -> tuple[Cell, ...]:
        return cells(event)

    def can_grow(self, part: bytes) -> bool:
        with native_work(), self._opened(part) as file:
            return bool(file.schema_arrow.equals(self._schema))

    def grown(self, part: bytes | None, rows: Sequence[tuple[Cell, ...]]) -> bytes:
        columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
        with native_work():
            table = self._arrow.Table.from_pydict(columns, schema=self._schema)
            if part is not None:
                with self._opened(part) as file:
                    table = self._arrow.concat_tables([file.read(use_threads=False), table])
            output = self._arrow.BufferOutputStream()
            self._parquet.write_table(table, output, compression="zstd")
            return bytes(output.getvalue())

    def marks(self, part: bytes) -> list[bytes]:
        with native_work(), self._opened(part) as file:
            columns = _known(file.schema_arrow.names)
            rows = file.read(columns=columns, use_threads=False).to_pylist()
        return [mark_of(row["id"], placeholder=_is_placeholder(row)) for row in rows]

    def _opened(self, part: bytes) -> Any:
        # One thread: a process that was forked from one with threads has none of them.
        return self._parquet.ParquetFile(self._arrow.BufferReader(part), pre_buffer=False)


FORMATS: Final[Mapping[Name, type[Format]]] = {"jsonl": JsonLines, "csv": Csv, "parquet": Parquet}


def cells(event: MeterEvent) -> tuple[Cell, ...]:
    """The row of the flat table. Raises one of UNWRITABLE for what its column cannot hold."""
    return tuple(_cells(event))


def day_of(moment: datetime) -> str:
    """The UTC day, as folders are named."""
    return _utc(moment).date().isoformat()


def may_roam(event: MeterEvent) -> bool:
    """Whether the event could come again with the time of another day.

    What was metered once has one time, and an id that was minted then. An id that is derived from an object, or given
    by the user, comes with the time at which the object was read, or the work was recorded, again.
    """
    minted = _UUID_7.fullmatch(event.id)
    return minted is None or int(minted[1] + minted[2], 16) // _DAY_MS != (_utc(event.time) - _EPOCH).days


def _cells(event: MeterEvent) -> Iterator[Cell]:
    if not event.id:
        raise ValueError("it has no id")
    yield _text("id", event.id)
    yield _utc(event.time)
    for name in TEXTS:
        yield _text(name, getattr(event, name))
    yield None if event.duration_ms is None else _whole("duration_ms", event.duration_ms)
    yield _json("dimensions", dict(event.dimensions))
    yield _json("price_context", dict(event.price_context))
    yield _json("anomalies", list(event.anomalies))
    yield None if event.raw_usage is None else _json("raw_usage", dict(event.raw_usage))
    yield _whole("schema", event.schema)
    yield from _quantities(event.usage)


def _quantities(usage: Mapping[str, int]) -> Iterable[int]:
    unknown = usage.keys() - TOKEN_TYPES.keys()
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: no token type")
    return (_NOTHING | {name: _whole(name, quantity) for name, quantity in usage.items()}).values()


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {type(value).__name__}")
    value.encode()  # raises for half a surrogate pair, which no file in UTF-8 can hold
    return value


def _json(name: str, value: object) -> str | None:
    return _text(name, json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False))


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not 0 <= value <= QUANTITY_MAX:
        raise ValueError(f"{name} must be between 0 and 2**63-1, not {value}")
    return value


def _utc(moment: datetime) -> datetime:
    """As in `format_time`: a time without a zone is UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _known(columns: Sequence[str]) -> list[str]:
    """The columns that a mark depends on; a part of another version may have fewer token types."""
    if "id" not in columns or "status" not in columns:
        raise ValueError("it has no columns `id` and `status`")
    return [name for name in ("id", "status", *TOKEN_TYPES) if name in columns]


def _is_placeholder(row: Mapping[str, Any]) -> bool:
    return row["status"] == "unmetered" and not any(int(row.get(name) or 0) for name in TOKEN_TYPES)


def _csv_text(cell: str | datetime | None) -> str:
    if not cell:
        return ""
    if isinstance(cell, datetime):
        return format_time(cell)
    if len(cell) >= CELL_CHARACTERS_MAX:
        raise ValueError(f"a CSV field holds less than {CELL_CHARACTERS_MAX} characters, not {len(cell)}")
    return GUARD + cell if _is_formula(cell) else cell


def unguarded(text: str) -> str:
    """The text that stands in a CSV field of ours."""
    return text[1:] if text.startswith(GUARD) and _is_formula(text) else text


def _is_formula(text: str) -> bool:
    # Guards in front are looked through, so that text which has one of its own gets a second, and keeps the first.
    return text.lstrip(GUARD).startswith(FORMULA)


def _csv_lines(rows: Iterable[Sequence[str | int]]) -> bytes:
    output = io.StringIO()
    csv.writer(output, lineterminator="\r\n").writerows(rows)
    return output.getvalue().encode()


_HEADER: Final = _csv_lines([COLUMNS])
