"""`meter.customer(...)`: whose calls these are, as a context manager and as a decorator.

The attribution is put in force by value around each step that runs and put back after it. No context-variable token
is held across a yield, so a generator may be closed in another task, thread or context than it was started in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from token_meter.context import CURRENT, Attribution, Tally, clean_name

Function = TypeVar("Function", bound=Callable[..., Any])


class CustomerScope:
    """Made by `meter.customer(...)`. As a context manager it yields a `Tally`; it also works under `async with`.

    As a decorator it wraps functions, coroutine functions, generators and async generators; `from_` is called with
    the function's own arguments and returns the customer.
    """

    def __init__(
        self,
        customer: str | None,
        dimensions: Mapping[str, str],
        *,
        from_: Callable[..., Any] | None = None,
        on_error: Callable[[str, BaseException], None],
    ) -> None:
        self._customer = customer
        self._dimensions = dimensions
        self._from = from_
        self._on_error = on_error
        self._outer: list[Attribution] = []

    def __enter__(self) -> Tally:
        if self._from is not None:
            raise TypeError("customer(from_=...) reads a function's arguments: use it as a decorator, not with `with`")
        tally = Tally()
        outer = CURRENT.get()
        self._outer.append(outer)
        CURRENT.set(outer.within(self._customer, self._dimensions, tally))
        return tally

    def __exit__(self, *exc: object) -> None:
        CURRENT.set(self._outer.pop())

    async def __aenter__(self) -> Tally:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()

    def __call__(self, function: Function) -> Function:
        import inspect

        if inspect.isasyncgenfunction(function):
            wrapper: Any = self._async_generator(function)
        elif inspect.iscoroutinefunction(function):
            wrapper = self._coroutine(function)
        elif inspect.isgeneratorfunction(function):
            wrapper = self._generator(function)
        else:
            wrapper = self._function(function)
        return functools.wraps(function)(wrapper)  # type: ignore[return-value]

    # ---- one wrapper per kind of function ----

    def _function(self, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with _Applied(self._scope(args, kwargs)):
                return function(*args, **kwargs)

        return wrapper

    def _coroutine(self, function: Any) -> Any:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with _Applied(self._scope(args, kwargs)):
                return await function(*args, **kwargs)

        return wrapper

    def _generator(self, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            scope = self._scope(args, kwargs)
            generator = function(*args, **kwargs)
            step: Callable[[], Any] = functools.partial(next, generator)
            while True:
                try:
                    with _Applied(scope):
                        item = step()
                except StopIteration as stop:
                    return stop.value
                try:
                    sent = yield item
                except GeneratorExit:
                    with _Applied(scope):
                        generator.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - handed on into the generator
                    step = functools.partial(generator.throw, error)
                else:
                    step = functools.partial(generator.send, sent)

        return wrapper

    def _async_generator(self, function: Any) -> Any:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            scope = self._scope(args, kwargs)
            generator = function(*args, **kwargs)
            step: Callable[[], Any] = generator.__anext__
            while True:
                try:
                    with _Applied(scope):
                        item = await step()
                except StopAsyncIteration:
                    return
                try:
                    sent = yield item
                except GeneratorExit:
                    with _Applied(scope):
                        await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - handed on into the generator
                    step = functools.partial(generator.athrow, error)
                else:
                    step = functools.partial(generator.asend, sent)

        return wrapper

    def _scope(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attribution:
        customer = self._customer
        if self._from is not None:
            try:
                customer = clean_name(self._from(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - a wrong lookup must not break the function it decorates
                self._on_error("customer(from_=...)", error)
        return CURRENT.get().within(customer, self._dimensions)


class _Applied:
    """Puts an attribution in force and puts the outer one back, by value."""

    __slots__ = ("_outer", "_scope")

    def __init__(self, scope: Attribution) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._outer = CURRENT.get()
        CURRENT.set(self._scope)

    def __exit__(self, *exc: object) -> None:
        CURRENT.set(self._outer)


def carry_into_threads(original: Any, executor: Any, args: Any, kwargs: Any) -> Any:
    """Around `ThreadPoolExecutor.submit`: the submitted function runs for the customer of the submitter."""
    scope = CURRENT.get()
    function, *rest = args

    def carried(*inner_args: Any, **inner_kwargs: Any) -> Any:
        with _Applied(scope):
            return function(*inner_args, **inner_kwargs)

    return original(carried, *rest, **kwargs)
