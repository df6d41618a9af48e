"""What a sink will not get: events it refused and lines nobody can read, kept with the reason.

quarantine/<sink>.jsonl only grows. A line of it is an entry, or says what became of entries:

    released    a human put the event back into delivery; the line carries the event, so the file is the queue too
    delivered   the sink took released events
    returned    it refused them again: their entries wait once more, with the new reason
    discarded   a human gave an entry up, and why

What still waits for a human, and what is on its way again, is read off the file alone: a crash can only leave out
the end of it. Whoever writes holds the file's lock, and first ends a line that a crash cut off.
An entry is on disk before the cursor passes what it stands for, so nothing vanishes in silence.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Final

from token_meter.errors import Refusal
from token_meter.event import format_time
from token_meter.folder import JournalFolder, sync_folder, write_all
from token_meter.locks import close_owned, is_at, lock_now, open_owned
from token_meter.segments import complete_end, read_lines

RAW_CHARACTERS_MAX: Final = 4_096
"""How much of an unreadable line is kept."""

REASON_CHARACTERS_MAX: Final = 4_096
"""How much of what a sink says about its refusal is kept."""

ENTRY_BYTES_MAX: Final = 8 << 20
"""No line of ours is longer: a line of the journal at most doubles when it is escaped."""

LOCK_WAIT_SECONDS_MAX: Final = 10.0
LOCK_POLL_SECONDS: Final = 0.002
LINES_AT_ONCE: Final = 500
ACTION_PREFIX: Final = b'{"action":'
"""How a line begins that says what became of entries."""


def refused(refusals: Iterable[Refusal]) -> list[dict[str, Any]]:
    """Entries for events that a sink rejected."""
    now = _now()
    return [_entry(refusal, now) for refusal in refusals]


def _entry(refusal: Refusal, now: str) -> dict[str, Any]:
    awaits = {} if refusal.awaits is None else {"awaits": refusal.awaits}
    return {"reason": refusal.reason[:REASON_CHARACTERS_MAX], "time": now, **awaits, "event": refusal.event.to_json()}


def unreadable(segment: str, offset: int, *, raw: bytes | None, reason: str) -> dict[str, Any]:
    """The entry for a line that is no event; `raw` is None when the line was too long to read."""
    entry = {"reason": reason, "time": _now(), "segment": segment, "ends_at": offset}
    if raw is not None:
        entry["line"] = raw[:RAW_CHARACTERS_MAX].decode("utf-8", "backslashreplace")
    return entry


def released(event: Mapping[str, Any]) -> dict[str, Any]:
    """The line that puts an event back into delivery."""
    return {"action": "released", "time": _now(), "event": event}


def discarded(mark: str, reason: str) -> dict[str, Any]:
    """The line that gives an entry up."""
    return {"action": "discarded", "time": _now(), "reason": reason, "mark": mark}


def delivered(marks: Iterable[str]) -> dict[str, Any]:
    """The line that says that the sink took released events."""
    return {"action": "delivered", "time": _now(), "marks": list(marks)}


def returned(marks: Iterable[str], reason: str, *, awaits: str | None = None) -> dict[str, Any]:
    """The line that says that it refused them again."""
    waiting = {} if awaits is None else {"awaits": awaits}
    said = reason[:REASON_CHARACTERS_MAX]
    return {"action": "returned", "time": _now(), "reason": said, **waiting, "marks": list(marks)}


def mark_of(entry: Mapping[str, Any]) -> str:
    """What an entry is known by. The id alone would not do: a placeholder and its real event have the same one."""
    if "event" in entry:
        return event_mark(entry["event"])
    return f"{entry.get('segment')}:{entry.get('ends_at')}"


def event_mark(event: Mapping[str, Any]) -> str:
    """The mark of an entry that holds this event."""
    content = json.dumps(event, sort_keys=True, separators=(",", ":")).encode()
    return f"{event.get('id')}#{blake2b(content, digest_size=8).hexdigest()}"


def whole_mark(event: Mapping[str, Any]) -> str:
    """The same for an event and for every part of it; a placeholder and its real event differ in more."""
    return event_mark({name: value for name, value in event.items() if name not in ("usage", "anomalies")})


def id_in(mark: str) -> str:
    """The id of the event that a mark stands for."""
    return mark.rpartition("#")[0]


def marks_in(line: Mapping[str, Any]) -> list[str]:
    """The entries that a line is about."""
    if "marks" in line:
        return [str(mark) for mark in line["marks"]]
    return [str(line["mark"])] if "mark" in line else [mark_of(line)]


def write_quarantine(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Append lines and force them to disk; returns where they end. Raises OSError."""
    with writing(path) as descriptor:
        return append(descriptor, lines)


