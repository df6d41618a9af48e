"""OpenAI and every provider that speaks its dialect: which endpoints are metered and how usage is read.

Formulas: design D1. In this dialect the totals contain the details: cached, cache-written, audio and image tokens
are part of the prompt, reasoning and audio tokens part of the completion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from token_meter.providers.base import Body, Endpoint, Fold, Reading, fit, mapping, tells_counts, text, whole
from token_meter.providers.openai_asks import (
    ask_audio,
    ask_chat,
    ask_completion,
    ask_embedding,
    ask_image,
    ask_response,
)
from token_meter.providers.sse import events
from token_meter.usage import QUANTITY_MAX, Usage

# ---- chat completions, legacy completions, embeddings --------------------------------------------------------------


def read_completion(document: Body) -> list[Reading]:
    """Chat and legacy completions, plain or folded from a stream."""
    usage, anomalies = _usage_block(document)
    reading = _reading(document, usage, anomalies)
    if usage is not None:
        reading.usage = completion_usage(usage, anomalies, model=reading.model)
        reading.price_context["context_tokens"] = whole(usage.get("prompt_tokens"), [], "prompt_tokens")
    return [reading]


def completion_usage(usage: Body, anomalies: list[str], *, model: str | None = None) -> Usage:
    """`prompt_tokens` and `completion_tokens` contain their details; the details become types of their own."""
    inside = mapping(usage.get("prompt_tokens_details"))
    outside = mapping(usage.get("completion_tokens_details"))
    prompt = whole(usage.get("prompt_tokens"), anomalies, "prompt_tokens")
    completion = whole(usage.get("completion_tokens"), anomalies, "completion_tokens")
    prompt_parts = _parts(inside, _PROMPT_PARTS, anomalies)
    if "cache_read" not in prompt_parts and (cached := _cached_elsewhere(usage, anomalies)):
        prompt_parts = {"cache_read": cached, **prompt_parts}
    if model and "cache_write_30m" in prompt_parts and "claude" in model:  # a router to Anthropic: its default TTL
        prompt_parts["cache_write_5m"] = prompt_parts.pop("cache_write_30m")
    completion_parts = _parts(outside, _COMPLETION_PARTS, anomalies)
    completion = _with_additive_reasoning(usage, prompt, completion, completion_parts.get("reasoning", 0), anomalies)
    quantities = fit(prompt, prompt_parts, "input", anomalies)
    quantities.update(fit(completion, completion_parts, "output", anomalies))
    if searches := _searches(usage, anomalies):
        quantities["web_search"] = searches
    if heard := _milliseconds(usage.get("prompt_audio_seconds"), anomalies):
        quantities["audio_ms"] = heard
    return Usage.of(quantities)


_PROMPT_PARTS: Final = (
    ("cached_tokens", "cache_read"), ("cache_write_tokens", "cache_write_30m"), ("audio_tokens", "input_audio"),
    ("image_tokens", "input_image"), ("video_tokens", "input_video"),
)  # fmt: skip
_COMPLETION_PARTS: Final = (
    ("audio_tokens", "output_audio"), ("image_tokens", "output_image"), ("reasoning_tokens", "reasoning"),
)  # fmt: skip
_CACHED_ELSEWHERE: Final = ("prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens")


def _parts(details: Mapping[str, Any], names: tuple[tuple[str, str], ...], anomalies: list[str]) -> dict[str, int]:
    return {kind: whole(count, anomalies, name) for name, kind in names if (count := details.get(name))}


def _cached_elsewhere(usage: Body, anomalies: list[str]) -> int:
    """Some providers put the cached count beside the totals instead of into the details."""
    return next((whole(count, anomalies, name) for name in _CACHED_ELSEWHERE if (count := usage.get(name))), 0)


def _with_additive_reasoning(usage: Body, prompt: int, completion: int, reasoning: int, anomalies: list[str]) -> int:
    """Some providers count reasoning beside the completion, not inside it: their own total tells which."""
    total = usage.get("total_tokens")
    if type(total) is not int or total == prompt + completion:
        return completion
    if reasoning and total == prompt + completion + reasoning:
        return completion + reasoning
    anomalies.append("total_mismatch")
    return completion


def _searches(usage: Body, anomalies: list[str]) -> int:
    """Searches that a router reports inside usage."""
    for name in ("server_tool_use", "server_tool_use_details"):
        if count := mapping(usage.get(name)).get("web_search_requests"):
            return whole(count, anomalies, "web_search_requests")
    return 0


class CompletionFold(Fold):
    """A chat or legacy completion stream: ids from the first chunks, the last usage any chunk carried."""

    __slots__ = ("_early", "_last")
    # `include_usage` puts a null usage into every other chunk: only an object says something.
    marks: ClassVar = (b'"usage":{', b'"usage": {')

    def __init__(self) -> None:
        super().__init__()
        self._early = 8
        self._last = False

    @property
    def final(self) -> bool:
        """Not at a finish reason: there may be other choices, and counts that run on."""
        return self._last and self.document.get("usage") is not None

    def block(self, data: bytes, weight: int) -> None:
        if self._early or any(data.rfind(mark) >= 0 for mark in self.marks) or b"[DONE]" in data:
            for event in events(data):
                self._event(event)
        if weight:
            self.text_bytes += content_bytes(data) * weight

    def _event(self, event: bytes) -> None:
        if event == b"[DONE]":
            self.terminal = self._last = True
            return
        chunk = _json(event)
        if chunk is None:
            return
        if self._early:
            self._early -= 1
        for name in ("id", "model", "service_tier"):
            if chunk.get(name):
                self.document[name] = chunk[name]
        if self._early and self.document.get("model") and self.document.get("id"):
            self._early = 0
        if chunk.get("usage") is not None:
            self.document["usage"] = chunk["usage"]
        elif isinstance(routed := mapping(chunk.get("x_groq")).get("usage"), dict):
            self.document["usage"] = routed
        choices = chunk.get("choices")
        if isinstance(choices, list) and any(mapping(choice).get("finish_reason") for choice in choices):
            self.terminal = True
        if choices == [] and isinstance(chunk.get("usage"), dict):
            self.terminal = self._last = True


def is_usage_only(event: bytes) -> bool:
    """Whether an event is the extra chunk that `include_usage` adds: no choices, only usage."""
    chunk = _json(event)
    return chunk is not None and not chunk.get("choices") and chunk.get("usage") is not None


_TEXT: Final = re.compile(rb'"(?:content|reasoning_content|reasoning|arguments|refusal|text)":\s*"((?:[^"\\]|\\.)*)"')


def content_bytes(data: bytes) -> int:
    """The bytes of generated text in a block of completion chunks."""
    return sum(match.end(1) - match.start(1) for match in _TEXT.finditer(data))


def read_embedding(document: Body) -> list[Reading]:
    """Embeddings have input only; `total_tokens` repeats it."""
    return read_completion(document)


# ---- responses ----------------------------------------------------------------------------------------------------


def read_response(document: Body) -> list[Reading]:
    """A Response object: its tokens, its tool calls, and the image model's tokens, which stand outside `usage`."""
    usage, anomalies = _usage_block(document)
    reading = _reading(document, usage, anomalies)
    if document.get("background") and reading.response_id:
        reading.object_id = reading.response_id
        if usage is None and document.get("status") in _UNFINISHED:
            return [_deferred(reading)]
    if usage is not None:
        reading.usage = responses_usage(usage, anomalies) + tool_calls(document, usage, anomalies)
        reading.price_context["context_tokens"] = whole(usage.get("input_tokens"), [], "input_tokens")
    return [reading, *_image_model(document)]


