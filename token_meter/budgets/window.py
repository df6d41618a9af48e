"""The windows of budgets: which span of time a moment belongs to.

Calendar windows follow the wall clock of a named time zone: a day has 23 or 25 hours when the clocks change. A rolling
window is counted in buckets of a sixtieth of its length and frees itself bucket by bucket, the last one late.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Self
from zoneinfo import ZoneInfo

CALENDAR: Final = ("hour", "day", "week", "month")
KINDS: Final = (*CALENDAR, "lifetime", "plan")
BUCKETS: Final = 60
"""So many buckets make up a rolling window."""

ROLLING: Final = -1
"""The `start` under which a rolling window keeps what is held."""

SECONDS_MIN: Final = 1
SECONDS_MAX: Final = 400 * 86_400
_DURATION: Final = re.compile(r"([0-9]{1,8})\s*(s|m|h|d)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FAR: Final = 253_370_764_800_000_000
"""The end of a window that has none: the year 9999."""


class Span(NamedTuple):
    """[start, stop) in microseconds since 1970."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Window:
    """How often a budget begins anew: `kind` is one of `KINDS`, or "rolling" with a number of `seconds`."""

    kind: str
    seconds: int = 0

    @classmethod
    def read(cls, text: object) -> Self:
        """`month`, `lifetime`, ..., or a rolling duration as in `24h`. Raises ValueError for anything else."""
        name = str(text).strip().lower() if isinstance(text, str) else ""
        if name in KINDS:
            return cls(name)
        name = name.removeprefix("rolling").strip(" :")
        found = _DURATION.fullmatch({"minute": "60s"}.get(name, name))
        seconds = int(found[1]) * _UNITS[found[2]] if found else 0
        if not SECONDS_MIN <= seconds <= SECONDS_MAX:
            raise ValueError(
                f"{text!r} is no window. Use {', '.join(KINDS)}, minute, or a rolling one of so many seconds, minutes, "
                "hours or days: 30s, 5m, 24h, 30d"
            )
        return cls("rolling", seconds)

    @property
    def length(self) -> int:
        """Of a rolling window, in microseconds; else 0."""
        return self.seconds * 1_000_000

    @property
    def reach(self) -> int:
        """How far back from its bucket a rolling window counts: one bucket more than its length, so that no span of
        its length ever holds more than the limit."""
        return self.length + max(1, self.length // BUCKETS) if self.length else 0

    def span(self, moment: int, zone: ZoneInfo) -> Span:
        """The window around a moment (microseconds since 1970); of a rolling one its bucket."""
        if self.kind == "rolling":
            bucket = max(1, self.length // BUCKETS)
            start = moment // bucket * bucket
            return Span(start, start + self.length + bucket)
        if self.kind == "lifetime":
            return Span(0, _FAR)
        local = (_EPOCH + _MICROSECOND * moment).astimezone(zone)
        if self.kind == "hour":
            # By the clock's minutes, and not by wall time: one hour of it comes twice when the clocks go back.
            start = moment - (local.minute * 60 + local.second) * 1_000_000 - local.microsecond
            return Span(start, start + 3_600_000_000)
        first = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)
        if self.kind == "day":
            after = first + timedelta(days=1)
        elif self.kind == "week":
            first -= timedelta(days=first.weekday())
            after = first + timedelta(days=7)
        else:
            first = first.replace(day=1)
            after = (first + timedelta(days=32)).replace(day=1)
        return Span(_micros(first, zone), _micros(after, zone))

    @property
    def shown(self) -> str:
        """For people, who must not take 24 hours for a day."""
        return f"rolling {self}" if self.kind == "rolling" else str(self)

    def __str__(self) -> str:
        if self.kind != "rolling":
            return self.kind
        for unit in ("d", "h", "m"):
            if self.seconds % _UNITS[unit] == 0 and self.seconds != _UNITS["d"] * (unit == "d"):
                return f"{self.seconds // _UNITS[unit]}{unit}"
        return f"{self.seconds}s"


def _micros(wall: datetime, zone: ZoneInfo) -> int:
    return (wall.replace(tzinfo=zone).astimezone(UTC) - _EPOCH) // _MICROSECOND
