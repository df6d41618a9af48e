"""The Interactions API: plain, streamed, in the background (complete at the second GET), read again.

A stream ends with `interaction.completed`, which carries the usage, and `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import EFFORT_TOKENS, Answer, example, json_answer, prompt_size
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.google.generate import TOOL_TOKENS
from token_meter.testing.provider.google.usage import INTERACTION, interaction_block
from token_meter.testing.provider.reply import Event, Reply
from token_meter.usage import Usage

API: Final = "gemini.interactions"
POLLS: Final = 2
_ERROR: Final = {"event_type": "error", "error": {"code": "internal", "message": "An internal error has occurred."}}


@dataclass(slots=True)
class Stored:
    """An interaction as the server keeps it."""

    id: str
    line: Billed
    model: str
    created: str
    answer: Answer
    function: Mapping[str, Any] | None
    searched: bool
    call_id: str
    polls_left: int = 0

    @property
    def status(self) -> str:
        return "requires_action" if self.function else "incomplete" if self.answer.limited else "completed"


def create(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /interactions."""
    stored = _run(exchange)
    exchange.state.store(stored.id, stored)
    if exchange.request.streamed:
        return exchange.stream(_events(stored), stored.line, errors=[Event(_ERROR, "error")])
    if stored.polls_left:
        return exchange.json(_running(stored))
    return exchange.json(_body(stored), stored.line)


def retrieve(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET /interactions/{id}: costs nothing."""
    stored = exchange.state.stored(names["id"])
    if not isinstance(stored, Stored):
        error = {"code": 404, "message": f"Interaction {names['id']} not found", "status": "NOT_FOUND"}
        return exchange.json({"error": error}, status=404)
    if exchange.request.query.get("stream") == "true":
        return exchange.stream(_events(stored), stored.line, errors=[Event(_ERROR, "error")])
    if stored.polls_left:
        stored.polls_left -= 1
    if stored.polls_left:
        return exchange.json(_running(stored))
    return exchange.json(_body(stored), stored.line)


def _run(exchange: Exchange) -> Stored:
    document = exchange.document
    config = document.get("generation_config") or {}
    tools = document.get("tools") or ()
    function = _called_function(document)
    searches = sum(tool.get("type") == "google_search" for tool in tools)
    answer = (
        json_answer(example(function.get("parameters")))
        if function
        else exchange.answer(limit=config.get("max_output_tokens"))
    )
    prompt = prompt_size(document.get("system_instruction"), document.get("input"), document.get("tools"))
    usage = Usage(
        input=prompt.tokens - prompt.cached,
        cache_read=prompt.cached,
        output=answer.tokens,
        reasoning=EFFORT_TOKENS.get(str(config.get("thinking_level")).lower(), 0),
        tool_input=TOOL_TOKENS * searches,
        web_search=searches,
    )
    id = exchange.new_id("v1_")
    line = exchange.bill(API, usage, block=interaction_block, types=INTERACTION, response_id=id)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    polls = POLLS if document.get("background") else 0
    call_id = exchange.new_id("call_")
    return Stored(id, line, exchange.model, now, answer, function, bool(searches), call_id, polls)


def _called_function(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    given = document.get("input")
    if isinstance(given, list) and any(
        isinstance(step, Mapping) and step.get("type") == "function_result" for step in given
    ):
        return None
    return next((tool for tool in document.get("tools") or () if tool.get("type") == "function"), None)


def _base(stored: Stored) -> dict[str, Any]:
    return {
        "id": stored.id,
        "object": "interaction",
        "model": stored.model,
        "role": "model",
        "created": stored.created,
        "updated": stored.created,
        "service_tier": "standard",
    }


def _running(stored: Stored) -> dict[str, Any]:
    return {**_base(stored), "status": "in_progress"}


def _body(stored: Stored) -> dict[str, Any]:
    return {**_base(stored), "status": stored.status, "steps": _steps(stored), "usage": stored.line.reported}


def _steps(stored: Stored) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if stored.line.usage.reasoning:
        steps.append({"type": "thought", "signature": "c2lnbmF0dXJl"})
    if stored.searched:
        query = {"queries": ["how are tokens counted"]}
        steps.append({"type": "google_search_call", "id": stored.call_id, "arguments": query})
        steps.append({"type": "google_search_result", "call_id": stored.call_id, "result": []})
    if stored.function:
        arguments = example(stored.function.get("parameters"))
        call = {"type": "function_call", "id": stored.call_id, "name": stored.function["name"], "arguments": arguments}
        return [*steps, call]
    return [*steps, {"type": "model_output", "content": [{"type": "text", "text": stored.answer.text}]}]


def _events(stored: Stored) -> Iterator[Event]:
    stored.polls_left = 0
    lean = {key: value for key, value in _base(stored).items() if key != "role"}
    yield _event("interaction.created", interaction={**lean, "status": "in_progress"})
    yield _event("interaction.status_update", interaction_id=stored.id, status="in_progress")
    for index, step in enumerate(_steps(stored)):
        begun = {
            **step,
            **({"content": []} if "content" in step else {}),
            **({"arguments": {}} if "name" in step else {}),
        }
        yield _event("step.start", index=index, step=begun)
        for delta in _deltas(stored, step):
            yield _event("step.delta", index=index, delta=delta)
        yield _event("step.stop", index=index)
    done = {**lean, "status": stored.status, "usage": stored.line.reported}
    yield _event("interaction.completed", interaction=done)._replace(tells=(stored.line,))
    yield Event("[DONE]", "done")


def _deltas(stored: Stored, step: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if step["type"] == "model_output":
        yield from ({"type": "text", "text": delta} for delta in stored.answer.deltas)
    elif step["type"] == "function_call":
        yield from ({"type": "arguments_delta", "arguments": delta} for delta in stored.answer.deltas)


def _event(kind: str, **fields: Any) -> Event:
    return Event({"event_type": kind, **fields}, kind)
