"""When a sink that failed is tried again: after a pause that grows, when the destination said, or when a human asks.

A human who mended something asks from outside: `request_hurry` touches hurry/<sink>, which the process that delivers
looks at before it goes on waiting.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Final

from token_meter.folder import JournalFolder, checked_sink_name

BACKOFF_SECONDS_MIN: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 60.0
RETRY_AFTER_SECONDS_MAX: Final = 3_600.0
"""The longest wait that a destination may ask for."""


class Backoff:
    """One sink's pause. `asked`: its destination has asked for it."""

    def __init__(self, hurry: Path) -> None:
        self.asked = False
        self._until = float("-inf")
        self._hurry = hurry
        self._hurried_at = _touched(hurry)

    @property
    def over(self) -> bool:
        """Whether the sink may be tried."""
        return time.monotonic() >= self._until

    def begin(self, failures: int, *, after: float | None) -> float:
        """Pause after so many failures in a row, or as long as the destination asks (`after`); how many seconds."""
        wanted = _wanted(after)
        self.asked = wanted > 0
        delay = max(backoff_seconds(failures), wanted)
        self._until = time.monotonic() + delay
        return delay

    def end(self) -> None:
        """No longer: now is the time."""
        self.asked = False
        self._until = float("-inf")

    def was_hurried(self) -> bool:
        """Whether a human asked not to wait since this was last looked at: not even for the destination."""
        touched = _touched(self._hurry)
        hurried, self._hurried_at = touched != self._hurried_at, touched
        return hurried


def request_hurry(folder: JournalFolder, sink: str) -> None:
    """Ask the process that delivers to a sink to try again now, whatever it waits for. Raises OSError."""
    folder.hurry.mkdir(mode=0o700, exist_ok=True)
    (folder.hurry / checked_sink_name(sink)).touch()


def backoff_seconds(failures: int) -> float:
    """Full jitter: anything up to a limit that doubles with each failure."""
    limit = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 32))
    return limit * int.from_bytes(os.urandom(4), "big") / 2**32


def _wanted(after: float | None) -> float:
    if not isinstance(after, (int, float)) or math.isnan(after):
        return 0.0
    return min(max(float(after), 0.0), RETRY_AFTER_SECONDS_MAX)


def _touched(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
