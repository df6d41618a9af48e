"""A middleware may answer with a stream of its own and send again while that is read (Anthropic's fallbacks do).

Such a hop is counted when its response arrives, like any other; here it is given the customer of the opening.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from typing import Any

from token_meter.context import Attribution, carry_result


def carry_hops(result: Any, attribution: Attribution, *, mark: str) -> None:
    """Run the steps of a stream that a middleware made under `attribution`; a response with `mark` is no such one."""
    response = getattr(result, "response", None) or getattr(result, "http_response", None)
    if response is None or mark in response.extensions or response.is_stream_consumed or response.is_closed:
        return
    made = _class(type(response).__module__.partition(".")[0], is_async=hasattr(response.stream, "__aiter__"))
    response.stream = made(response.stream, attribution)


class _Carried:
    def __init__(self, inner: Any, attribution: Attribution) -> None:
        self._inner = inner
        self._attribution = attribution


class _SyncCarried(_Carried):
    def __iter__(self) -> Iterator[bytes]:
        return carry_result((piece for piece in self._inner), self._attribution)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._inner.close()


class _AsyncCarried(_Carried):
    def __aiter__(self) -> AsyncIterator[bytes]:
        return carry_result((piece async for piece in self._inner), self._attribution)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self._inner.aclose()


@lru_cache(maxsize=8)
def _class(library: str, *, is_async: bool) -> Any:
    """The HTTP library checks the type of a stream."""
    module = sys.modules[library]
    if is_async:
        return type("CarriedAsyncByteStream", (_AsyncCarried, module.AsyncByteStream), {})
    return type("CarriedSyncByteStream", (_SyncCarried, module.SyncByteStream), {})
