"""The ledger in one SQLite file: the embedded default."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Select,
    Table,
    TableValuedAlias,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError

from token_meter.ledger.rows import COLUMNS
from token_meter.ledger.store import LedgerError, QuantityRow, Result, Store
from token_meter.ledger.tables import events

BUSY_SECONDS: Final = 10.0
"""How long a writer waits for another one, unless the URL says `?timeout=`; then the reporter tries again later."""

QUICK_SECONDS: Final = 3.0
"""So long a caller waits for others of its process that do something quickly, while somebody else has the file."""

TURN_SECONDS: Final = 0.001

GIVE_WAY_SECONDS: Final = 0.02
"""So long a transaction that writes lets a quick step go first, which a caller waits for."""

CHECKPOINT_PAGES: Final = 4_000
"""The write-ahead log is folded into the file every so many pages (of 4 KiB)."""

_IDS_MAX: Final = 500
_INSERT_EVENT: Final = f"INSERT INTO {events.name} ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


class SqliteStore(Store):
    """One file in WAL mode: readers never wait for the writer, there is one writer at a time.

    `synchronous=FULL`: when `record` returns, the events survive a power failure, because the journal forgets
    them after that.
    """

    insert: ClassVar[Any] = insert

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.path = path
        self.place = str(path)
        self._busy_seconds = busy_seconds
        self._quick: sqlite3.Connection | None = None
        self._quick_lock = threading.Lock()
        self._hurry = False
        self.engine = create_engine(
            URL.create("sqlite", database=str(path)),
            hide_parameters=True,
            connect_args={"timeout": busy_seconds},
        )
        event.listen(self.engine, "connect", _prepare_connection)
        event.listen(self.engine, "begin", _begin)

    def _connect(self, purpose: str) -> Connection:
        begin = "BEGIN IMMEDIATE" if purpose == "write" else "BEGIN"
        if purpose == "write" and self._hurry:
            _give_way(self)
        return self.engine.connect().execution_options(token_meter_begin=begin, token_meter_wait=self._busy_seconds)

    def create(self) -> None:
        """Create the file, for its owner only, and switch it to WAL mode."""
        if self.path.is_dir():
            raise LedgerError(f"cannot open the ledger {self.place}: it is a folder. Name a file in it.")
        if not self.path.parent.is_dir():
            raise LedgerError(f"cannot open the ledger {self.place}: the folder {self.path.parent} does not exist.")
        # SQLite gives its side files (-wal, -shm) the permissions of this one. A file that exists is not opened:
        # to close it would give up the locks that SQLite may hold on it in this process.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        raw = sqlite3.connect(self.path, isolation_level=None, timeout=self._busy_seconds)
        try:
            _switch_to_wal(raw, self._busy_seconds)
        finally:
            raw.close()

    def quickly(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        if not self._quick_lock.acquire(timeout=QUICK_SECONDS):
            raise LedgerError(f"the ledger {self.place} is locked: somebody has been writing to it for too long")
        self._hurry = True
        try:
            if self._quick is None:
                self._quick = sqlite3.connect(self.path, isolation_level=None, timeout=0.0, check_same_thread=False)
                _prepare_connection(self._quick, None)
                self._quick.execute("PRAGMA synchronous = NORMAL")
            return action(self._quick)
        except sqlite3.Error as problem:
            raise LedgerError(f"the ledger {self.place}: {problem}") from problem
        finally:
            self._hurry = False
            self._quick_lock.release()

    def close(self) -> None:
        """Close every connection, the quick one as well."""
        with self._quick_lock:
            quick, self._quick = self._quick, None
            if quick is not None:
                quick.close()
        super().close()

    def before_fork(self) -> None:
        """Close every connection: SQLite's are not fit to be inherited."""
        self.close()

    def lock(self, connection: Connection, *, shared: bool) -> None:
        """BEGIN IMMEDIATE has taken it: there is only one writer."""

    def claim(self, connection: Connection, ids: Iterable[str]) -> None:
        """BEGIN IMMEDIATE has: there is only one writer."""

    def has_table(self, connection: Connection, name: str) -> bool:
        found = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
        return found.first() is not None

    def insert_events(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> set[str]:
        known: set[str] = set()
        for start in range(0, len(rows), _IDS_MAX):
            ids = tuple(row[0] for row in rows[start : start + _IDS_MAX])
            marks = ", ".join("?" * len(ids))
            found = connection.exec_driver_sql(f"SELECT id FROM {events.name} WHERE id IN ({marks})", ids)
            known.update(found.scalars())
        new = [row for row in rows if row[0] not in known]
        if new:
            connection.exec_driver_sql(_INSERT_EVENT, new)
        return {row[0] for row in new}

    def add_quantities(self, connection: Connection, table: Table, rows: Iterable[QuantityRow]) -> None:
        given = list(rows)
        if not given:
            return
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} (period, series, quantity, rating, high, low) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET high = high + excluded.high, low = low + excluded.low",
            given,
        )

    def among(self, number: ColumnElement[Any], numbers: Select[Any]) -> ColumnElement[bool]:
        return number.in_(numbers)

    def unfold(self, usage: ColumnElement[Any]) -> TableValuedAlias:
        return func.json_each(usage).table_valued("key", "value", name="unfolded")

    def member(self, document: ColumnElement[Any], name: str | ColumnElement[Any]) -> ColumnElement[Any]:
        # No JSON path: a name may hold any character, and paths cannot quote them all.
        members = func.json_each(document).table_valued("key", "value")
        return select(members.c.value).where(members.c.key == name).scalar_subquery()


def _give_way(store: SqliteStore) -> None:
    """A reporter that drains a backlog would otherwise take the lock again before anybody else can."""
    deadline = time.monotonic() + GIVE_WAY_SECONDS
    while store._hurry and time.monotonic() < deadline:
        time.sleep(0.001)


def _prepare_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # `_begin` says how a transaction starts, not the driver.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute("PRAGMA cache_size = -32768")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    begin = options.get("token_meter_begin", "BEGIN")
    if begin == "BEGIN":
        connection.exec_driver_sql(begin)
    else:
        _take_turn(connection, begin, float(options["token_meter_wait"]))


def _take_turn(connection: Connection, begin: str, seconds: float) -> None:
    """Wait for the write lock by looking every millisecond or two. SQLite's own waiting sleeps up to a tenth of a
    second at a time, and where others write all the time, it misses every turn."""
    driver: Any = connection.connection.driver_connection
    deadline = time.monotonic() + seconds
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                connection.exec_driver_sql(begin)
            except OperationalError as problem:
                if "locked" not in str(problem.orig) or time.monotonic() >= deadline:
                    raise
                time.sleep(TURN_SECONDS * (1 + random.random()))
            else:
                return
    finally:
        driver.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")


def _switch_to_wal(raw: sqlite3.Connection, busy_seconds: float) -> None:
    # Several processes may switch at once, and SQLite does not always wait for the lock that this takes.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            if raw.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return
            raise LedgerError("this file system does not support SQLite's write-ahead log. Use a local disk.")
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
