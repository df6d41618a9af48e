"""Who a call belongs to: blocks, decorators, generators, threads and tasks; and what a tally has seen."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.journal_kit import fork, wait
from tests.providers.kit import CHAT, MESSAGE, RESPONSE, Bench, collect
from token_meter import Tally, Usage
from token_meter.context import CURRENT, DIMENSIONS_MAX, NAME_LENGTH_MAX, NOBODY


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench
        assert CURRENT.get() is NOBODY, "a customer was left in force"


def whose() -> tuple[str | None, dict[str, str]]:
    """The customer and dimensions in force here: what a call would be bound to."""
    current = CURRENT.get()
    return current.customer, dict(current.dimensions)


# ---- blocks -------------------------------------------------------------------------------------------------------


def test_blocks_nest_and_merge(bench: Bench) -> None:
    meter = bench.meter
    with meter.customer("acme", feature="chat", team="blue"):
        with meter.customer(route="/a", team="red"):
            assert whose() == ("acme", {"feature": "chat", "team": "red", "route": "/a"})
            with meter.customer("globex"):
                assert whose() == ("globex", {"feature": "chat", "team": "red", "route": "/a"})
        assert whose() == ("acme", {"feature": "chat", "team": "blue"})
    assert whose() == (None, {})


def test_an_exception_leaves_the_block(bench: Bench) -> None:
    with pytest.raises(KeyError), bench.meter.customer("acme"), bench.meter.customer("globex"):
        raise KeyError

    assert whose() == (None, {})


def test_a_block_can_be_used_again_and_inside_itself(bench: Bench) -> None:
    scope = bench.meter.customer("acme")
    with scope as outer, scope as inner:
        bench.meter.record(1)
        assert whose() == ("acme", {})
    with scope as again:
        bench.meter.record(2)

    assert (outer.usage, inner.usage, again.usage) == (Usage(units=1), Usage(units=1), Usage(units=2))


def test_one_block_shared_by_threads_keeps_them_apart(bench: Bench) -> None:
    """`ACME = meter.customer("acme")` at the top of a module is entered by many requests at a time."""
    scope = bench.meter.customer("acme")
    barrier = threading.Barrier(4)
    after: list[Any] = []

    def work(number: int) -> None:
        with bench.meter.customer(f"outer-{number}"):
            barrier.wait()
            with scope:
                barrier.wait()
                assert whose() == ("acme", {})
            barrier.wait()
            after.append(whose()[0] == f"outer-{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert after == [True] * 4


def test_one_block_shared_by_tasks_keeps_them_apart(bench: Bench) -> None:
    scope = bench.meter.customer("acme")

    async def work(number: int) -> bool:
        with bench.meter.customer(f"outer-{number}"):
            await asyncio.sleep(0)
            async with scope:
                await asyncio.sleep(0)
                assert whose() == ("acme", {})
            await asyncio.sleep(0)
            return whose()[0] == f"outer-{number}"

    async def main() -> None:
        assert await asyncio.gather(*(work(number) for number in range(4))) == [True] * 4

    asyncio.run(main())


def test_names_are_text_bounded_and_never_empty(bench: Bench) -> None:
    with bench.meter.customer("c" * 1000, number=7, nothing=None, empty="", long="d" * 1000, **{"k" * 1000: "v"}):
        customer, dimensions = whose()

    assert customer == "c" * NAME_LENGTH_MAX
    assert dimensions == {"number": "7", "long": "d" * NAME_LENGTH_MAX, "k" * NAME_LENGTH_MAX: "v"}


def test_there_is_a_limit_of_dimensions_and_the_innermost_are_kept(bench: Bench) -> None:
    with bench.meter.customer("acme", **{f"outer_{number}": number for number in range(30)}):
        with bench.meter.customer(**{f"inner_{number}": number for number in range(40)}):
            inner = whose()[1]
        with bench.meter.customer(one=1, two=2, three=3):
            both = whose()[1]

    assert len(inner) == len(both) == DIMENSIONS_MAX
    assert all(name.startswith("inner_") for name in inner)
    assert {"one", "two", "three", "outer_0"} <= set(both)


def test_from_is_for_decorators(bench: Bench) -> None:
    with pytest.raises(TypeError, match="use it as a decorator"), bench.meter.customer(from_=lambda: "acme"):
        pass


# ---- decorators ---------------------------------------------------------------------------------------------------


def test_a_decorated_function_runs_for_the_customer(bench: Bench) -> None:
    @bench.meter.customer("acme", feature="chat")
    def work(number: int, *, more: int = 0) -> Any:
        """Works."""
        return whose(), number + more

    with bench.meter.customer("globex", team="blue"):
        assert work(1, more=2) == (("acme", {"team": "blue", "feature": "chat"}), 3)
        assert whose() == ("globex", {"team": "blue"})
    assert (work.__name__, work.__doc__) == ("work", "Works.")


def test_a_decorated_coroutine_runs_for_the_customer(bench: Bench) -> None:
    @bench.meter.customer("acme")
    async def work() -> Any:
        await asyncio.sleep(0)
        return whose()

    async def main() -> None:
        assert inspect.iscoroutinefunction(work)
        assert await work() == ("acme", {})
        assert await asyncio.create_task(work()) == ("acme", {})
        assert whose() == (None, {})

    asyncio.run(main())


def test_a_method_and_a_recursive_function_can_be_decorated(bench: Bench) -> None:
    class Service:
        @bench.meter.customer("acme")
        def work(self, depth: int) -> Any:
            return self.work(depth - 1) if depth else whose()

        @staticmethod
        @bench.meter.customer("globex")
        def other() -> Any:
            return whose()

    assert Service().work(3) == ("acme", {})
    assert Service.other() == ("globex", {})


def test_a_plain_function_that_returns_a_coroutine_or_a_generator_is_followed(bench: Bench) -> None:
    """The SDKs' own methods are such functions: `create` of an asynchronous client is no coroutine function."""

    async def later() -> Any:
        return whose()

    def steps() -> Iterator[Any]:
        yield whose()

    async def asteps() -> AsyncIterator[Any]:
        yield whose()

    decorate = bench.meter.customer("acme")

    async def main() -> None:
        assert await decorate(lambda: later())() == ("acme", {})
        assert [each async for each in decorate(lambda: asteps())()] == [("acme", {})]

    asyncio.run(main())
    assert list(decorate(lambda: steps())()) == [("acme", {})]
    assert decorate(lambda: 7)() == 7


