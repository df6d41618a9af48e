"""OpenAI's surface: every way to call it is one event per model that billed, and a second look costs nothing."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from pydantic import BaseModel

import token_meter
from tests.providers.kit import CHAT, MESSAGES, PARAMETERS, RESPONSE, Bench
from token_meter import Usage
from token_meter.providers.hosts import host_named

AUDIO = ("speech.wav", b"\x00" * 70_000)
FUNCTION: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
HOSTED: Any = [
    {"type": "web_search"},
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "image_generation", "model": "gpt-image-1-mini"},
]


class City(BaseModel):
    name: str


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


# ---- what an event keeps, because it cannot be known later --------------------------------------------------------


def test_the_model_that_answered_the_tier_and_the_size_of_the_context_are_kept(bench: Bench) -> None:
    bench.openai().chat.completions.create(**CHAT, service_tier="flex")
    bench.openai().responses.create(**RESPONSE, service_tier="priority")

    chat, response = bench.events
    assert (chat.model_requested, chat.model, chat.publisher) == ("gpt-4o", "gpt-4o-2024-08-06", "openai")
    assert dict(chat.price_context) == {"service_tier": "flex", "context_tokens": 9}
    assert dict(response.price_context) == {"service_tier": "priority", "context_tokens": response.usage.input}
    assert chat.response_id == bench.billed[0].response_id


def test_cache_writes_keep_their_time_to_live(bench: Bench) -> None:
    bench.openai().responses.create(**RESPONSE, extra_body={"prompt_cache_options": {"ttl": "12h"}})
    bench.openai().responses.create(**RESPONSE, extra_body={"prompt_cache_options": {}})

    assert [set(usage) for usage in bench.usages] == [{"cache_write_12h", "output"}, {"cache_write_30m", "output"}]
    bench.assert_billed()


def test_modalities_are_kept_apart(bench: Bench) -> None:
    usage = Usage(input=5, input_audio=7, input_image=11, cache_read=3, output=2, output_audio=13, reasoning=1)
    bench.provider.usage(usage, api="openai.chat")
    bench.openai().chat.completions.create(**CHAT)

    assert bench.event.usage == usage


def test_hosted_tools_are_counted_and_the_image_model_is_an_event_of_its_own(bench: Bench) -> None:
    for stream in (False, True):
        answer = bench.openai().responses.create(**RESPONSE, tools=HOSTED, stream=stream)
        if stream:
            for _ in answer:
                pass

    calls = {"web_search": 1, "file_search": 1, "code_interpreter": 1, "image_generation": 1}
    for main, image in (bench.events[:2], bench.events[2:]):
        assert {name: main.usage[name] for name in calls} == calls
        assert (image.model, image.usage) == ("gpt-image-1-mini", Usage(input=50, output_image=272))
        assert image.response_id == main.response_id
        assert image.id != main.id
    assert len(bench.events) == 4


# ---- ways to call -------------------------------------------------------------------------------------------------


def test_raw_responses_that_nobody_parses_are_counted(bench: Bench) -> None:
    client = bench.openai()
    client.chat.completions.with_raw_response.create(**CHAT)
    with client.chat.completions.with_streaming_response.create(**CHAT) as response:
        response.read()
    with client.chat.completions.with_streaming_response.create(**CHAT) as response:
        b"".join(response.iter_bytes(7))

    bench.assert_billed()
    assert len(bench.events) == 3


def test_a_streaming_response_that_nobody_reads_is_flagged(bench: Bench) -> None:
    with bench.openai().chat.completions.with_streaming_response.create(**CHAT):
        pass

    assert (bench.event.status, bench.event.anomalies) == ("estimated", ("no_usage", "closed"))


def test_client_post_and_another_type_are_counted(bench: Bench) -> None:
    client = bench.openai()
    client.post("/chat/completions", body=CHAT, cast_to=httpx2.Response)
    client.post("/chat/completions", body=CHAT, cast_to=openai.types.chat.ChatCompletion)
    client.post("https://api.groq.com/openai/v1/chat/completions", body=CHAT, cast_to=httpx2.Response)
    client.get("/models", cast_to=httpx2.Response)

    bench.assert_billed()
    assert [event.provider for event in bench.events] == ["openai", "openai", "groq"]


def test_parse_and_its_helper_and_beta_are_counted(bench: Bench) -> None:
    client = bench.openai()
    client.chat.completions.parse(**CHAT, response_format=City)
    with client.chat.completions.stream(**CHAT, response_format=City) as stream:
        stream.until_done()
    client.responses.parse(**RESPONSE, text_format=City)
    client.beta.responses.create(**RESPONSE)

    bench.assert_billed()
    assert len(bench.events) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_runner_is_an_event_per_inner_call(bench: Bench, stream: bool) -> None:
    runner = ResponsesToolRunner(functions=[RegisteredFunction(FUNCTION, execute=lambda arguments: "sunny")])
    with bench.meter.customer("acme") as tally:
        runner.run(bench.openai(), {"model": "gpt-5", "input": "Hello"}, stream=stream)
    runner.close()

    bench.assert_billed()
    assert len(bench.events) == tally.calls == 2
    assert {event.customer for event in bench.events} == {"acme"}


def test_the_module_level_client_is_counted_while_instrumented(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "api_key", "sk-test")
    monkeypatch.setattr(openai, "base_url", "https://api.openai.com/v1")
    monkeypatch.setattr(openai, "http_client", bench.http_client(is_async=False))
    openai._reset_client()
    try:
        with bench.meter.instrument("openai"):
            openai.chat.completions.create(**CHAT)
        openai.chat.completions.create(**CHAT)
    finally:
        openai._reset_client()

    assert bench.usages == [bench.billed[0].usage]


@pytest.mark.parametrize("is_async", [False, True])
def test_azure_is_named_and_its_deployment_is_the_model_asked_for(bench: Bench, is_async: bool) -> None:
    cls = openai.AsyncAzureOpenAI if is_async else openai.AzureOpenAI
    client = bench.meter.wrap(
        cls(
            azure_endpoint="https://acme.openai.azure.com",
            api_version="2025-04-01-preview",
            api_key="x",
            http_client=bench.http_client(is_async=is_async),
        )
    )

    async def main() -> None:
        answer = client.with_options(timeout=9).chat.completions.create(**{**CHAT, "model": "our-gpt"})
        if is_async:
            await answer

    bench.run(main)

    assert isinstance(client, cls)
    assert (bench.event.provider, bench.event.host) == ("azure", "acme.openai.azure.com")
    assert (bench.event.model_requested, bench.event.usage) == ("our-gpt", bench.billed[0].usage)


HOSTS = {
    "openrouter.ai": "openrouter", "api.deepinfra.com": "deepinfra", "api.groq.com": "groq",
    "api.mistral.ai": "mistral", "api.deepseek.com": "deepseek", "api.x.ai": "xai", "api.together.xyz": "together",
    "api.fireworks.ai": "fireworks", "api.cerebras.ai": "cerebras", "api.perplexity.ai": "perplexity",
    "localhost:11434": "ollama", "127.0.0.1:1234": "lmstudio", "gateway.example": "openai",
    "acme.services.ai.azure.com": "azure", "us-central1-aiplatform.googleapis.com": "vertex",
    "bedrock-runtime.us-east-1.amazonaws.com": "bedrock",
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_who_is_billed_follows_from_the_host(bench: Bench, host: str) -> None:
    bench.openai(host=f"https://{host}").chat.completions.create(**CHAT)

    assert (bench.event.provider, bench.event.host) == (HOSTS[host], host)


def test_names_that_only_look_like_a_host_are_not_taken_for_it() -> None:
    for name in ("evil-openai.azure.com.example", "api.openai.com.example", "xapi.groq.com", "", "amazonaws.com"):
        assert host_named(name) is None


# ---- embeddings, images, audio ------------------------------------------------------------------------------------


def test_the_counts_of_a_large_embeddings_body_are_read(bench: Bench) -> None:
    client = bench.openai(faults={"size": 300_000})
    client.embeddings.create(model="text-embedding-3-large", input=["Hello", "World"], encoding_format="float")

    bench.assert_billed()
    raw = bench.event.raw_usage
    assert raw is not None and set(raw) == {"prompt_tokens", "total_tokens"}


@pytest.mark.parametrize("stream", [False, True])
def test_images_are_counted_by_their_tokens(bench: Bench, stream: bool) -> None:
    answer = bench.openai().images.generate(model="gpt-image-1", prompt="a cat", n=2, stream=stream)
    if stream:
        for _ in answer:
            pass
    edited = bench.openai().images.edit(model="gpt-image-1", image=("cat.png", b"png"), prompt="a dog")

    assert edited.usage is not None
    assert bench.usages == [line.usage for line in bench.billed]
    assert bench.usages[1].input_image > 0
    assert {event.status for event in bench.events} == {"complete"}


def test_images_without_counts_are_flagged(bench: Bench) -> None:
    bench.openai().images.generate(model="dall-e-3", prompt="a cat")

    assert (bench.event.status, bench.event.usage, bench.event.anomalies) == ("unmetered", Usage(), ("no_usage",))
    assert bench.event.model_requested == bench.event.model == "dall-e-3"


@pytest.mark.parametrize(
    "options",
    [
        {"model": "gpt-4o-transcribe"},
        {"model": "gpt-4o-transcribe", "stream": True},
        {"model": "whisper-1"},
        {"model": "whisper-1", "response_format": "verbose_json"},
    ],
    ids=str,
)
def test_transcriptions_are_counted_by_token_or_by_second(bench: Bench, options: dict[str, Any]) -> None:
    answer = bench.openai().audio.transcriptions.create(file=AUDIO, **options)
    if options.get("stream"):
        for _ in answer:
            pass

    [line] = bench.billed
    assert (bench.event.usage, bench.event.status) == (line.usage, "complete")
    assert ("audio_ms" in bench.event.usage) == (options["model"] == "whisper-1")


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_a_transcription_as_text_tells_nothing_and_is_flagged(bench: Bench, form: Any) -> None:
    assert bench.openai().audio.transcriptions.create(model="whisper-1", file=AUDIO, response_format=form)

    assert (bench.event.status, bench.event.usage) == ("unmetered", Usage())


def test_speech_tells_its_counts_only_as_events(bench: Bench) -> None:
    speech = bench.openai().audio.speech
    speech.create(model="gpt-4o-mini-tts", voice="alloy", input="Hello there")
    with speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input="Hello there", stream_format="sse"
    ) as response:
        response.read()

    assert [event.status for event in bench.events] == ["unmetered", "complete"]
    assert bench.usages[1].tokens == bench.billed[1].usage.tokens


# ---- what costs nothing -------------------------------------------------------------------------------------------


def test_free_endpoints_are_no_events(bench: Bench) -> None:
    client = bench.openai()
    client.models.list()
    client.moderations.create(input="Hello")
    client.responses.input_tokens.count(model="gpt-5", input="Hello")
    client.files.create(file=("lines.jsonl", b"{}"), purpose="batch")

    assert (bench.events, bench.billed) == ([], [])


def test_looking_again_costs_nothing(bench: Bench) -> None:
    client = bench.openai()
    response = client.responses.create(**RESPONSE)
    chat = client.chat.completions.create(**CHAT, store=True)
    with bench.meter.customer("acme") as tally:
        client.responses.retrieve(response.id)
        for _ in client.responses.retrieve(response.id, stream=True):
            pass
        client.chat.completions.retrieve(chat.id)
        client.responses.delete(response.id)

    bench.assert_billed()
    assert len(bench.events) == 2
    assert (tally.calls, tally.usage) == (0, Usage())


# ---- background ---------------------------------------------------------------------------------------------------


def test_a_background_response_is_one_event_however_often_it_is_polled(bench: Bench) -> None:
    client = bench.openai()
    with bench.meter.customer("acme") as tally:
        response = client.responses.create(**RESPONSE, background=True)
        [placeholder] = bench.events
        for _ in range(5):
            response = client.responses.retrieve(response.id)

    assert response.status == "completed"
    assert (placeholder.status, placeholder.anomalies) == ("unmetered", ("deferred",))
    assert (bench.event.id, bench.event.status) == (placeholder.id, "complete")
    bench.assert_billed()
    assert tally.usage == bench.event.usage


def test_a_background_response_read_by_another_client_is_the_same_event(bench: Bench) -> None:
    created = bench.openai().responses.create(**RESPONSE, background=True)
    other = bench.openai(is_async=True)

    async def main() -> None:
        for _ in range(3):
            await other.responses.retrieve(created.id)

    bench.run(main)

    bench.assert_billed()


def test_a_background_stream_and_its_replay_are_one_event(bench: Bench) -> None:
    client = bench.openai()
    first = list(client.responses.create(**RESPONSE, background=True, stream=True))
    for _ in client.responses.retrieve(first[0].response.id, stream=True, starting_after=3):
        pass

    bench.assert_billed()
    assert len(bench.events) == 1


def test_a_background_stream_cut_short_is_completed_by_the_read_that_follows(bench: Bench) -> None:
    stream = bench.openai(faults={"cut": 4}).responses.create(**RESPONSE, background=True, stream=True)
    created = next(stream).response
    for _ in stream:
        pass
    assert bench.event.status == "unmetered"
    bench.openai().responses.retrieve(created.id)

    bench.assert_billed()


def test_compaction_is_counted(bench: Bench) -> None:
    bench.openai().responses.compact(model="gpt-5", input="Hello")

    assert bench.usages == [line.usage for line in bench.billed]


# ---- bounded ------------------------------------------------------------------------------------------------------


def test_an_open_stream_keeps_as_little_after_many_chunks_as_after_few(bench: Bench) -> None:
    """Bounded by 4 KB here, journal line included; `bench/` measures it precisely."""
    home = os.path.dirname(token_meter.__file__)
    ours = [tracemalloc.Filter(True, os.path.join(home, "providers", "*"))]
    ours += [tracemalloc.Filter(True, os.path.join(home, f"{name}.py")) for name in ("recorder", "lines", "journal")]

    def held(events: int) -> int:
        tracemalloc.start()
        before = tracemalloc.take_snapshot().filter_traces(ours)
        streams = []
        for _ in range(5):
            stream = bench.openai(faults={"events": events}).chat.completions.create(**CHAT, stream=True)
            for _ in range(events - 5):
                next(stream)
            streams.append(stream)
        grown = tracemalloc.take_snapshot().filter_traces(ours).compare_to(before, "filename")
        tracemalloc.stop()
        for stream in streams:
            stream.close()
        return sum(each.size_diff for each in grown) // len(streams)

    held(20)  # what is remembered once is remembered now

    assert max(held(20), held(200)) < 4096


def test_no_prompt_and_no_key_stands_in_an_event(bench: Bench) -> None:
    secret = "the-launch-code-is-1234"
    raw = {"prompt_tokens": 3, "completion_tokens": 1, "note": f"you said {secret}", "echo": [f"{secret} "], secret: 1}
    bench.provider.usage(raw=raw, api="openai.chat")
    client = bench.openai(api_key="sk-very-secret", faults={"weird": ""})
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": secret}], user=secret)
    client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True).close()

    text = json.dumps([event.to_json() for event in bench.events])
    assert "sk-very-secret" not in text
    assert f"you said {secret}" not in text and f"{secret} " not in text
    assert bench.events[0].raw_usage == {"prompt_tokens": 3, "completion_tokens": 1, "echo": [], secret: 1}
