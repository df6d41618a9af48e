"""What happens in the demo: three services work, one of them is killed in the middle, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from token_meter.cli.demo.crew import Left, News, TaskDone, Worker
from token_meter.cli.demo.customers import Customer
from token_meter.cli.demo.reconciliation import Reconciliation, reconcile
from token_meter.cli.demo.screen import Screen
from token_meter.cli.exits import Failure
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted
from token_meter.usage import HEADLINES, Usage

if TYPE_CHECKING:
    from token_meter.ledger import Ledger, UsageRow
    from token_meter.testing.provider import LoopbackProvider, Reply, Request

SECONDS_MAX: Final = 60.0
LOOK_SECONDS: Final = 0.1
SETTLE_SECONDS: Final = 10.0
STARTS_MAX: Final = 2
BOARD: Final = ("input", "cached input", "cache write", "output")


@dataclass(frozen=True, slots=True)
class Pace:
    """How leisurely it goes: for eyes, or for tests."""

    pause_seconds: float = 0.25
    stream_seconds: float = 0.03
    words: int = 24
    wait_seconds: float = 1.0


FAST: Final = Pace(pause_seconds=0.0, stream_seconds=0.0, words=12, wait_seconds=0.0)


class Accident:
    """Holds the provider's answer to one request of one customer, so that the caller can be killed meanwhile."""

    def __init__(self, customer: str, request: int) -> None:
        self.customer = customer
        self.due = threading.Event()
        self.over = threading.Event()
        self._left = request
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply | None:
        """Asked by the provider before it answers; None: answer (and charge) as usual."""
        if request.faults.id == self.customer:
            with self._lock:
                self._left -= 1
                held = self._left == 0
            if held:
                self.due.set()
                self.over.wait(SECONDS_MAX)
        return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo leaves: the comparison, the usage by model and token type, how it went."""

    reconciliation: Reconciliation
    usage: Sequence[UsageRow]
    killed: int
    seconds: float


class Story:
    """One run. `tell` does it all."""

    def __init__(self, ledger: Path, customers: Sequence[Customer], *, pace: Pace, screen: Screen) -> None:
        self._path = ledger
        self._customers = customers
        self._pace = pace
        self._screen = screen
        self._news: SimpleQueue[News] = SimpleQueue()
        self._workers: dict[str, Worker] = {}
        self._states: dict[str, str] = {}
        self._killed = 0
        victim = customers[-1]
        self._accident = Accident(victim.name, request=len(victim.tasks) // 2 + 1)

    def tell(self, provider: LoopbackProvider) -> Outcome:
        """Run the services, the accident included, and compare. Raises Failure when a service cannot work."""
        begun = time.monotonic()
        provider.script(self._accident)
        try:
            with self._screen:
                self._start_all(provider)
                from token_meter.ledger import Ledger

                with Ledger(self._path) as ledger:
                    self._watch(ledger, deadline=begun + SECONDS_MAX)
                    self._settle()
                    self._show_board(ledger)
                    rows = ledger.usage(by=("customer", "model"))
                    events = list(ledger.iter_events())
        finally:
            self._accident.over.set()
            for worker in self._workers.values():
                worker.stop()
        return Outcome(
            reconcile(provider.billed, events, killed=self._killed), rows, self._killed, time.monotonic() - begun
        )

    def _start_all(self, provider: LoopbackProvider) -> None:
        pace = self._pace
        for customer in self._customers:
            url = provider.url_with(id=customer.name, slow=pace.stream_seconds, events=pace.words)
            worker = Worker(customer, url, self._path, self._news, pause=pace.pause_seconds)
            self._workers[customer.name] = worker
            self._states[customer.name] = "starting"
            worker.start()

    def _watch(self, ledger: Ledger, *, deadline: float) -> None:
        while not all(worker.finished for worker in self._workers.values()):
            if time.monotonic() > deadline:
                raise Failure(f"the demo did not end within {SECONDS_MAX:.0f} s: is this machine very busy?")
            self._hear_news()
            if self._accident.due.is_set() and not self._killed:
                self._strike(ledger)
            self._show_board(ledger)

    def _hear_news(self) -> None:
        timeout = LOOK_SECONDS
        while True:
            try:
                news = self._news.get(timeout=timeout)
            except Empty:
                return
            timeout = 0.0
            if isinstance(news, TaskDone):
                self._task_done(news)
            else:
                self._left(news)

    def _task_done(self, news: TaskDone) -> None:
        self._states[news.customer] = "working"
        aside = f"{counted(news.calls, 'call')}, {counted(news.tokens, 'token')}"
        self._screen.say(news.customer, news.what, sign="•", aside=aside)

    def _left(self, news: Left) -> None:
        worker = self._workers[news.customer]
        if worker.finished:
            self._states[news.customer] = "done"
        elif news.code != 0 and not (self._killed and worker.starts == STARTS_MAX and news.code < 0):
            raise Failure(f"{news.customer}'s service failed (exit {news.code}): {news.complaint}")

    def _strike(self, ledger: Ledger) -> None:
        """Kill the service that waits for its answer, and start it again."""
        worker = self._workers[self._accident.customer]
        self._linger(ledger)
        pid = worker.pid
        worker.kill()
        self._killed += 1
        self._accident.over.set()
        self._states[worker.customer.name] = "killed"
        self._screen.say(
            worker.customer.name,
            f"SIGKILL for process {pid}, amid a call",
            sign="✗",
            style="bold red",
            aside="the provider charges for it all the same",
        )
        self._linger(ledger)
        worker.start()
        left = len(worker.customer.tasks) - worker.done
        self._states[worker.customer.name] = "restarted"
        self._screen.say(worker.customer.name, f"started again for the {left} tasks left", sign="↻", style="bold green")

    def _linger(self, ledger: Ledger) -> None:
        """Long enough to be seen."""
        until = time.monotonic() + self._pace.wait_seconds
        while time.monotonic() < until:
            self._show_board(ledger)
            time.sleep(LOOK_SECONDS)

    def _settle(self) -> None:
        """Wait for the services to leave, then take over what they may have left in the journal."""
        from token_meter.deliver import deliver_once
        from token_meter.sinks import LedgerSink

        for worker in self._workers.values():
            worker.wait()
        self._hear_news()
        sink = LedgerSink(self._path)
        try:
            deliver_once(f"{self._path}.journal", sink, timeout=SETTLE_SECONDS)
        finally:
            sink.close()

    def _show_board(self, ledger: Ledger) -> None:
        usage = {str(row.group["customer"]): row for row in ledger.usage(by=("customer",))}
        columns = [Column("customer"), Column("calls", number=True), *(Column(name, number=True) for name in BOARD)]
        columns += [Column("tokens", number=True), Column("service", quiet=True)]
        counts = {name: _quantities(usage.get(name)) for name in self._states}
        rows = [{"customer": name, **counts[name], "service": state} for name, state in self._states.items()]
        total = {name: sum(each[name] for each in counts.values()) for name in ("calls", *BOARD, "tokens")}
        self._screen.board(Table(columns, rows, {"customer": "in the ledger", **total}))


def _quantities(row: UsageRow | None) -> dict[str, int]:
    usage = row.usage if row else Usage()
    return {
        "calls": row.events if row else 0,
        **dict.fromkeys(HEADLINES, 0),
        **usage.by_headline(),
        "tokens": usage.tokens,
    }
