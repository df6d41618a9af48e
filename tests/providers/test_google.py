"""Google's surface: one event per HTTP hop, streams that belong to their opening, copies that share connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
from google.auth.credentials import AnonymousCredentials
from google.genai import types

from tests.providers.kit import GENERATE, Bench, collect
from token_meter import Usage

MODEL = "gemini-2.5-flash"


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def vertex(bench: Bench) -> Any:
    credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    credentials.token = "token"
    return bench.google(
        api_key=None, vertexai=True, project="acme", location="us-central1", credentials=credentials,
        host="https://us-central1-aiplatform.googleapis.com",
    )  # fmt: skip


# ---- what an event keeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_modalities_thoughts_tools_and_cached_parts_are_kept_apart(bench: Bench, stream: bool) -> None:
    usage = Usage(
        input=5, input_image=7, input_audio=11, input_video=13, input_document=17, cache_read=19, cache_read_image=23,
        tool_input=29, output=31, output_image=37, reasoning=41,
    )  # fmt: skip
    bench.provider.usage(usage, api="gemini.generate")
    models = bench.google().models
    if stream:
        list(models.generate_content_stream(**GENERATE))
    else:
        models.generate_content(**GENERATE)

    assert (bench.event.usage, bench.event.anomalies) == (usage, ())
    assert bench.event.price_context["context_tokens"] == 5 + 7 + 11 + 13 + 17 + 19 + 23


def test_the_service_tier_on_the_wire_is_kept(bench: Bench) -> None:
    client = bench.google()
    client.models.generate_content(**GENERATE, config={"service_tier": "flex"})
    client.models.generate_content(**GENERATE)

    assert [event.price_context["service_tier"] for event in bench.events] == ["flex", "standard"]


@pytest.mark.parametrize("stream", [False, True])
def test_searches_are_counted(bench: Bench, stream: bool) -> None:
    config = {"tools": [{"google_search": {}}]}
    models = bench.google().models
    if stream:
        list(models.generate_content_stream(**GENERATE, config=config))
    else:
        models.generate_content(**GENERATE, config=config)

    assert bench.event.usage == bench.billed[0].usage
    assert bench.event.usage.web_search == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_prompt_costs_its_own_tokens(bench: Bench, stream: bool) -> None:
    models = bench.google().models
    if stream:
        list(models.generate_content_stream(model="gemini-refuse", contents="Hello"))
    else:
        models.generate_content(model="gemini-refuse", contents="Hello")

    assert (bench.event.usage, bench.event.status) == (bench.billed[0].usage, "complete")
    assert set(bench.event.usage) == {"input"}


# ---- hops ---------------------------------------------------------------------------------------------------------


def test_automatic_function_calling_is_an_event_per_hop(bench: Bench) -> None:
    with bench.meter.customer("acme") as tally:
        bench.google().models.generate_content(**GENERATE, config={"tools": [weather]})

    bench.assert_billed()
    assert (tally.calls, tally.usage) == (2, bench.provider.total())
    assert {event.customer for event in bench.events} == {"acme"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_continuation_is_an_event_per_hop(bench: Bench, stream: bool) -> None:
    models = bench.google().models
    arguments: Any = {"model": "gemini-cont", "contents": "Hello", "config": {"automatic_continuation": True}}
    if stream:
        list(models.generate_content_stream(**arguments))
    else:
        models.generate_content(**arguments)

    bench.assert_billed()
    assert len(bench.events) == 2


def test_chats_are_counted_turn_by_turn(bench: Bench) -> None:
    async def main() -> None:
        client = bench.google()
        chat = client.chats.create(model=MODEL)
        chat.send_message("Hello")
        list(chat.send_message_stream("More"))
        other = client.aio.chats.create(model=MODEL)
        await other.send_message("Hello")
        async for _ in await other.send_message_stream("More"):
            pass

    bench.run(main)

    bench.assert_billed()
    assert len(bench.events) == 4


def test_counting_and_listing_cost_nothing(bench: Bench) -> None:
    client = bench.google()
    client.models.count_tokens(model=MODEL, contents="Hello")
    list(client.models.list())

    assert bench.events == []


# ---- embeddings ---------------------------------------------------------------------------------------------------


def test_embeddings_are_counted_on_both_services(bench: Bench) -> None:
    bench.google().models.embed_content(model="gemini-embedding-001", contents=["Hello", "World"])
    vertex(bench).models.embed_content(model="text-embedding-005", contents="Hello")

    assert bench.usages == [line.usage for line in bench.billed]
    assert [event.provider for event in bench.events] == ["google", "vertex"]
    assert {event.operation for event in bench.events} == {"embeddings"}


# ---- Vertex -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_vertex_is_named_and_counted(bench: Bench, stream: bool) -> None:
    models = vertex(bench).models
    if stream:
        list(models.generate_content_stream(**GENERATE))
    else:
        models.generate_content(**GENERATE)

    bench.assert_billed()
    assert (bench.event.provider, bench.event.host) == ("vertex", "us-central1-aiplatform.googleapis.com")
    assert bench.event.price_context["service_tier"] == "standard"


def test_a_vertex_stream_tells_nothing_before_its_end(bench: Bench) -> None:
    stream = vertex(bench).models.generate_content_stream(**GENERATE)
    for _ in range(4):
        next(stream)
    stream.close()

    assert (bench.event.status, bench.event.estimator) == ("estimated", "bytes/4")
    assert 0 < bench.event.usage.output < bench.billed[0].usage.output


def test_a_request_with_options_of_its_own_is_named_by_its_host(bench: Bench) -> None:
    client = bench.google()
    client.models.generate_content(**GENERATE, config={"http_options": {"base_url": "https://proxy.example"}})

    assert bench.event.host == "proxy.example"


# ---- streams belong to the moment they were asked for -------------------------------------------------------------


@pytest.mark.parametrize("hook", ["wrap", "instrument", "bind"])
@pytest.mark.parametrize("kind", ["models", "chat", "aio models", "aio chat"])
def test_a_stream_belongs_to_its_opening_though_it_is_sent_later(bench: Bench, kind: str, hook: str) -> None:
    async def main() -> None:
        client = bench.google(wrap=hook == "wrap")
        client = bench.meter.wrap(client, team="blue") if hook == "bind" else client
        undo = bench.meter.instrument("google") if hook == "instrument" else None
        root = client.aio if kind.startswith("aio") else client
        chat = root.chats.create(model=MODEL)
        with bench.meter.customer("acme"):
            if kind.endswith("chat"):
                stream = chat.send_message_stream("Hello")
            else:
                stream = root.models.generate_content_stream(**GENERATE)
            stream = await stream if kind.startswith("aio") else stream
        assert bench.provider.requests == []
        with bench.meter.customer("globex"):
            if kind.startswith("aio"):
                async for _ in stream:
                    bench.meter.record(1, id=f"inside-{kind}-{hook}")
            else:
                for _ in stream:
                    bench.meter.record(1, id=f"inside-{kind}-{hook}")
        if undo is not None:
            undo()

    bench.run(main)

    inside, event = sorted(bench.events, key=lambda event: event.meter == "llm_tokens" and event.provider is not None)
    assert (event.customer, event.usage) == ("acme", bench.billed[0].usage)
    assert inside.customer == "globex"
    assert dict(event.dimensions) == ({"team": "blue"} if hook == "bind" else {})


def test_streams_keep_their_types(bench: Bench) -> None:
    async def main() -> None:
        client, bare = bench.google(), bench.google(wrap=False)
        for make in (
            lambda client: client.models.generate_content_stream(**GENERATE),
            lambda client: client.chats.create(model=MODEL).send_message_stream("Hello"),
        ):
            assert type(make(client)) is type(make(bare))
            assert type(await make(client.aio)) is type(await make(bare.aio))

    bench.run(main)


# ---- bound copies -------------------------------------------------------------------------------------------------


def test_a_bound_copy_shares_everything_and_leaves_it_open(bench: Bench) -> None:
    """With the SDK's own connections: collecting a copy must not close them for the original."""
    with Bench(sockets=True) as over_port:
        client = over_port.meter.wrap(
            genai.Client(api_key="x", http_options=types.HttpOptions(base_url=over_port.provider.url))
        )
        bound = over_port.meter.wrap(client, customer="acme")
        bound.models.generate_content(**GENERATE)
        assert bound._api_client._httpx_client is client._api_client._httpx_client
        del bound
        collect()
        client.models.generate_content(**GENERATE)
        client.close()

        assert [event.customer for event in over_port.events] == ["acme", None]


