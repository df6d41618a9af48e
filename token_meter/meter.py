"""The Meter: wraps clients, knows whose calls they are, keeps the journal, delivers to sinks, answers queries."""

from __future__ import annotations

import atexit
import os
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from token_meter.bookkeeping.lazy import LazyRater
from token_meter.charging import Charging
from token_meter.context import CURRENT, Attribution, clean_dimensions, clean_name
from token_meter.customer import CustomerScope, carry_into_threads
from token_meter.errors import InvalidEvent, NoLedger, Retry, TokenMeterError, UnsupportedClient
from token_meter.providers import SDKS, sdk_of, supported
from token_meter.providers.publishers import publisher_of
from token_meter.recorder import CallRecorder
from token_meter.schema import SCHEMA, Status
from token_meter.sinks.base import Sink, sink_name
from token_meter.usage import Usage

if TYPE_CHECKING:
    from datetime import date, datetime
    from pathlib import Path

    from token_meter.accounts.book import CustomerBook
    from token_meter.budgets.door import Door
    from token_meter.estimates import Estimates
    from token_meter.event import MeterEvent
    from token_meter.health import Health
    from token_meter.journal import Journal
    from token_meter.ledger import Ledger, UsageRow
    from token_meter.prices.book import PriceBook
    from token_meter.providers.patching import Undo
    from token_meter.reporter import Reporter
    from token_meter.sinks.base import Report
    from token_meter.telling import Telling

    Moment = datetime | date | str | None
    Prices = str | os.PathLike[str] | Mapping[str, Any] | PriceBook | None

Client = TypeVar("Client")

LEDGER_DEFAULT: Final = "usage.db"
JOURNAL_DEFAULT: Final = "token_meter.journal"
READ_TIMEOUT_SECONDS: Final = 30.0
"""How long a query waits for this process's own events to reach the ledger."""
REPORT_TIMEOUT_SECONDS: Final = 2.0
"""How long a webhook waits for this process's own events to reach the ledger, which knows those that a report names."""
EXIT_TIMEOUT_SECONDS: Final = 5.0
"""How long leaving the process waits for deliveries; what is left is delivered at the next start."""
ID_LENGTH_MAX: Final = 255

_open: weakref.WeakSet[Meter] = weakref.WeakSet()


