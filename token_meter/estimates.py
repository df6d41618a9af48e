"""Estimates that take time: counted by one background thread, each written exactly once.

A call whose estimate waits here is still open in the journal, so a process that is killed leaves it as `unmetered`.
Whoever claims an estimate first settles it: the thread with what it counted, or, when there is no time left, `close`
with nothing; the heuristic estimate that the reading already has is then written. Nothing here knows what is counted.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

from token_meter.locks import tell_after_fork
from token_meter.patience import PatientLock

WAITING_MAX: Final = 64
"""So many estimates wait at most, each with its request; further ones are made by size, at once."""

WAIT_SECONDS_MAX: Final = 60.0
"""What `wait(None)` waits."""

POLL_SECONDS: Final = 0.005
"""Waiting polls: the primitives that notify cannot be entered again from a signal handler."""

WRITE_SECONDS_MAX: Final = 1.0
"""How long `close` waits for what another thread has claimed and is writing."""

Problem = Callable[[str, BaseException], None]


class Estimates:
    """The estimates of one Meter that are not made yet, and the thread that makes them: started at the first one.

    After a fork they are the parent's. A child that was forked in the middle of counting makes none of its own: a
    lock of the tokeniser may have stayed behind with the parent's thread.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._closed = False
        self._counting = False
        self._begin()
        tell_after_fork(self)

    def _begin(self) -> None:
        self._waiting: dict[int, Estimate] = {}
        self._queue: SimpleQueue[Estimate | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = PatientLock()
        self._busy_starting = False

    def after_fork(self) -> None:
        """In a forked child."""
        self._closed = self._closed or self._counting
        self._counting = False
        self._begin()

    @property
    def waiting(self) -> int:
        """How many are not written yet."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether `put` is welcome without starting a thread: what a finaliser may ask."""
        thread = self._thread
        has_room = len(self._waiting) < WAITING_MAX and not self._closed
        return has_room and thread is not None and thread.is_alive() and not sys.is_finalizing()

    def ready(self) -> bool:
        """Whether `put` is welcome; starts the thread."""
        if self._closed or len(self._waiting) >= WAITING_MAX:
            return False
        return self.running or self._start()

    def put(self, count: Callable[[], Any], settle: Callable[[Any], object]) -> None:
        """Have `settle(count())` called in the background; `settle(None)` if counting fails or takes too long."""
        estimate = Estimate(count, settle, self._waiting)
        self._queue.put(estimate)
        if self._closed:  # between `ready` and here
            estimate.give_up()

    def wait(self, timeout: float | None) -> bool:
        """Wait until everything that waits now is written; False when that took longer than `timeout` seconds."""
        deadline = time.monotonic() + (WAIT_SECONDS_MAX if timeout is None else timeout)
        asked = list(self._waiting.items())
        while asked := [(key, each) for key, each in asked if self._waiting.get(key) is each]:
            if not self._is_served():
                _give_up(each for _, each in asked)
                return True
            if time.monotonic() >= deadline or threading.current_thread() is self._thread:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def close(self, timeout: float) -> None:
        """Wait at most `timeout` seconds, then settle what is left without counting. Later `put`s do not wait."""
        done = self.wait(timeout)
        self._closed = True
        _give_up(list(self._waiting.values()))
        deadline = time.monotonic() + WRITE_SECONDS_MAX
        while self._waiting and self._is_served() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        thread, self._thread = self._thread, None
        self._queue.put(None)
        if thread is not None and done and thread is not threading.current_thread():
            thread.join(WRITE_SECONDS_MAX)

    # ---- inside ----

    def _is_served(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive() and not sys.is_finalizing()

    def _start(self) -> bool:
        with self._starting:
            if self._busy_starting or self._is_served():
                return not self._busy_starting
            self._busy_starting = True
            try:
                thread = threading.Thread(target=self._run, name="token_meter-estimates", daemon=True)
                thread.start()
                self._thread = thread
            except RuntimeError:  # the interpreter is going down
                return False
            finally:
                self._busy_starting = False
        return True

    def _run(self) -> None:
        queue = self._queue
        while (estimate := queue.get()) is not None:
            self._counting = True
            try:
                estimate.make()
            except BaseException as error:  # noqa: BLE001 - also a panic of the tokeniser: the thread must go on
                self._problem("tokenise", error)
                estimate.give_up()
            finally:
                self._counting = False
            del estimate  # it refers to the call and, until counted, to the prompt


class Estimate:
    """One of them: to be counted and settled, once."""

    __slots__ = ("_count", "_open", "_settle", "_waiting")

    def __init__(self, count: Callable[[], Any], settle: Callable[[Any], object], waiting: dict[int, Estimate]) -> None:
        self._count: Callable[[], Any] | None = count
        self._settle = settle
        self._waiting = waiting
        self._open = True
        waiting[id(self)] = self

    def make(self) -> None:
        """Count, then settle, unless another thread has lost patience meanwhile."""
        count, self._count = self._count, None
        if count is not None:
            self._finish(count())

    def give_up(self) -> None:
        """Settle without counting, unless it is settled."""
        self._count = None
        self._finish(None)

    def _finish(self, counted: Any) -> None:
        try:
            del self._open  # atomic: two threads may race
        except AttributeError:
            return
        try:
            self._settle(counted)
        finally:
            self._waiting.pop(id(self), None)


def _give_up(estimates: Any) -> None:
    for each in estimates:
        each.give_up()
