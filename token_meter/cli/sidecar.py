"""Delivering a journal from a process of its own: once, or until told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.sink_names import Destination
from token_meter.cli.text import counted

if TYPE_CHECKING:
    from token_meter.deliver import Delivered

POLL_SECONDS: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 60.0
LAST_TRY_SECONDS: Final = 5.0
"""How long stopping waits for sinks to take what is left."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one attempt for one sink."""

    sink: str
    sent: int
    quarantined: int
    complete: bool
    error: str | None
    holder: int | None

    @classmethod
    def of(cls, sink: str, result: Delivered) -> Report:
        """From what the journal's side says."""
        return cls(sink, result.sent, result.quarantined + result.invalid, result.complete, result.error, result.holder)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.sink}: delivered {counted(self.sent, 'event')}"]
        if self.quarantined:
            parts.append(f"{self.quarantined} refused (see `token-meter deliver quarantine list`)")
        if self.holder is not None and not self.complete:
            parts.append(f"process {self.holder} delivers")
        elif not self.complete:
            parts.append(f"not everything: {self.error or 'some of the journal cannot be read by this version'}")
        return ", ".join(parts)


class Sidecar:
    """Delivers a journal to sinks, each in a thread of its own so that a slow one holds nobody up."""

    def __init__(
        self, folder: Path, destinations: Sequence[Destination], *, replay: bool, tell: Callable[[Report], None]
    ) -> None:
        self._folder = folder
        self._destinations = destinations
        self._replay = replay
        self._tell = tell
        self._telling = threading.Lock()
        self._stop = threading.Event()
        self._last: dict[str, Report] = {}

    def once(self, timeout: float) -> list[Report]:
        """Deliver what there is now."""
        self._each(lambda destination: self._attempt(destination, timeout=timeout, always=True))
        return self._reports()

    def watch(self) -> list[Report]:
        """Deliver until SIGTERM or SIGINT, then once more what is left."""
        with self._stopped_by_signals():
            self._each(self._loop)
        return self._reports()

    def _reports(self) -> list[Report]:
        return [self._last[each.name] for each in self._destinations if each.name in self._last]

    def _each(self, work: Callable[[Destination], object]) -> None:
        threads = [
            threading.Thread(target=work, args=(each,), name=f"deliver-{each.name}") for each in self._destinations
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _loop(self, destination: Destination) -> None:
        wait = POLL_SECONDS
        while not self._stop.wait(wait):
            report = self._attempt(destination, timeout=0.0)
            failed = not report.complete and report.holder is None
            wait = min(2 * wait, BACKOFF_SECONDS_MAX) if failed else POLL_SECONDS
        self._attempt(destination, timeout=LAST_TRY_SECONDS)

    def _attempt(self, destination: Destination, *, timeout: float, always: bool = False) -> Report:
        from token_meter.deliver import deliver_once
        from token_meter.errors import TokenMeterError

        try:
            result = deliver_once(self._folder, destination.sink, timeout=timeout, replay=self._replay)
            report = Report.of(destination.name, result)
        except (OSError, TokenMeterError) as error:
            report = Report(destination.name, 0, 0, complete=False, error=str(error), holder=None)
        with self._telling:
            before = self._last.get(destination.name)
            self._last[destination.name] = report
            if always or report.sent or report.quarantined or (before and before.error) != report.error:
                self._tell(report)
        return report

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self._stop.set()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
