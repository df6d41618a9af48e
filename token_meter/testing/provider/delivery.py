"""The way of one answer to the client, with the faults that happen to bytes, and the record of how far it
came.

It knows nothing about sockets: a transport asks for one step after the other and carries it out.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator
from typing import Final, NamedTuple

from token_meter.testing.provider.faults import Faults
from token_meter.testing.provider.reply import Chunk, Reply

_GZIP_WINDOW: Final = 31


class Pause(NamedTuple):
    """The transport waits before it asks for the next step."""

    seconds: float


class Dropped(Exception):
    """The connection is cut here; raised by `Delivery.steps`."""


class Delivery:
    """Iterate `steps()` once; call `broke()` when the client turns out to be gone."""

    def __init__(self, reply: Reply, faults: Faults) -> None:
        self.reply = reply
        self.faults = faults
        self._broken = False
        if not reply.streamed:
            reply.chunks = [_joined(reply.chunks)]

    @property
    def headers(self) -> dict[str, str]:
        """The reply's headers and those that belong to the body: its encoding, and its length where it is known."""
        headers = {**self.reply.headers}
        if self.faults.gzip:
            headers["content-encoding"] = "gzip"
        elif not self.reply.streamed and self.faults.cut is None:
            headers["content-length"] = str(sum(map(len, self.reply.chunks)))
        if "content-length" not in headers:
            headers["transfer-encoding"] = "chunked"
        return headers

    def broke(self) -> None:
        """What was handed over last did not reach the client."""
        self._broken = True
        for line in self.reply.billed:
            line.delivered = False

    def steps(self) -> Generator[bytes | Pause, None, None]:
        """The pieces of the body and the pauses between them. Raises `Dropped` where the connection is cut."""
        faults = self.faults
        squeeze = zlib.compressobj(wbits=_GZIP_WINDOW) if faults.gzip else None
        for sent, (chunk, last) in enumerate(self._chunks()):
            if faults.drop is not None and sent >= faults.drop:
                raise Dropped
            if faults.cut is not None and sent >= faults.cut:
                break
            data = squeeze.compress(chunk) + squeeze.flush(zlib.Z_SYNC_FLUSH) if squeeze else chunk
            for piece, final in _marking_last(_chopped(data, faults.chop)):
                if final:
                    self._handed_over(chunk, sent + 1, last)
                yield piece
            if faults.slow:
                yield Pause(faults.slow)
        if squeeze:
            yield squeeze.flush()

    def _chunks(self) -> Iterator[tuple[bytes, bool]]:
        """To know the last one takes a look ahead, which a handler that waits between its chunks is spared."""
        if self.reply.billed:
            return _marking_last(self.reply.chunks)
        return ((chunk, False) for chunk in self.reply.chunks)

    def _handed_over(self, chunk: bytes, events: int, last: bool) -> None:
        """Written before the piece is handed out: a client that has read the end asks for nothing more."""
        if self._broken:
            return
        for line in getattr(chunk, "tells", ()):
            line.told = line.reported is not None
        for line in self.reply.billed:
            line.events = events
            line.delivered = last and self.reply.whole


def _joined(chunks: Iterable[bytes]) -> Chunk:
    """A plain body is one chunk, which tells what its parts tell."""
    parts = list(chunks)
    whole = Chunk(b"".join(parts))
    whole.tells = tuple(line for part in parts for line in getattr(part, "tells", ()))
    return whole


def _chopped(data: bytes, size: int | None) -> Iterator[bytes]:
    if size is None or len(data) <= size:
        yield data
    else:
        for start in range(0, len(data), size):
            yield data[start : start + size]


def _marking_last(items: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each item and whether it is the last one."""
    iterator = iter(items)
    for ahead in iterator:
        current = ahead
        for following in iterator:
            yield current, False
            current = following
        yield current, True
