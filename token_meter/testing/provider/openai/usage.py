"""OpenAI's usage blocks, written from disjoint token types: the reverse of what a meter does."""

from __future__ import annotations

from typing import Any, Final

from token_meter.testing.provider.answer import EFFORT_TOKENS, Prompt
from token_meter.testing.provider.state import Block
from token_meter.usage import Usage

CHAT: Final = frozenset(
    {"input", "input_audio", "input_image", "cache_read", "cache_write_30m", "output", "output_audio", "reasoning"}
)
RESPONSES: Final = frozenset(
    {"input", "cache_read", "cache_write_30m", "cache_write_12h", "output", "reasoning"}
    | {"web_search", "file_search", "code_interpreter"}
)
COMPLETIONS: Final = frozenset({"input", "output"})
EMBEDDINGS: Final = frozenset({"input"})
IMAGES: Final = frozenset({"input", "input_image", "output", "output_image"})
TRANSCRIPTION: Final = frozenset({"input", "input_audio", "output"})
SPEECH: Final = frozenset({"input", "output_audio"})


def chat_block(usage: Usage) -> Block:
    """Everything is contained in two totals; a chat does not say how long a cache write lives."""
    written = usage.cache_write_30m
    prompt = usage.input + usage.input_audio + usage.input_image + usage.cache_read + written
    completion = usage.output + usage.output_audio + usage.reasoning
    details: dict[str, Any] = {"cached_tokens": usage.cache_read, "audio_tokens": usage.input_audio}
    if usage.input_image:
        details |= {"image_tokens": usage.input_image, "text_tokens": prompt - usage.input_image - usage.input_audio}
    if written:
        details["cache_write_tokens"] = written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": usage.output_audio,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def responses_block(usage: Usage) -> Block:
    """Cache reads and writes are contained in the input, reasoning in the output."""
    written = usage.cache_write_30m + usage.cache_write_12h
    read_and_written: dict[str, Any] = {"cached_tokens": usage.cache_read, "cache_write_tokens": written}
    if written:
        ttl = {"ttl_30m_tokens": usage.cache_write_30m, "ttl_12h_tokens": usage.cache_write_12h}
        read_and_written["cache_write_tokens_details"] = ttl
    given = usage.input + usage.cache_read + written
    made = usage.output + usage.reasoning
    return {
        "input_tokens": given,
        "input_tokens_details": read_and_written,
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": given + made,
    }


def completions_block(usage: Usage) -> Block:
    """The legacy endpoint has no details."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }


def embeddings_block(usage: Usage) -> Block:
    """Only input."""
    return {"prompt_tokens": usage.input, "total_tokens": usage.input}


def images_block(usage: Usage) -> Block:
    """Text and image tokens, in and out."""
    given, made = usage.input + usage.input_image, usage.output + usage.output_image
    return {
        "input_tokens": given,
        "input_tokens_details": {"text_tokens": usage.input, "image_tokens": usage.input_image},
        "output_tokens": made,
        "output_tokens_details": {"text_tokens": usage.output, "image_tokens": usage.output_image},
        "total_tokens": given + made,
    }


def transcription_block(usage: Usage) -> Block:
    """Models that count tokens."""
    given = usage.input + usage.input_audio
    return {
        "type": "tokens",
        "total_tokens": given + usage.output,
        "input_tokens": given,
        "input_token_details": {"text_tokens": usage.input, "audio_tokens": usage.input_audio},
        "output_tokens": usage.output,
    }


def duration_block(usage: Usage) -> Block:
    """Models that count seconds, rounded up."""
    return {"type": "duration", "seconds": -(-usage.audio_ms // 1000)}


def speech_block(usage: Usage) -> Block:
    """Text in, audio out."""
    return {
        "input_tokens": usage.input,
        "output_tokens": usage.output_audio,
        "total_tokens": usage.input + usage.output_audio,
    }


def prompt_usage(prompt: Prompt, cache_options: Any) -> Usage:
    """Input by the rule of `answer.py`; with `prompt_cache_options` the rest of the text is written to the cache."""
    read = prompt.cached
    usage = prompt.usage(read=read)
    if not isinstance(cache_options, dict) or not usage.input:
        return usage
    ttl = "cache_write_12h" if cache_options.get("ttl") == "12h" else "cache_write_30m"
    quantities = {**usage, ttl: usage.input}
    del quantities["input"]
    return Usage(quantities)


def reasoning_tokens(effort: Any) -> int:
    """What the effort asked for costs; nothing if none was."""
    return EFFORT_TOKENS.get(str(effort), 0)
