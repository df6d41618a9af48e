"""`meter.customer(...)`: whose calls these are, as a context manager and as a decorator.

The attribution is put in force by value around each step that runs and put back after it. No context-variable token
is held across a yield, so a generator may be closed in another task, thread or context than it was started in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from token_meter.context import (
    CURRENT,
    NOBODY,
    Applied,
    Attribution,
    Tally,
    carried,
    carried_async,
    carry_result,
    clean_name,
)

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
        if from_ is not None and _is_async(from_):
            raise TypeError("customer(from_=...) needs a plain function: it is called before the function it decorates")
        self._customer = customer
        self._dimensions = dimensions
        self._from = from_
        self._on_error = on_error

    def __enter__(self) -> Tally:
        if self._from is not None:
            raise TypeError("customer(from_=...) reads a function's arguments: use it as a decorator, not with `with`")
        tally = Tally()
        CURRENT.set(CURRENT.get().within(self._customer, self._dimensions, tally, owner=self))
        return tally

    def __exit__(self, *exc: object) -> None:
        entered = CURRENT.get().entry(self)
        if entered is not None and entered.outer is not None:  # else: left in a context it was not entered in
            CURRENT.set(entered.outer)

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
            scope = self._scope(args, kwargs)
            with Applied(scope):
                result = function(*args, **kwargs)
            return carry_result(result, scope)

        return wrapper

    def _coroutine(self, function: Any) -> Any:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with Applied(self._scope(args, kwargs)):
                return await function(*args, **kwargs)

        return wrapper

    def _generator(self, function: Any) -> Any:
        return carried(lambda *args, **kwargs: (function(*args, **kwargs), self._scope(args, kwargs)))

    def _async_generator(self, function: Any) -> Any:
        return carried_async(lambda *args, **kwargs: (function(*args, **kwargs), self._scope(args, kwargs)))

    def _scope(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attribution:
        customer = self._customer
        if self._from is not None:
            try:
                customer = clean_name(self._from(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - a wrong lookup must not break the function it decorates
                self._on_error("customer(from_=...)", error)
        return CURRENT.get().within(customer, self._dimensions)


def _is_async(function: Any) -> bool:
    import inspect  # slow to import, and decorators are few

    return inspect.iscoroutinefunction(function)


def carry_into_threads(original: Any, executor: Any, args: Any, kwargs: Any) -> Any:
    """Around `ThreadPoolExecutor.submit`: the submitted function runs for the customer of the submitter."""
    scope = CURRENT.get()
    if scope is NOBODY or not args:
        return original(*args, **kwargs)
    function, *rest = args

    def with_customer(*inner_args: Any, **inner_kwargs: Any) -> Any:
        with Applied(scope):
            return function(*inner_args, **inner_kwargs)

    return original(with_customer, *rest, **kwargs)
