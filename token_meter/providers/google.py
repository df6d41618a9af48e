"""Google (Gemini API and Vertex): which methods are metered and how `usageMetadata` is read.

The prompt contains the cached tokens; thoughts and tool-use prompts stand outside prompt and candidates; every part
is split by modality. Counts in a stream are cumulative within one response, and a chunk may leave some out.
Formulas: design D1.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Final

from token_meter.providers.asking import Ask, count_of, limit_of, measured, tools_of
from token_meter.providers.base import Body, Endpoint, Fold, Reading, mapping, tells_counts, text, whole
from token_meter.usage import QUANTITY_MAX, Usage

# Vertex can be asked for integer enums (google.ai.generativelanguage.Modality).
_MODALITIES: Final = {1: "TEXT", 2: "IMAGE", 3: "VIDEO", 4: "AUDIO", 5: "DOCUMENT"}
_INPUT: Final = {"IMAGE": "input_image", "VIDEO": "input_video", "AUDIO": "input_audio", "DOCUMENT": "input_document"}
_CACHED: Final = {"IMAGE": "cache_read_image", "VIDEO": "cache_read_video", "AUDIO": "cache_read_audio"}
_OUTPUT: Final = {"IMAGE": "output_image", "VIDEO": "output_video", "AUDIO": "output_audio"}
_TIERS: Final = {
    "ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex", "ON_DEMAND_OFFPEAK": "offpeak",
    "PROVISIONED_THROUGHPUT": "provisioned", "ON_DEMAND": "standard",
}  # fmt: skip


def read_generation(document: Body) -> list[Reading]:
    """A GenerateContentResponse, plain or folded from its stream."""
    usage = document.get("usageMetadata")
    reading = Reading(None, model=text(document.get("modelVersion")), response_id=text(document.get("responseId")))
    # Counts of zero are left out, but Vertex also sends a traffic type alone while nothing is counted yet: no counts
    # mean zero only for a prompt that was blocked.
    blocked = bool(mapping(document.get("promptFeedback")).get("blockReason"))
    if not isinstance(usage, dict) or not (blocked or tells_counts(usage)):
        if usage is not None and not isinstance(usage, dict):
            reading.anomalies.append("unreadable_usage")
        return [reading]
    reading.usage = generation_usage(usage, reading.anomalies) + _searches(document)
    reading.price_context = _price_context(usage)
    reading.raw_usage = usage
    return [reading]


def generation_usage(usage: Body, anomalies: list[str]) -> Usage:
    """Prompt minus cached, by modality; candidates by modality; thoughts and tool prompts apart."""
    prompt = whole(usage.get("promptTokenCount"), anomalies, "promptTokenCount")
    cached = whole(usage.get("cachedContentTokenCount"), anomalies, "cachedContentTokenCount")
    candidates = whole(usage.get("candidatesTokenCount"), anomalies, "candidatesTokenCount")
    thoughts = whole(usage.get("thoughtsTokenCount"), anomalies, "thoughtsTokenCount")
    tool_prompt = whole(usage.get("toolUsePromptTokenCount"), anomalies, "toolUsePromptTokenCount")
    if cached > prompt:
        anomalies.append("parts_exceed_total:prompt")
        cached = prompt
    cached_by = _split(usage.get("cacheTokensDetails"), cached, anomalies)
    prompt_by = _split(usage.get("promptTokensDetails") or usage.get("promptTokenDetails"), prompt, anomalies)
    fresh_by = _minus(prompt_by, cached_by, prompt - cached)
    output_by = _split(usage.get("candidatesTokensDetails"), candidates, anomalies)
    total = usage.get("totalTokenCount")
    if type(total) is int and total != prompt + candidates + thoughts + tool_prompt:
        anomalies.append("total_mismatch")
    quantities: dict[str, int] = {}
    for parts, names, plain in (
        (fresh_by, _INPUT, "input"), (cached_by, _CACHED, "cache_read"), (output_by, _OUTPUT, "output"),
    ):  # fmt: skip
        for modality, count in parts.items():
            name = names.get(modality, plain)
            quantities[name] = quantities.get(name, 0) + count
    quantities["tool_input"] = tool_prompt
    quantities["reasoning"] = thoughts
    return Usage.of({name: quantity for name, quantity in quantities.items() if quantity})


def _split(details: Any, total: int, anomalies: list[str]) -> dict[str, int]:
    """Counts by modality that sum to `total`: what the details leave open is text, what they exceed is cut."""
    parts: dict[str, int] = {}
    for each in details if isinstance(details, list) else ():
        entry = mapping(each)
        modality = _MODALITIES.get(entry.get("modality", 0), str(entry.get("modality")))
        parts[modality] = parts.get(modality, 0) + whole(entry.get("tokenCount"), anomalies, "tokenCount")
    left = total
    fitted: dict[str, int] = {}
    for modality in sorted(parts, key=lambda each: each == "TEXT"):
        if modality == "TEXT":
            continue
        fitted[modality] = min(parts[modality], left)
        left -= fitted[modality]
    if sum(parts.values()) > total:
        anomalies.append("parts_exceed_total:details")
    fitted["TEXT"] = left
    return fitted


def _minus(prompt: dict[str, int], cached: dict[str, int], total: int) -> dict[str, int]:
    """What of the prompt was not cached, by modality; it sums to `total` whatever the details say."""
    fresh = {modality: max(0, count - cached.get(modality, 0)) for modality, count in prompt.items()}
    excess = sum(fresh.values()) - total
    for modality in ("TEXT", *fresh):
        cut = min(excess, fresh.get(modality, 0))
        if cut > 0:
            fresh[modality] -= cut
            excess -= cut
    return fresh


def _searches(document: Body) -> Usage:
    """Grounding with Google Search: the queries that were sent for this response."""
    most = 0
    candidates = document.get("candidates")
    for candidate in candidates if isinstance(candidates, list) else ():
        queries = mapping(mapping(candidate).get("groundingMetadata")).get("webSearchQueries")
        most += len(queries) if isinstance(queries, list) else 0
    most = max(most, document.get("_searches", 0))
    return Usage.of({"web_search": most} if most else {})


def _price_context(usage: Body) -> dict[str, Any]:
    tier = text(usage.get("serviceTier"))
    traffic = text(usage.get("trafficType"))
    context: dict[str, Any] = {
        "service_tier": tier.lower() if tier else _TIERS.get(traffic or ""),
        "context_tokens": whole(usage.get("promptTokenCount"), [], "promptTokenCount"),
    }
    return {name: value for name, value in context.items() if value is not None}


class GenerationFold(Fold):
    """Chunks of one response: the last value of each count wins, a count that is absent keeps its value.

    Every chunk repeats the counts. As long as the text from the counts on differs in digits only, the newest chunk
    replaces the one before it and is parsed when its turn is over: most chunks are never parsed.
    """

    __slots__ = ("_newest", "_shape")
    marks: ClassVar = (b"{", b"{")  # there is something in every chunk

    def __init__(self) -> None:
        super().__init__()
        self._newest: bytes | None = None
        self._shape = b""

    @property
    def final(self) -> bool:
        """Never before the end: counts may follow the finish reason."""
        return False

    def block(self, data: bytes, weight: int) -> None:
        """One chunk as JSON (the SDK hands chunks over one by one)."""
        if not data:
            return
        if (start := data.find(b'"text"') + 9) > 8:  # `"text": "`, as the SDK writes it
            self.text_bytes += max(0, data.find(b'"', start) - start)
        at = data.rfind(b'"usageMetadata"')
        telling = not self.document or at < 0 or data.find(b'"usageMetadata"') != at
        if telling or any(data.rfind(word) >= 0 for word in _TELLING):
            self._take_newest()
            self._merge(data)
            return
        shape = data[at:].translate(None, b"0123456789")
        if shape != self._shape:
            self._take_newest()
            self._shape = shape
        self._newest = data

    def close(self) -> None:
        """The stream ended: what was only remembered is read."""
        self._take_newest()

    def _take_newest(self) -> None:
        if self._newest is not None:
            data, self._newest = self._newest, None
            self._merge(data)

    def _merge(self, data: bytes) -> None:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(chunk, dict):
            return
        merged = self.document
        usage = chunk.get("usageMetadata")
        if isinstance(usage, dict):
            merged["usageMetadata"] = {**mapping(merged.get("usageMetadata")), **usage}
        for name in ("modelVersion", "responseId"):
            if chunk.get(name):
                merged[name] = chunk[name]
        if searches := _searches(chunk).web_search:
            merged["_searches"] = max(searches, merged.get("_searches", 0))
        candidates = chunk.get("candidates")
        for candidate in candidates if isinstance(candidates, list) else ():
            if mapping(candidate).get("finishReason"):
                self.terminal = True
        if mapping(chunk.get("promptFeedback")).get("blockReason"):
            self.terminal = True
            merged["promptFeedback"] = chunk["promptFeedback"]


_TELLING: Final = (b'"finishReason"', b'"groundingMetadata"', b'"promptFeedback"')


def read_embedding(document: Body) -> list[Reading]:
    """Gemini reports usageMetadata; Vertex's predict only statistics per embedding."""
    if isinstance(document.get("usageMetadata"), dict):
        return read_generation(document)
    reading = Reading(None)
    predictions = document.get("predictions")
    counts = [
        mapping(mapping(mapping(each).get("embeddings")).get("statistics")).get("token_count")
        for each in (predictions if isinstance(predictions, list) else ())
    ]
    if any(count is not None for count in counts):
        total = sum(whole(count, reading.anomalies, "token_count") for count in counts)
        reading.usage = Usage(input=min(total, QUANTITY_MAX))
    return [reading]