_UNFINISHED: Final = frozenset({"queued", "in_progress"})
_STREAMED: Final = "#streamed"


def _deferred(reading: Reading) -> Reading:
    """A Response that runs in the background: a placeholder, so that one nobody ever reads is not lost in silence.

    The read that brings the counts has the same event id, and a real event takes the place of a placeholder.
    """
    reading.usage = Usage()
    reading.status = "unmetered"
    reading.anomalies.append("deferred")
    return reading


def read_again(document: Body) -> list[Reading]:
    """A Response fetched by id was counted when it was created, unless it ran in the background."""
    if not document.get("background"):
        return []
    if document.get("status") in _UNFINISHED:  # polls say nothing yet; a stream that ended here was cut short
        return read_response(document) if document.get(_STREAMED) else []
    return [reading for reading in read_response(document) if reading.usage is not None]


def responses_usage(usage: Body, anomalies: list[str]) -> Usage:
    """`input_tokens` contains cached and cache-written tokens, `output_tokens` contains reasoning."""
    inside = mapping(usage.get("input_tokens_details"))
    outside = mapping(usage.get("output_tokens_details"))
    total_in = whole(usage.get("input_tokens"), anomalies, "input_tokens")
    total_out = whole(usage.get("output_tokens"), anomalies, "output_tokens")
    cached = whole(inside.get("cached_tokens"), anomalies, "cached_tokens")
    written = whole(inside.get("cache_write_tokens"), anomalies, "cache_write_tokens")
    by_ttl = mapping(inside.get("cache_write_tokens_details"))
    written_12h = whole(by_ttl.get("ttl_12h_tokens"), anomalies, "ttl_12h_tokens")
    reasoning = whole(outside.get("reasoning_tokens"), anomalies, "reasoning_tokens")
    total = usage.get("total_tokens")
    if type(total) is int and total != total_in + total_out:
        anomalies.append("total_mismatch")
    writes = fit(written, {"cache_write_12h": written_12h}, "cache_write_30m", anomalies)
    return _usage({
        **fit(total_in, {"cache_read": cached, **writes}, "input", anomalies),
        **fit(total_out, {"reasoning": reasoning}, "output", anomalies),
    })  # fmt: skip


