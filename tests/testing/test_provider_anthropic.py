"""The Anthropic side of the loopback provider, driven by the real SDK, which checks every body against its types."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from token_meter.testing.provider import LoopbackProvider
from token_meter.usage import Usage

MODEL = "claude-sonnet-4-6"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
CALL: Any = {"model": MODEL, "max_tokens": 1000, "messages": MESSAGES}
TOOLS: Any = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
SEARCH: Any = [{"type": "web_search_20250305", "name": "web_search"}]
ADVISOR: Any = [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"}]
COMPACT: Any = {"edits": [{"type": "compact_20260112"}]}


@pytest.fixture
def client(provider: LoopbackProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=provider.anthropic_url, api_key="sk-secret", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def valid(model: Any) -> Any:
    """The model, if what the wire carried fits its type exactly."""
    type(model).model_validate(model.to_dict())
    return model


def read(stream: Any) -> list[Any]:
    return [valid(each) for each in stream]


def billed_tokens(usage: Any) -> int:
    """What the four totals of a block add up to."""
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return int(usage.input_tokens + cached + usage.output_tokens)


def test_a_message_is_counted_by_the_documented_rule(provider, client):
    message = valid(client.messages.create(**CALL))

    [line] = provider.billed
    assert line.usage == Usage(input=9, output=-(-len(message.content[0].text) // 4)) == Usage(input=9, output=19)
    assert (line.model, line.response_id, line.kind) == (MODEL, message.id, "message")
    assert (message.stop_reason, message.usage.service_tier, billed_tokens(message.usage)) == (
        "end_turn",
        "standard",
        28,
    )
    assert (line.told, line.delivered) == (True, True)


def test_a_stream_opens_with_the_input_and_ends_with_the_totals(provider, client):
    events = read(client.messages.create(**CALL, stream=True))

    [line] = provider.billed
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"] and kinds[-2:] == ["message_delta", "message_stop"]
    start, end = events[0].message.usage, events[-2].usage
    assert (start.input_tokens, start.output_tokens, start.cache_creation.ephemeral_5m_input_tokens) == (9, 1, 0)
    assert billed_tokens(end) == line.usage.tokens == 28
    assert (line.told, line.delivered) == (True, True)


def test_a_stream_looks_on_the_wire_as_it_does_at_anthropic(provider):
    response = httpx2.post(provider.url_with(events=1) + "/v1/messages", json={**CALL, "stream": True})

    head, ping = response.text.split("\n\n")[0], response.text.split("\n\n")[2]
    assert head.startswith('event: message_start\ndata: {"type":"message_start","message":{"id":"msg_01')
    assert ping == 'event: ping\ndata: {"type":"ping"}'
    assert response.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert response.headers["request-id"].startswith("req_01")


def test_thinking_tools_and_searches(provider, client):
    thought = valid(client.messages.create(**CALL, thinking={"type": "adaptive"}, tools=TOOLS))
    with client.messages.stream(**CALL, thinking={"type": "adaptive"}, tools=TOOLS) as stream:
        kinds = {event.type for event in stream}
        put_together = stream.get_final_message()
    searched = valid(client.messages.create(**CALL, tools=SEARCH))
    with client.messages.stream(**CALL, tools=SEARCH) as stream:
        searched_again = valid(stream.get_final_message())
    result = {"type": "tool_result", "tool_use_id": thought.content[1].id, "content": "sunny"}
    history = [*MESSAGES, {"role": "assistant", "content": thought.to_dict()["content"]}]
    answered = client.messages.create(
        **{**CALL, "messages": [*history, {"role": "user", "content": [result]}]}, tools=TOOLS
    )

    assert [block.type for block in thought.content] == ["thinking", "tool_use"]
    assert (thought.content[1].input, thought.stop_reason) == ({"city": "Paris"}, "tool_use")
    assert {"thinking", "signature", "input_json"} < kinds
    assert put_together.content[1].input == {"city": "Paris"}
    assert put_together.content[0].to_dict() == thought.content[0].to_dict()
    assert [block.type for block in searched.content] == ["server_tool_use", "web_search_tool_result", "text"]
    assert [block.to_dict().keys() for block in searched_again.content] == [
        block.to_dict().keys() for block in searched.content
    ]
    assert searched.usage.server_tool_use.web_search_requests == 1
    assert answered.stop_reason == "end_turn"
    assert [line.usage.reasoning for line in provider.billed] == [96, 96, 0, 0, 0]
    assert [line.usage.web_search for line in provider.billed] == [0, 0, 1, 1, 0]
    told = (thought, put_together, searched, searched_again, answered)
    assert [billed_tokens(each.usage) for each in told] == [line.usage.tokens for line in provider.billed]


def test_marks_decide_what_is_read_from_and_written_to_the_cache(provider, client):
    def marked(text: str, ttl: str | None = None) -> dict[str, Any]:
        mark = {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}
        return {"type": "text", "text": text, "cache_control": mark}

    prompt: Any = {
        "system": [marked("x" * 4000)],
        "messages": [
            {"role": "user", "content": [marked("y" * 400, "1h")]},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": [marked("z" * 800)]},
            {"role": "user", "content": "and now?"},
        ],
    }
    plain = valid(client.messages.create(model=MODEL, max_tokens=3, **prompt))
    events = read(client.messages.create(model=MODEL, max_tokens=3, stream=True, **prompt))

    line = provider.billed[0]
    assert line.usage == provider.billed[1].usage
    assert line.usage == Usage(input=9, cache_read=1016, cache_write_1h=126, cache_write_5m=232, output=3)
    assert plain.usage.cache_creation.ephemeral_1h_input_tokens == 126
    assert events[0].message.usage.cache_creation.ephemeral_5m_input_tokens == 232
    assert billed_tokens(plain.usage) == billed_tokens(events[-2].usage) == line.usage.tokens
    assert plain.stop_reason == events[-2].delta.stop_reason == "max_tokens"


def test_a_refusal_has_no_content_and_is_billed(provider, client):
    refused = valid(client.messages.create(**{**CALL, "model": "claude-refuse"}))
    with client.messages.stream(**{**CALL, "model": "claude-refuse"}) as stream:
        streamed = valid(stream.get_final_message())

    assert [(each.content, each.stop_reason) for each in (refused, streamed)] == [([], "refusal")] * 2
    assert refused.stop_details.type == "refusal"
    assert [line.usage for line in provider.billed] == [Usage(input=9, output=3)] * 2


@pytest.mark.parametrize("streamed", [False, True])
def test_compaction_and_advice_are_billed_on_lines_of_their_own(provider, client, streamed):
    call = {**CALL, "betas": ["compact-2026-01-12"], "tools": ADVISOR, "context_management": COMPACT}
    if streamed:
        with client.beta.messages.stream(**call) as stream:
            message = valid(stream.get_final_message())
    else:
        message = valid(client.beta.messages.create(**call))

    usage = message.usage
    assert [(entry.type, entry.model) for entry in usage.iterations if entry.type != "compaction"] == [
        ("advisor_message", "claude-opus-4-8"),
        ("message", None),
    ]
    assert [(line.kind, line.model, line.usage) for line in provider.billed] == [
        ("message", MODEL, Usage(input=150, output=19)),
        ("compaction", MODEL, Usage(input=9, output=64)),
        ("advisor_message", "claude-opus-4-8", Usage(input=9, output=40)),
    ]
    assert billed_tokens(usage) == 169
    assert sum(billed_tokens(entry) for entry in usage.iterations) == provider.total().tokens
    assert {line.response_id for line in provider.billed} == {message.id}
    assert message.content[0].type == "compaction" and message.content[-1].type == "text"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_declined_hop_is_billed_to_the_model_that_declined(provider, client, streamed):
    call = {**CALL, "model": "claude-refuse", "fallbacks": [{"model": "claude-haiku-4-5"}]}
    if streamed:
        events = read(client.beta.messages.create(**call, stream=True))
        model, usage = events[0].message.model, events[-2].usage
    else:
        message = valid(client.beta.messages.create(**call))
        model, usage = message.model, message.usage
        assert message.content[0].type == "fallback"

    assert (model, billed_tokens(usage)) == ("claude-haiku-4-5-20251001", 28)
    assert [entry.type for entry in usage.iterations] == ["message", "fallback_message"]
    assert [(line.kind, line.model, line.usage.tokens) for line in provider.billed] == [
        ("message", "claude-haiku-4-5-20251001", 28),
        ("declined", "claude-refuse", 12),
    ]


def test_an_advisor_of_the_same_model_still_names_its_model(provider, client):
    tools: Any = [{"type": "advisor_20260301", "name": "advisor", "model": MODEL}]
    message = valid(client.beta.messages.create(**CALL, betas=["advisor-tool-2026-03-01"], tools=tools))

    assert [(entry.type, entry.model) for entry in message.usage.iterations] == [
        ("advisor_message", MODEL),
        ("message", None),
    ]
    assert [(line.kind, line.model) for line in provider.billed] == [("message", MODEL), ("advisor_message", MODEL)]


def test_price_modifiers_are_echoed_and_counting_is_free(provider, client):
    fast = client.beta.messages.create(**CALL, speed="fast", inference_geo="us")
    counted = valid(client.messages.count_tokens(model=MODEL, messages=MESSAGES))
    models = [valid(model).id for model in client.models.list()]

    assert (fast.usage.speed, fast.usage.inference_geo) == ("fast", "us")
    assert counted.input_tokens == 9
    assert MODEL in models
    assert len(provider.billed) == 1


def test_a_batch_bills_every_request_once(provider, client):
    requests: Any = [{"custom_id": str(number), "params": CALL} for number in range(3)]
    created = valid(client.messages.batches.create(requests=requests))
    ended = valid(client.messages.batches.retrieve(created.id))
    told_before = [line.told for line in provider.billed]
    results = [valid(result) for result in client.messages.batches.results(created.id)]
    list(client.messages.batches.results(created.id))

    assert (created.processing_status, ended.processing_status) == ("in_progress", "ended")
    assert {result.result.message.usage.service_tier for result in results} == {"batch"}
    assert [result.result.message.id for result in results] == [line.response_id for line in provider.billed]
    assert [(line.usage, line.batch, line.told) for line in provider.billed] == [
        (Usage(input=9, output=19), True, True)
    ] * 3
    assert told_before == [False] * 3
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve("msgbatch_unknown")


def test_vertex_names_the_model_in_the_path(provider):
    with anthropic.AnthropicVertex(
        base_url=f"{provider.url}/v1", project_id="p", region="us", access_token="secret", max_retries=0
    ) as client:
        plain = client.messages.create(**CALL)
        events = read(client.messages.create(**CALL, stream=True))

    assert (plain.model, billed_tokens(plain.usage), billed_tokens(events[-2].usage)) == (MODEL, 28, 28)
    assert [request.model for request in provider.requests] == [MODEL, MODEL]
    assert provider.requests[1].path.endswith(f"/publishers/anthropic/models/{MODEL}:streamRawPredict")


def test_the_asynchronous_client_gets_the_same(provider):
    async def calls() -> list[Any]:
        async with anthropic.AsyncAnthropic(base_url=provider.anthropic_url, api_key="k", max_retries=0) as client:
            plain = await client.messages.create(**CALL)
            events = [event async for event in await client.messages.create(**CALL, stream=True)]
            async with client.messages.stream(**CALL) as stream:
                helped = await stream.get_final_message()
            beta = await client.beta.messages.create(**CALL, betas=["compact-2026-01-12"], context_management=COMPACT)
        return [plain.usage, events[-2].usage, helped.usage, beta.usage]

    told = asyncio.run(calls())

    assert [billed_tokens(usage) for usage in told] == [28, 28, 28, 169]
    assert [line.usage.tokens for line in provider.billed] == [28, 28, 28, 169, 73]
    assert all(line.told and line.delivered for line in provider.billed)
