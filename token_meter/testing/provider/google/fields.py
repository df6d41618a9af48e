"""Field names: Google takes `thinkingLevel` and `thinking_level` alike, and its SDK sends both in one request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def read(source: Any, name: str) -> Any:
    """A field by its camel case name, in either spelling; None if it is not there."""
    if not isinstance(source, Mapping):
        return None
    return source.get(name, source.get(re.sub(r"([A-Z])", lambda letter: f"_{letter[1].lower()}", name)))
