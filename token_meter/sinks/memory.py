"""A sink that keeps events in memory: for tests, and for programs that only want to look at their own usage."""

from __future__ import annotations

from collections.abc import Sequence

from token_meter.event import MeterEvent
from token_meter.sinks.lock import ForkLock


class MemorySink:
    """Keeps every event once, by id, in the order of arrival. Nothing is ever thrown away: call `clear()`.

    As in the ledger, a real event takes the place of an `unmetered` placeholder with the same id.
    """

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self._events: dict[str, MeterEvent] = {}
        self._lock = ForkLock()

    @property
    def events(self) -> list[MeterEvent]:
        """A copy of what has arrived."""
        with self._lock:
            return list(self._events.values())

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Keep the events; one that is already there stays as it is."""
        with self._lock:
            for event in events:
                kept = self._events.setdefault(event.id, event)
                if kept.status == "unmetered" and not kept.usage and event.status != "unmetered":
                    self._events[event.id] = event

    def clear(self) -> None:
        """Forget everything, so that events that come again are kept again."""
        with self._lock:
            self._events.clear()

    def close(self) -> None:
        """The events stay readable."""
