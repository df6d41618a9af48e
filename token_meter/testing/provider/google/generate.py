"""generateContent and its stream, on the Gemini API and on Vertex.

A stream tells running totals: the Gemini API in every chunk, Vertex only in the last one. A model with `cont`
in its name stops half way and hands out a continuation token; one with `refuse` blocks the prompt.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import (
    EFFORT_TOKENS,
    THINKING_TOKENS,
    Answer,
    Prompt,
    example,
    json_answer,
    prompt_size,
    share,
)
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.google.fields import read
from token_meter.testing.provider.google.usage import TYPES, generate_block, traffic
from token_meter.testing.provider.openai.items import PNG
from token_meter.testing.provider.reply import Event, Reply
from token_meter.usage import Usage

API: Final = "gemini.generate"
CACHED_CONTENT_TOKENS: Final = 1024
"""Size of any `cachedContent` that a request names."""
TOOL_TOKENS: Final = 64
"""What the results of a search or a code execution add to the prompt."""
IMAGE_TOKENS: Final = 1290
_TOKEN: Final = base64.b64encode(b"the first half has been written").decode()
_ERROR: Final = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
_SERVER_TOOLS: Final = ("googleSearch", "googleSearchRetrieval", "codeExecution", "urlContext")


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer: its parts, how it ends, what it costs."""

    exchange: Exchange
    id: str
    line: Billed
    answer: Answer
    function: Mapping[str, Any] | None
    finish: str
    vertex: bool

    @property
    def searched(self) -> bool:
        return bool(self.line.usage.web_search)

    def block(self, done: int = 1, of: int = 1) -> Any:
        """The usage block when `done` of `of` parts of the output are out."""
        if done == of:
            return self.line.reported
        tier = _tier(self.exchange)
        if self.vertex:
            return {"trafficType": traffic(tier)}
        usage = self.line.usage
        so_far = {name: share(size, done, of) if name.startswith("output") else size for name, size in usage.items()}
        return generate_block(Usage(so_far), vertex=False, tier=tier)

    def envelope(self, candidates: list[dict[str, Any]], block: Any) -> dict[str, Any]:
        """A response, or one chunk of a stream."""
        body = {"candidates": candidates, "usageMetadata": block, "modelVersion": self.exchange.model}
        return {**body, "responseId": self.id}


