"""A sink that writes events to files for analytics: JSON lines, CSV or Parquet, in a folder for each day."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks.file_formats import FORMATS, UNWRITABLE, Format, Name, day_of, event_mark, may_roam
from token_meter.sinks.file_index import FileIndex, State, keep_newest

PART_EVENTS: Final = 10_000
"""How many events a part holds. The newest one of a day is written anew with each batch, so this bounds that work."""

INDEXES_MAX: Final = 31
"""How many days keep their index, those used last. That of another is made anew if events of that day come."""

LOCK_SECONDS_MAX: Final = 10.0
LOCK_POLL_SECONDS: Final = 0.005
_LOCK: Final = ".token-meter.lock"


class FilesSink:
    """Writes each event once to `<folder>/date=YYYY-MM-DD/part-000001.<format>`, by its day in UTC.

    Readers see whole files only: a part is written beside its place, then renamed. It takes up to `part_events` events
    (or one batch, if that is larger), and only the last part of a day ever changes. An event that comes again is not
    written again: what stands in the files of its day is known, and in those of the last `INDEXES_MAX` days for an id
    that may come with another time. An `unmetered` placeholder keeps its row when the real event follows under its id.

    Any number of processes may write to one folder on a file system with locks. The folder is made when the first
    batch comes; files have mode 0600. When the disk is full nothing half is left and the batch is sent again later.
    `fsync="always"` makes events survive a crash of the machine, not only of the process.
    """

    interval_seconds = 5.0
    """How often a meter gives it what there is: each batch writes the last part of a day anew."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Name = "jsonl",
        part_events: int = PART_EVENTS,
        fsync: Literal["always", "never"] = "always",
        name: str = "files",
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
        if part_events < 1:
            raise ValueError(f"part_events must be at least 1, not {part_events}")
        if fsync not in ("always", "never"):
            raise ValueError(f"fsync must be 'always' or 'never', not {fsync!r}")
        self.name = name
        self._folder = Path(folder)
        self._format: Format = FORMATS[format]()
        self._part_events = part_events
        self._durable = fsync == "always"
        self._made = False

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Write the events; all of them are there when it returns.

        Raises Rejected for events that the format cannot hold, before anything is written, and Retry when files cannot
        be read or written. A batch of several days may then be there in part: it comes again, and adds what is missing.
        """
        days = self._by_day(events)
        if not days:
            return
        try:
            with self._locked():
                for day, rows in sorted(days.items()):
                    self._write(self._folder / f"date={day}", rows)
        except (OSError, sqlite3.Error) as problem:
            raise Retry(f"cannot write to {self._folder}: {problem}") from problem

    def close(self) -> None:
        """Nothing is open between two batches."""

    def __repr__(self) -> str:
        return f"FilesSink({str(self._folder)!r}, format={self._format.suffix!r}, name={self.name!r})"

    def _by_day(self, events: Sequence[MeterEvent]) -> dict[str, dict[bytes, _Row]]:
        """The rows by day and mark. Raises Rejected."""
        days: dict[str, dict[bytes, _Row]] = {}
        refused, reason = [], ""
        for event in events:
            try:
                row, mark, day = self._format.row(event), event_mark(event), day_of(event.time)
                days.setdefault(day, {}).setdefault(mark, _Row(row, may_roam(event)))
            except UNWRITABLE as problem:
                refused.append(event)
                reason = f"cannot be written as {self._format.suffix}: {problem}"
        if refused:
            raise Rejected(refused, reason)
        return days

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """While nobody else writes to the folder: no other process, and no other thread."""
        if not self._made:
            # Only once: a folder that goes away later may be a disk that is not mounted.
            self._make(self._folder)
            self._made = True
        lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(lock)
            try:
                yield
            finally:
                # Closing would not do: a process that was forked meanwhile has the file open too.
                fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(lock)

    def _write(self, day: Path, rows: dict[bytes, _Row]) -> None:
        """Add what is new to a day."""
        self._make(day)
        index = FileIndex(day / self._index_name, durable=self._durable)
        if not index.path.exists():
            keep_newest(self._indexes(), INDEXES_MAX - 1)
        self._follow(day, index)
        with index:
            self._add(day, index, rows)

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=folder == self._folder, exist_ok=True)
            if self._durable:
                _sync_folder(folder.parent)

    def _add(self, day: Path, index: FileIndex, rows: dict[bytes, _Row]) -> None:
        new = {mark: row for mark, row in rows.items() if not index.has(mark)}
        for mark in self._found_on_other_days(index, [mark for mark, row in new.items() if row.may_roam]):
            del new[mark]
        if not new:
            return
        part = self._part(day, index, len(new))
        content = self._format.grown(part.content, [row.content for row in new.values()])
        _replace(part.path, content, durable=self._durable)
        index.add(part.path.name, State.of(part.path), list(new))

    def _follow(self, day: Path, index: FileIndex) -> None:
        """Make the index say what the files of the day say. One by one: a fork waits while an index is open."""
        files = self._files(day)
        with index:
            unread = index.unread(files)
        for name in unread:
            marks = self._marks(day / name)
            with index:
                index.add(name, files[name], marks)

    def _found_on_other_days(self, index: FileIndex, marks: list[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        for path in self._indexes() if marks else ():
            if path != index.path:
                with FileIndex(path, durable=self._durable) as other:
                    found.update(mark for mark in marks if other.has(mark))
        return found

    def _part(self, day: Path, index: FileIndex, count: int) -> _Part:
        """The last part of the day if it takes so many more events, else a new one."""
        last = max((_number(path.name) for path in day.glob(f"part-*.{self._format.suffix}")), default=0)
        path = self._path(day, last)
        if last and index.events_in(path.name) + count <= self._part_events:
            content = path.read_bytes()
            if self._format.can_grow(content):
                return _Part(path, content)
        return _Part(self._path(day, last + 1), None)

    def _path(self, day: Path, number: int) -> Path:
        return day / f"part-{number:06}.{self._format.suffix}"

    @property
    def _index_name(self) -> str:
        return f".ids-{self._format.suffix}.sqlite3"

    def _indexes(self) -> list[Path]:
        return list(self._folder.glob(f"date=*/{self._index_name}"))

    def _files(self, day: Path) -> dict[str, State]:
        """Every file that readers of this format take for data, whoever wrote it."""
        ending = f".{self._format.suffix}"
        with os.scandir(day) as entries:
            return {
                each.name: State.of(each)
                for each in entries
                if each.name.endswith(ending) and not each.name.startswith((".", "_"))
            }

    def _marks(self, path: Path) -> list[bytes]:
        try:
            return self._format.marks(path.read_bytes())
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            what = f"{path} is no {self._format.suffix} file of meter events; move it elsewhere"
            raise Retry(f"{what}: {problem!r}") from problem


class _Row(NamedTuple):
    """An event in its format, and whether it could stand in another day already."""

    content: Any
    may_roam: bool


class _Part(NamedTuple):
    """The file to write next, and what stands in it now."""

    path: Path
    content: bytes | None


def _number(name: str) -> int:
    """The number in the name of a part; 0 for a file of somebody else's."""
    match = re.fullmatch(r"part-(\d{6,12})\.\w+", name)
    return int(match[1]) if match else 0


def _wait_for(lock: int) -> None:
    """Take the lock, or raise TimeoutError: the process that has it may be stopped."""
    deadline = time.monotonic() + LOCK_SECONDS_MAX
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another process keeps {_LOCK} locked") from None
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return


def _replace(path: Path, data: bytes, *, durable: bool) -> None:
    """Put a whole file in a place, or leave the one that is there."""
    beside = path.with_name(f".part{path.suffix}.tmp")
    try:
        _write_file(beside, data, durable=durable)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _write_file(path: Path, data: bytes, *, durable: bool) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        if durable:
            os.fsync(file)
    finally:
        os.close(file)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
