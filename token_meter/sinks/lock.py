"""A lock that a forked process can still take."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class ForkLock:
    """A reentrant lock that is new in every process.

    A lock that another thread holds at the moment of a fork stays locked in the child for ever, because that thread
    does not exist there. So the child makes its own the first time it wants it; only one thread of it delivers.
    """

    def __init__(self) -> None:
        self._renew()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._renew()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._process = os.getpid()
