"""The journal folder: where its files are, how they are replaced, and which sinks it belongs to.

journal.json               which sinks it belongs to
segments/*.jsonl           what was metered, append-only, one writer each
cursors/<sink>.json        how far each sink has taken it
locks/<sink>.lock          which process delivers to a sink
attempts/<sink>.json       what may be on its way to a sink that forgets, and since when
hurry/<sink>               touched to ask the process that delivers not to wait
quarantine/<sink>.jsonl    what a sink refused and lines that cannot be read, with the reason, and what became of it
problems.jsonl             internal failures, counted
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from token_meter.errors import JournalError, NewerSchema
from token_meter.event import format_time
from token_meter.locks import FileLock

JOURNAL_SCHEMA: Final = 1
LOCK_WAIT_SECONDS_MAX: Final = 10.0
_SINK_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class JournalFolder:
    """The paths of one journal, and its journal.json."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute, so that a process which changes its directory (a daemon) keeps its journal.
        self.path = Path(os.path.abspath(path))
        self.segments = self.path / "segments"
        self.cursors = self.path / "cursors"
        self.locks = self.path / "locks"
        self.attempts = self.path / "attempts"
        self.hurry = self.path / "hurry"
        self.quarantine = self.path / "quarantine"
        self.document = self.path / "journal.json"
        self.problems = self.path / "problems.jsonl"

    def __fspath__(self) -> str:
        return str(self.path)

    def cursor(self, sink: str) -> Path:
        """Where the sink's cursor is kept."""
        return self.cursors / f"{sink}.json"

    def lock(self, sink: str) -> Path:
        """The lock of the one process that delivers to the sink."""
        return self.locks / f"{sink}.lock"

    def refusals(self, sink: str) -> Path:
        """The sink's quarantine."""
        return self.quarantine / f"{sink}.jsonl"

    def exists(self) -> bool:
        """Whether there is a journal here at all."""
        return self.segments.is_dir()

    def create(self) -> None:
        """Make the folder usable, or raise JournalError saying why it is not."""
        try:
            self.make()
            with self.locked():
                sinks = self.registered()
                if not self.document.exists():
                    self.write_document(sinks)
        except OSError as error:
            raise JournalError(
                f"cannot use {str(self.path)!r} as a journal: {error.strerror or error}. Give this process write "
                "access to it, or another folder: Meter(..., journal='/path/that/survives/restarts')."
            ) from error

    def make(self) -> None:
        """Create what is missing; raises OSError when the folder cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.segments, self.cursors, self.locks, self.quarantine):
            folder.mkdir(mode=0o700, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, f"no permission to write in {str(folder)!r}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock under which journal.json changes and segments are deleted."""
        lock = FileLock(self.path / "journal.lock")
        deadline = time.monotonic() + LOCK_WAIT_SECONDS_MAX
        while not _acquired(lock):
            if time.monotonic() > deadline:
                raise JournalError(f"another process has been holding {str(lock.path)!r} for {LOCK_WAIT_SECONDS_MAX} s")
            time.sleep(0.01)
        try:
            yield
        finally:
            lock.release()

    def registered(self) -> tuple[str, ...] | None:
        """The sinks this journal belongs to; None when no sink was ever named.

        A lost or broken journal.json is rebuilt from the cursors, which say the same.
        """
        document = read_document(self.document)
        if document is not None and isinstance(document.get("sinks"), list):
            return tuple(str(name) for name in document["sinks"])
        names = tuple(sorted(path.stem for path in self.cursors.glob("*.json")))
        return names or None

    def write_document(self, sinks: tuple[str, ...] | None) -> None:
        """Replace journal.json, keeping when it was created."""
        before = read_document(self.document) or {}
        created = before.get("created") or format_time(datetime.now(UTC))
        document: dict[str, Any] = {"schema": JOURNAL_SCHEMA, "created": created}
        if sinks is not None:
            document["sinks"] = list(sinks)
        replace(self.document, document, durable=True)


def _acquired(lock: FileLock) -> bool:
    try:
        return lock.acquire()
    except OSError as error:
        raise JournalError(f"cannot lock {str(lock.path)!r}: {error.strerror}") from error


def checked_sink_name(name: str) -> str:
    """A sink's name is a file name; raises JournalError when it cannot be one."""
    if not _SINK_NAME.fullmatch(name):
        raise JournalError(
            f"a sink cannot be named {name!r}: use 1 to 100 of A-Z a-z 0-9 . _ - (its cursor and quarantine are files)"
        )
    return name


def read_document(path: Path) -> dict[str, Any] | None:
    """A small JSON file of ours, or None when it is missing or not JSON. Raises NewerSchema."""
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    schema = document.get("schema", JOURNAL_SCHEMA)
    if not isinstance(schema, int) or schema > JOURNAL_SCHEMA:
        raise NewerSchema(f"{path} has schema {schema!r}, this version reads {JOURNAL_SCHEMA}: upgrade token_meter.")
    return document


def replace(path: Path, document: dict[str, Any], *, durable: bool) -> None:
    """Replace a file in one step, so that a reader or a crash sees the old or the new one, never half.

    The caller holds the lock that says who may write it, so the temporary name can be a fixed one: what a crash
    leaves behind is overwritten by the next.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, json.dumps(document, separators=(",", ":")).encode())
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything or raise OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(path: Path) -> None:
    """Make new and renamed names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
