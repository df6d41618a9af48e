"""Refused events that wait for something a sink can recognise: a customer's id, an event that is to be corrected.

The sink named what it waits for when it refused them; as soon as it says that it is there, they are released, as a
human would release them. Nobody has to remember which events were stuck because of a missing id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from token_meter.quarantine import ENTRY_BYTES_MAX, append, parse, released, writing
from token_meter.segments import read_lines
from token_meter.standing import History, Standing

ASKED_AT_ONCE_MAX: Final = 200
"""So many things a sink is asked about in one turn: each may be a query."""

RELEASED_AT_ONCE_MAX: Final = 10_000
"""So many events are released under one lock; more are released by the following turns."""


class Awaiting(Standing):
    """What waits for what, read off a sink's quarantine and read on as it grows."""

    def __init__(self, path: Path) -> None:
        self._turn = 0
        super().__init__(path)

    def awaited(self) -> dict[str, list[str]]:
        """The marks of the entries that wait, by what they wait for."""
        found: dict[str, list[str]] = {}
        for mark, awaits in self.awaiting_for.items():
            found.setdefault(awaits, []).append(mark)
        return found

    def release(self, ready: Callable[[str], bool]) -> int:
        """Put back into delivery what is not awaited in vain any more; returns how many. Raises OSError."""
        self.read()
        if not self.awaiting_for:
            return 0
        awaited = self.awaited()
        marks = [mark for awaits in self._next_asked(list(awaited)) if ready(awaits) for mark in awaited[awaits]]
        if not marks:
            return 0
        with writing(self.path) as descriptor:
            history = History(self.path)
            history.read_on(descriptor)
            waiting = [mark for mark in marks if history.places.get(mark) and history.state(mark) == "waiting"]
            chosen = list(islice(waiting, RELEASED_AT_ONCE_MAX))
            append(descriptor, (released(_event_at(descriptor, history.places[mark][0])) for mark in chosen))
        return len(chosen)

    def _next_asked(self, names: list[str]) -> list[str]:
        """What to ask about this time: where there is too much for one turn, the following turns ask on."""
        start = self._turn % len(names) if len(names) > ASKED_AT_ONCE_MAX else 0
        self._turn = start + ASKED_AT_ONCE_MAX
        return [*names[start:], *names[:start]][:ASKED_AT_ONCE_MAX]


def _event_at(descriptor: int, begin: int) -> Mapping[str, Any]:
    raw = next(read_lines(descriptor, begin, bytes_max=ENTRY_BYTES_MAX)).raw
    event: Mapping[str, Any] = (parse(raw) or {})["event"]
    return event
