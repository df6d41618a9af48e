"""Anthropic's surface: messages in every form, extra billed iterations, middleware, and the clouds that serve it."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import beta_tool
from anthropic.lib.middleware import BetaFallbackState, BetaRefusalFallbackMiddleware
from pydantic import BaseModel

from tests.providers.kit import MESSAGE, Bench, plain
from token_meter import Usage

REFUSED: dict[str, Any] = {**MESSAGE, "model": "claude-refuse"}
FALLBACK = [{"model": "claude-opus-4-8"}]
SEARCH: Any = [{"type": "web_search_20250305", "name": "web_search"}]


class City(BaseModel):
    name: str


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@beta_tool
def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The city.
    """
    return f"sunny in {city}"


def read(stream: Any) -> None:
    for _ in stream:
        pass


# ---- what an event keeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_cache_thinking_searches_speed_and_place_are_kept(bench: Bench, stream: bool) -> None:
    usage = Usage(input=5, cache_read=900, cache_write_5m=30, cache_write_1h=20, output=30, reasoning=10, web_search=2)
    bench.provider.usage(usage, api="anthropic.messages")
    answer = bench.anthropic().messages.create(
        **MESSAGE, stream=stream, extra_body={"speed": "fast", "inference_geo": "us"}
    )
    if stream:
        read(answer)

    assert (bench.event.usage, bench.event.anomalies) == (usage, ())
    assert dict(bench.event.price_context) == {
        "service_tier": "standard", "speed": "fast", "geo": "us", "context_tokens": 955,
    }  # fmt: skip


def test_marked_prompts_are_split_by_time_to_live(bench: Bench) -> None:
    long = "x" * 400
    parts: Any = [
        {"type": "text", "text": long, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": long, "cache_control": {"type": "ephemeral"}},
    ]
    messages: Any = [{"role": "user", "content": [parts[0]]}, {"role": "user", "content": [parts[1]]}]
    bench.anthropic().messages.create(model="claude-sonnet-4-6", max_tokens=9, messages=messages, system=[parts[1]])

    assert {"cache_read", "cache_write_1h", "cache_write_5m", "output"} <= set(bench.event.usage)
    bench.assert_billed()


def test_the_alias_and_the_model_that_answered_are_kept(bench: Bench) -> None:
    bench.anthropic().messages.create(**{**MESSAGE, "model": "claude-haiku-4-5"})

    assert (bench.event.model_requested, bench.event.model) == ("claude-haiku-4-5", "claude-haiku-4-5-20251001")
    assert bench.event.publisher == "anthropic"


# ---- ways to call -------------------------------------------------------------------------------------------------


def test_raw_streamed_raw_parsed_and_posted_messages_are_counted(bench: Bench) -> None:
    client = bench.anthropic()
    client.messages.with_raw_response.create(**MESSAGE)
    read(client.messages.with_raw_response.create(**MESSAGE, stream=True).parse())
    with client.messages.with_streaming_response.create(**MESSAGE, stream=True) as response:
        read(response.iter_lines())
    client.messages.parse(**MESSAGE, output_format=City)
    client.beta.messages.parse(**MESSAGE, output_format=City)
    client.post("/v1/messages", body=MESSAGE, cast_to=httpx2.Response)
    client.with_options(timeout=9).copy(max_retries=0).messages.create(**MESSAGE)

    bench.assert_billed()
    assert len(bench.events) == 7


def test_the_stream_helper_of_a_beta_message_is_counted(bench: Bench) -> None:
    with bench.anthropic().beta.messages.stream(**MESSAGE) as stream:
        stream.until_done()

    bench.assert_billed()


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_runner_is_an_event_per_inner_call(bench: Bench, stream: bool) -> None:
    runner = bench.anthropic().beta.messages.tool_runner(**MESSAGE, tools=[weather], stream=stream)
    with bench.meter.customer("acme"):
        for answer in runner:
            if stream:
                read(answer)

    bench.assert_billed()
    assert [event.customer for event in bench.events] == ["acme", "acme"]


def test_counting_tokens_models_and_batches_cost_nothing(bench: Bench) -> None:
    client = bench.anthropic()
    client.messages.count_tokens(model="claude-sonnet-4-6", messages=MESSAGE["messages"])
    client.beta.messages.count_tokens(model="claude-sonnet-4-6", messages=MESSAGE["messages"])
    client.models.list()
    client.messages.batches.create(requests=[])
    client.messages.batches.list()

    assert bench.events == []


# ---- iterations: one event for each model that billed -------------------------------------------------------------

EDITS: dict[str, Any] = {
    "context_management": {"edits": [{"type": "compact_20260112"}]},
    "betas": ["compact-2026-01-12"],
}
ADVISOR: Any = [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "models"),
    [
        (EDITS, ["claude-sonnet-4-6", "claude-sonnet-4-6"]),
        ({"tools": ADVISOR, "betas": ["advisor-2026-03-01"]}, ["claude-sonnet-4-6", "claude-opus-4-8"]),
        ({"model": "claude-refuse", "fallbacks": FALLBACK, "betas": ["b"]}, ["claude-opus-4-8", "claude-refuse"]),
    ],
    ids=["compaction", "advisor", "fallback"],
)
def test_iterations_that_bill_beside_the_answer_are_events(
    bench: Bench, options: dict[str, Any], models: list[str], stream: bool
) -> None:
    answer = bench.anthropic().beta.messages.create(**{**MESSAGE, **options}, stream=stream)
    if stream:
        read(answer)

    bench.assert_billed()
    assert [event.model for event in bench.events] == models
    assert len({event.id for event in bench.events}) == 2


