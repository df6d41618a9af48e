"""How streams end, beyond what every row of the conformance list checks: once, flagged, never in anyone's way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.providers.conformance import STREAMS, Row
from tests.providers.kit import CHAT, GENERATE, MESSAGE, RESPONSE, Bench, collect
from token_meter import Usage

LONG = {"events": 40}
SYNC = [row for row in STREAMS if not row.is_async]
ASYNC = [row for row in STREAMS if row.is_async]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def open_stream(bench: Bench, row: Row, *, read: int = 12, **faults: Any) -> Any:
    """A synchronous stream of which the first chunks are read."""
    client = row.client(bench, faults={**LONG, **faults})
    method = client
    for name in row.shape.method.split("."):
        method = getattr(method, name)
    stream = method(**row.shape.arguments)
    for _ in range(read):
        next(stream)
    return stream


def assert_ended_early(bench: Bench, row: Row) -> None:
    event = bench.event
    assert event.status == ("estimated" if row.shape.told_late else "partial")
    assert event.anomalies
    assert event.usage.input > 0 and event.usage.output > 0


# ---- the caller leaves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SYNC, ids=str)
def test_a_break_is_settled_when_the_stream_is_let_go(bench: Bench, row: Row) -> None:
    def look_at_some() -> None:
        for number, _ in enumerate(open_stream(bench, row, read=1)):
            if number == 10:
                break

    look_at_some()
    collect()

    assert_ended_early(bench, row)


@pytest.mark.parametrize("row", SYNC, ids=str)
def test_an_exception_in_the_loop_is_the_callers_own(bench: Bench, row: Row) -> None:
    def fail_in_the_loop() -> None:
        for number, _ in enumerate(open_stream(bench, row, read=1)):
            if number == 10:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as raised:
        fail_in_the_loop()
    assert raised.value.__context__ is None
    del raised
    collect()

    assert_ended_early(bench, row)


@pytest.mark.parametrize("row", [row for row in SYNC if row.shape.sdk != "google"], ids=str)
def test_leaving_a_with_block_settles_at_once(bench: Bench, row: Row) -> None:
    with open_stream(bench, row):
        assert bench.events == []

    assert_ended_early(bench, row)


@pytest.mark.parametrize("row", SYNC, ids=str)
def test_closing_in_another_thread_settles_for_the_customer_of_the_opening(bench: Bench, row: Row) -> None:
    with bench.meter.customer("acme"):
        stream = open_stream(bench, row)
    with bench.meter.customer("globex"):
        thread = threading.Thread(target=stream.close)
        thread.start()
        thread.join()

    assert bench.event.customer == "acme"
    assert_ended_early(bench, row)


@pytest.mark.parametrize("row", SYNC, ids=str)
def test_closing_again_changes_nothing(bench: Bench, row: Row) -> None:
    stream = open_stream(bench, row)
    for _ in range(3):
        stream.close()
    del stream
    collect()

    assert len(bench.events) == 1


def test_many_threads_closing_one_stream_settle_it_once(bench: Bench) -> None:
    for _ in range(20):
        stream = bench.openai(faults=LONG).chat.completions.create(**CHAT, stream=True)
        next(stream)
        tap = stream.response.stream._tap
        barrier = threading.Barrier(4)

        def settle(tap: Any = tap, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            tap.settle("closed")

        threads = [threading.Thread(target=settle) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.close()

    assert len(bench.events) == 20


@pytest.mark.parametrize("row", STREAMS, ids=str)
def test_a_stream_that_is_never_read(bench: Bench, row: Row) -> None:
    async def main() -> None:
        stream = await row.call(row.client(bench))
        del stream
        for _ in range(3):
            collect()
            await asyncio.sleep(0)

    bench.run(main)

    if row.shape.sdk == "google":  # sends nothing before the first chunk is asked for
        assert (bench.events, bench.billed) == ([], [])
    else:
        assert bench.event.status in ("estimated", "partial")
        assert (bench.event.usage.output, bench.event.anomalies) == (0, ("dropped",))


@pytest.mark.parametrize("row", ASYNC, ids=str)
def test_a_cancelled_task_is_billed_and_stays_cancelled(bench: Bench, row: Row) -> None:
    async def main() -> None:
        client = row.client(bench, faults={**LONG, "slow": 0.002})
        enough = asyncio.Event()

        async def consume() -> None:
            stream = await row.call(client)
            for number in range(30):
                await row.step(stream)
                if number == 11:
                    enough.set()

        task = asyncio.create_task(consume())
        await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        for _ in range(8):
            collect()
            await asyncio.sleep(0)

    bench.run(main)

    assert_ended_early(bench, row)


@pytest.mark.parametrize("row", ASYNC, ids=str)
def test_a_time_limit_around_a_stream_is_billed(bench: Bench, row: Row) -> None:
    async def main() -> None:
        client = row.client(bench, faults={**LONG, "slow": 0.01})

        async def consume() -> None:
            stream = await row.call(client)
            while True:
                await row.step(stream)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(consume(), 0.15)
        for _ in range(8):
            collect()
            await asyncio.sleep(0)

    bench.run(main)

    assert bench.event.status in ("estimated", "partial")
    assert bench.event.usage.input > 0


@pytest.mark.parametrize("row", ASYNC, ids=str)
def test_a_stream_is_closed_in_another_task(bench: Bench, row: Row) -> None:
    async def main() -> None:
        with bench.meter.customer("acme"):
            stream = await row.call(row.client(bench, faults=LONG))
        for _ in range(12):
            await row.step(stream)

        async def close() -> None:
            with bench.meter.customer("globex"):
                await row.close(stream)

        await asyncio.create_task(close())
        for _ in range(8):
            await asyncio.sleep(0)

    bench.run(main)
    collect()

    assert bench.event.customer == "acme"
    assert_ended_early(bench, row)


@pytest.mark.parametrize("row", ASYNC, ids=str)
def test_a_stream_left_open_when_its_loop_ends(bench: Bench, row: Row) -> None:
    kept: list[Any] = []

    async def main() -> None:
        stream = await row.call(row.client(bench, faults=LONG))
        for _ in range(12):
            await row.step(stream)
        kept.append(stream)

    bench.run(main)
    kept.clear()
    collect()

    assert_ended_early(bench, row)


# ---- finalisers ---------------------------------------------------------------------------------------------------


# Anthropic's own generator closes the response when it is collected, so there the end is not ours to put off.
@pytest.mark.parametrize("row", [row for row in SYNC if row.shape.sdk != "anthropic"], ids=str)
def test_a_finaliser_waits_for_nobody(bench: Bench, row: Row) -> None:
    """Dropping a stream must return while another thread is inside the journal, and the event must not be lost."""
    held = [open_stream(bench, row)]
    journal = bench.meter._journal
    assert journal is not None
    inside, leave, dropped = threading.Event(), threading.Event(), threading.Event()

    def write_slowly() -> None:
        with journal._lock:
            inside.set()
            leave.wait(10)

    def drop() -> None:
        held.clear()
        collect()
        dropped.set()

    writer, dropper = threading.Thread(target=write_slowly), threading.Thread(target=drop)
    writer.start()
    inside.wait(10)
    dropper.start()
    in_time = dropped.wait(5)
    leave.set()
    writer.join()
    dropper.join()

    assert in_time, "a finaliser waited for the journal"
    assert_ended_early(bench, row)


def test_a_tally_counts_a_stream_that_was_dropped(bench: Bench) -> None:
    with bench.meter.customer("acme") as tally:
        stream = bench.anthropic(faults=LONG).messages.create(**MESSAGE, stream=True)
        next(stream)
        del stream
        collect()

        assert (tally.calls, tally.usage) == (1, Usage(input=9, output=1))
    assert bench.event.usage == tally.usage


# ---- no answer ----------------------------------------------------------------------------------------------------


def test_an_error_handled_before_says_nothing_about_this_call() -> None:
    """A call that timed out inside the handling of an earlier refused connection is still a call that was sent."""
    with Bench(sockets=True) as bench:
        client = bench.openai(faults={"delay": 0.3}, timeout=0.05)
        with pytest.raises(openai.APITimeoutError):
            try:
                bench.openai(host="http://127.0.0.1:1").chat.completions.create(**CHAT)
            except openai.APIConnectionError:
                client.chat.completions.create(**CHAT)

        assert (bench.event.status, bench.event.anomalies) == ("unmetered", ("no_response", "APITimeoutError"))


def test_an_error_before_sending_after_a_timeout_is_not_billed() -> None:
    with Bench(sockets=True) as bench:
        client = bench.openai(faults={"delay": 0.3}, timeout=0.05)
        with pytest.raises(TypeError):
            try:
                client.chat.completions.create(**CHAT)
            except openai.APITimeoutError:
                client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": object()}])  # type: ignore[typeddict-item]

        assert len(bench.events) == 1


def test_a_cancelled_request_without_an_answer_is_unmetered() -> None:
    with Bench(sockets=True) as bench:

        async def main() -> None:
            client = bench.anthropic(is_async=True, faults={"delay": 0.5})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.messages.create(**MESSAGE), 0.1)

        bench.run(main)

        assert (bench.event.status, bench.event.usage) == ("unmetered", Usage())
        assert bench.event.model_requested == "claude-sonnet-4-6"


def test_every_attempt_that_times_out_is_one_call() -> None:
    with Bench(sockets=True) as bench:
        client = bench.openai(faults={"delay": 0.3}, timeout=0.05, max_retries=1)
        with pytest.raises(openai.APITimeoutError):
            client.responses.create(**RESPONSE)

        assert len(bench.provider.requests) == 2
        assert bench.event.status == "unmetered"


def test_a_first_chunk_is_not_held_back() -> None:
    """Hidden chunks are taken out of whole events; nothing waits for the next one."""
    with Bench(sockets=True) as bench:
        client = bench.openai(faults={"slow": 0.2, "events": 3})
        bench.meter.allow_include_usage("127.0.0.1*")
        stream = client.chat.completions.create(**CHAT, stream=True)
        started = time.monotonic()
        next(stream)

        assert time.monotonic() - started < 0.15
        for _ in stream:
            pass
        assert bench.event.status == "complete"


# ---- what arrives is odd ------------------------------------------------------------------------------------------


def test_a_body_that_is_not_compressed_as_it_says_fails_as_without_us(bench: Bench) -> None:
    def broken(request: Any) -> Any:
        headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
        return httpx2.Response(200, headers=headers, stream=Body())

    class Body(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b'data: {"choices":[]}\n\n'

    def read(*, wrap: bool, raw: bool) -> Any:
        http = httpx2.Client(transport=httpx2.MockTransport(broken))
        client = openai.OpenAI(api_key="x", http_client=http, max_retries=0)
        client = bench.meter.wrap(client) if wrap else client
        with http:
            try:
                with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
                    return list(response.http_response.iter_raw() if raw else response.iter_bytes())
            except httpx2.DecodingError as error:
                return type(error)

    assert read(wrap=True, raw=False) == read(wrap=False, raw=False) == httpx2.DecodingError
    assert len(bench.events) == 1


def test_a_stream_of_another_content_type_is_read_all_the_same(bench: Bench) -> None:
    def as_plain(request: Any) -> Any:
        events = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
        return httpx2.Response(200, headers={"content-type": "text/plain"}, stream=httpx2.ByteStream(events))

    with httpx2.Client(transport=httpx2.MockTransport(as_plain)) as http:
        client = bench.meter.wrap(openai.OpenAI(api_key="x", http_client=http))
        for _ in client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}):
            pass

    assert (bench.event.usage, bench.event.status) == (Usage(input=3, output=1), "complete")


def test_the_sdk_closes_at_done_and_that_is_complete(bench: Bench) -> None:
    """Closed is not incomplete: the terminal marker decides."""
    for _ in bench.openai().chat.completions.create(**CHAT, stream=True):
        pass
    for _ in bench.openai(faults={"no_done": True}).chat.completions.create(**CHAT, stream=True):
        pass

    assert [(event.status, event.anomalies) for event in bench.events] == [("complete", ()), ("complete", ())]


def test_a_stream_without_its_last_event_is_partial(bench: Bench) -> None:
    for _ in bench.anthropic(faults={"no_done": True}).messages.create(**MESSAGE, stream=True):
        pass

    assert (bench.event.status, bench.event.anomalies) == ("partial", ("ended",))
    assert bench.event.usage == bench.billed[0].usage


def test_gemini_counts_are_taken_from_the_last_chunk_seen(bench: Bench) -> None:
    stream = bench.google(faults={"events": 10}).models.generate_content_stream(**GENERATE)
    seen = [next(stream) for _ in range(3)]
    stream.close()

    told = seen[-1].usage_metadata
    assert bench.event.usage == Usage(input=told.prompt_token_count, output=told.candidates_token_count)
    assert bench.event.status == "partial"
