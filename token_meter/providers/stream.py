"""The tee on an open response: the caller's bytes pass, what counts is folded, the end is settled once.

A stream can end in many ways: read to its marker, cut cleanly by a proxy, closed, failed, cancelled, or dropped and
found by the garbage collector. Whoever notices first settles; completeness is judged by the provider's own terminal
marker, never by how the stream ended (the openai SDK closes at `[DONE]` without reading on).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache
from typing import Any, ClassVar, Final

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
    """One open event stream: bytes in, what the caller may see out, one settlement. O(1) memory.

    Most pieces say nothing that counts. They are recognised by the absence of the fold's mark and passed on; the
    first ones, those with the mark, a sample for the text estimate and the last two are looked into.
    """

    __slots__ = (
        "_beat", "_before", "_call", "_fold", "_framer", "_hide", "_last", "_mark", "_mask", "_open", "_spaced",
        "cut",
    )  # fmt: skip

    def __init__(self, call: Call, fold: Fold, framer: Any, hide: Hide | None = None) -> None:
        self._call = call
        self._fold = fold
        self._framer = framer
        self._hide = hide
        self._mark, self._spaced = fold.marks
        self._mask = 0
        self._beat = 0
        self._before = self._last = b""
        self._open = True
        self.cut: BaseException | None = None
        """What ends the stream for the caller, because what was held for it is used up."""

    def take(self, data: bytes) -> bytes:
        """Take notice of what arrived; returns what the caller may see of it."""
        self._beat = beat = self._beat + 1
        if beat & self._mask and data[-1:] == b"\n":
            hide = self._hide
            # Searched from the back: measured at half the time of a forward search on pieces of this size.
            shown = hide.quick(data) if hide is not None else data if data.rfind(self._mark) < 0 else None
            if shown is not None:
                self._before = self._last
                self._last = data
                return shown
        return self._look(data)

    def _look(self, data: bytes) -> bytes:
        """Fold the whole events among what arrived; settle as soon as the provider has said its last word."""
        block = data
        try:
            framer, fold = self._framer, self._fold
            self._look_back()
            block = framer.feed(data)
            if block:
                fold.block(block, self._weight())
            self._set_pace(data, held=bool(framer.held))
            if fold.final:
                self.settle("complete")
            elif self._call.cut_off is not None and fold.text_bytes > self._call.cut_off.bytes:
                self.settle("cut_off")
                self.cut = self._call.cut_off.error
        except Exception as error:  # noqa: BLE001 - nothing metering does may reach the caller's stream
            self._call.recorder.problem("stream", error)
        spilled = self._spilled() if self._framer.overflowed else b""
        return data if self._hide is None else self._hide.visible(block) + spilled

    def _spilled(self) -> bytes:
        """What of an event was too large to hold: it is let pass."""
        spilled: bytes = getattr(self._framer, "spilled", b"")
        if spilled:
            self._framer.spilled = b""
        return spilled

    def _weight(self) -> int:
        """For how many pieces this one stands in the text estimate: nothing if it was not drawn for it."""
        if self._beat <= _EACH_UNTIL or not self._mask:
            return 1
        return 0 if self._beat & self._mask else self._mask + 1

    def _set_pace(self, data: bytes, *, held: bool) -> None:
        beat = self._beat
        if held or beat < _EACH_UNTIL:
            self._mask = 0  # look at every piece
            if b'": ' in data[:_STYLE_BYTES] and self._mark is self._fold.marks[0]:
                self._mark, self._spaced = self._spaced, self._mark
        else:
            self._mask = _SELDOM if beat >= _OFTEN_UNTIL else _OFTEN

    def _look_back(self) -> None:
        """The last pieces passed unread: an end marker, or a mark in the other style (a proxy's own chunk)."""
        passed = self._before + self._last
        self._before = self._last = b""
        if passed:
            self._fold.block(passed, 0)

    def rest(self) -> bytes:
        """What the caller may still see when the body has ended."""
        if self._hide is None:
            return b""
        self._look_back()
        left: bytes = self._framer.flush()
        self._fold.block(left, 1)
        return self._hide.visible(left)

    def drop(self) -> None:
        """Settle nothing any more: the call failed before anything arrived."""
        self._open = False

    def settle(self, ending: str, *, later: bool = False) -> None:
        """Record the stream, the first time only. `later` (finalisers) enqueues instead of writing."""
        try:
            settled = not self._open
            del self._open  # atomic: closing and collecting may race
        except AttributeError:
            return
        if settled:
            return
        recorder = self._call.recorder
        try:
            # What is held back from the caller stays there: an event may have begun in the last piece.
            left = self._framer.flush() if self._hide is None else b"".join(self._framer.held)
            self._fold.block(self._before + self._last + left, 0)
            readings = read_fold(self._call, self._fold, ending)
            if self._framer.overflowed and readings:
                readings[0].anomalies.append("event_too_large")
            (recorder.record_later if later else recorder.record)(self._call, readings)
        except Exception as error:  # noqa: BLE001
            recorder.problem("stream", error)
            recorder.unmetered(self._call, "unreadable")


# Visible output is measured for the case that no counts come: in each of the first pieces, then in a sample.
_EACH_UNTIL: Final = 8
_OFTEN_UNTIL: Final = 32
_OFTEN: Final = 3
_SELDOM: Final = 31
_STYLE_BYTES: Final = 256


class BodyTap:
    """A JSON (or other) answer that the caller reads piece by piece: gathered, bounded, read at its end."""

    __slots__ = ("_call", "_keep", "_open", "_parts", "_size")
    cut: ClassVar[None] = None

    def __init__(self, call: Call, *, keep: bool) -> None:
        self._call = call
        self._keep = keep
        self._parts: list[bytes] = []
        self._size = 0
        self._open = True

    def take(self, data: bytes) -> bytes:
        """Gather a piece; the caller sees all of it."""
        if self._keep:
            self._size += len(data)
            self._parts.append(data)
            if self._size > BODY_BYTES_MAX:
                self._keep = False
                self._parts = []
        return data

    def rest(self) -> bytes:
        """Nothing is held back."""
        return b""

    def settle(self, ending: str, *, later: bool = False) -> None:
        """Read what was gathered, the first time only."""
        try:
            del self._open
        except AttributeError:
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

    Works on whole events; an unfinished one is held back until its end arrives, which the caller's own decoder waits
    for anyway. The null usage that the flag adds to every other chunk is taken out as well, so that the caller's
    chunks equal the bare SDK's.
    """

    __slots__ = ("_is_extra", "_null")

    def __init__(self, is_extra: Callable[[bytes], bool]) -> None:
        self._is_extra = is_extra
        self._null = b',"usage":null'

    def quick(self, data: bytes) -> bytes | None:
        """What the caller may see of a piece that is one event without usage; None for any other piece."""
        shown = data.replace(self._null, b"")
        if len(shown) == len(data) and (data.rfind(b'"usage":') >= 0 or not data.endswith(b"}\n\n")):
            return None
        return shown if data.find(b"\n") == len(data) - 2 else None

    def visible(self, block: bytes) -> bytes:
        """What the caller may see of whole events."""
        if b'"usage": null' in block:
            self._null = b', "usage": null'
        block = block.replace(self._null, b"")
        if block.rfind(b'"usage":') < 0:
            return block
        end = b"\r\n\r\n" if b"\r\n\r\n" in block else b"\n\n"
        return end.join(event for event in block.split(end) if not self._extra(event))

    def _extra(self, event: bytes) -> bool:
        return b'"usage"' in event and self._is_extra(payload(event.replace(b"\r\n", b"\n")))


class _Tee:
    """What the sync and the async tee share: the tap, and the decoder of a compressed body."""

    def __init__(self, inner: Any, tap: Tap | BodyTap, decode: Any, *, decoded: bool) -> None:
        self._inner = inner
        self._tap = tap
        self._decode = decode
        self._decoded = decoded  # the caller is given decoded bytes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __del__(self) -> None:
        tap = self.__dict__.get("_tap")
        if tap is not None:
            tap.settle("dropped", later=True)

    def _pass(self, data: bytes) -> bytes:
        """One piece of a compressed body."""
        shown = b"".join([self._tap.take(plain) for plain in _pieces(self._decode.decode(data))])
        return shown if self._decoded else data

    def _finish(self) -> bytes:
        """What remains for the caller when the body has ended."""
        last = [] if self._decode is None else _pieces(self._decode.flush())
        shown = b"".join([self._tap.take(plain) for plain in last]) + self._tap.rest()
        return shown if self._decoded or self._decode is None else b""


def _pieces(decoded: Any) -> list[bytes]:
    """Decoders of one HTTP library return bytes, of the other a sequence of bytes."""
    return [decoded] if isinstance(decoded, bytes) else list(decoded)


def _is_let_go() -> bool:
    """Whether a generator of the SDK closes the body because it is collected itself: a finaliser takes no lock."""
    return isinstance(sys.exception(), GeneratorExit)


class _SyncTee(_Tee):
    def __iter__(self) -> Iterator[bytes]:
        tap = self._tap
        take = tap.take if self._decode is None else self._pass
        try:
            for data in self._inner:
                if shown := take(data):
                    yield shown
                if tap.cut is not None:
                    raise tap.cut
            if shown := self._finish():
                yield shown
        except GeneratorExit:  # let go of, often by the collector; `close` says so beforehand
            tap.settle("closed", later=True)
            raise
        except BaseException:
            tap.settle("failed")
            raise
        tap.settle("ended")

    def close(self) -> None:
        self._tap.settle("closed", later=_is_let_go())
        self._inner.close()


class _AsyncTee(_Tee):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        tap = self._tap
        take = tap.take if self._decode is None else self._pass
        try:
            async for data in self._inner:
                if shown := take(data):
                    yield shown
                if tap.cut is not None:
                    raise tap.cut
            if shown := self._finish():
                yield shown
        except GeneratorExit:  # let go of, often by the collector; `close` says so beforehand
            tap.settle("closed", later=True)
            raise
        except BaseException:
            tap.settle("failed")
            raise
        tap.settle("ended")

    async def aclose(self) -> None:
        self._tap.settle("closed", later=_is_let_go())
        await self._inner.aclose()


@lru_cache(maxsize=16)
def _tee_class(library: str, *, is_async: bool) -> Any:
    """The HTTP library checks the type of a stream, so the tee is a subclass of that library's own base."""
    module = sys.modules[library]
    if is_async:
        return type("MeteredAsyncByteStream", (_AsyncTee, module.AsyncByteStream), {})
    return type("MeteredSyncByteStream", (_SyncTee, module.SyncByteStream), {})


def tee(response: Any, tap: Tap | BodyTap, *, is_async: bool, hides: bool = False) -> None:
    """Put the tee on an unread response; where something is hidden, the caller is given decoded bytes."""
    library = type(response).__module__.partition(".")[0]
    encoding = response.headers.get("content-encoding", "identity")
    decode = None if encoding in ("", "identity") else _decoder(response, encoding)
    if decode is not None and hides:
        response._decoder = _decoder(response, "identity")
    response.stream = _tee_class(library, is_async=is_async)(response.stream, tap, decode, decoded=hides)


def _decoder(response: Any, encoding: str) -> Any:
    """A decoder of the response's own library (gzip, deflate, br, zstd as installed there)."""
    return type(response)(200, headers={"content-encoding": encoding}, stream=response.stream)._get_content_decoder()