def tool_calls(document: Body, usage: Body, anomalies: list[str]) -> Usage:
    """Hosted tools are billed by call: searches as reported, the others counted among the output items."""
    items = document.get("output")
    called = [mapping(item) for item in items] if isinstance(items, list) else []
    kinds = [item.get("type") for item in called]
    searched = [item for item in called if mapping(item.get("action")).get("type", "search") == "search"]
    sandboxes = {str(item.get("container_id")) for item in called if item.get("type") == "code_interpreter_call"}
    reported = mapping(mapping(document.get("tool_usage")).get("web_search")).get("num_requests")
    details = mapping(usage.get("server_side_tool_usage_details"))
    searches = sum(item.get("type") == "web_search_call" for item in searched)  # opening a page is no search
    if reported is not None:
        searches = whole(reported, anomalies, "num_requests")
    if details:
        searches = whole(details.get("web_search_calls"), anomalies, "web_search_calls")
        searches += whole(details.get("x_search_calls"), anomalies, "x_search_calls")
    return _usage({
        "web_search": searches,
        "file_search": kinds.count("file_search_call"),
        "code_interpreter": len(sandboxes),
        "image_generation": kinds.count("image_generation_call"),
    })  # fmt: skip


def _image_model(document: Body) -> list[Reading]:
    """Tokens of the image tool: billed at the image model, and not part of the Response's own usage."""
    block = mapping(mapping(document.get("tool_usage")).get("image_gen"))
    if not block.get("total_tokens") and not block.get("output_tokens"):
        return []
    tools = document.get("tools")
    named = [mapping(tool).get("model") for tool in tools if mapping(tool).get("type") == "image_generation"] if (
        isinstance(tools, list)
    ) else []  # fmt: skip
    reading = Reading(None, model=next((model for model in named if text(model)), None), raw_usage=block)
    reading.usage = image_usage(dict(block), reading.anomalies)
    reading.response_id = text(document.get("id"))
    if document.get("background") and reading.response_id:
        reading.object_id = f"{reading.response_id}/image_gen"
    return [reading]


class ResponseFold(Fold):
    """A Responses stream: the Response object inside the last lifecycle event."""

    __slots__ = ()
    marks: ClassVar = (b'"response":', b'"response" :')

    def block(self, data: bytes, weight: int) -> None:
        if data.rfind(b'"response":') >= 0:
            for event in events(data):
                self._event(event)
        if weight:
            self.text_bytes += _delta_bytes(data) * weight

    def _event(self, event: bytes) -> None:
        document = _json(event)
        response = (document or {}).get("response")
        if not isinstance(response, dict):
            return
        self.terminal = self.terminal or (document or {}).get("type") in _RESPONSE_ENDS
        wanted = (
            _RESPONSE_FIELDS if self.terminal else _LIFECYCLE_FIELDS
        )  # not the instructions, for as long as it runs
        self.document = {**{name: response[name] for name in wanted if name in response}, _STREAMED: True}


