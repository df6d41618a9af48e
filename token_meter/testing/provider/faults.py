"""What can go wrong on purpose: the options a client names in its base URL, `/~slow=0.05,drop=3/`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypedDict

from token_meter.testing.provider.weird import WEIRD, with_null_usage, without_usage

EVENTS_DEFAULT: Final = 12
"""Text deltas of a stream, which is also the number of words of an answer."""


class FaultOptions(TypedDict, total=False):
    """The options by name, for `LoopbackProvider.url_with`. What each does: `Faults`."""

    slow: float
    delay: float
    drop: int
    cut: int
    fail: str
    retry_after: float
    gzip: bool
    chop: int
    events: int
    errmid: int
    nousage: bool
    nullusage: bool
    weird: str
    size: int
    crlf: bool
    no_done: bool
    id: str


@dataclass(frozen=True, slots=True)
class Faults:
    """How one client is treated.

    A plain body counts as a stream of one event. Options combine.
    """

    slow: float = 0.0
    """Seconds to wait after each stream event."""
    delay: float = 0.0
    """Seconds to wait before the headers."""
    drop: int | None = None
    """Cut the TCP connection after this many stream events."""
    cut: int | None = None
    """End the body cleanly after this many stream events: no error for the client, but no terminal marker either."""
    fail: str = ""
    """`429x2`: the first two requests get status 429. Without `x`: one request. `x0`: every request."""
    retry_after: float = 0.0
    """Seconds that a failure tells the client to wait (0: one millisecond, so that tests are quick)."""
    gzip: bool = False
    """Compress the body; a stream is flushed after every event."""
    chop: int | None = None
    """Send the body in pieces of this many bytes."""
    events: int = EVENTS_DEFAULT
    """Words of the answer, one text delta each."""
    errmid: int | None = None
    """An error event stands in place of this stream event (the first is 0), and the stream ends."""
    nousage: bool = False
    """Leave the usage blocks out. They are billed all the same."""
    nullusage: bool = False
    """Send `null` in place of the usage blocks."""
    weird: str = ""
    """The name of a hostile payload, see `weird.WEIRD`."""
    size: int = 0
    """Make the body at least this many bytes large."""
    crlf: bool = False
    """End the lines of server-sent events with CR LF."""
    no_done: bool = False
    """Leave out the last event of a stream, which is its terminal marker."""
    id: str = ""
    """Whose failures `fail` counts (default: those of everyone with the same options)."""

    def __post_init__(self) -> None:
        if self.weird and self.weird not in WEIRD:
            raise ValueError(f"no hostile payload is called {self.weird!r}. Known: {', '.join(WEIRD)}.")
        if self.fail and not re.fullmatch(r"[45]\d\d(x\d+)?", self.fail):
            raise ValueError(f"fail= wants a status and a count like 429x2, not {self.fail!r}")
        if self.chop is not None and self.chop < 1:
            raise ValueError("chop= wants a number of bytes, at least 1")

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read `slow=0.05,drop=3,gzip`. Raises ValueError for an option or value that does not exist."""
        given: dict[str, Any] = {}
        for option in filter(None, text.split(",")):
            name, _, value = option.partition("=")
            if name not in _READ:
                raise ValueError(f"no option is called {name!r}. Known: {', '.join(_READ)}.")
            given[name] = _READ[name](value)
        return cls(**given)

    @property
    def text(self) -> str:
        """The options that differ from the default, as they stand in a URL."""
        named = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        return ",".join(
            name if value is True else f"{name}={value}" for name, value, default in named if value != default
        )

    @property
    def failures(self) -> tuple[int, int]:
        """The status of a failure and how many requests get it (0: all)."""
        status, _, count = self.fail.partition("x")
        return int(status), int(count or 1)

    def distort(self, document: Any) -> Any:
        """The document as this client gets it: without usage, with null, or hostile."""
        if self.nousage:
            document = without_usage(document)
        if self.nullusage:
            document = with_null_usage(document)
        return WEIRD[self.weird](document) if self.weird else document


def _flag(value: str) -> bool:
    return value not in ("0", "false")


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "slow": float, "delay": float, "drop": int, "cut": int, "fail": str, "retry_after": float, "gzip": _flag,
    "chop": int, "events": int, "errmid": int, "nousage": _flag, "nullusage": _flag, "weird": str, "size": int,
    "crlf": _flag, "no_done": _flag, "id": str,
}  # fmt: skip
