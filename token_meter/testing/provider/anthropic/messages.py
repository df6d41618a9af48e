"""Messages: plain and streamed, with thinking, tools, searches, refusals, and what only the beta endpoint
does.

A beta request also gets `usage.iterations`. Compaction (`context_management` with a `compact_…` edit), an
advisor (a tool of type `advisor_…`) and a hop that declined (a model with `refuse` in its name and
`fallbacks`) are billed on lines of their own, which the totals at the top do not contain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import THINKING_TOKENS, prompt_size
from token_meter.testing.provider.anthropic import content
from token_meter.testing.provider.anthropic.content import ContentBlock
from token_meter.testing.provider.anthropic.usage import (
    TYPES,
    delta_block,
    iteration,
    message_block,
    opening_block,
    prompt_usage,
)
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.models import answered
from token_meter.testing.provider.reply import Event, Reply
from token_meter.usage import Usage

API: Final = "anthropic.messages"
REFUSAL_TOKENS: Final = 3
COMPACTED_TOKENS: Final = 150
"""What is left of the prompt after a compaction."""
SUMMARY_TOKENS: Final = 64
ADVICE_TOKENS: Final = 40
_OVERLOADED: Final = {
    "type": "error",
    "error": {"type": "overloaded_error", "message": "Overloaded"},
    "request_id": None,
}


@dataclass(slots=True)
class Turn:
    """What the model does in one message."""

    blocks: list[ContentBlock]
    usage: Usage
    stop_reason: str
    model: str
    iterations: list[dict[str, Any]] = field(default_factory=list)
    extra: list[tuple[str, str, Usage]] = field(default_factory=list)
    """Lines of their own: kind, model, usage."""

    def aside(self, kind: str, usage: Usage, *, model: str | None = None) -> None:
        """Something that is billed apart, to this model unless another one is named."""
        self.extra.append((kind, model or self.model, usage))
        self.iterations.append(dict(iteration(usage, kind, model)))


def messages(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """POST /messages; on Vertex the model stands in the path."""
    turn = _turn(exchange)
    id = exchange.new_id("msg_01")
    line = _bill(exchange, turn, id)
    lines = (line, *_bill_extra(exchange, turn, id))
    streamed = exchange.request.streamed or names.get("verb") == "streamRawPredict"
    if streamed:
        error = Event(_OVERLOADED, "error")
        return exchange.stream(_events(exchange, turn, id, lines), *lines, errors=[error])
    return exchange.json(
        {
            **_message(turn, id),
            "content": [block.whole for block in turn.blocks],
            **_stop(turn),
            "usage": _with_iterations(line.reported, turn),
            **({"context_management": {"applied_edits": []}} if exchange.document.get("context_management") else {}),
        },
        *lines,
    )


def count_tokens(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /messages/count_tokens: free."""
    document = exchange.document
    prompt = prompt_size(document.get("tools"), document.get("system"), document.get("messages"))
    return exchange.json({"input_tokens": prompt.tokens})


def _turn(exchange: Exchange) -> Turn:
    """Decide what the model does."""
    document = exchange.document
    asked = prompt_usage(document)
    fallbacks = document.get("fallbacks")
    if "refuse" in (exchange.request.model or ""):
        declined = asked + Usage(output=REFUSAL_TOKENS)
        if not isinstance(fallbacks, list) or not fallbacks:
            return _finished(exchange, Turn([], declined, "refusal", exchange.model))
        turn = _spoken(exchange, asked, answered(str(fallbacks[0]["model"])))
        turn.blocks.insert(0, content.fallback(exchange.model, turn.model))
        turn.extra.append(("declined", exchange.model, declined))
        turn.iterations.append(dict(iteration(declined, "message", exchange.model)))
        turn.iterations.append(dict(iteration(turn.usage, "fallback_message", turn.model)))
        return turn
    return _finished(exchange, _spoken(exchange, asked, exchange.model))


def _spoken(exchange: Exchange, asked: Usage, model: str) -> Turn:
    """A turn with everything the request calls for."""
    document = exchange.document
    blocks: list[ContentBlock] = []
    spent: dict[str, int] = {}
    if thought := _thinking_tokens(document):
        blocks.append(content.thinking())
        spent["reasoning"] = thought
    searching = any(str(tool.get("type", "")).startswith("web_search") for tool in document.get("tools") or ())
    if searching:
        blocks += content.web_search(exchange)
        spent["web_search"] = 1
    answer = exchange.answer(limit=document.get("max_tokens"), schema=_schema(document))
    if (tool := _called_tool(document)) is not None:
        block, given = content.tool_use(exchange, tool)
        return Turn([*blocks, block], asked + Usage(spent, output=given.tokens), "tool_use", model)
    blocks.append(content.text(answer, cited=searching))
    usage = asked + Usage(spent, output=answer.tokens)
    return Turn(blocks, usage, "max_tokens" if answer.limited else "end_turn", model)


