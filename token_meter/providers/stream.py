"""The tee on an open response: the caller's bytes pass, what counts is folded, the end is settled once.

A stream can end in many ways: read to its marker, cut cleanly by a proxy, closed, failed, cancelled, or dropped and
found by the garbage collector. Whoever notices first settles; completeness is judged by the provider's own terminal
marker, never by how the stream ended (the openai SDK closes at `[DONE]` without reading on).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache
from typing import Any, Final

from token_meter.providers.base import Call, Fold
from token_meter.providers.frames import FrameFramer
from token_meter.providers.settle import read_body, read_fold
from token_meter.providers.sse import Framer, payload

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""A JSON answer read as a stream is gathered up to this size; beyond it its usage is not known."""


def framer_for(content_type: str) -> Any:
    """How the events of a stream are framed: AWS frames, else server-sent events."""
    return FrameFramer() if "vnd.amazon.eventstream" in content_type else Framer()


class Tap:
    """One open event stream: bytes in, one settlement out. O(1) memory."""

    __slots__ = ("_call", "_feed", "_fold", "_framer", "_open")

    def __init__(self, call: Call, fold: Fold, framer: Any) -> None:
        self._call = call
        self._fold = fold
        self._framer = framer
        self._open = [True]

    def feed(self, data: bytes) -> None:
        """Fold what arrived; settle as soon as the provider has said its last word."""
        try:
            block = self._framer.feed(data)
            if block:
                fold = self._fold
                fold.block(block)
                if fold.terminal and fold.document.get("usage") is not None:
                    self.settle("complete")
        except Exception as error:  # noqa: BLE001 - nothing metering does may reach the caller's stream
            self._call.recorder.problem("stream", error)

    def drop(self) -> None:
        """Settle nothing any more: the call failed before anything arrived."""
        self._open.clear()

    def settle(self, ending: str, *, later: bool = False) -> None:
        """Record the stream, the first time only. `later` (finalisers) enqueues instead of writing."""
        try:
            self._open.pop()  # atomic: closing and collecting may race
        except IndexError:
            return
        recorder = self._call.recorder
        try:
            left = self._framer.flush()
            if left:
                self._fold.block(left)
            readings = read_fold(self._call, self._fold, ending)
            if self._framer.overflowed and readings:
                readings[0].anomalies.append("event_too_large")
            (recorder.record_later if later else recorder.record)(self._call, readings)
        except Exception as error:  # noqa: BLE001
            recorder.problem("stream", error)
            recorder.unmetered(self._call, "unreadable")


class BodyTap:
    """A JSON (or other) answer that the caller reads piece by piece: gathered, bounded, read at its end."""

    __slots__ = ("_call", "_keep", "_open", "_parts", "_size")

    def __init__(self, call: Call, *, keep: bool) -> None:
        self._call = call
        self._keep = keep
        self._parts: list[bytes] = []
        self._size = 0
        self._open = [True]

    def feed(self, data: bytes) -> None:
        """Gather a piece."""
        if not self._keep:
            return
        self._size += len(data)
        self._parts.append(data)
        if self._size > BODY_BYTES_MAX:
            self._keep = False
            self._parts = []

    def settle(self, ending: str, *, later: bool = False) -> None:
        """Read what was gathered, the first time only."""
        try:
            self._open.pop()
        except IndexError:
            return
        recorder = self._call.recorder
        try:
            readings = read_body(self._call, b"".join(self._parts))
            for reading in readings:
                if reading.status in ("estimated", "unmetered") and ending != "ended":
                    reading.anomalies.append(ending)
            (recorder.record_later if later else recorder.record)(self._call, readings)
        except Exception as error:  # noqa: BLE001
            recorder.problem("body", error)
            recorder.unmetered(self._call, "unreadable")


class Hide:
    """Takes the extra usage chunk out of what the caller sees, when it is there only because we asked for it.

    Works on whole events; an unfinished one is held back until its end arrives, which the caller's own decoder
    waits for anyway. The null usage that the flag adds to every other chunk is taken out as well, so that the
    caller's chunks equal the bare SDK's.
    """

    __slots__ = ("_framer", "_is_extra")

    def __init__(self, is_extra: Callable[[bytes], bool]) -> None:
        self._framer = Framer()
        self._is_extra = is_extra

    def show(self, data: bytes) -> bytes:
        """The part of `data` (and of what was held) that the caller may see now."""
        return self._visible(self._framer.feed(data))

    def rest(self) -> bytes:
        """What is left when the stream ends."""
        return self._visible(self._framer.flush())

    def _visible(self, block: bytes) -> bytes:
        at = block.rfind(b'"usage":')
        if at < 0:
            return block
        if b'"usage":null' in block:
            block = block.replace(b',"usage":null', b"")
        elif b'"usage": null' in block:
            block = block.replace(b', "usage": null', b"")
        if block.rfind(b'"usage":') < 0:
            return block
        end = b"\r\n\r\n" if b"\r\n\r\n" in block else b"\n\n"
        return end.join(event for event in block.split(end) if not self._extra(event))

    def _extra(self, event: bytes) -> bool:
        return b'"usage"' in event and self._is_extra(payload(event.replace(b"\r\n", b"\n")))