def generate(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """POST {model}:generateContent and {model}:streamGenerateContent."""
    streamed = names["verb"] == "streamGenerateContent"
    if "refuse" in exchange.model:
        return _blocked(exchange, streamed=streamed)
    generation = _generation(exchange)
    if streamed:
        return exchange.stream(_chunks(generation), generation.line, errors=[Event(_ERROR)])
    candidate = {"content": {"role": "model", "parts": _parts(generation)}, **_ending(generation), "index": 0}
    return exchange.json(generation.envelope([candidate], generation.block()), generation.line)


def count(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST {model}:countTokens: free."""
    document = read(exchange.document, "generateContentRequest") or exchange.document
    prompt = _prompt(document)
    details = [{"modality": "TEXT", "tokenCount": prompt.tokens}]
    return exchange.json({"totalTokens": prompt.tokens, "promptTokensDetails": details})


def is_vertex(exchange: Exchange) -> bool:
    """Vertex AI has the publisher in its paths."""
    return "/publishers/" in exchange.request.path


def _prompt(document: Mapping[str, Any]) -> Prompt:
    return prompt_size(read(document, "systemInstruction"), document.get("contents"), document.get("tools"))


def _tier(exchange: Exchange) -> str:
    return str(read(exchange.document, "serviceTier") or "standard").lower().removeprefix("service_tier_")


def _generation(exchange: Exchange) -> Generation:
    document = exchange.document
    config = read(document, "generationConfig") or {}
    function = _called_function(document)
    answer = _answer(exchange, config, function)
    given = _prompt_usage(document) + _on_the_side(document, config)
    makes_image = "IMAGE" in (read(config, "responseModalities") or ()) and not function
    usage = given + Usage(output=answer.tokens, output_image=IMAGE_TOKENS if makes_image else 0)
    continues = "cont" in exchange.model and not read(document, "continuationToken")
    finish = "CONTINUATION" if continues else "MAX_TOKENS" if answer.limited else "STOP"
    id = exchange.new_id("gem-")
    return Generation(exchange, id, _bill(exchange, usage, id), answer, function, finish, is_vertex(exchange))


def _bill(exchange: Exchange, usage: Usage, id: str) -> Billed:
    vertex, tier = is_vertex(exchange), _tier(exchange)
    return exchange.bill(
        API, usage, block=lambda it: generate_block(it, vertex=vertex, tier=tier), types=TYPES, response_id=id
    )


def _answer(exchange: Exchange, config: Mapping[str, Any], function: Mapping[str, Any] | None) -> Answer:
    if function:
        return json_answer(_arguments(function))
    schema = read(config, "responseJsonSchema") or read(config, "responseSchema")
    return exchange.answer(limit=read(config, "maxOutputTokens"), schema=schema)


def _called_function(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first declared function, unless one has been answered."""
    for turn in document.get("contents") or ():
        if any(read(part, "functionResponse") for part in turn.get("parts") or ()):
            return None
    for tool in document.get("tools") or ():
        if declared := read(tool, "functionDeclarations"):
            first = declared[0]
            return first if isinstance(first, Mapping) else None
    return None


def _arguments(function: Mapping[str, Any]) -> Any:
    return example(read(function, "parametersJsonSchema") or function.get("parameters"))


def _prompt_usage(document: Mapping[str, Any]) -> Usage:
    prompt = _prompt(document)
    if read(document, "cachedContent"):
        return prompt.usage() + Usage(cache_read=CACHED_CONTENT_TOKENS)
    return prompt.usage(read=prompt.cached)


def _on_the_side(document: Mapping[str, Any], config: Mapping[str, Any]) -> Usage:
    """Thoughts, and what the provider's own tools added to the prompt."""
    declared = [name for tool in document.get("tools") or () for name in _SERVER_TOOLS if read(tool, name) is not None]
    return Usage(
        reasoning=_thought_tokens(read(config, "thinkingConfig")),
        tool_input=TOOL_TOKENS * len(declared),
        web_search=sum(name.startswith("googleSearch") for name in declared),
    )


def _thought_tokens(config: Any) -> int:
    if level := read(config, "thinkingLevel"):
        return EFFORT_TOKENS.get(str(level).lower(), 0)
    budget = read(config, "thinkingBudget")
    if budget is None:
        return THINKING_TOKENS if read(config, "includeThoughts") else 0
    return THINKING_TOKENS if int(budget) < 0 else min(int(budget), THINKING_TOKENS)


def _parts(generation: Generation) -> list[dict[str, Any]]:
    """The parts of the content, thoughts first if the request wants to see them."""
    parts: list[dict[str, Any]] = _shown_thought(generation)
    if generation.function:
        called = {"name": generation.function["name"], "args": _arguments(generation.function)}
        return [*parts, {"functionCall": called, "thoughtSignature": _TOKEN}]
    return [*parts, {"text": generation.answer.text}, *_picture(generation)]


def _shown_thought(generation: Generation) -> list[dict[str, Any]]:
    config = read(generation.exchange.document, "generationConfig")
    if not read(read(config, "thinkingConfig"), "includeThoughts"):
        return []
    return [{"text": "I look at what was sent and at what came back.", "thought": True}]


def _picture(generation: Generation) -> list[dict[str, Any]]:
    if not generation.line.usage.output_image:
        return []
    return [{"inlineData": {"mimeType": "image/png", "data": PNG}}]


def _ending(generation: Generation) -> dict[str, Any]:
    """The fields of a candidate that has come to its end."""
    ending: dict[str, Any] = {"finishReason": generation.finish}
    if generation.finish == "CONTINUATION":
        ending["continuationToken"] = _TOKEN
    if generation.searched:
        ending["groundingMetadata"] = {"webSearchQueries": ["how are tokens counted"], "groundingChunks": []}
    return ending


def _chunks(generation: Generation) -> Iterator[Event]:
    """Every chunk carries some of the text and the totals so far."""
    if generation.function:
        pieces: list[list[dict[str, Any]]] = [_parts(generation)]
    else:
        pieces = [[{"text": delta}] for delta in generation.answer.deltas]
        pieces[0] = _shown_thought(generation) + pieces[0]
        pieces[-1] = pieces[-1] + _picture(generation)
    for number, parts in enumerate(pieces, start=1):
        last = number == len(pieces)
        candidate = {"content": {"role": "model", "parts": parts}, **(_ending(generation) if last else {}), "index": 0}
        body = generation.envelope([candidate], generation.block(number, len(pieces)))
        yield Event(body, tells=(generation.line,) if last else ())


def _blocked(exchange: Exchange, *, streamed: bool) -> Reply:
    """The prompt was refused: no candidates, only its own tokens."""
    id = exchange.new_id("gem-")
    line = _bill(exchange, _prompt(exchange.document).usage(), id)
    feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": []}
    body = {
        "promptFeedback": feedback,
        "usageMetadata": line.reported,
        "modelVersion": exchange.model,
        "responseId": id,
    }
    if streamed:
        return exchange.stream([Event(body, tells=(line,))], line)
    return exchange.json(body, line)
