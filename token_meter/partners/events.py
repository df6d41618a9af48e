"""Events out of files of one's own: a meter, a value, a customer, a time, and any dimensions, in CSV or JSON.

    {"meterApiName": "llm tokens", "meterValue": 1000, "dimensions": {"model": "model a", "type": "input"}}

A row has no identity of its own unless it names one (`id`): it is the row of a file with this content, so bringing the
same file in again counts nothing twice.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from token_meter.event import MeterEvent
from token_meter.partners.base import (
    FUTURE_MAX,
    Kind,
    Partner,
    PartnerError,
    Row,
    Unreadable,
    count,
    derived_id,
    moment,
    nested,
    shown,
    words,
)
from token_meter.partners.cloudflare import CLOUDFLARE
from token_meter.partners.fields import attributing
from token_meter.partners.files import rows
from token_meter.partners.importing import able, in_utc
from token_meter.partners.intake import Imported, Intake, Recording, UnreadableRows, Writing
from token_meter.providers.publishers import publisher_of
from token_meter.usage import TOKEN_TYPES, Usage

if TYPE_CHECKING:
    from token_meter.meter import Meter

NAME: Final = "events"
LLM_TOKENS: Final = "llm_tokens"

METER_FIELDS: Final = ("meter", "meterApiName", "meter_name", "code")
VALUE_FIELDS: Final = ("value", "meterValue", "quantity")
TIME_FIELDS: Final = ("time", "meterTimeInMillis", "timestamp", "at")
ID_FIELDS: Final = ("id", "uniqueId", "transaction_id")
CUSTOMER_FIELDS: Final = ("customer", "customerId", "customer_id")
TYPE_FIELDS: Final = ("token_type", "type")

TYPES: Final[Mapping[str, str]] = {
    "input": "input", "output": "output", "cached_input": "cache_read", "cached": "cache_read", "prompt": "input",
    "completion": "output",
}  # fmt: skip
"""What people call token types, besides their names."""

_OWN: Final = frozenset({*METER_FIELDS, *VALUE_FIELDS, *TIME_FIELDS, *ID_FIELDS, *CUSTOMER_FIELDS, "dimensions"})
_ROW: Final = "\0row"


def import_events(
    meter: Meter | Recording,
    *files: str | os.PathLike[str],
    customer: str | None = None,
    at: datetime | None = None,
    at_counts: bool = True,
    meters: Collection[str] | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    known: Callable[[str], bool] | None = None,
    watch: Callable[[MeterEvent], object] | None = None,
    moved: Callable[[int], object] | None = None,
) -> Imported:
    """Record the events of files: JSON, JSON lines or CSV, plain or gzipped.

    `customer` and `at` are for rows that name none; they are part of what such a row is, so the same file for another
    customer or day counts anew. Not `at` unless `at_counts`: "now" is another time whenever it is said. `meters` are
    those that there are: a row of another is a mistake. Where a row cannot be read nothing is recorded and
    UnreadableRows is raised, unless `skip_bad`. `known` tells of an id whether its event is there already: such rows
    are passed over and counted.
    """
    if at is not None and in_utc(at) > datetime.now(UTC) + FUTURE_MAX:  # type: ignore[operator]
        raise ValueError(f"{at} lies in the future: it cannot be when this happened")
    paths = [Path(each) for each in files]
    said = "" if customer is None else f"/customer={customer}"
    said += f"/at={in_utc(at).isoformat()}" if at is not None and at_counts else ""  # type: ignore[union-attr]
    partner = _partner(in_utc(at), None if meters is None else {LLM_TOKENS, *meters})
    chosen = attributing((lambda _: customer) if customer is not None else None, None, default=CUSTOMER_FIELDS)

    def read(intake: Intake, write: Callable[[MeterEvent], object] | None) -> None:
        for path in paths:
            digest = _digest(path)
            for found in rows(path, lists=("events", "data"), moved=moved):
                if found.record is None:
                    intake.refuse(str(path), found.number, found.problem or "is no record")
                    continue
                record = {**found.record, _ROW: f"{digest}/{found.number}{said}"}
                event = intake.take(record, str(path), found.number)
                if event is not None and write is not None:
                    write(event)

    if dry_run or not skip_bad:
        checked = Intake(partner, chosen, known=known, watch=watch if dry_run else None)
        read(checked, None)
        if checked.bad_rows and not skip_bad:
            raise UnreadableRows(checked.report(recorded=False))
        if dry_run:
            return checked.report(recorded=False)
    able(meter)
    taken, writing = Intake(partner, chosen, known=known, watch=watch), Writing(meter)
    read(taken, writing.write)
    writing.settle()
    return taken.report(recorded=True)


def _partner(at: datetime | None, meters: Collection[str] | None) -> Partner:
    def read_row(row: Row) -> MeterEvent:
        return _event(row, at, meters)

    kind = Kind("event", lambda row: True, read_row)
    return replace(CLOUDFLARE, name=NAME, title="events", kinds=(kind,), customer_fields=CUSTOMER_FIELDS)


def _event(row: Row, at: datetime | None, meters: Collection[str] | None) -> MeterEvent:
    name = meter_name(_first(row, METER_FIELDS))
    if meters is not None and name not in meters:
        raise Unreadable(f"there is no meter {name!r}. Known: {', '.join(sorted(meters))}. Declare it in a plans file")
    value_field = next((each for each in VALUE_FIELDS if row.get(each) not in (None, "")), VALUE_FIELDS[0])
    value = count(row, value_field)
    if value is None:
        raise Unreadable(f"it has no value: give it in one of {', '.join(VALUE_FIELDS)}")
    dimensions = _dimensions(row)
    token_type = next((dimensions.pop(each) for each in TYPE_FIELDS if each in dimensions), None)
    usage = Usage({_token_type(token_type): value}) if name == LLM_TOKENS else Usage(units=value)
    if name != LLM_TOKENS and token_type is not None:
        dimensions["type"] = token_type
    own = next((words(row, each) for each in ID_FIELDS if row.get(each) not in (None, "")), None)
    model, provider = dimensions.pop("model", None), dimensions.pop("provider", None)
    return MeterEvent(
        id=own if own is not None else derived_id(NAME, str(row[_ROW])),
        time=_time(row, at),
        usage=usage,
        meter=name,
        model=model,
        provider=provider,
        publisher=publisher_of(model),
        dimensions=dimensions,
    )


def meter_name(text: str | None) -> str:
    """A meter's name in its one form: `llm tokens` is `llm_tokens`."""
    if text is None or not text.strip():
        raise Unreadable(f"it names no meter: give it in one of {', '.join(METER_FIELDS)}")
    return re.sub(r"[\s-]+", "_", text.strip()).lower()


