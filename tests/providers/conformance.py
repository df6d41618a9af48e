"""The checks every metered call of every SDK must pass, over one table: a new provider adds rows, and inherits them.

A row is one call shape of one SDK, synchronous or not. Checks are coroutines that drive either kind alike: a
synchronous client is simply called inside the loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.providers.kit import CHAT, GENERATE, MESSAGE, RESPONSE, Bench, Outcome, collect
from token_meter import Usage
from token_meter.testing.provider import WEIRD

AUDIO: Final = ("speech.wav", b"\x00" * 70_000)


@dataclass(frozen=True)
class Shape:
    """One way to call an SDK: where the method is, what it is given, and what its event is called."""

    sdk: str
    name: str
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    operation: str = "chat"
    stream: bool = False
    told_late: bool = False
    """No counts before the end: a stream that ends early is estimated, not partial."""
    estimates: bool = True
    """Without counts it is estimated; otherwise it is `unmetered`."""
    names_response: bool = True
    injected: bool = False
    """`include_usage` is added: a provider that then sends the extra chunk without usage shows it to the caller."""


@dataclass(frozen=True)
class Row:
    """A shape, called synchronously or not."""

    shape: Shape
    is_async: bool

    def __str__(self) -> str:
        return f"{'async ' if self.is_async else ''}{self.shape.sdk} {self.shape.name}"

    def client(self, bench: Bench, **options: Any) -> Any:
        return bench.client(self.shape.sdk, is_async=self.is_async, **options)

    async def call(self, client: Any) -> Any:
        """The result, or the stream, as the SDK hands it out."""
        target = client.aio if self.is_async and self.shape.sdk == "google" else client
        for name in self.shape.method.split("."):
            target = getattr(target, name)
        result = target(**self.shape.arguments)
        return await result if inspect.isawaitable(result) else result

    async def step(self, stream: Any) -> Any:
        """The next chunk; StopAsyncIteration at the end, for either kind."""
        if self.is_async:
            return await anext(stream)
        try:
            return next(stream)
        except StopIteration:
            raise StopAsyncIteration from None

    async def close(self, stream: Any) -> None:
        closing = stream.aclose() if hasattr(stream, "aclose") else stream.close()
        if inspect.isawaitable(closing):
            await closing

    async def outcome(self, client: Any) -> Outcome:
        """Everything a caller sees of one call."""
        outcome = Outcome()
        try:
            result = await self.call(client)
            if not self.shape.stream:
                outcome.add(result)
                return outcome
            outcome.types.append(type(result).__qualname__)
            while True:
                outcome.add(await self.step(result))
        except StopAsyncIteration:
            pass
        except Exception as error:
            outcome.failed(error)
        return outcome


SHAPES: Final = (
    Shape("openai", "chat", "chat.completions.create", CHAT),
    Shape("openai", "chat stream", "chat.completions.create", {**CHAT, "stream": True}, stream=True, told_late=True,
          injected=True),
    Shape(
        "openai", "chat stream with usage", "chat.completions.create",
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}}, stream=True, told_late=True,
    ),
    Shape("openai", "responses", "responses.create", RESPONSE, "responses"),
    Shape(
        "openai", "responses stream", "responses.create", {**RESPONSE, "stream": True}, "responses", stream=True,
        told_late=True,
    ),
    Shape(
        "openai", "completions", "completions.create", {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello"},
        "completions",
    ),
    Shape(
        "openai", "completions stream", "completions.create",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello", "stream": True}, "completions", stream=True,
        told_late=True, injected=True,
    ),
    Shape(
        "openai", "embeddings", "embeddings.create", {"model": "text-embedding-3-small", "input": "Hello"},
        "embeddings", names_response=False,
    ),
    Shape(
        "openai", "images", "images.generate", {"model": "gpt-image-1", "prompt": "a cat"}, "images",
        estimates=False, names_response=False,
    ),
    Shape(
        "openai", "transcriptions", "audio.transcriptions.create", {"model": "gpt-4o-transcribe", "file": AUDIO},
        "audio", estimates=False, names_response=False,
    ),
    Shape("anthropic", "messages", "messages.create", MESSAGE, "messages"),
    Shape("anthropic", "messages stream", "messages.create", {**MESSAGE, "stream": True}, "messages", stream=True),
    Shape("anthropic", "beta messages", "beta.messages.create", MESSAGE, "messages"),
    Shape("google", "generate", "models.generate_content", GENERATE, "generate_content"),
    Shape("google", "generate stream", "models.generate_content_stream", GENERATE, "generate_content", stream=True),
    Shape(
        "google", "embed", "models.embed_content", {"model": "gemini-embedding-001", "contents": "Hello"},
        "embeddings", estimates=False, names_response=False,
    ),
)  # fmt: skip
"""The table. A new provider, or a new endpoint of one, is a new line here."""

ROWS: Final = tuple(Row(shape, is_async) for shape in SHAPES for is_async in (False, True))
STREAMS: Final = tuple(row for row in ROWS if row.shape.stream)

Check = Callable[[Bench, Row], Awaitable[None]]


# ---- checks on every row ------------------------------------------------------------------------------------------


async def is_one_event_with_what_the_provider_billed(bench: Bench, row: Row) -> None:
    client = row.client(bench)
    with bench.meter.customer("acme", feature="chat") as tally:
        outcome = await row.outcome(client)

    assert outcome.error is None
    [line], event = bench.billed, bench.event
    assert (event.usage, event.status, event.anomalies, event.estimator) == (line.usage, "complete", (), None)
    assert (event.customer, dict(event.dimensions)) == ("acme", {"feature": "chat"})
    # Some answers name no model or carry no id: then the model is the one that was asked for.
    assert event.model in (line.model, line.model_requested)
    assert event.model_requested == line.model_requested
    assert event.response_id == (line.response_id if row.shape.names_response else None)
    assert (event.operation, event.provider, event.mode) == (row.shape.operation, row.shape.sdk, "live")
    assert (tally.usage, tally.calls) == (line.usage, 1)
    assert event.raw_usage
    assert event.duration_ms is not None


async def changes_nothing_that_the_caller_sees(bench: Bench, row: Row) -> None:
    bare = await row.outcome(row.client(bench, wrap=False))
    metered = await row.outcome(row.client(bench))

    assert metered == bare
    assert len(bench.events) == 1


async def counts_once_however_often_it_is_hooked(bench: Bench, row: Row) -> None:
    client = row.client(bench, wrap=False)
    with bench.meter.instrument(), bench.meter.instrument(row.shape.sdk):
        await row.outcome(client)
        assert len(bench.events) == 1
        bench.meter.wrap(bench.meter.wrap(client))
        await row.outcome(client)
        assert len(bench.events) == 2
    await row.outcome(client)
    assert len(bench.events) == 3
    await row.outcome(bench.meter.unwrap(client))

    assert len(bench.events) == 3
    assert bench.usages == [line.usage for line in bench.billed[:3]]


async def counts_every_client_while_instrumented(bench: Bench, row: Row) -> None:
    client = row.client(bench, wrap=False)
    await row.outcome(client)
    with bench.meter.instrument(row.shape.sdk):
        await row.outcome(client)
        await row.outcome(row.client(bench, wrap=False))
    await row.outcome(client)

    assert bench.usages == [line.usage for line in bench.billed[1:3]]


async def belongs_to_the_binding_before_the_block(bench: Bench, row: Row) -> None:
    client = row.client(bench)
    bound = bench.meter.wrap(client, customer="globex", team="blue")
    with bench.meter.customer("acme", feature="chat"):
        await row.outcome(bound)
        await row.outcome(client)
    await row.outcome(client)

    assert type(bound) is type(client) or isinstance(bound, type(client).__mro__[1])
    assert [(event.customer, dict(event.dimensions)) for event in bench.events] == [
        ("globex", {"team": "blue", "feature": "chat"}), ("acme", {"feature": "chat"}), (None, {}),
    ]  # fmt: skip


async def costs_nothing_when_it_is_refused(bench: Bench, row: Row) -> None:
    for status in ("400", "429x0", "500x0"):
        faults = {"fail": status}
        bare = await row.outcome(row.client(bench, wrap=False, faults=faults))
        metered = await row.outcome(row.client(bench, faults=faults))
        assert metered == bare and bare.error

    assert (bench.events, bench.billed) == ([], [])


async def counts_once_after_retries(bench: Bench, row: Row) -> None:
    faults = {"fail": "429x2"}
    if row.shape.sdk == "google":
        retries = {"attempts": 3, "initial_delay": 0.001, "exp_base": 1.0, "jitter": 0.0}
        client = row.client(bench, faults=faults, http_options={"retry_options": retries})
    else:
        client = row.client(bench, faults=faults, max_retries=2)
    outcome = await row.outcome(client)

    assert outcome.error is None
    assert len(bench.provider.requests) == 3
    assert bench.usages == [line.usage for line in bench.billed]
    assert len(bench.events) == 1


async def is_the_same_in_pieces_and_compressed(bench: Bench, row: Row) -> None:
    for faults in ({"chop": 7}, {"gzip": True}, {"gzip": True, "chop": 3}, {"crlf": True, "chop": 1}):
        outcome = await row.outcome(row.client(bench, faults=faults))
        assert outcome.error is None

    assert len(bench.events) == 4
    assert bench.usages == [line.usage for line in bench.billed]
    assert {event.status for event in bench.events} == {"complete"}


async def is_flagged_when_no_counts_come(bench: Bench, row: Row) -> None:
    for faults in ({"nousage": True}, {"nullusage": True}):
        bare = await row.outcome(row.client(bench, wrap=False, faults=faults))
        assert await row.outcome(row.client(bench, faults=faults)) == bare or row.shape.injected

    for event in bench.events:
        assert "no_usage" in event.anomalies
        if row.shape.estimates:
            assert (event.status, event.estimator) == ("estimated", "bytes/4")
            assert event.usage.input > 0
            assert event.usage.output > 0 or row.shape.operation == "embeddings"
        else:
            assert (event.status, event.usage) == ("unmetered", Usage())
    assert len(bench.events) == 2


async def survives_hostile_payloads(bench: Bench, row: Row) -> None:
    bills = []
    for name in WEIRD:
        with bench.meter.customer(name):
            bare = await row.outcome(row.client(bench, wrap=False, faults={"weird": name}))
            metered = await row.outcome(row.client(bench, faults={"weird": name}))
        assert metered == bare or (row.shape.injected and name in UNTELLABLE), name
        bills.append((name, bench.billed[-1].usage))
    await _collect()  # a stream that raised ends when it is collected

    events = {str(event.customer): event for event in bench.events}
    assert len(bench.events) == len(events) == len(WEIRD)
    for name, usage in bills:
        event = events[name]
        assert all(0 <= quantity < 2**63 for quantity in event.usage.values()), name
        assert event.usage == usage or event.anomalies or event.status != "complete" or name in HARMLESS, name


HARMLESS: Final = frozenset({"usage_details"})
"""The totals are there and only their breakdown is unreadable: the whole is counted under the plain type."""

UNTELLABLE: Final = frozenset({"empty", "list"})
"""Nothing in such a chunk tells the one that `include_usage` adds from the others."""


CHECKS: Final[tuple[Check, ...]] = (
    is_one_event_with_what_the_provider_billed,
    changes_nothing_that_the_caller_sees,
    counts_once_however_often_it_is_hooked,
    counts_every_client_while_instrumented,
    belongs_to_the_binding_before_the_block,
    costs_nothing_when_it_is_refused,
    counts_once_after_retries,
    is_the_same_in_pieces_and_compressed,
    is_flagged_when_no_counts_come,
    survives_hostile_payloads,
)


# ---- checks on streams --------------------------------------------------------------------------------------------


def _assert_ended_early(bench: Bench, row: Row, *anomalies: str) -> None:
    """One event, of the customer of the opening, never silent: what was told, or an estimate of what arrived."""
    event, [line] = bench.event, bench.billed
    assert event.customer == "acme"
    assert set(event.anomalies) & set(anomalies), event.anomalies
    if row.shape.told_late:
        assert (event.status, event.estimator) == ("estimated", "bytes/4")
        assert event.usage.input > 0 and event.usage.output > 0
    else:
        assert event.status == "partial"
        assert event.usage.input == line.usage.input
        assert 0 < event.usage.output <= line.usage.output


async def _opened(bench: Bench, row: Row, *, steps: int = 9, **faults: Any) -> Any:
    client = row.client(bench, faults={"events": 30, **faults})
    with bench.meter.customer("acme"):
        stream = await row.call(client)
    for _ in range(steps):
        await row.step(stream)
    return stream


async def _collect() -> None:
    """Drop everything unreachable; the finalisers of asynchronous generators need turns of the loop."""
    collect()
    for _ in range(8):
        await asyncio.sleep(0)
    collect()


async def is_billed_when_closed(bench: Bench, row: Row) -> None:
    stream = await _opened(bench, row)
    await row.close(stream)
    await _collect()  # Google's generators close what is inside them in a later turn of the loop

    _assert_ended_early(bench, row, "closed", "dropped")


async def is_billed_when_dropped(bench: Bench, row: Row) -> None:
    stream = await _opened(bench, row)
    del stream
    await _collect()

    _assert_ended_early(bench, row, "closed", "dropped")


async def is_billed_when_the_connection_drops(bench: Bench, row: Row) -> None:
    bare = await row.outcome(row.client(bench, wrap=False, faults={"events": 30, "drop": 9}))
    bench.provider.reset()
    client = row.client(bench, faults={"events": 30, "drop": 9})
    with bench.meter.customer("acme"):
        metered = await row.outcome(client)

    assert metered == bare and bare.error
    _assert_ended_early(bench, row, "failed")


async def is_billed_and_flagged_after_a_clean_cut(bench: Bench, row: Row) -> None:
    bare = await row.outcome(row.client(bench, wrap=False, faults={"events": 30, "cut": 9}))
    bench.provider.reset()
    client = row.client(bench, faults={"events": 30, "cut": 9})
    with bench.meter.customer("acme"):
        metered = await row.outcome(client)

    assert metered == bare
    _assert_ended_early(bench, row, "ended", "closed")


async def is_billed_when_the_provider_fails_in_the_middle(bench: Bench, row: Row) -> None:
    bare = await row.outcome(row.client(bench, wrap=False, faults={"events": 30, "errmid": 9}))
    bench.provider.reset()
    client = row.client(bench, faults={"events": 30, "errmid": 9})
    with bench.meter.customer("acme"):
        metered = await row.outcome(client)
    await _collect()

    assert metered == bare and bare.error
    assert len(bench.events) == 1
    assert bench.event.status in ("estimated", "partial")


async def keeps_its_customer_wherever_it_is_read(bench: Bench, row: Row) -> None:
    stream = await _opened(bench, row, steps=0)
    with bench.meter.customer("globex"):
        while True:
            try:
                await row.step(stream)
            except StopAsyncIteration:
                break

    assert (bench.event.customer, bench.event.usage) == ("acme", bench.billed[0].usage)


STREAM_CHECKS: Final[tuple[Check, ...]] = (
    is_billed_when_closed,
    is_billed_when_dropped,
    is_billed_when_the_connection_drops,
    is_billed_and_flagged_after_a_clean_cut,
    is_billed_when_the_provider_fails_in_the_middle,
    keeps_its_customer_wherever_it_is_read,
)


# ---- checks that need a real port ---------------------------------------------------------------------------------


async def is_unmetered_when_no_answer_comes_in_time(bench: Bench, row: Row) -> None:
    limit: Any = {"http_options": {"timeout": 60}} if row.shape.sdk == "google" else {"timeout": 0.06}
    client = row.client(bench, faults={"delay": 0.2}, **limit)
    with bench.meter.customer("acme"):
        outcome = await row.outcome(client)

    assert outcome.error
    assert (bench.event.status, bench.event.usage, bench.event.customer) == ("unmetered", Usage(), "acme")
    assert "no_response" in bench.event.anomalies


async def costs_nothing_when_nobody_listens(bench: Bench, row: Row) -> None:
    # Over aiohttp, Google's SDK waits for some seconds, at random, and tries again.
    options = {"aiohttp": False} if row.shape.sdk == "google" else {}
    outcome = await row.outcome(row.client(bench, host="http://127.0.0.1:1", **options))

    assert outcome.error
    assert bench.events == []


SOCKET_CHECKS: Final[tuple[Check, ...]] = (
    is_unmetered_when_no_answer_comes_in_time,
    costs_nothing_when_nobody_listens,
)


def pairs(rows: tuple[Row, ...], checks: tuple[Check, ...]) -> list[Any]:
    """Every row with every check, named for the report."""
    return [pytest.param(row, check, id=f"{row}: {check.__name__}") for row in rows for check in checks]
