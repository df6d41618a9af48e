"""Gemini's usage blocks: the prompt contains what was read from the cache; thoughts and tool results stand apart."""

from __future__ import annotations

from typing import Any, Final

from token_meter.testing.provider.state import Block
from token_meter.usage import Usage

_MODALITIES: Final = (
    ("TEXT", ""),
    ("AUDIO", "_audio"),
    ("IMAGE", "_image"),
    ("VIDEO", "_video"),
    ("DOCUMENT", "_document"),
)
TYPES: Final = frozenset(
    {"input", "input_audio", "input_image", "input_video", "input_document", "tool_input", "reasoning", "web_search"}
    | {"cache_read", "cache_read_audio", "cache_read_image", "cache_read_video"}
    | {"output", "output_audio", "output_image", "output_video"}
)
EMBEDDING: Final = frozenset({"input", "input_image", "input_audio", "input_video", "input_document"})
INTERACTION: Final = frozenset({"input", "cache_read", "tool_input", "output", "reasoning", "web_search"})


def generate_block(usage: Usage, *, vertex: bool, tier: str) -> Block:
    """The block of a whole answer. Vertex says how the traffic was served, the Gemini API in which tier."""
    read, given, made = _sizes(usage, "cache_read"), _prompt_sizes(usage), _sizes(usage, "output")
    prompt, candidates = sum(given.values()), sum(made.values())
    block: dict[str, Any] = {
        "promptTokenCount": prompt,
        "totalTokenCount": prompt + candidates + usage.reasoning + usage.tool_input,
        "promptTokensDetails": _details(given),
    }
    if made:
        block["candidatesTokenCount"] = candidates
    if read:
        block |= {"cachedContentTokenCount": sum(read.values()), "cacheTokensDetails": _details(read)}
    if made and (vertex or set(made) != {"TEXT"}):
        block["candidatesTokensDetails"] = _details(made)
    if usage.tool_input:
        block["toolUsePromptTokenCount"] = usage.tool_input
        block["toolUsePromptTokensDetails"] = _details({"TEXT": usage.tool_input})
    if usage.reasoning:
        block["thoughtsTokenCount"] = usage.reasoning
    return block | ({"trafficType": traffic(tier)} if vertex else {"serviceTier": tier})


def traffic(tier: str) -> str:
    """Vertex's word for a service tier."""
    return {"priority": "ON_DEMAND_PRIORITY", "flex": "ON_DEMAND_FLEX"}.get(tier, "ON_DEMAND")


def embed_block(usage: Usage) -> Block:
    """The block of an embedding, under the name the real API gives its details."""
    given = _prompt_sizes(usage)
    return {"promptTokenCount": sum(given.values()), "promptTokenDetails": _details(given)}


def interaction_block(usage: Usage) -> Block:
    """The same quantities under the names of the Interactions API."""
    given = usage.input + usage.cache_read
    block: dict[str, Any] = {
        "total_tokens": given + usage.output + usage.reasoning + usage.tool_input,
        "total_input_tokens": given,
        "input_tokens_by_modality": [{"modality": "text", "tokens": given}],
        "total_cached_tokens": usage.cache_read,
        "total_output_tokens": usage.output,
        "output_tokens_by_modality": [{"modality": "text", "tokens": usage.output}],
        "total_tool_use_tokens": usage.tool_input,
        "total_thought_tokens": usage.reasoning,
    }
    if usage.web_search:
        block["grounding_tool_count"] = [{"type": "google_search", "count": usage.web_search}]
    return block


def _sizes(usage: Usage, prefix: str) -> dict[str, int]:
    sizes = {modality: usage.get(prefix + suffix, 0) for modality, suffix in _MODALITIES}
    return {modality: size for modality, size in sizes.items() if size}


def _prompt_sizes(usage: Usage) -> dict[str, int]:
    fresh, read = _sizes(usage, "input"), _sizes(usage, "cache_read")
    sizes = {modality: fresh.get(modality, 0) + read.get(modality, 0) for modality, _ in _MODALITIES}
    return {modality: size for modality, size in sizes.items() if size}


def _details(sizes: dict[str, int]) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": size} for modality, size in sizes.items()]
