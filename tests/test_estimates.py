"""Estimates by a tokeniser: in the background, exactly once, whatever ends the process, and only where there is one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.journal_kit import documents, fork, run, segments, start, wait
from tests.providers.kit import Bench, collect
from tests.tokeniser_kit import ESTIMATOR, Gated, cookbook_tokens, loaded, plugged, put_data
from token_meter import Meter, Usage
from token_meter.estimates import WAITING_MAX, Estimates
from token_meter.providers import tokeniser
from token_meter.sinks import MemorySink

SILENT = "https://llm.example.com"
"""A host that is not asked for the counts of its streams."""

THREAD = "token_meter-estimates"
MESSAGES: list[Any] = [
    {"role": "system", "content": "you say hello"},
    {"role": "user", "name": "joe", "content": "hello hello"},
]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokeniser, "_missed", {})


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@pytest.fixture
def encoding() -> Iterator[Gated]:
    encoding = Gated()
    with loaded(encoding):
        yield encoding
        encoding.gate.set()


def call(bench: Bench, client: Any = None, **options: Any) -> None:
    """A whole stream without counts."""
    client = client or bench.openai(host=SILENT)
    list(client.chat.completions.create(**{"model": "gpt-4o", "messages": MESSAGES, "stream": True, **options}))


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def estimators(bench: Bench) -> list[str | None]:
    return [event.estimator for event in bench.events]


def ended(bench: Bench) -> bool:
    return bench.meter._journal.state().outstanding == 0  # type: ignore[union-attr]


# ---- what is counted ----------------------------------------------------------------------------------------------


def test_the_input_is_what_the_tokeniser_counts_and_the_output_is_measured(bench: Bench, encoding: Gated) -> None:
    call(bench)

    event = bench.event
    assert (event.status, event.estimator) == ("estimated", ESTIMATOR)
    assert event.usage.input == cookbook_tokens(MESSAGES, encoding)
    assert 0 < event.usage.output < 40
    assert encoding.threads == {THREAD}


def test_everything_else_is_as_it_would_be_at_once(bench: Bench, encoding: Gated) -> None:
    client = bench.openai(host=SILENT)
    with bench.meter.customer("acme", feature="chat"):
        call(bench, client)
    assert bench.meter.flush(10)
    with loaded(Gated("other")), bench.meter.customer("acme", feature="chat"):
        tokeniser._missed["gpt-4o-2024-08-06"] = tokeniser._supply()
        call(bench, client)

    counted, at_once = (event.to_json() for event in bench.events)
    assert at_once["estimator"] == "bytes/4"
    assert {name for name in counted if counted[name] != at_once.get(name)} == {
        "estimator", "id", "response_id", "time", "usage"
    }  # fmt: skip
    assert counted["usage"]["output"] == at_once["usage"]["output"]
    assert counted.keys() == at_once.keys()


def test_the_time_is_when_the_call_ended(bench: Bench, encoding: Gated) -> None:
    encoding.gate.clear()
    call(bench)
    before = bench.meter._recorder.stamp()
    encoding.gate.set()

    assert bench.event.to_json()["time"] < before


def test_the_responses_api_and_asynchronous_clients(bench: Bench, encoding: Gated) -> None:
    async def main() -> None:
        client = bench.openai(is_async=True)
        stream = await client.responses.create(model="gpt-4o", input="hello", instructions="hello", stream=True)
        async for _ in stream:
            break
        await stream.close()

    bench.run(main)

    assert (bench.event.usage.input, bench.event.estimator) == (3 + 6 + 1 + 3 + 1 + 1 + 3, ESTIMATOR)


def test_a_providers_number_is_never_estimated(bench: Bench, encoding: Gated) -> None:
    call(bench, bench.openai())

    assert (bench.event.status, bench.event.usage) == ("complete", bench.billed[0].usage)
    assert encoding.threads == set() and not workers()


def test_data_in_the_cache_folder_is_enough(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_data(tmp_path / "cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with plugged():
        call(bench)
        assert bench.event.usage.input == cookbook_tokens(MESSAGES, Gated())

    assert bench.event.estimator == ESTIMATOR


# ---- where there is no tokeniser ----------------------------------------------------------------------------------


def test_without_data_it_is_the_heuristic_and_no_thread_is_started(bench: Bench) -> None:
    with plugged():
        call(bench)
        assert ended(bench), "written in the caller's thread"

    assert estimators(bench) == ["bytes/4"]
    assert not workers()


def test_models_of_others_need_no_thread(bench: Bench, encoding: Gated) -> None:
    call(bench, model="llama-4-maverick")

    assert estimators(bench) == ["bytes/4"]
    assert not workers()


CHILD = """
import sys, threading
noted = []

