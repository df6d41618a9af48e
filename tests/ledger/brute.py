"""The ledger's answers computed the slow way, from a plain list of events."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, timedelta
from zoneinfo import ZoneInfo

from token_meter.usage import TOKEN_TYPES, Usage


def usage(events, *, by, bucket=None, time_zone="UTC", since=None, until=None, **wanted):
    """What `Ledger.usage` should answer, as a set of (group, usage, events)."""
    zone = UTC if time_zone == "UTC" else ZoneInfo(time_zone)
    groups = defaultdict(list)
    for event in as_they_count(events):
        if (since is None or event.time >= since) and (until is None or event.time < until) and matches(event, wanted):
            start = {"bucket": bucket_start(event.time.astimezone(zone), bucket).isoformat()} if bucket else {}
            plain = {name: value(event, name) for name in by if name not in ("token_type", "headline")}
            groups[frozenset({**start, **plain}.items())].append(event)
    rows = set()
    for group, members in groups.items():
        total = summed(members)
        count = sum(sign(event) for event in members)
        if not count and not total:
            continue
        for types, part in split(by, total):
            rows.add((frozenset({*group, *types.items()}), part, count))
    return rows


def sign(event):
    return 1 if event.corrects is None else -1


def summed(events):
    """The usage of these events, less that of corrections."""
    total = {}
    for event in events:
        for name, quantity in event.usage.items():
            total[name] = total.get(name, 0) + sign(event) * quantity
    return Usage.of({name: quantity for name, quantity in total.items() if quantity})


def as_they_count(events):
    """A correction counts where the event it names does."""
    known = {event.id: event for event in events}
    for event in events:
        original = known.get(event.corrects)
        yield event if original is None else replace(original, id=event.id, usage=event.usage, corrects=event.corrects)


def answered(rows):
    """The ledger's rows in the same form."""
    return {(frozenset(row.group.items()), row.usage, row.events) for row in rows}


def matches(event, wanted):
    dimensions = wanted.get("dimensions", {})
    plain = all(getattr(event, name) == value for name, value in wanted.items() if name != "dimensions")
    return plain and all(event.dimensions.get(name) == value for name, value in dimensions.items())


def value(event, name):
    if name == "correction":
        return "no" if event.corrects is None else "yes"
    return getattr(event, name) if hasattr(event, name) else event.dimensions.get(name)


def split(by, total):
    if "token_type" in by:
        for name in total:
            both = {"token_type": name, "headline": TOKEN_TYPES[name].headline}
            yield {key: both[key] for key in both if key in by}, Usage.of({name: total[name]})
    elif "headline" in by:
        for headline in {TOKEN_TYPES[name].headline for name in total}:
            mine = {name: total[name] for name in total if TOKEN_TYPES[name].headline == headline}
            yield {"headline": headline}, Usage.of(mine)
    else:
        yield {}, total


def bucket_start(shown, bucket):
    """The first minute that belongs to the same local month, day or hour, found by walking back in real time."""

    def same(other):
        if bucket == "hour":
            return (other.date(), other.hour, other.utcoffset()) == (shown.date(), shown.hour, shown.utcoffset())
        length = 2 if bucket == "month" else 3
        return other.timetuple()[:length] == shown.timetuple()[:length]

    zone = shown.tzinfo
    instant = shown.astimezone(UTC).replace(second=0, microsecond=0)
    for step in (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)):
        while same((instant - step).astimezone(zone)):
            instant -= step
    return instant.astimezone(zone)
