"""Reading the few fields that count out of a JSON body, without decoding a large one a second time.

A 30 MB embeddings body holds 50 bytes of usage. Small bodies are parsed whole; of a large one the top-level
object is walked with `bytes.find`, and only wanted values are decoded.
"""

from __future__ import annotations

import json
from typing import Any, Final

from token_meter.providers.base import Body

WHOLE_BYTES_MAX: Final = 64 * 1024
"""Bodies up to this size are parsed whole: faster than walking them."""

VALUE_BYTES_MAX: Final = 8 * 1024 * 1024
"""A wanted value larger than this is not decoded: usage blocks are small."""

_SPACE: Final = b" \t\r\n"


class Quoted(dict[str, Any]):
    """A JSON object that still knows the text it was read from."""

    __slots__ = ("text",)
    text: str


def fields_of(body: bytes | str, wanted: tuple[str, ...], *, bulky: str = "") -> Body | None:
    """The top-level object of `body`: whole if it is small or nothing is named, else only the `wanted` fields.

    `bulky` names the field with the content; a body that has it in the middle is read around it. None if the body
    is no JSON object.
    """
    if wanted and len(body) > WHOLE_BYTES_MAX:
        raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        return _walk(raw, frozenset(name.encode() for name in wanted))
    if bulky:
        text = body if isinstance(body, str) else body.decode(errors="ignore")
        if (around := _around(text, wanted, bulky)) is not None:
            return around
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _around(text: str, wanted: tuple[str, ...], bulky: str) -> Body | None:
    """The fields before the bulky one and from `usage` on, or None unless they are surely top-level and complete.

    What stands before the key `bulky` parses as an object when one brace is added only if no other bracket is open
    there, and what follows the key `usage` likewise; inside a string neither key can stand unescaped. A wanted name
    that occurs in between sends the body to the full parser, and so do braces that do not match (it was cut off).
    """
    at = text.find(f'"{bulky}"')
    last = text.rfind('"usage"')
    start = last + 7
    while text[start : start + 1] in _GAP and start < len(text):
        start += 1
    if at < 0 or last < at or text[start : start + 1] != "{":
        return None
    try:
        head = text[:at].strip(" \t\r\n,") + "}"
        document, whole = _raw_decode(head)
        usage, end = _raw_decode(text, start)
        tail = "{" + text[end:].lstrip(" \t\r\n,").rstrip()
        rest, also_whole = _raw_decode(tail) if tail != "{}" else ({}, 2)
        if whole != len(head) or also_whole != len(tail) or not isinstance(usage, dict):
            return None
        document.update(rest)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    if text.count("{") != text.count("}"):
        return None
    for name in wanted:
        if name != "usage" and text.find(f'"{name}"', at, last) >= 0:
            return None
    quoted = Quoted(usage)
    quoted.text = text[start:end]
    document["usage"] = quoted
    return document  # type: ignore[no-any-return]


_GAP: Final = frozenset(": \t\r\n")
_raw_decode: Final = json.JSONDecoder().raw_decode


def _walk(body: bytes, wanted: frozenset[bytes]) -> Body | None:
    found: dict[str, Any] = {}
    at = _skip_space(body, 0)
    if body[at : at + 1] != b"{":
        return None
    at += 1
    structure = _Structure(body)
    while True:
        at = _skip_space(body, at)
        if body[at : at + 1] != b'"':
            return found
        end = _string_end(body, at)
        if end < 0:
            return found
        name = body[at + 1 : end - 1]
        colon = body.find(b":", end)
        start = _skip_space(body, colon + 1) if colon >= 0 else -1
        stop = structure.value_end(start) if start >= 0 else -1
        if stop < 0:
            return found
        if name in wanted and stop - start <= VALUE_BYTES_MAX:
            try:
                found[name.decode()] = json.loads(body[start:stop])
            except (ValueError, RecursionError):
                return found
        at = _skip_space(body, stop)
        if body[at : at + 1] != b",":
            return found
        at += 1


def _skip_space(body: bytes, at: int) -> int:
    while body[at : at + 1] and body[at] in _SPACE:
        at += 1
    return at


def _string_end(body: bytes, at: int) -> int:
    """The position after the closing quote of the string that opens at `at`; -1 if it never closes."""
    quote = at
    while True:
        quote = body.find(b'"', quote + 1)
        if quote < 0:
            return -1
        slashes = quote - 1
        while body[slashes] == 0x5C:
            slashes -= 1
        if (quote - slashes) % 2:  # an even number of backslashes before it
            return quote + 1


class _Structure:
    """Finds where values end, remembering the next place of each structural byte: every byte is sought once."""

    __slots__ = ("_body", "_next")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._next = {b'"': -1, b"[": -1, b"]": -1, b"{": -1, b"}": -1}

    def value_end(self, at: int) -> int:
        first = self._body[at : at + 1]
        if first == b'"':
            return _string_end(self._body, at)
        if first in (b"[", b"{"):
            return self._nested_end(at)
        ends = [end for mark in (b",", b"}") if (end := self._body.find(mark, at)) >= 0]
        return min(ends, default=-1)

    def _nested_end(self, at: int) -> int:
        depth = 0
        while True:
            at, mark = self._soonest(at)
            if at < 0:
                return -1
            if mark == b'"':
                at = _string_end(self._body, at)
                if at < 0:
                    return -1
                continue
            depth += 1 if mark in (b"[", b"{") else -1
            at += 1
            if depth == 0:
                return at

    def _soonest(self, at: int) -> tuple[int, bytes]:
        best, mark = -1, b""
        for sought, place in self._next.items():
            if 0 <= place < at or place == -1:
                place = self._body.find(sought, at)
                self._next[sought] = place if place >= 0 else -2  # -2: there is none any more
            if place >= 0 and (best < 0 or place < best):
                best, mark = place, sought
        return best, mark