# ---- middleware ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("late", [False, True], ids=["at construction", "with_options"])
def test_both_hops_of_the_fallback_middleware_are_counted(
    bench: Bench, stream: bool, is_async: bool, late: bool
) -> None:
    """The second hop of a stream is sent while the caller reads, long after the call returned."""

    async def call(*, wrap: bool) -> Any:
        middleware = [BetaRefusalFallbackMiddleware(FALLBACK)]
        client = bench.anthropic(is_async=is_async, wrap=wrap, middleware=() if late else middleware)
        client = client.with_options(middleware=middleware) if late else client
        with bench.meter.customer("acme"), BetaFallbackState():
            answer = client.beta.messages.create(**REFUSED, stream=stream)
            answer = await answer if is_async else answer
        if not stream:
            return plain(answer)
        return [plain(each) async for each in answer] if is_async else [plain(each) for each in answer]

    async def main() -> None:
        bare = await call(wrap=False)
        bench.provider.reset()
        assert await call(wrap=True) == bare

    bench.run(main)

    assert bench.usages == [line.usage for line in bench.billed]
    assert [event.model_requested for event in bench.events] == ["claude-refuse", "claude-opus-4-8"]
    assert [event.customer for event in bench.events] == ["acme", "acme"]


def test_a_middleware_that_sends_twice_is_two_events(bench: Bench) -> None:
    client = bench.anthropic(middleware=[lambda request, send: (send(request), send(request))[1]])
    client.messages.create(**MESSAGE)

    bench.assert_billed()
    assert len(bench.events) == 2


def test_a_middleware_that_answers_by_itself_is_no_event(bench: Bench) -> None:
    client = bench.anthropic(middleware=[lambda request, send: "from the cache"])

    assert client.messages.create(**MESSAGE) == "from the cache"
    assert bench.events == []


def test_a_middleware_sees_refused_attempts_and_only_the_answer_is_counted(bench: Bench) -> None:
    seen: list[int] = []

    def watch(request: Any, send: Any) -> Any:
        response = send(request)
        seen.append(response.status_code)
        return response

    bench.anthropic(middleware=[watch], max_retries=2, faults={"fail": "529x2"}).messages.create(**MESSAGE)

    assert seen == [529, 529, 200]
    bench.assert_billed()


