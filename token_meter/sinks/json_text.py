"""The JSON of records, put together from pieces that were encoded before: a request has hundreds, of few kinds.

What comes out is what `json.dumps` writes, byte for byte, at a third of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from json import dumps
from json.encoder import encode_basestring_ascii
from typing import Final

from token_meter.sinks.mapping import Texts

quote: Final = encode_basestring_ascii
"""A text as JSON, in ASCII."""

quoted: Final = lru_cache(maxsize=8_192)(quote)
"""The same for texts that come again: of customers, meters."""


def members(properties: Mapping[str, str]) -> str:
    """The members of a JSON object, without its braces."""
    return properties.json if type(properties) is Texts else dumps({**properties}, separators=(",", ":"))[1:-1]
