"""What the hot path needs to know of the event form, without loading the event class: version, statuses, ids."""

from __future__ import annotations

import os
import time
from typing import Final, Literal

SCHEMA: Final = 1
"""Version of the JSON form written by this package."""

Status = Literal["complete", "partial", "estimated", "unmetered"]
STATUSES: Final = ("complete", "partial", "estimated", "unmetered")
"""How sure the quantities are (decision D6)."""

_tails: list[str] = []
"""Random halves of ids, drawn from the operating system in advance: a system call per id costs more than the id."""

os.register_at_fork(after_in_child=_tails.clear)  # two processes must not mint from the same randomness


def _draw() -> str:
    digits = os.urandom(64 * 9).hex()
    parts = [digits[at : at + 18] for at in range(0, 1152, 18)]
    _tails.extend([f"-7{part[:3]}-8{part[3:6]}-{part[6:]}" for part in parts])
    return _tails.pop()


def new_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then 72 random bits from the operating system."""
    moment = f"{time.time_ns() // 1_000_000:012x}"
    try:
        tail = _tails.pop()  # atomic: no lock
    except IndexError:
        tail = _draw()
    return f"{moment[:8]}-{moment[8:]}{tail}"
