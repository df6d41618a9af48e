"""How many tokens a model takes at most: its context window, as far as it is known. Shipped beside the price book."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("data") / "windows.json.gz"


@cache
def windows() -> Mapping[str, Mapping[str, int]]:
    """Context windows by the book's provider and model ids (compiled by `scripts/compile_prices.py`)."""
    found: Mapping[str, Mapping[str, int]] = json.loads(gzip.decompress(FILE.read_bytes()))
    return found


def window_of(provider: str, model: str) -> int | None:
    """The context window of a model of the book, in tokens; None: nobody said."""
    return windows().get(provider, {}).get(model)
