"""From taps to the journal: binds a call to its customer, and writes what became of it, in the caller's thread.

Nothing here raises into the caller's model call (D3): a failure is a counted problem.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from token_meter import lines
from token_meter.answers import Answer
from token_meter.clock import SYSTEM, Clock, Stamps
from token_meter.context import CURRENT, NOBODY, Attribution, Tally
from token_meter.errors import BudgetExceeded
from token_meter.providers.base import Call, Endpoint, Reading
from token_meter.providers.hosts import host_named
from token_meter.usage import Usage

if TYPE_CHECKING:
    from token_meter.budgets.door import Door
    from token_meter.estimates import Estimates

OBJECTS_MAX: Final = 10_000
"""So many objects that are read more than once are remembered; the sinks know the others by their id."""


UNREAD_MAX: Final = 4096
"""So many answers wait to be read when no reporter runs; then each call reads an old one."""


class Lines(Protocol):
    """The part of the journal the hot path writes to."""

    def opened(self, id: str, line: bytes) -> None: ...
    def ended(self, id: str, lines: bytes) -> None: ...
    def append(self, lines: bytes) -> None: ...
    def defer(self, id: str, lines: bytes) -> None: ...
    def problem(self, what: str, error: BaseException | str) -> None: ...


class CallRecorder:
    """The `Recorder` of a Meter: one per Meter, shared by every client it wraps."""

    def __init__(
        self,
        journal: Lines,
        *,
        owner: object,
        wake: Any,
        mode: str = "live",
        clock: Clock = SYSTEM,
        estimates: Estimates | None = None,
        door: Door | None = None,
    ) -> None:
        self.clock = clock
        self._counts: Counter[str] = Counter()
        self._unread: deque[Answer] = deque()
        self._journal = journal
        self._owner = owner  # a wrapped client keeps its Meter alive through this
        self._wake = wake
        self._asleep = True  # until the first event: then the reporter is started
        self.mode = mode
        self._stamps = Stamps()
        self._objects: dict[str, Usage | None] = {}
        self._include_usage: tuple[str, ...] = ()
        self._estimates = estimates
        self._door = door

    # ---- what the taps call ----

    def begin(
        self, endpoint: Endpoint, *, provider: str, host: str, model: str | None, bound: Attribution | None
    ) -> Call:
        """Bind a call to the customer of this moment and make it durable before it is sent."""
        attribution = CURRENT.get()
        if bound is not None:
            attribution = bound if attribution is NOBODY else attribution.within(bound.customer, bound.dimensions)
        call = Call()
        clock = self.clock
        call.id = clock.mint()
        call.attribution = attribution
        call.endpoint = endpoint
        call.operation = endpoint.operation
        call.provider = provider
        call.host = host
        call.model_requested = model
        call.recorder = self
        call.began = clock.monotonic()
        call.static = lines.static_part(call, self.mode)
        if self._door is not None and endpoint.ask is not None:
            call.guarded = self._door.guards(attribution.customer, attribution.dimensions)
        self._journal.opened(call.id, lines.opened(call, at=self.stamp()))
        return call

    def admit(self, call: Call, body: Mapping[str, Any]) -> None:
        """Hold what the call may take. Raises BudgetExceeded where a budget leaves no room for it: nothing is sent."""
        assert self._door is not None
        try:
            call.hold = self._door.hold(call, body)
            call.cut_off = self._door.cut_off(call.hold)
        except BudgetExceeded:
            call.fresh = False
            self.void(call, "budget_exceeded")
            raise
        except Exception as error:  # noqa: BLE001 - D3
            self.problem("budgets", error)

    async def aadmit(self, call: Call, body: Mapping[str, Any]) -> None:
        """The same in another thread: the ledger may make it wait, and the event loop must not."""
        call.is_async = True
        admission = _Admission(self, call, body)
        try:
            await _in_thread(admission.run)
            await _checkpoint()
        except BudgetExceeded:
            raise
        except BaseException:  # cancelled meanwhile: nothing was sent
            admission.abandon()
            call.fresh = False
            self.void(call, "not_sent")
            raise

    def accepts_include_usage(self, host: str) -> bool:
        """Whether `stream_options.include_usage` may be added for this host."""
        known = host_named(host)
        if known is not None and known.accepts_include_usage:
            return True
        return bool(self._include_usage) and self._is_allowed(host)

    def _is_allowed(self, host: str) -> bool:
        import fnmatch

        return any(fnmatch.fnmatchcase(host, pattern) for pattern in self._include_usage)

    def allow_include_usage(self, *hosts: str) -> None:
        """Hosts (`name`, `name:port` or a `*` pattern) that accept `include_usage` beside those known to."""
        named = [host.strip().lower() for host in hosts]
        self._include_usage = tuple(dict.fromkeys((*self._include_usage, *(name for name in named if name))))

    def answered(self, call: Call, excerpt: str) -> None:
        """Write down what a plain answer said; it is read when somebody wants to know."""
        try:
            call.ended = True
            duration = max(0, int((self.clock.monotonic() - call.began) * 1000))
            line = lines.answered(call, excerpt, at=self.stamp(), duration_ms=duration)
            self._journal.ended(call.id, line)
            answer = Answer(call.endpoint.read, excerpt)
            if call.hold is not None:
                reading = answer.reading()
                reading.event_id = call.id
                self._settle(call, [reading])
            who = call.attribution
            for tally in who.tallies:
                tally.add_later(answer.usage)
            self._unread.append(answer)
            if len(self._unread) > UNREAD_MAX:
                self.catch_up(at_most=1)
            self._counts["events"] += 1
            if who.customer is None:
                self._notable("complete", None, ())
            if self._asleep:
                self._asleep = False
                self._wake()
        except Exception as error:  # noqa: BLE001 - D3
            self.problem("record", error)

    def record(self, call: Call, readings: list[Reading]) -> None:
        """Write the events of a call that ended, then let the tallies know."""
        if readings and readings[0].object_id is not None:
            readings = [reading for reading in readings if self._is_news(call, reading)]
        if not readings:
            self.void(call, "counted_before")
            return
        if readings[0].recount is not None and self._estimates is not None and self._estimates.ready():
            self._put_off(call, readings, self._estimates)
            return
        try:
            call.ended = True
            self._journal.ended(call.id, self._lines(call, readings))
            if call.hold is not None:
                self._settle(call, readings)
            if call.attribution.tallies:
                _tell(call.attribution.tallies, readings)
            if self._asleep:
                self._asleep = False
                self._wake()
        except Exception as error:  # noqa: BLE001 - D3
            self.problem("record", error)

    def record_later(self, call: Call, readings: list[Reading]) -> None:
        """The same from a finaliser, which may run in any thread at any time: enqueue only, take no lock."""
        call.ended = True
        if readings and readings[0].recount is not None and self._estimates is not None and self._estimates.running:
            self._put_off(call, readings, self._estimates)
        elif readings:
            self._journal.defer(call.id, self._lines(call, readings))
            if call.hold is not None:
                self._settle(call, readings, later=True)
            _tell(call.attribution.tallies, readings)
        else:
            self._journal.defer(call.id, lines.void(call, "counted_before"))
            self._release(call, later=True)

    def void(self, call: Call, reason: str) -> None:
        """The call ended and billed nothing (refused, never sent, a re-read)."""
        try:
            call.ended = True
            self._journal.ended(call.id, lines.void(call, reason))
            self._release(call)
        except Exception as error:  # noqa: BLE001 - D3
            self.problem("void", error)

    def unmetered(self, call: Call, reason: str) -> None:
        """The provider may have billed this call and no counts are known: a human must see it."""
        if not call.ended:
            self.record(call, [Reading(Usage(), status="unmetered", anomalies=["no_response", reason])])

    def problem(self, what: str, error: BaseException) -> None:
        """Count an internal failure; it is written once per kind and shown by `doctor`."""
        self._journal.problem(what, error)

    # ---- what the Meter calls ----

    def enter(
        self, document: dict[str, Any], tallies: tuple[Tally, ...], usage: Usage, *, repeatable: bool = False
    ) -> None:
        """Write an event that was entered by hand; one that may be entered again is tallied once."""
        self._journal.append(lines.recorded(document))
        if repeatable and not self._is_first(document["id"], usage):
            return
        for tally in tallies:
            tally.add(usage)
        self._counts["events"] += 1
        self._notable(document["status"], document.get("customer"), document.get("anomalies"))
        self._asleep = False
        self._wake()

    @property
    def counts(self) -> Counter[str]:
        """How many events there were, and how many of each kind that a human may have to look at."""
        self.catch_up()
        return self._counts

    def catch_up(self, *, at_most: int | None = None) -> None:
        """Read the answers that were only written down: what they say may be odd. The reporter's thread does it too."""
        for _ in range(len(self._unread) if at_most is None else at_most):
            try:
                reading = self._unread.popleft().reading()
            except IndexError:
                return
            if reading.anomalies:
                self._notable(reading.status, "", reading.anomalies)

    def tend(self) -> None:
        """What the reporter's thread does for calls: read answers that were only written down, look after budgets."""
        self.catch_up()
        if self._door is not None:
            self._door.tend()

    def stamp(self) -> str:
        """The time now, as it stands in events."""
        return self._stamps.text(self.clock.now_ns())

    # ---- inside ----

    def _put_off(self, call: Call, readings: list[Reading], estimates: Estimates) -> None:
        """Another thread estimates better, then writes; until it has, the call is open in the journal."""
        main = readings[0]
        recount, main.recount = main.recount, None
        ended = self.stamp(), self.clock.monotonic()
        guess = main.usage or Usage()

        def settle(counted: tuple[Usage, str] | None) -> None:
            try:
                if counted is not None:
                    main.usage, main.estimator = counted
                    for tally in call.attribution.tallies:
                        tally._correct(guess, counted[0])
                self._journal.ended(call.id, self._lines(call, readings, ended=ended))
                if call.hold is not None:
                    self._settle(call, readings)
                if self._asleep:
                    self._asleep = False
                    self._wake()
            except Exception as error:  # noqa: BLE001 - D3
                self.problem("record", error)

        call.ended = True
        _tell(call.attribution.tallies, readings)
        estimates.put(recount, settle)  # type: ignore[arg-type]

    def _settle(self, call: Call, readings: list[Reading], *, later: bool = False) -> None:
        """Let the budgets know what the call took; a call of which nobody knows keeps what it holds."""
        hold, call.hold = call.hold, None
        if self._door is not None and hold is not None:
            self._door.settle(hold, readings, later=later or call.is_async)

    def _release(self, call: Call, *, later: bool = False) -> None:
        hold, call.hold = call.hold, None
        if self._door is not None and hold is not None:
            self._door.release(hold, later=later or call.is_async)

    def _lines(self, call: Call, readings: list[Reading], *, ended: tuple[str, float] | None = None) -> bytes:
        at, now = ended or (self.stamp(), self.clock.monotonic())
        duration = max(0, int((now - call.began) * 1000))
        customer = call.attribution.customer
        written: list[bytes] = []
        for place, reading in enumerate(readings):
            reading.model = reading.model or call.model_requested  # some answers do not name their model
            if customer is None or reading.anomalies or reading.status != "complete":
                self._notable(reading.status, customer, reading.anomalies)
            id = call.id if place == 0 else _uuid8(call.id, str(place))
            if reading.object_id is not None:
                id = _derived_id(call, reading.object_id, reading.model)
            reading.event_id = id
            written.append(lines.event(call, reading, id=id, at=at, duration_ms=duration))
        self._counts["events"] += len(written)
        return written[0] if len(written) == 1 else b"".join(written)

    def _is_news(self, call: Call, reading: Reading) -> bool:
        """False for an object that was read again and says the same: a poll after its end counts nothing."""
        if reading.object_id is None:
            return True
        return self._is_first(_derived_id(call, reading.object_id, reading.model), reading.usage)

    def _is_first(self, id: str, usage: Usage | None) -> bool:
        if id in self._objects and self._objects[id] == usage:
            return False
        self._objects[id] = usage
        if len(self._objects) > OBJECTS_MAX:
            self._objects.pop(next(iter(self._objects)), None)
        return True

    def _notable(self, status: str, customer: str | None, anomalies: Any) -> None:
        counts = self._counts
        if status != "complete":
            counts["deferred" if "deferred" in (anomalies or ()) else status] += 1
        if anomalies:
            counts["anomalies"] += 1
        if customer is None:
            counts["unattributed"] += 1
            if counts["unattributed"] == 1:
                import logging

                logging.getLogger("token_meter").warning(
                    "token_meter: a call without a customer was metered. It is kept under customer=None; put calls "
                    "in `with meter.customer(...)` or wrap the client with `customer=...`. (Said once.)"
                )


