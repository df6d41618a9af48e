"""What a sink will not get: events it refused and lines nobody can read, kept with the reason.

An entry is on disk before the cursor passes what it stands for, so nothing vanishes in silence. After a crash
in between, an entry can be there twice; `read_quarantine` gives it once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from token_meter.event import MeterEvent, format_time
from token_meter.folder import JournalFolder, write_all
from token_meter.segments import read_lines

RAW_CHARACTERS_MAX: Final = 4_096
"""How much of an unreadable line is kept."""


def refused(events: Iterable[MeterEvent], reason: str) -> list[dict[str, Any]]:
    """Entries for events that a sink rejected."""
    now = format_time(datetime.now(UTC))
    return [{"reason": reason, "time": now, "event": event.to_json()} for event in events]


def unreadable(segment: str, offset: int, *, raw: bytes | None, reason: str) -> dict[str, Any]:
    """The entry for a line that is no event; `raw` is None when the line was too long to read."""
    entry = {"reason": reason, "time": format_time(datetime.now(UTC)), "segment": segment, "ends_at": offset}
    if raw is not None:
        entry["line"] = raw[:RAW_CHARACTERS_MAX].decode("utf-8", "backslashreplace")
    return entry


def write_quarantine(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Append entries and force them to disk. Raises OSError."""
    lines = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        write_all(descriptor, b"\n" + lines if torn else lines)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_quarantine(folder: str | os.PathLike[str], sink: str) -> Iterator[dict[str, Any]]:
    """The entries of one sink, oldest first, each once."""
    path = JournalFolder(folder).quarantine / f"{sink}.jsonl"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    seen: set[tuple[Any, ...]] = set()
    try:
        for line in read_lines(descriptor, 0):
            entry = _entry(line.raw)
            if entry is None:
                continue
            key = (entry.get("event", {}).get("id"), entry.get("segment"), entry.get("ends_at"))
            if key not in seen:
                seen.add(key)
                yield entry
    finally:
        os.close(descriptor)


def _entry(raw: bytes | None) -> dict[str, Any] | None:
    try:
        entry = json.loads(raw or b"null")
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