def test_a_decorated_sdk_call_is_bound(bench: Bench) -> None:
    async def main() -> None:
        client = bench.openai(is_async=True)
        await bench.meter.customer("acme")(client.chat.completions.create)(**CHAT)
        await bench.meter.customer("globex")(functools.partial(client.chat.completions.create, **CHAT))()

    bench.run(main)

    assert [event.customer for event in bench.events] == ["acme", "globex"]


# ---- from_ --------------------------------------------------------------------------------------------------------


def test_from_reads_the_functions_own_arguments(bench: Bench) -> None:
    @bench.meter.customer(from_=lambda request, **_: request["user"], feature="chat")
    def handle(request: dict[str, Any], *, flag: bool = False) -> Any:
        return whose()

    @bench.meter.customer(from_=lambda request: request["user"])
    async def ahandle(request: dict[str, Any]) -> Any:
        return whose()

    @bench.meter.customer(from_=lambda request: request["user"])
    def stream(request: dict[str, Any]) -> Iterator[Any]:
        yield whose()

    assert handle({"user": "acme"}, flag=True) == ("acme", {"feature": "chat"})
    assert asyncio.run(ahandle({"user": 42})) == ("42", {})
    assert list(stream({"user": "globex"})) == [("globex", {})]


def test_a_from_that_finds_nobody_leaves_the_customer_around(bench: Bench) -> None:
    @bench.meter.customer(from_=lambda: None)
    def handle() -> Any:
        return whose()

    with bench.meter.customer("acme"):
        assert handle() == ("acme", {})


