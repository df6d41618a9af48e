"""Hooking clients of the openai and anthropic SDKs: re-class one client, or patch the base class for all.

A wrapped client gets a generated single-base subclass of its own class: `isinstance`, `with_options()`, `copy()` and
type checkers keep working, because the SDKs build copies with `self.__class__(...)`. (A mixin would change the object
layout and be refused.) Sources: reference/sdk-surface.md §2, §6; proven by tests/providers.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, Final

from token_meter.context import Attribution
from token_meter.errors import MeteringUnavailable
from token_meter.providers import anthropic, openai
from token_meter.providers.base import Recorder
from token_meter.providers.funnel import Binding, Vendor, answered, call_async, call_sync
from token_meter.providers.patching import Patch, patch

VENDORS: Final = {
    "openai": Vendor(
        "openai", openai.endpoint, openai.provider_by_path, openai.is_usage_only, openai.may_ask_for_usage
    ),
    "anthropic": Vendor("anthropic", anthropic.endpoint, anthropic.provider_by_path),
}

BINDING: Final = "_token_meter"
_HOOKS: Final = ("request", "_process_response")


def supports(client: object) -> bool:
    """Whether `client` is one of these SDKs' clients (Azure, Vertex, Bedrock and Foundry classes included)."""
    return _base(type(client)) is not None


def bound(client: Any) -> Binding | None:
    """The binding a wrapped client carries."""
    return client.__dict__.get(BINDING) if isinstance(getattr(client, "__dict__", None), dict) else None


def wrap(client: Any, recorder: Recorder) -> Any:
    """Re-class `client` in place."""
    cls: Any = type(client)
    if not _is_metered(cls):
        client.__class__ = metered_class(cls)
    client.__dict__[BINDING] = Binding(recorder)
    return client


def bind(client: Any, recorder: Recorder, attribution: Attribution) -> Any:
    """A copy of `client` that shares its connections and is metered for `attribution`."""
    copied = client.copy()
    cls: Any = type(copied)
    if not _is_metered(cls):
        copied.__class__ = metered_class(cls)
    copied.__dict__[BINDING] = Binding(recorder, attribution)
    return copied


def unwrap(client: Any) -> Any:
    """Give `client` its own class back."""
    if _is_metered(type(client)):
        client.__class__ = type(client).__mro__[1]
    client.__dict__.pop(BINDING, None)
    client.__dict__.pop("_token_meter_host", None)
    return client


def instrument(name: str, recorder: Recorder) -> list[Patch]:
    """Patch the base classes of one SDK, now or when it is first imported."""
    binding = Binding(recorder)
    vendor = VENDORS[name]

    def apply(module: Any) -> list[Patch]:
        _require_hooks(module.SyncAPIClient)
        _require_hooks(module.AsyncAPIClient)
        return [
            patch(module.SyncAPIClient, "request", _around(call_sync, vendor, binding)),
            patch(module.AsyncAPIClient, "request", _around(call_async, vendor, binding)),
            patch(module.SyncAPIClient, "_process_response", _on_answer(vendor, binding, is_async=False)),
            patch(module.AsyncAPIClient, "_process_response", _on_answer(vendor, binding, is_async=True)),
        ]

    return [Patch.when_imported(f"{name}._base_client", apply)]


def _around(call: Any, vendor: Vendor, binding: Binding) -> Any:
    def wrapper(original: Any, client: Any, args: Any, kwargs: Any) -> Any:
        if BINDING in client.__dict__:  # wrapped by itself: wrap beats instrument
            return original(*args, **kwargs)
        return call(vendor, binding, original, client, args, kwargs)

    return wrapper


def _on_answer(vendor: Vendor, binding: Binding, *, is_async: bool) -> Any:
    def wrapper(original: Any, client: Any, args: Any, kwargs: Any) -> Any:
        if BINDING not in client.__dict__:
            answered(vendor, binding, client, kwargs, is_async=is_async)
        return original(*args, **kwargs)

    return wrapper


@lru_cache(maxsize=256)
def metered_class(cls: Any) -> Any:
    """The metered subclass of a client class: one per class, made once."""
    base = _base(cls)
    if base is None:
        raise TypeError(f"{cls.__qualname__} is no client of a supported SDK")
    _require_hooks(cls)
    name, is_async = base
    vendor = VENDORS[name]
    namespace = _async_methods(cls, vendor) if is_async else _sync_methods(cls, vendor)

    def copied(self: Any, *args: Any, **kwargs: Any) -> Any:
        new = cls.copy(self, *args, **kwargs)
        if BINDING in self.__dict__:
            new.__dict__[BINDING] = self.__dict__[BINDING]
        return new

    return type(cls.__name__, (cls,), {
        **namespace, "copy": copied, "with_options": copied, "__module__": cls.__module__,
        "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, "_token_meter_class": True,
    })  # fmt: skip


def _sync_methods(cls: Any, vendor: Vendor) -> dict[str, Any]:
    request, process = cls.request, cls._process_response

    def metered_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        binding = self.__dict__.get(BINDING)
        if binding is None:
            return request(self, *args, **kwargs)
        return call_sync(vendor, binding, request.__get__(self), self, args, kwargs)

    def metered_process(self: Any, **kwargs: Any) -> Any:
        binding = self.__dict__.get(BINDING)
        if binding is not None:
            answered(vendor, binding, self, kwargs, is_async=False)
        return process(self, **kwargs)

    return {"request": metered_request, "_process_response": metered_process}


def _async_methods(cls: Any, vendor: Vendor) -> dict[str, Any]:
    request, process = cls.request, cls._process_response

    async def metered_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        binding = self.__dict__.get(BINDING)
        if binding is None:
            return await request(self, *args, **kwargs)
        return await call_async(vendor, binding, request.__get__(self), self, args, kwargs)

    async def metered_process(self: Any, **kwargs: Any) -> Any:
        binding = self.__dict__.get(BINDING)
        if binding is not None:
            answered(vendor, binding, self, kwargs, is_async=True)
        return await process(self, **kwargs)

    return {"request": metered_request, "_process_response": metered_process}


def _is_metered(cls: type) -> bool:
    return "_token_meter_class" in cls.__dict__


def _base(cls: type) -> tuple[str, bool] | None:
    """`(sdk name, is async)` of a client class, or None."""
    for each in cls.__mro__:
        name, _, module = each.__module__.partition(".")
        if name in VENDORS and module == "_base_client" and each.__name__ in ("SyncAPIClient", "AsyncAPIClient"):
            return name, each.__name__ == "AsyncAPIClient"
    return None


def _require_hooks(cls: Any) -> None:
    missing = [name for name in _HOOKS if not callable(getattr(cls, name, None))]
    if missing:
        sdk = cls.__module__.partition(".")[0]
        version = getattr(sys.modules.get(sdk), "__version__", "unknown")
        raise MeteringUnavailable(
            f"{sdk} {version} has no {' and no '.join(missing)} on {cls.__qualname__}, so its calls cannot be metered "
            f"(they would bill zero in silence). Upgrade {sdk}, or call meter.record(...) yourself."
        )
