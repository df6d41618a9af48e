"""The provider's own account of what it served: the truth that a ledger is compared with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from token_meter.usage import Usage

LINES_MAX: Final = 100_000
"""Lines the account keeps; when there are more, the oldest go and `Account.forgotten` counts them."""


@dataclass(slots=True, eq=False)
class Billed:
    """One line of the provider's bill: what one model consumed for one response.

    `usage` is what was charged, in disjoint token types. `reported` is the usage block as the response
    carries it, None when it carries none. `told` says that a message with the final counts was handed to the
    client, `delivered` that the whole response was, up to its terminal marker, and `events` how many stream
    events were. Handed over means given to the operating system: a client that stops reading early may not
    have seen it all. `kind` tells lines of one response apart: `message`, or `compaction`, `advisor_message`,
    `declined`, `image_gen`.
    """

    api: str
    model: str
    usage: Usage
    reported: Mapping[str, Any] | None = None
    response_id: str | None = None
    model_requested: str | None = None
    kind: str = "message"
    batch: bool = False
    told: bool = False
    delivered: bool = False
    events: int = 0


class Account:
    """Every line billed since the start or the last reset, oldest first. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lines: deque[Billed] = deque(maxlen=LINES_MAX)
        self._lock = threading.Lock()
        self.forgotten = 0

    @property
    def lines(self) -> list[Billed]:
        """A copy of the list; the lines in it go on being updated while a response is being delivered."""
        with self._lock:
            return list(self._lines)

    def add(self, line: Billed) -> None:
        """Charge for something."""
        with self._lock:
            self.forgotten += len(self._lines) == LINES_MAX
            self._lines.append(line)

    def cancel(self, line: Billed) -> None:
        """Take a charge back: a background response that was cancelled before it ran."""
        with self._lock:
            self._lines.remove(line)

    def total(self, *, api: str | None = None, model: str | None = None) -> Usage:
        """The sum of what was charged, of one API or one model if named."""
        wanted = (line for line in self.lines if api in (None, line.api) and model in (None, line.model))
        return sum((line.usage for line in wanted), Usage())

    def clear(self) -> None:
        """Start over."""
        with self._lock:
            self._lines.clear()
            self.forgotten = 0
