"""The reporter: ships the journal to the sinks in the background.

One thread keeps the journal (fsync, lines that wait, dead processes, retention) and one thread serves each sink.
A single thread would be simpler, but a sink that hangs in a network call would then hold back all the others and
the fsync too. All are daemon threads and start when this process begins its first segment, after a fork too.

No thread keeps the `Reporter` itself alive, so that a forgotten one can be noticed.
"""

from __future__ import annotations

import sys
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Final

from token_meter.backlog import DeliveryState, measure
from token_meter.batch import BatchLimits
from token_meter.cursors import Cursor, end_of
from token_meter.delivery import Delivery, OnError
from token_meter.journal import Journal
from token_meter.keeper import Keeper, Loop
from token_meter.locks import tell_after_fork
from token_meter.patience import PatientLock
from token_meter.registry import adopt
from token_meter.segments import SegmentIndex
from token_meter.sinks.base import Sink, sink_name
from token_meter.standing import Standing

FLUSH_SECONDS_MAX: Final = 60.0
"""What `flush(None)` waits: a dead sink must not hang a program for ever."""

POLL_SECONDS: Final = 0.01
"""Waiting polls, because the primitives that notify cannot be entered again from a signal handler."""

JOIN_SECONDS_MAX: Final = 1.0


class Reporter:
    """Delivers a journal to sinks. One per journal and process.

    Registers the sinks with the journal: raises JournalError when it belongs to one that is missing here. A new
    sink starts now, or with `replay` at the beginning of what is still there; a new journal's sinks get everything.
    `on_error(what, error)` is called for each failed attempt.
    """

    def __init__(
        self,
        journal: Journal,
        sinks: Sequence[Sink],
        *,
        batch_events: int = 500,
        batch_bytes: int = 1 << 20,
        interval_seconds: float = 0.2,
        replay: bool = False,
        on_error: OnError | None = None,
    ) -> None:
        folder = journal.folder
        adopt(folder, [sink_name(sink) for sink in sinks], replay=replay)
        self._journal = journal
        self._interval_seconds = interval_seconds
        self._index = SegmentIndex(folder.segments)
        self._deliveries = [
            Delivery(
                sink,
                folder,
                self._index,
                limits=BatchLimits(batch_events, batch_bytes),
                problem=journal.problem,
                fsync=journal.fsync,
                on_error=_weakly(on_error),
            )
            for sink in sinks
        ]
        self._standings = {each.name: Standing(folder.refusals(each.name)) for each in self._deliveries}
        self._keeper = Keeper(
            folder,
            self._index,
            self._deliveries,
            problem=journal.problem,
            durable=journal.fsync == "always",
            journal_bytes_max=journal.journal_bytes_max,
        )
        self._threads: list[Loop] = []
        self._starting = PatientLock()
        self._busy_starting = False
        self._closed = False
        start = weakref.WeakMethod(self.start)
        journal.on_begin = lambda: (alive := start()) and alive()
        tell_after_fork(self)

    # ---- threads ----

    def start(self) -> bool:
        """Make sure that the threads run. False when they cannot (closed, or the interpreter is going down)."""
        if self._closed or sys.is_finalizing():
            return False
        if self._threads and all(thread.is_alive() for thread in self._threads):
            return True
        with self._starting:
            if self._busy_starting:
                return False
            self._busy_starting = True
            try:
                return self._start()
            finally:
                self._busy_starting = False

    def kick(self) -> None:
        """Something was written. Nothing to do but see that the threads run: they look every `interval_seconds`."""
        if not self._threads:
            self.start()

    def _start(self) -> bool:
        usual = self._interval_seconds
        turns: list[tuple[str, Callable[[], None], Callable[[], None], float]] = [
            ("journal", _keeping(self._journal, self._keeper), _nothing, usual)
        ]
        turns += [(each.name, each.run, each.leave, each.interval_seconds or usual) for each in self._deliveries]
        for place, (name, turn, leave, interval_seconds) in enumerate(turns):
            if place < len(self._threads) and self._threads[place].is_alive():
                continue
            loop = Loop(name, turn, leave, interval_seconds=interval_seconds, problem=self._journal.problem)
            try:
                loop.start()
            except RuntimeError as error:
                # No thread can be started (any more): `flush` delivers in its caller's thread then.
                self._journal.problem("start a thread", error)
                return False
            self._threads[place : place + 1] = [loop]
        return True

    def _running(self) -> bool:
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads) and not sys.is_finalizing()

    def after_fork(self) -> None:
        """The child has none of the threads; they start again when it writes or flushes."""
        self._threads = []
        self._starting = PatientLock()
        self._busy_starting = False
        self._index.after_fork()
        self._keeper.after_fork()
        for delivery in self._deliveries:
            delivery.after_fork()
        for standing in self._standings.values():
            standing.after_fork()

    # ---- what users call ----

    def flush(self, timeout: float | None = None, sink: str | None = None) -> bool:
        """Wait until everything written before this call is with the sinks (or one sink), or in quarantine.

        False when that took longer than `timeout` seconds (None: a minute), or when lines cannot be written to disk
        or wait for a newer version. Works in a forked child, at exit, and while another process delivers.
        """
        deadline = time.monotonic() + (FLUSH_SECONDS_MAX if timeout is None else max(0.0, timeout))
        chosen = self._chosen(sink)
        self._journal.maintain()
        self._keeper.sweep()
        ends = self._ends(chosen)
        if not any(each.missing(ends[each.name]) for each in chosen):
            return not self._journal.pending
        threads = self.start()
        self._hurry(chosen)
        while True:
            if not threads:
                self._deliver_here(chosen)
            if not any(each.missing(ends[each.name]) for each in chosen):
                return not self._journal.pending
            if self._in_vain(chosen, ends) or time.monotonic() >= deadline:
                return False
            time.sleep(max(0.0, min(POLL_SECONDS, deadline - time.monotonic())))
            threads = self._running()

    def close(self, timeout: float = 5.0) -> bool:
        """Flush for at most `timeout` seconds, stop the threads, close the journal. What is left stays on disk."""
        if self._closed:
            return True
        done = self.flush(timeout)
        self._closed = True
        for delivery in self._deliveries:
            delivery.stop()
        for loop in self._threads:
            loop.stop()
        deadline = time.monotonic() + JOIN_SECONDS_MAX
        for loop in self._threads:
            loop.join(max(0.0, deadline - time.monotonic()))
        self._threads = []
        self._journal.close()
        for delivery in self._deliveries:
            delivery.finish()
        if any(delivery.held for delivery in self._deliveries):
            self._keeper.sweep()
        for delivery in self._deliveries:
            delivery.release()
        return done

    def deliveries(self) -> list[DeliveryState]:
        """How far each sink is, whoever delivers to it."""
        folder = self._journal.folder
        return [
            measure(folder, self._index, each.name, each.current(), self._standings[each.name])
            for each in self._deliveries
        ]

    @property
    def over_limit(self) -> bool:
        """Whether the journal has grown beyond `journal_bytes_max` because a sink does not take its events."""
        return self._keeper.retention.over_limit

    def size(self) -> tuple[int, int]:
        """The journal's bytes and its number of segments."""
        return self._index.total(), len(self._index.names())

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        threads: list[Loop] = getattr(self, "_threads", [])
        if threads and not self._closed:
            for delivery in self._deliveries:
                delivery.stop()
                delivery.release()
            for loop in threads:
                loop.stop()
            warnings.warn("a token_meter reporter was never closed", ResourceWarning, stacklevel=2)

    # ---- inside ----

    def _chosen(self, sink: str | None) -> list[Delivery]:
        chosen = [each for each in self._deliveries if sink in (None, each.name)]
        if sink is not None and not chosen:
            raise ValueError(f"no sink {sink!r}. There is: {', '.join(each.name for each in self._deliveries)}.")
        return chosen

    def _ends(self, chosen: Sequence[Delivery]) -> dict[str, dict[str, int]]:
        return {each.name: unpassed(self._index, each.current()) for each in chosen}

    def _hurry(self, chosen: Sequence[Delivery]) -> None:
        for delivery in chosen:
            delivery.hurry()
        for loop in self._threads:
            loop.wake()

    def _deliver_here(self, chosen: Sequence[Delivery]) -> None:
        """In the caller's thread, because no other runs (any more)."""
        for delivery in chosen:
            delivery.resume()
            delivery.run()
            if self._closed:
                delivery.release()

    def _in_vain(self, chosen: Sequence[Delivery], ends: Mapping[str, Mapping[str, int]]) -> bool:
        """Whether all that is missing waits for a newer version."""
        missing = [(each, name) for each in chosen for name in each.missing(ends[each.name])]
        return bool(missing) and all(name in each.current().blocked for each, name in missing)


def unpassed(index: SegmentIndex, cursor: Cursor) -> dict[str, int]:
    """Where the complete lines of each segment end that the cursor has not passed yet."""
    ends = {}
    for name in index.names():
        position = cursor.position(name)
        if not position.done and index.size(name) > position.offset:
            end = end_of(index.folder / name).offset
            if end > position.offset:
                ends[name] = end
    return ends


def _keeping(journal: Journal, keeper: Keeper) -> Callable[[], None]:
    def turn() -> None:
        journal.maintain()
        keeper.turn()

    return turn


def _nothing() -> None:
    """What a thread without a lock does when it leaves."""


def _weakly(function: OnError | None) -> OnError | None:
    """A bound method held weakly: the threads must not keep its object (the Meter) alive."""
    if not isinstance(function, MethodType):
        return function
    reference = weakref.WeakMethod(function)

    def call(what: str, error: BaseException) -> None:
        method = reference()
        if method is not None:
            method(what, error)

    return call
