"""The OpenAI side of the loopback provider, driven by the real SDK, which checks every body against its types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel

from token_meter.testing.provider import LoopbackProvider
from token_meter.usage import Usage

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}]
FUNCTIONS: Any = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
HOSTED: Any = [
    {"type": "web_search"},
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "image_generation", "model": "gpt-image-1-mini"},
]


class City(BaseModel):
    name: str
    people: int
    tags: list[str]


@pytest.fixture
def client(provider: LoopbackProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=provider.openai_url, api_key="sk-secret", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def lenient(provider: LoopbackProvider) -> Iterator[openai.OpenAI]:
    """For bodies that the SDK's own types do not allow, though the real API sends them."""
    with openai.OpenAI(base_url=provider.openai_url, api_key="sk-secret", max_retries=0) as client:
        yield client


def valid(model: Any) -> Any:
    """The model, if what the wire carried fits its type exactly."""
    type(model).model_validate(model.to_dict())
    return model


def read(stream: Any) -> list[Any]:
    return [valid(each) for each in stream]


def block_total(usage: Any) -> int:
    return int(usage.total_tokens)


def test_a_chat_is_counted_by_the_documented_rule(provider, client):
    completion = valid(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES))

    [line] = provider.billed
    given = -(-len(json.dumps(MESSAGES, separators=(",", ":"))) // 4)
    made = -(-len(completion.choices[0].message.content) // 4)
    assert line.usage == Usage(input=given, output=made) == Usage(input=9, output=19)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (given, made)
    assert completion.model == line.model == "gpt-4o-mini-2024-07-18"
    assert (line.model_requested, line.response_id) == ("gpt-4o-mini", completion.id)
    assert (line.told, line.delivered, completion.service_tier) == (True, True, "default")


def test_choices_limits_tiers_and_formats_are_honoured(provider, client):
    create = client.chat.completions.create

    two = valid(create(model="gpt-5", messages=MESSAGES, n=2, service_tier="flex", reasoning_effort="low"))
    short = valid(create(model="gpt-5", messages=MESSAGES, max_completion_tokens=3))
    parsed = client.chat.completions.parse(model="gpt-5", messages=MESSAGES, response_format=City)

    assert [choice.index for choice in two.choices] == [0, 1]
    assert (two.service_tier, two.usage.completion_tokens) == ("flex", 2 * 19 + 32)
    assert two.usage.completion_tokens_details.reasoning_tokens == 32
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    assert parsed.choices[0].message.parsed == City(name="Paris", people=7, tags=["Paris"])
    assert [line.usage.tokens for line in provider.billed] == [block_total(each.usage) for each in (two, short, parsed)]


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_tells_its_usage_only_to_those_who_ask(provider, client, asked):
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = read(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, **options))

    [line] = provider.billed
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert line.usage == Usage(input=9, output=-(-len(text) // 4))
    assert (line.told, line.delivered) == (asked, True)
    assert [bool(chunk.choices) for chunk in chunks] == [True] * 14 + [False] * asked
    assert ["usage" in chunk.to_dict() for chunk in chunks] == [asked] * len(chunks)
    if asked:
        assert block_total(chunks[-1].usage) == line.usage.tokens
    assert all(chunk.choices == [] or chunk.obfuscation for chunk in chunks)
    assert provider.requests[-1].stream_options == options.get("stream_options")


def test_a_stream_looks_on_the_wire_as_it_does_at_openai(provider):
    body = {"model": "gpt-4o", "messages": MESSAGES, "stream": True, "stream_options": {"include_obfuscation": False}}
    response = httpx2.post(provider.url_with(events=1) + "/v1/chat/completions", json=body)

    created = json.loads(response.text.split("\n")[0][6:])["created"]
    id = provider.billed[0].response_id
    start = f'data: {{"id":"{id}","object":"chat.completion.chunk","created":{created},"model":"gpt-4o-2024-08-06",'
    start += '"service_tier":"default","system_fingerprint":"fp_560af6e559","choices":[{"index":0,"delta":'
    assert response.text == (
        start + '{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}\n\n'
        + start + '{"content":"Every"},"logprobs":null,"finish_reason":null}]}\n\n'
        + start + '{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
        + "data: [DONE]\n\n"
    )  # fmt: skip
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-request-id"].startswith("req_")


def test_a_tool_is_called_until_it_is_answered(provider, client):
    called = valid(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, tools=TOOLS))
    answer = {"role": "tool", "tool_call_id": called.choices[0].message.tool_calls[0].id, "content": "sunny"}
    history = [*MESSAGES, called.choices[0].message.to_dict(), answer]
    answered = valid(client.chat.completions.create(model="gpt-4o", messages=history, tools=TOOLS))

    call = called.choices[0].message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris", "days": 7})
    assert called.choices[0].finish_reason == "tool_calls"
    assert answered.choices[0].message.content.startswith("Every call")


def test_the_stream_helper_puts_a_tool_call_together(provider, client):
    with client.chat.completions.stream(
        model="gpt-4o", messages=MESSAGES, tools=TOOLS, stream_options={"include_usage": True}
    ) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        completion = stream.get_final_completion()

    assert len(pieces) > 1
    assert completion.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Paris", "days": 7}
    assert block_total(completion.usage) == provider.billed[0].usage.tokens


def test_audio_and_images_count_apart(provider, client):
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 8000, "format": "wav"}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    options: Any = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    question: Any = [{"role": "user", "content": [sound, picture]}]

    spoken = valid(client.chat.completions.create(model="gpt-4o-audio-preview", messages=question, **options))
    chunks = read(
        client.chat.completions.create(
            model="gpt-4o-audio-preview",
            messages=question,
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
    )

    assert spoken.choices[0].message.audio.transcript.startswith("Every call")
    assert provider.billed[0].usage == provider.billed[1].usage
    assert provider.billed[0].usage == Usage(input=9, input_audio=3, input_image=258, output=19, output_audio=64)
    assert block_total(spoken.usage) == block_total(chunks[-1].usage) == provider.billed[0].usage.tokens
    assert spoken.usage.prompt_tokens_details.audio_tokens == 3


def test_a_long_prompt_is_half_cached_and_may_be_written_to_the_cache(provider, client):
    long: Any = [{"role": "user", "content": "x" * 8000}]

    read_only = valid(client.chat.completions.create(model="gpt-5", messages=long))
    written = valid(client.chat.completions.create(model="gpt-5.6", messages=long, prompt_cache_options={"ttl": "30m"}))
    day = valid(client.responses.create(model="gpt-5.6", input=long, prompt_cache_options={"ttl": "12h"}))

    assert [line.usage for line in provider.billed] == [
        Usage(input=1112, cache_read=896, output=19),
        Usage(cache_write_30m=1112, cache_read=896, output=19),
        Usage(cache_write_12h=1112, cache_read=896, output=19),
    ]
    assert read_only.usage.prompt_tokens_details.cached_tokens == 896
    assert written.usage.prompt_tokens_details.cache_write_tokens == 1112
    assert day.usage.input_tokens_details.cache_write_tokens_details.ttl_12h_tokens == 1112
    assert {read_only.usage.total_tokens, written.usage.total_tokens, day.usage.total_tokens} == {2027}


def test_a_stored_chat_shows_its_usage_again_and_costs_nothing(provider, client):
    created = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, store=True)
    again = valid(client.chat.completions.retrieve(created.id))
    client.chat.completions.delete(created.id)

    assert again.usage == created.usage
    assert len(provider.billed) == 1
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(created.id)


def test_legacy_completions(provider, client, lenient):
    plain = valid(client.completions.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"], max_tokens=2))
    stream = lenient.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Hello", stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    assert [choice.finish_reason for choice in plain.choices] == ["length", "length"]
    assert provider.billed[0].usage == Usage(input=3, output=4)
    assert (chunks[-1].choices, block_total(chunks[-1].usage)) == ([], provider.billed[1].usage.tokens)
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_a_response_with_every_tool_of_openais(provider, client):
    response = valid(
        client.responses.create(
            model="gpt-5", input="Hello", tools=HOSTED, reasoning={"effort": "high", "summary": "auto"}
        )
    )

    line, picture = provider.billed
    kinds = [
        "reasoning",
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "message",
    ]
    assert [item.type for item in response.output] == kinds
    assert (line.usage.web_search, line.usage.file_search, line.usage.code_interpreter) == (1, 1, 1)
    assert (line.usage.reasoning, response.usage.output_tokens_details.reasoning_tokens) == (512, 512)
    assert block_total(response.usage) == line.usage.tokens
    assert (picture.kind, picture.model, picture.response_id) == ("image_gen", "gpt-image-1-mini", response.id)
    assert block_total(response.tool_usage.image_gen) == picture.usage.tokens
    assert response.tool_usage.web_search.num_requests == 1


def test_a_streamed_response_sends_the_events_a_real_one_does(provider, client):
    options: Any = {"tools": HOSTED, "reasoning": {"effort": "high", "summary": "auto"}}
    events = read(client.responses.create(model="gpt-5", input="Hello", stream=True, **options))

    kinds = [event.type.removeprefix("response.") for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == "completed"
    assert {kind for kind in kinds if kind.startswith(("code_interpreter", "image", "web", "file"))} == {
        "code_interpreter_call.in_progress", "code_interpreter_call_code.delta", "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting", "code_interpreter_call.completed", "file_search_call.in_progress",
        "file_search_call.searching", "file_search_call.completed", "web_search_call.in_progress",
        "web_search_call.searching", "web_search_call.completed", "image_generation_call.in_progress",
        "image_generation_call.generating", "image_generation_call.completed",
    }  # fmt: skip
    assert {"reasoning_summary_text.delta", "output_text.delta", "output_text.annotation.added"} < set(kinds)
    assert events[0].response.usage is None
    assert block_total(events[-1].response.usage) == provider.billed[0].usage.tokens
    assert all(line.told and line.delivered for line in provider.billed)


def test_a_response_calls_a_function_until_it_is_answered(provider, client):
    called = valid(client.responses.create(model="gpt-5", input="Hello", tools=FUNCTIONS))
    call = called.output[0].to_dict()
    answer = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    answered = client.responses.create(model="gpt-5", input=[call, answer], tools=FUNCTIONS)
    with client.responses.stream(model="gpt-5", input="Hello", tools=FUNCTIONS) as stream:
        streamed = stream.until_done().get_final_response()
    parsed = client.responses.parse(model="gpt-5", input="Hello", text_format=City)

    assert json.loads(call["arguments"]) == {"city": "Paris", "days": 7}
    assert answered.output_text.startswith("Every call")
    assert streamed.output[0].arguments == call["arguments"]
    assert parsed.output_parsed == City(name="Paris", people=7, tags=["Paris"])
    assert [line.usage.tokens for line in provider.billed] == [
        block_total(each.usage) for each in (called, answered, streamed, parsed)
    ]


def test_a_background_response_is_billed_once_and_told_when_it_has_ended(provider, client):
    created = valid(client.responses.create(model="gpt-5", input="Hello", background=True))
    [line] = provider.billed
    told_at_creation = line.told
    polls = [valid(client.responses.retrieve(created.id)) for _ in range(3)]
    replayed = read(client.responses.retrieve(created.id, stream=True, starting_after=2))

    assert [each.status for each in (created, *polls)] == ["queued", "in_progress", "completed", "completed"]
    assert [each.usage and each.usage.total_tokens for each in polls] == [None, 21, 21]
    assert (told_at_creation, line.told) == (False, True)
    assert replayed[0].sequence_number == 3
    assert block_total(replayed[-1].response.usage) == line.usage.tokens == 21
    assert len(provider.billed) == 1


def test_a_cancelled_background_response_is_not_charged(provider, client):
    created = client.responses.create(model="gpt-5", input="Hello", background=True)
    cancelled = valid(client.responses.cancel(created.id))
    client.responses.delete(created.id)

    assert (cancelled.status, cancelled.usage, provider.billed) == ("cancelled", None, [])
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_an_incomplete_response_a_compaction_and_a_free_count(provider, client):
    stream = client.responses.create(model="gpt-5", input="Hello", max_output_tokens=3, stream=True)
    last = read(stream)[-1]
    compacted = valid(client.responses.compact(model="gpt-5", input="Hello"))
    counted = valid(client.responses.input_tokens.count(model="gpt-5", input="Hello"))

    assert (last.type, last.response.incomplete_details.reason) == ("response.incomplete", "max_output_tokens")
    assert last.response.usage.output_tokens == 3
    assert (compacted.object, compacted.output[0].type) == ("response.compaction", "compaction")
    assert counted.input_tokens == 2
    assert [line.usage for line in provider.billed] == [Usage(input=2, output=3), Usage(input=2, output=64)]


def test_a_batch_bills_every_line_once(provider, client):
    body = {"model": "gpt-4o-mini", "messages": MESSAGES}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    content = "\n".join(json.dumps({"custom_id": str(number), **line}) for number in range(3))
    file = valid(client.files.create(file=("batch.jsonl", content.encode()), purpose="batch"))

    created = valid(
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    )
    ended = valid(client.batches.retrieve(created.id))
    told_before = [line.told for line in provider.billed]
    rows = [json.loads(row) for row in client.files.content(ended.output_file_id).text.splitlines()]
    client.files.content(ended.output_file_id)

    assert (created.status, ended.status, ended.model) == ("validating", "completed", "gpt-4o-mini-2024-07-18")
    assert [row["custom_id"] for row in rows] == ["0", "1", "2"]
    assert [row["response"]["body"]["id"] for row in rows] == [line.response_id for line in provider.billed]
    assert [(line.usage, line.batch, line.told) for line in provider.billed] == [
        (Usage(input=9, output=19), True, True)
    ] * 3
    assert (ended.usage.total_tokens, told_before) == (3 * 28, [False] * 3)


def test_azure_speaks_its_own_dialect(provider):
    with openai.AzureOpenAI(azure_endpoint=provider.url, api_key="k", api_version="2024-10-21") as client:
        plain = client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        chunks = list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
        embedded = client.embeddings.create(model="text-embedding-3-small", input="Hello")
    with openai.OpenAI(base_url=f"{provider.url}/openai/v1", api_key="k") as client:
        modern = client.responses.create(model="gpt-5", input="Hello")

    assert (plain.model, plain.choices[0].to_dict()["content_filter_results"]["hate"]["filtered"]) == (
        "gpt-4o-2024-08-06", False,
    )  # fmt: skip
    assert (chunks[0].choices, chunks[0].id, "prompt_filter_results" in chunks[0].to_dict()) == ([], "", True)
    assert (embedded.usage.total_tokens, modern.usage.total_tokens) == (2, 21)
    paths = [request.path for request in provider.requests]
    assert paths[0] == "/openai/deployments/gpt-4o/chat/completions" and paths[-1] == "/openai/v1/responses"
    assert provider.requests[0].model == "gpt-4o"


def test_the_asynchronous_client_gets_the_same(provider):
    async def calls() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="k", max_retries=0) as client:
            chat = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
            stream = await client.chat.completions.create(
                model="gpt-4o", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            response = await client.responses.create(model="gpt-5", input="Hello")
            events = [event async for event in await client.responses.create(model="gpt-5", input="Hello", stream=True)]
            embedded = await client.embeddings.create(model="text-embedding-3-small", input="Hello")
            async with client.chat.completions.with_streaming_response.create(model="gpt-4o", messages=MESSAGES) as raw:
                parsed = await raw.parse()
        return [chat.usage, chunks[-1].usage, response.usage, events[-1].response.usage, embedded.usage, parsed.usage]

    told = asyncio.run(calls())

    assert [block_total(usage) for usage in told] == [28, 28, 21, 21, 2, 28]
    assert [line.usage.tokens for line in provider.billed] == [28, 28, 21, 21, 2, 28]
    assert all(line.told and line.delivered for line in provider.billed)
