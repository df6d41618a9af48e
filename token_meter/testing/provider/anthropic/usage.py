"""Anthropic's usage blocks, and which part of a prompt its `cache_control` marks put into the cache.

What stands in `tools` and `system` up to the last mark there is read from the cache, what follows up to the
last mark in `messages` is written to it, with the time to live of the mark: the state of a conversation that
goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from token_meter.testing.provider.answer import prompt_size
from token_meter.testing.provider.state import Block
from token_meter.usage import Usage

TYPES: Final = frozenset(
    {"input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning", "web_search"}
)


def counts(usage: Usage) -> dict[str, int]:
    """The four totals, which are disjoint."""
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output + usage.reasoning,
    }


def written(usage: Usage) -> dict[str, int]:
    """The writes by time to live."""
    return {
        "ephemeral_5m_input_tokens": usage.cache_write_5m,
        "ephemeral_1h_input_tokens": usage.cache_write_1h,
    }


def message_block(usage: Usage, document: Mapping[str, Any], *, batch: bool) -> Block:
    """The block of a whole message."""
    searched = {"server_tool_use": searches(usage)} if usage.web_search else {}
    return {**opening_block(usage, document, batch=batch), **counts(usage), **details(usage), **searched}


def opening_block(usage: Usage, document: Mapping[str, Any], *, batch: bool) -> Block:
    """The block of `message_start`: the input is known, of the output one token."""
    speed = {"speed": document["speed"]} if document.get("speed") else {}
    return {
        **counts(usage),
        "output_tokens": 1,
        "cache_creation": written(usage),
        "service_tier": "batch" if batch else "standard",
        "inference_geo": document.get("inference_geo") or "global",
        **speed,
    }


def delta_block(usage: Usage) -> Block:
    """The block of `message_delta`: all totals again, without the split of the writes."""
    searched = {"server_tool_use": searches(usage)} if usage.web_search else {}
    return {**counts(usage), **details(usage), **searched}


def details(usage: Usage) -> dict[str, Any]:
    """Thinking is contained in the output."""
    return {"output_tokens_details": {"thinking_tokens": usage.reasoning}}


def searches(usage: Usage) -> dict[str, int]:
    """Server tools that are billed per call."""
    return {"web_search_requests": usage.web_search, "web_fetch_requests": 0}


def iteration(usage: Usage, kind: str, model: str | None = None) -> Block:
    """One entry of `usage.iterations`."""
    named = {"model": model} if model else {}
    return {"type": kind, **named, **counts(usage), "cache_creation": written(usage)}


def prompt_usage(document: Mapping[str, Any]) -> Usage:
    """Input by the rule of `answer.py`, split by the marks."""
    tools, system, messages = (document.get(name) for name in ("tools", "system", "messages"))
    total = prompt_size(tools, system, messages)
    above = prompt_size(tools, system).text
    read = _marked(system, prompt_size(tools).text) or _marked(tools, 0)
    ends = list(_message_marks(messages, above))
    if automatic := document.get("cache_control"):
        ends.append((total.text, automatic.get("ttl")))
    last_1h = max((end for end, ttl in ends if ttl == "1h"), default=read)
    last = max((end for end, _ in ends), default=read)
    return Usage(
        input=total.tokens - last,
        cache_read=read,
        cache_write_1h=last_1h - read,
        cache_write_5m=last - last_1h,
    )


def _marked(blocks: Any, before: int) -> int:
    """How many tokens there are up to the last marked block; 0 if none is marked."""
    if not isinstance(blocks, list):
        return 0
    places = [place for place, block in enumerate(blocks) if isinstance(block, Mapping) and block.get("cache_control")]
    return before + prompt_size(blocks[: places[-1] + 1]).text if places else 0


def _message_marks(messages: Any, above: int) -> Iterator[tuple[int, Any]]:
    """For each marked block in the messages: the tokens up to the end of its message, and its time to live."""
    for place, message in enumerate(messages or ()):
        content = message.get("content")
        for block in content if isinstance(content, list) else ():
            if isinstance(block, Mapping) and (mark := block.get("cache_control")):
                yield above + prompt_size(messages[: place + 1]).text, mark.get("ttl")
