"""Hooking google-genai: the four methods of `BaseApiClient`, each one HTTP hop.

The public methods are the wrong place: automatic function calling returns only the last hop's usage, continuation
returns a sum (measured, reference/sdk-surface.md §0). Here each hop is one call.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from typing import Any, Final

from token_meter.context import Attribution
from token_meter.errors import BudgetExceeded, MeteringUnavailable
from token_meter.providers import google
from token_meter.providers.base import Call, Recorder
from token_meter.providers.funnel import Binding, failed
from token_meter.providers.genai_streams import carry, release
from token_meter.providers.genai_streams import instrument as instrument_streams
from token_meter.providers.hosts import host_named
from token_meter.providers.patching import Patch, patch
from token_meter.providers.settle import read_body
from token_meter.providers.stream import Tap

BINDING: Final = "_token_meter"
MODULE: Final = "google.genai._api_client"
_METHODS: Final = ("request", "request_streamed", "async_request", "async_request_streamed")


class Chunks:
    """A framer for chunks that the SDK has already cut: each is one event."""

    __slots__ = ()
    overflowed = False
    held = False

    def feed(self, data: bytes) -> bytes:
        """The chunk as it is."""
        return data

    def flush(self) -> bytes:
        """Nothing is ever held."""
        return b""


_CHUNKS: Final = Chunks()


def request(binding: Binding, original: Any, api: Any, args: Any, kwargs: Any) -> Any:
    """Around one plain hop."""
    call, handled = _begin(binding, api, args, kwargs), sys.exception()
    if call is not None and call.guarded:
        call.recorder.admit(call, _asked(args, kwargs))
    try:
        response = original(*args, **kwargs)
    except BaseException as error:
        failed(call, error, handled)
        raise
    _answered(call, response, args, kwargs)
    return response


async def async_request(binding: Binding, original: Any, api: Any, args: Any, kwargs: Any) -> Any:
    """Around one plain hop, async."""
    call, handled = _begin(binding, api, args, kwargs), sys.exception()
    if call is not None and call.guarded:
        await call.recorder.aadmit(call, _asked(args, kwargs))
    try:
        response = await original(*args, **kwargs)
    except BaseException as error:
        failed(call, error, handled)
        raise
    _answered(call, response, args, kwargs)
    return response


def request_streamed(binding: Binding, original: Any, api: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """Around one streamed hop: a generator, as the SDK's own; the request leaves at the first `next()`."""
    call, handled = _begin(binding, api, args, kwargs), sys.exception()
    if call is not None and call.guarded:
        call.recorder.admit(call, _asked(args, kwargs))
    tap = _tap(call, args, kwargs)
    chunks = original(*args, **kwargs)
    started = False
    try:
        for chunk in chunks:
            started = True
            _feed(tap, chunk)
            yield chunk
            if tap is not None and tap.cut is not None:
                raise tap.cut
    except GeneratorExit:
        _ended(call, tap, "closed", later=True)  # most often by the collector
        chunks.close()
        raise
    except BaseException as error:
        _broke(call, tap, error, None if started else handled, started=started)
        raise
    _ended(call, tap, "ended")


async def async_request_streamed(binding: Binding, original: Any, api: Any, args: Any, kwargs: Any) -> Any:
    """Around one streamed hop, async: the SDK's coroutine sends and returns an async generator."""
    call, handled = _begin(binding, api, args, kwargs), sys.exception()
    if call is not None and call.guarded:
        await call.recorder.aadmit(call, _asked(args, kwargs))
    try:
        chunks = await original(*args, **kwargs)
    except BaseException as error:
        failed(call, error, handled)
        raise
    return MeteredChunks(call, _tap(call, args, kwargs), chunks)


class MeteredChunks:
    """The SDK's async generator, metered. A class, so that one that is never iterated is still settled."""

    def __init__(self, call: Call | None, tap: Tap | None, chunks: Any) -> None:
        self._call = call
        self._tap = tap
        self._chunks = chunks
        self._started = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._tap is not None and self._tap.cut is not None:
            await self._chunks.aclose()
            raise self._tap.cut
        try:
            chunk = await self._chunks.__anext__()
        except StopAsyncIteration:
            _ended(self._call, self._tap, "ended")
            raise
        except BaseException as error:
            _broke(self._call, self._tap, error, None, started=self._started)
            raise
        self._started = True
        _feed(self._tap, chunk)
        return chunk

    async def asend(self, value: Any) -> Any:
        return await self.__anext__()

    async def athrow(self, *error: Any) -> Any:
        _ended(self._call, self._tap, "failed")
        return await self._chunks.athrow(*error)

    async def aclose(self) -> None:
        _ended(self._call, self._tap, "closed")
        await self._chunks.aclose()

    def __del__(self) -> None:
        tap = self.__dict__.get("_tap")
        if tap is not None:
            self._call.fresh = False  # type: ignore[union-attr]
            tap.settle("dropped", later=True)


