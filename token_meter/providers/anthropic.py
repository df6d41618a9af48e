"""Anthropic: which endpoints are metered and how their usage block is read.

Input, cache reads and cache writes are disjoint; thinking is part of output; `iterations` list what the top level
leaves out (compaction, advisor, declined hops). Formulas: design D1.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Final

from token_meter.providers.asking import ADDED, Ask, limit_of, measured, tools_of
from token_meter.providers.base import Body, Endpoint, Fold, Reading, fit, mapping, tells_counts, text, whole
from token_meter.providers.sse import events
from token_meter.usage import Usage


def read_message(document: Body) -> list[Reading]:
    """A Message, plain or folded from its stream: one reading, plus one per extra billed iteration."""
    usage = document.get("usage")
    reading = Reading(None, model=text(document.get("model")), response_id=text(document.get("id")))
    if not tells_counts(usage):
        if usage is not None:
            reading.anomalies.append("unreadable_usage")
        return [reading]
    reading.usage = message_usage(usage, reading.anomalies)
    if document.get("_cut_short"):
        reading.status = "partial"
        reading.anomalies.append("unreadable_usage")
    reading.price_context = price_context(usage, reading.usage)
    reading.raw_usage = usage
    return [reading, *_iterations(usage, reading)]


def message_usage(usage: Body, anomalies: list[str]) -> Usage:
    """The four counts are disjoint; the 1-hour writes are part of the writes, thinking of the output."""
    written = whole(usage.get("cache_creation_input_tokens"), anomalies, "cache_creation_input_tokens")
    by_ttl = mapping(usage.get("cache_creation"))
    written_1h = whole(by_ttl.get("ephemeral_1h_input_tokens"), anomalies, "ephemeral_1h_input_tokens")
    output = whole(usage.get("output_tokens"), anomalies, "output_tokens")
    thinking = whole(mapping(usage.get("output_tokens_details")).get("thinking_tokens"), anomalies, "thinking_tokens")
    searches = mapping(usage.get("server_tool_use")).get("web_search_requests")
    quantities = {
        "input": whole(usage.get("input_tokens"), anomalies, "input_tokens"),
        "cache_read": whole(usage.get("cache_read_input_tokens"), anomalies, "cache_read_input_tokens"),
        **fit(written, {"cache_write_1h": written_1h}, "cache_write_5m", anomalies),
        **fit(output, {"reasoning": thinking}, "output", anomalies),
        "web_search": whole(searches, anomalies, "web_search_requests"),
    }
    return Usage.of({name: quantity for name, quantity in quantities.items() if quantity})


def price_context(usage: Body, read: Usage) -> dict[str, Any]:
    """What the price depends on beside the model: tier, batch, speed, geography, size of the context."""
    tier = text(usage.get("service_tier"))
    geo = text(usage.get("inference_geo"))
    context: dict[str, Any] = {
        "service_tier": tier,
        "batch": True if tier == "batch" else None,
        "speed": text(usage.get("speed")),
        "geo": None if geo == "not_available" else geo,
        "context_tokens": read.input + read.cache_read + read.cache_write_5m + read.cache_write_1h,
    }
    return {name: value for name, value in context.items() if value is not None}


def _iterations(usage: Body, top: Reading) -> list[Reading]:
    """Iterations that bill beside the top level: compaction, an advisor, a hop that another model declined."""
    listed = usage.get("iterations")
    extra = []
    for each in listed if isinstance(listed, list) else ():
        iteration = mapping(each)
        model = text(iteration.get("model"))
        declined = iteration.get("type") == "message" and model not in (None, top.model)
        if iteration.get("type") in ("compaction", "advisor_message") or declined:
            reading = Reading(None, model=model or top.model, response_id=top.response_id)
            reading.usage = message_usage(dict(iteration), reading.anomalies)
            reading.price_context = {**top.price_context, **price_context(dict(iteration), reading.usage)}
            reading.raw_usage = iteration
            extra.append(reading)
    return extra


class MessageFold(Fold):
    """`message_start` carries ids and input counts, `message_delta` cumulative totals: replaced, never added."""

    __slots__ = ()
    marks: ClassVar = (b"message_", b"message_")

    def block(self, data: bytes, weight: int) -> None:
        if data.rfind(b"message_") >= 0:  # faster than a forward search on small chunks
            for event in events(data):
                self.event(event)
        elif weight and not self.document.get("usage"):  # told at the start, or else estimated
            self.text_bytes += weight * sum(match.end(1) - match.start(1) for match in _TEXT.finditer(data))

    def event(self, event: bytes) -> None:
        try:
            document = json.loads(event)
        except (ValueError, RecursionError):
            return
        if not isinstance(document, dict):
            return
        kind = document.get("type")
        if kind == "message_start":
            self.document = dict(mapping(document.get("message")))
        elif kind == "message_delta":
            self._merge(document)
        elif kind == "message_stop":
            self.terminal = True
            self._without_usage(document)

    def _merge(self, delta: Body) -> None:
        new = delta.get("usage")
        if isinstance(new, dict):
            old = mapping(self.document.get("usage"))
            self.document["usage"] = {**old, **{name: value for name, value in new.items() if value is not None}}
        elif new is not None:  # the counts told before stand, but they are not the last word
            self.document["_cut_short"] = True

    def _without_usage(self, stop: Body) -> None:
        """Bedrock repeats the counts in its own metrics; they are used only where the events carry none."""
        metrics = stop.get("amazon-bedrock-invocationMetrics")
        if isinstance(metrics, dict) and not self.document.get("usage"):
            self.document["usage"] = {
                "input_tokens": metrics.get("inputTokenCount"),
                "output_tokens": metrics.get("outputTokenCount"),
                "cache_read_input_tokens": metrics.get("cacheReadInputTokenCount"),
                "cache_creation_input_tokens": metrics.get("cacheWriteInputTokenCount"),
            }


_TEXT: Final = re.compile(rb'"(?:text|thinking|partial_json)":\s*"((?:[^"\\]|\\.)*)"')

_TOLD: Final = frozenset({
    "cache_control", "container", "context_management", "fallbacks", "file_id", "mcp_servers",
})  # fmt: skip
_AGAIN: Final = ("mcp_servers", "context_management", "fallbacks")
"""These have the model read again (compaction), or another model read too, as often as they like."""

_SEARCH: Final = "web_search"
_CLIENT_TOOLS: Final = ("custom", "bash", "text_editor", "computer", "memory")
"""The caller's own machine runs these. All others with a type are the provider's."""

_ADDED_FOR_TOOLS: Final = 1_024
"""Anthropic's documentation names up to 530 tokens of system text once there are tools, or a format of the output."""

