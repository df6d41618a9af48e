"""Amberflo's usage queries: a query as it is sent, and the report that answers it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self

INTERVALS_MAX: Final = 100_000
"""Intervals of one report: eleven years of hours."""

RANGE: Final = ("startTimeInSeconds", "endTimeInSeconds")

AGGREGATIONS: Final[Mapping[str, Callable[[list[int]], int]]] = {"SUM": sum, "COUNT": len, "MIN": min, "MAX": max}


class Used(NamedTuple):
    """One counted record as queries need it. `pairs` are names and values in turn: of the dimensions and customerId."""

    millis: int
    units: int
    pairs: tuple[str, ...]

    def value(self, name: str) -> str:
        """The value of one dimension; empty if it has none."""
        names = self.pairs[::2]
        return self.pairs[2 * names.index(name) + 1] if name in names else ""


class Query(NamedTuple):
    """What is asked for."""

    meter: str
    aggregation: str
    interval: str
    start: int
    end: int
    group_by: tuple[str, ...]
    filters: Mapping[str, tuple[str, ...]]
    limit: int | None
    ascending: bool

    @classmethod
    def read(cls, document: Any, *, now: float) -> Self:
        """Raises ValueError for what is no query."""
        if not isinstance(document, dict):
            raise ValueError("a query is an object")
        meter = document.get("meterApiName")
        if not isinstance(meter, str) or not meter:
            raise ValueError("meterApiName is missing")
        times, take = _object("timeRange", document), _object("take", document)
        filters = {name: _texts("filter", value) for name, value in _object("filter", document).items()}
        return cls(
            meter,
            _one_of("aggregation", document.get("aggregation") or "SUM", AGGREGATIONS),
            _one_of("timeGroupingInterval", document.get("timeGroupingInterval"), INTERVALS),
            _integer("timeRange.startTimeInSeconds", times.get("startTimeInSeconds")),
            _integer("timeRange.endTimeInSeconds", times.get("endTimeInSeconds") or int(now) + 1),
            _texts("groupBy", document.get("groupBy") or ()),
            filters,
            _integer("take.limit", take.get("limit")) if take else None,
            take.get("isAscending") is True,
        )

    def wants(self, used: Used) -> bool:
        """Whether a record is in the range and passes the filter."""
        if not self.start * 1000 <= used.millis < self.end * 1000:
            return False
        return all(used.value(name) in allowed for name, allowed in self.filters.items())

    def metadata(self) -> dict[str, Any]:
        """The query, as the answer repeats it."""
        return {
            "account": None,
            "meterApiName": self.meter,
            "aggregation": self.aggregation,
            "timeRange": dict(zip(RANGE, (self.start, self.end), strict=True)),
            "filter": {name: list(allowed) for name, allowed in self.filters.items()},
            "groupBy": list(self.group_by),
            "take": None if self.limit is None else {"limit": self.limit, "isAscending": self.ascending},
            "timeGroupingInterval": self.interval,
        }


def report(query: Query, used: Iterable[Used], *, sparse: bool) -> dict[str, Any]:
    """The answer: per group the total and the value of each interval; `sparse` leaves out the intervals without any."""
    floor = INTERVALS[query.interval]
    groups: defaultdict[tuple[str, ...], defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for each in used:
        if query.wants(each):
            start = _seconds(floor(_moment(each.millis // 1000)))
            groups[tuple(each.value(name) for name in query.group_by)][start].append(each.units)
    aggregate = AGGREGATIONS[query.aggregation]
    totals = {group: aggregate([unit for units in parts.values() for unit in units]) for group, parts in groups.items()}
    chosen = sorted(totals, key=lambda group: (totals[group] if query.ascending else -totals[group], group))
    intervals = _intervals(query)
    return {
        "metadata": query.metadata(),
        "secondsSinceEpochIntervals": intervals,
        "clientMeters": [
            {
                "group": {"groupInfo": dict(zip(query.group_by, group, strict=True))},
                "groupValue": float(totals[group]),
                "values": _values(groups[group], sorted(groups[group]) if sparse else intervals, aggregate),
            }
            for group in chosen[: query.limit]
        ],
    }


def _values(
    parts: Mapping[int, list[int]], intervals: Iterable[int], aggregate: Callable[[list[int]], int]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for start in intervals:
        value = float(aggregate(parts[start])) if start in parts else 0.0
        before = rows[-1]["value"] if rows else value
        change = (value - before) / before * 100 if before else 100.0 * (value > 0)
        rows.append({"percentageFromPrevious": change, "value": value, "secondsSinceEpochUTC": start})
    if rows:
        rows[0]["percentageFromPrevious"] = 0.0
    return rows


def _intervals(query: Query) -> list[int]:
    floor = INTERVALS[query.interval]
    starts = []
    moment = floor(_moment(query.start))
    while (start := _seconds(moment)) < query.end:
        starts.append(start)
        if len(starts) > INTERVALS_MAX:
            raise ValueError(f"the time range has more than {INTERVALS_MAX} intervals")
        # Longer than the longest, then back to the start: months differ.
        moment = floor(moment + STEPS[query.interval])
    return starts


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _day(moment: datetime) -> datetime:
    return _hour(moment).replace(hour=0)


def _week(moment: datetime) -> datetime:
    return _day(moment) - timedelta(days=moment.weekday())


def _month(moment: datetime) -> datetime:
    return _day(moment).replace(day=1)


INTERVALS: Final = {"HOUR": _hour, "DAY": _day, "WEEK": _week, "MONTH": _month}
STEPS: Final = {
    "HOUR": timedelta(hours=1),
    "DAY": timedelta(days=1),
    "WEEK": timedelta(days=7),
    "MONTH": timedelta(days=31),
}


def _moment(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{seconds} are no seconds since 1970") from None


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _one_of(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """The documentation writes both `DAY` and `Day`."""
    if not isinstance(value, str) or value.upper() not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}")
    return value.upper()


def _object(name: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object")
    return value


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a whole number")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else (None,)
    if not all(isinstance(each, str) for each in texts):
        raise ValueError(f"{name} must be texts")
    return texts
