"""OpenAI's dialects: what bounds the cost of a request before it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from token_meter.providers.asking import UNKNOWN, Ask, count_of, limit_of, measured, tools_of
from token_meter.providers.base import Body, mapping
from token_meter.providers.tokeniser import tokens_of

_OPAQUE: Final = frozenset({
    "conversation", "file_data", "file_id", "file_ids", "file_url", "image_url", "input_audio", "previous_response_id",
})  # fmt: skip
_PLAIN_COMPLETION: Final = 16
"""What a legacy completion produces unless told otherwise (API reference, `max_tokens`)."""

_CLIENT_TOOLS: Final = ("function", "custom", "local_shell", "apply_patch", "computer")
"""The caller's own machine runs these."""

_HOSTED: Final = {
    "code_interpreter": "code_interpreter", "file_search": "file_search", "image_generation": "image_generation",
}  # fmt: skip


def ask_chat(body: Body) -> Ask:
    """Chat completions: `max_completion_tokens` covers reasoning as well."""
    size, opaque = measured(body, _OPAQUE)
    effort = body.get("reasoning_effort")
    audio = "audio" in (body.get("modalities") or ())
    searches = "web_search_options" in body or "-search-" in str(body.get("model"))
    return Ask(
        size,
        limit_of(body, "max_completion_tokens", "max_tokens"),
        choices=count_of(body.get("n")),
        thinks=effort not in (None, "none"),
        opaque=(*opaque, "web_search_options") if searches else opaque,
        calls=(("web_search", None),) if searches else (),
        passes=None if searches else 1,
        types=(
            "cache_write_30m",
            *(("input_audio",) if "input_audio" in opaque else ()),
            *(("output_audio",) if audio else ()),
        ),
        context=_context(body),
        tokens=_counter(body),
    )


def ask_completion(body: Body) -> Ask:
    """Legacy completions: `best_of` are produced and billed, for each prompt of a list."""
    size, opaque = measured(body, _OPAQUE)
    prompt = body.get("prompt")
    prompts = _inputs_of(prompt)
    choices = max(count_of(body.get("n")), count_of(body.get("best_of"))) * prompts
    return Ask(
        size, limit_of(body, "max_tokens") or _PLAIN_COMPLETION, choices=choices, inputs=prompts, opaque=opaque,
        context=_context(body),
        tokens=_counter(body),
    )  # fmt: skip


def ask_response(body: Body) -> Ask:
    """Responses: `max_output_tokens` covers reasoning as well; hosted tools may be called `max_tool_calls` times."""
    size, opaque = measured(body, _OPAQUE)
    most = limit_of(body, "max_tool_calls")
    calls: dict[str, int | None] = {}
    passes: int | None = 1
    unknown = [*opaque]
    for tool in tools_of(body):
        kind = str(tool.get("type") or "")
        if kind.startswith(_CLIENT_TOOLS):
            unknown += [] if kind in ("function", "custom") else [f"tool {kind}"]  # their definitions are not told
            continue
        name = "web_search" if kind.startswith("web_search") else _HOSTED.get(kind)
        if name is not None:
            calls[name] = most
        passes = None if most is None else 1 + most
        unknown.append(f"tool {kind}")
    if mapping(body.get("prompt")):
        unknown.append("prompt")
    effort = mapping(body.get("reasoning")).get("effort")
    return Ask(
        size,
        limit_of(body, "max_output_tokens"),
        thinks=bool(body.get("reasoning")) and effort != "none",
        opaque=tuple(unknown),
        calls=tuple(calls.items()),
        types=("cache_write_30m",),
        passes=passes,
        context=_context(body),
        tokens=_counter(body),
    )


def ask_embedding(body: Body) -> Ask:
    """Embeddings have input only."""
    size, opaque = measured(body, _OPAQUE)
    return Ask(
        size, inputs=_inputs_of(body.get("input")), opaque=opaque, produces=False, tokens=_counter(body)
    )  # fmt: skip


def _inputs_of(value: Any) -> int:
    """How many texts there are in a text, a list of texts, or one or more lists of tokens."""
    return len(value) if isinstance(value, list) and value and not isinstance(value[0], int) else 1


def ask_image(body: Body) -> Ask:
    """Pictures: what they cost depends on size and quality in a way that no field tells."""
    pictures = count_of(body.get("n"))
    return UNKNOWN._replace(
        choices=pictures, types=("output_image", "input_image"), expected=("output_image",),
        calls=(("images", pictures),),
    )  # fmt: skip


def ask_audio(body: Body) -> Ask:
    """Speech is billed by the text, or by tokens of sound; transcription by how long a sound is."""
    said = body.get("input")
    if isinstance(said, str):
        return UNKNOWN._replace(types=("output_audio",), calls=(("characters", len(said)),))
    return UNKNOWN._replace(types=("input_audio",), calls=(("audio_ms", None),))


def _counter(body: Body) -> Callable[[], int | None]:
    return lambda: tokens_of(body)


def _context(body: Mapping[str, Any]) -> Mapping[str, Any]:
    tier = body.get("service_tier")
    return {"service_tier": tier} if isinstance(tier, str) and tier != "auto" else {}
