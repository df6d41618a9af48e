"""OpenMeter's meters and meter queries: what an event is worth, and the rows that answer a query."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Final, NamedTuple, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from token_meter.testing.backends.base import Request
from token_meter.testing.backends.values import number, read_json, write_json

AGGREGATIONS: Final = ("SUM", "COUNT", "UNIQUE_COUNT", "AVG", "MIN", "MAX", "LATEST")
WINDOWS: Final = ("MINUTE", "HOUR", "DAY", "MONTH")
SLUG: Final = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
NAME: Final = re.compile(r"[a-zA-Z_][0-9a-zA-Z_]*")
PATH: Final = re.compile(r"\$((?:\.[A-Za-z_][\w-]*)+)")
"""The JSON paths that this fake reads: names in a row."""
FILTER: Final = re.compile(r"filterGroupBy\[(.*)\]")

Value = Decimal | str
"""What an event is worth to a meter; a text only for UNIQUE_COUNT."""


class Meter(NamedTuple):
    """What is counted of the events of a type. `group_by` maps names to JSON paths; the last two are these, split."""

    slug: str
    event_type: str
    value_property: str | None
    aggregation: str
    group_by: Mapping[str, str]
    value_names: tuple[str, ...]
    group_names: tuple[tuple[str, ...], ...]

    @classmethod
    def checked(
        cls, slug: str, event_type: str, value_property: str | None, aggregation: str, group_by: Mapping[str, str]
    ) -> Self:
        """Raises ValueError for what is no meter."""
        if not SLUG.fullmatch(slug) or len(slug) > 64:
            raise ValueError(f"the slug {slug!r} must be up to 64 lower-case letters and digits, in words joined by _")
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, not {aggregation!r}")
        if not event_type:
            raise ValueError("event_type must not be empty")
        if (value_property is None) != (aggregation == "COUNT"):
            raise ValueError("value_property is required, except for COUNT, where it is not allowed")
        for path in [*([value_property] if value_property else []), *group_by.values()]:
            if not PATH.fullmatch(path):
                raise ValueError(f"this fake reads JSON paths such as $.tokens or $.usage.input, not {path!r}")
        if wrong := [name for name in group_by if not NAME.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is no name to group by: letters, digits and _ are")
        paths = (_names(value_property or ""), tuple(_names(path) for path in group_by.values()))
        return cls(slug, event_type, value_property, aggregation, dict(group_by), *paths)

    def value(self, data: Mapping[str, Any]) -> Value:
        """What an event is worth. Raises ValueError, in OpenMeter's words, if that cannot be said."""
        if self.value_property is None:
            return Decimal(1)
        raw = _find(data, self.value_names)
        if raw is None:
            raise ValueError(f'missing value property: "{self.value_property}"')
        if self.aggregation == "UNIQUE_COUNT":
            return _text(raw)
        exact = number(raw)
        if exact is None:
            raise ValueError(f"value cannot be parsed as float64: {_text(raw)[:40]}")
        return exact

    def groups(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """The values that an event is grouped by; what is missing is the empty text."""
        return tuple(_text(_find(data, names)) for names in self.group_names)


class Row(NamedTuple):
    """One event as a meter counts it."""

    at: int
    subject: str
    value: Value
    groups: tuple[str, ...]


class Query(NamedTuple):
    """What is asked of a meter."""

    start: int | None
    end: int | None
    window: str | None
    zone: tzinfo
    subjects: tuple[str, ...]
    group_by: tuple[str, ...]
    filters: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, meter: Meter, request: Request) -> Self:
        """From the parameters of a GET or the object of a POST. Raises ValueError for what is no query."""
        given = _parameters(request) if request.method == "GET" else _object(request)
        if "advancedMeterGroupByFilters" in given:
            raise ValueError("this fake knows no advancedMeterGroupByFilters: use filterGroupBy")
        start, end = _seconds("from", given.get("from")), _seconds("to", given.get("to"))
        if start is not None and end is not None and start >= end:
            raise ValueError("from must be before to")
        window = given.get("windowSize")
        if window not in (None, *WINDOWS):
            raise ValueError(f"windowSize must be one of {', '.join(WINDOWS)}")
        subjects = _texts("subject", given.get("subject"))
        group_by = list(_texts("groupBy", given.get("groupBy")))
        # A filter for subjects groups by them too.
        if subjects and "subject" not in group_by:
            group_by.append("subject")
        filters = {name: _texts(name, value) for name, value in (given.get("filterGroupBy") or {}).items()}
        for name in (*group_by, *filters):
            if name not in meter.group_by and name != "subject":
                raise ValueError(f"invalid group by: {name}")
        zone = _zone(given.get("windowTimeZone") or "UTC")
        return cls(start, end, window, zone, subjects, tuple(sorted(set(group_by))), filters)


