"""What a request asks for, as far as that bounds what it can cost: read before it is sent, prompts are only measured.

How long a text is, Python knows without looking at it, so that measuring a request costs a few steps for each of its
fields, whatever their size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from token_meter.providers.base import Body, mapping

NODES_MAX: Final = 50_000
"""A request of more fields than this is not measured: it counts as the whole context window."""

BYTES_PER_FIELD: Final = 8
"""What a field adds besides its text: quotes, brackets, the tokens that begin a message."""

ADDED: Final = 256
"""Tokens that a provider shows the model besides the request: what begins a conversation, how tools are called."""

INLINE: Final = "inline file"
"""A picture, sound or document within the request: what it is billed has nothing to do with its bytes."""


class Ask(NamedTuple):
    """What bounds the cost of a request.

    `size`: bytes of all text that the model may be shown (None: too many fields to count). `added`: tokens that the
    provider adds to it, at the most. `output_max`: tokens that one of `choices` may have, reasoning included.
    `inputs`: so many are read one by one, each with a context window of its own. `thinks`: it asks for reasoning.
    `opaque`: fields whose cost nobody knows before (files, earlier responses, tools that fetch text). `calls`: tools of
    the provider that are billed by call, and how often at most (None: as often as the model likes); also what some
    models bill instead of tokens (characters, pictures, milliseconds of sound). `types`: token types other than text
    that may be billed; `expected`: those that certainly are. `passes`: how often at most the model reads its context
    (None: as often as it likes), because such tools make it read again. `context` is a price context as events have
    it. `produces`: whether there is output at all. `tokens` counts the input with a tokeniser, in its own time, where
    there is one for the model (else it returns None).
    """

    size: int | None
    output_max: int | None = None
    choices: int = 1
    inputs: int = 1
    thinks: bool = False
    opaque: tuple[str, ...] = ()
    calls: tuple[tuple[str, int | None], ...] = ()
    types: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    passes: int | None = 1
    context: Mapping[str, Any] = {}
    produces: bool = True
    tokens: Callable[[], int | None] | None = None
    added: int = ADDED


_MEDIA: Final = frozenset({"media_type", "mimeType", "mime_type"})
"""Beside these a field `data` is a file: in Anthropic's and Google's dialects."""

_HEAD_CHARACTERS: Final = 256

ABSENT: Final = frozenset({"NotGiven", "Omit"})
"""The SDKs put objects of these classes where nothing was given; what is sent has no such field."""

UNKNOWN: Final = Ask(None, opaque=("the whole request",))


def measured(body: Body, opaque: frozenset[str]) -> tuple[int | None, tuple[str, ...]]:
    """The bytes of every text and name in a request, and which of its fields are among the `opaque` ones, whose values
    are not measured: they are no text, or not all that the model is shown."""
    size, left = 0, NODES_MAX
    found: dict[str, None] = {}
    waiting: list[Any] = [body]
    while waiting:
        each = waiting.pop()
        left -= 1
        if left < 0:
            return None, tuple(found)
        if type(each) is str:
            if each.startswith("data:") and ";base64," in each[:_HEAD_CHARACTERS]:
                found[INLINE] = None
            else:
                size += BYTES_PER_FIELD + (len(each) if each.isascii() else len(each.encode(errors="replace")))
        elif isinstance(each, dict):
            inline = not _MEDIA.isdisjoint(each)
            for name, value in each.items():
                size += len(str(name))
                if name in opaque and value:
                    found[name] = None
                elif inline and name == "data":
                    found[INLINE] = None
                else:
                    waiting.append(value)
        elif isinstance(each, (list, tuple)):
            waiting.extend(each)
        elif isinstance(each, (bytes, bytearray)):
            found[INLINE] = None
        elif isinstance(each, float):
            size += len(repr(each))
        elif each is None or isinstance(each, int):
            size += BYTES_PER_FIELD + (0 if each is None else each.bit_length() // 3)
        elif type(each).__name__ in ABSENT:
            pass
        else:
            found[INLINE] = None  # an open file, or an object of the caller's
    return size, tuple(found)


def given_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request without the fields that were not given."""
    return {name: value for name, value in body.items() if type(value).__name__ not in ABSENT}


def limit_of(body: Mapping[str, Any], *names: str) -> int | None:
    """The smallest positive whole number under these names."""
    given = [value for name in names if type(value := body.get(name)) is int and value > 0]
    return min(given, default=None)


def count_of(value: Any) -> int:
    """How many choices are asked for: 1 unless a larger number is given."""
    return value if type(value) is int and value > 1 else 1


def tools_of(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tools that a request names."""
    tools = body.get("tools")
    return [mapping(tool) for tool in tools] if isinstance(tools, (list, tuple)) else []
