"""Capturing what calls consume, for assertions on whole values: `assert captured.events == [MeterEvent(...)]`."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from token_meter.clock import Clock
from token_meter.event import MeterEvent
from token_meter.meter import Meter
from token_meter.sinks.memory import MemorySink
from token_meter.usage import Usage

SECOND_NS = 1_000_000_000
START_NS = 1_767_225_600 * SECOND_NS  # 2026-01-01T00:00:00Z


class FakeClock:
    """Wall time that moves one second at each reading; `monotonic` follows it without moving it."""

    def __init__(self, start_ns: int = START_NS) -> None:
        self._now_ns = start_ns - SECOND_NS
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        """The time, in nanoseconds since 1970; each call is one second later than the one before."""
        with self._lock:
            self._now_ns += SECOND_NS
            return self._now_ns

    def monotonic(self) -> float:
        """The same time in seconds, standing still between readings of `now_ns`."""
        return self._now_ns / SECOND_NS

    def step(self, seconds: float) -> None:
        """Move the clock, also backwards."""
        with self._lock:
            self._now_ns += int(seconds * SECOND_NS)


class SequentialIds:
    """`evt_1`, `evt_2`, …"""

    def __init__(self, prefix: str = "evt_") -> None:
        self._prefix = prefix
        self._last = 0
        self._lock = threading.Lock()

    def mint(self) -> str:
        """The next id."""
        with self._lock:
            self._last += 1
            return f"{self._prefix}{self._last}"


class Captured:
    """What was captured: `events` in the order they ended, and their summed `usage`; `meter` to wrap clients with."""

    def __init__(self, meter: Meter, sink: MemorySink) -> None:
        self.meter = meter
        self._sink = sink

    @property
    def events(self) -> list[MeterEvent]:
        """Every event so far."""
        self.meter.flush(30.0)
        return list(self._sink.events)

    @property
    def usage(self) -> Usage:
        """The sum over every event so far."""
        return sum((event.usage for event in self.events), Usage())


@contextmanager
def capture(
    *, instrument: Sequence[str] = ("openai", "anthropic", "google"), clock: FakeClock | None = None
) -> Iterator[Captured]:
    """Meter every client of the process inside the block (those wrapped by another Meter excepted).

    Nothing leaves the process: events go to memory, ids are `evt_1`, `evt_2`, …, and the clock is a `FakeClock`.
    `instrument=()` captures only clients wrapped with `captured.meter.wrap(...)`.
    """
    sink = MemorySink()
    with tempfile.TemporaryDirectory(prefix="token_meter-capture-") as folder, Meter(sink, journal=folder) as meter:
        ticking = clock or FakeClock()
        meter._recorder.clock = Clock(ticking.now_ns, ticking.monotonic, SequentialIds().mint)
        if instrument:
            meter.instrument(*instrument)
        yield Captured(meter, sink)