class Meter(Charging):
    """Meters every call of the clients it wraps, and delivers the events to its sinks.

    A `str` or path among `sinks` is a ledger (`"usage.db"`, `"postgresql://…"`); anything else is an object with
    `send`. Without sinks: `$TOKEN_METER_LEDGER` (and `$TOKEN_METER_JOURNAL`), else `usage.db` in the working directory.
    `journal` is the folder that makes events durable before a call returns (default: beside the ledger,
    `<ledger>.journal`); `prices` are your own prices (a file, or a mapping: docs/prices.md; default:
    `$TOKEN_METER_PRICES`); `dimensions` are the keys the ledger sums usage by; `on_error` is called with
    `(what, error)` for each internal failure.

    A Meter is a context manager; `close()` delivers what is left. `TOKEN_METER_DISABLED=1` turns it off.
    Raises JournalError when the journal folder cannot be used.
    """

    def __init__(
        self,
        *sinks: Sink | str | os.PathLike[str],
        journal: str | os.PathLike[str] | None = None,
        prices: Prices = None,
        dimensions: Sequence[str] = (),
        on_error: Callable[[str, BaseException], object] | None = None,
    ) -> None:
        self._closed = True  # until everything below succeeded
        self.disabled = _is_disabled()
        self._on_error = on_error
        self._dimensions = tuple(dimensions)
        self._rater = LazyRater(prices)
        self._sinks = self._made_sinks(sinks)
        self._journal = self._made_journal(journal, from_environment=not sinks)
        self._reporter = self._made_reporter()
        self._estimates = self._made_estimates()
        mode = "test" if os.environ.get("TOKEN_METER_MODE") == "test" else "live"
        self._door = self._made_door(mode)
        self._telling = self._made_telling(mode)
        self._recorder = CallRecorder(
            self._journal if self._journal is not None else _Nowhere(),
            owner=self,
            wake=self._wake,
            mode=mode,
            estimates=self._estimates,
            door=self._door,
        )
        if self._journal is not None:
            tend = weakref.WeakMethod(self._tend)
            self._journal.on_maintain = lambda: (alive := tend()) and alive()
        self._recorder.allow_include_usage(*os.environ.get("TOKEN_METER_INCLUDE_USAGE_HOSTS", "").split(","))
        self._started = False
        self._lost_seen = 0
        self._undo: list[Undo] = []
        self._closed = False
        if not _open:
            atexit.register(_close_all)
        _open.add(self)

    @classmethod
    def from_env(cls) -> Meter:
        """A Meter as the environment describes it.

        TOKEN_METER_LEDGER (path or URL), TOKEN_METER_JOURNAL (folder), TOKEN_METER_DIMENSIONS (comma-separated), and
        TOKEN_METER_SINKS: billing backends beside the ledger, as in `stripe,lago:mode=test`; each has its key in a
        variable of its own. Raises ValueError for a sink that is not known.
        """
        dimensions = [name.strip() for name in os.environ.get("TOKEN_METER_DIMENSIONS", "").split(",") if name.strip()]
        names = os.environ.get("TOKEN_METER_SINKS", "").strip()
        if not names or _is_disabled():
            return cls(dimensions=dimensions)
        from token_meter.sinks.named import named_sinks

        try:
            sinks = named_sinks(names)
        except ValueError as problem:
            raise ValueError(f"TOKEN_METER_SINKS: {problem}") from None
        ledger = os.environ.get("TOKEN_METER_LEDGER") or LEDGER_DEFAULT
        return cls(ledger, *sinks, journal=os.environ.get("TOKEN_METER_JOURNAL") or None, dimensions=dimensions)

    # ---- wrapping ----

    def wrap(self, client: Client, *, customer: str | None = None, **dimensions: object) -> Client:
        """Meter every call of `client`; returns the same client, of the same type.

        With a customer or dimensions: a copy of it that shares its connections, bound to them; the binding wins over
        `meter.customer(...)` and survives `copy()` and `with_options()`. Wrapping twice counts once.

        Raises UnsupportedClient for an unknown client, MeteringUnavailable for an SDK that lacks the hook, and
        TokenMeterError for a client that another Meter has wrapped.
        """
        sdk = sdk_of(client)
        if sdk is None:
            raise UnsupportedClient(
                f"cannot meter {type(client).__module__}.{type(client).__qualname__!r}. Supported: clients of "
                f"{supported()}. For anything else call meter.record(...)."
            )
        if self.disabled:
            return client
        hooks = sdk.load()
        held = hooks.bound(client)
        if held is not None and held.recorder is not self._recorder:
            raise TokenMeterError(
                "this client is already wrapped by another Meter. unwrap(client) it there first, or use one Meter."
            )
        if customer is None and not dimensions:
            return client if held is not None else hooks.wrap(client, self._recorder)
        attribution = Attribution(clean_name(customer), clean_dimensions(dimensions))
        if held is not None and held.attribution is not None:
            attribution = held.attribution.within(attribution.customer, attribution.dimensions)
        return hooks.bind(client, self._recorder, attribution)  # type: ignore[no-any-return]

    def unwrap(self, client: Client) -> Client:
        """Stop metering `client`; returns it as it was."""
        sdk = sdk_of(client)
        return client if sdk is None else sdk.load().unwrap(client)

    def instrument(self, *names: str) -> Undo:
        """Meter every client in the process, also those inside libraries, made before or after this call.

        `names`: `openai`, `anthropic`, `google` (default: all three), and `threads`, which carries the customer into
        `ThreadPoolExecutor` and `run_in_executor`. Works before or after the SDK is imported. Returns an `Undo`: call
        it, or use it as a context manager. Raises ValueError for an unknown name.
        """
        from token_meter.providers.patching import Patch, Undo, patch

        known = {sdk.name: sdk for sdk in SDKS}
        chosen = names or tuple(known)
        unknown = [name for name in chosen if name not in known and name != "threads"]
        if unknown:
            raise ValueError(f"cannot instrument {', '.join(unknown)}. Known: {', '.join(known)}, threads.")
        patches: list[Patch] = []
        if not self.disabled:
            for name in chosen:
                if name == "threads":
                    from concurrent.futures import ThreadPoolExecutor

                    patches.append(patch(ThreadPoolExecutor, "submit", carry_into_threads))
                else:
                    patches.extend(known[name].load().instrument(name, self._recorder))
        undo = Undo(patches)
        self._undo = [*(each for each in self._undo if each.pending), undo]
        return undo

    def allow_include_usage(self, *hosts: str) -> None:
        """Say that these hosts accept `stream_options.include_usage` (`name`, `name:port` or a `*` pattern).

        For the well-known hosts this is known (docs/providers.md); for others the flag is not sent, because a
        compatible server may refuse it, and a stream without counts is estimated. Also settable as
        `TOKEN_METER_INCLUDE_USAGE_HOSTS`.
        """
        self._recorder.allow_include_usage(*hosts)

    # ---- attribution and manual entry ----

    def customer(
        self, id: str | None = None, *, from_: Callable[..., Any] | None = None, **dimensions: object
    ) -> CustomerScope:
        """Whose calls these are: a context manager (yielding a tally) and a decorator. Nested ones merge.

        `from_` is for decorators: it is called with the function's arguments and returns the customer.
        """
        return CustomerScope(clean_name(id), clean_dimensions(dimensions), from_=from_, on_error=self._recorder.problem)

    def record(
        self,
        usage: Usage | Mapping[str, int] | int,
        *,
        model: str | None = None,
        provider: str | None = None,
        customer: str | None = None,
        meter: str = "llm_tokens",
        id: str | None = None,
        time: datetime | None = None,
        operation: str | None = None,
        dimensions: Mapping[str, object] | None = None,
        price_context: Mapping[str, Any] | None = None,
        response_id: str | None = None,
        corrects: str | None = None,
        status: Status = "complete",
    ) -> MeterEvent:
        """Enter usage by hand: for what cannot be wrapped, and for meters of your own.

        A plain integer is a number of `units`. Customer and dimensions default to those of `meter.customer(...)`.
        Give `id` to make retries safe: an event with an id that is known counts nothing. The event is on disk when
        this returns. Raises ValueError or TypeError for quantities that are none.
        """
        from token_meter.event import MeterEvent, format_time

        scope = CURRENT.get().within(clean_name(customer), clean_dimensions(dimensions or {}))
        if not isinstance(usage, (int, Mapping)):
            raise TypeError(f"usage is a whole number of units, or whole numbers by token type, not {usage!r}")
        quantities = Usage(units=usage) if isinstance(usage, int) else Usage(usage)
        if id is not None and not 0 < len(id) <= ID_LENGTH_MAX:
            raise InvalidEvent(f"id must have 1 to {ID_LENGTH_MAX} characters")
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "id": id or self._recorder.clock.mint(),
            "time": format_time(time) if time else self._recorder.stamp(),
            "usage": dict(quantities),
            "status": status,
            "meter": meter,
            "customer": scope.customer,
            "provider": provider,
            "publisher": publisher_of(model),
            "model": model,
            "operation": operation,
            "price_context": dict(price_context or {}),
            "dimensions": dict(scope.dimensions),
            "response_id": response_id,
            "corrects": corrects,
            "mode": self._recorder.mode,
        }
        document = {name: value for name, value in document.items() if value not in (None, {})}
        document["usage"] = dict(quantities)
        event = MeterEvent.from_json(document)  # refuses what no reader could take back
        if not self.disabled:
            self._recorder.enter(document, scope.tallies, quantities, repeatable=id is not None)
        return event

    def take_report(self, sink: str, body: bytes, headers: Mapping[str, str]) -> Report | None:
        """Hand over a request that a billing backend made to your webhook about events it refused after all.

        They are quarantined with the reason, for a human to release. None: the request is about something else. Raises
        InvalidReport for one that the backend did not sign (answer 400), Retry when it cannot be looked into now
        (answer 503, so that it is sent again), and ValueError for a sink that is not here or takes no reports.
        """
        from token_meter.deliver import quarantine
        from token_meter.sinks.base import Reporting

        found = next((each for each in self._sinks if sink_name(each) == sink), None)
        if not isinstance(found, Reporting):
            known = ", ".join(sink_name(each) for each in self._sinks if isinstance(each, Reporting)) or "none"
            raise ValueError(f"no sink {sink!r} takes reports. Those that do: {known}")
        ledger = next((sink_name(each) for each in self._sinks if hasattr(each, "ledger")), None)
        current = ledger is None or self._deliver(REPORT_TIMEOUT_SECONDS, ledger)
        report = found.report_in(body, headers)
        if report is None or self._journal is None:
            return report
        quarantine(self._journal.folder, sink, report.refusals, report=report.id)
        if report.unknown and not current:
            raise Retry(f"the ledger does not have every event yet, perhaps one that the report {report.id} names")
        if report.unnamed or report.unknown:
            self._journal.problem(
                f"sink {sink}: a report of refused events that it does not name",
                f"{report.unnamed + len(report.unknown)} events of report {report.id}: `token-meter reconcile sink "
                f"{sink}` finds them",
            )
        return report

    def record_event(self, event: MeterEvent) -> None:
        """Enter an event that was made elsewhere, such as from a partner's record, as it is.

        An event with an id that is known counts nothing. It is on disk when this returns.
        """
        if self.disabled:
            return
        document = event.to_json()
        if self._recorder.mode != "live":
            document["mode"] = self._recorder.mode
        self._recorder.enter(document, (), event.usage, repeatable=True)

    def sync(self) -> bool:
        """Force everything recorded so far to disk. False when the disk did not take all of it since the last time."""
        if self._journal is None:
            return True
        self._journal.maintain()
        seen, self._lost_seen = self._lost_seen, self._journal.lost
        return not self._journal.pending and self._lost_seen == seen

    # ---- queries ----

    @property
    def ledger(self) -> Ledger:
        """The ledger behind this meter. Raises NoLedger when there is none."""
        found = next((sink for sink in self._sinks if hasattr(sink, "ledger")), None)
        if found is None:
            raise NoLedger(
                "this meter has no ledger to query. Give it one: Meter('usage.db', ...) or Meter('postgresql://…')."
            )
        return found.ledger  # type: ignore[no-any-return]

    @property
    def customers(self) -> CustomerBook:
        """Who the customers are: read and edit them. Raises NoLedger when there is no ledger to keep them in.

        `meter.customers.edit("acme", external_ids={"stripe": "cus_…"})`. Whoever is new is in it when their first event
        reaches the ledger: `meter.flush()` waits for that.
        """
        from token_meter.accounts.book import CustomerBook

        return CustomerBook(self.ledger)

    def events(
        self, *, customer: str | object | None = ..., limit: int | None = None, **filters: Any
    ) -> list[MeterEvent]:
        """The events in the ledger, oldest first, this process's own included; filters as `Ledger.events`."""
        ledger = self.ledger
        self._catch_up()
        if customer is not ...:
            filters["customer"] = customer
        return ledger.events(limit=limit, **filters)

    def usage(
        self,
        customer: str | object | None = ...,
        *,
        by: Sequence[str] | str = ("model",),
        since: Moment = None,
        until: Moment = None,
        bucket: Literal["hour", "day", "month"] | None = None,
        time_zone: str = "UTC",
        **filters: Any,
    ) -> list[UsageRow]:
        """Summed usage by any of customer, model, provider, publisher, token_type, headline, operation, status or a
        dimension, in [since, until), optionally per hour, day or month of `time_zone`."""
        ledger = self.ledger
        self._catch_up()
        if customer is not ... and customer is not None:
            filters["customer"] = customer
        keys = (by,) if isinstance(by, str) else tuple(by)
        return ledger.usage(by=keys, since=since, until=until, bucket=bucket, time_zone=time_zone, **filters)

    def health(self) -> Health:
        """What works, what waits and what needs a human."""
        from token_meter.health import health_of

        return health_of(self._journal, self._reporter, self._recorder.counts)

    def on_notice(self, callback: Callable[[Mapping[str, Any]], object], *kinds: str) -> None:
        """Call `callback(notice)` with each notice that is new from now on, in a thread of its own.

        `kinds` are names or patterns (`budget.*`); none: every kind. A notice has `kind`, `key` (the same however often
        it is told), `customer`, `recorded` and a `document`: docs/notices.md. Raises NoLedger without a ledger.
        """
        if self._telling is None:
            self.ledger  # noqa: B018 - says what is missing
            return
        self._telling.listen(callback, kinds)

    # ---- delivery and life cycle ----

    @property
    def journal_folder(self) -> Path | None:
        """The journal's folder; None while disabled."""
        return None if self._journal is None else self._journal.folder.path

    def flush(self, timeout: float | None = 10.0) -> bool:
        """Deliver every call that ended so far to every sink; False if that took longer than `timeout` seconds."""
        return self._deliver(timeout, None)

    def close(self, timeout: float = EXIT_TIMEOUT_SECONDS) -> None:
        """Deliver what is left (at most `timeout` seconds), take instrumentation back, release everything.

        What could not be delivered stays in the journal for the next start. Estimates that still wait to be tokenised
        have half of the time; then they are made by size.
        """
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        for undo in self._undo:
            undo()
        deadline = time.monotonic() + timeout
        if self._estimates is not None:
            self._estimates.close(timeout / 2)
        if self._door is not None:
            self._door.tend()
        if self._reporter is not None:
            self._reporter.close(max(0.0, deadline - time.monotonic()))
        if self._telling is not None:
            self._telling.close(max(0.5, deadline - time.monotonic()))
        if self._journal is not None:
            self._journal.close()
        for sink in self._sinks:
            close = getattr(sink, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}: call close() or use `with`", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        names = ", ".join(sink_name(sink) for sink in self._sinks)
        return f"Meter({names})"

    # ---- inside ----

    def _made_sinks(self, sinks: Sequence[Sink | str | os.PathLike[str]]) -> list[Sink]:
        if self.disabled:
            return []
        given = sinks or (os.environ.get("TOKEN_METER_LEDGER") or LEDGER_DEFAULT,)
        made: list[Sink] = []
        for sink in given:
            if isinstance(sink, (str, os.PathLike)):
                from token_meter.sinks.ledger import LedgerSink

                made.append(LedgerSink(sink, dimensions=self._dimensions, rater=self._rater))
            elif callable(getattr(sink, "send", None)):
                made.append(sink)
            else:
                raise TypeError(
                    f"{sink!r} is no sink: give a ledger path or URL, or an object with send(events). For a plain "
                    "function use CallbackSink(function)."
                )
        for sink in made:
            ledger = getattr(sink, "ledger", None)
            if ledger is not None and getattr(ledger, "rater", self) is None:
                ledger.rater = self._rater
        if any(callable(getattr(sink, "bind", None)) for sink in made):
            from token_meter.accounts.directory import bind

            bind(made)
        return made

    def _made_journal(self, folder: str | os.PathLike[str] | None, *, from_environment: bool) -> Journal | None:
        if self.disabled:
            return None
        from token_meter.journal import Journal

        fsync = os.environ.get("TOKEN_METER_FSYNC", "interval")
        if fsync not in ("always", "interval", "never"):
            raise ValueError(f"TOKEN_METER_FSYNC must be always, interval or never, not {fsync!r}")
        if folder is None and from_environment:
            folder = os.environ.get("TOKEN_METER_JOURNAL") or None
        return Journal(folder if folder is not None else journal_beside(self._sinks), fsync=fsync)  # type: ignore[arg-type]

    def _made_reporter(self) -> Reporter | None:
        if self._journal is None:
            return None
        from token_meter.reporter import Reporter

        return Reporter(self._journal, self._sinks, on_error=self._report)

    @property
    def _mode(self) -> str:
        return self._recorder.mode

    def _made_door(self, mode: str) -> Door | None:
        """In front of the calls, if there is a ledger that may say what somebody may spend."""
        ledger = next((sink.ledger for sink in self._sinks if hasattr(sink, "ledger")), None)
        if ledger is None or self._journal is None:
            return None
        from token_meter.budgets.door import Door

        return Door(ledger, self._rater.made, problem=self._journal.problem, mode=mode)

    def _made_telling(self, mode: str) -> Telling | None:
        ledger = next((sink.ledger for sink in self._sinks if hasattr(sink, "ledger")), None)
        if ledger is None or self._journal is None:
            return None
        from token_meter.telling import Telling

        health = weakref.WeakMethod(self.health)
        journal = self._journal

        def current() -> Health:
            from token_meter.health import health_of

            method = health()
            return method() if method is not None else health_of(journal, None, {})

        return Telling(ledger, current, problem=journal.problem, mode=mode)

    def _tend(self) -> None:
        """What the reporter's thread does besides delivering."""
        self._recorder.tend()
        if self._telling is not None and not self._closed:
            self._telling.tend()

    def _made_estimates(self) -> Estimates | None:
        if self._journal is None:
            return None
        from token_meter.estimates import Estimates

        return Estimates(self._journal.problem)

    def _report(self, what: str, error: BaseException) -> None:
        if self._on_error is not None:
            self._on_error(what, error)

    def _wake(self) -> None:
        if not self._started and self._reporter is not None:
            self._started = True
            self._reporter.start()

    def _deliver(self, timeout: float | None, sink: str | None) -> bool:
        """Estimates that wait first: they are not in the journal yet."""
        if self._reporter is None or self._estimates is None:
            return True
        began = time.monotonic()
        made = self._estimates.wait(timeout)
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        return self._reporter.flush(left, sink) and made

    def _catch_up(self) -> None:
        """Reads show this process's own writes."""
        name = next((sink_name(sink) for sink in self._sinks if hasattr(sink, "ledger")), None)
        if not self._deliver(READ_TIMEOUT_SECONDS, name):
            import logging

            logging.getLogger("token_meter").warning(
                "token_meter: the ledger has not taken every event yet; see `token-meter doctor`"
            )


def _is_disabled() -> bool:
    return os.environ.get("TOKEN_METER_DISABLED", "") not in ("", "0", "false")


class _Nowhere:
    """The journal of a disabled meter."""

    def opened(self, id: str, line: bytes) -> None: ...
    def ended(self, id: str, lines: bytes) -> None: ...
    def append(self, lines: bytes) -> None: ...
    def defer(self, id: str, lines: bytes) -> None: ...
    def problem(self, what: str, error: BaseException | str) -> None: ...


def journal_beside(sinks: Sequence[Sink]) -> Path:
    """The default journal folder: `<ledger>.journal` beside a ledger file, else one in the working directory."""
    from pathlib import Path

    for sink in sinks:
        file = getattr(getattr(sink, "ledger", None), "file", None)
        if file is not None:
            return Path(f"{file}.journal")
    return Path(JOURNAL_DEFAULT)


def _close_all() -> None:
    for meter in list(_open):
        meter.close()
