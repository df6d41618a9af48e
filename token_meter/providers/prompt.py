"""The prompt of a request in OpenAI's dialects: which of its strings are text, and what the messages add to them.

Counted are the strings under `messages`, `input`, `prompt`, `instructions`, `tools` and `functions`. On top come the
constants of OpenAI's cookbook ("How to count tokens with tiktoken"): three tokens for each message, one for a name,
three that begin the reply. How tools are rendered is not published; their strings and property names come close.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from token_meter.providers.base import Body
from token_meter.providers.estimate import INLINE_BYTES_MIN, TOKENS_PER_FILE

TOKENS_PER_MESSAGE: Final = 3
TOKENS_PER_NAME: Final = 1
TOKENS_PER_REPLY: Final = 3

_NOT_TEXT: Final = frozenset({
    "call_id", "detail", "encrypted_content", "file_id", "format", "id", "status", "tool_call_id", "type",
})  # fmt: skip
"""Fields of messages that the model is not shown, or not as text."""

_PLAIN: Final = "prompt"

CountTokens = Callable[[str], int]


def prompt_tokens(request: Body, count: CountTokens) -> int | None:
    """The input tokens of a request, `count` telling those of a text; None when it has no prompt."""
    messages = _messages(request)
    plain = request.get(_PLAIN)
    if not messages and not isinstance(plain, (str, list)):
        return None
    total = TOKENS_PER_REPLY if messages else 0
    for message in messages:
        total += TOKENS_PER_MESSAGE + _tokens("", message, count, _NOT_TEXT)
        if isinstance(message, dict) and isinstance(message.get("name"), str):
            total += TOKENS_PER_NAME
    if isinstance(plain, (str, list)):
        total += _tokens(_PLAIN, plain, count, frozenset())
    for name in ("tools", "functions"):
        total += _tokens("", request.get(name), count, frozenset())
    return total


def _messages(request: Body) -> list[Any]:
    """The messages of both dialects; a plain text is one message."""
    found: list[Any] = []
    if isinstance(instructions := request.get("instructions"), str):
        found.append({"role": "system", "content": instructions})
    for name in ("messages", "input"):
        given = request.get(name)
        if isinstance(given, str):
            found.append({"role": "user", "content": given})
        elif isinstance(given, list):
            found.extend(given)
    return found


def _tokens(field: str, value: Any, count: CountTokens, skipped: frozenset[str]) -> int:
    """The tokens of every string below `value`. Not recursive: requests nest as deep as they like."""
    total = 0
    waiting = [(field, value)]
    while waiting:
        name, each = waiting.pop()
        if name in skipped:
            continue
        if name == "image_url":  # a picture, wherever it is
            total += TOKENS_PER_FILE
        elif isinstance(each, str):
            total += TOKENS_PER_FILE if _is_file(name, each) else count(each)
        elif isinstance(each, dict):
            waiting.extend(each.items())
            if name == "properties":
                waiting.extend(("", key) for key in each)
        elif isinstance(each, list):
            waiting.extend((name, item) for item in each)
        elif type(each) is int and name == _PLAIN:  # a prompt can be given as tokens
            total += 1
    return total


def _is_file(name: str, text: str) -> bool:
    """Inline base64: billed by what it shows, not by the length of its encoding."""
    if len(text) <= INLINE_BYTES_MIN:
        return False
    return name == "data" or (text.startswith("data:") and ";base64," in text[:INLINE_BYTES_MIN])
