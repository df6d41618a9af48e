"""LiteLLM's records: spend-log rows and callback payloads, read into disjoint quantities."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.partners.kit import SPEND_LOG, read, varied
from token_meter.event import MeterEvent
from token_meter.partners.base import Skip, Unreadable
from token_meter.usage import Usage


def usage_of(**block: Any) -> MeterEvent:
    """A spend-log row whose provider said this, with the totals in the columns too."""
    totals = {name: block.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return read("litellm", varied(SPEND_LOG, metadata__usage_object=block, **totals))


def test_a_spend_log_row_is_an_event() -> None:
    event = read("litellm", SPEND_LOG)

    assert event == MeterEvent(
        id=event.id,
        time=datetime(2026, 11, 20, 10, 0, 2, 500_000, UTC),
        usage=Usage(input=500, cache_read=300, cache_write_5m=50, cache_write_1h=150, output=380, reasoning=120),
        duration_ms=2500,
        provider="anthropic",
        publisher="anthropic",
        model="claude-sonnet-4-5-20250929",
        model_requested="sonnet",
        operation="chat",
        price_context={"context_tokens": 1000},
        response_id="chatcmpl-1",
        host="api.anthropic.com",
        raw_usage=event.raw_usage,
    )
    assert event.raw_usage is not None and event.raw_usage["cost"] == 0.0123
    assert event.usage.tokens == 1500


def test_a_callback_payload_of_the_same_call_is_the_same_event() -> None:
    payload = {
        "id": "chatcmpl-1",
        "litellm_call_id": SPEND_LOG["litellm_call_id"],
        "call_type": "acompletion",
        "status": "success",
        "model": "claude-sonnet-4-5-20250929",
        "model_group": "sonnet",
        "custom_llm_provider": "anthropic",
        "api_base": "https://api.anthropic.com/v1/messages",
        "startTime": 1795168800.0,
        "endTime": 1795168802.5,
        "response_cost": 0.0123,
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "total_tokens": 1500,
        "cache_hit": None,
        "end_user": "acme",
        "metadata": {"usage_object": SPEND_LOG["metadata"]["usage_object"]},
        "messages": [{"role": "user", "content": "the secret of the prompt"}],
    }

    event = read("litellm", payload)

    assert event == read("litellm", SPEND_LOG)
    assert "secret" not in str(event.to_json())


@pytest.mark.parametrize(
    ("model", "block", "expected"),
    [
        pytest.param(
            "gpt-4o",
            {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
            Usage(input=10, output=20),
            id="no details",
        ),
        pytest.param(
            "gpt-5",
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 10, "cache_write_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 8},
            },
            Usage(cache_read=40, cache_write_30m=5, input_audio=10, input=45, output_audio=8, reasoning=20, output=22),
            id="openai, whose cache writes live for half an hour",
        ),
        pytest.param(
            "gemini-2.5-pro",  # 80 pictures of which 60 are cached, beside 20 of text: 20 + 60 + 20
            {
                "prompt_tokens": 100,
                "completion_tokens": 30,
                "total_tokens": 130,
                "prompt_tokens_details": {
                    "cached_tokens": 60,
                    "cached_tokens_details": {"image_tokens": 60, "text_tokens": 0},
                    "image_tokens": 80,
                    "text_tokens": 20,
                },
                "completion_tokens_details": {"reasoning_tokens": 10, "text_tokens": 20},
            },
            Usage(cache_read_image=60, input_image=20, input=20, reasoning=10, output=20),
            id="gemini, cached pictures",
        ),
        pytest.param(
            "deepseek-chat",
            {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "prompt_cache_hit_tokens": 64},
            Usage(cache_read=64, input=36, output=5),
            id="deepseek, cached beside the details",
        ),
        pytest.param(
            "grok-4",
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 115,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            Usage(input=10, reasoning=100, output=5),
            id="reasoning beside the completion, by the provider's own total",
        ),
        pytest.param(
            "claude-sonnet-4-5",
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "server_tool_use": {"web_search_requests": 3},
            },
            Usage(input=10, output=5, web_search=3),
            id="searches",
        ),
        pytest.param(
            "claude-sonnet-4-5",
            {
                "input_tokens": 10,
                "output_tokens": 50,
                "cache_read_input_tokens": 300,
                "cache_creation_input_tokens": 200,
                "cache_creation": {"ephemeral_1h_input_tokens": 150, "ephemeral_5m_input_tokens": 50},
            },
            Usage(input=10, cache_read=300, cache_write_1h=150, cache_write_5m=50, output=50),
            id="passed through: Anthropic's own block, whose counts are disjoint",
        ),
        pytest.param(
            "gpt-5",
            {
                "input_tokens": 100,
                "output_tokens": 50,
                "total_tokens": 150,
                "input_tokens_details": {"cached_tokens": 60},
                "output_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(cache_read=60, input=40, reasoning=30, output=20),
            id="passed through: a block of the Responses API",
        ),
        pytest.param("whisper-1", {"type": "duration", "seconds": 12.5}, Usage(audio_ms=12_500), id="seconds of audio"),
        pytest.param("dall-e-3", {"output_image_count": 2}, Usage(images=2), id="pictures without tokens"),
        pytest.param(
            "gpt-image-1",
            {
                "prompt_tokens": 10,
                "completion_tokens": 1000,
                "total_tokens": 1010,
                "completion_tokens_details": {"image_tokens": 1000},
                "output_image_count": 1,
            },
            Usage(input=10, output_image=1000),
            id="pictures that are counted in tokens",
        ),
    ],
)
def test_token_types_are_disjoint(model: str, block: dict[str, Any], expected: Usage) -> None:
    totals = {name: block.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}

    event = read("litellm", varied(SPEND_LOG, model=model, metadata__usage_object=block, **totals))

    assert event.usage == expected
    assert event.anomalies == ()
    assert event.status == "complete"


def test_parts_that_exceed_their_total_are_cut_and_flagged() -> None:
    event = usage_of(
        prompt_tokens=10, completion_tokens=5, total_tokens=15, prompt_tokens_details={"cached_tokens": 99}
    )

    assert event.usage == Usage(cache_read=10, output=5)
    assert event.anomalies == ("parts_exceed_total:input",)


def test_a_total_that_is_no_sum_is_flagged() -> None:
    event = usage_of(prompt_tokens=10, completion_tokens=5, total_tokens=99)

    assert event.usage == Usage(input=10, output=5)
    assert event.anomalies == ("total_mismatch",)


def test_a_row_of_an_old_version_knows_only_totals_and_says_so() -> None:
    event = read("litellm", varied(SPEND_LOG, metadata="{}"))

    assert event.usage == Usage(input=1000, output=500)
    assert event.anomalies == ("only_totals",)


def test_details_of_versions_that_kept_them_apart_from_the_totals_count() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 400}, "cache_read_input_tokens": 400}

    event = read("litellm", varied(SPEND_LOG, metadata={"additional_usage_values": details}))

    assert event.usage == Usage(cache_read=400, input=600, output=500)
    assert event.anomalies == ()


def test_one_total_without_a_split_is_an_estimate() -> None:
    event = read("litellm", varied(SPEND_LOG, metadata={}, prompt_tokens=0, completion_tokens=0, total_tokens=70))

    assert (event.usage, event.status, event.estimator) == (Usage(input=70), "estimated", "all_input")
    assert "unsplit_total" in event.anomalies


NOTHING: dict[str, Any] = {"metadata": {}, "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_what_was_charged_and_not_counted_is_seen_by_a_human() -> None:
    event = read("litellm", varied(SPEND_LOG, **NOTHING, spend=0.04))

    assert (event.usage, event.status, event.anomalies) == (Usage(), "unmetered", ("no_counts",))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cache_hit": "True"}, "answered from the gateway's cache"),
        ({"cache_hit": True}, "answered from the gateway's cache"),
        ({"status": "failure", **NOTHING, "spend": 0}, "failed before anything was consumed"),
        ({**NOTHING, "spend": 0.0}, "nothing was counted or charged"),
    ],
)
def test_rows_that_consumed_nothing_are_skipped(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Skip, match=reason):
        read("litellm", varied(SPEND_LOG, **fields))


def test_a_call_that_failed_in_the_middle_is_partial() -> None:
    assert read("litellm", varied(SPEND_LOG, status="failure")).status == "partial"


@pytest.mark.parametrize(
    ("fields", "provider", "host", "model"),
    [
        ({"custom_llm_provider": "vertex_ai", "api_base": ""}, "vertex", None, "claude-sonnet-4-5-20250929"),
        ({"custom_llm_provider": "together_ai", "api_base": None}, "together", None, "claude-sonnet-4-5-20250929"),
        (
            {"custom_llm_provider": "bedrock", "api_base": "", "model": "bedrock/us.anthropic.claude-sonnet-4-5"},
            "bedrock",
            None,
            "us.anthropic.claude-sonnet-4-5",
        ),
        # A host that is known says better who is billed than the dialect it speaks.
        (
            {"custom_llm_provider": "openai", "api_base": "https://api.deepseek.com/v1", "model": "deepseek-chat"},
            "deepseek",
            "api.deepseek.com",
            "deepseek-chat",
        ),
        (
            {"custom_llm_provider": "openai", "api_base": "http://vllm.internal:8000/v1", "model": "qwen3"},
            "openai",
            "vllm.internal:8000",
            "qwen3",
        ),
        ({"custom_llm_provider": "My Own", "api_base": "::::"}, "my-own", None, "claude-sonnet-4-5-20250929"),
    ],
)
def test_providers_have_our_names(fields: dict[str, Any], provider: str, host: str | None, model: str) -> None:
    event = read("litellm", varied(SPEND_LOG, **fields))

    assert (event.provider, event.host, event.model) == (provider, host, model)


@pytest.mark.parametrize(
    ("call_type", "operation"),
    [("acompletion", "chat"), ("aembedding", "embeddings"), ("anthropic_messages", "messages"), ("new_one", "new_one")],
)
def test_operations_have_our_names(call_type: str, operation: str) -> None:
    assert read("litellm", varied(SPEND_LOG, call_type=call_type)).operation == operation


def test_a_batch_is_priced_as_one() -> None:
    event = read("litellm", varied(SPEND_LOG, call_type="aretrieve_batch"))

    assert event.operation == "batch"
    assert event.price_context["batch"] is True


def test_calls_with_one_id_are_told_apart_by_the_id_of_the_call() -> None:
    first = read("litellm", varied(SPEND_LOG, request_id="const", litellm_call_id="call-a"))
    second = read("litellm", varied(SPEND_LOG, request_id="const", litellm_call_id="call-b"))

    assert first.id != second.id


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"request_id": ""}, "request_id is '', which identifies nothing"),
        ({"request_id": 7}, "request_id is 7, which identifies nothing"),
        ({"prompt_tokens": -1}, "prompt_tokens is -1, which is no quantity"),
        ({"prompt_tokens": True}, "prompt_tokens is True, which is no quantity"),
        ({"prompt_tokens": "ten"}, "prompt_tokens is 'ten', which is no quantity"),
        ({"prompt_tokens": 10**30}, "which is no quantity"),
        ({"prompt_tokens": 0.5}, "which is no quantity"),
        ({"endTime": "yesterday"}, "endTime is 'yesterday', which is no time"),
        ({"endTime": "1970-01-01T00:00:00Z"}, "which cannot be when this happened"),
        ({"endTime": "2999-01-01T00:00:00Z"}, "which cannot be when this happened"),
        ({"metadata": {}, "prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, "has no counts"),
        ({"metadata": "{broken"}, "metadata is no JSON"),
        ({"metadata": [1]}, "metadata is .* which is no object"),
    ],
)
def test_a_row_that_cannot_be_right_is_unreadable(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read("litellm", varied(SPEND_LOG, **fields))


def test_odd_details_leave_an_anomaly_and_keep_the_total() -> None:
    event = usage_of(
        prompt_tokens=10,
        completion_tokens=5,
        total_tokens=15,
        prompt_tokens_details={"cached_tokens": -3},
        completion_tokens_details={"reasoning_tokens": "many"},
    )

    assert event.usage == Usage(input=10, output=5)
    assert set(event.anomalies) == {"odd_quantity:cached_tokens", "odd_quantity:reasoning_tokens"}


def test_text_of_a_csv_cell_counts_like_json() -> None:
    cells = {name: value if isinstance(value, str) else repr(value) for name, value in SPEND_LOG.items()}
    cells["metadata"] = json.dumps(SPEND_LOG["metadata"])
    cells["startTime"], cells["endTime"] = "2026-11-20 10:00:00", "2026-11-20 10:00:02.5+00"

    assert read("litellm", cells) == read("litellm", SPEND_LOG)