def rows_of(meter: Meter, query: Query, events: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows of the answer: by window, if windows were asked for, and by group."""
    names = list(meter.group_by)
    parts: defaultdict[tuple[datetime | None, tuple[str, ...]], list[Row]] = defaultdict(list)
    for event in events:
        known = {"subject": event.subject, **dict(zip(names, event.groups, strict=True))}
        if _wanted(query, event, known):
            window = _start(event.at, query.window, query.zone) if query.window else None
            parts[window, tuple(known[name] for name in query.group_by)].append(event)
    if not parts and not query.window and not query.group_by and meter.aggregation in ("COUNT", "UNIQUE_COUNT"):
        parts[None, ()] = []
    order = sorted(parts, key=lambda part: (part[0] is not None and part[0].timestamp(), part[1]))
    return [_row(query, part, parts[part], AGGREGATE[meter.aggregation](parts[part])) for part in order]


def _wanted(query: Query, event: Row, known: Mapping[str, str]) -> bool:
    if (query.start is not None and event.at < query.start) or (query.end is not None and event.at >= query.end):
        return False
    if query.subjects and event.subject not in query.subjects:
        return False
    return all(known[name] in allowed for name, allowed in query.filters.items())


def _row(
    query: Query, part: tuple[datetime | None, tuple[str, ...]], events: list[Row], total: Decimal
) -> dict[str, Any]:
    window, group = part
    if window is not None and query.window is not None:
        start, end = int(window.timestamp()), int(_end(window, query.window).timestamp())
    else:
        # Without windows, from the minute of the first event to that of the last, unless the query says.
        times = [event.at for event in events] or [0]
        start = min(times) // 60 * 60 if query.start is None else query.start
        end = max(times) // 60 * 60 + 60 if query.end is None else query.end
    groups = dict(zip(query.group_by, group, strict=True))
    return {
        "value": _double(total),
        "windowStart": moment(start),
        "windowEnd": moment(end),
        "subject": groups.pop("subject", None),
        "groupBy": groups,
    }


def _numbers(events: Iterable[Row]) -> list[Decimal]:
    return [event.value for event in events if isinstance(event.value, Decimal)]


def _sum(events: Iterable[Row]) -> Decimal:
    """Exact, also beyond the 28 digits of Python's decimals."""
    numbers = _numbers(events)
    return Decimal(sum(int(each) for each in numbers)) + sum((each - int(each) for each in numbers), Decimal())


AGGREGATE: Final[Mapping[str, Callable[[list[Row]], Decimal]]] = {
    "SUM": _sum,
    "COUNT": lambda events: Decimal(len(events)),
    "UNIQUE_COUNT": lambda events: Decimal(len({event.value for event in events})),
    "AVG": lambda events: _sum(events) / len(events),
    "MIN": lambda events: min(_numbers(events)),
    "MAX": lambda events: max(_numbers(events)),
    "LATEST": lambda events: _numbers([max(events, key=lambda event: event.at)])[0],
}


def _double(value: Decimal) -> float | int:
    """As Go writes a float64: without a point if it is whole."""
    rounded = float(value)
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e21 else rounded


def _start(at: int, window: str, zone: tzinfo) -> datetime:
    """Where the window of a moment starts, in a time zone."""
    local = datetime.fromtimestamp(at, zone).replace(second=0, microsecond=0)
    place = WINDOWS.index(window)
    if place >= WINDOWS.index("HOUR"):
        local = local.replace(minute=0)
    if place >= WINDOWS.index("DAY"):
        local = local.replace(hour=0)
    if place >= WINDOWS.index("MONTH"):
        local = local.replace(day=1)
    return local


def _end(start: datetime, window: str) -> datetime:
    if window == "MONTH":
        return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    if window == "DAY":
        return start + timedelta(days=1)
    # Hours and minutes last as long as they last, whatever the clocks do.
    return start.astimezone(UTC) + (timedelta(hours=1) if window == "HOUR" else timedelta(minutes=1))


def moment(seconds: int) -> str:
    """RFC 3339."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}Z"


def _names(path: str) -> tuple[str, ...]:
    return tuple(path.removeprefix("$.").split("."))


def _find(data: Any, names: tuple[str, ...]) -> Any:
    """The value at a path of names; None if there is none."""
    for name in names:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _text(value: Any) -> str:
    """As ClickHouse reads a value of JSON: a text is itself, nothing is the empty text."""
    return value if isinstance(value, str) else "" if value is None else write_json(value)


def _parameters(request: Request) -> dict[str, Any]:
    """`subject` and `groupBy` may be given several times, `filterGroupBy[name]` for several names."""
    given: dict[str, Any] = {}
    for name, values in request.query.items():
        if found := FILTER.fullmatch(name):
            given.setdefault("filterGroupBy", {})[found[1]] = values
        else:
            given[name] = values if name in ("subject", "groupBy") else values[-1]
    return given


def _object(request: Request) -> dict[str, Any]:
    document = read_json(request.body or b"{}")
    if not isinstance(document, dict):
        raise ValueError("a query is an object")
    return document


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"{name} must be texts")
    return tuple(texts)


def _seconds(name: str, value: Any) -> int | None:
    """OpenMeter compares whole seconds."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be as RFC 3339 says") from None
    if found.tzinfo is None:
        raise ValueError(f"{name} must be as RFC 3339 says, with an offset or Z")
    return int(found.timestamp() // 1)


def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"invalid time zone: {name}") from None
