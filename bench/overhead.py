"""What metering costs the caller, measured beside the bare SDK in the same run.

    python -m bench.overhead [--rounds 21] [--quick]

Answers come from an in-process transport, prepared beforehand. Bare and metered calls alternate in small blocks; the
figure is the median of the differences, in CPU time of the caller's thread, with the journal on and delivering. The
first line measures bare against bare: that is the noise. Rows named `floor` stand for the least that any wrapper costs:
one that only appends what it saw to a list in memory. Targets stand in the last column.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai

from token_meter import Meter, MeterEvent
from token_meter.journal import Journal

CHUNKS = 500
MESSAGES: Any = [{"role": "user", "content": "Say something."}]
USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 120, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
    },
}  # fmt: skip


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


PLAIN = _json({
    "id": "chatcmpl-CmkR1yqFzW8bHnT3", "object": "chat.completion", "created": 1767225600, "model": "gpt-5-2025-08-07",
    "choices": [{
        "index": 0, "finish_reason": "stop", "logprobs": None,
        "message": {"role": "assistant", "content": "hello world, " * 64, "refusal": None, "annotations": []},
    }],
    "usage": USAGE, "service_tier": "default", "system_fingerprint": "fp_1",
})  # fmt: skip


def _chunk(**fields: Any) -> bytes:
    base = {
        "id": "chatcmpl-CmkR1yqFzW8bHnT3", "object": "chat.completion.chunk", "created": 1767225600,
        "model": "gpt-5-2025-08-07", "service_tier": "default", "system_fingerprint": "fp_1",
    }  # fmt: skip
    return b"data: " + _json({**base, **fields}) + b"\n\n"


def _word(**fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": "word "}, "logprobs": None, "finish_reason": None}
    return _chunk(choices=[choice], obfuscation="aZ3kQ", **fields)


STREAM = [*[_word(usage=None)] * CHUNKS, _chunk(choices=[], usage=USAGE), b"data: [DONE]\n\n"]
STREAM_WITHOUT = [*[_word()] * CHUNKS, b"data: [DONE]\n\n"]


class Chunks(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A prepared body, chunk by chunk."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def answer(request: httpx2.Request) -> httpx2.Response:
    """The provider: a stream with counts if they were asked for, one without if not, else a plain answer."""
    body = request.content
    if b'"stream":true' not in body:
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=PLAIN)
    chunks = STREAM if b"include_usage" in body else STREAM_WITHOUT
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(chunks))


async def answer_async(request: httpx2.Request) -> httpx2.Response:
    return answer(request)


def sync_client() -> openai.OpenAI:
    transport = httpx2.MockTransport(answer)
    return openai.OpenAI(api_key="none", http_client=httpx2.Client(transport=transport), max_retries=0)


def async_client() -> openai.AsyncOpenAI:
    transport = httpx2.MockTransport(answer_async)
    return openai.AsyncOpenAI(api_key="none", http_client=httpx2.AsyncClient(transport=transport), max_retries=0)


def floor_client() -> Any:
    """A client whose answers and chunks are looked at and remembered, nothing more."""
    client = sync_client()
    inner: Any = client.chat.completions.create
    seen: deque[Any] = deque(maxlen=1000)

    def create(**asked: Any) -> Any:
        answer = inner(**asked)
        if asked.get("stream"):
            return passed(answer)
        seen.append(answer.usage)
        return answer

    def passed(chunks: Any) -> Iterator[Any]:
        for chunk in chunks:
            if chunk.usage is not None:
                seen.append(chunk.usage)
            yield chunk

    completions: Any = client.chat.completions
    completions.create = create
    return client


class Nothing:
    """A sink that takes everything at once."""

    name = "nothing"

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Acknowledge."""


# ---- what is measured: each returns microseconds of CPU per unit ---------------------------------------------------


def chat(client: openai.OpenAI, calls: int) -> float:
    began = time.thread_time_ns()
    for _ in range(calls):
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    return (time.thread_time_ns() - began) / calls / 1000


def stream(client: openai.OpenAI, calls: int) -> float:
    """The caller asks for usage, so that bare and metered SDK parse the same chunks."""
    began = time.thread_time_ns()
    for _ in range(calls):
        for _ in client.chat.completions.create(
            model="gpt-5", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ):
            pass
    return (time.thread_time_ns() - began) / calls / CHUNKS / 1000


def injected(client: openai.OpenAI, calls: int) -> float:
    """Nobody asks: metering adds the flag and hides what it adds."""
    began = time.thread_time_ns()
    for _ in range(calls):
        for _ in client.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True):
            pass
    return (time.thread_time_ns() - began) / calls / CHUNKS / 1000


