"""Which names mean a model of the book: exactly its id, an alias, or either with a date behind it. Nothing nearer.

`gpt-5.5-mini` is not `gpt-5.5`: a name that merely begins like a known one is somebody else's price. Such a near miss
is suggested to a human and never applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

PROVIDERS: Final = {
    "bedrock": "aws", "vertex": "google", "vertex_ai": "google", "gemini": "google", "google-vertex": "google",
    "xai": "x-ai", "moonshot": "moonshotai", "zhipu": "zhipuai", "voyage": "voyageai", "togetherai": "together",
    "together_ai": "together", "fireworks_ai": "fireworks", "azure_openai": "azure", "azure-openai": "azure",
    "mistralai": "mistral", "vertexai": "google",
}  # fmt: skip
"""What events and other tools call a provider, and what the book calls it."""

_DATED: Final = re.compile(r"(?:[-@]\d{8}|[-@]\d{4}-\d{2}-\d{2}|-latest|@latest|@default)$")
_REVISION: Final = re.compile(r":\d+(?::\d+k)?$")
_FIRST: Final = re.compile(r"-v1$")
"""The first version is what the name without one means. A second one is another model, with its own price."""
_STABLE: Final = re.compile(r"^(gemini-.*)-00\d$")
"""How Google names the versions of one model (cloud.google.com/vertex-ai, "model versions and lifecycle")."""
_REGION: Final = re.compile(r"^(?:us|eu|apac|au|jp|ca|sa|in|us-gov)\.(?=[a-z0-9-]+\.)")
_PATHS: Final = re.compile(r"^(?:arn:[^/]*/|projects/.*/models/|publishers/[^/]+/models/|models/)")
_FINE_TUNED: Final = re.compile(r"^(ft:[^:]+):")


def provider_named(name: str | None) -> str:
    """The book's name of a provider."""
    plain = (name or "").strip().lower()
    return PROVIDERS.get(plain, plain)


@lru_cache(maxsize=8192)
def spellings(model: str) -> tuple[str, ...]:
    """Under which names to look for a model, best first; lower case.

    The name itself; without the path that clouds put before it; a fine-tuned model's base (`ft:gpt-4o`); without the
    date or the revision behind it; without the region before it, except "global", which has prices of its own.
    """
    return tuple(dict.fromkeys(_spellings(model.strip().lower())))


def _spellings(name: str) -> Iterator[str]:
    yield name
    tail = _PATHS.sub("", name)
    tuned = _FINE_TUNED.match(tail)
    if tuned:
        # A fine-tuned model never has its base's own price: only `ft:` rows are looked at.
        yield from _undated(tuned.group(1))
        return
    for place in (tail, _REGION.sub("", tail)):
        yield from _undated(place)


def _undated(name: str) -> Iterator[str]:
    yield name
    yield (plain := _DATED.sub("", name))
    yield (plain := _REVISION.sub("", plain))
    yield (plain := _DATED.sub("", plain))
    yield (plain := _FIRST.sub("", plain))
    yield (plain := _DATED.sub("", plain))
    yield _STABLE.sub(r"\1", plain)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one; for a human, never to be applied."""
    found = get_close_matches(spellings(name)[-1], list(known), n=1, cutoff=0.6)
    return found[0] if found else None
