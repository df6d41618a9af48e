"""Records: what is reported to a billing backend of an event, the requests they go out in, and what became of them.

Of an event that makes several records some may be refused. What is left of it is an event too: the part that makes just
those records again, with the same identifiers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

from token_meter.errors import Refusal
from token_meter.event import MeterEvent
from token_meter.sinks.mapping import Measure
from token_meter.usage import Usage

IDENTIFIER_CHARACTERS_MAX: Final = 100
"""The longest identifier that every backend takes (Stripe's limit); a longer one is replaced by its hash."""


BACK: Final = "-"
"""Begins the key of a record that takes a measure back."""


PART: Final = "part:"
"""Begins those anomalies of an event in quarantine that name the records which are all that is left of it to report."""


class Record(NamedTuple):
    """One thing to report: a measure of an event, for a customer as the destination knows it.

    `identifier` is the same however often the event is sent. `reverses` is the identifier of an earlier record that
    this one takes back, with a negative value.
    """

    event: MeterEvent
    measure: Measure
    customer: str
    identifier: str
    time: datetime
    value: int
    reverses: str | None = None

    @property
    def key(self) -> str:
        """What tells the records of one event apart."""
        return self.measure.key if self.reverses is None else f"{BACK}{self.measure.key}"


class Call(NamedTuple):
    """One request to be made, and the records that are in it."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    records: Sequence[Record]


class Refused(NamedTuple):
    """A record that the destination does not take, and why."""

    record: Record
    reason: str
    awaits: str | None = None


class Verdict(NamedTuple):
    """What an answer means for the records of a call: what was refused, and what has to be sent again without it.

    Each sequence of `again` becomes a call of its own. Whatever is in neither is taken.
    """

    refused: Sequence[Refused] = ()
    again: Sequence[Sequence[Record]] = ()


TAKEN: Final = Verdict()


def identifier_of(event: str, key: str) -> str:
    """What a record is known by at the destination: the same for each attempt, within the limit of every backend."""
    plain = f"{event}:{key}"
    if len(plain) <= IDENTIFIER_CHARACTERS_MAX and plain.isascii():
        return plain
    return sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def records_of(event: MeterEvent, measures: Sequence[Measure], customer: str) -> list[Record]:
    """The records of an event for these measures of it: there are several for each event that is delivered."""
    id, time = event.id, event.time
    return [
        _new(Record, (event, measure, customer, identifier_of(id, measure.key), time, measure.value, None))
        for measure in measures
    ]


_new: Final = tuple.__new__


def parts_refused(records: Sequence[Record], refused: Sequence[Refused]) -> list[Refusal]:
    """Refused records as refusals of their events: of the part that was refused, where the rest was taken.

    The part makes the same records again, with the same identifiers, and no others.
    """
    if not refused:
        return []
    whole: dict[int, list[Record]] = {}
    for record in records:
        whole.setdefault(id(record.event), []).append(record)
    by_event: dict[int, list[Refused]] = {}
    for each in refused:
        by_event.setdefault(id(each.record.event), []).append(each)
    return [_part_refused(mine, whole[id]) for id, mine in by_event.items()]


def _part_refused(refused: Sequence[Refused], records: Sequence[Record]) -> Refusal:
    reasons = list(dict.fromkeys(each.reason for each in refused))
    awaits = next((each.awaits for each in refused if each.awaits is not None), None)
    part = part_of(refused[0].record.event, records, kept=[each.record for each in refused])
    return Refusal(part, "; ".join(reasons), awaits)


def part_of(event: MeterEvent, records: Sequence[Record], *, kept: Sequence[Record]) -> MeterEvent:
    """What is left of an event when only these of its records are still to be reported.

    Where its other records are made of other token types it is the event without those. Otherwise, and for
    corrections, it names what is left among its anomalies, for `whole_of` to read.
    """
    keys = {record.key for record in kept}
    others = [record for record in records if record.key not in keys]
    if not others:
        return event
    types = {name for record in kept for name in record.measure.types}
    whole, marked = whole_of(event)
    apart = all(record.measure.types and types.isdisjoint(record.measure.types) for record in others)
    if apart and marked is None and event.corrects is None and all(record.measure.types for record in kept):
        return replace(event, usage=Usage({name: event.usage[name] for name in event.usage if name in types}))
    return replace(event, anomalies=(*whole.anomalies, *(f"{PART}{key}" for key in sorted(keys))))


def whole_of(event: MeterEvent) -> tuple[MeterEvent, frozenset[str] | None]:
    """An event as it was, and the keys of the records that are left of it to report; None: all of them."""
    keys = event.anomalies and frozenset(each.removeprefix(PART) for each in event.anomalies if each.startswith(PART))
    if not keys:
        return event, None
    return replace(event, anomalies=tuple(each for each in event.anomalies if not each.startswith(PART))), keys


def refused_or_halved(records: Sequence[Record], reason: str) -> Verdict:
    """A backend refused a request as a whole and does not say why: find the record that it will not take."""
    if len(records) == 1:
        return Verdict(refused=[Refused(records[0], reason)])
    middle = len(records) // 2
    return Verdict(again=[records[:middle], records[middle:]])


def chunks(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    """Pieces of at most `size` records, in order."""
    for start in range(0, len(records), size):
        yield records[start : start + size]


@lru_cache(maxsize=1024)
def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970, rounded down: a record stays in the hour and the month that its event is of.

    Remembered because the records of one event have one time.
    """
    return (moment - _EPOCH) // _MILLISECOND


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


_MILLISECOND: Final = timedelta(milliseconds=1)