def _begin(binding: Binding, api: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    try:
        method, path = _argument(args, kwargs, 0, "http_method"), _argument(args, kwargs, 1, "path")
        endpoint = google.endpoint(method.lower(), path)
        if endpoint is None:
            return None
        host = _host(api, kwargs.get("http_options") or (args[3] if len(args) > 3 else None))
        known = host_named(host)
        provider = google.provider_by_path(path) or (known.provider if known else "google")
        if getattr(api, "vertexai", False):
            provider = "vertex"
        return binding.recorder.begin(
            endpoint, provider=provider, host=host, model=google.model_of(path), bound=binding.attribution
        )
    except BudgetExceeded:
        raise
    except Exception as error:  # noqa: BLE001 - nothing metering does may reach the caller
        binding.recorder.problem("request", error)
        return None


def _answered(call: Call | None, response: Any, args: Any, kwargs: Any) -> None:
    if call is None:
        return
    call.fresh = False
    try:
        call.sent = _argument(args, kwargs, 2, "request_dict")
        call.recorder.record(call, read_body(call, response.body or ""))
    except Exception as error:  # noqa: BLE001
        call.recorder.problem("response", error)
        call.recorder.unmetered(call, "unreadable")


def _tap(call: Call | None, args: Any, kwargs: Any) -> Tap | None:
    if call is None:
        return None
    try:
        call.sent = _argument(args, kwargs, 2, "request_dict")
        return Tap(call, call.endpoint.fold(), _CHUNKS)
    except Exception as error:  # noqa: BLE001
        call.recorder.problem("request", error)
        return None


def _feed(tap: Tap | None, chunk: Any) -> None:
    body = getattr(chunk, "body", None)
    if tap is not None and body is not None:
        tap.take(body.encode() if isinstance(body, str) else body)


def _ended(call: Call | None, tap: Tap | None, how: str, *, later: bool = False) -> None:
    if call is not None and tap is not None:
        call.fresh = False
        tap.settle(how, later=later)


def _broke(
    call: Call | None, tap: Tap | None, error: BaseException, handled: BaseException | None, *, started: bool
) -> None:
    """The stream raised: before its first chunk it is a failed call, after it a partial answer."""
    if call is None or tap is None:
        return
    if started:
        _ended(call, tap, "failed")
    else:
        tap.drop()
        failed(call, error, handled)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return kwargs[name] if name in kwargs else args[place]


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    asked = _argument(args, kwargs, 2, "request_dict")
    return asked if isinstance(asked, dict) else {}


def _host(api: Any, options: Any) -> str:
    """The host of a request: its own options may name another one than the client's."""
    base = _base_url(options) or _base_url(api._http_options) or ""
    name: str = base.partition("://")[2].partition("/")[0]
    return name.lower()


def _base_url(options: Any) -> str | None:
    found = options.get("base_url") if isinstance(options, dict) else getattr(options, "base_url", None)
    return found if isinstance(found, str) else None


# ---- hooking ------------------------------------------------------------------------------------------------------


def supports(client: object) -> bool:
    """Whether `client` is a genai client (`Client` or its `.aio`)."""
    return _api_class(type(getattr(client, "_api_client", None))) is not None


def bound(client: Any) -> Binding | None:
    """The binding a wrapped client carries."""
    return _binding(client._api_client)


def _binding(api: Any) -> Binding | None:
    """A bound copy has one of its own; everything else it shares with the client it was made of."""
    try:
        found: Binding | None = api._token_meter_own
    except AttributeError:
        found = api.__dict__.get(BINDING)
    return found


def wrap(client: Any, recorder: Recorder) -> Any:
    """Re-class the transport that `client`, its `models`, `chats` and `aio` share."""
    api = client._api_client
    if "_token_meter_class" not in type(api).__dict__:
        cls: Any = type(api)
        api.__class__ = _metered_class(cls)
    api.__dict__[BINDING] = Binding(recorder)
    carry(client)
    return client


def bind(client: Any, recorder: Recorder, attribution: Attribution) -> Any:
    """A copy of `client` on the same connections, metered for `attribution`."""
    old = client._api_client
    cls: Any = next(each for each in type(old).__mro__ if "_token_meter_class" not in each.__dict__)
    api_class = _bound_class(cls)
    new = api_class.__new__(api_class)
    new.__dict__ = old.__dict__  # one state: connections that the SDK opens later are shared as well
    new._token_meter_own = Binding(recorder, attribution)
    copied = _rebind(client, old, new)
    # The SDK closes the shared connections when a client is collected: this copy must not, and it keeps the
    # client it came from alive so that that one does not either.
    copied.__dict__["_token_meter_shares"] = client
    carry(copied)
    if hasattr(type(client), "__del__"):
        client_class: Any = type(copied)
        copied.__class__ = _unowned(client_class)
    return copied


def unwrap(client: Any) -> Any:
    """Give the transport its own class back."""
    api = client._api_client
    if hasattr(api, "_token_meter_own"):
        api._token_meter_own = None
        return client
    if "_token_meter_class" in type(api).__dict__:
        api.__class__ = type(api).__mro__[1]
    api.__dict__.pop(BINDING, None)
    release(client)
    return client


def instrument(name: str, recorder: Recorder) -> list[Patch]:
    """Patch `BaseApiClient`, now or when it is first imported."""
    binding = Binding(recorder)

    def apply(module: Any) -> list[Patch]:
        _require_hooks(module.BaseApiClient)
        return [patch(module.BaseApiClient, method, _around(hook, binding)) for method, hook in _HOOKS.items()]

    return [Patch.when_imported(MODULE, apply), *instrument_streams()]


_HOOKS: Final = {
    "request": request,
    "request_streamed": request_streamed,
    "async_request": async_request,
    "async_request_streamed": async_request_streamed,
}


def _around(hook: Any, binding: Binding) -> Any:
    def wrapper(original: Any, api: Any, args: Any, kwargs: Any) -> Any:
        if _is_wrapped(api):  # wrap beats instrument
            return original(*args, **kwargs)
        return hook(binding, original, api, args, kwargs)

    return wrapper


@lru_cache(maxsize=64)
def _metered_class(cls: Any) -> Any:
    _require_hooks(cls)

    def method(name: str, hook: Any) -> Any:
        plain = getattr(cls, name)

        def metered(self: Any, *args: Any, **kwargs: Any) -> Any:
            binding = _binding(self)
            if binding is None:
                return plain(self, *args, **kwargs)
            return hook(binding, plain.__get__(self), self, args, kwargs)

        return metered

    return type(cls.__name__, (cls,), {
        **{name: method(name, hook) for name, hook in _HOOKS.items()}, "__module__": cls.__module__,
        "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, "_token_meter_class": True,
    })  # fmt: skip


def _is_wrapped(api: Any) -> bool:
    return BINDING in api.__dict__ or hasattr(api, "_token_meter_own")


@lru_cache(maxsize=64)
def _bound_class(cls: Any) -> Any:
    """The class of bound copies: a binding of their own, and a finaliser that leaves the shared connections open."""
    return type(cls.__name__, (_metered_class(cls),), {
        "__slots__": ("_token_meter_own",), "__del__": lambda self: None, "__module__": cls.__module__,
        "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, "_token_meter_class": True,
    })  # fmt: skip


@lru_cache(maxsize=64)
def _unowned(cls: Any) -> Any:
    """`cls` without its finaliser: for copies that do not own their connections."""
    return type(cls.__name__, (cls,), {
        "__del__": lambda self: None, "__module__": cls.__module__, "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__, "_token_meter_carries": True,
    })  # fmt: skip


def _rebind(thing: Any, old: Any, new: Any) -> Any:
    """A copy of a client (or of one of its parts) that talks through `new` instead of `old`."""
    copied = copy.copy(thing)
    for name, value in list(copied.__dict__.items()):
        if value is old:
            copied.__dict__[name] = new
        elif getattr(value, "__dict__", {}).get("_api_client") is old:
            copied.__dict__[name] = _rebind(value, old, new)
    return copied


def _api_class(cls: type) -> type | None:
    return next((each for each in cls.__mro__ if each.__module__ == MODULE and each.__name__ == "BaseApiClient"), None)


def _require_hooks(cls: Any) -> None:
    missing = [name for name in _METHODS if not callable(getattr(cls, name, None))]
    if missing:
        raise MeteringUnavailable(
            f"this google-genai has no BaseApiClient.{', '.join(missing)}, so its calls cannot be metered (they would "
            "bill zero in silence). Install google-genai >= 1.50, or call meter.record(...) yourself."
        )
