"""Hostile payloads: well-formed answers whose fields are not what the documentation says.

Each changes one thing in a document (a response body or the data of one stream event) and leaves the rest
alone. Metering must survive all of them; the ones named `usage_*` leave the answer itself as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

HUGE: Final = 10**30
NESTED_DEPTH: Final = 200
OMIT: Final = object()

HOLDERS: Final = frozenset({"response", "message", "interaction", "result"})
"""Fields that hold an object with a usage block, a model or an id of its own."""
_USAGE: Final = frozenset({"usage", "usageMetadata"})
USAGE_FIELDS: Final = _USAGE | {"tool_usage", "step_usage"}


def altered(document: Any, names: frozenset[str], change: Callable[[Any], Any]) -> Any:
    """A copy in which `change` made a new value of each named field; those for which it returned OMIT are
    left out.

    Looks at the top of the document and inside what it holds (`HOLDERS`), not into the answer itself.
    """
    if not isinstance(document, Mapping):
        return document
    copy = {}
    for name, value in document.items():
        if name in names:
            value = change(value)
        elif name in HOLDERS:
            value = altered(value, names, change)
        if value is not OMIT:
            copy[name] = value
    return copy


def without_usage(document: Any) -> Any:
    """No usage block at all."""
    return altered(document, USAGE_FIELDS, lambda block: OMIT)


def with_null_usage(document: Any) -> Any:
    """`null` where the usage blocks were."""
    return altered(document, USAGE_FIELDS, lambda block: None)


def _usage(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Changes every usage block that is there."""
    return lambda document: altered(document, _USAGE, lambda block: block if block is None else change(block))


def _counts(change: Callable[[int], Any]) -> Callable[[Any], Any]:
    """Changes every number inside the usage blocks."""

    def apply(block: Any) -> Any:
        if isinstance(block, Mapping):
            return {name: apply(value) for name, value in block.items()}
        if isinstance(block, list):
            return [apply(each) for each in block]
        return change(block) if isinstance(block, int) and not isinstance(block, bool) else block

    return _usage(apply)


def _field(value: Any, *names: str) -> Callable[[Any], Any]:
    """Puts a value into the named fields, or leaves them out if it is OMIT."""
    return lambda document: altered(document, frozenset(names), lambda old: value)


def _message_null(document: Any) -> Any:
    """The choices are there, but the message or delta in each is null."""
    if not isinstance(document, Mapping):
        return document
    emptied = dict(document)
    for name in ("choices", "candidates"):
        if isinstance(document.get(name), list):
            emptied[name] = [
                {key: None if key in ("message", "delta", "content") else value for key, value in choice.items()}
                for choice in document[name]
            ]
    return emptied


def _details(block: Any) -> Any:
    """The breakdowns of the counts are words."""
    return {name: "n/a" if isinstance(value, (dict, list)) else value for name, value in block.items()}


def _nested(block: Any) -> Any:
    deep: Any = block
    for _ in range(NESTED_DEPTH):
        deep = {"details": deep}
    return deep


WEIRD: Final[Mapping[str, Callable[[Any], Any]]] = {
    "usage_string": _usage(lambda block: "n/a"),
    "usage_list": _usage(lambda block: [block]),
    "usage_number": _usage(lambda block: 7),
    "usage_empty": _usage(lambda block: {}),
    "usage_nested": _usage(_nested),
    "usage_extra": _usage(lambda block: {**block, "quantum_tokens": 3, "future_details": {"quantum": 3}}),
    "usage_negative": _counts(lambda count: -count - 1),
    "usage_floats": _counts(lambda count: count + 0.5),
    "usage_huge": _counts(lambda count: HUGE),
    "usage_strings": _counts(str),
    "usage_nulls": _counts(lambda count: None),
    "usage_booleans": _counts(lambda count: True),
    "usage_details": _usage(_details),
    "choices_null": _field(None, "choices", "candidates", "content", "output", "data"),
    "message_null": _message_null,
    "model_missing": _field(OMIT, "model", "modelVersion"),
    "model_number": _field(5, "model", "modelVersion"),
    "id_missing": _field(OMIT, "id", "responseId"),
    "empty": lambda document: {},
    "list": lambda document: [document],
}
