"""Moments, time zones and buckets, and how a span of time is covered by days, hours and single events.

A moment is a number of microseconds since 1970 in UTC. Spans are half-open. Local buckets start where the
clock on the wall says so: a day may have 23 or 25 hours, and an hour may begin at half past in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from token_meter.ledger.rows import EPOCH, HOUR, MICROSECOND
from token_meter.ledger.values import When

Bucket: TypeAlias = Literal["hour", "day", "month"]

BUCKETS_MAX: Final = 50_000
"""So many buckets one query may have (five years of hours)."""

DAY: Final = 24 * HOUR


class Span(NamedTuple):
    """[start, stop), in the unit of the list it stands in, belonging to one bucket."""

    start: int
    stop: int
    bucket: int


@dataclass(frozen=True, slots=True)
class Cover:
    """Where the usage of a time is read: whole UTC days, whole hours, and events for the rest."""

    days: list[Span] = field(default_factory=list)
    hours: list[Span] = field(default_factory=list)
    events: list[Span] = field(default_factory=list)


def time_zone_of(name: str) -> tzinfo:
    """The time zone of this name (`Europe/Berlin`); ValueError if there is none."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone. Use a name like 'Europe/Berlin' or 'UTC'.") from None


def moment(when: When, zone: tzinfo) -> int | None:
    """A moment: a datetime, a date (its start), or either as ISO text; without an offset it is local to `zone`."""
    if when is None:
        return None
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            raise ValueError(f"{when!r} is no time. Write 2026-11-01 or 2026-11-01T15:30 or ...T15:30Z.") from None
    if not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day)  # noqa: DTZ001 (the zone is set below)
    if when.tzinfo is None:
        when = when.replace(tzinfo=zone)
    return micros(when)


def micros(when: datetime) -> int:
    """An aware datetime as a moment."""
    return (when - EPOCH) // MICROSECOND


def local(instant: int, zone: tzinfo) -> datetime:
    """A moment as the clock in this zone shows it."""
    return (EPOCH + MICROSECOND * instant).astimezone(zone)


class Slice(NamedTuple):
    """A bucket, as far as it lies inside what was asked for: its name, and [start, stop)."""

    name: str
    start: int
    stop: int


def slices(start: int, stop: int, *, bucket: Bucket, zone: tzinfo) -> list[Slice]:
    """Cut [start, stop) into the local hours, days or months that it touches; each is named by its own start."""
    follow = {"hour": _hour_after, "day": _day_after, "month": _month_after}[bucket]
    begin = {"hour": _hour_of, "day": _day_of, "month": _month_of}[bucket](start, zone)
    found: list[Slice] = []
    while begin < stop:
        if len(found) == BUCKETS_MAX:
            raise ValueError(f"more than {BUCKETS_MAX} buckets: set `since` and `until`, or take a longer bucket")
        end = follow(begin, zone)
        if end > start:
            found.append(Slice(local(begin, zone).isoformat(), max(begin, start), min(end, stop)))
        begin = end
    return found


def cover(parts: Iterable[Slice]) -> Cover:
    """Cover each part by whole days where they fit, then whole hours, then events."""
    covered = Cover()
    for number, part in enumerate(parts):
        first, last = -(-part.start // HOUR), part.stop // HOUR
        if first >= last:
            _span(covered.events, part.start, part.stop, number)
            continue
        _span(covered.events, part.start, first * HOUR, number)
        _span(covered.events, last * HOUR, part.stop, number)
        midnight, last_midnight = -(-first // 24), last // 24
        if midnight >= last_midnight:
            _span(covered.hours, first, last, number)
            continue
        _span(covered.hours, first, midnight * 24, number)
        _span(covered.hours, last_midnight * 24, last, number)
        _span(covered.days, midnight, last_midnight, number)
    return covered


def cover_by_events(parts: Sequence[Slice]) -> Cover:
    """Cover each part by its events, for what rollups cannot tell."""
    return Cover(events=[Span(part.start, part.stop, number) for number, part in enumerate(parts)])


def _span(spans: list[Span], start: int, stop: int, bucket: int) -> None:
    if start < stop:
        spans.append(Span(start, stop, bucket))


def _midnight(day: date, zone: tzinfo) -> int:
    # Where midnight is skipped, this is the moment the clock jumps; where it comes twice, the first.
    return micros(datetime(day.year, day.month, day.day, tzinfo=zone))


def _day_of(instant: int, zone: tzinfo) -> int:
    return _midnight(local(instant, zone).date(), zone)


def _day_after(begin: int, zone: tzinfo) -> int:
    day = local(begin, zone).date() + timedelta(days=1)
    # A zone that moves across the date line skips a day.
    while (end := _midnight(day, zone)) <= begin:
        day += timedelta(days=1)
    return end


def _month_of(instant: int, zone: tzinfo) -> int:
    return _midnight(local(instant, zone).date().replace(day=1), zone)


def _month_after(begin: int, zone: tzinfo) -> int:
    day = local(begin, zone).date()
    return _midnight(date(day.year + day.month // 12, day.month % 12 + 1, 1), zone)


def _hour_of(instant: int, zone: tzinfo) -> int:
    """The start of the local hour: the full hour, or the moment at which the clock was changed within it."""
    offset = _offset(instant, zone)
    full = (instant + offset) // HOUR * HOUR - offset
    return full if _offset(full, zone) == offset else _change(full, instant, zone)


def _hour_after(begin: int, zone: tzinfo) -> int:
    offset = _offset(begin, zone)
    full = ((begin + offset) // HOUR + 1) * HOUR - offset
    return full if _offset(full - 1, zone) == offset else _change(begin, full - 1, zone)


def _offset(instant: int, zone: tzinfo) -> int:
    offset = local(instant, zone).utcoffset()
    return 0 if offset is None else offset // MICROSECOND


def _change(before: int, after: int, zone: tzinfo) -> int:
    """The first moment of the new offset, given one moment of the old and one of the new."""
    old = _offset(before, zone)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(middle, zone) == old:
            before = middle
        else:
            after = middle
    return after