def _dimensions(row: Row) -> dict[str, str]:
    """The object `dimensions`, and every other field or column that is none of the event's own."""
    given: dict[str, Any] = {name: value for name, value in row.items() if name not in _OWN and name != _ROW}
    found = {}
    for name, value in {**given, **nested(row, "dimensions")}.items():
        if value is None or value == "":
            continue
        if isinstance(value, (dict, list)):
            raise Unreadable(f"dimension {name} is {shown(value)}, which is no text")
        found[str(name)] = str(value)
    return found


def _token_type(text: str | None) -> str:
    if text is None:
        raise Unreadable("tokens need a type: give it as dimension `type`, such as input or output")
    name = re.sub(r"[\s-]+", "_", text.strip()).lower()
    found = name if name in TOKEN_TYPES else TYPES.get(name)
    if found is None:
        raise Unreadable(f"{text!r} is no token type. Known: {', '.join([*TOKEN_TYPES, *TYPES])}")
    return found


def _time(row: Row, at: datetime | None) -> datetime:
    if any(row.get(each) not in (None, "") for each in TIME_FIELDS):
        return moment(row, *TIME_FIELDS)
    if at is None:
        raise Unreadable(f"it has no time: give one in the row ({', '.join(TIME_FIELDS)}), or for all with --at")
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _first(row: Row, names: Collection[str]) -> str | None:
    return next((found for each in names if (found := words(row, each)) is not None), None)


def _digest(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise PartnerError(f"{path} is no plain file, and it is read more than once: write it into one")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:32]
