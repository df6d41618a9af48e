"""Refused events that wait for something a sink can recognise: a customer's id, an event that is to be corrected.

The sink named what it waits for when it refused them; as soon as it says that it is there, they are released, as a
human would release them. Nobody has to remember which events were stuck because of a missing id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from token_meter.quarantine import ENTRY_BYTES_MAX, append, open_to_read, parse, released, writing
from token_meter.segments import read_lines
from token_meter.standing import History, Standing

ASKED_AT_ONCE_MAX: Final = 200
"""So many things a sink is asked about in one turn: each may be a query."""

RELEASED_AT_ONCE_MAX: Final = 10_000
"""So many events are released under one lock; more are released by the following turns."""


class Awaiting(Standing):
    """What waits for what, read off a sink's quarantine and read on as it grows."""

    def __init__(self, path: Path) -> None:
        self.awaited: dict[str, dict[str, None]] = {}
        self._turn = 0
        super().__init__(path)

    def clear(self) -> None:
        """Forget what was read."""
        super().clear()
        self.awaited = {}
        self._for: dict[str, str] = {}

    def move(self, mark: str, line: Mapping[str, Any], begin: int) -> None:
        """What a line says about an entry."""
        super().move(mark, line, begin)
        before = self._for.pop(mark, None)
        if before is not None:
            self.awaited[before].pop(mark, None)
            if not self.awaited[before]:
                del self.awaited[before]
        awaits = line.get("awaits")
        if isinstance(awaits, str) and mark in self.waiting:
            self._for[mark] = awaits
            self.awaited.setdefault(awaits, {})[mark] = None

    def release(self, ready: Callable[[str], bool]) -> int:
        """Put back into delivery what is not awaited in vain any more; returns how many. Raises OSError."""
        self.read()
        marks = [mark for awaits in self._next_asked() if ready(awaits) for mark in self.awaited[awaits]]
        if not marks:
            return 0
        with writing(self.path) as descriptor:
            history = History(self.path)
            history.read_on(descriptor)
            waiting = [mark for mark in marks if history.places.get(mark) and history.state(mark) == "waiting"]
            chosen = list(islice(waiting, RELEASED_AT_ONCE_MAX))
            append(descriptor, (released(_event_at(descriptor, history.places[mark][0])) for mark in chosen))
        return len(chosen)

    def _next_asked(self) -> list[str]:
        """What to ask about this time: where there is too much for one turn, the following turns ask on."""
        names = list(self.awaited)
        start = self._turn % len(names) if len(names) > ASKED_AT_ONCE_MAX else 0
        self._turn = start + ASKED_AT_ONCE_MAX
        return [*names[start:], *names[:start]][:ASKED_AT_ONCE_MAX]


def _event_at(descriptor: int, begin: int) -> Mapping[str, Any]:
    raw = next(read_lines(descriptor, begin, bytes_max=ENTRY_BYTES_MAX)).raw
    event: Mapping[str, Any] = (parse(raw) or {})["event"]
    return event


def awaited_in(path: Path) -> dict[str, int]:
    """What a quarantine waits for, and how many events each."""
    if (descriptor := open_to_read(path)) is None:
        return {}
    os.close(descriptor)
    awaiting = Awaiting(path)
    awaiting.read()
    return {awaits: len(marks) for awaits, marks in awaiting.awaited.items()}
