"""The Meter: wrapping and unwrapping, instrumenting and taking it back, manual entry, and being switched off."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import wrapt
from google import genai
from google.genai import _api_client, chats, models

from tests.providers.kit import CHAT, GENERATE, MESSAGE, Bench, collect
from token_meter import InvalidEvent, Meter, TokenMeterError, UnsupportedClient, Usage
from token_meter.sinks import MemorySink
from token_meter.testing.provider import LoopbackProvider

CALLS: dict[str, Any] = {
    "openai": lambda client: client.chat.completions.create(**CHAT),
    "anthropic": lambda client: client.messages.create(**MESSAGE),
    "google": lambda client: client.models.generate_content(**GENERATE),
}
SDKS = list(CALLS)

PATCHED: list[tuple[type, str]] = [
    *((cls, name) for cls in (openai._base_client.SyncAPIClient, openai._base_client.AsyncAPIClient)
      for name in ("request", "_process_response")),
    *((cls, name) for cls in (anthropic._base_client.SyncAPIClient, anthropic._base_client.AsyncAPIClient)
      for name in ("request", "_process_response")),
    *((_api_client.BaseApiClient, name)
      for name in ("request", "request_streamed", "async_request", "async_request_streamed")),
    *((cls, "generate_content_stream") for cls in (models.Models, models.AsyncModels)),
    *((cls, "send_message_stream") for cls in (chats.Chat, chats.AsyncChat)),
    (ThreadPoolExecutor, "submit"),
]  # fmt: skip


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@pytest.fixture
def call(request: pytest.FixtureRequest) -> Any:
    return CALLS[request.param]


def attributes() -> list[object]:
    return [cls.__dict__[name] for cls, name in PATCHED]


# ---- wrap and unwrap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sdk", SDKS)
def test_wrapping_returns_the_same_client_of_the_same_type_and_can_be_undone(bench: Bench, sdk: str) -> None:
    client = bench.client(sdk, wrap=False)
    cls, before = type(client), dict(client.__dict__)

    assert bench.meter.wrap(client) is client
    assert isinstance(client, cls) and type(client).__name__ == cls.__name__
    assert bench.meter.wrap(client) is client
    CALLS[sdk](client)
    assert bench.meter.unwrap(client) is client
    assert type(client) is cls
    assert {name for name in client.__dict__ if name not in before} <= {"chat", "messages"}  # resources made since
    CALLS[sdk](client)
    assert bench.meter.unwrap(client) is client

    assert len(bench.events) == 1


@pytest.mark.parametrize("sdk", SDKS)
def test_wrapping_works_after_resources_were_made(bench: Bench, sdk: str) -> None:
    client = bench.client(sdk, wrap=False)
    CALLS[sdk](client)
    create = {
        "openai": lambda: client.chat.completions.create, "anthropic": lambda: client.messages.create,
        "google": lambda: client.models.generate_content,
    }[sdk]()  # fmt: skip
    bench.meter.wrap(client)
    create(**{"openai": CHAT, "anthropic": MESSAGE, "google": GENERATE}[sdk])

    assert bench.usages == [bench.billed[1].usage]


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_copies_of_every_depth_stay_metered_and_bound(bench: Bench, sdk: str) -> None:
    bound = bench.meter.wrap(bench.client(sdk), customer="acme", team="blue")
    inner = bound.with_options(timeout=9).copy(max_retries=1).with_options(default_headers={"x-a": "b"})
    CALLS[sdk](inner)
    CALLS[sdk](bench.meter.wrap(inner, feature="chat"))

    assert inner._client is bound._client
    assert [(event.customer, dict(event.dimensions)) for event in bench.events] == [
        ("acme", {"team": "blue"}), ("acme", {"team": "blue", "feature": "chat"}),
    ]  # fmt: skip


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_a_copy_of_an_unwrapped_client_is_not_metered(bench: Bench, sdk: str) -> None:
    client = bench.meter.unwrap(bench.client(sdk))
    CALLS[sdk](client.with_options(timeout=9))

    assert bench.events == []


@pytest.mark.parametrize("sdk", SDKS)
def test_a_bound_copy_shares_the_transport_and_leaves_the_original_unbound(bench: Bench, sdk: str) -> None:
    client = bench.client(sdk)
    bound = bench.meter.wrap(client, customer="acme")

    assert bound is not client
    if sdk == "google":
        assert bound._api_client._httpx_client is client._api_client._httpx_client
    else:
        assert bound._client is client._client
    CALLS[sdk](client)
    CALLS[sdk](bound)
    assert [event.customer for event in bench.events] == [None, "acme"]


@pytest.mark.parametrize("sdk", SDKS)
def test_copy_copy_does_no_worse_than_with_a_bare_client(bench: Bench, sdk: str) -> None:
    CALLS[sdk](copy.copy(bench.client(sdk)))

    assert len(bench.events) == 1
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(bench.client(sdk))


def test_subclasses_of_clients_are_wrapped_as_themselves(bench: Bench) -> None:
    class Ours(openai.OpenAI):
        """Our client."""

        def shout(self) -> str:
            return "hey"

    client = bench.openai(Ours)

    assert isinstance(client, Ours) and client.shout() == "hey" and type(client).__doc__ == "Our client."
    CALLS["openai"](client.with_options(timeout=9))
    assert len(bench.events) == 1


@pytest.mark.parametrize("sdk", SDKS)
def test_a_client_belongs_to_one_meter_at_a_time(bench: Bench, sdk: str) -> None:
    with Bench() as other:
        client = bench.client(sdk)
        with pytest.raises(TokenMeterError, match="already wrapped by another Meter"):
            other.meter.wrap(client)
        with pytest.raises(TokenMeterError, match="already wrapped by another Meter"):
            other.meter.wrap(client, customer="acme")
        bench.meter.unwrap(client)
        CALLS[sdk](other.meter.wrap(client))

        assert (len(bench.events), len(other.events)) == (0, 1)


@pytest.mark.parametrize("thing", [object(), None, "client", 7, openai, openai.OpenAI])
def test_what_is_no_client_is_refused_by_name(bench: Bench, thing: object) -> None:
    with pytest.raises(UnsupportedClient) as refused:
        bench.meter.wrap(thing)

    message = str(refused.value)
    assert type(thing).__qualname__ in message
    assert all(name in message for name in ("openai", "anthropic", "google-genai", "meter.record"))


def test_many_threads_on_one_client_are_counted_exactly(bench: Bench) -> None:
    client = bench.openai()

    def work(number: int) -> None:
        with bench.meter.customer(f"customer-{number}"):
            for _ in range(10):
                CALLS["openai"](client)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(bench.events) == len({event.id for event in bench.events}) == 60
    assert {str(event.customer) for event in bench.events} == {f"customer-{number}" for number in range(6)}
    assert sum(bench.usages, Usage()) == bench.provider.total()


# ---- instrument and undo ------------------------------------------------------------------------------------------


def test_undo_restores_every_attribute_exactly(bench: Bench) -> None:
    before = attributes()
    undo = bench.meter.instrument("openai", "anthropic", "google", "threads")
    assert all(now is not then for now, then in zip(attributes(), before, strict=True))
    undo()
    undo()

    assert all(now is then for now, then in zip(attributes(), before, strict=True))


@pytest.mark.parametrize("first", [0, 1])
def test_nested_instrumentation_is_taken_back_in_either_order(bench: Bench, first: int) -> None:
    before = attributes()
    undos = [bench.meter.instrument(), bench.meter.instrument()]
    client = bench.openai(wrap=False)
    CALLS["openai"](client)
    undos[first]()
    CALLS["openai"](client)
    undos[1 - first]()
    CALLS["openai"](client)

    assert bench.usages == [line.usage for line in bench.billed[:2]]
    assert all(now is then for now, then in zip(attributes(), before, strict=True))


@pytest.mark.parametrize("sdk", SDKS)
def test_of_two_meters_the_newer_counts_and_then_the_older_again(bench: Bench, sdk: str) -> None:
    client = bench.client(sdk, wrap=False)
    with Bench() as inner, bench.meter.instrument():
        CALLS[sdk](client)
        with inner.meter.instrument():
            CALLS[sdk](client)
        CALLS[sdk](client)

        assert (len(bench.events), len(inner.events)) == (2, 1)


def test_closing_a_meter_takes_its_instrumentation_back() -> None:
    before = attributes()
    with Bench() as bench:
        bench.meter.instrument()

    assert all(now is then for now, then in zip(attributes(), before, strict=True))


@pytest.mark.parametrize("sdk", SDKS)
def test_wrapping_and_instrumenting_count_once_in_both_orders(bench: Bench, sdk: str) -> None:
    client = bench.client(sdk)
    with bench.meter.instrument():
        CALLS[sdk](client)
        other = bench.client(sdk)
        CALLS[sdk](other)
    CALLS[sdk](other)

    assert bench.usages == [line.usage for line in bench.billed]
    assert len(bench.events) == 3


@pytest.mark.parametrize("sdk", SDKS)
def test_wrap_beats_instrument(bench: Bench, sdk: str) -> None:
    with Bench() as other:
        client = other.meter.wrap(bench.client(sdk, wrap=False), customer="acme")
        with bench.meter.instrument():
            CALLS[sdk](client)

        assert (len(bench.events), len(other.events)) == (0, 1)


def test_what_another_tool_wrapped_on_top_is_left_and_ours_is_switched_off(bench: Bench) -> None:
    seen: list[str] = []

    def tool(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append("tool")
        return wrapped(*args, **kwargs)

    cls = openai._base_client.SyncAPIClient
    original = cls.__dict__["request"]
    client = bench.openai(wrap=False)
    try:
        undo = bench.meter.instrument("openai")
        wrapt.wrap_function_wrapper(cls, "request", tool)
        on_top = cls.__dict__["request"]
        CALLS["openai"](client)
        undo()
        assert cls.__dict__["request"] is on_top
        CALLS["openai"](client)
        with bench.meter.instrument("openai"):
            CALLS["openai"](client)
        assert cls.__dict__["request"] is on_top
    finally:
        cls.request = original  # type: ignore[method-assign]

    assert seen == ["tool"] * 3
    assert len(bench.events) == 2


def test_a_call_under_way_when_instrumentation_is_taken_back_is_not_lost(bench: Bench) -> None:
    client = bench.openai(wrap=False)
    undo = bench.meter.instrument("openai")
    bench.provider.script(lambda request: undo() and None)
    CALLS["openai"](client)

    assert (bench.event.status, bench.event.usage) == ("unmetered", Usage())


def test_an_unknown_name_is_refused(bench: Bench) -> None:
    before = attributes()
    with pytest.raises(ValueError, match=r"cannot instrument cohere\. Known: openai, anthropic, google, threads"):
        bench.meter.instrument("openai", "cohere")

    assert attributes() == before


def python(code: str, tmp_path: Path, **environment: str) -> str:
    """Run a program of its own; `provider` is open on a port, and so is `call`."""
    with LoopbackProvider() as provider:
        given = {"PATH": "/usr/bin:/bin", "PROVIDER": provider.url, "OPENAI_API_KEY": "x", **environment}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env={**given, "PYTHONPATH": ROOT}, text=True,
            capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


ROOT = str(Path(__file__).resolve().parents[1])

BEFORE_IMPORT = """
import os, sys
from token_meter import Meter
from token_meter.sinks import MemorySink
sink = MemorySink()
with Meter(sink, journal="journal") as meter:
    undo = meter.instrument()
    later = meter.instrument("anthropic")
    later()
    assert not {"openai", "anthropic", "google.genai"} & set(sys.modules)
    import openai
    client = openai.OpenAI(base_url=os.environ["PROVIDER"] + "/v1", max_retries=0)
    chat = dict(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
    client.chat.completions.create(**chat)
    undo()
    client.chat.completions.create(**chat)
    client.close()
    import anthropic
    assert not hasattr(anthropic._base_client.SyncAPIClient.request, "__wrapped__")
    meter.flush(30)
    print(len(sink.events), sink.events[0].usage.tokens)
"""


def test_instrumenting_works_before_the_sdk_is_imported(tmp_path: Path) -> None:
    assert python(BEFORE_IMPORT, tmp_path).split() == ["1", "28"]


MISSING_HOOK = """
import openai
from token_meter import Meter, MeteringUnavailable
from token_meter.sinks import MemorySink
del openai._base_client.SyncAPIClient._process_response
with Meter(MemorySink(), journal="journal") as meter:
    for attempt in (lambda: meter.wrap(openai.OpenAI()), lambda: meter.instrument("openai")):
        try:
            attempt()
        except MeteringUnavailable as error:
            print(error)
"""


def test_an_sdk_without_the_hook_is_refused_loudly(tmp_path: Path) -> None:
    lines = python(MISSING_HOOK, tmp_path).splitlines()

    assert len(lines) == 2
    for line in lines:
        assert openai.__version__ in line and "_process_response" in line and "meter.record" in line


DISABLED = """
import os, openai
from token_meter import Meter, NoLedger, Usage
with Meter("usage.db") as meter:
    client = openai.OpenAI(base_url=os.environ["PROVIDER"] + "/v1", max_retries=0)
    assert meter.wrap(client) is client and type(client) is openai.OpenAI
    assert meter.wrap(client, customer="acme") is client
    with meter.instrument("openai", "threads"), meter.customer("acme") as tally:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
        meter.record(Usage(input=3))
    assert tally.usage == Usage() and meter.journal_folder is None and meter.flush()
    meter.health()
    client.close()
print(sorted(os.listdir()))
"""


def test_it_can_be_switched_off_by_the_environment(tmp_path: Path) -> None:
    assert python(DISABLED, tmp_path, TOKEN_METER_DISABLED="1").strip() == "[]"


# ---- manual entry -------------------------------------------------------------------------------------------------


def test_usage_entered_by_hand_takes_part_in_everything(bench: Bench) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    with bench.meter.customer("acme", team="blue") as tally:
        event = bench.meter.record(
            Usage(input=3, output=1), model="claude-sonnet-4-6", provider="bedrock", id="job-1", time=moment,
            dimensions={"job": 7}, price_context={"batch": True}, response_id="r", operation="batch",
        )  # fmt: skip
        bench.meter.record({"audio_ms": 1500}, customer="globex")
        bench.meter.record(5, meter="pages")

    first, second, third = bench.events
    assert first == event
    assert (first.id, first.time, first.publisher) == ("job-1", moment, "anthropic")
    assert (first.customer, dict(first.dimensions)) == ("acme", {"team": "blue", "job": "7"})
    assert (second.customer, second.usage) == ("globex", Usage(audio_ms=1500))
    assert (third.meter, third.usage) == ("pages", Usage(units=5))
    assert (tally.calls, tally.usage) == (3, Usage(input=3, output=1, audio_ms=1500, units=5))


def test_entering_an_id_again_counts_nothing(bench: Bench) -> None:
    with bench.meter.customer("acme") as tally:
        for _ in range(3):
            bench.meter.record(5, id="job-1")

    assert (len(bench.events), tally.usage, tally.calls) == (1, Usage(units=5), 1)


def test_a_time_without_a_zone_is_utc(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    event = bench.meter.record(1, time=datetime(2026, 1, 2, 3, 4, 5))  # noqa: DTZ001

    assert event.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("status", ["estimated", "unmetered", "partial"])
def test_every_status_can_be_entered(bench: Bench, status: Any) -> None:
    assert bench.meter.record(Usage(), status=status).status == status
    assert bench.meter.health().counters[status] == 1


@pytest.mark.parametrize(
    ("usage", "error"),
    [({"tokens": 3}, ValueError), ({"input": -1}, ValueError), ({"input": 1.5}, TypeError), (-1, ValueError),
     ({"input": 2**63}, ValueError), (True, TypeError), ({"input": "3"}, TypeError)],
    ids=str,
)  # fmt: skip
def test_quantities_that_are_none_are_refused(bench: Bench, usage: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        bench.meter.record(usage)

    assert bench.events == []


def test_other_nonsense_is_refused(bench: Bench) -> None:
    for options in ({"id": ""}, {"id": "x" * 256}, {"status": "sure"}):
        with pytest.raises(InvalidEvent):
            bench.meter.record(1, **options)  # type: ignore[arg-type]


# ---- a Meter's life -----------------------------------------------------------------------------------------------


def test_calls_without_a_customer_are_kept_counted_and_warned_about_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="token_meter"):
        for _ in range(3):
            CALLS["openai"](bench.openai())

    assert [event.customer for event in bench.events] == [None, None, None]
    assert bench.meter.health().counters["unattributed"] == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_calls_after_closing_still_work_and_are_still_on_disk(tmp_path: Path) -> None:
    with LoopbackProvider() as provider:
        with Meter(MemorySink(), journal=tmp_path) as meter:
            client = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="x", max_retries=0))
            CALLS["openai"](client)
        CALLS["openai"](client)
        client.close()
    lines = [json.loads(line) for file in (tmp_path / "segments").iterdir() for line in file.read_text().splitlines()]

    assert sum(line["kind"] == "event" for line in lines) >= 1
    assert {line["id"] for line in lines if line["kind"] == "opened"} == {
        line["call"] for line in lines if line["kind"] == "event"
    }


def test_a_forgotten_meter_says_so(tmp_path: Path) -> None:
    meter = Meter(MemorySink(), journal=tmp_path)
    with pytest.warns(ResourceWarning, match="unclosed Meter"):
        del meter
        collect()


def test_a_wrapped_client_keeps_its_meter(tmp_path: Path) -> None:
    sink = MemorySink()
    with LoopbackProvider() as provider, openai.OpenAI(base_url=provider.openai_url, api_key="x") as client:
        Meter(sink, journal=tmp_path).wrap(client)
        collect()
        CALLS["openai"](client)
        meter = client._token_meter.recorder._owner  # type: ignore[attr-defined]
        assert meter.flush(30)
        meter.close()

    assert len(sink.events) == 1


def test_wrapping_for_each_request_leaves_nothing_behind(bench: Bench) -> None:
    """A web application binds a copy to every request's customer."""
    clients = {sdk: bench.client(sdk) for sdk in SDKS}

    def classes() -> int:
        return sum(len(cls.__subclasses__()) for cls in (openai.OpenAI, anthropic.Anthropic, genai.Client))

    for sdk, client in clients.items():
        bench.meter.wrap(client, customer=sdk)
    before = classes()
    for number in range(50):
        for client in clients.values():
            bench.meter.wrap(client, customer=f"customer-{number}")
    collect()

    assert classes() == before