def audit(event, args):
    if event == "import" and args[0].partition(".")[0] == "tiktoken":
        noted.append(threading.current_thread().name)
    if event in ("socket.connect", "socket.getaddrinfo"):
        noted.append("network")

sys.addaudithook(audit)
import httpx2, openai
from token_meter import Meter
from token_meter.sinks import MemorySink
from token_meter.testing import LoopbackProvider

sink = MemorySink()
with Meter(sink, journal=sys.argv[1]) as meter, LoopbackProvider() as provider:
    noted.clear()  # the provider's own port
    http = httpx2.Client(transport=provider.transport(httpx2))
    for number in range(2):
        with meter.wrap(openai.OpenAI(base_url="https://llm.example.com/v1", api_key="x", http_client=http)) as client:
            list(client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}], stream=True))
            http = httpx2.Client(transport=provider.transport(httpx2))
        meter.flush()
    threads = [thread.name for thread in threading.enumerate() if "estimates" in thread.name]
    print(sorted(set(noted)), threads, [event.estimator for event in sink.events])
    http.close()
"""


def test_nothing_is_imported_by_the_caller_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data of another encoding is here: only the background thread can tell, and must not fetch the right one."""
    put_data(tmp_path / "cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    told = run(CHILD, tmp_path / "some")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))

    assert told.splitlines() == [f"['{THREAD}'] ['{THREAD}'] ['bytes/4', 'bytes/4']"]
    assert run(CHILD, tmp_path / "none").splitlines() == ["[] [] ['bytes/4', 'bytes/4']"]


# ---- in the background, exactly once ------------------------------------------------------------------------------


def test_the_caller_does_not_wait_and_flush_does(bench: Bench, encoding: Gated) -> None:
    encoding.gate.clear()
    call(bench)
    assert encoding.entered.wait(10)

    assert not bench.meter.flush(0.1)
    assert not ended(bench), "still open in the journal"
    threading.Timer(0.2, encoding.gate.set).start()
    assert bench.meter.flush(10)
    assert len(bench.captured._sink.events) == 1
    assert ended(bench)


def test_queries_wait_for_estimates(encoding: Gated, tmp_path: Path) -> None:
    with Bench() as bench, Meter(tmp_path / "usage.db") as meter:
        encoding.gate.clear()
        call(bench, meter.wrap(bench.openai(host=SILENT, wrap=False)))
        threading.Timer(0.2, encoding.gate.set).start()

        [row] = meter.usage()

    assert row.usage.input == cookbook_tokens(MESSAGES, encoding)


def test_the_tally_has_the_heuristic_at_once_and_is_corrected(bench: Bench, encoding: Gated) -> None:
    encoding.gate.clear()
    with bench.meter.customer("acme") as tally:
        bench.meter.record(Usage(input=1000, web_search=1))
        call(bench)
    before = (tally.calls, tally.usage)
    encoding.gate.set()
    event = next(event for event in bench.events if event.status == "estimated")

    assert before[0] == tally.calls == 2
    assert before[1].input > 1000 + event.usage.input
    assert tally.usage == Usage(input=1000, web_search=1) + event.usage


def test_when_the_queue_is_full_it_is_the_heuristic_at_once(bench: Bench, encoding: Gated) -> None:
    encoding.gate.clear()
    client = bench.openai(host=SILENT)
    for _ in range(WAITING_MAX + 3):
        call(bench, client)

    assert bench.meter._journal.state().outstanding == WAITING_MAX  # type: ignore[union-attr]
    encoding.gate.set()
    assert sorted(map(str, estimators(bench))) == ["bytes/4"] * 3 + [ESTIMATOR] * WAITING_MAX


def test_close_makes_by_size_what_takes_too_long(bench: Bench, encoding: Gated, tmp_path: Path) -> None:
    sink = MemorySink()
    meter = Meter(sink, journal=tmp_path)
    client = meter.wrap(bench.openai(host=SILENT, wrap=False))
    encoding.gate.clear()
    call(bench, client)
    call(bench, client)
    began = time.monotonic()

    meter.close(1.0)
    took = time.monotonic() - began
    encoding.gate.set()
    call(bench, client)

    assert 0.4 < took < 2.0
    assert [event.estimator for event in sink.events] == ["bytes/4", "bytes/4"]
    [late] = [each for path in segments(tmp_path) for each in documents(path) if each["kind"] == "event"]
    assert late["estimator"] == "bytes/4", "and after the end at once, for the next start"
    assert len({late["id"], *(event.id for event in sink.events)}) == 3


def test_an_unclosed_meter_makes_its_estimates_at_exit(tmp_path: Path) -> None:
    told = run(
        """
        from tests.providers.kit import *
        from tests.tokeniser_kit import *
        from token_meter.testing import LoopbackProvider
        class Slow(Gated):
            def encode_ordinary(self, text):
                time.sleep(0.05)
                return super().encode_ordinary(text)
        import time
        from token_meter.sinks import JsonlSink
        meter = Meter(JsonlSink(sys.argv[2]), journal=sys.argv[1])
        provider = LoopbackProvider()
        http = httpx2.Client(transport=provider.transport(httpx2))
        client = meter.wrap(openai.OpenAI(base_url="https://llm.example.com/v1", api_key="x", http_client=http))
        tiktoken.registry.ENCODINGS[NAME] = Slow()
        list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
        print(meter._estimates.waiting)
        http.close()
        """,
        tmp_path / "journal",
        tmp_path / "rows",
    )

    assert told.split() == ["1"]
    [event] = documents(tmp_path / "rows")
    assert (event["status"], event["estimator"]) == ("estimated", ESTIMATOR)


KILLED = """
from tests.providers.kit import *
from tests.tokeniser_kit import *
from token_meter.testing import LoopbackProvider
meter = Meter(FileSink(sys.argv[2]), journal=sys.argv[1])
http = httpx2.Client(transport=LoopbackProvider().transport(httpx2))
client = meter.wrap(openai.OpenAI(base_url="https://llm.example.com/v1", api_key="x", http_client=http))
encoding = tiktoken.registry.ENCODINGS[NAME] = Gated()
encoding.gate.clear()
list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
encoding.entered.wait(10)
print("pending", flush=True)
signal.pause()
"""


def test_a_kill_while_it_waits_leaves_one_unmetered_event(tmp_path: Path) -> None:
    with start(KILLED, tmp_path / "journal", tmp_path / "rows") as process:
        assert process.stdout is not None and process.stdout.readline() == "pending\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    sink = MemorySink("file")
    with Meter(sink, journal=tmp_path / "journal") as meter:
        meter.flush()

    [event] = sink.events
    assert (event.status, event.model_requested, event.usage) == ("unmetered", "gpt-4o", Usage())


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "counting"])
def test_a_fork_leaves_the_parents_estimates_to_the_parent(encoding: Gated, tmp_path: Path, busy: bool) -> None:
    """A child of a process in the middle of counting estimates by size: it may have inherited a lock."""
    sink = MemorySink()
    with Bench() as bench, Meter(sink, journal=tmp_path) as meter:
        client = meter.wrap(bench.openai(host=SILENT, wrap=False))
        call(bench, client)
        assert meter.flush(10)
        if busy:
            encoding.gate.clear()
            encoding.entered.clear()
            call(bench, client)
            assert encoding.entered.wait(10)

        def child() -> None:
            encoding.gate = threading.Event()
            encoding.gate.set()
            meter._estimates.wait(5)  # type: ignore[union-attr]
            call(bench, client)
            assert meter._estimates.wait(5)  # type: ignore[union-attr]
            meter._journal.close()  # type: ignore[union-attr]

        assert wait(fork(child)) == 0
        encoding.gate.set()
        assert meter.flush(10)

    assert sorted(str(event.estimator) for event in sink.events) == (
        ["bytes/4", ESTIMATOR, ESTIMATOR] if busy else [ESTIMATOR, ESTIMATOR]
    )
    assert len({event.id for event in sink.events}) == len(sink.events)


