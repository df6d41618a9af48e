"""What is billed when no counts came: an estimate from what was sent and what arrived, always flagged.

The heuristic `bytes/4`: one token per four bytes of text, a fixed amount per inline file, nothing for the base64
itself (a picture is billed by size, not by the length of its encoding). It never replaces a provider's number. Where a
tokeniser is at hand, the input is counted again with it, in another thread: see `tokeniser`.
"""

from __future__ import annotations

import json
import re
from typing import Final

from token_meter.usage import Usage

ESTIMATOR: Final = "bytes/4"
BYTES_PER_TOKEN: Final = 4
TOKENS_PER_FILE: Final = 85
"""An inline picture at low detail (OpenAI's documented minimum); a file's true cost cannot be known before."""
INLINE_BYTES_MIN: Final = 512
"""Shorter base64 is left as it is: it may be anything."""

_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|thinking|arguments|text|refusal)":\s*"((?:[^"\\]|\\.)*)"', re.DOTALL
)
_INLINE: Final = (b";base64,", b'"data":"', b'"data": "')


def estimate(*, input_bytes: int, output_bytes: int) -> Usage:
    """Input and output tokens for so many bytes of text."""
    quantities = {"input": _tokens(input_bytes), "output": _tokens(output_bytes)}
    return Usage.of({name: quantity for name, quantity in quantities.items() if quantity})


def text_bytes(body: bytes) -> int:
    """The visible text of a JSON answer, in bytes."""
    return sum(match.end(1) - match.start(1) for match in _TEXT.finditer(body))


def sent_bytes(sent: object) -> int:
    """The text bytes of a request as its SDK built it: an HTTP request, or the JSON object that is sent."""
    body = sent_body(sent)
    if body is not None:
        return request_bytes(body)
    if isinstance(sent, dict):
        return request_bytes(json.dumps(sent, default=str).encode())
    return 0


def sent_body(sent: object) -> bytes | None:
    """The body of an HTTP request; None for anything else, and for one that was sent piece by piece."""
    body = getattr(sent, "_content", None)
    return body if isinstance(body, bytes) else None


def request_bytes(body: bytes) -> int:
    """The bytes of a request that count as text: inline base64 is taken out, a fixed amount is put in for each."""
    counted = len(body)
    for mark in _INLINE:
        at = body.find(mark)
        while at >= 0:
            start = at + len(mark)
            end = body.find(b'"', start)
            if end < 0:
                break
            if end - start > INLINE_BYTES_MIN:
                counted -= end - start - TOKENS_PER_FILE * BYTES_PER_TOKEN
            at = body.find(mark, end)
    return max(0, counted)


def _tokens(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)
