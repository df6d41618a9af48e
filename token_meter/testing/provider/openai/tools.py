"""When the model calls a tool, in OpenAI's words: a function is declared, and none has been answered yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from token_meter.testing.provider.answer import Answer, example, json_answer


def declared_function(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first function the request declares, in the form of either API, if the model may call it."""
    if document.get("tool_choice") == "none":
        return None
    for tool in document.get("tools") or ():
        if tool.get("type") == "function":
            function = tool.get("function", tool)
            return function if isinstance(function, Mapping) else None
    return None


def arguments(function: Mapping[str, Any]) -> Answer:
    """The arguments of a call, in the pieces in which they are streamed."""
    return json_answer(example(function.get("parameters")))
