"""Chat completions: plain and streamed, with tool calls, structured output, audio, several choices; Azure's
extras.

A stream carries `usage: null` in every chunk, and the counts in a last chunk without choices, only if the
client asked for it with `stream_options.include_usage`; a client that did not ask is told nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import Answer, prompt_size
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.openai.tools import arguments, declared_function
from token_meter.testing.provider.openai.usage import CHAT, chat_block, prompt_usage, reasoning_tokens
from token_meter.testing.provider.reply import Event, Reply
from token_meter.usage import Usage

API: Final = "openai.chat"
DONE: Final = Event("[DONE]")
SERVER_ERROR: Final = {
    "error": {
        "message": "The server had an error while processing your request. Sorry about that!",
        "type": "server_error",
        "param": None,
        "code": None,
    }
}
AUDIO_TOKENS: Final = 64
_SAFE: Final = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


@dataclass(frozen=True, slots=True)
class Completion:
    """One chat completion: the fields that body and chunks share, and what is answered."""

    exchange: Exchange
    id: str
    line: Billed
    answer: Answer
    function: Mapping[str, Any] | None
    with_audio: bool

    @property
    def choices(self) -> int:
        return int(self.exchange.document.get("n") or 1)

    @property
    def azure(self) -> bool:
        return is_azure(self.exchange)

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.function else "length" if self.answer.limited else "stop"

    def base(self, kind: str) -> dict[str, Any]:
        """What every body and chunk starts with."""
        asked = self.exchange.document.get("service_tier")
        return {
            "id": self.id,
            "object": kind,
            "created": self.exchange.now,
            "model": self.exchange.model,
            "service_tier": asked if asked not in (None, "auto") else "default",
            "system_fingerprint": "fp_560af6e559",
        }


def chat(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /chat/completions."""
    document = exchange.document
    answered = any(message.get("role") == "tool" for message in document.get("messages") or ())
    function = None if answered else declared_function(document)
    with_audio = "audio" in (document.get("modalities") or ()) and not function
    answer = arguments(function) if function else _text(exchange)
    line, id = _bill(exchange, answer, with_audio=with_audio)
    completion = Completion(exchange, id, line, answer, function, with_audio)
    if exchange.request.streamed:
        return exchange.stream(_chunks(completion), line, errors=[Event(SERVER_ERROR)])
    body = _body(completion)
    if document.get("store"):
        exchange.state.store(id, body)
    return exchange.json(body, line)


def stored_chat(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET, POST (metadata) and DELETE /chat/completions/{id}: a read shows the usage again and costs nothing."""
    body = exchange.state.stored(names["id"])
    if body is None:
        return not_found(exchange, f"Chat completion {names['id']!r} not found")
    if exchange.request.method == "DELETE":
        exchange.state.forget(names["id"])
        return exchange.json({"id": names["id"], "object": "chat.completion.deleted", "deleted": True})
    return exchange.json(body)


def not_found(exchange: Exchange, message: str) -> Reply:
    """OpenAI's 404."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return exchange.json({"error": error}, status=404)


def is_azure(exchange: Exchange) -> bool:
    """Whether this is Azure OpenAI, whose answers carry content filter results."""
    return "api-key" in exchange.request.headers or "/openai/deployments/" in exchange.request.path


def _text(exchange: Exchange) -> Answer:
    document = exchange.document
    limit = document.get("max_completion_tokens") or document.get("max_tokens")
    response_format = document.get("response_format") or {}
    schema = response_format.get("json_schema", {}).get("schema")
    if schema is None and response_format.get("type") == "json_object":
        schema = {}
    return exchange.answer(limit=limit, schema=schema)


def _bill(exchange: Exchange, answer: Answer, *, with_audio: bool) -> tuple[Billed, str]:
    document = exchange.document
    prompt = prompt_size(
        document.get("messages"), document.get("tools"), document.get("functions"), document.get("response_format")
    )
    usage = prompt_usage(prompt, document.get("prompt_cache_options"))
    usage += Usage(
        output=answer.tokens * int(document.get("n") or 1),
        reasoning=reasoning_tokens(document.get("reasoning_effort")),
        output_audio=AUDIO_TOKENS if with_audio else 0,
    )
    asked = not exchange.request.streamed or wants_usage(document)
    id = exchange.new_id("chatcmpl-")
    return exchange.bill(API, usage, block=chat_block if asked else None, types=CHAT, response_id=id), id


def wants_usage(document: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with its usage."""
    return bool((document.get("stream_options") or {}).get("include_usage"))


def _body(completion: Completion) -> dict[str, Any]:
    filtered = {"content_filter_results": _SAFE} if completion.azure else {}
    choices = [
        {
            "index": index,
            "message": _message(completion),
            "logprobs": None,
            "finish_reason": completion.finish_reason,
            **filtered,
        }
        for index in range(completion.choices)
    ]
    body = {**completion.base("chat.completion"), "choices": choices, "usage": completion.line.reported}
    if completion.azure:
        body["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": _SAFE}]
    return body


def _message(completion: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    if completion.function:
        call = {"name": completion.function["name"], "arguments": completion.answer.text}
        message["tool_calls"] = [{"id": completion.exchange.new_id("call_"), "type": "function", "function": call}]
    elif completion.with_audio:
        message["audio"] = _audio(completion) | {"data": _sound(16), "transcript": completion.answer.text}
    else:
        message["content"] = completion.answer.text
    return message


def _chunks(completion: Completion) -> Iterator[Event]:
    asked = wants_usage(completion.exchange.document)
    base = completion.base("chat.completion.chunk")
    extra = {"usage": None} if asked else {}
    padded = (completion.exchange.document.get("stream_options") or {}).get("include_obfuscation", True)
    if completion.azure:
        filtered = [{"prompt_index": 0, "content_filter_results": _SAFE}]
        yield Event(
            {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": filtered}
        )
    for index in range(completion.choices):
        for delta, finish_reason in _deltas(completion):
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            padding = {"obfuscation": _padding(delta)} if padded else {}
            yield Event({**base, "choices": [choice], **extra, **padding})
    if asked:
        yield Event({**base, "choices": [], "usage": completion.line.reported}, tells=(completion.line,))
    yield DONE


def _deltas(completion: Completion) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The deltas of one choice, each with its finish reason."""
    pieces = completion.answer.deltas
    if completion.function:
        called = {"name": completion.function["name"], "arguments": ""}
        call = {"index": 0, "id": completion.exchange.new_id("call_"), "type": "function", "function": called}
        yield {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}, None
        for piece in pieces:
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}, None
    elif completion.with_audio:
        audio = _audio(completion)
        yield {"role": "assistant", "content": None, "refusal": None, "audio": audio | {"transcript": ""}}, None
        for piece in pieces:
            yield {"audio": {"transcript": piece}}, None
            yield {"audio": {"data": _sound(4)}}, None
    else:
        yield {"role": "assistant", "content": "", "refusal": None}, None
        for piece in pieces:
            yield {"content": piece}, None
    yield {}, completion.finish_reason


def _audio(completion: Completion) -> dict[str, Any]:
    return {"id": completion.exchange.new_id("audio_"), "expires_at": completion.exchange.now + 3600}


def _sound(samples: int) -> str:
    return base64.b64encode(b"\x00\x01" * samples).decode()


def _padding(delta: Mapping[str, Any]) -> str:
    """Characters that hide the length of a delta from someone who watches the line."""
    return "aK3xQ9mZ7pWb2LtY"[: 16 - len(str(delta.get("content") or "")) % 16]
