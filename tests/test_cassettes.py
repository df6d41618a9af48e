"""Recorded answers of the project's own provider, replayed by vcrpy through the real, wrapped SDKs: the events.

How the recordings are made: tests/recording.py. Nothing leaves the process here, vcrpy refuses what is not recorded.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot
from vcr.errors import CannotOverwriteExistingCassetteException

from tests.recording import CALLS, FOLDER, HOST, acall, async_client_of, call, client_of, record, recorder
from token_meter.testing import capture

DEPENDS_ON_THE_RECORDING = ("response_id",)


def replayed(name: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The events of one recorded call. How long it took is left out: that depends on who else reads the clock."""
    sdk, _ = CALLS[name]
    with capture(instrument=()) as captured, recorder(folder, record_mode="none").use_cassette(name) as cassette:
        with captured.meter.wrap(client_of(sdk, f"http://{HOST}")) as client:
            call(name, client)
        assert cassette.all_played
        return [replace(event, duration_ms=None).to_json() for event in captured.events]


async def areplayed(name: str) -> list[dict[str, Any]]:
    """The same with the async client: another transport, for Google another HTTP library (aiohttp)."""
    with capture(instrument=()) as captured, recorder(FOLDER, record_mode="none").use_cassette(name) as cassette:
        async with async_client_of(CALLS[name][0], f"http://{HOST}", captured.meter.wrap) as client:
            await acall(name, client)
        assert cassette.all_played
        return [replace(event, duration_ms=None).to_json() for event in captured.events]


@pytest.mark.parametrize("name", CALLS)
def test_an_async_client_yields_the_same_event(name: str) -> None:
    assert asyncio.run(areplayed(name)) == replayed(name)