_ADDED_PER_TYPED_TOOL: Final = 2_048
"""And up to 735 for the definition of a tool that is named by its type."""


def ask_message(body: Body) -> Ask:
    """`max_tokens` covers thinking as well; the provider's own tools may be called `max_uses` times."""
    size, told = measured(body, _TOLD)
    unknown, calls = [name for name in told if name != "cache_control"], []
    uses: list[int | None] = [None] if any(name in told for name in _AGAIN) else []
    formatted = "output_config" in body or "output_format" in body
    added = ADDED + (_ADDED_FOR_TOOLS if formatted or body.get("tools") else 0)
    for tool in tools_of(body):
        kind = str(tool.get("type") or "custom")
        added += _ADDED_PER_TYPED_TOOL if kind != "custom" else 0
        if not kind.startswith(_CLIENT_TOOLS):
            unknown.append(f"tool {kind}")
            # An advisor is a model of its own, at a price of its own.
            uses.append(None if kind.startswith("advisor") else limit_of(tool, "max_uses"))
        if kind.startswith(_SEARCH):
            calls.append(("web_search", limit_of(tool, "max_uses")))
    if _has_linked_file(body):
        unknown.append("a file by its address")
    tier = body.get("service_tier")
    context = {
        "service_tier": "standard" if tier == "standard_only" else None,
        "speed": text(body.get("speed")),
        "geo": text(body.get("inference_geo")),
    }
    return Ask(
        size,
        limit_of(body, "max_tokens"),
        thinks=mapping(body.get("thinking")).get("type") not in (None, "disabled"),
        opaque=tuple(unknown),
        calls=tuple(calls),
        passes=None if None in uses else 1 + sum(each or 0 for each in uses),
        types=("cache_write_5m", "cache_write_1h") if "cache_control" in told else (),
        context={name: value for name, value in context.items() if value is not None},
        added=added,
    )


def _has_linked_file(body: Body) -> bool:
    """Whether a message names a picture or document that the provider will fetch."""
    messages = body.get("messages")
    contents = [mapping(each).get("content") for each in messages] if isinstance(messages, list) else []
    blocks = [mapping(block) for content in contents if isinstance(content, list) for block in content]
    return any(mapping(block.get("source")).get("type") == "url" for block in blocks)


MESSAGES: Final = Endpoint(
    "messages", read_message, MessageFold, ("id", "model", "usage"), "content", dialect="anthropic", ask=ask_message
)

POSTS: Final = {"messages": MESSAGES}


def endpoint(method: str, path: str) -> Endpoint | None:
    """The endpoint a request goes to, by the tail of its path, or None if it bills nothing (token counting)."""
    return POSTS.get(path.partition("?")[0].rstrip("/").rpartition("/")[2]) if method == "post" else None


def provider_by_path(path: str) -> str | None:
    """Nothing in a path says who serves it."""
    return None