_OPAQUE: Final = frozenset({"cachedContent", "fileData"})
_SEARCHES: Final = frozenset({"googleSearch", "googleSearchRetrieval", "enterpriseWebSearch"})
_OWN_TOOLS: Final = frozenset({*_SEARCHES, "codeExecution", "fileSearch", "googleMaps", "urlContext"})


def ask_generation(body: Body) -> Ask:
    """`maxOutputTokens` covers thoughts as well; the provider searches as often as the model likes."""
    size, opaque = measured(body, _OPAQUE)
    config = mapping(body.get("generationConfig"))
    own = [name for tool in tools_of(body) for name in tool if name in _OWN_TOOLS]
    thinking = mapping(config.get("thinkingConfig"))
    budget = thinking.get("thinkingBudget")
    modalities = config.get("responseModalities")
    named = [str(each).upper() for each in modalities] if isinstance(modalities, list) else []
    types = [kind for word, kind in (("AUDIO", "output_audio"), ("IMAGE", "output_image")) if word in named]
    return Ask(
        size,
        limit_of(config, "maxOutputTokens"),
        choices=count_of(config.get("candidateCount")),
        thinks=bool(thinking) and budget != 0,
        opaque=(*opaque, *(f"tool {name}" for name in own)),
        calls=(("web_search", None),) if _SEARCHES.intersection(own) else (),
        types=tuple(types),
        passes=None if own else 1,
    )


