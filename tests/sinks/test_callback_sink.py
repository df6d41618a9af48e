"""The sink that hands events to a function."""

from __future__ import annotations

import functools
import os
import threading
import time
from contextlib import contextmanager

import pytest

from token_meter.errors import Rejected, Retry
from token_meter.sinks import CallbackSink
from token_meter.testing.builders import make_event, make_events
from token_meter.testing.conformance import SinkConformance


class Store:
    """A destination of the user's: it may be down, and takes nothing from a customer it does not know."""

    def __init__(self):
        self.events = []
        self.down = False

    def take(self, events):
        if self.down:
            raise Retry("down for maintenance", after=3)
        if strangers := [event for event in events if event.customer == "stranger"]:
            raise Rejected(strangers, "unknown customer")
        self.events += events


class TestConformance(SinkConformance):
    refused = make_event(99, customer="stranger")

    @pytest.fixture
    def sink(self):
        self.store = Store()
        return CallbackSink(self.store.take)

    def received(self, sink):
        return self.store.events

    @contextmanager
    def broken(self, sink):
        self.store.down = True
        yield
        self.store.down = False


def test_the_function_gets_a_list_of_its_own_and_no_empty_one():
    calls = []
    sink = CallbackSink(calls.append, name="mine")
    batch = make_events(2)
    sink.send(batch)
    calls[0].clear()
    sink.send([])
    sink.close()

    assert (calls, batch, sink.name) == ([[]], make_events(2), "mine")


def test_what_the_function_raises_comes_through():
    def fail(events):
        raise Rejected(events[:1], "no")

    with pytest.raises(Rejected, match="no") as caught:
        CallbackSink(fail).send(make_events(2))

    assert caught.value.events == (make_event(1),)


async def sent_to_nowhere(events):
    """An async function; it must never be called."""


class AsyncCallable:
    async def __call__(self, events):
        """An object that is called like an async function."""


@pytest.mark.parametrize(
    "function", [sent_to_nowhere, functools.partial(sent_to_nowhere), AsyncCallable(), AsyncCallable().__call__]
)
def test_an_async_function_is_refused_at_once(function):
    with pytest.raises(TypeError, match="synchronous function"):
        CallbackSink(function)


def test_what_is_no_function_is_refused_at_once():
    with pytest.raises(TypeError, match="takes a list of events, not 'x'"):
        CallbackSink("x")


def test_a_coroutine_that_comes_back_is_an_error_not_a_silent_loss():
    sink = CallbackSink(lambda events: sent_to_nowhere(events))

    with pytest.raises(TypeError, match="returned a coroutine"):
        sink.send(make_events(1))


def test_the_function_is_never_called_twice_at_the_same_time():
    inside, most = [], []

    def slow(events):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    sink = CallbackSink(slow)
    threads = [threading.Thread(target=sink.send, args=(make_events(1),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 6


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_is_not_stopped_by_a_lock_the_parent_held():
    held, release = threading.Event(), threading.Event()

    def wait(events):
        held.set()
        release.wait(10)

    sink = CallbackSink(lambda events: wait(events) if events[0].id == "evt_1" else None)
    thread = threading.Thread(target=sink.send, args=(make_events(1),))
    thread.start()
    held.wait(10)
    child = os.fork()
    if not child:
        sink.send([make_event(2)])
        os._exit(7)
    deadline, status = time.monotonic() + 10, (0, 0)
    while status[0] == 0 and time.monotonic() < deadline:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if status[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    release.set()
    thread.join()

    assert os.waitstatus_to_exitcode(status[1]) == 7
