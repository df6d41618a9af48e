"""Which events stand in the files of one day: a small database beside them, so that none is written twice.

It is a cache. The files are the truth: the index is compared with them each time, what it does not know is read, and
what is gone is forgotten. So it may be deleted, be older than the files after a crash, or find files that somebody else
put there. It takes some 50 bytes per event, and looking one up costs the same however many there are.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from token_meter.sinks.native import native_work

VERSION: Final = 1
"""What the tables look like. An index of another version is made anew."""

_TABLES: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE file (
    number INTEGER PRIMARY KEY, name TEXT UNIQUE, inode INTEGER, size INTEGER, modified INTEGER, events INTEGER
);
CREATE TABLE seen (mark BLOB PRIMARY KEY, file INTEGER) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
COMMIT;
"""


class State(NamedTuple):
    """A file as it was when it was read; when anything differs it has to be read again.

    A file that replaces another is there beside it first, so it has another inode.
    """

    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path | os.DirEntry[str]) -> State:
        """As it is now."""
        there = path.stat()
        return cls(there.st_ino, there.st_size, there.st_mtime_ns)


class FileIndex:
    """The index of one day, open in a `with`. Only whoever holds the folder's lock may open it.

    Raises sqlite3.Error when it cannot be read or written, and is then deleted, so that it is made anew.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self._durable = durable
        self._database: sqlite3.Connection | None = None
        self._leaving = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(native_work())
            undo.push(self._removed_if_broken)
            self._database = undo.enter_context(closing(self._opened()))
            self._prepare()
            self._leaving = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database = None
        self._leaving.__exit__(kind, error, trace)

    def remove(self) -> None:
        """Delete it. It must not be open."""
        for path in (self.path, self.path.with_name(f"{self.path.name}-journal")):
            path.unlink(missing_ok=True)

    def unread(self, files: Mapping[str, State]) -> list[str]:
        """Forget what these files do not say any more, and return those that have to be read."""
        rows = self._run("SELECT name, inode, size, modified FROM file").fetchall()
        known = {name: State(*state) for name, *state in rows}
        stale = [name for name, state in known.items() if files.get(name) != state]
        if stale:
            self._run("BEGIN IMMEDIATE")
            for name in stale:
                self._run("DELETE FROM seen WHERE file = (SELECT number FROM file WHERE name = ?)", name)
                self._run("DELETE FROM file WHERE name = ?", name)
            self._run("COMMIT")
        return [name for name, state in files.items() if known.get(name) != state]

    def has(self, mark: bytes) -> bool:
        """Whether an event stands in one of the files."""
        return self._run("SELECT 1 FROM seen WHERE mark = ?", mark).fetchone() is not None

    def events_in(self, name: str) -> int:
        """How many events stand in a file."""
        row = self._run("SELECT events FROM file WHERE name = ?", name).fetchone()
        return int(row[0]) if row else 0

    def add(self, name: str, state: State, marks: Sequence[bytes]) -> None:
        """Note what was added to a file or found in it, which looks like this now."""
        self._run("BEGIN IMMEDIATE")
        self._run(
            "INSERT INTO file (name, inode, size, modified, events) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET inode = excluded.inode, size = excluded.size, "
            "modified = excluded.modified, events = events + excluded.events",
            name, *state, len(marks),
        )  # fmt: skip
        (number,) = self._run("SELECT number FROM file WHERE name = ?", name).fetchone()
        assert self._database is not None
        self._database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?)", [(mark, number) for mark in marks])
        self._run("COMMIT")

    def _opened(self) -> sqlite3.Connection:
        # SQLite would make the file readable for others; its journal takes the mode from the file.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(self.path, isolation_level=None)

    def _prepare(self) -> None:
        assert self._database is not None
        self._run(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        (version,) = self._run("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.executescript(_TABLES)
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"{self.path} is of another version")

    def _removed_if_broken(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            self.remove()

    def _run(self, statement: str, *values: str | int | bytes) -> sqlite3.Cursor:
        assert self._database is not None, "use it in a `with`"
        return self._database.execute(statement, values)


def keep_newest(indexes: Iterable[Path], count: int) -> None:
    """Delete all but the indexes that were used last."""
    by_age = sorted((State.of(path).modified, path) for path in indexes)
    for _, path in by_age[: -count or None]:
        with suppress(OSError):  # a cache that stays costs room, nothing else
            FileIndex(path, durable=False).remove()