def test_a_from_that_raises_breaks_nothing_and_is_counted(bench: Bench) -> None:
    @bench.meter.customer(from_=lambda request: request.missing)
    def handle(request: object) -> Any:
        return whose()

    with bench.meter.customer("acme"):
        assert handle(object()) == ("acme", {})

    bench.problems = {"customer(from_=...)": 1}


def test_an_asynchronous_from_is_refused_at_once(bench: Bench) -> None:
    async def find(request: object) -> str:
        return "acme"

    with pytest.raises(TypeError, match="plain function"):
        bench.meter.customer(from_=find)


# ---- generators ---------------------------------------------------------------------------------------------------


def test_a_generators_steps_run_for_the_customer_and_its_reader_does_not(bench: Bench) -> None:
    @bench.meter.customer("acme")
    def steps() -> Iterator[Any]:
        yield whose()
        yield whose()

    generator = steps()
    with bench.meter.customer("globex"):
        assert next(generator) == ("acme", {})
        assert whose() == ("globex", {})
        assert next(generator) == ("acme", {})
    assert whose() == (None, {})
    assert inspect.isgeneratorfunction(steps)


def test_send_throw_return_and_close_pass_through(bench: Bench) -> None:
    seen: list[Any] = []

    @bench.meter.customer("acme")
    def steps() -> Any:
        got = yield "first"
        seen.append(got)
        try:
            yield "second"
        except KeyError as error:
            seen.append(error)
        try:
            yield "third"
        finally:
            seen.append(whose())
        return "the end"

    generator = steps()
    assert next(generator) == "first"
    assert generator.send("hello") == "second"
    error = KeyError("thrown")
    assert generator.throw(error) == "third"
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    assert stopped.value.value == "the end"

    another = steps()
    next(another), another.send(None), another.throw(KeyError)
    another.close()
    assert seen[:2] == ["hello", error]
    assert seen.count(("acme", {})) == 2
    with pytest.raises(StopIteration):
        next(another)


def test_an_error_in_a_generator_is_its_own(bench: Bench) -> None:
    @bench.meter.customer("acme")
    def steps() -> Any:
        yield 1
        raise KeyError("mine")

    generator = steps()
    next(generator)
    with pytest.raises(KeyError, match="mine"):
        next(generator)
    assert whose() == (None, {})


def test_a_generator_that_is_never_started_does_nothing(bench: Bench) -> None:
    ran: list[int] = []

    @bench.meter.customer("acme")
    def steps() -> Any:
        ran.append(1)
        yield

    steps().close()
    assert ran == []


def test_a_block_inside_a_decorated_generator_is_there_again_at_its_next_step(bench: Bench) -> None:
    @bench.meter.customer("acme")
    def steps() -> Iterator[Any]:
        with bench.meter.customer("globex"):
            yield whose()
            yield whose()
        yield whose()

    generator = steps()
    seen = []
    for each in generator:
        seen.append(each[0])
        assert whose() == (None, {})

    assert seen == ["globex", "globex", "acme"]


def test_two_generators_with_blocks_of_their_own_leave_nothing_behind(bench: Bench) -> None:
    """Undecorated, they share the reader's context; leaving them in the wrong order must not leave one in force."""

    def steps(name: str) -> Iterator[None]:
        with bench.meter.customer(name):
            yield
            yield

    first, second = steps("acme"), steps("globex")
    next(first), next(second), next(first)
    first.close()
    second.close()

    assert whose() == (None, {})


def test_a_block_that_a_generator_left_open_ends_with_the_one_around_it(bench: Bench) -> None:
    def steps() -> Iterator[None]:
        with bench.meter.customer("globex"):
            yield

    with bench.meter.customer("acme"):
        abandoned = steps()
        next(abandoned)
    assert whose() == (None, {})
    with bench.meter.customer("initech"):
        abandoned.close()
        assert whose() == ("initech", {})


