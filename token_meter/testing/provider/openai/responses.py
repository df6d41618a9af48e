"""The Responses API: plain, streamed, in the background, read again, compacted, cancelled.

A response that runs in the background is `queued` when it is created, `in_progress` at the first GET and
complete at the second; from then on every GET shows its usage again. It is billed once, when it is created.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import Answer, Prompt, prompt_size
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.openai import items
from token_meter.testing.provider.openai.chat import not_found
from token_meter.testing.provider.openai.items import Item
from token_meter.testing.provider.openai.tools import arguments, declared_function
from token_meter.testing.provider.openai.usage import (
    IMAGES,
    RESPONSES,
    images_block,
    prompt_usage,
    reasoning_tokens,
    responses_block,
)
from token_meter.testing.provider.reply import Event, Reply
from token_meter.usage import Usage

API: Final = "openai.responses"
POLLS: Final = 2
"""How often a background response is read until it is complete."""
IMAGE_USAGE: Final = Usage(input=50, input_image=0, output_image=272)
_ERROR: Final = {"code": "server_error", "message": "The server had an error while processing your request."}


@dataclass(slots=True)
class Stored:
    """A response as the server keeps it."""

    id: str
    created: int
    document: Mapping[str, Any]
    model: str
    output: list[Item]
    answer: Answer
    billed: list[Billed] = field(default_factory=list)
    polls_left: int = 0
    cancelled: bool = False

    @property
    def end(self) -> str:
        """The status it ends with."""
        return "incomplete" if self.answer.limited else "completed"


def create(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /responses."""
    stored = _run(exchange)
    exchange.state.store(stored.id, stored)
    if exchange.request.streamed:
        return _stream(exchange, stored)
    if stored.polls_left:
        return exchange.json(body(stored, "queued"))
    return exchange.json(body(stored, stored.end), *stored.billed)


