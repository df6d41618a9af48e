"""The Google side of the loopback provider, driven by the real SDK on the Gemini API and on Vertex."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from google import genai
from google.oauth2.credentials import Credentials
from pydantic import BaseModel

from token_meter.testing.provider import LoopbackProvider
from token_meter.usage import Usage

MODEL = "gemini-2.5-flash"
FUNCTION: Any = {
    "type": "function",
    "name": "weather",
    "description": "the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


class City(BaseModel):
    name: str
    tags: list[int]


@pytest.fixture
def client(provider: LoopbackProvider) -> Iterator[genai.Client]:
    with genai.Client(api_key="secret", http_options={"base_url": provider.google_url}) as client:
        yield client


@pytest.fixture
def vertex(provider: LoopbackProvider) -> Iterator[genai.Client]:
    with genai.Client(
        vertexai=True,
        project="p",
        location="us-central1",
        credentials=Credentials("secret"),
        http_options={"base_url": provider.google_url},
    ) as client:
        yield client


def weather(city: str) -> str:
    """The weather."""
    return f"sunny in {city}"


def test_an_answer_is_counted_by_the_documented_rule(provider, client):
    config: Any = {"thinking_config": {"thinking_budget": 50, "include_thoughts": True}, "max_output_tokens": 5}
    whole = client.models.generate_content(model=MODEL, contents="Hello")
    short = client.models.generate_content(model=MODEL, contents="Hello", config=config)

    assert [line.usage for line in provider.billed] == [
        Usage(input=11, output=-(-len(whole.text) // 4)),
        Usage(input=11, output=5, reasoning=50),
    ]
    assert (whole.usage_metadata.total_token_count, short.usage_metadata.total_token_count) == (30, 66)
    assert short.usage_metadata.thoughts_token_count == 50
    assert (short.candidates[0].content.parts[0].thought, short.candidates[0].finish_reason) == (True, "MAX_TOKENS")
    assert (whole.response_id, whole.model_version) == (provider.billed[0].response_id, MODEL)


def test_a_stream_tells_running_totals(provider, client):
    chunks = list(client.models.generate_content_stream(model=MODEL, contents="Hello"))

    [line] = provider.billed
    counts = [chunk.usage_metadata.candidates_token_count for chunk in chunks]
    assert counts == [19 * part // 12 for part in range(1, 13)]
    assert {chunk.usage_metadata.prompt_token_count for chunk in chunks} == {11}
    assert (chunks[-1].usage_metadata.total_token_count, chunks[-1].candidates[0].finish_reason) == (30, "STOP")
    assert (line.usage.tokens, line.told, line.delivered) == (30, True, True)


def test_the_wire_says_tier_and_modalities(provider):
    picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    body = {"contents": [{"role": "user", "parts": [{"text": "Hello"}, picture]}], "serviceTier": "flex"}
    block = httpx2.post(f"{provider.url}/v1beta/models/{MODEL}:generateContent", json=body).json()["usageMetadata"]

    assert block == {
        "promptTokenCount": 270,
        "totalTokenCount": 289,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 12}, {"modality": "IMAGE", "tokenCount": 258}],
        "candidatesTokenCount": 19,
        "serviceTier": "flex",
    }
    assert provider.billed[0].usage == Usage(input=12, input_image=258, output=19)


def test_caches_searches_and_pictures(provider, client):
    generate = client.models.generate_content
    told = [
        generate(model=MODEL, contents="Hello", config={"cached_content": "cachedContents/1"}),
        generate(model=MODEL, contents="x" * 8000),
        generate(model=MODEL, contents="Hello", config={"tools": [{"google_search": {}}, {"code_execution": {}}]}),
        generate(model=MODEL, contents="Hello", config={"response_modalities": ["TEXT", "IMAGE"]}),
        generate(model="gemini-refuse", contents="Hello"),
    ]

    assert [line.usage for line in provider.billed] == [
        Usage(input=11, cache_read=1024, output=19),
        Usage(input=1114, cache_read=896, output=19),
        Usage(input=22, tool_input=128, web_search=1, output=19),
        Usage(input=11, output=19, output_image=1290),
        Usage(input=11),
    ]
    assert [each.usage_metadata.total_token_count for each in told] == [line.usage.tokens for line in provider.billed]
    assert told[0].usage_metadata.cached_content_token_count == 1024
    assert told[2].candidates[0].grounding_metadata.web_search_queries == ["how are tokens counted"]
    assert told[3].candidates[0].content.parts[1].inline_data.mime_type == "image/png"
    assert (told[4].candidates, told[4].prompt_feedback.block_reason) == (None, "PROHIBITED_CONTENT")


def test_a_function_is_called_until_it_is_answered(provider, client):
    off: Any = {"tools": [weather], "automatic_function_calling": {"disable": True}}
    called = client.models.generate_content(model=MODEL, contents="Hello", config=off)
    streamed = list(client.models.generate_content_stream(model=MODEL, contents="Hello", config=off))
    chat = client.chats.create(model=MODEL, config={"tools": [weather]})
    answered = chat.send_message("Hello")
    shaped: Any = {"response_mime_type": "application/json", "response_schema": City}
    parsed = client.models.generate_content(model=MODEL, contents="Hello", config=shaped)

    assert [call.args for call in (*called.function_calls, *streamed[0].function_calls)] == [{"city": "Paris"}] * 2
    assert answered.text.startswith("Every call")
    assert parsed.parsed == City(name="Paris", tags=[7])
    assert len(provider.billed) == 5


def test_a_continuation_is_two_calls(provider, client):
    whole = client.models.generate_content(model="gemini-cont", contents="Hello")
    chunks = list(client.models.generate_content_stream(model="gemini-cont", contents="Hello"))

    assert [line.usage.tokens for line in provider.billed] == [30] * 4
    assert (whole.usage_metadata.total_token_count, chunks[-1].usage_metadata.total_token_count) == (60, 60)


def test_counting_and_listing_are_free_and_embeddings_are_not(provider, client):
    counted = client.models.count_tokens(model=MODEL, contents="Hello")
    models = [model.name for model in client.models.list()]
    config: Any = {"output_dimensionality": 8}
    embedded = client.models.embed_content(model="gemini-embedding-001", contents=["Hello", "world"], config=config)
    single = httpx2.post(
        f"{provider.url}/v1beta/models/gemini-embedding-001:embedContent", json={"content": {"parts": [{"text": "Hi"}]}}
    ).json()

    assert (counted.total_tokens, "models/gemini-2.5-pro" in models) == (11, True)
    assert [len(each.values) for each in embedded.embeddings] == [8, 8]
    assert embedded.usage_metadata.prompt_token_count == 22
    assert single["usageMetadata"]["promptTokenCount"] == 7
    assert [line.usage for line in provider.billed] == [Usage(input=22), Usage(input=7)]


def test_vertex_tells_in_the_last_chunk_and_beside_each_vector(provider, vertex):
    chunks = list(vertex.models.generate_content_stream(model=MODEL, contents="Hello"))
    embedded = vertex.models.embed_content(model="text-embedding-005", contents=["Hello", "world"])
    newer = vertex.models.embed_content(model="gemini-embedding-2", contents=["Hello"])
    counted = vertex.models.count_tokens(model=MODEL, contents="Hello")
    path = f"{provider.url}/v1beta1/publishers/google/models/imagen-4.0:predict"
    pictures = httpx2.post(path, json={"instances": [{"prompt": "A fox"}], "parameters": {"sampleCount": 2}}).json()

    assert [chunk.usage_metadata.prompt_token_count for chunk in chunks[-2:]] == [None, 11]
    assert [chunk.usage_metadata.traffic_type for chunk in chunks[-2:]] == ["ON_DEMAND", "ON_DEMAND"]
    assert chunks[-1].usage_metadata.candidates_tokens_details[0].token_count == 19
    assert [each.statistics.token_count for each in embedded.embeddings] == [2.0, 2.0]
    assert embedded.metadata.billable_character_count == 10
    assert newer.usage_metadata.prompt_token_count == 11
    assert (counted.total_tokens, len(pictures["predictions"])) == (11, 2)
    assert [(line.usage, line.told) for line in provider.billed] == [
        (Usage(input=11, output=19), True),
        (Usage(input=4), True),
        (Usage(input=11), True),
        (Usage(images=2), False),
    ]
    assert provider.requests[0].path == (
        f"/v1beta1/projects/p/locations/us-central1/publishers/google/models/{MODEL}:streamGenerateContent"
    )


def test_interactions_plain_streamed_and_in_the_background(provider, client):
    config: Any = {"generation_config": {"thinking_level": "low"}, "tools": [{"type": "google_search"}]}
    plain = client.interactions.create(model=MODEL, input="Hello", **config)
    events = list(client.interactions.create(model=MODEL, input="Hello", stream=True, **config))
    running = client.interactions.create(model=MODEL, input="Hello", background=True)
    polls = [client.interactions.get(running.id) for _ in range(3)]

    assert [step.type for step in plain.steps] == [
        "thought",
        "google_search_call",
        "google_search_result",
        "model_output",
    ]
    assert [event.event_type for event in events][:3] == [
        "interaction.created",
        "interaction.status_update",
        "step.start",
    ]
    assert events[-1].event_type == "interaction.completed"
    assert [line.usage for line in provider.billed] == [
        *[Usage(input=9, reasoning=32, tool_input=64, web_search=1, output=19)] * 2,
        Usage(input=2, output=19),
    ]
    assert plain.usage.total_tokens == events[-1].interaction.usage.total_tokens == provider.billed[0].usage.tokens
    assert plain.usage.grounding_tool_count[0].count == 1
    assert [each.status for each in (running, *polls)] == ["in_progress", "in_progress", "completed", "completed"]
    assert [each.usage and each.usage.total_tokens for each in polls] == [None, 21, 21]


def test_an_interaction_calls_a_function(provider, client):
    called = client.interactions.create(model=MODEL, input="Hello", tools=[FUNCTION])
    events = list(client.interactions.create(model=MODEL, input="Hello", tools=[FUNCTION], stream=True))

    deltas = [event.delta.arguments for event in events if event.event_type == "step.delta"]
    assert (called.status, called.steps[0].arguments) == ("requires_action", {"city": "Paris"})
    assert json.loads("".join(deltas)) == {"city": "Paris"}
    assert events[-1].interaction.status == "requires_action"
    assert provider.billed[0].usage == provider.billed[1].usage


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
def test_the_asynchronous_client_gets_the_same(provider, client):
    async def calls() -> list[int]:
        models = client.aio.models
        plain = await models.generate_content(model=MODEL, contents="Hello")
        chunks = [chunk async for chunk in await models.generate_content_stream(model=MODEL, contents="Hello")]
        embedded = await models.embed_content(model="gemini-embedding-001", contents=["Hello"])
        interaction = await client.aio.interactions.create(model=MODEL, input="Hello")
        stream = await client.aio.interactions.create(model=MODEL, input="Hello", stream=True)
        events = [event async for event in stream]
        await client.aio.aclose()
        return [
            plain.usage_metadata.total_token_count,
            chunks[-1].usage_metadata.total_token_count,
            embedded.usage_metadata.prompt_token_count,
            interaction.usage.total_tokens,
            events[-1].interaction.usage.total_tokens,
        ]

    told = asyncio.run(calls())

    assert told == [30, 30, 11, 21, 21] == [line.usage.tokens for line in provider.billed]
    assert all(line.told and line.delivered for line in provider.billed)
