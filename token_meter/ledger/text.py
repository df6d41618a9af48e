"""Text that every database can hold: what it cannot is escaped, and comes back exactly.

PostgreSQL refuses NUL, no database can encode a lone surrogate, and both occur in what users pass as a
customer or a dimension. Each becomes U+E000 (a private character) and four hex digits; U+E000 itself too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_ESCAPE: Final = "\ue000"
_UNSAFE: Final = re.compile("[\x00\ud800-\udfff\ue000]")
_ESCAPED: Final = re.compile("\ue000([0-9a-f]{4})")

_encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def to_stored(text: str) -> str:
    """The form of this text that every database can hold."""
    if text.isascii() and "\x00" not in text:
        return text
    return _UNSAFE.sub(lambda found: f"{_ESCAPE}{ord(found[0]):04x}", text)


def from_stored(text: str) -> str:
    """The text that `to_stored` was given."""
    if _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no blanks, pure ASCII. Equal values give equal text."""
    return _encode(value)


def mapping_to_stored(mapping: Mapping[str, str]) -> dict[str, str]:
    """A mapping of text to text, each escaped: the database looks inside, so JSON's own escapes do not help."""
    return {to_stored(name): to_stored(value) for name, value in mapping.items()}


def mapping_from_stored(text: str | None) -> dict[str, str]:
    """Read back what `mapping_to_stored` gave and `to_json` wrote."""
    if text is None:
        return {}
    return {from_stored(name): from_stored(value) for name, value in json.loads(text).items()}