def test_every_call_yields_its_event() -> None:
    assert {name: replayed(name) for name in CALLS} == snapshot(
        {
            "openai-chat-plain": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 9, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "openai",
                    "publisher": "openai",
                    "model": "gpt-5-2025-08-07",
                    "model_requested": "gpt-5",
                    "operation": "chat",
                    "price_context": {"service_tier": "default", "context_tokens": 9},
                    "response_id": "chatcmpl-17dfb725f6000531e000001",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "prompt_tokens": 9,
                        "completion_tokens": 19,
                        "total_tokens": 28,
                        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                        "completion_tokens_details": {
                            "reasoning_tokens": 0,
                            "audio_tokens": 0,
                            "accepted_prediction_tokens": 0,
                            "rejected_prediction_tokens": 0,
                        },
                    },
                }
            ],
            "openai-chat-stream": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 9, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "openai",
                    "publisher": "openai",
                    "model": "gpt-5-2025-08-07",
                    "model_requested": "gpt-5",
                    "operation": "chat",
                    "price_context": {"service_tier": "default", "context_tokens": 9},
                    "response_id": "chatcmpl-9dbecc5fec000531e000001",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "prompt_tokens": 9,
                        "completion_tokens": 19,
                        "total_tokens": 28,
                        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                        "completion_tokens_details": {
                            "reasoning_tokens": 0,
                            "audio_tokens": 0,
                            "accepted_prediction_tokens": 0,
                            "rejected_prediction_tokens": 0,
                        },
                    },
                }
            ],
            "openai-responses-plain": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 2, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "openai",
                    "publisher": "openai",
                    "model": "gpt-5-2025-08-07",
                    "model_requested": "gpt-5",
                    "operation": "responses",
                    "price_context": {"service_tier": "default", "context_tokens": 2},
                    "response_id": "resp_c9d4dd9102000531e000002",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "input_tokens": 2,
                        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                        "output_tokens": 19,
                        "output_tokens_details": {"reasoning_tokens": 0},
                        "total_tokens": 21,
                    },
                }
            ],
            "openai-responses-stream": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 2, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "openai",
                    "publisher": "openai",
                    "model": "gpt-5-2025-08-07",
                    "model_requested": "gpt-5",
                    "operation": "responses",
                    "price_context": {"service_tier": "default", "context_tokens": 2},
                    "response_id": "resp_cadf673305000531e000002",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "input_tokens": 2,
                        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                        "output_tokens": 19,
                        "output_tokens_details": {"reasoning_tokens": 0},
                        "total_tokens": 21,
                    },
                }
            ],
            "openai-embeddings-plain": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 4},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "openai",
                    "publisher": "openai",
                    "model": "text-embedding-3-small",
                    "model_requested": "text-embedding-3-small",
                    "operation": "embeddings",
                    "price_context": {"context_tokens": 4},
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {"prompt_tokens": 4, "total_tokens": 4},
                }
            ],
            "anthropic-messages-plain": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 9, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "anthropic",
                    "publisher": "anthropic",
                    "model": "claude-sonnet-4-6",
                    "model_requested": "claude-sonnet-4-6",
                    "operation": "messages",
                    "price_context": {"service_tier": "standard", "geo": "global", "context_tokens": 9},
                    "response_id": "msg_013997c7aa40000531e000001",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "input_tokens": 9,
                        "cache_creation_input_tokens": 0,
                        "cache_read_input_tokens": 0,
                        "output_tokens": 19,
                        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                        "service_tier": "standard",
                        "inference_geo": "global",
                        "output_tokens_details": {"thinking_tokens": 0},
                    },
                }
            ],
            "anthropic-messages-stream": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 9, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "anthropic",
                    "publisher": "anthropic",
                    "model": "claude-sonnet-4-6",
                    "model_requested": "claude-sonnet-4-6",
                    "operation": "messages",
                    "price_context": {"service_tier": "standard", "geo": "global", "context_tokens": 9},
                    "response_id": "msg_0152276cc54a000531e000001",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "input_tokens": 9,
                        "cache_creation_input_tokens": 0,
                        "cache_read_input_tokens": 0,
                        "output_tokens": 19,
                        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                        "service_tier": "standard",
                        "inference_geo": "global",
                        "output_tokens_details": {"thinking_tokens": 0},
                    },
                }
            ],
            "google-generate-plain": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 11, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "google",
                    "publisher": "google",
                    "model": "gemini-2.5-flash",
                    "model_requested": "gemini-2.5-flash",
                    "operation": "generate_content",
                    "price_context": {"service_tier": "standard", "context_tokens": 11},
                    "response_id": "gem-40a3eb8a51000531e000001",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "promptTokenCount": 11,
                        "totalTokenCount": 30,
                        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 11}],
                        "candidatesTokenCount": 19,
                        "serviceTier": "standard",
                    },
                }
            ],
            "google-generate-stream": [
                {
                    "schema": 1,
                    "id": "evt_1",
                    "time": "2026-01-01T00:00:01.000000Z",
                    "usage": {"input": 11, "output": 19},
                    "status": "complete",
                    "meter": "llm_tokens",
                    "provider": "google",
                    "publisher": "google",
                    "model": "gemini-2.5-flash",
                    "model_requested": "gemini-2.5-flash",
                    "operation": "generate_content",
                    "price_context": {"service_tier": "standard", "context_tokens": 11},
                    "response_id": "gem-7c2ef9f9b7000531e000001",
                    "host": "provider.invalid",
                    "mode": "live",
                    "raw_usage": {
                        "promptTokenCount": 11,
                        "totalTokenCount": 30,
                        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 11}],
                        "candidatesTokenCount": 19,
                        "serviceTier": "standard",
                    },
                }
            ],
        }
    )


def test_what_is_not_recorded_does_not_leave_the_process() -> None:
    replaying = recorder(FOLDER, record_mode="none").use_cassette("openai-chat-plain")
    with (
        replaying,
        client_of("openai", f"http://{HOST}") as client,
        pytest.raises(CannotOverwriteExistingCassetteException),
    ):
        client.responses.create(model="gpt-5", input="Something else")


def test_recording_anew_yields_the_same_events(tmp_path: Path) -> None:
    record(tmp_path)

    for name in CALLS:
        again, before = ([_lasting(event) for event in replayed(name, folder)] for folder in (tmp_path, FOLDER))
        assert again == before, name


def _lasting(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in DEPENDS_ON_THE_RECORDING}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recording_tells_nothing_of_a_machine_or_a_key(path: Path) -> None:
    text = path.read_text("utf-8")

    assert path.stem in CALLS
    assert not re.search(r"127\.0\.0\.1|localhost|api-key|authorization|/(home|work|opt|root)/", text, re.IGNORECASE)
    assert set(re.findall(r"^ +([\w-]+):\n +- ", text, re.MULTILINE)) <= {"content-type"}
