"""Server-sent events: cutting a byte stream into whole events without keeping more than one unfinished event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

EVENT_BYTES_MAX: Final = 64 * 1024 * 1024
"""An unfinished event larger than this is not held: its bytes are skipped and the stream is marked."""

_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
WHOLE: Final = (b"\n\n", b"\r\n\r\n")
"""How a piece ends that leaves nothing unfinished."""


class Framer:
    """Gathers bytes into blocks of whole events. Memory: one unfinished event at most."""

    __slots__ = ("_size", "held", "overflowed", "spilled")

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self._size = 0
        self.overflowed = False
        self.spilled = b""  # what was held when there was too much of it; whoever needs it takes it

    def feed(self, data: bytes) -> bytes:
        """The whole events that `data` completes (often `data` itself), or b"" while one is unfinished."""
        if self.held:
            return self._gather(data)
        return data if data.endswith(WHOLE) else self._cut(data)

    def flush(self) -> bytes:
        """What is left at the end of the stream: an event without its blank line."""
        left = b"".join(self.held)
        self._clear()
        return left

    def _clear(self) -> None:
        self.held = []
        self._size = 0

    def _gather(self, data: bytes) -> bytes:
        # A boundary can lie across two pieces: look at the last three bytes of what is held as well.
        seam = self._tail(3) + data
        if not any(end in seam for end in _ENDS):
            self._hold(data)
            return b""
        joined = b"".join([*self.held, data])
        self._clear()
        return self._cut(joined)

    def _tail(self, length: int) -> bytes:
        tail = b""
        for part in reversed(self.held):
            tail = part[-length:] + tail
            if len(tail) >= length:
                break
        return tail[-length:]

    def _cut(self, data: bytes) -> bytes:
        cut = max(data.rfind(end) + len(end) if end in data else 0 for end in _ENDS)
        if cut < len(data):
            self._hold(data[cut:])
        return data[:cut]

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > EVENT_BYTES_MAX:
            self.overflowed = True
            self.spilled = b"".join([*self.held, data])
            self._clear()
            return
        self.held.append(data)
        if len(self.held) > 512:  # tiny pieces: keep the list short, not the bytes
            self.held = [b"".join(self.held)]


def events(block: bytes) -> Iterator[bytes]:
    """The `data` payload of each event of a block, in order; comments and empty events are left out."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for event in block.split(b"\n\n"):
        data = payload(event)
        if data:
            yield data


def payload(event: bytes) -> bytes:
    """The `data` lines of one event, joined as the standard says."""
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    lines = [line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines).strip()
