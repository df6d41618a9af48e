"""A sink that hands events to a function of the user's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from token_meter.event import MeterEvent
from token_meter.sinks.lock import ForkLock


class CallbackSink:
    """Calls a synchronous function with a list of events, at least once for each event.

    An event can come again, with the same id, after the function raised or the process died: deduplicate by id where
    that matters. The function runs in the reporter's thread, never twice at the same time. What it raises says what
    becomes of the batch: `Retry` and `Rejected` as for any sink, anything else is a retry.
    """

    def __init__(self, function: Callable[[list[MeterEvent]], object], *, name: str = "callback") -> None:
        if not callable(function):
            raise TypeError(f"CallbackSink wants a function that takes a list of events, not {function!r}")
        if _is_async(function):
            raise TypeError(
                f"CallbackSink cannot call the async function {function!r}: it runs in a thread without an event loop. "
                "Give it a synchronous function, for example one that uses asyncio.run_coroutine_threadsafe."
            )
        self.name = name
        self._function = function
        self._lock = ForkLock()

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Call the function, unless there is nothing to tell."""
        if not events:
            return
        with self._lock:
            result = self._function(list(events))
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError(f"{self._function!r} returned a coroutine; CallbackSink wants a synchronous function")

    def close(self) -> None:
        """Nothing to close: the function belongs to the user."""


def _is_async(function: Any) -> bool:
    """Whether calling it makes a coroutine, also behind `partial` or as an object with an async `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the method itself is wanted
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
