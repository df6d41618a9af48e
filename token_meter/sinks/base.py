"""The sink protocol: one destination for meter events, and what a destination may say about itself besides."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from token_meter.errors import Refusal
    from token_meter.event import MeterEvent
    from token_meter.steps import Steps


@runtime_checkable
class Sink(Protocol):
    """One destination. Any object with `send` is a sink; `name` is optional and defaults to the class name.

    `send` returns when every event of the batch is safely there. It raises `Retry(after=seconds)` when the
    destination cannot take the batch now, and `Rejected(events, reason)` for events it will never take; anything
    else it raises counts as a retry. Batches are delivered at least once, always with the same event ids: a
    destination that can deduplicate by id is exact. `close` is called, if present, when the meter closes, and
    `interval_seconds` says how often it wants to be given what there is, where a fifth of a second is too often.
    What else a sink can offer: `Waiting`, `Forgetful`, `Preparing`, `Bound`, `Checked`, `Counting`, `Reporting`,
    `Sketching`.
    """

    def send(self, events: Sequence[MeterEvent]) -> None: ...


@runtime_checkable
class Waiting(Protocol):
    """A sink that refuses events until something is there (`Refusal.awaits`), and can tell when it is."""

    def ready(self, awaits: str) -> bool: ...


@runtime_checkable
class Preparing(Protocol):
    """A sink that works ahead: it prepares the next batch while it waits for the answers about the one before.

    `prepare` yields between small steps and returns the same events, as a sequence that `send` takes like any other and
    finds its preparations in. It sends nothing and remembers nothing: what it made may be thrown away, and whatever is
    wrong `send` finds again. Waiting for an answer, a sink calls `token_meter.steps.step_meanwhile`.
    """

    def prepare(self, events: Sequence[MeterEvent]) -> Steps[Sequence[MeterEvent]]: ...


class Unsent(Protocol):
    """Where events are that a sink asks about by id: those that surely never reached it wait in the journal or in
    quarantine.

    `kept` are the events in quarantine, or the parts of them if the rest was taken. `perhaps` were released, and sent
    without an answer.
    """

    def __call__(self, ids: Collection[str]) -> set[str]: ...

    def kept(self, ids: Collection[str]) -> list[MeterEvent]: ...

    def perhaps(self, ids: Collection[str]) -> set[str]: ...


@runtime_checkable
class Forgetful(Protocol):
    """A sink whose destination knows ids only for `remembers_seconds`; sent again later, an event counts twice.

    `uncounted` is asked about events that may have arrived, longer ago than that: it returns those (or the parts of
    them) that are not there and have to be sent, raises `Rejected` for what it cannot tell, and `Retry` when it cannot
    ask now. `now` is the time in seconds since 1970 by which it measures.
    """

    remembers_seconds: float

    def now(self) -> float: ...

    def uncounted(self, events: Sequence[MeterEvent], *, unsent: Unsent) -> list[MeterEvent]: ...


class Accounts(Protocol):
    """What a sink may ask of the ledger beside it: who customers are elsewhere, and what was recorded.

    `shared`: other hosts may record in it and report for themselves, so what was recorded need not have come by here.
    """

    @property
    def shared(self) -> bool: ...

    def external_ids(self, customers: Collection[str], *, backend: str, mode: str) -> Mapping[str, str]: ...

    def event(self, id: str) -> MeterEvent | None: ...

    def events_with(self, ids: Collection[str]) -> Mapping[str, MeterEvent]: ...

    def events(self, *, since: datetime, until: datetime, customer: str | None = None) -> Iterable[MeterEvent]: ...

    def corrections(self, *, since: datetime) -> list[MeterEvent]: ...

    def customers_of(self, external_id: str, *, backend: str, mode: str) -> list[str]: ...


@runtime_checkable
class Bound(Protocol):
    """A sink that works with the ledger of the meter it is given to."""

    def bind(self, accounts: Accounts) -> None: ...


@runtime_checkable
class Checked(Protocol):
    """A sink that can prove its key and reach its destination: one line for each thing that is right.

    Raises `SinkError` saying what is wrong and what to do.
    """

    def check(self) -> list[str]: ...


class Report(NamedTuple):
    """What a destination says later about events that it took: `refusals` of those it names after all.

    `unnamed` counts errors about events that it does not name, `unknown` are names that belong to no event we know.
    """

    id: str
    refusals: tuple[Refusal, ...] = ()
    unnamed: int = 0
    unknown: tuple[str, ...] = ()


@runtime_checkable
class Reporting(Protocol):
    """A sink whose destination reports errors later, to a webhook. None: the request is about something else."""

    def report_in(self, body: bytes, headers: Mapping[str, str]) -> Report | None: ...


class Reported(NamedTuple):
    """One measure that an event makes for a sink: customer and meter there, how much, when. For reconciliation."""

    customer: str
    meter: str
    value: int
    time: datetime


@runtime_checkable
class Counting(Protocol):
    """A sink that can be asked what its destination has counted, in multiples of `counted_step`.

    `reported` says what events would make it count, `counted` what it has, by (customer there, meter).
    """

    counted_step: timedelta

    def reported(self, events: Sequence[MeterEvent]) -> tuple[list[tuple[MeterEvent, Reported]], list[Refusal]]: ...

    def counted(
        self, *, since: datetime, until: datetime, pairs: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], int]: ...


class Sketch(NamedTuple):
    """One request that a sink would make: where to, and its body as text."""

    method: str
    url: str
    body: str


@runtime_checkable
class Sketching(Protocol):
    """A sink that can show what it would send, without sending it; and what it would refuse before sending."""

    def sketch(self, events: Sequence[MeterEvent]) -> tuple[list[Sketch], list[Refusal]]: ...


def sink_name(sink: Sink) -> str:
    """The name a sink's cursor and quarantine are kept under."""
    return str(getattr(sink, "name", None) or type(sink).__name__)