# ---- what can go wrong --------------------------------------------------------------------------------------------


class Panic(BaseException):
    """As tiktoken's native part raises them: no Exception."""


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), Panic("x")], ids=lambda error: type(error).__name__)
def test_a_tokeniser_that_fails_is_told_and_replaced(bench: Bench, encoding: Gated, error: BaseException) -> None:
    bench.problems = {"tokenise": 1}
    encoding.error = error
    call(bench)
    assert estimators(bench) == ["bytes/4"]

    encoding.error = None
    call(bench)
    assert estimators(bench) == ["bytes/4", ESTIMATOR], "the thread goes on"


def test_a_request_that_is_garbage_is_estimated_by_size(
    bench: Bench, encoding: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    bench.problems = {"tokenise": 1}
    http = bench.http_client(is_async=False)

    def spoil(response: Any) -> None:
        response.request._content = b'{"messages": [garbage'

    http.event_hooks["response"] = [spoil]
    client = bench.meter.wrap(openai.OpenAI(base_url=f"{SILENT}/v1", api_key="x", http_client=http, max_retries=0))
    call(bench, client)

    assert (bench.event.usage.input, bench.event.estimator) == (6, "bytes/4")
    assert "garbage" not in caplog.text


def test_nothing_of_the_request_is_kept(bench: Bench, encoding: Gated, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    encoding.error = ValueError("rosebud")
    bench.problems = {"tokenise": 1}
    call(bench, messages=[{"role": "user", "content": "rosebud"}])
    assert bench.event

    estimates = bench.meter._estimates
    assert estimates is not None and estimates.waiting == 0
    folder = bench.meter.journal_folder
    assert folder is not None
    assert not [path for path in folder.rglob("*") if path.is_file() and b"rosebud" in path.read_bytes()]
    assert "rosebud" not in "".join(record.getMessage() for record in caplog.records if record.name == "token_meter")


def test_a_finaliser_starts_no_thread_but_uses_one_that_runs(bench: Bench, encoding: Gated) -> None:
    def drop() -> None:
        next(bench.openai(host=SILENT).chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
        collect()

    drop()
    assert not workers()
    call(bench)
    drop()

    assert estimators(bench) == ["bytes/4", ESTIMATOR, ESTIMATOR]


def test_a_meter_that_is_closed_has_no_thread(encoding: Gated, tmp_path: Path) -> None:
    with Bench() as bench, Meter(MemorySink(), journal=tmp_path) as meter:
        call(bench, meter.wrap(bench.openai(host=SILENT, wrap=False)))
        assert workers()

    assert not workers()


def test_an_idle_thread_keeps_no_meter_alive(encoding: Gated, tmp_path: Path) -> None:
    with Bench() as bench:
        meter = Meter(MemorySink(), journal=tmp_path)
        client = meter.wrap(bench.openai(host=SILENT, wrap=False))
        call(bench, client)
        meter.flush()
        meter.unwrap(client)

        with pytest.warns(ResourceWarning, match="unclosed Meter"):
            del meter
            collect()
    assert not workers()


# ---- the queue by itself ------------------------------------------------------------------------------------------


def test_many_threads_and_every_estimate_is_settled_once() -> None:
    problems: list[str] = []
    estimates = Estimates(lambda what, error: problems.append(what))
    settled: list[int] = []

    def put(number: int) -> None:
        for place in range(200):
            key = number * 200 + place
            if estimates.ready():
                estimates.put(lambda key=key: key, lambda counted, key=key: settled.append(key))  # type: ignore[misc]
            else:
                settled.append(key)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.005)
    estimates.close(5.0)
    for thread in threads:
        thread.join()

    assert sorted(settled) == list(range(1600))
    assert problems == [] and estimates.waiting == 0


def test_who_gives_up_and_who_counts_settle_once() -> None:
    for _ in range(300):
        estimates = Estimates(lambda what, error: None)
        settled: list[Any] = []
        assert estimates.ready()
        estimates.put(lambda: "counted", settled.append)
        estimates.close(0.0)

        assert len(settled) == 1


def test_a_settlement_that_asks_to_wait_does_not_wait_for_itself() -> None:
    estimates = Estimates(lambda what, error: None)
    waited: list[bool] = []
    assert estimates.ready()
    estimates.put(lambda: waited.append(estimates.wait(20)), lambda counted: None)

    assert estimates.wait(5)
    assert waited == [False]
    estimates.close(1)


def test_waiting_without_a_thread_settles_by_size() -> None:
    estimates = Estimates(lambda what, error: None)
    settled: list[Any] = []
    estimates.put(lambda: "counted", settled.append)

    assert estimates.wait(0)
    assert settled == [None]
