"""OpenRouter, Vercel and Cloudflare: their records, read into disjoint quantities."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.partners.kit import ACTIVITY, EXPORT, GENERATION, LOG, PUSH, REPORT, VERCEL_GENERATION, read, varied
from token_meter.event import MeterEvent
from token_meter.partners.base import Skip, Unreadable
from token_meter.usage import Usage

EXPORTED = list(csv.DictReader(io.StringIO(EXPORT)))

# ---- OpenRouter ---------------------------------------------------------------------------------------------------


def test_a_generation_is_an_event() -> None:
    event = read("openrouter", GENERATION)

    assert event == MeterEvent(
        id=event.id,
        time=datetime(2026, 11, 20, 10, 0, 0, 433_273, UTC),
        usage=Usage(cache_read=40, input=60, reasoning=20, output=30),
        duration_ms=1200,
        provider="openrouter",
        publisher="openai",
        model="openai/gpt-5-mini",
        operation="chat",
        price_context={"service_tier": "priority", "upstream": "openai", "context_tokens": 100},
        response_id="gen-3bhGkxlo4XFrqiabUM7NDtwDzWwG",
        host="openrouter.ai",
        raw_usage=event.raw_usage,
    )
    assert event.raw_usage == {
        "tokens_prompt": 95, "tokens_completion": 48, "native_tokens_prompt": 100, "native_tokens_completion": 50,
        "native_tokens_reasoning": 20, "native_tokens_cached": 40, "native_tokens_completion_images": 0, "cost": 0.0015,
    }  # fmt: skip


def test_a_row_of_the_export_is_the_same_event_as_the_generation() -> None:
    event = read("openrouter", EXPORTED[0])

    assert event.id == read("openrouter", varied(GENERATION, id="gen-1")).id
    assert event.usage == Usage(cache_read=40, input=60, reasoning=20, output=30)
    assert (event.time, event.duration_ms) == (datetime(2026, 11, 20, 2, 37, 51, 271_000, UTC), 1200)
    assert event.anomalies == ()


def test_a_price_for_writing_to_the_cache_flags_what_is_not_told() -> None:
    event = read("openrouter", EXPORTED[1])

    assert (event.usage, event.status) == (Usage(input=900, output=10), "partial")  # it was cancelled
    assert event.anomalies == ("cache_write_unknown",)
    assert read("openrouter", varied(GENERATION, cache_discount=-0.1)).anomalies == ("cache_write_unknown",)


def test_with_a_key_of_ones_own_the_provider_behind_sets_the_price() -> None:
    event = read("openrouter", varied(GENERATION, is_byok=True, provider_name="Amazon Bedrock"))

    assert event.provider == "bedrock"
    assert "upstream" not in event.price_context


def test_pictures_are_part_of_the_completion() -> None:
    event = read("openrouter", varied(GENERATION, native_tokens_completion_images=25, native_tokens_reasoning=0))

    assert event.usage == Usage(cache_read=40, input=60, output_image=25, output=25)


def test_counts_of_the_provider_go_before_those_of_openrouter() -> None:
    event = read("openrouter", varied(GENERATION, native_tokens_prompt=None, native_tokens_completion=None))

    assert event.usage == Usage(cache_read=40, input=55, reasoning=20, output=28)


def test_an_answer_out_of_a_routers_cache_is_skipped() -> None:
    with pytest.raises(Skip, match="cache"):
        read("openrouter", varied(GENERATION, response_cache_source_id="gen-0"))


def test_a_generation_that_was_charged_and_not_counted_is_unmetered() -> None:
    nothing = dict.fromkeys((name for name in GENERATION if "tokens_" in name), 0)

    event = read("openrouter", varied(GENERATION, **nothing))

    assert (event.status, event.usage, event.anomalies) == ("unmetered", Usage(), ("no_counts",))


def test_a_day_is_one_event_for_many_calls_and_says_so() -> None:
    event = read("openrouter", ACTIVITY)

    assert event.time == datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert event.usage == Usage(cache_read=200, input=300, reasoning=25, output=100)
    assert (event.operation, event.anomalies) == ("aggregate", ("aggregated",))
    assert (event.model, event.model_requested) == ("openai/gpt-5-mini-2025-08-07", "openai/gpt-5-mini")
    assert event.raw_usage is not None and event.raw_usage["requests"] == 5


def test_cached_tokens_that_exceed_the_prompt_stand_beside_it() -> None:
    event = read("openrouter", varied(ACTIVITY, prompt_tokens=100, cached_tokens=200))

    assert event.usage == Usage(input=100, cache_read=200, reasoning=25, output=100)
    assert event.anomalies == ("aggregated", "cached_beside_prompt")


def test_days_of_one_key_are_others_than_those_of_all() -> None:
    assert read("openrouter", ACTIVITY).id != read("openrouter", {**ACTIVITY, "api_key_hash": "ab12"}).id
    assert read("openrouter", ACTIVITY).id != read("openrouter", varied(ACTIVITY, date="2026-11-19")).id


# ---- Vercel -------------------------------------------------------------------------------------------------------


def test_a_generation_of_vercel_is_an_event() -> None:
    event = read("vercel", VERCEL_GENERATION)

    assert event.usage == Usage(cache_read=20, cache_write_5m=5, input=75, reasoning=7, output=43, web_search=2)
    assert (event.provider, event.publisher, event.model) == ("vercel", "anthropic", "anthropic/claude-sonnet-4.5")
    assert event.price_context == {"upstream": "anthropic", "context_tokens": 100}
    assert (event.duration_ms, event.response_id) == (456, "gen_01KKHTQ85GD6CXP31EJTEPPJSR")


def test_a_row_of_a_report_is_flagged_as_a_sum() -> None:
    event = read("vercel", {**REPORT, "user": "acme"})

    assert event.usage == Usage(cache_read=200, cache_write_5m=50, input=750, reasoning=70, output=430)
    assert (event.operation, event.anomalies) == ("aggregate", ("aggregated",))
    assert event.id != read("vercel", {**REPORT, "user": "globex"}).id


def test_a_report_over_an_unknown_time_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="no `day`"):
        read("vercel", varied(REPORT, day=None))


def test_a_sum_without_a_model_says_that_it_cannot_be_priced() -> None:
    assert "model_unknown" in read("vercel", varied(REPORT, model=None)).anomalies


# ---- Cloudflare ---------------------------------------------------------------------------------------------------


def test_an_entry_of_the_log_is_an_event_that_knows_only_totals() -> None:
    event = read("cloudflare", LOG)

    assert event == MeterEvent(
        id=event.id,
        time=datetime(2026, 11, 20, 10, 0, 0, 123_000, UTC),
        usage=Usage(input=70, output=30),
        duration_ms=1500,
        provider="azure",
        publisher="openai",
        model="gpt-4o-mini",
        anomalies=("only_totals",),
        price_context={"context_tokens": 70},
        response_id="01K0LOG1",
        host="gateway.ai.cloudflare.com",
        raw_usage={"tokens_in": 70, "tokens_out": 30, "cost": 0.0001},
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cached": True}, "answered from the gateway's cache"),
        ({"success": False, "tokens_in": 0, "tokens_out": 0, "cost": 0}, "failed before anything was consumed"),
    ],
)
def test_entries_that_consumed_nothing_are_skipped(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Skip, match=reason):
        read("cloudflare", varied(LOG, **fields))


def test_unreadable_metadata_would_hide_the_customer_so_the_row_is_bad() -> None:
    with pytest.raises(Unreadable, match="metadata is no JSON"):
        read("cloudflare", varied(LOG, metadata="{"))


def test_a_line_of_logpush_is_an_event() -> None:
    event = read("cloudflare", PUSH)

    assert event.time == datetime(2026, 11, 20, 10, 0, 0, 123_456, UTC)
    assert event.usage == Usage(input=70, output=30)
    assert (event.model, event.model_requested, event.duration_ms) == ("gpt-4o-mini", "cloudflare/auto", 1234)


def test_a_line_of_logpush_is_known_again_although_its_bodies_are_encrypted_anew() -> None:
    again = varied(PUSH, RequestBody={"type": "encrypted", "data": "BBBB"})
    other = varied(PUSH, Timestamp=1795168800123456790)

    assert read("cloudflare", again).id == read("cloudflare", PUSH).id
    assert read("cloudflare", other).id != read("cloudflare", PUSH).id


@pytest.mark.parametrize("partner", ["litellm", "openrouter", "vercel", "cloudflare"])
@pytest.mark.parametrize("record", [{}, {"a": 1}, {"id": 1}, {"id": "x"}, {"request_id": "x"}])
def test_what_is_no_record_is_told_so(partner: str, record: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="is no record of"):
        read(partner, record)


def test_every_event_has_a_form_that_every_reader_takes_back() -> None:
    made = [("openrouter", GENERATION), ("openrouter", ACTIVITY), ("vercel", REPORT), ("cloudflare", PUSH)]

    for event in (read(partner, record) for partner, record in made):
        assert MeterEvent.from_json(json.loads(json.dumps(event.to_json()))) == event
