"""Work in C libraries that a fork must not cut in two.

SQLite and Arrow have locks of their own. One that a thread holds at the moment of a fork stays locked in the child for
ever, and SQLite moreover forbids to inherit a connection. So a fork waits until such work is over.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from types import TracebackType
from typing import Final

FORK_SECONDS_MAX: Final = 5.0
"""How long a fork waits. After that the child is made anyway, and cannot do such work."""

WAIT_SECONDS_MAX: Final = 10.0


class NativeWork:
    """For `with`: one thread at a time, and no fork meanwhile. Raises OSError where it cannot be done."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._torn = False
        self._fork = threading.local()

    def __enter__(self) -> None:
        if self._torn:
            raise OSError("this process was forked in the middle of a write: it cannot write itself")
        if not self._lock.acquire(timeout=WAIT_SECONDS_MAX):
            raise TimeoutError("another thread of this process has not come to an end with its write")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Come to rest."""
        self._fork.at_rest = self._lock.acquire(timeout=FORK_SECONDS_MAX)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._fork.at_rest:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Start over with a lock that nobody holds."""
        self._torn = self._torn or not self._fork.at_rest
        self._lock = threading.RLock()


@cache
def native_work() -> NativeWork:
    """The one of this process."""
    work = NativeWork()
    os.register_at_fork(
        before=work.before_fork, after_in_parent=work.after_fork_in_parent, after_in_child=work.after_fork_in_child
    )
    return work
