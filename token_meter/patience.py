"""Locks that neither a fork nor the end of the interpreter can turn into a trap.

When the interpreter goes down it stops daemon threads wherever they are, also while they hold a lock. Whoever
comes later (a finaliser, an atexit function) would wait for ever. These locks notice that their holder is gone.
"""

from __future__ import annotations

import sys
import threading
from typing import Final

LOOK_SECONDS: Final = 0.05
"""How often a waiting thread looks whether the interpreter is going down."""


class PatientLock:
    """A reentrant lock for `with`. `orphaned` says that a holder was stopped in the middle of its work."""

    def __init__(self, lock: threading.RLock | None = None) -> None:
        self.orphaned = False
        self._lock = lock or threading.RLock()

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=LOOK_SECONDS):
            if sys.is_finalizing():
                self._lock = threading.RLock()
                self.orphaned = True

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, timeout: float) -> bool:
        """Wait for it at most so long."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


class TryLock:
    """A lock nobody waits for: whoever does not get it leaves the work to the one who has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0

    def acquire(self) -> bool:
        """Take it if it is free, or if its holder was stopped with the interpreter."""
        if not self._lock.acquire(blocking=False):
            if not sys.is_finalizing() or self._holder == threading.get_ident():
                return False
            self._lock = threading.Lock()
            self._lock.acquire()
        self._holder = threading.get_ident()
        return True

    def release(self) -> None:
        """Give it back."""
        self._holder = 0
        self._lock.release()
