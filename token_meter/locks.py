"""File locks that end with the process holding them, and what a forked child must not inherit.

A journal knows that a writer is dead because its lock is free. flock belongs to the open file, which a forked
child shares: a child that kept the descriptor would keep its dead parent "alive". So every locked descriptor is
opened here, and the child closes (never unlocks) all of them before it runs anything else.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from token_meter.patience import PatientLock

FORK_WAIT_SECONDS_MAX: Final = 1.0
"""How long a fork waits for another thread that is between opening a file and writing its number down."""


class ForkAware(Protocol):
    """An object that must be put in order in a forked child, and perhaps at exit (`before_exit`)."""

    def after_fork(self) -> None: ...


_guard = PatientLock()
_owned: set[int] = set()
_aware: dict[int, weakref.ref[ForkAware]] = {}
_guarded_by_fork: list[bool] = []


def open_owned(path: str | Path, flags: int) -> int:
    """Open a file (created 0600) that a forked child closes at once."""
    _register()
    with _guard:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        _owned.add(descriptor)
        return descriptor


def close_owned(descriptor: int) -> None:
    """Close what `open_owned` opened; its lock ends with it."""
    with _guard:
        _owned.discard(descriptor)
        os.close(descriptor)


def disown(descriptor: int) -> None:
    """Forget a number that no longer means our file (someone closed it and it was given out again)."""
    with _guard:
        _owned.discard(descriptor)


def tell_after_fork(target: ForkAware) -> None:
    """Call `target.after_fork()` in every forked child, and `before_exit()` if it has that, while it lives."""
    _register()
    key = id(target)

    def forget(_: object) -> None:
        _aware.pop(key, None)

    _aware[key] = weakref.ref(target, forget)


def lock_now(descriptor: int) -> bool:
    """Take the exclusive lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give the lock back for everyone who shares the descriptor, a forked child included."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


class FileLock:
    """One lock file. Whoever holds it leaves its process id in it, for people to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0

    def acquire(self) -> bool:
        """Take the lock if it is free. Raises OSError when the file cannot be opened."""
        descriptor = open_owned(self.path, os.O_RDWR | os.O_CREAT)
        try:
            if not lock_now(descriptor) or not is_at(descriptor, self.path):
                close_owned(descriptor)
                return False
        except OSError:
            close_owned(descriptor)
            raise
        self._descriptor = descriptor
        # The number is for people; on a full disk the lock counts without it.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            unlock(descriptor)
            close_owned(descriptor)

    def lost(self) -> bool:
        """Whether the file was deleted or replaced under us, so that someone else may hold the new one."""
        return self.held and not is_at(self._descriptor, self.path)

    def after_fork(self) -> None:
        """The descriptor was closed by the child's hook; only the number is left to forget."""
        self._descriptor = -1


def holder(path: Path) -> int | None:
    """The process that holds the lock file, or None when it is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


@cache
def _register() -> None:
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_in_child)
    atexit.register(_before_exit)


def _before_fork() -> None:
    # Without this, another thread could own a descriptor that the child's list does not know yet.
    _guarded_by_fork.append(_guard.acquire(FORK_WAIT_SECONDS_MAX))


def _after_fork_in_parent() -> None:
    if _guarded_by_fork.pop():
        _guard.release()


def _in_child() -> None:
    global _guard
    _guard = PatientLock()
    _guarded_by_fork.clear()
    for descriptor in list(_owned):
        _owned.discard(descriptor)
        with suppress(OSError):
            os.close(descriptor)
    for target in _alive():
        target.after_fork()


def _before_exit() -> None:
    for target in _alive():
        getattr(target, "before_exit", _nothing)()


def _alive() -> list[ForkAware]:
    targets = [reference() for reference in list(_aware.values())]
    return [target for target in targets if target is not None]


def _nothing() -> None:
    """What most have to do at exit."""