def _finished(exchange: Exchange, turn: Turn) -> Turn:
    """Add what the beta endpoint does on the side."""
    if not _is_beta(exchange):
        return turn
    document = exchange.document
    whole = prompt_size(document.get("messages")).tokens
    before: list[ContentBlock] = []
    edits = (document.get("context_management") or {}).get("edits") or ()
    if any(str(edit.get("type", "")).startswith("compact") for edit in edits):
        summarised = Usage(input=whole, output=SUMMARY_TOKENS)
        turn.usage = Usage({**turn.usage, "input": COMPACTED_TOKENS})
        before.append(content.compaction())
        turn.aside("compaction", summarised)
    for tool in document.get("tools") or ():
        if str(tool.get("type", "")).startswith("advisor"):
            before += content.advice(exchange)
            advised = Usage(input=whole, output=ADVICE_TOKENS)
            turn.aside("advisor_message", advised, model=answered(str(tool["model"])))
    turn.blocks[:0] = before
    turn.iterations.append(dict(iteration(turn.usage, "message")))
    return turn


def _is_beta(exchange: Exchange) -> bool:
    return exchange.request.query.get("beta") == "true" or "anthropic-beta" in exchange.request.headers


def _thinking_tokens(document: Mapping[str, Any]) -> int:
    asked = document.get("thinking") or {}
    if asked.get("type") not in ("enabled", "adaptive"):
        return 0
    return min(int(asked.get("budget_tokens") or THINKING_TOKENS), THINKING_TOKENS)


def _schema(document: Mapping[str, Any]) -> Any:
    output_format = (document.get("output_config") or {}).get("format") or document.get("output_format") or {}
    return output_format.get("schema")


def _called_tool(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first tool of the user's own, unless one has been answered."""
    if (document.get("tool_choice") or {}).get("type") == "none":
        return None
    for message in document.get("messages") or ():
        parts = message.get("content")
        if isinstance(parts, list) and any(part.get("type") == "tool_result" for part in parts):
            return None
    own = (tool for tool in document.get("tools") or () if tool.get("type", "custom") == "custom")
    return next(own, None)


def _bill(exchange: Exchange, turn: Turn, id: str) -> Billed:
    line = exchange.bill(
        API,
        turn.usage,
        block=lambda usage: message_block(usage, exchange.document, batch=exchange.batch),
        types=TYPES,
        response_id=id,
        model=turn.model,
    )
    if turn.iterations and line.usage != turn.usage:
        turn.iterations[-1] = dict(iteration(line.usage, turn.iterations[-1]["type"], turn.iterations[-1].get("model")))
    turn.usage = line.usage
    return line


def _bill_extra(exchange: Exchange, turn: Turn, id: str) -> list[Billed]:
    """The lines that stand in `iterations` and nowhere else."""
    blocks = {kind: partial(iteration, kind=kind) for kind, _, _ in turn.extra}
    return [
        exchange.bill(API, usage, block=blocks[kind], types=TYPES, response_id=id, model=model, kind=kind)
        for kind, model, usage in turn.extra
    ]


def _message(turn: Turn, id: str) -> dict[str, Any]:
    return {"id": id, "type": "message", "role": "assistant", "model": turn.model}


def _stop(turn: Turn) -> dict[str, Any]:
    refused = {"type": "refusal", "category": None, "explanation": None} if turn.stop_reason == "refusal" else None
    return {"stop_reason": turn.stop_reason, "stop_sequence": None, "stop_details": refused}


def _with_iterations(block: Any, turn: Turn) -> Any:
    if isinstance(block, Mapping) and turn.iterations:
        return {**block, "iterations": turn.iterations}
    return block


def _events(exchange: Exchange, turn: Turn, id: str, lines: tuple[Billed, ...]) -> Iterator[Event]:
    opening = opening_block(turn.usage, exchange.document, batch=False)
    nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
    yield Event(
        {"type": "message_start", "message": {**_message(turn, id), **nothing, "usage": opening}}, "message_start"
    )
    for index, block in enumerate(turn.blocks):
        for place, event in enumerate(block.events(index)):
            yield event
            if not index and not place:
                yield Event({"type": "ping"}, "ping")
    scripted = exchange.state.scripted_for(API, exchange.request.model or "")
    final = scripted.raw if scripted and scripted.raw is not None else _with_iterations(delta_block(turn.usage), turn)
    yield Event({"type": "message_delta", "delta": _stop(turn), "usage": final}, "message_delta", lines)
    yield Event({"type": "message_stop"}, "message_stop")
