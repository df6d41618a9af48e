"""The traps that other packages fall into (37 of them, measured), and what surrounds a call: forks, threads, types.

Each trap runs the real SDK and must end in exactly one event with exactly what the provider billed, or, where a
stream ends early, in one event that is flagged.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from pydantic import BaseModel

from tests.providers.kit import CHAT, GENERATE, MESSAGE, MESSAGES, RESPONSE, Bench, Outcome, collect, plain
from token_meter import Meter, Usage
from token_meter.segments import to_event
from token_meter.sinks import MemorySink
from token_meter.testing.provider import LoopbackProvider

OPENAI = Usage(input=400, cache_read=600, output=80, reasoning=120)
ANTHROPIC = Usage(input=100, cache_read=900, cache_write_5m=30, cache_write_1h=20, output=30, reasoning=10)
GEMINI = Usage(input=600, cache_read=400, output=50, reasoning=150)
WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class City(BaseModel):
    name: str


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        for api in ("openai.chat", "openai.responses"):
            bench.provider.usage(OPENAI, api=api)
        bench.provider.usage(ANTHROPIC, api="anthropic.messages")
        bench.provider.usage(GEMINI, api="gemini.generate")
        yield bench


def read(stream: Any) -> None:
    for _ in stream:
        pass


async def aread(stream: Any) -> None:
    async for _ in stream:
        pass


# ---- one call, one event, exactly what was billed -----------------------------------------------------------------


def read_lines(bench: Bench) -> None:
    with bench.openai().chat.completions.with_streaming_response.create(**CHAT) as response:
        read(response.iter_lines())


def helper_events(bench: Bench) -> None:
    with bench.anthropic().messages.stream(**MESSAGE) as stream:
        read(stream)


def helper_final_message(bench: Bench) -> None:
    with bench.anthropic().messages.stream(**MESSAGE) as stream:
        assert stream.get_final_message().usage.output_tokens == 40


def helper_text(bench: Bench) -> None:
    with bench.anthropic().messages.stream(**MESSAGE) as stream:
        read(stream.text_stream)


def beta_helper(bench: Bench) -> None:
    with bench.anthropic().beta.messages.stream(**MESSAGE) as stream:
        read(stream)


def async_helper(bench: Bench) -> None:
    async def main() -> None:
        async with bench.anthropic(is_async=True).messages.stream(**MESSAGE) as stream:
            await aread(stream)

    bench.run(main)


def async_gemini_stream(bench: Bench) -> None:
    async def main() -> None:
        await aread(await bench.google().aio.models.generate_content_stream(**GENERATE))

    bench.run(main)


def gemini_chat(bench: Bench) -> None:
    chat = bench.google().chats.create(model="gemini-2.5-flash")
    assert chat.send_message("Hello").text


def chat_helper(bench: Bench) -> None:
    with bench.openai().chat.completions.stream(**CHAT) as stream:
        read(stream)
        assert stream.get_final_completion().choices[0].message.content


def responses_helper(bench: Bench) -> None:
    with bench.openai().responses.stream(**RESPONSE) as stream:
        read(stream)
        assert stream.get_final_response().usage.total_tokens == OPENAI.tokens


def async_chat(bench: Bench) -> None:
    async def main() -> None:
        await bench.openai(is_async=True).chat.completions.create(**CHAT)

    bench.run(main)


def async_chat_stream(bench: Bench) -> None:
    async def main() -> None:
        await aread(await bench.openai(is_async=True).chat.completions.create(**CHAT, **WITH_USAGE))

    bench.run(main)


def transcription(bench: Bench) -> None:
    audio = ("speech.wav", b"\x00" * 70_000)
    bench.openai().audio.transcriptions.create(model="gpt-4o-transcribe", file=audio)


def failed_twice(bench: Bench) -> None:
    bench.openai(faults={"fail": "500x2"}, max_retries=2).chat.completions.create(**CHAT)
    assert len(bench.provider.requests) == 3


def copied_client(bench: Bench) -> None:
    bench.openai().with_options(timeout=9).copy(max_retries=0).chat.completions.create(**CHAT)


TRAPS: dict[str, Callable[[Bench], object]] = {
    "g OpenAI create (cached 600, reasoning 120)": lambda bench: bench.openai().chat.completions.create(**CHAT),
    "chat stream, include_usage set": lambda bench: read(bench.openai().chat.completions.create(**CHAT, **WITH_USAGE)),
    "a stream without include_usage": lambda bench: read(bench.openai().chat.completions.create(**CHAT, stream=True)),
    "f Anthropic create, cache r/w": lambda bench: bench.anthropic().messages.create(**MESSAGE),
    "f2 Anthropic create(stream=True)": lambda bench: read(bench.anthropic().messages.create(**MESSAGE, stream=True)),
    "j3 Anthropic .stream() events": helper_events,
    "j4 Anthropic .stream() get_final_message": helper_final_message,
    "j5 Anthropic .stream() text_stream": helper_text,
    "Anthropic async .stream()": async_helper,
    "Anthropic beta.create": lambda bench: bench.anthropic().beta.messages.create(**MESSAGE),
    "Anthropic beta.stream": beta_helper,
    "i3 Anthropic with_raw_response": lambda bench: bench.anthropic().messages.with_raw_response.create(**MESSAGE),
    "h Gemini generate (thoughts 150)": lambda bench: bench.google().models.generate_content(**GENERATE),
    "h2 Gemini stream cumulative": lambda bench: read(bench.google().models.generate_content_stream(**GENERATE)),
    "Gemini async stream": async_gemini_stream,
    "Gemini chats": gemini_chat,
    "i with_raw_response.parse": lambda bench: bench.openai().chat.completions.with_raw_response.create(**CHAT).parse(),
    "i2 with_streaming_response": read_lines,
    "i4 with_raw_response stream": lambda bench: read(
        bench.openai().chat.completions.with_raw_response.create(**CHAT, stream=True).parse()
    ),
    "j chat .stream() helper": chat_helper,
    "j2 responses .stream() helper": responses_helper,
    "chat.parse": lambda bench: bench.openai().chat.completions.parse(**CHAT, response_format=City),
    "responses.create": lambda bench: bench.openai().responses.create(**RESPONSE),
    "responses.create stream": lambda bench: read(bench.openai().responses.create(**RESPONSE, stream=True)),
    "async chat.create": async_chat,
    "async chat.stream": async_chat_stream,
    "embeddings": lambda bench: bench.openai().embeddings.create(model="text-embedding-3-small", input="Hello"),
    "images.generate": lambda bench: bench.openai().images.generate(model="gpt-image-1", prompt="a cat"),
    "audio.transcriptions": transcription,
    "legacy completions": lambda bench: bench.openai().completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Hello"
    ),
    "k 500,500,200 counted once": failed_twice,
    "with_options() copy": copied_client,
}
"""The rows that end regularly; the five that end early (b, c, d, e, e2) stand below."""


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_one_event_with_exactly_what_was_billed(bench: Bench, name: str) -> None:
    TRAPS[name](bench)

    [line], event = bench.billed, bench.event
    assert (event.usage, event.status, event.anomalies) == (line.usage, "complete", ())
    assert event.model in (line.model, line.model_requested)


# ---- streams that end early ---------------------------------------------------------------------------------------


def assert_estimated(bench: Bench) -> None:
    """One event, flagged, with an estimate of what was sent and what arrived; never more than was billed."""
    event, [line] = bench.event, bench.billed
    assert (event.status, event.estimator, event.model) == ("estimated", "bytes/4", line.model)
    assert event.anomalies
    assert event.usage.input > 0 and 0 < event.usage.output < 20


def test_b_the_user_breaks_out_of_the_stream(bench: Bench) -> None:
    stream = bench.openai().chat.completions.create(**CHAT, stream=True)
    for number, _ in enumerate(stream):
        if number == 5:
            break
    stream.close()

    assert_estimated(bench)


def test_c_an_exception_in_the_users_loop(bench: Bench) -> None:
    def loop() -> None:
        with bench.openai().chat.completions.create(**CHAT, stream=True) as stream:
            for number, _ in enumerate(stream):
                if number == 5:
                    raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        loop()

    assert_estimated(bench)


def test_d_a_task_is_cancelled_in_the_middle(bench: Bench) -> None:
    async def main() -> None:
        client = bench.openai(is_async=True, faults={"slow": 0.01})
        started = asyncio.Event()

        async def consume() -> None:
            number = 0
            async for _ in await client.chat.completions.create(**CHAT, stream=True):
                number += 1
                if number == 5:
                    started.set()

        task = asyncio.create_task(consume())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        collect()
        await asyncio.sleep(0)

    bench.run(main)

    assert_estimated(bench)


def test_e_the_connection_drops_in_the_middle(bench: Bench) -> None:
    with pytest.raises(openai.APIConnectionError):
        read(bench.openai(faults={"drop": 6}).chat.completions.create(**CHAT, stream=True))

    assert_estimated(bench)


def test_e2_an_anthropic_connection_drops_after_the_input_was_told(bench: Bench) -> None:
    stream = bench.anthropic(faults={"drop": 6}).messages.create(**MESSAGE, stream=True)
    with pytest.raises(Exception, match="peer closed connection"):
        read(stream)

    told = {name: count for name, count in ANTHROPIC.items() if name not in ("output", "reasoning")}
    assert bench.event.usage == Usage(told, output=1)
    assert (bench.event.status, bench.event.anomalies) == ("partial", ("failed",))


# ---- l: forks -----------------------------------------------------------------------------------------------------


def test_l_calls_after_a_fork_are_delivered_once(tmp_path: Path) -> None:
    """As gunicorn does with `preload`: everything is made before the fork, the calls come after it."""
    with LoopbackProvider() as provider, Meter(MemorySink(), journal=tmp_path) as meter:
        client = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="x", max_retries=0))
        client.chat.completions.create(**CHAT)
        assert meter.flush(30)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
            child = os.fork()
        if not child:
            code = 1
            try:
                for _ in range(5):
                    client.chat.completions.create(**CHAT)
                code = 0
            finally:
                os._exit(code)  # nothing is flushed, nothing is closed
        assert os.waitpid(child, 0)[1] == 0
        client.close()
        events = events_of(tmp_path)

    assert len(events) == len({event["id"] for event in events}) == 6
    assert {event["status"] for event in events} == {"complete"}


def events_of(folder: Path) -> list[dict[str, Any]]:
    """The events that stand in a journal folder, in which every call that was opened must have ended."""
    lines = [
        json.loads(line) for file in (folder / "segments").glob("*.jsonl") for line in file.read_text().splitlines()
    ]
    opened = {line["id"] for line in lines if line["kind"] == "opened"}
    ended = {line["call"] for line in lines if line["kind"] in ("event", "void")}
    assert opened == ended
    return [to_event(line).to_json() for line in lines if line["kind"] == "event"]


def test_a_stream_inherited_by_a_fork_is_left_to_the_parent(tmp_path: Path) -> None:
    with LoopbackProvider() as provider, Meter(MemorySink(), journal=tmp_path) as meter:
        client = meter.wrap(openai.OpenAI(base_url=f"{provider.url}/v1", api_key="x", max_retries=0))
        stream = client.chat.completions.create(**CHAT, **WITH_USAGE)
        next(iter(stream))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            try:
                stream.close()
                meter._journal.maintain()  # type: ignore[union-attr]
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        read(stream)
        client.close()
        meter.flush(30)
        events = events_of(tmp_path)

    assert [(event["status"], event["usage"]) for event in events] == [("complete", {"input": 9, "output": 19})]


# ---- m: threads ---------------------------------------------------------------------------------------------------


def call_in_pool(bench: Bench) -> None:
    client = bench.openai()
    with ThreadPoolExecutor(1) as pool, bench.meter.customer("acme", feature="chat"):
        pool.submit(client.chat.completions.create, **CHAT).result()
        pool.submit(lambda: client.chat.completions.create(**CHAT)).result()


def test_m_a_pool_loses_the_customer_visibly(bench: Bench) -> None:
    call_in_pool(bench)

    assert [event.customer for event in bench.events] == [None, None]
    assert bench.meter.health().counters["unattributed"] == 2


def test_m_instrumented_threads_keep_the_customer(bench: Bench) -> None:
    original = ThreadPoolExecutor.__dict__["submit"]
    with bench.meter.instrument("threads"):
        call_in_pool(bench)

    assert [(event.customer, dict(event.dimensions)) for event in bench.events] == [("acme", {"feature": "chat"})] * 2
    assert ThreadPoolExecutor.__dict__["submit"] is original


def test_m_a_bound_client_needs_no_context(bench: Bench) -> None:
    client = bench.meter.wrap(bench.openai(), customer="acme")
    thread = threading.Thread(target=lambda: client.chat.completions.create(**CHAT))
    thread.start()
    thread.join()

    assert bench.event.customer == "acme"


# ---- n: odd payloads ----------------------------------------------------------------------------------------------

ODD = (
    "usage_string",
    "usage_list",
    "usage_empty",
    "usage_nulls",
    "choices_null",
    "message_null",
    "model_missing",
    "empty",
)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("payload", ODD)
def test_n_an_odd_payload_reaches_the_caller_as_from_the_bare_sdk(bench: Bench, payload: str) -> None:
    def outcome(*, wrap: bool) -> Outcome:
        seen = Outcome()
        try:
            seen.add(bench.openai(wrap=wrap, faults={"weird": payload}).chat.completions.create(**CHAT))
        except Exception as error:
            seen.failed(error)
        return seen

    assert outcome(wrap=True) == outcome(wrap=False)

    told = payload in ("choices_null", "message_null", "model_missing")
    assert bench.event.status == ("complete" if told else "estimated")
    assert bench.event.usage == OPENAI if told else bench.event.anomalies


@pytest.mark.parametrize("streamed", [False, True])
def test_n_a_generator_of_messages_is_not_consumed(bench: Bench, streamed: bool) -> None:
    options = {"stream": True} if streamed else {}
    asked: list[Any] = []
    result = bench.openai().chat.completions.create(
        model="gpt-4o", messages=(asked.append(each) or each for each in MESSAGES), **options
    )
    if streamed:
        read(result)

    assert asked == MESSAGES
    assert bench.event.usage == OPENAI
    assert bench.event.status == "complete"


# ---- o: types -----------------------------------------------------------------------------------------------------


def test_o_clients_and_streams_keep_their_types(bench: Bench) -> None:
    client, claude, gemini = bench.openai(), bench.anthropic(), bench.google()
    stream = client.chat.completions.create(**CHAT, stream=True)
    messages = claude.messages.create(**MESSAGE, stream=True)

    assert isinstance(client, openai.OpenAI) and isinstance(claude, anthropic.Anthropic)
    assert isinstance(gemini, genai.Client)
    for each, name in ((client, "OpenAI"), (claude, "Anthropic"), (gemini, "Client")):
        assert (type(each).__name__, type(each).__qualname__) == (name, name)
        assert type(each).__module__ == type(each).__mro__[1].__module__
    assert type(stream) is openai.Stream and type(messages) is anthropic.Stream
    assert stream.response.status_code == messages.response.status_code == 200
    stream.close()
    messages.close()
    assert [event.status for event in bench.events] == ["estimated", "estimated"]


def test_o_a_raw_response_keeps_its_type_and_parses(bench: Bench) -> None:
    bare = bench.openai(wrap=False).chat.completions.with_raw_response.create(**CHAT)
    metered = bench.openai().chat.completions.with_raw_response.create(**CHAT)

    assert type(metered) is type(bare)
    assert plain(metered.parse()) == plain(bare.parse())
    assert type(metered.http_response) is type(bare.http_response)
    assert dict(metered.headers).keys() == dict(bare.headers).keys()