def concurrent(client: openai.AsyncOpenAI, calls: int) -> float:
    async def all_at_once() -> float:
        began = time.thread_time_ns()
        for _ in range(max(1, calls // 200)):
            await asyncio.gather(
                *[client.chat.completions.create(model="gpt-5", messages=MESSAGES) for _ in range(200)]
            )
        return (time.thread_time_ns() - began) / max(1, calls // 200) / 200 / 1000

    return asyncio.run(all_at_once())


def first_chunk(client: openai.OpenAI, calls: int) -> float:
    total = 0
    for _ in range(calls):
        began = time.thread_time_ns()
        with client.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True) as chunks:
            next(iter(chunks))
            total += time.thread_time_ns() - began
    return total / calls / 1000


def compare(measure: Callable[[Any, int], float], bare: Any, metered: Any, *, calls: int, rounds: int) -> list[float]:
    """`[bare, added, lower quartile, upper quartile]`: medians over interleaved rounds."""
    measure(bare, calls)
    measure(metered, calls)
    plain, added = [], []
    for turn in range(rounds):
        gc.collect()
        gc.disable()
        order = (bare, metered) if turn % 2 else (metered, bare)
        figures = {id(client): measure(client, calls) for client in order}
        gc.enable()
        plain.append(figures[id(bare)])
        added.append(figures[id(metered)] - figures[id(bare)])
    low, _, high = statistics.quantiles(added, n=4)
    return [statistics.median(plain), statistics.median(added), low, high]


# ---- what is measured once -----------------------------------------------------------------------------------------


def memory_per_stream(client: openai.OpenAI, *, read: int) -> float:
    """Bytes that stay allocated per open stream after `read` chunks."""
    count = 50
    streams = []
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(count):
        chunks = client.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True)
        for _ in range(read):
            next(chunks)
        streams.append(chunks)
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for chunks in streams:
        chunks.close()
    return used / count


def write_times(fsync: Any, folder: Path, *, count: int) -> list[float]:
    """Sorted wall microseconds of `opened` + `ended`, the two writes of a call."""
    line = b'{"kind":"opened","id":"x"}' + b" " * 250 + b"\n"
    ended = b'{"kind":"void","call":"x"}' + b" " * 500 + b"\n"
    times = []
    with Journal(folder, fsync=fsync) as journal:
        for number in range(count):
            began = time.perf_counter_ns()
            journal.opened(str(number), line)
            journal.ended(str(number), ended)
            times.append((time.perf_counter_ns() - began) / 1000)
            if number % 1000 == 999:
                journal.maintain()
    return sorted(times)


def import_milliseconds(module: str, *, times: int = 9) -> tuple[float, list[str]]:
    """Median CPU milliseconds that the import adds to a bare interpreter, and the vendor SDKs it loaded."""
    probe = (
        "import sys,time; t=time.process_time_ns(); __import__(sys.argv[1]); d=(time.process_time_ns()-t)/1e6;"
        "print(d, *[m for m in ('openai','anthropic','google.genai','sqlalchemy','requests') if m in sys.modules])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", probe, module], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(times)
    ]
    return statistics.median(float(run[0]) for run in runs), runs[-1][1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="fewer calls: to see that it runs")
    chosen = parser.parse_args()
    scale = 10 if chosen.quick else 1
    print(f"openai {openai.__version__}, CPython {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':26} {'bare us':>9} {'added us':>9} {'quartiles':>17}  target")
    with (
        tempfile.TemporaryDirectory(prefix="token_meter-overhead-") as name,
        Meter(Nothing(), journal=Path(name) / "journal") as meter,
        meter.customer("acme", feature="chat"),
    ):
        _calls(meter, rounds=chosen.rounds, scale=scale)
        _memory(meter)
        for policy in ("interval", "always"):
            times = write_times(policy, Path(name) / policy, count=(20_000 if policy == "interval" else 2_000) // scale)
            p50, p999 = times[len(times) // 2], times[int(len(times) * 0.999)]
            print(f"both writes of a call, fsync {policy:9} p50 {p50:8.1f} us   p99.9 {p999:8.1f} us")
    milliseconds, loaded = import_milliseconds("token_meter", times=3 if chosen.quick else 9)
    print(f"import token_meter         {milliseconds:8.1f} ms CPU, vendor SDKs loaded: {loaded or 'none'}   <= 40 ms")
    return 0


def _calls(meter: Meter, *, rounds: int, scale: int) -> None:
    bare, metered = sync_client(), meter.wrap(sync_client())
    bare_async, metered_async = async_client(), meter.wrap(async_client())
    rows: tuple[tuple[str, Callable[[Any, int], float], Any, Any, int, str], ...] = (
        ("bare against bare", chat, bare, sync_client(), 100, "noise"),
        ("chat call, floor", chat, bare, floor_client(), 100, ""),
        ("chat call", chat, bare, metered, 100, "<= 30 us"),
        ("stream chunk, floor", stream, bare, floor_client(), 5, ""),
        ("stream chunk", stream, bare, metered, 5, "<= 1 us"),
        ("stream chunk, injected", injected, bare, metered, 5, "<= 1 us"),
        ("first chunk", first_chunk, bare, metered, 50, "not delayed"),
        ("async call, 200 at once", concurrent, bare_async, metered_async, 400, "<= 45 us"),
    )
    for name, measure, plain, other, calls, target in rows:
        median, added, low, high = compare(
            measure, plain, other, calls=max(1, calls // scale), rounds=max(3, rounds // scale)
        )
        print(f"{name:26} {median:9.1f} {added:9.2f} {f'{low:.2f} .. {high:.2f}':>17}  {target}", flush=True)


def _memory(meter: Meter) -> None:
    bare, metered = sync_client(), meter.wrap(sync_client())
    for read in (10, 450):
        plain, with_meter = memory_per_stream(bare, read=read), memory_per_stream(metered, read=read)
        print(f"memory per open stream, {read:3} chunks read: {(with_meter - plain) / 1024:6.2f} KB added   <= 2 KB")


if __name__ == "__main__":
    sys.exit(main())