# ---- clouds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_vertex_is_named_and_counted(bench: Bench, stream: bool, is_async: bool) -> None:
    cls = anthropic.AsyncAnthropicVertex if is_async else anthropic.AnthropicVertex
    client = bench.meter.wrap(
        cls(
            project_id="acme",
            region="us-east5",
            access_token="token",
            max_retries=0,
            http_client=bench.http_client(is_async=is_async),
        )
    )

    async def main() -> None:
        answer = client.messages.create(**MESSAGE, stream=stream)
        answer = await answer if is_async else answer
        if stream and is_async:
            async for _ in answer:
                pass
        elif stream:
            read(answer)

    bench.run(main)

    assert isinstance(client, cls)
    assert (bench.event.usage, bench.event.provider) == (bench.billed[0].usage, "vertex")
    assert bench.event.host == "us-east5-aiplatform.googleapis.com"
    assert bench.event.model == "claude-sonnet-4-6"


def test_foundry_is_named_and_counted(bench: Bench) -> None:
    client = bench.meter.wrap(
        anthropic.AnthropicFoundry(api_key="x", resource="acme", http_client=bench.http_client(is_async=False))
    )
    client.messages.create(**MESSAGE)
    read(client.with_options(timeout=9).messages.create(**MESSAGE, stream=True))

    bench.assert_billed()
    assert {(event.provider, event.host) for event in bench.events} == {("azure", "acme.services.ai.azure.com")}


def bedrock_frame(event: dict[str, Any]) -> bytes:
    """One AWS event-stream message as Bedrock sends it: headers, and the event in base64 inside JSON."""
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode()}).encode()
    headers = b"".join(
        struct.pack(">B", len(name)) + name + struct.pack(">BH", 7, len(value)) + value
        for name, value in (
            (b":event-type", b"chunk"),
            (b":content-type", b"application/json"),
            (b":message-type", b"event"),
        )
    )
    total = 16 + len(headers) + len(payload)
    prelude = struct.pack(">II", total, len(headers))
    head = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + payload
    return head + struct.pack(">I", binascii.crc32(head))


@pytest.mark.parametrize("chop", [0, 1, 7])
def test_bedrock_frames_are_read(bench: Bench, chop: int) -> None:
    pytest.importorskip("boto3")
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "content": []}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**start, "usage": {"input_tokens": 9, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
        {
            "type": "message_stop",
            "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 4, "invocationLatency": 7},
        },
    ]
    body = b"".join(map(bedrock_frame, events))

    class Pieces(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            size = chop or len(body)
            yield from (body[at : at + size] for at in range(0, len(body), size))

    def answer(request: Any) -> Any:
        return httpx2.Response(200, headers={"content-type": "application/vnd.amazon.eventstream"}, stream=Pieces())

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        client = anthropic.AnthropicBedrock(
            aws_region="us-east-1", aws_access_key="x", aws_secret_key="y", http_client=http
        )
        seen = list(bench.meter.wrap(client).messages.create(**MESSAGE, stream=True))

    assert [event.type for event in seen][-1] == "message_stop"
    assert (bench.event.usage, bench.event.status) == (Usage(input=9, output=4), "complete")
    assert (bench.event.provider, bench.event.host) == ("bedrock", "bedrock-runtime.us-east-1.amazonaws.com")
    assert (bench.event.model, bench.event.response_id) == ("claude-sonnet-4-6", "msg_1")


def test_plain_bedrock_messages_are_counted(bench: Bench) -> None:
    pytest.importorskip("boto3")

    def answer(request: Any) -> Any:
        usage = {"input_tokens": 9, "output_tokens": 4}
        body = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": [],
            "usage": usage,
        }
        return httpx2.Response(200, json=body)

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        client = bench.meter.wrap(
            anthropic.AnthropicBedrock(aws_region="us-east-1", aws_access_key="x", aws_secret_key="y", http_client=http)
        )
        client.messages.create(**{**MESSAGE, "model": "us.anthropic.claude-sonnet-4-6-v1:0"})

    assert (bench.event.usage, bench.event.provider) == (Usage(input=9, output=4), "bedrock")
    assert bench.event.model_requested == "us.anthropic.claude-sonnet-4-6-v1:0"
