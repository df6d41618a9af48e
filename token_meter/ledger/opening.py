"""From a path or URL to an open store, in any thread and in any process, also after a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from token_meter.errors import TokenMeterError
from token_meter.ledger.migrate import bring_up_to_date
from token_meter.ledger.rollups import Memory
from token_meter.ledger.store import LedgerError, Result, Store

REST_SECONDS: Final = 5.0
"""Closing, and a fork on an SQLite ledger, waits so long for the transactions of other threads."""

_DRIVERS: Final = {"postgres", "postgresql", "postgresql+psycopg"}


def parse(url: str | os.PathLike[str]) -> URL:
    """A path, `sqlite:///path` or `postgresql://...` as a URL; ValueError for anything else."""
    given = os.fspath(url)
    if "://" not in given:
        return _sqlite(given, given, {})
    try:
        # SQLAlchemy does not know the short name that libpq and many hosters use.
        parsed = make_url("postgresql" + given[8:] if given.startswith("postgres://") else given)
    except (ArgumentError, ValueError):
        raise ValueError("this ledger URL cannot be read. Use a path, sqlite:///path or postgresql://...") from None
    if parsed.drivername in _DRIVERS:
        return parsed
    if parsed.drivername == "sqlite":
        return _sqlite(parsed.database or "", given, parsed.query)
    raise ValueError(
        f"a ledger cannot live in {parsed.drivername!r}. Use a path, sqlite:///path or postgresql://user@host/database."
    )


def _sqlite(path: str, given: str, query: Mapping[str, Any]) -> URL:
    if not path or path.startswith(":memory:"):
        raise ValueError(f"a ledger must outlive the process: name a file, not {given!r}")
    if not query.keys() <= {"timeout"}:
        raise ValueError(f"a SQLite ledger has no option {', '.join(sorted(query))}; only timeout (seconds)")
    # Absolute now: the program may change its folder before the ledger is first used.
    return URL.create("sqlite", database=str(Path(path).expanduser().absolute()), query=query)


def make_store(url: URL) -> Store:
    """The store for this URL; nothing is opened yet."""
    if url.drivername == "sqlite":
        from token_meter.ledger.sqlite import SqliteStore

        busy_seconds = url.query.get("timeout")
        path = Path(str(url.database))
        return SqliteStore(path, busy_seconds=float(str(busy_seconds))) if busy_seconds else SqliteStore(path)
    from token_meter.ledger.postgresql import PostgresqlStore

    return PostgresqlStore(url)


class Gate:
    """Counts who is inside, and can be shut until nobody is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        with self._changed:
            while self._shut:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._shut:
                self._changed.notify_all()

    def shut(self, wait_seconds: float) -> bool:
        """Let nobody in; True if everybody is out in time."""
        with self._changed:
            self._shut = True
            return self._changed.wait_for(lambda: self._inside == 0, wait_seconds)

    def open(self) -> None:
        """Let everybody in again."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class Opened:
    """The store of one ledger, opened and migrated at first use, in any thread and in a forked child.

    A fork waits a moment until no transaction of this ledger is under way in any thread. Connections to SQLite
    are closed before it: the library keeps track of file locks inside the process, so that an inherited
    connection, even one that is never used, would make the child's own connections unsafe. Connections to
    PostgreSQL are left to the parent. The child opens its own store.
    """

    def __init__(self, url: URL, declared: Sequence[str]) -> None:
        self._url = url
        self._declared = declared
        self._closed = False
        self._torn = False
        self._torn_by_fork = False
        self._reset()
        _at_fork().add(self)

    def _reset(self) -> None:
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._writing = threading.Lock()
        self._gate = Gate()
        self.memory = Memory()

    @contextmanager
    def reading(self) -> Iterator[tuple[Store, Connection]]:
        """A transaction that reads. Opening it may raise LedgerError or NewerSchema."""
        with self._gate:
            store = self._opened()
            with store.reading() as connection:
                yield store, connection

    def quickly(self, action: Callable[[Any], Result]) -> Result:
        """Do something short with a connection of the driver; see `Store.quickly`."""
        with self._gate:
            return self._opened().quickly(action)

    @contextmanager
    def alone(self) -> Iterator[Store]:
        """The store, for one thread of this process at a time: to write, and to remember what was written."""
        with self._gate:
            store = self._opened()
            with self._writing:
                yield store

    @property
    def is_open(self) -> bool:
        """Connections may be open in this process."""
        return self._store is not None

    def _opened(self) -> Store:
        if self._store is None:
            with self._opening:
                if self._store is None:
                    self._store = self._open()
                return self._store
        return self._store

    def _open(self) -> Store:
        if self._closed:
            raise LedgerError("this ledger is closed")
        if self._torn:
            raise LedgerError("this process was forked in the middle of a transaction: it cannot use this ledger")
        store = make_store(self._url)
        try:
            store.create()
            bring_up_to_date(store, self._declared)
        except (OSError, sqlite3.Error, DatabaseError) as problem:
            store.close()
            raise _explain(store, problem) from problem
        except TokenMeterError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close every connection of this process, once the transactions under way are over. It stays closed."""
        self._gate.shut(REST_SECONDS)
        self._closed = True
        store, self._store = self._store, None
        if store is not None:
            store.close()
        self._gate.open()

    def before_fork(self) -> None:
        """Come to rest, so that the child inherits nothing half done."""
        careful = self._url.drivername == "sqlite"
        at_rest = self._gate.shut(REST_SECONDS if careful else 0)
        if self._store is not None and at_rest:
            self._store.before_fork()
        self._torn_by_fork = careful and not at_rest

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._gate.open()

    def after_fork_in_child(self) -> Store | None:
        """Start over with new locks and no connection; the store that is now the parent's alone."""
        inherited = self._store
        self._torn = self._torn or self._torn_by_fork
        self._reset()
        return inherited


def reason_of(problem: BaseException) -> str:
    """What the driver said, on one line, without statement and parameters."""
    said = str(getattr(problem, "orig", None) or getattr(problem, "strerror", None) or problem).strip()
    return said.splitlines()[0] if said else type(problem).__name__


def _explain(store: Store, problem: Exception) -> LedgerError:
    reason = reason_of(problem)
    if "not a database" in reason:
        reason = "the file is not a SQLite database. Choose another name, or move that file away."
    return LedgerError(f"cannot open the ledger {store.place}: {reason}")


@cache
def _at_fork() -> weakref.WeakSet[Opened]:
    instances: weakref.WeakSet[Opened] = weakref.WeakSet()
    inherited: list[Store | None] = []  # Never dropped: dropping would close connections of the parent.

    def before() -> None:
        for each in list(instances):
            each.before_fork()

    def in_parent() -> None:
        for each in list(instances):
            each.after_fork_in_parent()

    def in_child() -> None:
        inherited.extend([each.after_fork_in_child() for each in list(instances)])

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
    return instances
