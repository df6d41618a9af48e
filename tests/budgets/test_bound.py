"""What a request may take, read out of it before it is sent: three dialects, the worst case and the likely one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokeniser_kit import Gated, cookbook_tokens, loaded
from token_meter.budgets.bound import OPAQUE_UNLEARNED, OUTPUT_UNLEARNED, TOKENS_MAX, Bound, Unbounded, likely, worst
from token_meter.budgets.learned import ENOUGH, SAMPLES_MAX, Learned, Observed, Sample
from token_meter.providers.anthropic import ask_message
from token_meter.providers.asking import ADDED, NODES_MAX, Ask, measured
from token_meter.providers.google import ask_generation
from token_meter.providers.openai_asks import (
    ask_audio,
    ask_chat,
    ask_completion,
    ask_embedding,
    ask_image,
    ask_response,
)

MESSAGES = [{"role": "user", "content": "Hello"}]


def test_chat_names_its_maximum_and_its_choices():
    ask = ask_chat({"model": "m", "messages": MESSAGES, "max_completion_tokens": 30, "max_tokens": 20, "n": 3})

    assert (ask.output_max, ask.choices, ask.thinks, ask.opaque) == (20, 3, False, ())
    assert worst(ask, 1000) == Bound(ask.size + ADDED, 60, {})


@pytest.mark.parametrize(
    ("ask", "opaque"),
    [
        (ask_chat({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]}), "image_url"),
        (ask_response({"input": "Hello", "previous_response_id": "resp_1"}), "previous_response_id"),
        (ask_response({"input": "Hello", "conversation": "conv_1"}), "conversation"),
        (ask_response({"input": [{"type": "input_file", "file_id": "file_1"}]}), "file_id"),
        (ask_response({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (ask_message({"messages": [{"content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}],
                      "max_tokens": 1}), "file_id"),
        (ask_message({"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": "u"}}]}],
                      "max_tokens": 1}), "a file by its address"),
        (ask_generation({"contents": [{"parts": [{"fileData": {"fileUri": "gs://x"}}]}]}), "fileData"),
        (ask_generation({"contents": [], "cachedContent": "cachedContents/1"}), "cachedContent"),
        (ask_chat({"messages": [{"content": b"\xff\xd8"}]}), "inline file"),
    ],
)  # fmt: skip
def test_what_nobody_can_know_counts_as_the_context_window(ask, opaque):
    assert opaque in ask.opaque
    bound = worst(ask._replace(output_max=10), 1000)
    assert isinstance(bound, Bound) and bound.input == 1000
    assert isinstance(worst(ask._replace(output_max=10), None), Unbounded)


@pytest.mark.parametrize("ask", [
    ask_response({"input": "Hello", "tools": [{"type": "web_search"}], "max_output_tokens": 5}),
    ask_response({"input": "Hello", "tools": [{"type": "mcp"}], "max_output_tokens": 5}),
    ask_chat({"messages": MESSAGES, "web_search_options": {}, "max_tokens": 5}),
    ask_message({"messages": MESSAGES, "max_tokens": 5, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ask_message({"messages": MESSAGES, "max_tokens": 5, "mcp_servers": [{"url": "https://x"}]}),
    ask_generation({"contents": [], "tools": [{"googleSearch": {}}]}),
])  # fmt: skip
def test_tools_that_may_run_for_ever_have_no_worst_case(ask):
    assert isinstance(worst(ask, 1000), Unbounded)


def test_limited_tools_read_the_context_once_more_for_each_call():
    response = ask_response(
        {"input": "x", "tools": [{"type": "web_search"}], "max_tool_calls": 2, "max_output_tokens": 5}
    )
    message = ask_message({
        "messages": MESSAGES, "max_tokens": 5, "tools": [{"type": "web_search_20250305", "max_uses": 2}],
    })  # fmt: skip

    assert worst(response, 1000) == worst(message, 1000) == Bound(3000, 5, {"web_search": 2})


def test_own_functions_are_no_tools_of_the_provider():
    tools = [{"type": "function", "name": "f", "parameters": {}}]

    assert worst(ask_response({"input": "x", "tools": tools, "max_output_tokens": 5}), 1000).output == 5
    assert (
        ask_message({"messages": MESSAGES, "max_tokens": 5, "tools": [{"name": "f", "input_schema": {}}]}).opaque == ()
    )
    assert ask_generation({"contents": [], "tools": [{"functionDeclarations": []}]}).opaque == ()


PICTURE = "iVBORw0KGgo" * 1000


@pytest.mark.parametrize("ask", [
    ask_message({"max_tokens": 1, "messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}]}]}),
    ask_generation({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": PICTURE}}]}]}),
    ask_chat({"messages": [{"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]}]}),
    ask_chat({"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}}]}]}),
    ask_response({"input": [{"content": [{"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"}]}]}),
    ask_response({"input": [{"type": "computer_call_output", "output": f"data:image/png;base64,{PICTURE}"}]}),
])  # fmt: skip
def test_a_file_within_the_request_is_not_measured_by_its_bytes(ask):
    """A white page of 2,000 by 2,000 is a few hundred bytes, and 1,600 tokens; a photograph is the other way round."""
    assert ask.opaque and ask.size < 1_000
    assert worst(ask._replace(output_max=10), 100_000) == Bound(100_000, 10, {})
    assert likely(ask, 100_000, learned(), customer="acme", model="m").input < OPAQUE_UNLEARNED + 1_000


def test_what_a_provider_adds_for_tools_is_reserved():
    """Anthropic: up to 530 tokens of system text, up to 735 for each tool that is named by its type."""

    def added(**more):
        ask = ask_message({"messages": MESSAGES, "max_tokens": 5, **more})
        bound = worst(ask, 100_000)
        return bound.input - ask.size

    assert added() == ADDED
    assert added(tools=[{"name": "f", "input_schema": {}}]) >= 530
    assert added(tools=[{"type": "bash_20250124", "name": "bash"}]) >= 530 + 735
    assert added(output_config={"format": {}}) >= 530


@pytest.mark.parametrize("more", [
    {"context_management": {"edits": [{"type": "compact_20260112"}]}},
    {"fallbacks": [{"model": "claude-haiku-4-5"}]},
    {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-7", "max_uses": 1}]},
    {"tools": [{"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}]},
])  # fmt: skip
def test_what_has_other_models_read_or_reads_again_has_no_worst_case(more):
    assert isinstance(worst(ask_message({"messages": MESSAGES, "max_tokens": 5, **more}), 1000), Unbounded)


def test_tools_that_the_callers_machine_runs_do_not_read_again():
    tools = [{"type": "local_shell"}, {"type": "apply_patch"}]

    ask = ask_response({"input": "x", "tools": tools, "max_output_tokens": 5})

    assert worst(ask, 1000) == Bound(1000, 5, {})


def test_a_tokeniser_counts_the_input_where_that_is_wanted():
    words = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello " * 1000}], "max_tokens": 5}
    encoding = Gated()

    def counted(ask, *, tokenize=True):
        return likely(ask, 100_000, learned(), customer="acme", model="gpt-4o", tokenize=tokenize).input

    with loaded(encoding):
        assert counted(ask_chat(words)) == cookbook_tokens(words["messages"], encoding)
        assert counted(ask_chat(words), tokenize=False) > 3000
        # Nobody has a tokeniser for this one, and one that breaks is none.
        assert counted(ask_chat({**words, "model": "llama-3"})) > 3000
        encoding.error = RuntimeError("broken")
        assert counted(ask_chat(words)) > 3000
        assert counted(ask_message(words)) > 3000


def test_legacy_completions_and_embeddings():
    assert ask_completion({"prompt": ["a", "b"], "best_of": 3}).choices == 6
    assert worst(ask_completion({"prompt": "a"}), None).output == 16
    assert worst(ask_embedding({"input": ["a", "b"]}), None).output == 0


def test_reasoning_is_seen():
    assert ask_chat({"messages": MESSAGES, "reasoning_effort": "high"}).thinks
    assert not ask_chat({"messages": MESSAGES, "reasoning_effort": "none"}).thinks
    assert ask_response({"input": "x", "reasoning": {"effort": "low"}}).thinks
    assert ask_message({"messages": MESSAGES, "max_tokens": 9, "thinking": {"type": "enabled"}}).thinks
    assert not ask_message({"messages": MESSAGES, "max_tokens": 9, "thinking": {"type": "disabled"}}).thinks
    assert ask_generation({"contents": [], "generationConfig": {"thinkingConfig": {"thinkingBudget": -1}}}).thinks


@given(st.recursive(st.text() | st.integers() | st.none() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(
    st.text(), inner), max_leaves=40))  # fmt: skip
def test_measuring_takes_whatever_comes_and_never_less_than_the_text(document):
    body = {"messages": document, "model": "m"}

    size, _ = measured(body, frozenset())

    assert size is not None and size >= _text(document)
    for ask in (ask_chat, ask_response, ask_completion, ask_embedding, ask_message, ask_generation):
        ask({"messages": document, "tools": document, "generationConfig": document, "thinking": document})


def _text(value):
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(_text(each) for each in value.values())
    return sum(map(_text, value)) if isinstance(value, list) else 0


def test_a_request_of_too_many_fields_counts_as_the_context_window():
    ask = ask_chat({"messages": [None] * (NODES_MAX + 1), "max_tokens": 5})

    assert ask.size is None
    assert worst(ask, 1000).input == 1000


def learned(*outputs, recall=()):
    made = Learned(lambda customer, model: recall)
    for output in outputs:
        made.observe("acme", "m", Observed(100, output, 400))
    return made


def test_what_is_likely_is_learned_from_the_customers_own_calls():
    ask = Ask(400)

    def output(known, **more):
        return likely(ask._replace(**more), 100_000, known, customer="acme", model="m").output

    assert output(learned()) == OUTPUT_UNLEARNED
    assert output(learned(10, 30, 20)) == 30
    assert output(learned(*range(1, 201))) == 198  # nearest rank
    assert output(learned(500), output_max=70) == 70
    assert output(learned(50), choices=3) == 150
    assert output(learned(recall=[Observed(5, 77)])) == 77
    # Reasoning that nobody sees.
    assert output(learned(50), thinks=True) == 100_000
    assert output(learned(50), thinks=True, output_max=300) == 300
    assert output(learned(*[50] * ENOUGH), thinks=True) == 50


def test_the_input_is_reckoned_by_the_models_own_ratio():
    def counted(known, **more):
        return likely(Ask(4000)._replace(**more), 100_000, known, customer="acme", model="m").input

    assert counted(learned()) == 2000
    assert counted(learned(*[1] * ENOUGH)) == 1000  # 100 tokens for 400 bytes
    assert counted(learned(), opaque=("conversation",)) == 2000 + OPAQUE_UNLEARNED
    assert counted(learned(recall=[Observed(9_000, 1)]), opaque=("conversation",)) == 9_000


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=700))
def test_the_percentile_of_a_sample_is_one_of_its_values_and_never_far_behind(values):
    sample = Sample()
    for value in values:
        sample.add(value)

    kept = sorted(values[-SAMPLES_MAX:])
    assert len(sample) == len(kept)
    assert sample.percentile == kept[-(-99 * len(kept) // 100) - 1]


def test_each_input_has_a_context_window_of_its_own():
    many = ask_embedding({"input": ["word " * 100] * 50})

    assert worst(many, 200) == Bound(50 * 200, 0, {})
    assert likely(many, 200, learned(), customer="acme", model="m").input == 50 * 200
    assert worst(ask_completion({"prompt": ["word " * 100] * 20}), 200).input == 20 * 200
    assert worst(ask_embedding({"input": [1, 2, 3]}), 200).input <= 200


def test_numbers_count_as_they_are_written():
    floats = ask_chat({"messages": [0.1234567890123456] * 100})
    whole = ask_chat({"messages": [10**300]})

    assert floats.size >= 1_800 and whole.size >= 300


def test_nothing_that_a_request_names_passes_what_a_database_keeps():
    ask = ask_chat({"messages": MESSAGES, "max_tokens": 10**19, "n": 10**400})

    assert worst(ask, None).tokens == likely(ask, None, learned(), customer="acme", model="m").tokens == TOKENS_MAX


def test_sound_and_pictures():
    spoken = ask_audio({"model": "tts-1", "input": "Hello"})
    heard = ask_audio({"model": "whisper-1"})
    drawn = ask_image({"model": "dall-e-3", "prompt": "a cat", "n": 2})

    assert likely(spoken, None, learned(), customer="a", model="m").calls == {"characters": 5}
    assert likely(heard, None, learned(), customer="a", model="m").calls == {"audio_ms": 600_000}
    assert isinstance(worst(heard, 1000), Unbounded)
    assert (drawn.choices, drawn.calls, drawn.expected) == (2, (("images", 2),), ("output_image",))