def ask_embedding(body: Body) -> Ask:
    """Embeddings have input only."""
    size, opaque = measured(body, _OPAQUE)
    requests = body.get("requests") or body.get("instances")
    return Ask(
        size, inputs=len(requests) if isinstance(requests, list) and requests else 1, opaque=opaque, produces=False
    )


GENERATE: Final = Endpoint(
    "generate_content",
    read_generation,
    GenerationFold,
    ("usageMetadata", "modelVersion", "responseId", "candidates", "promptFeedback"),
    ask=ask_generation,
)
EMBED: Final = Endpoint(
    "embeddings", read_embedding, GenerationFold, ("usageMetadata", "predictions", "metadata"), estimates=False,
    ask=ask_embedding,
)  # fmt: skip

METHODS: Final = {
    "generateContent": GENERATE,
    "streamGenerateContent": GENERATE,
    "embedContent": EMBED,
    "batchEmbedContents": EMBED,
}


def endpoint(method: str, path: str) -> Endpoint | None:
    """The endpoint behind `models/NAME:METHOD`, or None if it bills no tokens."""
    verb = path.partition("?")[0].rpartition(":")[2]
    if method != "post":
        return None
    if verb == "predict" and "embedding" in path:
        return EMBED
    return METHODS.get(verb)


def model_of(path: str) -> str | None:
    """The model in `…/models/NAME:METHOD`."""
    return text(path.partition("?")[0].rpartition(":")[0].rpartition("/")[2])


def provider_by_path(path: str) -> str | None:
    """Vertex answers under project or publisher paths, behind whatever host."""
    return "vertex" if "/publishers/" in path or path.startswith(("projects/", "publishers/")) else None
