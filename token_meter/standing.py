"""How the entries of a quarantine stand, read off its file and read on as it grows.

    waiting --release--> released --taken--> delivered
       |                     \\--refused again--> waiting
       \\--discard--> discarded

An entry is known by its mark. One that a crash left there twice counts once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from token_meter.patience import PatientLock
from token_meter.quarantine import ENTRY_BYTES_MAX, marks_in, open_to_read, parse
from token_meter.segments import read_lines

State = Literal["waiting", "released", "delivered", "discarded"]


class Log:
    """Reads a quarantine from where it was left. Any thread may; what is read twice says the same twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = PatientLock()
        self._file: tuple[int, int] | None = None
        self._end = 0

    def read(self) -> None:
        """Take in what was added, all of it anew when the file is another one."""
        with self._lock:
            descriptor = open_to_read(self.path) if self._changed() else None
            if descriptor is None:
                return
            try:
                self.read_on(descriptor)
            finally:
                os.close(descriptor)

    def read_on(self, descriptor: int) -> None:
        """The same from an open file: of whoever holds its lock."""
        there = os.fstat(descriptor)
        if self._file != (there.st_dev, there.st_ino) or there.st_size < self._end:
            self._file, self._end = (there.st_dev, there.st_ino), 0
            self.clear()
        for line in read_lines(descriptor, self._end, bytes_max=ENTRY_BYTES_MAX):
            if line.raw is not None:
                self.take(line.raw, line.end - len(line.raw) - 1)
            self._end = line.end

    def _changed(self) -> bool:
        try:
            there = os.stat(self.path)
        except OSError:
            self._file, self._end = None, 0
            self.clear()
            return False
        return self._file != (there.st_dev, there.st_ino) or there.st_size != self._end

    def clear(self) -> None:
        """Forget what was read."""
        raise NotImplementedError

    def take(self, raw: bytes, begin: int) -> None:
        """One line, and where it begins."""
        raise NotImplementedError

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = PatientLock()


class Standing(Log):
    """What waits for a human, and since when what was released is on its way."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.clear()

    def clear(self) -> None:
        """Forget what was read."""
        self.waiting: dict[str, bool] = {}
        self.released: dict[str, str] = {}
        self.awaiting_for: dict[str, str] = {}

    @property
    def events(self) -> int:
        """How many refused events wait for a human."""
        return sum(list(self.waiting.values()))

    @property
    def awaiting(self) -> int:
        """How many of them are released by themselves when what they wait for is there."""
        return len(self.awaiting_for)

    @property
    def lines(self) -> int:
        """How many unreadable lines do."""
        return len(self.waiting) - self.events

    def take(self, raw: bytes, begin: int) -> None:
        """One line, and where it begins."""
        line = parse(raw)
        for mark in marks_in(line) if line is not None else ():
            assert line is not None
            self.move(mark, line, begin)

    def move(self, mark: str, line: Mapping[str, Any], begin: int) -> None:
        """What a line says about an entry."""
        self.awaiting_for.pop(mark, None)
        awaits = line.get("awaits")
        if isinstance(awaits, str) and line.get("action") in (None, "returned"):
            self.awaiting_for[mark] = awaits
        match line.get("action"):
            case None:
                self.waiting[mark] = "event" in line
            case "released":
                self.waiting.pop(mark, None)
                self.released[mark] = str(line.get("time"))
            case "returned":
                self.released.pop(mark, None)
                self.waiting[mark] = True
            case "delivered" | "discarded":
                # The sink may have taken an event that is here twice: once before, once after it was released.
                self.waiting.pop(mark, None)
                self.released.pop(mark, None)


class History(Standing):
    """The same, and how every entry ever made ended; for people, since it remembers them all.

    `places` says where an entry begins, and whether it holds an event.
    """

    def clear(self) -> None:
        """Forget what was read."""
        super().clear()
        self.places: dict[str, tuple[int, bool]] = {}
        self.decided: dict[str, Mapping[str, Any]] = {}

    def move(self, mark: str, line: Mapping[str, Any], begin: int) -> None:
        """What a line says about an entry."""
        if "action" not in line:
            # Refused anew after it was decided about: with another reason than at first.
            anew = self.decided.pop(mark, None) is not None
            if anew or mark not in self.places:
                self.places[mark] = (begin, "event" in line)
        else:
            self.decided[mark] = {name: line[name] for name in ("action", "time", "reason") if name in line}
        super().move(mark, line, begin)

    def state(self, mark: str) -> State:
        """How the entry stands."""
        if mark in self.released:
            return "released"
        if mark in self.waiting:
            return "waiting"
        return "discarded" if self.decided[mark]["action"] == "discarded" else "delivered"
