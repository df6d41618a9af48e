"""Threads of a program: one hands notices to its callbacks, one posts them to the endpoints of its ledger."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
    """Each is started when it is needed. A callback is told of what is new from then on,
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
        self._stopped = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child: threads of its own, when they are started there."""
        self._begin()

    def listen(self, callback: Callback, kinds: Sequence[str]) -> None:
        """Call this with each new notice of these kinds (none: every kind). Raises TypeError for what is no function,
        or one that would have to be awaited."""
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError(f"a callback for notices is a plain function of one notice, not {callback!r:.100}")
        if self._began is None:
            with self._ledger.reading() as (_, connection):
                self._began = last_notice(connection)
        self._listeners.append(_Listener(callback, tuple(kinds)))
        self.tend()

    def tend(self) -> None:
        """Have the callbacks told, if there are any; a forked child has lost the thread that did it."""
        if self._listeners:
            self._run_beside("token_meter-notices", self._tell, self._tell)  # what was written until now, too

    def post(self) -> None:
        """Have notices posted. In a thread of its own: a slow receiver keeps no callback waiting."""
        self._run_beside("token_meter-webhooks", self._post, None)

    def close(self, timeout: float) -> None:
        """Tell the callbacks what is new, then stop. What is being posted then is posted by the next process, too."""
        deadline = time.monotonic() + timeout
        self._stopped.set()
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run_beside(self, name: str, step: Callable[[], None], last: Callable[[], None] | None) -> None:
        def run() -> None:
            while not self._stopped.is_set():
                self._guarded(step)
                self._stopped.wait(TURN_SECONDS)
            if last is not None:
                self._guarded(last)

        with self._lock:
            thread = self._threads.get(name)
            if thread is None or not thread.is_alive():
                thread = self._threads[name] = threading.Thread(target=run, name=name, daemon=True)
                thread.start()

    def _post(self) -> None:
        while self._postman.turn():
            if self._stopped.is_set():
                return

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
        except BaseException as error:  # noqa: BLE001 - the user's own function; SystemExit would end the thread
            self._problem("a callback for notices", error)
