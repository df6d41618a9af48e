"""Who a call is for: the customer and dimensions in force where the code runs, and the tallies that watch.

A context variable holds one immutable `Attribution`. It is set and put back by value, never by token: a token
must be reset in the context it was made in, and web frameworks, generators and thread pools leave a block in
another one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from token_meter.usage import Usage

NAME_LENGTH_MAX: Final = 256
"""Customers and dimension values longer than this are cut: they are keys, not content."""

DIMENSIONS_MAX: Final = 32
"""So many dimensions one event carries at most."""

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Tally:
    """What a `meter.customer(...)` block consumed so far; safe to read and add to from any thread."""

    __slots__ = ("_calls", "_lock", "_usage")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usage = Usage()
        self._calls = 0

    @property
    def usage(self) -> Usage:
        """The sum of the usage of every call that ended so far."""
        return self._usage

    @property
    def calls(self) -> int:
        """How many calls ended so far."""
        return self._calls

    def add(self, usage: Usage, *, calls: int = 1) -> None:
        """Count one ended call."""
        with self._lock:
            self._usage = self._usage + usage
            self._calls += calls

    def __repr__(self) -> str:
        return f"Tally(calls={self._calls}, usage={self._usage!r})"


@dataclass(frozen=True, slots=True)
class Attribution:
    """The customer, the dimensions and the tallies that hold for a call."""

    customer: str | None = None
    dimensions: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    tallies: tuple[Tally, ...] = ()

    def within(self, customer: str | None, dimensions: Mapping[str, str], tally: Tally | None = None) -> Attribution:
        """A narrower attribution: another customer if one is given, dimensions merged, one more tally."""
        return Attribution(
            self.customer if customer is None else customer,
            {**self.dimensions, **dimensions} if dimensions else self.dimensions,
            self.tallies if tally is None else (*self.tallies, tally),
        )


NOBODY: Final = Attribution()

CURRENT: ContextVar[Attribution] = ContextVar("token_meter.attribution", default=NOBODY)


def clean_name(value: object) -> str | None:
    """A customer or dimension value as it is stored: text, bounded, None for nothing."""
    if value is None:
        return None
    text = value if type(value) is str else str(value)
    return text[:NAME_LENGTH_MAX] or None


def clean_dimensions(dimensions: Mapping[str, object]) -> dict[str, str]:
    """Dimensions as they are stored; empty values are left out, at most `DIMENSIONS_MAX` are kept."""
    cleaned = {name[:NAME_LENGTH_MAX]: text for name, value in dimensions.items() if (text := clean_name(value))}
    return dict(list(cleaned.items())[:DIMENSIONS_MAX])
