"""The output items of a response, each with the stream events that announce it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from token_meter.testing.provider.answer import Answer
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.openai.tools import arguments

PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_QUERY: Final = "how are tokens counted"
_SOURCE: Final = {
    "type": "url_citation", "start_index": 0, "end_index": 5,
    "title": "Counting tokens", "url": "https://example.com/counting-tokens",
}  # fmt: skip

Progress = tuple[str, dict[str, Any]]
"""The type of an event and the fields that it has besides the ids."""


@dataclass(frozen=True, slots=True)
class Item:
    """One output item: as it begins, what happens in between, and as it ends."""

    begun: Mapping[str, Any]
    done: Mapping[str, Any]
    between: tuple[Progress, ...] = ()

    def events(self) -> Iterator[Progress]:
        """From `output_item.added` to `output_item.done`."""
        yield "response.output_item.added", {"item": self.begun}
        yield from ((kind, {"item_id": self.done["id"], **fields}) for kind, fields in self.between)
        yield "response.output_item.done", {"item": self.done}


def message(exchange: Exchange, answer: Answer, *, cited: bool) -> Item:
    """The text of the answer."""
    id = exchange.new_id("msg_")
    annotations = [_SOURCE] if cited else []
    part = {"type": "output_text", "annotations": annotations, "logprobs": [], "text": answer.text}
    base = {"id": id, "type": "message", "role": "assistant"}
    place = {"content_index": 0}
    noted = [
        ("response.output_text.annotation.added", {**place, "annotation_index": index, "annotation": annotation})
        for index, annotation in enumerate(annotations)
    ]
    between: tuple[Progress, ...] = (
        ("response.content_part.added", {**place, "part": {**part, "text": "", "annotations": []}}),
        *(("response.output_text.delta", {**place, "delta": delta, "logprobs": []}) for delta in answer.deltas),
        *noted,
        ("response.output_text.done", {**place, "text": answer.text, "logprobs": []}),
        ("response.content_part.done", {**place, "part": part}),
    )
    status = "incomplete" if answer.limited else "completed"
    return Item(
        {**base, "status": "in_progress", "content": []},
        {**base, "status": status, "content": [part]},
        between,
    )


def reasoning(exchange: Exchange, *, summarised: bool) -> Item:
    """What the model thought before: hidden, or as a summary if the request asks for one."""
    base = {"id": exchange.new_id("rs_"), "type": "reasoning"}
    if not summarised:
        return Item({**base, "summary": []}, {**base, "summary": []})
    text = "**Counting the tokens**\n\nI look at what was sent and at what came back."
    place = {"summary_index": 0}
    half = len(text) // 2
    between: tuple[Progress, ...] = (
        ("response.reasoning_summary_part.added", {**place, "part": {"type": "summary_text", "text": ""}}),
        ("response.reasoning_summary_text.delta", {**place, "delta": text[:half]}),
        ("response.reasoning_summary_text.delta", {**place, "delta": text[half:]}),
        ("response.reasoning_summary_text.done", {**place, "text": text}),
        ("response.reasoning_summary_part.done", {**place, "part": {"type": "summary_text", "text": text}}),
    )
    return Item({**base, "summary": []}, {**base, "summary": [{"type": "summary_text", "text": text}]}, between)


def function_call(exchange: Exchange, function: Mapping[str, Any]) -> Item:
    """A call of a function of the user's."""
    base = {
        "id": exchange.new_id("fc_"),
        "type": "function_call",
        "call_id": exchange.new_id("call_"),
        "name": function["name"],
    }
    given = arguments(function)
    between: tuple[Progress, ...] = (
        *(("response.function_call_arguments.delta", {"delta": delta}) for delta in given.deltas),
        ("response.function_call_arguments.done", {"arguments": given.text, "name": function["name"]}),
    )
    return Item(
        {**base, "status": "in_progress", "arguments": ""},
        {**base, "status": "completed", "arguments": given.text},
        between,
    )


def web_search(exchange: Exchange) -> Item:
    """A search by the provider."""
    base = {"id": exchange.new_id("ws_"), "type": "web_search_call"}
    return _hosted(
        base,
        {"action": {"type": "search", "query": ""}},
        {"action": {"type": "search", "query": _QUERY}},
        ("in_progress", "searching", "completed"),
    )


def file_search(exchange: Exchange) -> Item:
    """A search in the user's files."""
    base = {"id": exchange.new_id("fs_"), "type": "file_search_call"}
    return _hosted(
        base,
        {"queries": [], "results": None},
        {"queries": [_QUERY], "results": None},
        ("in_progress", "searching", "completed"),
    )


def code_interpreter(exchange: Exchange) -> Item:
    """A run of code in a container."""
    code = "print(2 + 2)"
    base = {
        "id": exchange.new_id("ci_"),
        "type": "code_interpreter_call",
        "container_id": exchange.new_id("cntr_"),
    }
    between: tuple[Progress, ...] = (
        ("response.code_interpreter_call.in_progress", {}),
        ("response.code_interpreter_call_code.delta", {"delta": code[:6]}),
        ("response.code_interpreter_call_code.delta", {"delta": code[6:]}),
        ("response.code_interpreter_call_code.done", {"code": code}),
        ("response.code_interpreter_call.interpreting", {}),
        ("response.code_interpreter_call.completed", {}),
    )
    return Item(
        {**base, "status": "in_progress", "code": "", "outputs": []},
        {**base, "status": "completed", "code": code, "outputs": [{"type": "logs", "logs": "4\n"}]},
        between,
    )


def image_generation(exchange: Exchange) -> Item:
    """A picture, made by an image model that is billed apart."""
    base = {"id": exchange.new_id("ig_"), "type": "image_generation_call"}
    return _hosted(base, {"result": None}, {"result": PNG}, ("in_progress", "generating", "completed"))


HOSTED: Final = {
    "web_search": web_search,
    "web_search_preview": web_search,
    "file_search": file_search,
    "code_interpreter": code_interpreter,
    "image_generation": image_generation,
}
"""The provider's own tools, by the type under which a request declares them."""


def _hosted(base: dict[str, Any], begun: dict[str, Any], done: dict[str, Any], steps: tuple[str, ...]) -> Item:
    between: tuple[Progress, ...] = tuple((f"response.{base['type']}.{step}", {}) for step in steps)
    return Item({**base, "status": "in_progress", **begun}, {**base, "status": "completed", **done}, between)
