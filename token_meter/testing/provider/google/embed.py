"""Embeddings: embedContent and batchEmbedContents, and Vertex's `:predict`, which also makes Imagen's pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import prompt_size, tokens
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.google.fields import read
from token_meter.testing.provider.google.generate import is_vertex
from token_meter.testing.provider.google.usage import EMBEDDING, embed_block
from token_meter.testing.provider.models import GOOGLE
from token_meter.testing.provider.openai.embeddings import BYTES_PER_FLOAT, DIMENSIONS, vector_of
from token_meter.testing.provider.openai.items import PNG
from token_meter.testing.provider.reply import Reply
from token_meter.usage import Usage

API: Final = "gemini.embed"
IMAGES: Final = "gemini.images"


def embed(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """POST {model}:embedContent, {model}:batchEmbedContents."""
    batch = names["verb"] == "batchEmbedContents"
    requests = exchange.document.get("requests") or [] if batch else [exchange.document]
    usage = sum((prompt_size(each.get("content")).usage() for each in requests), Usage())
    line = exchange.bill(API, usage, block=embed_block, types=EMBEDDING)
    asked = read(requests[0], "outputDimensionality") if requests else None
    vector = {"values": vector_of(_dimensions(exchange, asked, len(requests)))}
    block = line.reported
    if is_vertex(exchange) and isinstance(block, Mapping):
        count = block.get("promptTokenCount")
        block = {
            "promptTokenCount": count,
            "promptTokensDetails": block.get("promptTokenDetails"),
            "totalTokenCount": count,
        }
    body = {"embeddings": [vector] * len(requests)} if batch else {"embedding": vector}
    return exchange.json({**body, "usageMetadata": block}, line)


def predict(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST {model}:predict: an embedding model says its tokens beside each vector, an image model says nothing."""
    document = exchange.document
    if "embed" not in exchange.model:
        count = int(read(document.get("parameters"), "sampleCount") or 1)
        line = exchange.bill(IMAGES, Usage(images=count), block=None, types=frozenset({"images"}))
        return exchange.json({"predictions": [{"bytesBase64Encoded": PNG, "mimeType": "image/png"}] * count}, line)
    return _embeddings(exchange, document)


def models(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """GET /models as Google answers it."""
    listed = [{"name": f"models/{model}", "displayName": model, "version": "001"} for model in GOOGLE]
    return exchange.json({"models": listed})


def _embeddings(exchange: Exchange, document: Mapping[str, Any]) -> Reply:
    texts = [str(instance.get("content", "")) for instance in document.get("instances") or ()]
    counts = [tokens(text) for text in texts]
    line = exchange.bill(API, Usage(input=sum(counts)), block=embed_block, types=frozenset({"input"}))
    if line.usage.input != sum(counts) and counts:
        counts = [line.usage.input - sum(counts[1:]), *counts[1:]]
    asked = read(document.get("parameters"), "outputDimensionality")
    values = vector_of(_dimensions(exchange, asked, len(texts)))
    predictions = [{"embeddings": {"values": values, **_statistics(exchange, line, count)}} for count in counts]
    characters = sum(len(text.replace(" ", "")) for text in texts)
    return exchange.json({"predictions": predictions, "metadata": {"billableCharacterCount": characters}}, line)


def _statistics(exchange: Exchange, line: Billed, count: int) -> dict[str, Any]:
    if line.reported is None:
        return {"statistics": None} if exchange.faults.nullusage else {}
    return {"statistics": {"truncated": False, "token_count": count}}


def _dimensions(exchange: Exchange, asked: Any, vectors: int) -> int:
    return max(int(asked or DIMENSIONS), exchange.faults.size // (BYTES_PER_FLOAT * max(vectors, 1)))