def retrieve(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET /responses/{id}: costs nothing, shows the usage as soon as there is one; `stream=true` plays it again."""
    stored = exchange.state.stored(names["id"])
    if not isinstance(stored, Stored):
        return not_found(exchange, f"Response with id {names['id']!r} not found.")
    if exchange.request.query.get("stream") == "true":
        return _stream(exchange, stored, after=int(exchange.request.query.get("starting_after", -1)))
    if stored.polls_left:
        stored.polls_left -= 1
    if stored.polls_left:
        return exchange.json(body(stored, "in_progress"))
    status = "cancelled" if stored.cancelled else stored.end
    return exchange.json(body(stored, status), *stored.billed)


def cancel(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """POST /responses/{id}/cancel: a background response that has not ended is not charged."""
    stored = exchange.state.stored(names["id"])
    if not isinstance(stored, Stored):
        return not_found(exchange, f"Response with id {names['id']!r} not found.")
    if stored.polls_left:
        stored.polls_left, stored.cancelled = 0, True
        for line in stored.billed:
            exchange.state.account.cancel(line)
        stored.billed.clear()
    return exchange.json(body(stored, "cancelled" if stored.cancelled else stored.end), *stored.billed)


def delete(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """DELETE /responses/{id}."""
    exchange.state.forget(names["id"])
    return exchange.json({"id": names["id"], "object": "response", "deleted": True})


def compact(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /responses/compact: the conversation so far in one encrypted item."""
    prompt = _prompt(exchange)
    id = exchange.new_id("resp_")
    usage = prompt_usage(prompt, None) + Usage(output=64)
    line = exchange.bill(API, usage, block=responses_block, types=RESPONSES, response_id=id)
    item = {"id": exchange.new_id("cmp_"), "type": "compaction", "encrypted_content": "gAAAAABplLMg" * 8}
    return exchange.json(
        {
            "id": id,
            "object": "response.compaction",
            "created_at": exchange.now,
            "output": [item],
            "usage": line.reported,
        },
        line,
    )


def count(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /responses/input_tokens: free."""
    return exchange.json({"object": "response.input_tokens", "input_tokens": _prompt(exchange).tokens})


def _prompt(exchange: Exchange) -> Prompt:
    document = exchange.document
    text_format = (document.get("text") or {}).get("format")
    return prompt_size(document.get("instructions"), document.get("input"), document.get("tools"), text_format)


def _run(exchange: Exchange) -> Stored:
    document = exchange.document
    effort = (document.get("reasoning") or {}).get("effort")
    function = _unanswered_function(document)
    schema = ((document.get("text") or {}).get("format") or {}).get("schema")
    answer = (
        arguments(function) if function else exchange.answer(limit=document.get("max_output_tokens"), schema=schema)
    )
    output = _output(exchange, answer, effort, function)
    stored = Stored(exchange.new_id("resp_"), exchange.now, document, exchange.model, output, answer)
    stored.polls_left = POLLS if document.get("background") else 0
    usage = prompt_usage(_prompt(exchange), document.get("prompt_cache_options"))
    usage += Usage(output=answer.tokens, reasoning=reasoning_tokens(effort)) + _tool_calls(output)
    _bill(exchange, stored, usage)
    return stored


def _bill(exchange: Exchange, stored: Stored, usage: Usage) -> None:
    """The response, and the pictures that another model made for it."""
    id = stored.id
    stored.billed.append(exchange.bill(API, usage, block=responses_block, types=RESPONSES, response_id=id))
    if model := _image_model(stored.document, stored.output):
        line = exchange.bill(
            API, IMAGE_USAGE, block=images_block, types=IMAGES, response_id=id, model=model, kind="image_gen"
        )
        stored.billed.append(line)


def _unanswered_function(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    given = document.get("input")
    if isinstance(given, list) and any(item.get("type") == "function_call_output" for item in given):
        return None
    return declared_function(document)


def _output(exchange: Exchange, answer: Answer, effort: Any, function: Mapping[str, Any] | None) -> list[Item]:
    document = exchange.document
    output = []
    if reasoning_tokens(effort):
        summarised = bool((document.get("reasoning") or {}).get("summary"))
        output.append(items.reasoning(exchange, summarised=summarised))
    declared = [tool.get("type") for tool in document.get("tools") or ()]
    output += [items.HOSTED[kind](exchange) for kind in declared if kind in items.HOSTED]
    if function:
        return [*output, items.function_call(exchange, function)]
    return [*output, items.message(exchange, answer, cited=any("web_search" in str(kind) for kind in declared))]


def _tool_calls(output: list[Item]) -> Usage:
    """What is charged per call: searches, and one container however often it is used."""
    kinds = [item.done["type"] for item in output]
    return Usage(
        web_search=kinds.count("web_search_call"),
        file_search=kinds.count("file_search_call"),
        code_interpreter=kinds.count("code_interpreter_call"),
    )


def _image_model(document: Mapping[str, Any], output: list[Item]) -> str | None:
    if all(item.done["type"] != "image_generation_call" for item in output):
        return None
    tool = next(each for each in document["tools"] if each.get("type") == "image_generation")
    return str(tool.get("model", "gpt-image-1"))


def body(stored: Stored, status: str) -> dict[str, Any]:
    """The response object with a status; usage and output are there once it has ended."""
    asked = stored.document
    ended = status in ("completed", "incomplete")
    tier = asked.get("service_tier")
    document: dict[str, Any] = {
        "id": stored.id,
        "object": "response",
        "created_at": stored.created,
        "status": status,
        "background": bool(asked.get("background")),
        "completed_at": stored.created if status == "completed" else None,
        "error": _ERROR if status == "failed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "max_tool_calls": None,
        "metadata": asked.get("metadata") or {},
        "model": stored.model,
        "output": [item.done for item in stored.output] if ended else [],
        "parallel_tool_calls": True,
        "previous_response_id": asked.get("previous_response_id"),
        "prompt_cache_key": asked.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None, **(asked.get("reasoning") or {})},
        "safety_identifier": None,
        "service_tier": (tier if tier not in (None, "auto") else "default") if ended else "auto",
        "store": asked.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium", **(asked.get("text") or {})},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools") or [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": stored.billed[0].reported if ended else None,
        "user": None,
    }
    if ended:
        document["tool_usage"] = _tool_usage(stored)
    return document


def _tool_usage(stored: Stored) -> dict[str, Any]:
    """What tools consumed, which is not contained in `usage`."""
    images = next((line.usage for line in stored.billed if line.kind == "image_gen"), Usage())
    block = {name: value for name, value in images_block(images).items() if name != "output_tokens_details"}
    return {"image_gen": block, "web_search": {"num_requests": stored.billed[0].usage.web_search}}


def _stream(exchange: Exchange, stored: Stored, *, after: int = -1) -> Reply:
    stored.polls_left = 0
    errors = [
        Event(
            {"type": "error", "sequence_number": 0, "error": {"type": "server_error", "param": None, **_ERROR}}, "error"
        ),
        Event({"type": "response.failed", "sequence_number": 1, "response": body(stored, "failed")}, "response.failed"),
    ]
    return exchange.stream(_events(stored, after), *stored.billed, errors=errors)


def _events(stored: Stored, after: int) -> Iterator[Event]:
    for number, (kind, fields) in enumerate(_progress(stored)):
        if number > after:
            last = kind == f"response.{stored.end}"
            tells = tuple(stored.billed) if last else ()
            yield Event({"type": kind, "sequence_number": number, **fields}, kind, tells)


def _progress(stored: Stored) -> Iterator[items.Progress]:
    yield "response.created", {"response": body(stored, "in_progress")}
    if stored.document.get("background"):
        yield "response.queued", {"response": body(stored, "queued")}
    yield "response.in_progress", {"response": body(stored, "in_progress")}
    for index, item in enumerate(stored.output):
        for kind, fields in item.events():
            padding = {"obfuscation": "q8Zx2LmT0vRb"[: 12 - len(fields["delta"]) % 12]} if "delta" in fields else {}
            yield kind, {"output_index": index, **fields, **padding}
    yield f"response.{stored.end}", {"response": body(stored, stored.end)}
