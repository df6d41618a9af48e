"""Reading the few fields that count out of a JSON body, without decoding a large one a second time.

A 30 MB embeddings body holds 50 bytes of usage. Small bodies are parsed whole; of a large one the top-level
object is walked with `bytes.find`, and only wanted values are decoded.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, Final

from token_meter.providers.base import ENUMS, Body, is_word, tells_counts

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
        raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        if (around := _around(raw, *_keys(wanted, bulky))) is not None:
            return around
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def excerpt(body: bytes, wanted: tuple[str, ...], content: str) -> str | None:
    """What stands before the field `content` and from `usage` on, as the text of one JSON object; else None.

    For an answer of the plain form only: nothing but ids, enum words and numbers stands there. Nothing is parsed: with
    its digits taken out, what follows the content looks the same in one answer as in the next, so it is enough to
    have read one of each look.
    """
    key, others = _keys(wanted, content)
    at, last = body.find(key), body.rfind(_USAGE_BLOCK)
    tail = body[last:].rstrip()
    if not 0 < at < last or len(tail) > EXCERPT_BYTES_MAX or _HEAD.fullmatch(body, 0, at) is None:
        return None
    look = tail.translate(None, b"0123456789")
    plain = _looks.get(look)
    if plain is None:
        plain = _remember(look, is_plain=_is_plain(tail))
    if not plain or body.count(b"{") != body.count(b"}"):  # unequal: cut off, or braces in its text
        return None
    head = body[:at]
    end = tail.rfind(b"}", 0, -1)  # of the usage block, which may have fields of the same names
    for name in others:
        if name not in head and tail.rfind(name, end) < 0 and body.rfind(name, at, last) >= 0:
            return None
    return (head + tail).decode()


EXCERPT_BYTES_MAX: Final = 2048
_LOOKS_MAX: Final = 1024
_USAGE_BLOCK: Final = b'"usage":{'
_HEAD: Final = re.compile(
    rb'\{(?:"(?:id|object|created|model|type|role|service_tier|system_fingerprint)":'
    rb'(?:"[\w.:/@-]{0,200}"|[0-9]{1,15}|null),){1,16}'
)
_AFTER: Final = frozenset({"service_tier", "system_fingerprint"})
_looks: Final[dict[bytes, bool]] = {}


def _remember(look: bytes, *, is_plain: bool) -> bool:
    if len(_looks) >= _LOOKS_MAX:
        _looks.clear()
    _looks[look] = is_plain
    return is_plain


def _is_plain(tail: bytes) -> bool:
    """Whether nothing but the usage block and a few words follows, and the block holds nothing but counts and words.

    It holds for all of the look, so there must be no escapes, which can be spelt in digits; and a name that stands
    there twice would hide its first value.
    """
    if any(byte in tail for byte in b"\\\n\r"):
        return False
    try:
        after = json.loads(b"{" + tail, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return False
    usage = after.pop("usage")
    return (
        tells_counts(usage)
        and all(_is_count_or_word(value, name, 0) for name, value in usage.items())
        and all(name in _AFTER and (value is None or _is_enum(value)) for name, value in after.items())
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> Body:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands there twice")
    return fields


def _is_count_or_word(value: Any, name: str, depth: int) -> bool:
    if value is None or type(value) is int:
        return is_word(name)
    if type(value) is str:
        return name in ENUMS and is_word(value)
    if type(value) is dict and depth == 0:
        return is_word(name) and all(_is_count_or_word(each, inner, 1) for inner, each in value.items())
    return False


def _is_enum(value: Any) -> bool:
    return type(value) is str and is_word(value)


def _around(body: bytes, content: bytes, others: tuple[bytes, ...]) -> Body | None:
    """The fields before the key `content` and from the key `usage` on, or None unless they are surely top-level.

    Only one brace is open before the content, and both pieces together parse as one object, so no bracket of the one
    is left to the other; then what stands in between is closed in itself if its braces match (else the body was cut
    off); inside a string neither key can stand unescaped. A wanted name that occurs in between only sends the body to
    the full parser.
    """
    at, last = body.find(content), body.rfind(_USAGE)
    if not 0 <= at < last:
        return None
    try:
        tail = body[last + len(_USAGE) :].decode()
        start = tail.index("{")
        block, end = _scan(tail, start)
        head = body[:at].decode().rstrip(_COMMA)
        rest = tail[end:].lstrip(_SPACES)
        if head[-1:] == "{" and rest[:1] == ",":
            rest = rest[1:]
        text = head + rest
        begin = text.index("{")
        document, stop = _scan(text, begin)
    except (ValueError, StopIteration, RecursionError):
        return None
    if tail[:start].strip(_SPACES) != ":" or text[:begin].strip(_SPACES) or text[stop:].strip(_SPACES):
        return None
    if body.count(b"{") != body.count(b"}") or head.count("{") != head.count("}") + 1:
        return None
    for name in others:
        if body.rfind(name, at, last) >= 0:  # from the back: measured at half the time of a forward search
            return None
    quoted = Quoted(block)
    quoted.text = tail[start:end]
    document["usage"] = quoted
    return document  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def _keys(wanted: tuple[str, ...], content: str) -> tuple[bytes, tuple[bytes, ...]]:
    """The names as they stand in JSON: that of the content, and those that are wanted beside the usage."""
    return f'"{content}"'.encode(), tuple(f'"{name}"'.encode() for name in wanted if name != "usage")


_USAGE: Final = b'"usage"'
_SPACES: Final = " \t\r\n"
_COMMA: Final = _SPACES + ","
_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


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
