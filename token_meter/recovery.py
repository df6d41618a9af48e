"""Closing the books of dead writers: every call they opened and never ended becomes an event a human sees.

A writer holds its segment's lock as long as it lives. A segment whose lock is free and that is not sealed
belongs to a process that is gone; whoever notices takes the lock, appends an `unmetered` event for every call
without an end, and the seal. Doing it twice, or half, is harmless: the events have the calls' own ids.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any, Final

from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.event import SCHEMA
from token_meter.locks import close_owned, lock_now, open_owned, unlock
from token_meter.problems import Problem
from token_meter.segments import (
    LINE_BYTES_MAX,
    SEALED_LINE,
    SUFFIX,
    SegmentIndex,
    SegmentName,
    complete_end,
    decode,
    is_sealed,
    read_lines,
    to_event,
)

LOCKED_AT_ONCE_MAX: Final = 128
SWEPT_AT_ONCE_MAX: Final = 4_096
"""How many segments one sweep looks at, so that the rest of the keeper's work is not put off for long."""

LEFTOVER_SECONDS: Final = 3_600.0


class Recovery:
    """Recovers dead segments of one folder; remembers which ones need no second look."""

    def __init__(self, index: SegmentIndex, *, problem: Problem, durable: bool) -> None:
        self._index = index
        self._problem = problem
        self._durable = durable
        self._settled: set[str] = set()
        self._swept = False

    def sweep(self) -> int:
        """Recover every dead segment; returns how many."""
        if not self._swept:
            self._swept = True
            remove_leftovers(self._index.folder)
        names = self._index.names()
        self._settled.intersection_update(names)
        unsettled = [name for name in names if name not in self._settled]
        return sum(
            self._sweep(unsettled[begin : begin + LOCKED_AT_ONCE_MAX])
            for begin in range(0, min(len(unsettled), SWEPT_AT_ONCE_MAX), LOCKED_AT_ONCE_MAX)
        )

    def _sweep(self, names: Sequence[str]) -> int:
        """Lock the dead ones first, then look which segments follow them: now no new ones can."""
        dead: dict[str, int] = {}
        recovered = 0
        try:
            for name in names:
                with self._told():
                    self._lock_if_dead(name, dead)
            places = {name.partition("-")[2]: name for name in self._index.listed_now()} if dead else {}
            for name, descriptor in dead.items():
                with self._told():
                    recovered += self._recover(descriptor, name, places)
            return recovered
        finally:
            for descriptor in dead.values():
                unlock(descriptor)
                close_owned(descriptor)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._problem("recover a dead process's segment", error)

    def _lock_if_dead(self, name: str, dead: dict[str, int]) -> None:
        path = self._index.folder / name
        if _sealed_already(path):
            self._settled.add(name)
            return
        try:
            descriptor = open_owned(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return
        if lock_now(descriptor):
            dead[name] = descriptor
        else:
            close_owned(descriptor)

    def _recover(self, descriptor: int, name: str, places: Mapping[str, str]) -> bool:
        size = os.fstat(descriptor).st_size
        if os.fstat(descriptor).st_nlink == 0 or is_sealed(descriptor, size):
            return False
        try:
            outstanding = outstanding_calls(descriptor)
        except NewerSchema as newer:
            self._settled.add(name)
            self._problem("a segment waits for a newer version", newer)
            return False
        if outstanding and self._carried_on(name, places):
            outstanding = {}
        lines = b"".join(self._unmetered(opened) for opened in outstanding.values())
        torn = b"\n" if complete_end(descriptor, size) != size else b""
        data = torn + lines + SEALED_LINE
        if os.write(descriptor, data) != len(data):
            raise OSError(ENOSPC, f"no room to close {name}")
        if self._durable:
            os.fsync(descriptor)
        self._settled.add(name)
        return True

    def _carried_on(self, name: str, places: Mapping[str, str]) -> bool:
        """Whether the writer took its open calls along into its next segment and died before sealing this one.

        Without this question a call that ended in the next segment would become `unmetered` here.
        """
        this = SegmentName.parse(name)
        following = this and places.get(f"{this.pid}-{this.writer}-{this.number + 1}{SUFFIX}")
        return bool(following) and _carries_from(self._index.folder / str(following), name)

    def _unmetered(self, opened: dict[str, Any]) -> bytes:
        try:
            return unmetered_line(opened)
        except InvalidEvent as invalid:
            self._problem("an opened line that makes no event", invalid)
            return b""


def outstanding_calls(descriptor: int) -> dict[str, dict[str, Any]]:
    """The `opened` lines of a segment that neither an event nor a void ends. Raises NewerSchema."""
    outstanding: dict[str, dict[str, Any]] = {}
    for raw in _lines_and_tail(descriptor):
        try:
            document = decode(raw)
        except InvalidEvent:
            continue
        identifier = str(document.get("id"))
        match document["kind"]:
            case "opened":
                outstanding[identifier] = document
            case "event":
                outstanding.pop(str(document.get("call")), None)
                outstanding.pop(identifier, None)
            case "void":
                outstanding.pop(str(document.get("call")), None)
    return outstanding


def _lines_and_tail(descriptor: int) -> Iterator[bytes]:
    """Every readable line, the last one also without its newline: recovery is about to write that newline."""
    end, skipping = 0, False
    for line in read_lines(descriptor, 0):
        end, skipping = line.end, line.skipping
        if line.raw is not None:
            yield line.raw
    tail = b"" if skipping else os.pread(descriptor, LINE_BYTES_MAX, end)
    if tail:
        yield tail


def unmetered_line(opened: dict[str, Any]) -> bytes:
    """The event of a call whose process died before it ended: billed by nobody until a human looked."""
    copied = {name: value for name, value in opened.items() if name not in ("kind", "schema")}
    model = opened.get("model_requested")  # as for answers that name no model: the one that was asked for
    if isinstance(model, str):
        copied["model"] = model
    document = {
        "kind": "event",
        "call": opened.get("id"),
        "schema": SCHEMA,
        **copied,
        "usage": {},
        "status": "unmetered",
        "anomalies": ["no_response"],
    }
    to_event(document)
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _carries_from(path: Path, name: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        for line in read_lines(descriptor, 0):
            if line.raw is not None and line.raw.startswith(b'{"kind":"carried"'):
                return bool(decode(line.raw).get("from") == name)
        return False
    except (InvalidEvent, NewerSchema):
        return False
    finally:
        os.close(descriptor)


def _sealed_already(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return is_sealed(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove segments that a process was killed over before they had a name: nothing was ever written there."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()
