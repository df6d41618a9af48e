"""Embeddings: as floats or base64, for texts or token lists, as large as asked for."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from token_meter.testing.provider.answer import tokens
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.openai.usage import EMBEDDINGS, embeddings_block
from token_meter.testing.provider.reply import Reply
from token_meter.usage import Usage

API: Final = "openai.embeddings"
DIMENSIONS: Final = 64
BYTES_PER_FLOAT: Final = 4


def embeddings(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /embeddings."""
    document = exchange.document
    inputs = _inputs(document.get("input"))
    usage = Usage(input=sum(tokens(each) if isinstance(each, str) else len(each) for each in inputs))
    line = exchange.bill(API, usage, block=embeddings_block, types=EMBEDDINGS)
    enough = exchange.faults.size // (BYTES_PER_FLOAT * max(len(inputs), 1))
    dimensions = max(int(document.get("dimensions") or DIMENSIONS), enough)
    vector: Any = vector_base64(dimensions) if document.get("encoding_format") == "base64" else vector_of(dimensions)
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(inputs))]
    return exchange.json({"object": "list", "data": data, "model": exchange.model, "usage": line.reported}, line)


@lru_cache(maxsize=8)
def vector_of(dimensions: int) -> list[float]:
    """A vector; always the same one."""
    return [((place * 37) % 101 - 50) / 512 for place in range(dimensions)]


@lru_cache(maxsize=8)
def vector_base64(dimensions: int) -> str:
    """The same as little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{dimensions}f", *vector_of(dimensions))).decode()


def _inputs(given: Any) -> list[Any]:
    """One text, texts, one list of tokens, or lists of tokens."""
    if isinstance(given, list) and not (given and isinstance(given[0], int)):
        return given
    return [given if given is not None else ""]
