"""The one segment a process writes: created locked, restored when someone deletes it, sealed when done.

A segment gets its name only after it is locked and its first lines are in it, so nobody ever sees one that looks
abandoned or half begun.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path
from typing import Final

from token_meter.event import SCHEMA, format_time
from token_meter.folder import JournalFolder
from token_meter.locks import close_owned, disown, lock_now, open_owned
from token_meter.segments import CHUNK_BYTES, SEALED_LINE, SegmentName

CREATE_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
datasync: Final = getattr(os, "fdatasync", os.fsync)


@dataclass(slots=True, eq=False)
class SegmentFile:
    """An open, locked segment."""

    path: Path
    descriptor: int
    identity: tuple[int, int]
    size: int
    sealed: bool = False

    def is_ours(self) -> bool:
        """Whether the descriptor still means our file (a daemon may close every number it finds)."""
        try:
            return _identity(os.fstat(self.descriptor)) == self.identity
        except OSError:
            return False

    def in_place(self) -> bool:
        """Whether the name still leads to our file."""
        try:
            return _identity(os.stat(self.path)) == self.identity
        except OSError:
            return False

    def seal(self, *, torn: bool) -> bool:
        """Write the last line. False when it could not be written (the segment is recovered later)."""
        line = b"\n" + SEALED_LINE if torn else SEALED_LINE
        try:
            self.sealed = os.write(self.descriptor, line) == len(line)
        except OSError:
            self.sealed = False
        return self.sealed

    def close(self) -> None:
        """Close it, unless its number already belongs to somebody else."""
        if self.is_ours():
            close_owned(self.descriptor)
        else:
            disown(self.descriptor)


def create_segment(folder: JournalFolder, name: SegmentName, *, carried: Iterable[bytes], previous: str) -> SegmentFile:
    """A new locked segment; the open calls of the previous one stand at its head. Raises OSError."""
    head = [_line({"kind": "segment", "schema": SCHEMA, "pid": name.pid, "host": _host(), "started": _now()})]
    if previous:
        # The line after them says that the list is whole: recovery of the previous segment relies on it.
        head += [*carried, _line({"kind": "carried", "from": previous})]
    return _named(folder.segments / str(name), b"".join(head))


def restore_segment(lost: SegmentFile) -> SegmentFile:
    """Write a deleted segment again under its name, byte for byte, so that every cursor stays right."""
    return _named(lost.path, b"", source=lost.descriptor)


def segment_name(writer: str, number: int) -> SegmentName:
    """The name for the writer's next segment."""
    return SegmentName(time.time_ns() // 1_000_000, os.getpid(), writer, number)


def _named(path: Path, head: bytes, *, source: int | None = None) -> SegmentFile:
    temporary = path.with_name(f".{path.name}.tmp")
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    descriptor = open_owned(temporary, CREATE_FLAGS)
    try:
        if not lock_now(descriptor):
            raise OSError(ENOSPC, f"another process has locked {temporary}")
        size = _fill(descriptor, head) if source is None else _copy(source, descriptor)
        os.rename(temporary, path)
        return SegmentFile(path, descriptor, _identity(os.fstat(descriptor)), size)
    except BaseException:
        close_owned(descriptor)
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _identity(there: os.stat_result) -> tuple[int, int]:
    return there.st_dev, there.st_ino


def _fill(descriptor: int, data: bytes) -> int:
    if os.write(descriptor, data) != len(data):
        raise OSError(ENOSPC, "no room to begin a segment")
    return len(data)


def _copy(source: int, target: int) -> int:
    size = 0
    while chunk := os.pread(source, CHUNK_BYTES, size):
        size += _fill(target, chunk)
    return size


def _line(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _host() -> str:
    return os.uname().nodename


def _now() -> str:
    return format_time(datetime.now(UTC))