def test_a_bound_copy_outlives_the_client_it_was_made_of() -> None:
    with Bench(sockets=True) as bench:
        client = genai.Client(api_key="x", http_options=types.HttpOptions(base_url=bench.provider.url))
        bound = bench.meter.wrap(client, customer="acme")
        del client
        collect()
        bound.models.generate_content(**GENERATE)
        bound.close()

        assert bench.event.customer == "acme"


def test_connections_a_bound_copy_opens_are_closed_with_the_client() -> None:
    with Bench(sockets=True) as bench:

        async def main() -> None:
            client = bench.google()  # closed by the bench; anything left open is a ResourceWarning, an error here
            bound = bench.meter.wrap(client, customer="acme")
            await bound.aio.models.generate_content(**GENERATE)
            assert bound._api_client._aiohttp_sessions is client._api_client._aiohttp_sessions
            async for _ in await bound.aio.models.generate_content_stream(**GENERATE):
                pass

        bench.run(main)

        assert [event.customer for event in bench.events] == ["acme", "acme"]


def test_a_bound_copy_of_an_unwrapped_client_leaves_it_unwrapped(bench: Bench) -> None:
    client = bench.google(wrap=False)
    bound = bench.meter.wrap(client, customer="acme")
    client.models.generate_content(**GENERATE)
    bound.models.generate_content(**GENERATE)
    bench.meter.unwrap(bound).models.generate_content(**GENERATE)

    assert [event.customer for event in bench.events] == ["acme"]
    assert type(client) is genai.Client


