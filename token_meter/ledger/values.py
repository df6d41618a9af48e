"""The plain values that go into and come out of a ledger; nothing here needs a database."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from enum import Enum
from typing import Final, Literal, NamedTuple, TypeAlias, TypedDict

from token_meter.event import MeterEvent
from token_meter.usage import TOKEN_TYPES, Usage

Mode: TypeAlias = Literal["live", "test"]
MODES: Final = ("live", "test")
"""Real customers and those of a trial, kept apart everywhere."""


class Anything(Enum):
    """The type of `ANY`."""

    ANY = "any"

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = Anything.ANY
"""The filter value that matches everything; None matches only what has no value (an unattributed event)."""

Wanted: TypeAlias = str | Literal[Anything.ANY] | None
"""One value to look for, None for "has none", ANY for all."""


When: TypeAlias = datetime | date | str | None
"""A moment, or None for an open end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which events are meant; every field must match."""

    customer: Wanted = ANY
    provider: Wanted = ANY
    publisher: Wanted = ANY
    model: Wanted = ANY
    operation: Wanted = ANY
    status: Wanted = ANY
    meter: Wanted = ANY
    mode: Wanted = ANY
    host: Wanted = ANY
    dimensions: Mapping[str, str | None] = field(default_factory=dict)

    def columns(self) -> dict[str, str | None]:
        """The filters on columns that narrow anything."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "dimensions"}
        return {name: value for name, value in given.items() if value is not ANY}


class EventFilters(TypedDict, total=False):
    """What events can be narrowed by; all that is given must match.

    Each of the first nine is one value, None for "has none", or ANY. `dimensions` maps names to values in the
    same way. `since` <= time < `until`: a datetime, a date (its start) or ISO text; what has no offset of its own
    is local to `time_zone`, "UTC" unless given.
    """

    customer: Wanted
    provider: Wanted
    publisher: Wanted
    model: Wanted
    operation: Wanted
    status: Wanted
    meter: Wanted
    mode: Wanted
    host: Wanted
    dimensions: Mapping[str, str | None]
    since: When
    until: When
    time_zone: str


class Search(NamedTuple):
    """`EventFilters` understood: the filters, and the time as microseconds since 1970."""

    filters: Filters
    since: int | None
    until: int | None


class Recorded(NamedTuple):
    """What `record` did with the events it was given; the three numbers sum to how many those were."""

    inserted: int = 0
    duplicates: int = 0
    conflicts: int = 0

    def plus(self, other: Recorded) -> Recorded:
        """Both together."""
        return Recorded(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the order (time, id): `str(cursor)` is opaque text, `Cursor.read` takes it back."""

    time: int
    id: str

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([self.time, self.id]).encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> Cursor:
        """The cursor that this text was made of; ValueError if it is none."""
        try:
            time, identity = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (ValueError, TypeError, binascii.Error):
            raise ValueError(f"{text!r} is no cursor: pass the `next` of an earlier page") from None
        if type(time) is not int or not isinstance(identity, str):
            raise ValueError(f"{text!r} is no cursor: pass the `next` of an earlier page")
        return cls(time, identity)


class EventPage(NamedTuple):
    """One page of events; `next` is the cursor of the following page, None on the last."""

    events: list[MeterEvent]
    next: str | None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The usage of one group. `row["model"]` reads the group, `row["input"]` a quantity, `row["events"]` the count.

    `group` has one entry for each name of `by`, before them "bucket" (ISO text, in the time zone asked for) if
    one was asked for. With `token_type` or `headline` in `by`, `usage` holds only that type, and `events`
    counts the events of the group whatever types they used.
    """

    group: Mapping[str, str | None]
    usage: Usage
    events: int

    def __getitem__(self, name: str) -> str | int | None:
        if name in self.group:
            return self.group[name]
        if name == "events":
            return self.events
        if name in TOKEN_TYPES:
            return self.usage.get(name, 0)
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two different events under one id.

    `kept` is the one in the ledger, `offered` the one that is not counted. `kind` is "conflict" (a human must
    look: billing fields differ) or "superseded" (`offered` was the placeholder of a call believed lost, and its
    real event arrived).
    """

    id: str
    kind: Literal["conflict", "superseded"]
    recorded: datetime
    kept: MeterEvent | None
    offered: MeterEvent


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """Totals for `doctor`. `dimensions_overflowed` names declared dimensions with more values than rollups hold."""

    events: int
    by_status: Mapping[str, int]
    unattributed: int
    with_anomalies: int
    conflicts: int
    superseded: int
    first: datetime | None
    last: datetime | None
    customers: int
    dimensions: tuple[str, ...]
    dimensions_overflowed: tuple[str, ...]
