"""Where time and ids come from: the operating system, unless a test says otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from token_meter.schema import new_id


class Clock(NamedTuple):
    """`now_ns` is wall time in nanoseconds since 1970, `monotonic` seconds that never step back, `mint` a new id."""

    now_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
    mint: Callable[[], str] = new_id


SYSTEM: Final = Clock()


class Stamps:
    """RFC 3339 text for nanoseconds, with the date part remembered for the second it holds."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = (-1, "")

    def text(self, now_ns: int) -> str:
        """UTC with exactly six decimals: text order is time order."""
        seconds, micros = divmod(now_ns // 1000, 1_000_000)
        last = self._last
        if last[0] != seconds:
            last = (seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)))
            self._last = last
        return f"{last[1]}.{micros:06d}Z"
