"""From records to events: what becomes of each row, counted so that nothing is lost in silence.

Every row that was read is an event, a repetition, skipped for a reason, or bad: the four sum to the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from token_meter.event import MeterEvent, format_time
from token_meter.partners.base import Partner, PartnerError, Skip, Unreadable, shown
from token_meter.partners.fields import Attributing
from token_meter.usage import Usage

BAD_ROWS_MAX: Final = 100
"""So many bad rows a report lists; all are counted."""

REMEMBERED_MAX: Final = 100_000
"""So many ids are remembered to notice repetitions; older ones the sinks notice, by the same ids."""

SYNC_EVENTS: Final = 1_000
"""After so many events the disk is asked whether it has them."""

OUTSIDE: Final = "outside the time asked for"
THERE: Final = "there already"


class Recording(Protocol):
    """Where events go: a Meter."""

    def record_event(self, event: MeterEvent) -> None: ...

    def sync(self) -> bool: ...


class BadRow(NamedTuple):
    """A row that is no record: where it stands, and why."""

    place: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.place}:{self.number}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of the records of a partner.

    `read` = `events` + `duplicates` + the sum of `skipped` + `bad_rows`. `bad` are the first of the bad rows.
    `without_customer`, `flagged` (by anomaly) and `by_status` are about the events, `usage` is their sum.
    `recorded` is false after a dry run, and where bad rows forbade to write (in a pull: the last page). `reached` is
    how far a pull has come.
    """

    partner: str
    read: int
    events: int
    duplicates: int
    skipped: Mapping[str, int]
    bad_rows: int
    bad: tuple[BadRow, ...]
    without_customer: int
    flagged: Mapping[str, int]
    by_status: Mapping[str, int]
    usage: Usage
    first: datetime | None
    last: datetime | None
    recorded: bool
    reached: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "partner": self.partner,
            "recorded": self.recorded,
            "read": self.read,
            "events": self.events,
            "duplicates": self.duplicates,
            "skipped": dict(self.skipped),
            "bad_rows": self.bad_rows,
            "bad": [each._asdict() for each in self.bad],
            "without_customer": self.without_customer,
            "flagged": dict(self.flagged),
            "by_status": dict(self.by_status),
            "usage": dict(self.usage),
            "first": format_time(self.first) if self.first else None,
            "last": format_time(self.last) if self.last else None,
            "reached": format_time(self.reached) if self.reached else None,
        }


class UnreadableRows(PartnerError):
    """Some rows are no records, so nothing (of a pull: nothing of their page) was brought in; `report` lists them.

    Say `skip_bad` to go on without them.
    """

    def __init__(self, report: Imported, *, of: str = "") -> None:
        listed = "; ".join(map(str, report.bad[:3])) + ("; …" if report.bad_rows > 3 else "")
        super().__init__(
            f"{report.bad_rows:,} of {report.read:,} rows cannot be read, so nothing{of} was brought in: {listed}. "
            "Mend the rows, or leave them out (skip_bad, --skip-bad)"
        )
        self.report = report
        self.of = of


class Recent:
    """Ids that were seen, the oldest forgotten first."""

    def __init__(self, known: Mapping[str, str] | None = None, *, most: int = REMEMBERED_MAX) -> None:
        self._seen = dict(known or {})
        self._most = most

    def add(self, id: str, at: str) -> bool:
        """Whether it is new."""
        if id in self._seen:
            return False
        self._seen[id] = at
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return True

    def forget(self, id: str) -> None:
        """Take it for new when it comes again."""
        self._seen.pop(id, None)

    def since(self, at: str, *, most: int) -> dict[str, str]:
        """The newest of them that happened from then on."""
        kept = [(id, moment) for id, moment in self._seen.items() if moment >= at]
        return dict(kept[-most:])


