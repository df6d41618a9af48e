"""What a billing backend counted, beside the ledger: by customer and meter, every difference explained or not.

    ledger  =  there  +  in flight  +  in quarantine  +  given up  +  unexplained

The ledger's side is what the sink's own mapping makes of every event of the period, so a rule that leaves something out
shows as nothing on both sides; `left_out` counts those events. Events that the sink refuses before it sends them (a
customer without an id) are on neither side, and counted in `refused`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from token_meter.backlog import waiting_ids
from token_meter.decisions import quarantined
from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder
from token_meter.sinks.base import Counting, Reported, sink_name

if TYPE_CHECKING:
    from token_meter.ledger import Ledger

PIECE: Final = 1_000
"""So many events are mapped at once."""

PAIRS_MAX: Final = 10_000
"""So many pairs of customer and meter a backend is asked about."""

Pair = tuple[str, str]
Watched = Callable[[Iterable[MeterEvent]], Iterable[MeterEvent]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One customer (as the backend knows them) and one meter. All numbers are of the meter.

    `in_flight` waits in the journal, `quarantined` waits for a decision or was refused, `given_up` was discarded.
    `estimated` is how much of `ledger` is not the provider's own count; it explains nothing, it is worth knowing.
    """

    customers: tuple[str, ...]
    external: str
    meter: str
    ledger: int
    there: int
    in_flight: int = 0
    quarantined: int = 0
    given_up: int = 0
    estimated: int = 0

    @property
    def unexplained(self) -> int:
        """What is missing there (or too much, if negative) for no reason that we know."""
        return self.ledger - self.there - self.in_flight - self.quarantined - self.given_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """Every line of a period [since, until), and the events that are on neither side."""

    sink: str
    since: datetime
    until: datetime
    lines: tuple[Line, ...]
    events: int
    left_out: int
    refused: Mapping[str, int] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether every difference is explained."""
        return not any(line.unexplained for line in self.lines)


def reconcile(
    ledger: Ledger,
    sink: Counting,
    journal: Path,
    *,
    since: datetime,
    until: datetime,
    watched: Watched = iter,
) -> Reconciliation:
    """Compare what the sink's backend counted in [since, until) with the ledger.

    `watched` is passed every event that is read, for a progress display. Raises ValueError for a period that is no
    multiple of the sink's `counted_step`, SinkError when the backend cannot tell, LedgerError when the ledger cannot.
    """
    _check_period(sink, since, until)
    name = sink_name(sink)  # type: ignore[arg-type]
    sums = _Sums(sink, since, until)
    # A correction takes back usage at the time of what it corrects, so later events matter too.
    sums.add_all(watched(ledger.iter_events(since=since)), waiting_ids(journal, name))
    sums.set_aside(_in_quarantine(journal, name))
    if len(sums.ledger) > PAIRS_MAX:
        raise ValueError(f"more than {PAIRS_MAX:,} pairs of customer and meter: ask for a shorter period")
    there = sink.counted(since=since, until=until, pairs=list(sums.ledger)) if sums.ledger else {}
    lines = tuple(sums.line(pair, there.get(pair, 0)) for pair in sorted(sums.ledger))
    return Reconciliation(
        sink=name,
        since=since,
        until=until,
        lines=lines,
        events=sums.events,
        left_out=sums.left_out,
        refused=dict(sums.refused),
    )


class _Sums:
    def __init__(self, sink: Counting, since: datetime, until: datetime) -> None:
        self._sink = sink
        self._since = since
        self._until = until
        self.ledger: Counter[Pair] = Counter()
        self._in_flight: Counter[Pair] = Counter()
        self._quarantined: Counter[Pair] = Counter()
        self._given_up: Counter[Pair] = Counter()
        self._estimated: Counter[Pair] = Counter()
        self._customers: dict[Pair, set[str]] = {}
        self.refused: Counter[str] = Counter()
        self.events = self.left_out = 0

    def add_all(self, events: Iterable[MeterEvent], waiting: set[str]) -> None:
        stream = iter(events)
        while piece := list(islice(stream, PIECE)):
            inside = [event for event in piece if event.time < self._until or event.corrects is not None]
            reported, refusals = self._sink.reported(inside)
            self.events += sum(event.time < self._until for event in inside)
            named = {event.id for event, _ in reported} | {refusal.event.id for refusal in refusals}
            self.left_out += sum(event.id not in named and event.time < self._until for event in inside)
            for refusal in refusals:
                self.refused[refusal.reason] += 1
            for event, what in reported:
                self._add(event, what, in_flight=event.id in waiting)

    def _add(self, event: MeterEvent, what: Reported, *, in_flight: bool) -> None:
        if not self._since <= what.time < self._until:
            return
        pair = (what.customer, what.meter)
        self.ledger[pair] += what.value
        if event.customer is not None:
            self._customers.setdefault(pair, set()).add(event.customer)
        if in_flight:
            self._in_flight[pair] += what.value
        if event.status == "estimated":
            self._estimated[pair] += what.value

    def set_aside(self, entries: Iterable[tuple[MeterEvent, bool]]) -> None:
        """What the quarantine holds; of an event that was refused in part, that part."""
        for event, discarded in entries:
            reported, _ = self._sink.reported([event])
            sums = self._given_up if discarded else self._quarantined
            for _, what in reported:
                if self._since <= what.time < self._until:
                    sums[(what.customer, what.meter)] += what.value

    def line(self, pair: Pair, there: int) -> Line:
        return Line(
            customers=tuple(sorted(self._customers.get(pair, ()))),
            external=pair[0],
            meter=pair[1],
            ledger=self.ledger[pair],
            there=there,
            in_flight=self._in_flight[pair],
            quarantined=self._quarantined[pair],
            given_up=self._given_up[pair],
            estimated=self._estimated[pair],
        )


def _in_quarantine(journal: Path, sink: str) -> Iterator[tuple[MeterEvent, bool]]:
    """The events that the sink does not have because they were refused, and whether they were given up."""
    if sink not in (JournalFolder(journal).registered() or ()):
        return
    for entry in quarantined(journal, sink):
        if entry.event is None or entry.state == "delivered":
            continue
        try:
            yield MeterEvent.from_json(entry.event), entry.state == "discarded"
        except (InvalidEvent, NewerSchema):
            continue


def _check_period(sink: Counting, since: datetime, until: datetime) -> None:
    step = sink.counted_step
    if since >= until:
        raise ValueError("the period ends before it begins")
    for name, moment in (("begin", since), ("end", until)):
        if (moment - _EPOCH) % step:
            raise ValueError(f"the period has to {name} at a multiple of {step} (UTC), not {moment.isoformat()}")


def aligned(moment: datetime, step: timedelta) -> datetime:
    """The last moment before this one at which a backend can begin or end a period."""
    return moment - (moment - _EPOCH) % step


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
