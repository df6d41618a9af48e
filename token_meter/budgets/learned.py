"""What calls usually take, learned from what providers reported: tokens of output, and tokens for a byte of input.

The last samples of each customer and model are kept; the ninety-ninth percentile of a few is their maximum. A process
begins with what the ledger has of the customer's last calls.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

SAMPLES_MAX: Final = 512
KEYS_MAX: Final = 10_000
"""So many pairs of customer and model, and so many models, are remembered."""

SEEDED_MAX: Final = 300
"""So many of a customer's last events are looked at."""

ENOUGH: Final = 20
"""From so many samples on reasoning that nobody sees is taken to be learned, too."""


class Observed(NamedTuple):
    """What one call took: tokens of input and output as the provider told, and the bytes sent (0: unknown)."""

    input: int
    output: int
    size: int = 0


class Sample:
    """The last values of something, and their ninety-ninth percentile."""

    __slots__ = ("_added", "_percentile", "_values")

    def __init__(self) -> None:
        self._values: deque[int] = deque(maxlen=SAMPLES_MAX)
        self._percentile = 0
        self._added = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: int) -> None:
        """One more."""
        self._values.append(value)
        self._added += 1

    @property
    def percentile(self) -> int:
        """The smallest value that ninety-nine of a hundred do not pass (nearest rank)."""
        # Sorting is a matter of ten microseconds: not at every call once there are many.
        if self._added > len(self._values) // 16:
            ordered = sorted(self._values)
            self._percentile = ordered[-(-99 * len(ordered) // 100) - 1]
            self._added = 0
        return self._percentile


class Learned:
    """The samples of one process. `recall` gives what the ledger knows of a customer's last calls of a model."""

    def __init__(self, recall: Callable[[str | None, str], Iterable[Observed]]) -> None:
        self._recall = recall
        self._outputs: dict[tuple[str | None, str], Sample] = {}
        self._inputs: dict[tuple[str | None, str], Sample] = {}
        self._ratios: dict[str, Sample] = {}
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.Lock()

    def knows(self, customer: str | None, model: str) -> bool:
        """Whether the ledger has been asked."""
        return (customer, model) in self._outputs

    def output(self, customer: str | None, model: str) -> Sample:
        """Tokens of output of a customer's calls of a model."""
        self._ask_once(customer, model)
        return self._outputs.get((customer, model)) or Sample()

    def input(self, customer: str | None, model: str) -> Sample:
        """Tokens of input of a customer's calls of a model."""
        self._ask_once(customer, model)
        return self._inputs.get((customer, model)) or Sample()

    def tokens_per_kilobyte(self, model: str) -> Sample:
        """Tokens of input for a thousand bytes of a request."""
        return self._ratios.get(model) or Sample()

    def observe(self, customer: str | None, model: str, call: Observed) -> None:
        """Learn from one call that ended."""
        self._ask_once(customer, model)
        with self._lock:
            self._add(customer, model, call)

    def _ask_once(self, customer: str | None, model: str) -> None:
        if (customer, model) in self._outputs:
            return
        recalled = list(self._recall(customer, model))
        with self._lock:
            for known in (self._outputs, self._inputs, self._ratios):
                if len(known) >= KEYS_MAX:
                    known.clear()
            self._inputs.setdefault((customer, model), Sample())
            self._outputs.setdefault((customer, model), Sample())
            for call in recalled:
                self._add(customer, model, call)

    def _add(self, customer: str | None, model: str, call: Observed) -> None:
        if call.output:
            self._outputs.setdefault((customer, model), Sample()).add(call.output)
        if call.input:
            self._inputs.setdefault((customer, model), Sample()).add(call.input)
        if call.size and call.input:
            self._ratios.setdefault(model, Sample()).add(-(-call.input * 1000 // call.size))