def test_an_async_generator_keeps_its_protocol(bench: Bench) -> None:
    seen: list[Any] = []

    @bench.meter.customer("acme")
    async def steps() -> Any:
        try:
            seen.append((yield whose()))
            await asyncio.sleep(0)
            try:
                yield whose()
            except KeyError:
                seen.append("thrown")
            yield whose()
        finally:
            await asyncio.sleep(0)
            seen.append(whose())

    async def main() -> None:
        assert inspect.isasyncgenfunction(steps)
        generator = steps()
        assert await anext(generator) == ("acme", {})
        assert whose() == (None, {})
        assert await generator.asend("hello") == ("acme", {})
        assert await generator.athrow(KeyError()) == ("acme", {})
        await generator.aclose()
        assert [each async for each in steps()] == [("acme", {})] * 3

    asyncio.run(main())
    assert seen == ["hello", "thrown", ("acme", {}), None, ("acme", {})]


def test_an_async_generator_is_closed_in_another_task(bench: Bench) -> None:
    """As a web server does when a client goes away; opentelemetry raises "was created in a different Context" here."""
    closed: list[Any] = []

    @bench.meter.customer("acme")
    async def steps() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(whose())

    async def main() -> None:
        generator = steps()
        await anext(generator)

        async def close() -> None:
            with bench.meter.customer("globex"):
                await generator.aclose()  # type: ignore[attr-defined]
                assert whose() == ("globex", {})

        await asyncio.create_task(close())

    asyncio.run(main())
    assert closed == [("acme", {})]


def test_a_block_in_an_async_generator_closed_elsewhere_does_not_touch_the_closer(bench: Bench) -> None:
    async def steps() -> AsyncIterator[int]:
        with bench.meter.customer("acme"):
            yield 1

    async def main() -> None:
        generator = steps()
        await asyncio.create_task(start(generator))
        with bench.meter.customer("globex"):
            await generator.aclose()  # type: ignore[attr-defined]
            assert whose() == ("globex", {})

    async def start(generator: AsyncIterator[int]) -> None:
        await anext(generator)

    asyncio.run(main())


def test_a_coroutine_that_is_dropped_does_not_touch_where_it_is_collected(bench: Bench) -> None:
    @bench.meter.customer("acme")
    async def wait() -> None:
        await asyncio.sleep(0)

    coroutine = wait()
    contextvars.copy_context().run(lambda: coroutine.send(None))
    with bench.meter.customer("globex"):
        coroutine.close()
        assert whose() == ("globex", {})


# ---- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_stays_with_its_opening_whoever_reads_it(bench: Bench) -> None:
    with bench.meter.customer("acme") as tally:
        stream = bench.openai().responses.create(**RESPONSE, stream=True)
        assert tally.calls == 0

    def read() -> None:
        with bench.meter.customer("globex"):
            for _ in stream:
                pass

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()

    assert (bench.event.customer, tally.usage, tally.calls) == ("acme", bench.billed[0].usage, 1)


def test_a_stream_inside_a_generator_belongs_to_the_generators_customer(bench: Bench) -> None:
    @bench.meter.customer("acme")
    def answer() -> Iterator[str]:
        with bench.anthropic().messages.stream(**MESSAGE) as stream:
            yield from stream.text_stream

    generator = answer()
    with bench.meter.customer("globex"):
        assert next(generator)
        generator.close()

    assert (bench.event.customer, bench.event.status) == ("acme", "partial")


# ---- threads and tasks --------------------------------------------------------------------------------------------


def test_asyncio_carries_the_customer_by_itself(bench: Bench) -> None:
    async def main() -> None:
        with bench.meter.customer("acme"):
            assert await asyncio.to_thread(whose) == ("acme", {})
            task = asyncio.create_task(child())
        assert await task == ("acme", {})
        assert whose() == (None, {})

    async def child() -> Any:
        await asyncio.sleep(0.01)
        with bench.meter.customer("globex"):
            assert whose() == ("globex", {})
        return whose()  # the block this task was started in is over, but not for this task

    asyncio.run(main())


@pytest.mark.parametrize("carried", [False, True])
def test_executors_carry_it_when_threads_are_instrumented(bench: Bench, carried: bool) -> None:
    async def main() -> Any:
        with bench.meter.customer("acme"):
            loop = asyncio.get_running_loop()
            return [
                await loop.run_in_executor(None, whose),
                await loop.run_in_executor(pool, whose),
                pool.submit(whose).result(),
                next(iter(pool.map(lambda _: whose(), [1]))),
            ]

    with ThreadPoolExecutor(1) as pool:
        if carried:
            with bench.meter.instrument("threads"):
                seen = asyncio.run(main())
        else:
            seen = asyncio.run(main())
        after = pool.submit(whose).result()

    assert seen == [("acme" if carried else None, {})] * 4
    assert after == (None, {})


