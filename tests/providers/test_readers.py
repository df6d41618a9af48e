"""What providers' usage blocks become: exact where they are consistent, total and never negative where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from token_meter import Usage
from token_meter.providers import anthropic, google, openai
from token_meter.providers.base import RAW_USAGE_BYTES_MAX, Reading, fit, raw_numbers, whole
from token_meter.testing.provider.anthropic import usage as anthropic_wire
from token_meter.testing.provider.google import usage as google_wire
from token_meter.testing.provider.openai import usage as openai_wire
from token_meter.usage import QUANTITY_MAX

Read = Callable[[dict[str, Any]], Reading]


def only(readings: list[Reading]) -> Reading:
    [reading] = readings
    return reading


READERS: dict[str, Read] = {
    "chat": lambda block: only(openai.read_completion({"usage": block})),
    "responses": lambda block: only(openai.read_response({"usage": block})),
    "images": lambda block: only(openai.read_image({"usage": block})),
    "audio": lambda block: only(openai.read_audio({"usage": block})),
    "embeddings": lambda block: only(openai.read_embedding({"usage": block})),
    "messages": lambda block: anthropic.read_message({"usage": block})[0],
    "generate": lambda block: only(google.read_generation({"usageMetadata": block})),
    "gemini embeddings": lambda block: only(google.read_embedding({"usageMetadata": block})),
}

# ---- consistent blocks: the reverse of how the loopback provider writes them --------------------------------------

quantity = st.integers(min_value=0, max_value=2**40)


def usages(types: frozenset[str], *without: str) -> st.SearchStrategy[Usage]:
    return st.fixed_dictionaries(dict.fromkeys(sorted(types - set(without)), quantity)).map(Usage)


WIRE: dict[str, tuple[Callable[[Usage], Any], Read, st.SearchStrategy[Usage]]] = {
    "chat": (openai_wire.chat_block, READERS["chat"], usages(openai_wire.CHAT)),
    "completions": (openai_wire.completions_block, READERS["chat"], usages(openai_wire.COMPLETIONS)),
    "embeddings": (openai_wire.embeddings_block, READERS["embeddings"], usages(openai_wire.EMBEDDINGS)),
    "responses": (
        openai_wire.responses_block, READERS["responses"],
        usages(openai_wire.RESPONSES, "web_search", "file_search", "code_interpreter"),
    ),
    "images": (openai_wire.images_block, READERS["images"], usages(openai_wire.IMAGES)),
    "transcription": (openai_wire.transcription_block, READERS["audio"], usages(openai_wire.TRANSCRIPTION)),
    "duration": (
        openai_wire.duration_block, READERS["audio"],
        st.integers(min_value=0, max_value=10**6).map(lambda seconds: Usage(audio_ms=1000 * seconds)),
    ),
    "messages": (
        lambda usage: anthropic_wire.message_block(usage, {}, batch=False), READERS["messages"],
        usages(anthropic_wire.TYPES),
    ),
    "generate": (
        lambda usage: google_wire.generate_block(usage, vertex=False, tier="standard"), READERS["generate"],
        usages(google_wire.TYPES, "web_search"),
    ),
    "vertex": (
        lambda usage: google_wire.generate_block(usage, vertex=True, tier="flex"), READERS["generate"],
        usages(google_wire.TYPES, "web_search"),
    ),
    "gemini embeddings": (google_wire.embed_block, READERS["gemini embeddings"], usages(google_wire.EMBEDDING)),
}  # fmt: skip


@properties(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", WIRE)
def test_a_consistent_block_is_read_back_exactly(name: str, data: st.DataObject) -> None:
    write, read, strategy = WIRE[name]
    usage = data.draw(strategy)
    reading = read(dict(write(usage)))

    if reading.usage is None:  # a block without a number
        assert usage == Usage()
    else:
        assert (reading.usage, reading.anomalies) == (usage, [])


# ---- totals hold whatever the details claim -----------------------------------------------------------------------

odd = st.one_of(
    st.none(), st.booleans(), st.integers(min_value=-(10**30), max_value=10**30), st.floats(), st.text(max_size=5),
    st.sampled_from([QUANTITY_MAX, QUANTITY_MAX + 1, -1, 12.0, 1e300]), st.lists(st.integers(), max_size=2),
)  # fmt: skip
NAMES = [
    "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens",
    "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens", "reasoning_tokens", "prompt_tokens_details",
    "completion_tokens_details", "input_tokens_details", "output_tokens_details", "input_token_details",
    "cache_write_tokens_details", "ttl_12h_tokens", "thinking_tokens", "cache_creation", "ephemeral_1h_input_tokens",
    "cache_creation_input_tokens", "cache_read_input_tokens", "server_tool_use", "web_search_requests", "iterations",
    "type", "model", "seconds", "prompt_audio_seconds", "prompt_cache_hit_tokens", "num_cached_tokens",
    "server_side_tool_usage_details", "web_search_calls", "service_tier", "speed", "inference_geo",
    "promptTokenCount", "cachedContentTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount",
    "toolUsePromptTokenCount", "promptTokensDetails", "cacheTokensDetails", "candidatesTokensDetails", "modality",
    "tokenCount", "trafficType", "serviceTier",
]  # fmt: skip
garbage = st.recursive(
    odd,
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=8) | st.lists(inner, max_size=3),
    max_leaves=25,
)
garbage_blocks = st.dictionaries(st.sampled_from(NAMES), garbage, max_size=12)


def assert_sound(reading: Reading) -> None:
    if reading.usage is not None:
        assert all(type(count) is int and 0 < count <= QUANTITY_MAX for count in reading.usage.values())
        assert Usage(reading.usage) == reading.usage
    assert reading.model is None or type(reading.model) is str
    assert all(type(each) is str for each in reading.anomalies)
    assert all(value is not None for value in reading.price_context.values())


@properties(max_examples=120)
@given(block=garbage_blocks)
@pytest.mark.parametrize("name", READERS)
def test_no_block_raises_or_yields_a_quantity_that_is_none(name: str, block: dict[str, Any]) -> None:
    assert_sound(READERS[name](block))


DOCUMENT_NAMES = [
    "id", "model", "usage", "service_tier", "x_groq", "background", "status", "output", "tools", "tool_usage",
    "image_gen", "web_search", "num_requests", "action", "container_id", "usageMetadata", "modelVersion", "responseId",
    "candidates", "groundingMetadata", "webSearchQueries", "promptFeedback", "blockReason", "predictions", "embeddings",
    "statistics", "token_count", "_searches", "_cut_short", *NAMES,
]  # fmt: skip
STATES = st.sampled_from(["queued", "completed", "web_search_call", "code_interpreter_call", "image_generation"])
documents = st.dictionaries(
    st.sampled_from(DOCUMENT_NAMES),
    st.recursive(
        odd | STATES,
        lambda inner: st.dictionaries(st.sampled_from(DOCUMENT_NAMES), inner, max_size=6) | st.lists(inner, max_size=3),
        max_leaves=25,
    ),
    max_size=10,
)


@properties(max_examples=120)
@given(document=documents)
@pytest.mark.parametrize(
    "endpoint",
    [openai.CHAT, openai.RESPONSES, openai.RESPONSES_AGAIN, openai.IMAGES, openai.AUDIO, openai.EMBEDDINGS,
     anthropic.MESSAGES, google.GENERATE, google.EMBED],
    ids=lambda endpoint: f"{endpoint.operation} {endpoint.read.__name__}",
)  # fmt: skip
def test_no_document_raises(endpoint: Any, document: dict[str, Any]) -> None:
    for reading in endpoint.read(document):
        assert_sound(reading)


TOTALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chat": (("prompt_tokens", "completion_tokens"), ("prompt_tokens_details", "completion_tokens_details")),
    "responses": (("input_tokens", "output_tokens"), ("input_tokens_details", "output_tokens_details")),
    "images": (("input_tokens", "output_tokens"), ("input_tokens_details", "output_tokens_details")),
    "audio": (("input_tokens", "output_tokens"), ("input_token_details",)),
    "messages": (
        ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"),
        ("cache_creation", "output_tokens_details"),
    ),
    "generate": (
        ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount"),
        ("cachedContentTokenCount", "promptTokensDetails", "cacheTokensDetails", "candidatesTokensDetails"),
    ),
}
modalities = st.lists(
    st.fixed_dictionaries(
        {
            "modality": st.sampled_from(["TEXT", "IMAGE", "AUDIO", "VIDEO", "DOCUMENT", "SMELL", 1, 2, None]),
            "tokenCount": odd,
        }
    ),
    max_size=5,
)


@properties(max_examples=150)
@given(data=st.data())
@pytest.mark.parametrize("name", TOTALS)
def test_the_types_sum_to_the_providers_totals_whatever_the_details_say(name: str, data: st.DataObject) -> None:
    totals, details = TOTALS[name]
    block: dict[str, Any] = {each: data.draw(st.integers(min_value=0, max_value=2**40), each) for each in totals}
    for each in details:
        block[each] = data.draw(garbage_blocks | modalities | odd, each)
    usage = READERS[name](block).usage

    assert usage is not None
    assert usage.tokens == sum(block[each] for each in totals)


def test_a_total_that_does_not_add_up_is_flagged_and_the_counts_are_kept() -> None:
    for name, block, expected in (
        ("chat", {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 9}, Usage(input=5, output=2)),
        ("responses", {"input_tokens": 5, "output_tokens": 2, "total_tokens": 9}, Usage(input=5, output=2)),
        (
            "generate",
            {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 9},
            Usage(input=5, output=2),
        ),
    ):
        reading = READERS[name](block)
        assert (reading.usage, reading.anomalies) == (expected, ["total_mismatch"]), name


def test_reasoning_counted_beside_the_completion_is_recognised_by_the_total() -> None:
    block = {
        "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 3},
    }  # fmt: skip

    assert READERS["chat"](block).usage == Usage(input=5, output=2, reasoning=3)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("block", [{}, {"prompt_tokens": None, "input_tokens": None}, {"note": "n/a"}], ids=str)
def test_a_block_without_a_number_tells_no_counts(name: str, block: dict[str, Any]) -> None:
    assert READERS[name](block).usage is None


def test_zero_is_a_number() -> None:
    for name, block in (
        ("chat", {"prompt_tokens": 0, "completion_tokens": 0}), ("messages", {"input_tokens": 0, "output_tokens": 0}),
        ("responses", {"input_tokens": 0}), ("generate", {"promptTokenCount": 0}),
    ):  # fmt: skip
        reading = READERS[name](block)
        assert (reading.usage, reading.anomalies) == (Usage(), []), name


# ---- the two helpers everything rests on --------------------------------------------------------------------------


@properties(max_examples=60)
@given(odd)
def test_a_quantity_is_whole_and_bounded_and_oddities_are_flagged(value: Any) -> None:
    anomalies: list[str] = []
    count = whole(value, anomalies, "name")

    assert type(count) is int and 0 <= count <= QUANTITY_MAX
    plain = value is None or (type(value) is int and 0 <= value <= QUANTITY_MAX)
    integral = isinstance(value, float) and value.is_integer() and 0 <= value <= QUANTITY_MAX
    assert bool(anomalies) == (not plain and not integral)
    assert count == (value if plain and value is not None else int(value) if integral else count)


counts = st.integers(min_value=0, max_value=100)


@properties(max_examples=60)
@given(counts, st.dictionaries(st.sampled_from("abcd"), counts))
def test_parts_and_what_is_left_are_the_total(total: int, parts: dict[str, int]) -> None:
    anomalies: list[str] = []
    fitted = fit(total, parts, "rest", anomalies)

    assert sum(fitted.values()) == total
    assert all(count > 0 for count in fitted.values())
    assert bool(anomalies) == (sum(parts.values()) > total)
    assert all(fitted.get(name, 0) <= count for name, count in parts.items())


@properties(max_examples=60)
@given(garbage_blocks | st.dictionaries(st.text(max_size=80), garbage, max_size=80))
def test_only_numbers_and_words_of_a_block_are_kept(block: dict[str, Any]) -> None:
    def check(value: Any, name: str = "") -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                assert key.isascii() and " " not in key and len(key) <= 64
                check(each, key)
        elif isinstance(value, list):
            for each in value:
                check(each, name)
        else:
            assert value is None or isinstance(value, (int, float)) or name in ("type", "model", "speed", "service_tier",
                "inference_geo", "modality", "trafficType", "serviceTier"), (name, value)  # fmt: skip

    check(raw_numbers(block))
    assert RAW_USAGE_BYTES_MAX == 4096