@contextmanager
def writing(path: Path) -> Iterator[int]:
    """Hold the file's lock, with every line in it ended: what is read meanwhile stays true until the lock is gone."""
    descriptor = _locked(path)
    try:
        size = os.fstat(descriptor).st_size
        if complete_end(descriptor, size) < size:
            # Nobody has read it without its newline; from now on everybody reads it alike, if it can be read.
            write_all(descriptor, b"\n")
        yield descriptor
    finally:
        close_owned(descriptor)


def append(descriptor: int, lines: Iterable[dict[str, Any]]) -> int:
    """Add lines to the file whose lock is held, and force them to disk; returns where they end."""
    waiting = iter(lines)
    while piece := list(islice(waiting, LINES_AT_ONCE)):
        write_all(descriptor, b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in piece))
    os.fsync(descriptor)
    return os.fstat(descriptor).st_size


def read_log(descriptor: int, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Every line from there on, and where it ends. What is no line of ours is passed over."""
    for line in read_lines(descriptor, offset, bytes_max=ENTRY_BYTES_MAX):
        document = parse(line.raw)
        if document is not None:
            yield document, line.end


def parse(raw: bytes | None) -> dict[str, Any] | None:
    """The line as a document; None when it is no line of ours."""
    try:
        document = json.loads(raw or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("event", {}), dict):
        return None
    return document if isinstance(document.get("marks", []), list) else None


def open_to_read(path: Path) -> int | None:
    """A descriptor of the file; None when there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def marks_after(path: Path, offset: int) -> tuple[set[str], set[str]]:
    """The marks of the entries that begin at this place or later, and those of the events that they are a part of.

    Of the latter only what the sink refused when it was sent: what it did not refuse it has then. A report of the
    destination's says nothing about the rest.
    """
    descriptor = open_to_read(path)
    if descriptor is None:
        return set(), set()
    try:
        entries = [line for line, _ in read_log(descriptor, offset) if "action" not in line]
    finally:
        os.close(descriptor)
    whole = {whole_mark(line["event"]) for line in entries if "event" in line and "report" not in line}
    return {mark_of(line) for line in entries}, whole


def read_quarantine(folder: str | os.PathLike[str], sink: str) -> Iterator[dict[str, Any]]:
    """Every entry that one sink's quarantine ever had, oldest first, each once, whatever became of it."""
    descriptor = open_to_read(JournalFolder(folder).refusals(sink))
    if descriptor is None:
        return
    seen: set[str] = set()
    try:
        for line, _ in read_log(descriptor):
            if "action" not in line and (mark := mark_of(line)) not in seen:
                seen.add(mark)
                yield line
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The file, made if need be, locked by us."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS_MAX
    while True:
        descriptor = open_owned(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            if lock_now(descriptor) and is_at(descriptor, path):
                if not os.fstat(descriptor).st_size:
                    sync_folder(path.parent)
                return descriptor
        except BaseException:
            close_owned(descriptor)
            raise
        close_owned(descriptor)
        if time.monotonic() > deadline:
            raise OSError(errno.EAGAIN, "another process keeps the quarantine locked", str(path))
        time.sleep(LOCK_POLL_SECONDS)


def _now() -> str:
    return format_time(datetime.now(UTC))
