"""The journal: what was metered is on disk before the call returns.

`opened`, `ended` and `append` run in the caller's thread on every model call: one unbuffered write on an
append-only descriptor, so that a process killed at any moment has lost nothing. They never raise. When the disk
does not take a line it waits in bounded memory, and every later write and the reporter try again.

A signal handler or a finaliser can enter again while its own thread is inside: `_busy` sends it to a queue that
the outer call empties. Finalisers of any thread use `defer`, which only queues.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from token_meter.folder import JournalFolder
from token_meter.locks import tell_after_fork
from token_meter.patience import PatientLock
from token_meter.problems import Problems
from token_meter.writer import BEGUN, LineWriter

RETRIED_IN_TURN_MAX: Final = 256
"""How many waiting lines are written without letting a caller in between."""

Operation = Callable[[str, bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterState:
    """What this process's writer has to say for itself."""

    path: Path
    segment: str | None
    outstanding: int
    pending: int
    lost: int
    problems: dict[str, int]


class Journal:
    """One process's writer of a journal folder.

    `lines` are JSON lines, each with its newline. `fsync`: "always" forces every ended call to disk before the
    call returns, "interval" leaves that to the reporter (a fraction of a second), "never" to the kernel.
    Raises JournalError when the folder cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        fsync: Literal["always", "interval", "never"] = "interval",
        segment_bytes_max: int = 8 << 20,
        pending_max: int = 10_000,
        journal_bytes_max: int = 4 << 30,
    ) -> None:
        if fsync not in ("always", "interval", "never"):
            raise ValueError(f"fsync must be 'always', 'interval' or 'never', not {fsync!r}")
        self.folder = JournalFolder(folder)
        self.folder.create()
        self.fsync = fsync
        self.journal_bytes_max = journal_bytes_max
        self._segment_bytes_max = segment_bytes_max
        self._pending_max = pending_max
        self._problems = Problems(self.folder.problems)
        self._sync_each = fsync == "always"
        self._inherited: set[str] = set()
        self._closed = False
        self.on_begin: Callable[[], object] | None = None
        """Called when this process begins a segment, after a fork too: that is when a reporter is needed."""
        self.on_maintain: Callable[[], object] | None = None
        """What else may be done away from the callers' threads."""
        self._begin()
        tell_after_fork(self)

    def _begin(self) -> None:
        """The state of a process that has written nothing yet."""
        self._lock: threading.RLock | PatientLock = threading.RLock()
        self._busy = False
        self._open: dict[str, bytes] = {}
        self._queue: deque[tuple[Operation, str, bytes]] = deque()
        self._writer = LineWriter(
            self.folder, self._open, segment_bytes_max=self._segment_bytes_max, pending_max=self._pending_max
        )
        self._notices = self._writer.notices

    def after_fork(self) -> None:
        """In a forked child: calls opened before belong to the parent, and so do their ends."""
        self._inherited |= {*self._open, *(identifier for _, identifier, _ in self._queue if identifier)}
        self._begin()
        self._problems.after_fork()

    def before_exit(self) -> None:
        """From here on a thread can be stopped while it holds the lock, so it takes one that notices.

        Until then it is the plain one, which costs less and which an interrupt cannot leave locked.
        """
        if not isinstance(self._lock, PatientLock):
            self._lock = PatientLock(self._lock)

    def opened(self, id: str, line: bytes) -> None:
        """A call is about to be sent. Until it ends it counts as outstanding."""
        with self._lock:
            if self._busy:
                self._queue.append((self._opened, id, line))
                return
            self._busy = True
            try:
                self._opened(id, line)
            except Exception as error:  # noqa: BLE001 - D3: told, never raised into a model call
                self._notices.append(("journal", error))
            finally:
                self._busy = False
        if self._queue or self._notices:
            self._catch_up()

    def ended(self, id: str, lines: bytes) -> None:
        """The call ended: these are its events, or its void."""
        with self._lock:
            if self._busy:
                self._queue.append((self._ended, id, lines))
                return
            self._busy = True
            try:
                self._ended(id, lines)
            except Exception as error:  # noqa: BLE001 - D3: told, never raised into a model call
                self._notices.append(("journal", error))
            finally:
                self._busy = False
        if self._sync_each:
            self._writer.sync(self._writer.written)
        if self._queue or self._notices:
            self._catch_up()

    def append(self, lines: bytes) -> None:
        """Events that belong to no opened call."""
        self.ended("", lines)

    def defer(self, id: str, lines: bytes) -> None:
        """`ended` for finalisers: only queues. The next write or the reporter writes it."""
        self._queue.append((self._ended, id, lines))

    def problem(self, what: str, error: BaseException | str) -> None:
        """Count a failure inside metering; tell about it once per kind, then at 10, 100, ... Never raises."""
        self._problems.record(what, error)

    @property
    def pending(self) -> int:
        """Lines that wait in memory because they could not be written yet."""
        return len(self._writer.pending) + len(self._queue)

    @property
    def lost(self) -> int:
        """Events that were dropped because the disk took nothing and memory was full."""
        return self._writer.lost

    def state(self) -> WriterState:
        """The writer's part of a health report."""
        file = self._writer.file
        return WriterState(
            path=self.folder.path,
            segment=file.path.name if file else None,
            outstanding=len(self._open),
            pending=self.pending,
            lost=self.lost,
            problems=dict(self._problems.counts),
        )

    def maintain(self) -> None:
        """What the reporter's thread does every turn: write what waits, look after the file, force it to disk."""
        waiting = len(self._writer.pending) + 1
        while len(self._writer.pending) < waiting:
            waiting = len(self._writer.pending)
            # In steps, so that callers do not wait for the whole of what an outage left.
            self._alone(self._tend)
            if not self._writer.pending:
                break
        self._settle()
        if self.on_maintain is not None:
            self._run("maintain", self.on_maintain)

    def close(self) -> None:
        """Seal the segment and let go of it.

        A call that is still open keeps it unsealed and locked until the process ends, so that its end can still
        be written, or its death noticed. Writing after `close` works: it begins a new segment.
        """
        self._closed = True
        self._alone(self._finish)
        self._settle()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        writer: LineWriter | None = getattr(self, "_writer", None)
        if writer is not None and writer.file is not None:
            writer.abandon()
            if not self._closed:
                warnings.warn(f"journal {str(self.folder.path)!r} was never closed", ResourceWarning, stacklevel=2)

    def _opened(self, id: str, line: bytes) -> None:
        self._open[id] = line
        if not self._writer.put(line, id):
            # Neither on disk nor waiting. Its end will be written without it.
            del self._open[id]
        if self._writer.room < 0:
            self._writer.rotate()

    def _ended(self, id: str, lines: bytes) -> None:
        if id not in self._open and id in self._inherited:
            return
        writer = self._writer
        if writer.pending:
            writer.pending.pop(id, None)
        # Forgotten only when the end is written: an interruption in between leaves a visible `unmetered`.
        if writer.put(lines):
            self._open.pop(id, None)
        if writer.room < 0:
            writer.rotate()

    def _drain(self) -> None:
        while self._queue:
            operation, identifier, lines = self._queue.popleft()
            operation(identifier, lines)

    def _tend(self) -> None:
        self._drain()
        if self._writer.pending:
            self._writer.retry(RETRIED_IN_TURN_MAX)
        self._writer.check_file()

    def _finish(self) -> None:
        self._tend()
        if self._writer.pending:
            self._writer.retry(len(self._writer.pending))
        waiting = len(self._writer.pending)
        if waiting:
            self._notices.append(("journal close", f"{waiting} lines are in memory only: the disk does not take them"))
        elif not self._open:
            self._writer.seal()

    def _alone(self, action: Callable[[], None]) -> None:
        """Run an action with the lock held; nothing when this thread is inside already."""
        with self._lock:
            if self._busy and not self._orphaned():
                return
            self._busy = True
            try:
                action()
            except Exception as error:  # noqa: BLE001 - D3: told, never raised into a model call
                self._notices.append(("journal", error))
            finally:
                self._busy = False

    def _orphaned(self) -> bool:
        return isinstance(self._lock, PatientLock) and self._lock.orphaned

    def _catch_up(self) -> None:
        """Write what was queued while a call was inside, and tell about failures, with no lock held."""
        if self._queue:
            self._alone(self._drain)
            if self._sync_each:
                self._writer.sync(self._writer.written)
        self._tell()

    def _settle(self) -> None:
        if self.fsync != "never":
            self._writer.sync(self._writer.written)
        self._writer.close_retired(durable=self.fsync != "never")
        self._tell()

    def _tell(self) -> None:
        """Told with no lock held: a log handler may do anything, model calls included."""
        while self._notices:
            try:
                what, error = self._notices.popleft()
            except IndexError:
                return
            if what != BEGUN:
                self._problems.record(what, error)
            elif self.on_begin is not None:
                self._run("start the reporter", self.on_begin)

    def _run(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - D3: told, never raised into a model call
            self._problems.record(what, error)