def test_instrumented_threads_change_nothing_else(bench: Bench) -> None:
    with bench.meter.instrument("threads"), ThreadPoolExecutor(1) as pool, bench.meter.customer("acme"):
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        assert pool.submit(dict, fn=1, self=2).result() == {"fn": 1, "self": 2}
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        with pytest.raises(TypeError, match="argument"):
            pool.submit()  # type: ignore[call-arg]


def test_concurrent_tasks_are_kept_apart(bench: Bench) -> None:
    async def main() -> None:
        client = bench.openai(is_async=True)

        async def work(number: int) -> tuple[int, Tally]:
            with bench.meter.customer(f"customer-{number}") as tally:
                for _ in range(3):
                    await client.chat.completions.create(**CHAT)
                    await asyncio.sleep(0)
            return number, tally

        tallies.update(await asyncio.gather(*(work(number) for number in range(8))))

    tallies: dict[int, Tally] = {}
    bench.run(main)

    for number, tally in tallies.items():
        mine = [event.usage for event in bench.events if event.customer == f"customer-{number}"]
        assert (tally.calls, tally.usage) == (3, sum(mine, Usage()))


# ---- tallies ------------------------------------------------------------------------------------------------------


def test_a_tally_counts_what_its_block_and_the_blocks_inside_consumed(bench: Bench) -> None:
    client = bench.openai()
    with bench.meter.customer("acme") as outer:
        client.chat.completions.create(**CHAT)
        with bench.meter.customer("globex") as inner:
            client.responses.create(**RESPONSE)
    client.chat.completions.create(**CHAT)

    first, second, _ = (line.usage for line in bench.billed)
    assert (outer.usage, outer.calls) == (first + second, 2)
    assert (inner.usage, inner.calls) == (second, 1)
    assert repr(inner) == f"Tally(calls=1, usage={second!r})"


def test_a_tally_counts_nothing_for_what_was_refused(bench: Bench) -> None:
    with bench.meter.customer("acme") as tally, pytest.raises(Exception, match="status 400"):
        bench.openai(faults={"fail": "400"}).chat.completions.create(**CHAT)

    assert (tally.calls, tally.usage) == (0, Usage())


def test_a_tally_goes_on_counting_after_its_block(bench: Bench) -> None:
    with bench.meter.customer("acme") as tally:
        stream = bench.openai().chat.completions.create(**CHAT, stream=True)
        next(stream)
    assert tally.calls == 0
    del stream
    collect()

    assert tally.calls == 1
    assert tally.usage == bench.event.usage != Usage()


def test_a_tally_is_exact_under_threads_and_may_be_read_meanwhile() -> None:
    tally = Tally()
    stop = threading.Event()

    def add() -> None:
        for _ in range(2000):
            tally.add(Usage(input=1))

    def look() -> None:
        last = 0
        while not stop.is_set():
            calls = tally.calls
            assert calls >= last
            last = calls

    reader = threading.Thread(target=look)
    reader.start()
    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    reader.join()

    assert (tally.calls, tally.usage) == (8000, Usage(input=8000))


def test_a_tally_can_be_read_in_a_child_that_was_forked_while_a_thread_summed_it_up() -> None:
    tally = Tally()
    entered, go_on = threading.Event(), threading.Event()

    def read() -> Usage:
        entered.set()
        go_on.wait(30)
        return Usage(input=1)

    def child() -> None:
        tally.add(Usage(input=2))
        assert tally.usage == Usage(input=2)

    tally.add_later(read)
    reader = threading.Thread(target=lambda: tally.usage)
    reader.start()
    entered.wait(30)
    forked = wait(fork(child))
    go_on.set()
    reader.join()

    assert forked == 0
    assert tally.usage == Usage(input=1)