_RESPONSE_ENDS: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)
_DELTA: Final = re.compile(rb'"delta":\s*"((?:[^"\\]|\\.)*)"')


def _delta_bytes(data: bytes) -> int:
    return sum(match.end(1) - match.start(1) for match in _DELTA.finditer(data))


# ---- images and audio ---------------------------------------------------------------------------------------------


def read_image(document: Body) -> list[Reading]:
    """Images of token-priced models; a model without usage is counted later by pictures, so flagged here."""
    usage, anomalies = _usage_block(document)
    reading = _reading(document, usage, anomalies)
    if usage is not None:
        reading.usage = image_usage(usage, anomalies)
    return [reading]


def image_usage(usage: Body, anomalies: list[str]) -> Usage:
    """Input splits into text and image; output is image unless the details say text."""
    inside = mapping(usage.get("input_tokens_details"))
    outside = mapping(usage.get("output_tokens_details"))
    total_in = whole(usage.get("input_tokens"), anomalies, "input_tokens")
    total_out = whole(usage.get("output_tokens"), anomalies, "output_tokens")
    image_in = whole(inside.get("image_tokens"), anomalies, "image_tokens")
    cached = whole(inside.get("cached_tokens"), anomalies, "cached_tokens")
    text_out = whole(outside.get("text_tokens"), anomalies, "text_tokens")
    reasoning = whole(outside.get("reasoning_tokens"), anomalies, "reasoning_tokens")
    return _usage({
        **fit(total_in, {"cache_read": cached, "input_image": image_in}, "input", anomalies),
        **fit(total_out, {"output": text_out, "reasoning": reasoning}, "output_image", anomalies),
    })  # fmt: skip


def read_audio(document: Body) -> list[Reading]:
    """Transcription: tokens (text and audio are parts of the input) or seconds of audio."""
    usage, anomalies = _usage_block(document)
    reading = _reading(document, usage, anomalies)
    if usage is not None:
        reading.usage = audio_usage(usage, anomalies)
    return [reading]


def audio_usage(usage: Body, anomalies: list[str]) -> Usage:
    """`type: duration` counts seconds; `type: tokens` counts tokens; some providers send both."""
    if "prompt_tokens" in usage:
        return completion_usage(usage, anomalies)
    inside = mapping(usage.get("input_token_details") or usage.get("input_tokens_details"))
    total_in = whole(usage.get("input_tokens"), anomalies, "input_tokens")
    audio = whole(inside.get("audio_tokens"), anomalies, "audio_tokens")
    return _usage({
        **fit(total_in, {"input_audio": audio}, "input", anomalies),
        "output": whole(usage.get("output_tokens"), anomalies, "output_tokens"),
        "audio_ms": _milliseconds(usage.get("seconds"), anomalies),
    })  # fmt: skip


class LastUsageFold(Fold):
    """A stream whose last event carries the usage beside its other fields (images, transcription, speech)."""

    __slots__ = ()
    marks: ClassVar = (b'"usage"', b'"type"')

    def block(self, data: bytes, weight: int) -> None:
        if b'"usage"' in data or b".completed" in data or b".done" in data:
            for event in events(data):
                self._event(event)
        if weight:
            self.text_bytes += _delta_bytes(data) * weight

    def _event(self, event: bytes) -> None:
        document = _json(event)
        if document is None:
            return
        if isinstance(document.get("usage"), dict):
            self.document = {name: document[name] for name in ("usage", "model", "id") if name in document}
        if str(document.get("type", "")).endswith((".completed", ".done")) and not str(document["type"]).endswith(
            "delta.done"
        ):
            self.terminal = True


# ---- shared by the readers ----------------------------------------------------------------------------------------


def _usage_block(document: Body) -> tuple[Body | None, list[str]]:
    """The usage block, or None: absent, null, or (an anomaly) something that tells no counts."""
    usage = document.get("usage")
    if tells_counts(usage):
        return usage, []
    routed = mapping(document.get("x_groq")).get("usage")
    if tells_counts(routed):
        return routed, []
    return None, ([] if usage is None else ["unreadable_usage"])


