"""AWS event-stream frames (Bedrock): binary messages with a JSON payload that carries one base64 event.

Format: total length, header length, CRC, headers, payload, CRC (smithy.io, "Amazon Event Stream specification").
The framer turns whole frames into the server-sent events they stand for, so that the folds read one format.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Final

FRAME_BYTES_MAX: Final = 16 * 1024 * 1024 + 24
"""The largest frame the specification allows (16 MiB payload and its framing)."""

_PRELUDE: Final = struct.Struct(">III")


class FrameFramer:
    """Gathers bytes into whole frames; the same interface as the SSE framer."""

    __slots__ = ("_held", "overflowed")

    def __init__(self) -> None:
        self._held = bytearray()
        self.overflowed = False

    @property
    def held(self) -> bool:
        """Whether an unfinished frame is held (frames are binary: every piece is looked into)."""
        return True

    def feed(self, data: bytes) -> bytes:
        """The events of the frames that `data` completes, as server-sent events."""
        if self.overflowed:
            return b""
        self._held += data
        events = []
        while (payload := self._next()) is not None:
            events.append(_event(payload))
        return b"".join(events)

    def flush(self) -> bytes:
        """An unfinished frame says nothing."""
        self._held.clear()
        return b""

    def _next(self) -> bytes | None:
        if len(self._held) < _PRELUDE.size:
            return None
        total, headers, _ = _PRELUDE.unpack_from(self._held)
        if total > FRAME_BYTES_MAX or total < headers + 16:
            self.overflowed = True
            self._held.clear()
            return None
        if len(self._held) < total:
            return None
        payload = bytes(self._held[_PRELUDE.size + headers : total - 4])
        del self._held[:total]
        return payload


def _event(payload: bytes) -> bytes:
    try:
        inner = json.loads(payload)["bytes"]
        return b"data: " + base64.b64decode(inner) + b"\n\n"
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return b""
