"""What the loopback provider promises besides its wire formats: log, account, scripting, transports, a clean end."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from token_meter.testing.provider import Billed, Faults, LoopbackProvider, Reply, Request
from token_meter.testing.provider.delivery import Delivery
from token_meter.usage import Usage

MESSAGES: Any = [{"role": "user", "content": "a very private prompt"}]
CHAT: Any = {"model": "gpt-4o", "messages": MESSAGES}
CLAUDE: Any = {"model": "claude-sonnet-4-6", "max_tokens": 99, "messages": MESSAGES}


@pytest.fixture
def provider() -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as provider:
        yield provider


def post(provider: LoopbackProvider, path: str, document: Any, **headers: str) -> httpx2.Response:
    return httpx2.post(provider.url + path, json=document, headers=headers)


def test_the_log_keeps_neither_prompt_nor_key(provider):
    headers = {
        "authorization": "Bearer sk-secret",
        "x-api-key": "sk-secret",
        "api-key": "sk-secret",
        "cookie": "sk-secret",
    }
    options = {"stream": True, "stream_options": {"include_usage": True}}
    post(provider, "/v1/chat/completions?key=sk-secret&access_token=sk-secret&a=b", {**CHAT, **options}, **headers)
    post(
        provider, "/v1beta/models/gemini-2.5-flash:generateContent?key=sk-secret", {}, **{"x-goog-api-key": "sk-secret"}
    )

    seen = provider.requests
    assert "sk-secret" not in repr(seen) and "private" not in repr(seen)
    assert "private" not in repr(provider.billed)
    assert (seen[0].method, seen[0].path, seen[0].query) == ("POST", "/v1/chat/completions", {"a": "b"})
    assert (seen[0].model, seen[0].stream, seen[0].stream_options) == ("gpt-4o", True, {"include_usage": True})
    assert seen[0].headers["content-type"] == "application/json"
    assert (seen[1].model, seen[1].stream, seen[1].stream_options) == ("gemini-2.5-flash", False, None)


def test_the_same_request_counts_the_same_and_ids_never_repeat(provider):
    first = [post(provider, "/v1/chat/completions", CHAT).json() for _ in range(3)]
    with LoopbackProvider() as other:
        first += [post(other, "/v1/chat/completions", CHAT).json() for _ in range(3)]

    assert len({json.dumps(each["usage"]) for each in first}) == 1
    assert len({each["id"] for each in first}) == 6


@pytest.mark.parametrize(
    ("path", "document", "usage"),
    [
        ("/v1/chat/completions", CHAT, Usage(input=1, cache_read=2, cache_write_30m=3, output=4, reasoning=5)),
        (
            "/v1/responses",
            {"model": "gpt-5", "input": "x"},
            Usage(input=1, cache_read=2, cache_write_12h=3, reasoning=5),
        ),
        (
            "/v1/messages",
            CLAUDE,
            Usage(input=1, cache_read=2, cache_write_5m=3, cache_write_1h=4, output=5, web_search=6),
        ),
        (
            "/v1beta/models/g:generateContent",
            {},
            Usage(input=1, input_audio=2, cache_read_image=3, reasoning=4, output=5),
        ),
        ("/v1beta/interactions", {"model": "g", "input": "x"}, Usage(input=1, cache_read=2, tool_input=3, output=4)),
        ("/v1/embeddings", {"model": "e", "input": "x"}, Usage(input=7)),
    ],
)
def test_a_test_can_set_the_exact_usage(provider, path, document, usage):
    provider.usage(usage)

    body = post(provider, path, document).json()

    assert provider.billed[0].usage == provider.total() == usage
    block = body.get("usage") or body["usageMetadata"]
    anthropic = sum(value for name, value in block.items() if name.endswith("_tokens") and name != "total_tokens")
    total = block.get("total_tokens", block.get("totalTokenCount", anthropic))
    assert total == usage.tokens
    assert provider.billed[0].reported == block


def test_the_usage_set_last_for_the_api_and_the_model_counts(provider):
    provider.usage(Usage(input=1))
    provider.usage(Usage(input=2), api="openai.chat", model="gpt-4o")
    provider.usage(raw={"prompt_tokens": "many"}, api="openai.embeddings")

    post(provider, "/v1/chat/completions", CHAT)
    post(provider, "/v1/chat/completions", {**CHAT, "model": "gpt-5"})
    embedded = post(provider, "/v1/embeddings", {"model": "e", "input": "Hello"}).json()
    provider.reset()
    post(provider, "/v1/embeddings", {"model": "e", "input": "Hello"})

    assert embedded["usage"] == {"prompt_tokens": "many"}
    assert provider.billed[0].usage == Usage(input=2)
    with pytest.raises(ValueError, match="give a Usage"):
        provider.usage()


def test_a_scripted_stream_tells_the_scripted_usage(provider):
    provider.usage(Usage(input=100, cache_write_1h=30, output=40, reasoning=2))
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="k") as client:
        start, *_, delta, _ = client.messages.create(**CLAUDE, stream=True)

    assert (start.message.usage.input_tokens, start.message.usage.cache_creation.ephemeral_1h_input_tokens) == (100, 30)
    assert (delta.usage.output_tokens, delta.usage.output_tokens_details.thinking_tokens) == (42, 2)


def test_a_usage_that_the_wire_format_cannot_tell_fails_loudly(provider):
    provider.usage(Usage(cache_write_1h=3))
    response = post(provider, "/v1/chat/completions", CHAT)

    assert (response.status_code, provider.billed) == (500, [])
    assert "openai.chat cannot report cache_write_1h" in response.json()["error"]["message"]
    assert isinstance(provider.errors[0], ValueError)


def test_total_can_be_limited_to_an_api_or_a_model(provider):
    post(provider, "/v1/chat/completions", CHAT)
    post(provider, "/v1/embeddings", {"model": "text-embedding-3-small", "input": "Hello"})

    assert provider.total(api="openai.embeddings") == Usage(input=2)
    assert provider.total(model="gpt-4o-2024-08-06") == provider.billed[0].usage
    assert provider.total() == provider.billed[0].usage + Usage(input=2)


def test_an_answer_and_a_handler_of_the_users_own(provider):
    def handler(request: Request) -> Reply | None:
        if request.document.get("model") == "mine":
            return Reply.json({"echo": request.document["messages"][0]["content"]}, status=418)
        return None

    def events(request: Request) -> Reply:
        return Reply.sse([{"n": 1}, "[DONE]"])

    provider.answer("Short and sweet.")
    provider.script(handler)
    provider.script(events, path="/events")
    mine = post(provider, "/v1/chat/completions", {**CHAT, "model": "mine"})
    other = post(provider, "/v1/chat/completions", CHAT)
    stream = post(provider, "/events", {})

    assert (mine.status_code, mine.json()) == (418, {"echo": "a very private prompt"})
    assert other.json()["choices"][0]["message"]["content"] == "Short and sweet."
    assert stream.text == 'data: {"n":1}\n\ndata: [DONE]\n\n'


def test_a_handler_that_fails_is_told_to_client_and_test(provider):
    def handler(request: Request) -> Reply | None:
        raise LookupError("no such thing")

    provider.script(handler)
    response = post(provider, "/v1/messages", CLAUDE)

    assert (response.status_code, response.json()["error"]["type"]) == (500, "api_error")
    assert [type(error) for error in provider.errors] == [LookupError]


def test_a_handler_may_wait_between_its_chunks(provider):
    read = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield b"first"
        yield b"second" if read.wait(10) else b"late"

    provider.script(lambda request: Reply(200, {}, chunks(), streamed=True))
    with httpx2.Client() as client, client.stream("GET", provider.url) as stream:
        pieces = stream.iter_raw()
        first = next(pieces)
        read.set()

        assert (first, next(pieces)) == (b"first", b"second")


def test_what_did_not_reach_the_client_is_not_delivered():
    line = Billed("openai.chat", "gpt-4o", Usage(input=1))
    delivery = Delivery(Reply(chunks=[b"one", b"two"], streamed=True, billed=(line,)), Faults())
    steps = delivery.steps()
    delivered = [(next(steps), line.delivered) for _ in range(2)]
    delivery.broke()

    assert delivered == [(b"one", False), (b"two", True)]
    assert (line.delivered, line.events) == (False, 2)


def test_bodies_are_utf_8(provider):
    provider.answer("Grüße, 世界 🜚")
    plain = httpx2.post(provider.url_with(chop=1) + "/v1/chat/completions", json=CHAT)

    assert "Grüße, 世界 🜚".encode() in plain.content
    assert provider.billed[0].usage.output == -(-len("Grüße, 世界 🜚".encode()) // 4)


def test_a_stream_that_fails_in_the_middle_breaks_off(provider):
    def chunks() -> Iterator[bytes]:
        yield b"data: 1\n\n"
        raise LookupError("no such thing")

    provider.script(lambda request: Reply(200, {"content-type": "text/event-stream"}, chunks(), streamed=True))
    with pytest.raises(httpx2.RemoteProtocolError):
        post(provider, "/v1/messages", CLAUDE)

    assert [type(error) for error in provider.errors] == [LookupError]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/nothing", "not_found"), ("/v1/messages/nothing", "not_found_error"), ("/v1beta/nothing", "NOT_FOUND")],
)
def test_unknown_paths_are_answered_in_the_vendors_words(provider, path, kind):
    response = post(provider, path, {})

    error = response.json()["error"]
    assert (response.status_code, error.get("status") or error.get("code") or error["type"]) == (404, kind)


@pytest.mark.parametrize("body", [b"[1]", b"{not json"])
def test_a_body_that_is_no_object_is_a_400(provider, body):
    response = httpx2.post(
        f"{provider.openai_url}/embeddings", content=body, headers={"content-type": "application/json"}
    )

    assert response.status_code == 400


def test_chunked_requests_and_kept_alive_connections_work(provider):
    with httpx2.Client() as client:
        body = json.dumps(CHAT).encode()
        headers = {"content-type": "application/json"}
        url = f"{provider.openai_url}/chat/completions"
        first = client.post(url, content=iter([body[:9], body[9:]]), headers=headers)
        second = client.post(url, json=CHAT)

    assert first.json()["usage"] == second.json()["usage"]


@pytest.mark.parametrize("httpx_module", [httpx, httpx2])
def test_the_transports_serve_inside_the_process(httpx_module):
    provider = LoopbackProvider()
    client = httpx_module.Client(transport=provider.transport(httpx_module))
    with (
        client,
        client.stream("POST", f"{provider.openai_url}/chat/completions", json={**CHAT, "stream": True}) as stream,
    ):
        pieces = list(stream.iter_raw())
    async_client = httpx_module.AsyncClient(transport=provider.async_transport(httpx_module))

    async def call() -> Any:
        async with async_client, async_client.stream("POST", f"{provider.url}/v1/messages", json=CLAUDE) as response:
            return json.loads(await response.aread())

    message = asyncio.run(call())

    assert len(pieces) == 15 and pieces[-1] == b"data: [DONE]\n\n"
    assert message["id"] == provider.billed[1].response_id
    assert all(line.delivered for line in provider.billed)


def test_the_transports_serve_the_sdks_and_their_faults():
    provider = LoopbackProvider()
    http = httpx2.Client(transport=provider.transport(httpx2))
    cut = {"base_url": provider.url_with(drop=3) + "/v1", "api_key": "k", "max_retries": 0}
    with openai.OpenAI(**cut, http_client=http) as client, pytest.raises(openai.APIConnectionError):
        list(client.chat.completions.create(**CHAT, stream=True))

    async def call() -> int:
        http = httpx2.AsyncClient(transport=provider.async_transport(httpx2))
        options: Any = {"base_url": provider.url_with(slow=0.01, events=3, gzip=True) + "/v1", "api_key": "k"}
        async with openai.AsyncOpenAI(**options, http_client=http) as client:
            started = time.monotonic()
            chunks = [chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)]
        assert time.monotonic() - started > 0.04
        return len(chunks)

    assert asyncio.run(call()) == 5
    assert [(line.delivered, line.events) for line in provider.billed] == [(False, 3), (True, 6)]


def test_a_client_that_leaves_early_gets_no_full_delivery_in_process():
    provider = LoopbackProvider()
    http = httpx2.Client(transport=provider.transport(httpx2))
    with openai.OpenAI(base_url=provider.openai_url, api_key="k", http_client=http) as client:
        stream = client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
        next(stream)
        stream.close()

    [line] = provider.billed
    assert (line.delivered, line.told, line.events) == (False, False, 1)
    assert line.usage.output == 19


def test_a_client_that_hangs_up_on_a_slow_stream_is_noticed():
    with LoopbackProvider() as provider:
        url = provider.url_with(slow=0.01, events=500) + "/v1"
        with openai.OpenAI(base_url=url, api_key="k") as client:
            stream = client.chat.completions.create(**CHAT, stream=True)
            next(stream)
            stream.close()
        [line] = provider.billed
        deadline = time.monotonic() + 5
        events = -1
        while events != line.events and time.monotonic() < deadline:
            events = line.events
            time.sleep(0.1)

    assert not line.delivered and line.events < 300


def test_many_clients_at_once(provider):
    with ThreadPoolExecutor(16) as pool, httpx2.Client() as client:
        url = f"{provider.openai_url}/chat/completions"
        bodies = list(pool.map(lambda _: client.post(url, json=CHAT).json(), range(100)))

    assert {body["id"] for body in bodies} == {line.response_id for line in provider.billed}
    assert len(provider.requests) == 100


def test_closing_ends_streams_and_leaves_nothing_behind():
    before = threading.active_count()
    provider = LoopbackProvider().start()
    host, port = "127.0.0.1", int(provider.url.rsplit(":", 1)[1])
    idle = socket.create_connection((host, port))
    busy = httpx2.Client()
    url = provider.url_with(slow=30) + "/v1/chat/completions"
    with busy, busy.stream("POST", url, json={**CHAT, "stream": True}) as stream:
        next(stream.iter_raw())
        started = time.monotonic()
        provider.close()
        provider.close()

        assert time.monotonic() - started < 4
    idle.close()
    gc.collect()

    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))


def test_it_can_be_started_again_on_a_port_of_ones_choice():
    with LoopbackProvider() as first:
        port = int(first.url.rsplit(":", 1)[1])
    with LoopbackProvider(port=port) as second:
        assert post(second, "/v1/chat/completions", CHAT).status_code == 200
        assert second.url.endswith(f":{port}")


def test_it_runs_as_a_program_of_its_own():
    command = [sys.executable, "-m", "token_meter.testing.provider", "--port", "0", "--options", "no_done"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            urls = [process.stdout.readline().split() for _ in range(3)]
            answer = httpx2.post(urls[0][1] + "/chat/completions", json={**CHAT, "stream": True}).text
        finally:
            process.terminate()

    assert [name for name, _ in urls] == ["openai", "anthropic", "google"]
    assert urls[0][1] == urls[1][1] + "/v1"
    assert answer.count("data: ") == 14 and "[DONE]" not in answer


def test_importing_it_loads_the_standard_library_only():
    program = "import sys, token_meter.testing.provider; print(' '.join(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    foreign = {
        "httpx",
        "httpx2",
        "openai",
        "anthropic",
        "google.genai",
        "pydantic",
        "sqlalchemy",
        "hypothesis",
        "pytest",
    }
    assert foreign.isdisjoint(loaded)