class _Admission:
    """A hold that is made in another thread. Whoever waits for it may be cancelled meanwhile: then it is given back."""

    def __init__(self, recorder: CallRecorder, call: Call, body: Mapping[str, Any]) -> None:
        self._recorder = recorder
        self._call = call
        self._body = body
        self._abandoned = False

    def run(self) -> None:
        self._recorder.admit(self._call, self._body)
        if self._abandoned:
            self._recorder._release(self._call, later=True)

    def abandon(self) -> None:
        self._abandoned = True
        self._recorder._release(self._call, later=True)


HOLDING_MAX: Final = 40
"""So many tasks of an event loop hold at once."""

_limiters: list[Any] = []


async def _in_thread(function: Callable[[], None]) -> None:
    """Run it in a thread that the application's own work cannot occupy: it may be waiting for this very task."""
    try:
        from anyio import CapacityLimiter, to_thread  # the SDKs run on it, under asyncio and trio
        from anyio.lowlevel import RunVar
    except ImportError:
        import asyncio

        await asyncio.to_thread(function)
        return
    if not _limiters:
        _limiters.append(RunVar("token_meter"))
    [limiter] = _limiters
    try:
        mine = limiter.get()
    except LookupError:  # the first one in this event loop
        mine = CapacityLimiter(HOLDING_MAX)
        limiter.set(mine)
    await to_thread.run_sync(function, limiter=mine)


async def _checkpoint() -> None:
    """End here if the task was cancelled while it waited for the thread."""
    try:
        from anyio.lowlevel import checkpoint_if_cancelled
    except ImportError:
        return
    await checkpoint_if_cancelled()


def _tell(tallies: tuple[Tally, ...], readings: list[Reading]) -> None:
    told = [reading.usage for reading in readings if reading.usage]
    total = told[0] if len(told) == 1 else sum(told, Usage())
    for tally in tallies:
        tally.add(total)


def _derived_id(call: Call, object_id: str, model: str | None) -> str:
    """The id of an object that is read more than once: the same wherever and whenever it is read (D5)."""
    return _uuid8(call.provider, call.host, object_id, model or "")


def _uuid8(*parts: str) -> str:
    """An id that follows from others: a UUIDv8 (RFC 9562), 122 bits of their digest. Stores know such ids by that."""
    import hashlib

    text = hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-{'89ab'[int(text[16], 16) % 4]}{text[17:20]}-{text[20:32]}"
