"""What a journal needs besides sending: dead writers' books closed, delivered segments deleted, lost files put back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

from token_meter.cursors import Cursor, CursorReader
from token_meter.delivery import Delivery
from token_meter.folder import JournalFolder
from token_meter.patience import TryLock
from token_meter.problems import Problem
from token_meter.recovery import Recovery
from token_meter.retention import Retention
from token_meter.segments import SegmentIndex

SWEEP_SECONDS: Final = 1.0
SIZE_CHECK_SECONDS: Final = 10.0


class Keeper:
    """What has to be done for the journal besides sending: see `turn`."""

    def __init__(
        self,
        folder: JournalFolder,
        index: SegmentIndex,
        deliveries: Sequence[Delivery],
        *,
        problem: Problem,
        durable: bool,
        journal_bytes_max: int,
    ) -> None:
        self.retention = Retention(folder, index, problem=problem, journal_bytes_max=journal_bytes_max)
        self._folder = folder
        self._index = index
        self._deliveries = {each.name: each for each in deliveries}
        self._problem = problem
        self._recovery = Recovery(index, problem=problem, durable=durable)
        self._others = CursorReader(folder)
        self._registered = folder.registered()
        self._running = TryLock()
        self._sweep_at = float("-inf")
        self._size_at = float("-inf")

    def turn(self) -> None:
        """Every second, in the process that delivers: close dead segments' books, delete what everyone has."""
        now = time.monotonic()
        if now < self._sweep_at or not any(each.held for each in self._deliveries.values()):
            return
        self._sweep_at = now + SWEEP_SECONDS
        self.sweep()
        if now >= self._size_at:
            self._size_at = now + SIZE_CHECK_SECONDS
            self.retention.check_size()

    def sweep(self) -> None:
        """Recover dead segments, delete finished ones, put back files that were deleted."""
        if not self._running.acquire():
            return
        try:
            self._recovery.sweep()
            self.retention.sweep(self._cursor_of)
            self._restore()
        except Exception as error:  # noqa: BLE001 - told; the next turn tries again
            self._problem("keep the journal", error)
        finally:
            self._running.release()

    def after_fork(self) -> None:
        """Another thread of the parent may have been inside."""
        self._running = TryLock()

    def _cursor_of(self, sink: str) -> Cursor | None:
        delivery = self._deliveries.get(sink)
        return delivery.settled() if delivery is not None else self._others.get(sink)

    def _restore(self) -> None:
        if self._folder.document.exists():
            self._registered = self._folder.registered()
            return
        self._problem("the journal folder", "journal.json was deleted while in use: writing it again")
        self._folder.make()
        with self._folder.locked():
            self._folder.write_document(self._registered)
        for delivery in self._deliveries.values():
            delivery.keep_cursor()


class Loop:
    """A daemon thread that takes a turn every interval, or at once when woken."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], None],
        leave: Callable[[], None],
        *,
        interval_seconds: float,
        problem: Problem,
    ) -> None:
        self._turn = turn
        self._leave = leave
        self._interval_seconds = interval_seconds
        self._problem = problem
        self._stopped = False
        # Not an Event: a signal handler may wake the thread while its own thread is inside `Event.set`.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"token_meter-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError when the interpreter cannot."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Take the next turn now."""
        self._wakes.put(None)

    def stop(self) -> None:
        """Take no further turn."""
        self._stopped = True
        self.wake()

    def join(self, timeout: float) -> None:
        """Wait until the thread has left; it cannot wait for itself."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._turn()
            except BaseException as error:  # noqa: BLE001 - also SystemExit from a sink: the thread must go on
                self._problem(self._thread.name, error)
            try:
                self._wakes.get(timeout=self._interval_seconds)
            except Empty:
                continue
        self._leave()
