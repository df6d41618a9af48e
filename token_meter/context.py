"""Who a call is for: the customer and dimensions in force where the code runs, and the tallies that watch.

A context variable holds one immutable `Attribution`. It is set and put back by value, never by token: a token
must be reset in the context it was made in, and web frameworks, generators and thread pools leave a block in
another one. Each block links to the one around it, so leaving finds its own entry, and in a context where it has
none it changes nothing.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import AsyncGeneratorType, CoroutineType, GeneratorType, MappingProxyType
from typing import Any, Final, NamedTuple

from token_meter.usage import Usage

NAME_LENGTH_MAX: Final = 256
"""Customers and dimension values longer than this are cut: they are keys, not content."""

DIMENSIONS_MAX: Final = 32
"""So many dimensions one event carries at most."""

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Tally:
    """What a `meter.customer(...)` block consumed so far; safe to read and add to from any thread.

    `add` takes no lock that another thread may hold: streams that are dropped are counted by finalisers.
    """

    __slots__ = ("_added", "_calls", "_corrections", "_locks", "_usage")

    def __init__(self) -> None:
        self._added: deque[tuple[Usage | Callable[[], Usage], int]] = deque()
        self._corrections: deque[tuple[Usage, Usage]] = deque()
        self._locks: dict[int, threading.Lock] = {}
        self._usage = Usage()
        self._calls = 0

    @property
    def usage(self) -> Usage:
        """The sum of the usage of every call that ended so far."""
        with self._lock:
            self._sum_up()
            return self._usage

    @property
    def calls(self) -> int:
        """How many calls ended so far."""
        with self._lock:
            self._sum_up()
            return self._calls

    def add(self, usage: Usage, *, calls: int = 1) -> None:
        """Count one ended call."""
        self._added.append((usage, calls))
        self._bound()

    def add_later(self, read: Callable[[], Usage]) -> None:
        """Count one ended call whose usage is read when somebody asks."""
        self._added.append((read, 1))
        self._bound()

    def _bound(self) -> None:
        if len(self._added) > _ADDED_MAX and (lock := self._lock).acquire(blocking=False):
            try:
                self._sum_up()
            finally:
                lock.release()

    @property
    def _lock(self) -> threading.Lock:
        """This process's own: a thread that a fork left behind may have held the parent's."""
        process = os.getpid()
        return self._locks.get(process) or self._locks.setdefault(process, threading.Lock())

    def _correct(self, was: Usage, now: Usage) -> None:
        """An estimate that was added as `was` is known better."""
        self._corrections.append((was, now))

    def _sum_up(self) -> None:
        corrections = len(self._corrections)  # looked at first: what they correct was added before
        while self._added:
            added, calls = self._added.popleft()
            self._usage = self._usage + (added if isinstance(added, Usage) else added())
            self._calls += calls
        for _ in range(corrections):
            was, now = self._corrections.popleft()
            left = {name: count - was.get(name, 0) for name, count in self._usage.items()}
            self._usage = Usage.of({name: count for name, count in left.items() if count}) + now

    def __repr__(self) -> str:
        return f"Tally(calls={self.calls}, usage={self.usage!r})"


_ADDED_MAX: Final = 256
"""So many calls wait to be summed up; then one that adds does it."""


class Attribution(NamedTuple):
    """The customer, the dimensions and the tallies that hold for a call.

    While one is in force, `owner` is the block that put it there and `outer` what was in force around that block.
    """

    customer: str | None = None
    dimensions: Mapping[str, str] = _NOTHING
    tallies: tuple[Tally, ...] = ()
    owner: object = None
    outer: Attribution | None = None

    def within(
        self, customer: str | None, dimensions: Mapping[str, str], tally: Tally | None = None, *, owner: object = None
    ) -> Attribution:
        """A narrower attribution: another customer if one is given, dimensions merged, one more tally."""
        return Attribution(
            self.customer if customer is None else customer,
            _merged(self.dimensions, dimensions) if dimensions else self.dimensions,
            self.tallies if tally is None else (*self.tallies, tally),
            owner,
            None if owner is None else self,
        )

    def entry(self, owner: object) -> Attribution | None:
        """The innermost attribution that `owner` put in force, looking outwards from this one."""
        found: Attribution | None = self
        while found is not None and found.owner is not owner:
            found = found.outer
        return found


NOBODY: Final = Attribution()

CURRENT: ContextVar[Attribution] = ContextVar("token_meter.attribution", default=NOBODY)


class Applied:
    """Puts an attribution in force for one step of a function, a coroutine or a generator, and then takes it back.

    What the step itself left in force (a generator that yields inside a block of its own) is there again at the next.
    """

    __slots__ = ("_inner", "_mark", "_outer")

    def __init__(self, attribution: Attribution) -> None:
        self._mark = object()
        self._inner = Attribution(attribution.customer, attribution.dimensions, attribution.tallies, self._mark)

    def __enter__(self) -> None:
        self._outer = CURRENT.get()
        CURRENT.set(self._inner)

    def __exit__(self, *exc: object) -> None:
        top = CURRENT.get()
        if top.entry(self._mark) is not None:  # else: closed or collected in another context, which has its own
            self._inner = top
            CURRENT.set(self._outer)


Stepped = Callable[..., tuple[Any, Attribution]]
"""Given the arguments of a generator function: the generator to run, and the attribution to run it under."""


def carried(begin: Stepped) -> Any:
    """A generator function whose steps run under an attribution, whoever takes them."""

    def steps(*args: Any, **kwargs: Any) -> Any:
        generator, attribution = begin(*args, **kwargs)
        applied = Applied(attribution)
        step: Callable[[], Any] = functools.partial(next, generator)
        while True:
            try:
                with applied:
                    item = step()
            except StopIteration as stop:
                return stop.value
            try:
                sent = yield item
            except GeneratorExit:
                with applied:
                    generator.close()
                raise
            except BaseException as error:  # noqa: BLE001 - handed on into the generator
                step = functools.partial(generator.throw, error)
            else:
                step = functools.partial(generator.send, sent)

    return steps


def carried_async(begin: Stepped) -> Any:
    """The same for an async generator function."""

    async def steps(*args: Any, **kwargs: Any) -> Any:
        generator, attribution = begin(*args, **kwargs)
        applied = Applied(attribution)
        step: Callable[[], Any] = generator.__anext__
        while True:
            try:
                with applied:
                    item = await step()
            except StopAsyncIteration:
                return
            try:
                sent = yield item
            except GeneratorExit:
                with applied:
                    await generator.aclose()
                raise
            except BaseException as error:  # noqa: BLE001 - handed on into the generator
                step = functools.partial(generator.athrow, error)
            else:
                step = functools.partial(generator.asend, sent)

    return steps


_steps: Final = carried(lambda generator, attribution: (generator, attribution))
_async_steps: Final = carried_async(lambda generator, attribution: (generator, attribution))


async def _awaited(coroutine: Any, attribution: Attribution) -> Any:
    with Applied(attribution):
        return await coroutine


def carry_result(result: Any, attribution: Attribution) -> Any:
    """What a function returned. A coroutine or a generator is still to be run: it will be under `attribution`."""
    if isinstance(result, CoroutineType):
        return _awaited(result, attribution)
    if isinstance(result, GeneratorType):
        return _steps(result, attribution)
    return _async_steps(result, attribution) if isinstance(result, AsyncGeneratorType) else result


def clean_name(value: object) -> str | None:
    """A customer or dimension value as it is stored: text, bounded, None for nothing."""
    if value is None:
        return None
    text = value if type(value) is str else str(value)
    return text[:NAME_LENGTH_MAX] or None


def _merged(outer: Mapping[str, str], inner: Mapping[str, str]) -> Mapping[str, str]:
    merged = {**outer, **inner}
    if len(merged) > DIMENSIONS_MAX:  # the innermost say most about a call
        merged = {**dict(list(outer.items())[: max(0, DIMENSIONS_MAX - len(inner))]), **inner}
    return merged


def clean_dimensions(dimensions: Mapping[str, object]) -> dict[str, str]:
    """Dimensions as they are stored; empty values are left out, at most `DIMENSIONS_MAX` are kept."""
    cleaned = {name[:NAME_LENGTH_MAX]: text for name, value in dimensions.items() if (text := clean_name(value))}
    return dict(list(cleaned.items())[:DIMENSIONS_MAX])
