"""Legacy text completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import Answer, prompt_size, tokens
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.openai.chat import DONE, SERVER_ERROR, wants_usage
from token_meter.testing.provider.openai.usage import COMPLETIONS, completions_block
from token_meter.testing.provider.reply import Event, Reply
from token_meter.usage import Usage

API: Final = "openai.completions"


def completions(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /completions: one choice for every prompt and every `n`."""
    document = exchange.document
    answer = exchange.answer(limit=document.get("max_tokens"))
    prompt = document.get("prompt")
    count = (len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str) else 1) * int(
        document.get("n") or 1
    )
    given = tokens(prompt) if isinstance(prompt, str) else prompt_size(prompt).text
    id = exchange.new_id("cmpl-")
    asked = not exchange.request.streamed or wants_usage(document)
    usage = Usage(input=given, output=answer.tokens * count)
    line = exchange.bill(API, usage, block=completions_block if asked else None, types=COMPLETIONS, response_id=id)
    base = {"id": id, "object": "text_completion", "created": exchange.now, "model": exchange.model}
    if exchange.request.streamed:
        events = _chunks(base, answer, count, line, asked=asked)
        return exchange.stream(events, line, errors=[Event(SERVER_ERROR)])
    choices = [_choice(index, answer.text, _finish(answer)) for index in range(count)]
    return exchange.json({**base, "choices": choices, "usage": line.reported}, line)


def _chunks(base: dict[str, Any], answer: Answer, count: int, line: Billed, *, asked: bool) -> Iterator[Event]:
    extra = {"usage": None} if asked else {}
    for index in range(count):
        for delta in answer.deltas:
            yield Event({**base, "choices": [_choice(index, delta, None)], **extra})
        yield Event({**base, "choices": [_choice(index, "", _finish(answer))], **extra})
    if asked:
        yield Event({**base, "choices": [], "usage": line.reported}, tells=(line,))
    yield DONE


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


def _finish(answer: Answer) -> str:
    return "length" if answer.limited else "stop"
