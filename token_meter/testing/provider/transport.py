"""The provider without a socket: transports for httpx and httpx2, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from token_meter.testing.provider.delivery import Delivery, Dropped, Pause

Open = Callable[[str, str, dict[str, str], bytes], Delivery]
"""Answers a request: method, target, headers, body."""


def sync_transport(open_delivery: Open, httpx: Any) -> Any:
    """A `BaseTransport` of the given module (httpx or httpx2)."""

    def handle_request(self: Any, request: Any) -> Any:
        delivery = open_delivery(*_parts(request, request.read()))
        time.sleep(delivery.faults.delay)
        return _response(httpx, request, delivery, sync_stream)

    def iterate(self: Any) -> Iterator[bytes]:
        try:
            for step in self.steps:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    yield step
        except Dropped:
            raise _dropped(httpx) from None

    def close(self: Any) -> None:
        self.steps.close()

    sync_stream = type("LoopbackStream", (httpx.SyncByteStream,), {"__iter__": iterate, "close": close})
    return type("LoopbackTransport", (httpx.BaseTransport,), {"handle_request": handle_request})()


def async_transport(open_delivery: Open, httpx: Any) -> Any:
    """An `AsyncBaseTransport` of the given module (httpx or httpx2)."""

    async def handle_async_request(self: Any, request: Any) -> Any:
        delivery = open_delivery(*_parts(request, await request.aread()))
        await asyncio.sleep(delivery.faults.delay)
        return _response(httpx, request, delivery, async_stream)

    async def iterate(self: Any) -> AsyncIterator[bytes]:
        try:
            for step in self.steps:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    yield step
        except Dropped:
            raise _dropped(httpx) from None

    async def aclose(self: Any) -> None:
        self.steps.close()

    async_stream = type("AsyncLoopbackStream", (httpx.AsyncByteStream,), {"__aiter__": iterate, "aclose": aclose})
    members = {"handle_async_request": handle_async_request}
    return type("AsyncLoopbackTransport", (httpx.AsyncBaseTransport,), members)()


def _parts(request: Any, body: bytes) -> tuple[str, str, dict[str, str], bytes]:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return request.method, request.url.raw_path.decode(), headers, body


def _response(httpx: Any, request: Any, delivery: Delivery, stream_class: Any) -> Any:
    stream = stream_class()
    stream.steps = delivery.steps()
    return httpx.Response(
        delivery.reply.status,
        headers=delivery.headers,
        stream=stream,
        request=request,
        extensions={"http_version": b"HTTP/1.1"},
    )


def _dropped(httpx: Any) -> Exception:
    message = "peer closed connection without sending complete message body"
    return httpx.RemoteProtocolError(message)  # type: ignore[no-any-return]