class _Tee:
    """What the sync and the async tee share: the tap, the decoder, and what is hidden."""

    def __init__(self, inner: Any, tap: Tap | BodyTap, decode: Any, hide: Hide | None) -> None:
        self._inner = inner
        self._tap = tap
        self._decode = decode
        self._hide = hide

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __del__(self) -> None:
        tap = self.__dict__.get("_tap")
        if tap is not None:
            tap.settle("dropped", later=True)

    def _pass(self, data: bytes) -> Iterator[bytes]:
        """The slow way of one piece: decode, feed, hide."""
        for plain in [data] if self._decode is None else _pieces(self._decode.decode(data)):
            self._tap.feed(plain)
            if self._hide is not None and (shown := self._hide.show(plain)):
                yield shown
        if self._hide is None:
            yield data

    def _finish(self) -> Iterator[bytes]:
        """What remains when the body has ended."""
        for plain in [] if self._decode is None else _pieces(self._decode.flush()):
            self._tap.feed(plain)
            if self._hide is not None and (shown := self._hide.show(plain)):
                yield shown
        if self._hide is not None and (left := self._hide.rest()):
            yield left


def _pieces(decoded: Any) -> list[bytes]:
    """Decoders of one HTTP library return bytes, of the other a sequence of bytes."""
    return [decoded] if isinstance(decoded, bytes) else list(decoded)


class _SyncTee(_Tee):
    def __iter__(self) -> Iterator[bytes]:
        tap = self._tap
        try:
            if self._decode is None and self._hide is None:
                feed = tap.feed
                for data in self._inner:
                    feed(data)
                    yield data
            else:
                for data in self._inner:
                    yield from self._pass(data)
                yield from self._finish()
        except GeneratorExit:
            tap.settle("closed")
            raise
        except BaseException:
            tap.settle("failed")
            raise
        tap.settle("ended")

    def close(self) -> None:
        self._tap.settle("closed")
        self._inner.close()


class _AsyncTee(_Tee):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        tap = self._tap
        try:
            if self._decode is None and self._hide is None:
                feed = tap.feed
                async for data in self._inner:
                    feed(data)
                    yield data
            else:
                async for data in self._inner:
                    for shown in self._pass(data):
                        yield shown
                for shown in self._finish():
                    yield shown
        except GeneratorExit:
            tap.settle("closed")
            raise
        except BaseException:
            tap.settle("failed")
            raise
        tap.settle("ended")

    async def aclose(self) -> None:
        self._tap.settle("closed")
        await self._inner.aclose()


@lru_cache(maxsize=16)
def _tee_class(library: str, *, is_async: bool) -> Any:
    """The HTTP library checks the type of a stream, so the tee is a subclass of that library's own base."""
    module = sys.modules[library]
    if is_async:
        return type("MeteredAsyncByteStream", (_AsyncTee, module.AsyncByteStream), {})
    return type("MeteredSyncByteStream", (_SyncTee, module.SyncByteStream), {})


def tee(response: Any, tap: Tap | BodyTap, *, is_async: bool, hide: Hide | None) -> None:
    """Put the tee on an unread response; with `hide`, the caller is given decoded bytes."""
    library = type(response).__module__.partition(".")[0]
    encoding = response.headers.get("content-encoding", "identity")
    decode = None
    if encoding not in ("", "identity"):
        decode = _decoder(response, encoding)
        if hide is not None:
            response._decoder = _decoder(response, "identity")
    response.stream = _tee_class(library, is_async=is_async)(response.stream, tap, decode, hide)


def _decoder(response: Any, encoding: str) -> Any:
    """A decoder of the response's own library (gzip, deflate, br, zstd as installed there)."""
    return type(response)(200, headers={"content-encoding": encoding}, stream=response.stream)._get_content_decoder()
