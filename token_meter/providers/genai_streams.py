"""google-genai sends a stream's request at the first `next()`; here it gets the customer of the moment it was opened.

Nothing is counted here. A wrapped client hands out `models` and `chats` whose streams run under the attribution that
held when they were asked for; instrumentation does the same on the SDK's classes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from token_meter.context import CURRENT, carry_result
from token_meter.providers.patching import Patch, patch

_OPENERS: Final = ("generate_content_stream", "send_message_stream")
_CLASSES: Final = (
    ("google.genai.models", ("Models", "AsyncModels"), "generate_content_stream"),
    ("google.genai.chats", ("Chat", "AsyncChat"), "send_message_stream"),
)


def carry(client: Any) -> None:
    """Let the streams of a client, of its `models`, its `aio` and the chats it starts belong to their opening."""
    for part in (client, getattr(client, "_models", None), getattr(client, "_aio", None)):
        if part is not None:
            _carry(part)
    if hasattr(client, "_aio"):
        carry(client._aio)


def release(client: Any) -> None:
    """Give the classes back."""
    for part in (client, getattr(client, "_models", None), getattr(client, "_aio", None)):
        if "_token_meter_carries" in type(part).__dict__:
            part.__class__ = type(part).__mro__[1]
    if hasattr(client, "_aio"):
        release(client._aio)


def instrument() -> list[Patch]:
    """Patch the SDK's classes, now or when they are first imported."""
    return [_instrument(module, names, method) for module, names, method in _CLASSES]


def _instrument(module: str, names: tuple[str, ...], method: str) -> Patch:
    def apply(imported: Any) -> list[Patch]:
        return [patch(getattr(imported, name), method, _opened) for name in names]

    return Patch.when_imported(module, apply)


def _opened(original: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return _then_carry(original(*args, **kwargs), CURRENT.get())


def _then_carry(result: Any, attribution: Any) -> Any:
    """The asynchronous methods are coroutine functions that return the stream: nothing is sent before it is read."""
    if hasattr(result, "__await__"):
        return _awaited(result, attribution)
    return carry_result(result, attribution)


async def _awaited(opening: Any, attribution: Any) -> Any:
    return carry_result(await opening, attribution)


def _carry(part: Any) -> Any:
    if "_token_meter_carries" not in type(part).__dict__:
        cls: Any = type(part)
        part.__class__ = _carrying(cls)
    return part


@lru_cache(maxsize=64)
def _carrying(cls: Any) -> Any:
    """The subclass of a client, a `Models`, `Chats` or `Chat` class whose streams carry their attribution."""
    namespace: dict[str, Any] = {name: _opener(getattr(cls, name)) for name in _OPENERS if hasattr(cls, name)}
    if hasattr(cls, "chats"):
        chats = cls.chats.fget
        namespace["chats"] = property(lambda self: _carry(chats(self)), doc=cls.chats.__doc__)
    if cls.__module__ == "google.genai.chats" and hasattr(cls, "create"):
        create = cls.create
        namespace["create"] = lambda self, *args, **kwargs: _carry(create(self, *args, **kwargs))
    return type(cls.__name__, (cls,), {
        **namespace, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__,
        "_token_meter_carries": True,
    })  # fmt: skip


def _opener(method: Any) -> Any:
    def opened(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _opened(method.__get__(self), self, args, kwargs)

    return opened