def _reading(document: Body, usage: Body | None, anomalies: list[str]) -> Reading:
    reading = Reading(
        None, model=text(document.get("model")), response_id=text(document.get("id")), anomalies=anomalies
    )
    tier = text(document.get("service_tier")) or text((usage or {}).get("service_tier"))
    if tier:
        reading.price_context["service_tier"] = tier
    if usage is not None:
        reading.raw_usage = usage
    return reading


def _usage(quantities: dict[str, int]) -> Usage:
    return Usage.of({name: quantity for name, quantity in quantities.items() if quantity})


def _milliseconds(seconds: Any, anomalies: list[str]) -> int:
    """Seconds of audio, whole or fractional, as milliseconds (rounded to the nearest)."""
    if type(seconds) is float and 0 <= seconds < 1e9:
        return round(seconds * 1000)
    return min(whole(seconds, anomalies, "seconds") * 1000, QUANTITY_MAX)


def _json(event: bytes) -> Body | None:
    try:
        document = json.loads(event)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


# ---- the table ----------------------------------------------------------------------------------------------------

_COMPLETION_FIELDS: Final = ("id", "model", "service_tier", "usage", "x_groq")
_LIFECYCLE_FIELDS: Final = ("id", "model", "service_tier", "usage", "background", "status")
_RESPONSE_FIELDS: Final = (*_LIFECYCLE_FIELDS, "output", "tools", "tool_usage")
_SHORT_FIELDS: Final = ("id", "model", "usage")

CHAT: Final = Endpoint(
    "chat", read_completion, CompletionFold, _COMPLETION_FIELDS, "choices", injects_usage=True, dialect="openai",
    ask=ask_chat,
)  # fmt: skip
COMPLETIONS: Final = Endpoint(
    "completions", read_completion, CompletionFold, _COMPLETION_FIELDS, "choices", injects_usage=True, dialect="openai",
    ask=ask_completion,
)  # fmt: skip
RESPONSES: Final = Endpoint("responses", read_response, ResponseFold, _RESPONSE_FIELDS, ask=ask_response)
RESPONSES_AGAIN: Final = Endpoint("responses", read_again, ResponseFold, _RESPONSE_FIELDS, estimates=False)
COMPACT: Final = Endpoint("responses", read_response, ResponseFold, _RESPONSE_FIELDS, ask=ask_response)
EMBEDDINGS: Final = Endpoint(
    "embeddings", read_embedding, CompletionFold, _COMPLETION_FIELDS, "data", ask=ask_embedding
)
IMAGES: Final = Endpoint("images", read_image, LastUsageFold, _SHORT_FIELDS, estimates=False, ask=ask_image)
AUDIO: Final = Endpoint("audio", read_audio, LastUsageFold, _SHORT_FIELDS, estimates=False, ask=ask_audio)

POSTS: Final = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
    "responses/compact": COMPACT,
    "decisions": RESPONSES,
    "embeddings": EMBEDDINGS,
    "images/generations": IMAGES,
    "images/edits": IMAGES,
    "images/variations": IMAGES,
    "audio/transcriptions": AUDIO,
    "audio/translations": AUDIO,
    "audio/speech": AUDIO,
}


def endpoint(method: str, path: str) -> Endpoint | None:
    """The endpoint a request goes to, by the tail of its path (base URLs differ), or None if it bills nothing."""
    plain = path.partition("?")[0].rstrip("/")
    head, _, last = plain.rpartition("/")
    before = head.rpartition("/")[2]
    if method == "post":
        return POSTS.get(f"{before}/{last}") or POSTS.get(last)
    if method == "get" and before == "responses":
        return RESPONSES_AGAIN
    return None


def provider_by_path(path: str) -> str | None:
    """Azure deployments answer under a path of their own, behind whatever host."""
    return "azure" if "/openai/deployments/" in path else None


def may_ask_for_usage(client: Any, asked: Mapping[str, Any]) -> bool:
    """Azure took `stream_options` with API version 2024-09-01-preview, and never with its own data sources."""
    version = getattr(client, "_api_version", None)
    too_old = isinstance(version, str) and version[:4].isdigit() and version[:10] < "2024-09-01"
    return not too_old and "data_sources" not in asked
