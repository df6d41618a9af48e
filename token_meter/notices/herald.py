"""A thread of a program that hands notices to its callbacks, and posts them to the endpoints of its ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_meter.bookkeeping.notice_rows import last_notice, read_notices
from token_meter.locks import tell_after_fork
from token_meter.notices.endpoint import wanted
from token_meter.notices.postman import Postman

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

TURN_SECONDS: Final = 1.0
BEHIND_MAX: Final = 200
"""So many numbers back a notice is still seen that was committed after a later one."""

Notice = Mapping[str, Any]
Callback = Callable[[Notice], object]


class _Listener(NamedTuple):
    callback: Callback
    kinds: Sequence[str]


class Herald:
    """Started by the first callback, or when the ledger has endpoints. A callback is told of what is new from then on,
    at least once in each process; one that fails is told to `problem`, and the next notice comes all the same."""

    def __init__(self, ledger: Ledger, *, problem: Callable[[str, BaseException], None]) -> None:
        self._ledger = ledger
        self._problem = problem
        self._postman = Postman(ledger)
        self._listeners: list[_Listener] = []
        self._began: int | None = None
        self._seen: set[int] = set()
        self._begin()
        tell_after_fork(self)

    def _begin(self) -> None:
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child: its own thread, when it is started there."""
        listeners = self._listeners
        self._begin()
        self._listeners = listeners

    def listen(self, callback: Callback, kinds: Sequence[str]) -> None:
        """Call this with each new notice of these kinds (none: every kind)."""
        if self._began is None:
            with self._ledger.reading() as (_, connection):
                self._began = last_notice(connection)
        self._listeners.append(_Listener(callback, tuple(kinds)))
        self.start()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="token_meter-notices", daemon=True)
                self._thread.start()

    def close(self, timeout: float) -> None:
        """Tell the callbacks what is new, then stop."""
        thread = self._thread
        if thread is None:
            return
        self._stopped = True
        self._wakes.put(None)
        thread.join(timeout)

    def turn(self) -> None:
        """Tell the callbacks, then post."""
        self._tell()
        while self._postman.turn():
            if self._stopped:
                return

    def _run(self) -> None:
        while not self._stopped:
            self._guarded(self.turn)
            try:
                self._wakes.get(timeout=TURN_SECONDS)
            except Empty:
                continue
        self._guarded(self._tell)  # what was written until now

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - told; the thread goes on
            self._problem("notices", error)

    def _tell(self) -> None:
        if not self._listeners or self._began is None:
            return
        newest = max(self._seen, default=self._began)
        with self._ledger.reading() as (_, connection):
            found = read_notices(connection, max(self._began, newest - BEHIND_MAX))
        for notice in found:
            if notice["number"] in self._seen:
                continue
            self._seen.add(notice["number"])
            for listener in self._listeners:
                if wanted(listener.kinds, notice["kind"]):
                    self._call(listener.callback, notice)
        self._seen = {number for number in self._seen if number > max(self._seen, default=0) - 2 * BEHIND_MAX}

    def _call(self, callback: Callback, notice: Notice) -> None:
        try:
            callback(notice)
        except Exception as error:  # noqa: BLE001 - the user's own function
            self._problem("a callback for notices", error)