def test_unwrapping_a_bound_copy_leaves_the_original_wrapped(bench: Bench) -> None:
    client = bench.google()
    bound = bench.meter.wrap(client, customer="acme")
    bench.meter.unwrap(bound).models.generate_content(**GENERATE)
    client.models.generate_content(**GENERATE)

    assert [event.customer for event in bench.events] == [None]


def test_binding_a_bound_copy_again_merges(bench: Bench) -> None:
    bound = bench.meter.wrap(bench.meter.wrap(bench.google(), customer="acme", team="blue"), feature="chat")
    bound.models.generate_content(**GENERATE)
    bound.chats.create(model=MODEL).send_message("Hello")

    expected = ("acme", {"team": "blue", "feature": "chat"})
    assert [(event.customer, dict(event.dimensions)) for event in bench.events] == [expected, expected]


def test_the_asynchronous_side_can_be_wrapped_alone(bench: Bench) -> None:
    async def main() -> None:
        client = bench.google(wrap=False)
        aio = bench.meter.wrap(client.aio, customer="acme")
        await aio.models.generate_content(**GENERATE)
        async for _ in await aio.models.generate_content_stream(**GENERATE):
            pass

    bench.run(main)

    assert [event.customer for event in bench.events] == ["acme", "acme"]


def test_many_at_once_keep_their_customers_apart() -> None:
    with Bench(sockets=True) as bench:

        async def main() -> None:
            client = bench.google()

            async def call(number: int) -> None:
                with bench.meter.customer(f"customer-{number}"):
                    stream = await client.aio.models.generate_content_stream(**GENERATE)
                async for _ in stream:
                    await asyncio.sleep(0)

            await asyncio.gather(*(call(number) for number in range(12)))

        bench.run(main)

        assert sorted(str(event.customer) for event in bench.events) == sorted(f"customer-{n}" for n in range(12))
        assert sum(bench.usages, Usage()) == bench.provider.total()
