"""What every billing backend shares: how records are reported, in requests whose answers say what was refused.

    event -> records (`recording`) -> requests -> answers -> refusals

A vendor's file says how records are put into requests and what its answers mean; everything else is here. A batch is
sent as a whole, and what was refused of it is raised at the end, so that one bad event holds up no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

from token_meter.errors import Refusal, Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks.base import Reported, Sketch
from token_meter.sinks.http import REFUSING, Answer, Http
from token_meter.sinks.lock import ForkLock
from token_meter.sinks.mapping import Mapped
from token_meter.sinks.recording import Customers as Customers
from token_meter.sinks.recording import Mode as Mode
from token_meter.sinks.recording import Recording
from token_meter.sinks.records import (
    TAKEN,
    Call,
    Record,
    Refused,
    Verdict,
    chunks,
    parts_refused,
    refused_or_halved,
)
from token_meter.steps import Steps, worked_off


class Prepared(list[MeterEvent]):
    """Events, with what a sink made of them before it sends them."""

    __slots__ = ("calls", "fit", "records", "refusals", "refused", "sink")

    sink: BackendSink
    records: list[Record]
    """All that they make."""
    fit: list[Record]
    """Those of them that can be sent."""
    calls: list[Call]
    """The requests that report those."""
    refusals: list[Refusal]
    """The events that make no records."""
    refused: list[Refused]
    """The records that cannot be sent."""


class BackendSink(Recording):
    """The base of the sinks that report to a billing backend. Subclasses write `call` and, if need be, `judge`.

    It works ahead: what it can do before sending it does for the next batch while it waits for answers (`Preparing`).
    """

    def __init__(
        self,
        *,
        name: str,
        http: Http,
        mapping: Mapped,
        customers: Customers,
        unattributed: str | None = None,
        mode: Mode = "live",
        where: Callable[[MeterEvent], bool] | None = None,
    ) -> None:
        super().__init__(
            name=name, mapping=mapping, customers=customers, unattributed=unattributed, mode=mode, where=where
        )
        self._http = http
        self._lock = ForkLock()
        self._taken: set[str] = set()

    # ---- what a vendor's file writes ----

    records_max: ClassVar[int] = 100
    """So many records one call holds at most."""

    def call(self, records: Sequence[Record]) -> Call:
        """The request that reports these records."""
        raise NotImplementedError

    def judge(self, answer: Answer, call: Call) -> Verdict:
        """What an answer that is no success means. By default a refusal is as narrowed down as it can be, by halves.

        Raises Retry where the same call should be made again later.
        """
        if answer.status not in REFUSING:
            raise Retry(
                f"{self.shown} answered HTTP {answer.status}: {answer.text or 'nothing'}. Nothing is wrong with the "
                f"events; is {self._http.server} the right address?"
            )
        return refused_or_halved(call.records, f"{self.shown} (HTTP {answer.status}): {answer.text}")

    def unfit(self, records: Sequence[Record]) -> list[Refused]:
        """Those of the records that cannot be sent at all, and why."""
        return []

    def calls(self, records: Sequence[Record]) -> Iterator[Call]:
        """The requests that report these records, as `send` makes them if none is refused."""
        for piece in chunks(records, self.records_max):
            yield self.call(piece)

    # ---- the sink ----

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Report a batch. Retry while the backend cannot take it, Rejected for what it refused of it."""
        if not events:
            return
        ready = events if isinstance(events, Prepared) and events.sink is self else None
        if ready is None or ready.refusals:
            # Ahead of its turn something was missing that may be there by now.
            ready = worked_off(self.prepare(events))
        refused = list(ready.refused)
        if ready.fit:
            with self._lock:
                refused += self.deliver(*self._left(ready))
                self._taken.clear()
        refusals = [*ready.refusals, *parts_refused(ready.records, refused)]
        if refusals:
            raise Rejected.each(refusals, rest_taken=True)

    def prepare(self, events: Sequence[MeterEvent]) -> Steps[Prepared]:
        """Make the requests that report a batch, in small steps."""
        ready = Prepared(events)
        ready.sink = self
        ready.records, ready.refusals = yield from self.recording(self.chosen(events))
        ready.fit, ready.refused = self._sorted_out(ready.records)
        ready.calls = []
        for call in self.calls(ready.fit):
            ready.calls.append(call)
            yield
        return ready

    def chosen(self, events: Sequence[MeterEvent]) -> Sequence[MeterEvent]:
        """The events of a batch that are reported at all."""
        return events

    def _left(self, ready: Prepared) -> tuple[Sequence[Record], Iterable[Call]]:
        """Of a batch that failed half-way, what was acknowledged is not sent again by this process."""
        if not self._taken:
            return ready.fit, ready.calls
        left = [record for record in ready.fit if record.identifier not in self._taken]
        return left, self.calls(left)

    def _sorted_out(self, records: Sequence[Record]) -> tuple[list[Record], list[Refused]]:
        """What can be sent, each identifier once, and what cannot."""
        refused = self.unfit(records)
        out = {id(each.record) for each in refused}
        fit: dict[str, Record] = {}
        for record in records:
            if id(record) not in out:
                # Of two events with one id the first counts, as in the ledger.
                fit.setdefault(record.identifier, record)
        return list(fit.values()), refused

    def deliver(self, records: Sequence[Record], calls: Iterable[Call]) -> list[Refused]:
        """Make the calls, which report these records; what was refused. Raises Retry."""
        refused: list[Refused] = []
        for call in calls:
            refused += self.settle(call)
        return refused

    def settle(self, call: Call) -> list[Refused]:
        """Make one request, and those that follow from its answer, until everything in it is taken or refused."""
        refused: list[Refused] = []
        waiting = deque([call])
        while waiting:
            call = waiting.popleft()
            answer = self.post(call)
            verdict = TAKEN if answer.ok else self.judge(answer, call)
            refused += verdict.refused
            waiting.extendleft(self.call(piece) for piece in reversed(verdict.again) if piece)
            self.took(call.records, but=[*verdict.again, [each.record for each in verdict.refused]])
        return refused

    def post(self, call: Call) -> Answer:
        """Make one request. Raises Retry."""
        return self._http.post(call.path, call.body, headers=call.headers)

    def took(self, records: Iterable[Record], *, but: Sequence[Sequence[Record]] = ()) -> None:
        """The backend has answered for these, except for some of them."""
        self._taken.update(record.identifier for record in records)
        self._taken.difference_update(record.identifier for piece in but for record in piece)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._http.server!r}, name={self.name!r}, mode={self.mode!r})"

    # ---- what can be asked of it ----

    def sketch(self, events: Sequence[MeterEvent]) -> tuple[list[Sketch], list[Refusal]]:
        """The requests that `send` would make for these events, and what it would refuse before it makes any."""
        ready = worked_off(self.prepare(events))
        sketches = [Sketch("POST", f"{self._http.url}{call.path}", self.readable(call)) for call in ready.calls]
        return sketches, [*ready.refusals, *parts_refused(ready.records, ready.refused)]

    def readable(self, call: Call) -> str:
        """The body of a call as text."""
        return call.body.decode()

    def reported(self, events: Sequence[MeterEvent]) -> tuple[list[tuple[MeterEvent, Reported]], list[Refusal]]:
        """What these events make the backend count."""
        records, refusals = self.records(events)
        told = (Reported(each.customer, each.measure.meter, each.value, each.time) for each in records)
        return list(zip((each.event for each in records), told, strict=True)), refusals
