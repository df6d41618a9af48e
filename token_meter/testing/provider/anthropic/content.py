"""The content blocks of a message, each with the deltas in which it is streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from token_meter.testing.provider.answer import Answer, example, json_answer
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.reply import Event

_THOUGHT: Final = "The question is how tokens are counted. I look at what was sent and what came back."
_SIGNATURE: Final = "EuAdCioICBgCIiRiY2JjZWJjMy1lYTFhLTRmNjktYTUwMy01YzgwNWU1Y2U0NzESDJKbCROQ8RQ9QqnHPBoM"
_URL: Final = "https://example.com/counting-tokens"


@dataclass(frozen=True, slots=True)
class ContentBlock:
    """One block: as it stands in the message, as it begins in a stream, and what comes in between."""

    whole: Mapping[str, Any]
    begun: Mapping[str, Any]
    deltas: tuple[Mapping[str, Any], ...] = ()

    def events(self, index: int) -> Iterator[Event]:
        """From `content_block_start` to `content_block_stop`."""
        place = {"index": index}
        yield _event("content_block_start", **place, content_block=self.begun)
        yield from (_event("content_block_delta", **place, delta=delta) for delta in self.deltas)
        yield _event("content_block_stop", **place)


def _event(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)


def thinking() -> ContentBlock:
    """What the model thought, with the signature that comes in a delta of its own."""
    half = len(_THOUGHT) // 2
    return ContentBlock(
        {"type": "thinking", "thinking": _THOUGHT, "signature": _SIGNATURE},
        {"type": "thinking", "thinking": "", "signature": ""},
        (
            {"type": "thinking_delta", "thinking": _THOUGHT[:half]},
            {"type": "thinking_delta", "thinking": _THOUGHT[half:]},
            {"type": "signature_delta", "signature": _SIGNATURE},
        ),
    )


def text(answer: Answer, *, cited: bool = False) -> ContentBlock:
    """The text of the answer."""
    citation = {
        "type": "web_search_result_location", "url": _URL, "title": "Counting tokens",
        "encrypted_index": "Eo8BCioIAhgBIiQ0", "cited_text": "Tokens are counted by the provider.",
    }  # fmt: skip
    block: dict[str, Any] = {"type": "text", "text": answer.text}
    noted: tuple[Mapping[str, Any], ...] = ()
    if cited:
        block["citations"] = [citation]
        noted = ({"type": "citations_delta", "citation": citation},)
    deltas = tuple({"type": "text_delta", "text": delta} for delta in answer.deltas)
    return ContentBlock(block, {**block, "text": "", **({"citations": []} if cited else {})}, (*noted, *deltas))


def tool_use(exchange: Exchange, tool: Mapping[str, Any]) -> tuple[ContentBlock, Answer]:
    """A call of a tool of the user's; the arguments are streamed as pieces of JSON."""
    value = example(tool.get("input_schema"))
    given = json_answer(value)
    base = {"type": "tool_use", "id": exchange.new_id("toolu_"), "name": tool["name"]}
    deltas = tuple({"type": "input_json_delta", "partial_json": piece} for piece in ("", *given.deltas))
    return ContentBlock({**base, "input": value}, {**base, "input": {}}, deltas), given


def web_search(exchange: Exchange) -> tuple[ContentBlock, ContentBlock]:
    """A search by the server and what it found."""
    id = exchange.new_id("srvtoolu_")
    query = {"query": "how are tokens counted"}
    base = {"type": "server_tool_use", "id": id, "name": "web_search"}
    deltas = tuple({"type": "input_json_delta", "partial_json": piece} for piece in json_answer(query).deltas)
    found = {
        "type": "web_search_result", "title": "Counting tokens", "url": _URL,
        "encrypted_content": _SIGNATURE, "page_age": "3 days ago",
    }  # fmt: skip
    result = {"type": "web_search_tool_result", "tool_use_id": id, "content": [found]}
    return ContentBlock({**base, "input": query}, {**base, "input": {}}, deltas), ContentBlock(result, result)


def advice(exchange: Exchange) -> tuple[ContentBlock, ContentBlock]:
    """A question to the advisor, which is another model, and its answer."""
    id = exchange.new_id("srvtoolu_")
    asked = {"type": "server_tool_use", "id": id, "name": "advisor", "input": {}}
    advised = {"type": "advisor_result", "text": "Count on the wire.", "stop_reason": "end_turn"}
    result = {"type": "advisor_tool_result", "tool_use_id": id, "content": advised}
    return ContentBlock(asked, asked), ContentBlock(result, result)


def compaction() -> ContentBlock:
    """The summary that takes the place of a conversation grown too long."""
    summary = "The user asked how tokens are counted and was told: once, on the wire."
    return ContentBlock(
        {"type": "compaction", "content": summary},
        {"type": "compaction", "content": None},
        ({"type": "compaction_delta", "content": summary},),
    )


def fallback(declined: str, served: str) -> ContentBlock:
    """Where one model's output gives way to the next one's."""
    block = {
        "type": "fallback",
        "from": {"model": declined},
        "to": {"model": served},
        "trigger": {"type": "refusal", "category": None},
    }
    return ContentBlock(block, block)