@dataclass(slots=True)
class Intake:
    """Takes rows, gives events, and counts."""

    partner: Partner
    attributing: Attributing
    since: datetime | None = None
    until: datetime | None = None
    watch: Callable[[MeterEvent], object] | None = None
    recent: Recent = field(default_factory=Recent)
    _counts: Counter[str] = field(default_factory=Counter)
    known: Callable[[str], bool] | None = None
    """Whether an event of this id is there already, and need not be written."""
    _skipped: Counter[str] = field(default_factory=Counter)
    _flagged: Counter[str] = field(default_factory=Counter)
    _statuses: Counter[str] = field(default_factory=Counter)
    _quantities: Counter[str] = field(default_factory=Counter)
    _bad: list[BadRow] = field(default_factory=list)
    _first: datetime | None = None
    _last: datetime | None = None
    last_reason: str | None = None

    def take(self, row: object, place: str, number: int) -> MeterEvent | None:
        """The event of a row, or None for one that is none, which is counted."""
        try:
            if not isinstance(row, Mapping):
                raise Unreadable(f"{shown(row)} is no record")
            event = self.attributing.attributed(self.partner.read(row), row)
        except Skip as skip:
            self._counts["read"] += 1
            self._skipped[str(skip)] += 1
            return None
        except (Unreadable, RecursionError) as problem:
            self.refuse(place, number, str(problem))
            return None
        return self._counted(event)

    def refuse(self, place: str, number: int, reason: str) -> None:
        """Count a row that could not even be read."""
        self._counts["read"] += 1
        self._counts["bad"] += 1
        self.last_reason = reason
        if len(self._bad) < BAD_ROWS_MAX:
            self._bad.append(BadRow(place, number, reason))

    @property
    def bad_rows(self) -> int:
        """How many so far."""
        return self._counts["bad"]

    def report(self, *, recorded: bool, reached: datetime | None = None) -> Imported:
        """What became of everything that was taken."""
        return Imported(
            partner=self.partner.name,
            read=self._counts["read"],
            events=self._counts["events"],
            duplicates=self._counts["duplicates"],
            skipped=dict(self._skipped),
            bad_rows=self._counts["bad"],
            bad=tuple(self._bad),
            without_customer=self._counts["without_customer"],
            flagged=dict(self._flagged),
            by_status=dict(self._statuses),
            usage=Usage(self._quantities),
            first=self._first,
            last=self._last,
            recorded=recorded,
            reached=reached,
        )

    def _counted(self, event: MeterEvent) -> MeterEvent | None:
        self._counts["read"] += 1
        if (self.since and event.time < self.since) or (self.until and event.time >= self.until):
            self._skipped[OUTSIDE] += 1
            return None
        if not self.recent.add(event.id, format_time(event.time)):
            self._counts["duplicates"] += 1
            return None
        if self.known is not None and self.known(event.id):
            self._skipped[THERE] += 1
            return None
        self._counts["events"] += 1
        self._counts["without_customer"] += event.customer is None
        self._flagged.update(each.partition(":")[0] for each in event.anomalies)
        self._statuses[event.status] += 1
        self._quantities.update(dict(event.usage))
        self._first = event.time if self._first is None else min(self._first, event.time)
        self._last = event.time if self._last is None else max(self._last, event.time)
        if self.watch is not None:
            self.watch(event)
        return event


class Writing:
    """Writes events, and makes sure from time to time that the disk has them."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._unsynced = 0

    def write(self, event: MeterEvent) -> None:
        """Raises PartnerError when the disk does not take what was written."""
        self._recording.record_event(event)
        self._unsynced += 1
        if self._unsynced >= SYNC_EVENTS:
            self.settle()

    def settle(self) -> None:
        """Force everything so far to disk. Raises PartnerError."""
        if self._unsynced and not self._recording.sync():
            raise PartnerError(
                "the disk of the journal does not take everything. Make room and do this again: what was brought in "
                "already has the same ids and is not counted twice"
            )
        self._unsynced = 0
