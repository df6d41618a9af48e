"""`stream_options.include_usage` is asked for where it is known to be accepted, and the caller never notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.providers.kit import CHAT, Bench, plain
from token_meter.providers.hosts import host_named

STREAM: dict[str, Any] = {**CHAT, "stream": True}
LEGACY: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello", "stream": True}
ASKED = {"include_usage": True}
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def chunks(client: Any, **options: Any) -> list[Any]:
    return [plain(chunk) for chunk in client.chat.completions.create(**STREAM, **options)]


def legacy_chunks(client: Any) -> list[Any]:
    return [plain(chunk) for chunk in client.completions.create(**LEGACY)]


def helper_events(client: Any) -> list[Any]:
    with client.chat.completions.stream(**CHAT) as stream:
        events = [(event.type, plain(event.model_dump(mode="json"))) for event in stream]
        return [*events, plain(stream.get_final_completion())]


def raw_parsed(client: Any) -> list[Any]:
    raw = client.chat.completions.with_raw_response.create(**STREAM)
    return [plain(chunk) for chunk in raw.parse()]


def raw_lines(client: Any) -> list[Any]:
    with client.chat.completions.with_streaming_response.create(**STREAM) as response:
        return [plain(line) for line in response.iter_lines()]


def raw_bytes(client: Any) -> list[Any]:
    with client.chat.completions.with_streaming_response.create(**STREAM) as response:
        return [plain(b"".join(response.iter_bytes()))]


def raw_text(client: Any) -> list[Any]:
    with client.chat.completions.with_streaming_response.create(**STREAM) as response:
        return [plain("".join(response.iter_text()))]


def posted(client: Any) -> list[Any]:
    stream = client.post(
        "/chat/completions", body=STREAM, cast_to=openai.types.chat.ChatCompletionChunk, stream=True,
        stream_cls=openai.Stream[openai.types.chat.ChatCompletionChunk],
    )  # fmt: skip
    return [plain(chunk) for chunk in stream]


READERS: list[Callable[[Any], list[Any]]] = [
    chunks, legacy_chunks, helper_events, raw_parsed, raw_lines, raw_bytes, raw_text, posted,
]  # fmt: skip
FAULTS: list[dict[str, Any]] = [
    {}, {"gzip": True}, {"chop": 1}, {"chop": 7, "gzip": True}, {"crlf": True}, {"crlf": True, "chop": 5}, {"events": 100},
]  # fmt: skip


@pytest.mark.parametrize("faults", FAULTS, ids=str)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_the_caller_reads_what_the_bare_sdk_gives(
    bench: Bench, read: Callable[[Any], list[Any]], faults: dict[str, Any]
) -> None:
    bare = read(bench.openai(wrap=False, faults=faults))
    metered = read(bench.openai(faults=faults))

    assert metered == bare
    assert bench.provider.requests[-1].stream_options == ASKED
    assert (bench.event.usage, bench.event.status) == (bench.billed[-1].usage, "complete")


@pytest.mark.parametrize(
    "options",
    [{"n": 3}, {"tools": [{"type": "function", "function": FUNCTION}]}, {"modalities": ["audio", "text"], "audio": {}}],
    ids=["choices", "tools", "audio"],
)
def test_every_kind_of_chunk_stays_as_it_is(bench: Bench, options: dict[str, Any]) -> None:
    assert chunks(bench.openai(), **options) == chunks(bench.openai(wrap=False), **options)
    assert bench.event.usage == bench.billed[0].usage


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_the_asynchronous_caller_reads_the_same(bench: Bench, faults: dict[str, Any]) -> None:
    async def read(*, wrap: bool) -> list[Any]:
        client = bench.openai(is_async=True, wrap=wrap, faults=faults)
        seen = [plain(chunk) async for chunk in await client.chat.completions.create(**STREAM)]
        async with client.chat.completions.with_streaming_response.create(**STREAM) as response:
            return [*seen, *[plain(line) async for line in response.iter_lines()]]

    async def main() -> None:
        assert await read(wrap=True) == await read(wrap=False)

    bench.run(main)
    assert bench.usages == [line.usage for line in bench.billed[:2]]


@pytest.mark.parametrize("is_async", [False, True])
def test_azure_is_asked_and_its_first_chunk_without_choices_stays(bench: Bench, is_async: bool) -> None:
    def client(*, wrap: bool) -> Any:
        cls = openai.AsyncAzureOpenAI if is_async else openai.AzureOpenAI
        return bench.meter.wrap(azure(cls)) if wrap else azure(cls)

    def azure(cls: Any) -> Any:
        return cls(
            azure_endpoint="https://acme.openai.azure.com", api_version="2025-04-01-preview", api_key="x",
            http_client=bench.http_client(is_async=is_async),
        )  # fmt: skip

    async def read(*, wrap: bool) -> list[Any]:
        if not is_async:
            return chunks(client(wrap=wrap))
        return [plain(chunk) async for chunk in await client(wrap=wrap).chat.completions.create(**STREAM)]

    async def main() -> None:
        bare, metered = await read(wrap=False), await read(wrap=True)
        assert metered == bare
        assert metered[0]["choices"] == []

    bench.run(main)
    assert bench.provider.requests[-1].stream_options == ASKED
    assert (bench.event.usage, bench.event.provider) == (bench.billed[-1].usage, "azure")


def test_an_old_azure_version_is_not_asked(bench: Bench) -> None:
    client = openai.AzureOpenAI(
        azure_endpoint="https://acme.openai.azure.com", api_version="2024-02-01", api_key="x",
        http_client=bench.http_client(is_async=False),
    )  # fmt: skip
    chunks(bench.meter.wrap(client))

    assert bench.provider.requests[-1].stream_options is None
    assert bench.event.status == "estimated"


def test_who_asked_himself_sees_the_chunk(bench: Bench) -> None:
    metered = chunks(bench.openai(), stream_options=ASKED)

    assert metered == chunks(bench.openai(wrap=False), stream_options=ASKED)
    assert metered[-1]["usage"]["total_tokens"] == bench.event.usage.tokens


@pytest.mark.parametrize("extra", [{"stream_options": ASKED}, {"stream_options": {"include_usage": False}}], ids=str)
def test_who_decided_in_extra_body_sees_what_he_decided(bench: Bench, extra: dict[str, Any]) -> None:
    metered = chunks(bench.openai(), extra_body=extra)

    assert metered == chunks(bench.openai(wrap=False), extra_body=extra)
    assert bench.provider.requests[0].stream_options == extra["stream_options"]
    assert bench.event.status == ("complete" if extra["stream_options"]["include_usage"] else "estimated")


def test_who_refused_is_not_overruled(bench: Bench) -> None:
    metered = chunks(bench.openai(), stream_options={"include_usage": False})

    assert metered == chunks(bench.openai(wrap=False), stream_options={"include_usage": False})
    assert bench.provider.requests[0].stream_options == {"include_usage": False}
    assert (bench.event.status, bench.event.estimator) == ("estimated", "bytes/4")


@pytest.mark.parametrize("given", [{}, {"include_obfuscation": False}, None], ids=str)
def test_other_stream_options_are_kept(bench: Bench, given: Any) -> None:
    metered = chunks(bench.openai(), stream_options=given)

    assert metered == chunks(bench.openai(wrap=False), stream_options=given)
    assert bench.provider.requests[0].stream_options == {**(given or {}), **ASKED}
    assert bench.event.usage == bench.billed[0].usage


def test_the_callers_own_arguments_are_not_touched(bench: Bench) -> None:
    options: dict[str, Any] = {"include_obfuscation": False}
    chunks(bench.openai(), stream_options=options)

    assert options == {"include_obfuscation": False}


def test_nothing_is_asked_where_nothing_is_streamed(bench: Bench) -> None:
    bench.openai().chat.completions.create(**CHAT)
    bench.openai().responses.create(model="gpt-5", input="Hello", stream=True).close()

    assert [request.stream_options for request in bench.provider.requests] == [None, None]


# ---- hosts --------------------------------------------------------------------------------------------------------

ACCEPTING = (
    "api.openai.com", "eu.api.openai.com", "openrouter.ai", "api.groq.com", "api.deepinfra.com", "api.deepseek.com",
    "api.x.ai", "api.together.xyz", "api.fireworks.ai", "api.cerebras.ai", "localhost:11434", "127.0.0.1:1234",
)  # fmt: skip
OTHERS = (
    "api.mistral.ai",
    "api.perplexity.ai",
    "llm.internal.example",
    "127.0.0.1:8000",
    "evil-api.openai.com.example",
)


@pytest.mark.parametrize("host", [*ACCEPTING, *OTHERS])
def test_only_hosts_known_to_accept_it_are_asked(bench: Bench, host: str) -> None:
    scheme = "http" if ":" in host else "https"
    chunks(bench.openai(host=f"{scheme}://{host}"))

    known = host_named(host)
    assert bench.provider.requests[0].stream_options == (ASKED if host in ACCEPTING else None)
    assert bench.event.status == ("complete" if host in ACCEPTING else "estimated")
    assert (bench.event.host, bench.event.provider) == (host, known.provider if known else "openai")


@pytest.mark.parametrize("pattern", ["llm.internal.example", "*.internal.example", "LLM.Internal.Example"])
def test_a_host_can_be_allowed(bench: Bench, pattern: str) -> None:
    bench.meter.allow_include_usage(pattern)
    chunks(bench.openai(host="https://llm.internal.example"))
    chunks(bench.openai(host="https://other.example"))

    assert [request.stream_options for request in bench.provider.requests] == [ASKED, None]


def test_hosts_can_be_allowed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_METER_INCLUDE_USAGE_HOSTS", "a.example, b.example:8000")
    with Bench() as bench:
        for host in ("a.example", "b.example:8000", "b.example", "c.example"):
            chunks(bench.openai(host=f"http://{host}"))

        assert [request.stream_options for request in bench.provider.requests] == [ASKED, ASKED, None, None]


def test_the_legacy_http_library_works_the_same(bench: Bench) -> None:
    def read(*, wrap: bool) -> list[Any]:
        client = openai.OpenAI(
            base_url="https://api.openai.com/v1", api_key="x",
            http_client=bench.http_client(is_async=False, library=httpx),
        )  # fmt: skip
        return chunks(bench.meter.wrap(client) if wrap else client)

    assert read(wrap=True) == read(wrap=False)
    assert bench.event.usage == bench.billed[0].usage
