"""What every sink must do, as tests that any sink can run: this package's own and yours.

As a class, for pytest (`SinkConformance` explains the hooks):

    class TestMySink(SinkConformance):
        deduplicates = True

        @pytest.fixture
        def sink(self):
            sink = MySink(url)
            yield sink
            sink.close()

        def received(self, sink):
            return [MeterEvent.from_json(row) for row in fetch(url)]

As one call, for anything else:

    sink_conformance(lambda: MySink(url), lambda sink: fetch_ids(url), deduplicates=True)
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks.base import Sink, sink_name
from token_meter.testing.builders import full_event, make_event, make_events
from token_meter.usage import QUANTITY_MAX, Usage

THREADS: Final = 4
BATCHES_PER_THREAD: Final = 5
MANY: Final = 200

Received = Callable[[Any], Iterable[MeterEvent | str]]
"""What has arrived at the destination of a sink: whole events, or only their ids."""
Broken = Callable[[Any], AbstractContextManager[object]]
"""Makes the destination of a sink unusable while the context is open."""


class Bench(NamedTuple):
    """A fresh sink and what the author of the tests knows about it."""

    sink: Any
    received: Received | None = None
    deduplicates: bool = False
    broken: Broken | None = None
    refused: MeterEvent | None = None

    def expect(self, *sent: Sequence[MeterEvent]) -> None:
        """What arrived is what was sent: each event, whole, and once if the sink deduplicates or it was sent once."""
        if self.received is None:
            return
        arrived = list(self.received(self.sink))
        wanted = {event.id: event for batch in sent for event in batch}
        counts = Counter(_id(each) for each in arrived)
        _same("the ids that arrived", set(counts), set(wanted))
        times_sent = Counter(event.id for batch in sent for event in batch)
        most = dict.fromkeys(wanted, 1) if self.deduplicates else times_sent
        _same("the ids that arrived too often", {id for id in counts if counts[id] > most[id]}, set())
        for each in arrived:
            if isinstance(each, MeterEvent):
                _same(f"the event {each.id}", each.to_json(), wanted[each.id].to_json())


def is_a_sink(bench: Bench) -> None:
    """It has `send`, and a name that can be part of a file name."""
    if not isinstance(bench.sink, Sink):
        raise AssertionError(f"{bench.sink!r} has no method `send`")
    name = sink_name(bench.sink)
    if not name or "/" in name:
        raise AssertionError(f"the name of a sink is part of a file name; {name!r} cannot be")


def takes_an_empty_batch(bench: Bench) -> None:
    """Nothing to send is no error."""
    bench.sink.send([])
    bench.expect([])


def takes_one_event(bench: Bench) -> None:
    """The simplest batch, in any kind of sequence."""
    bench.sink.send((make_event(1),))
    bench.expect([make_event(1)])


def takes_many_events(bench: Bench) -> None:
    """Everything of a large batch arrives, and the caller's list stays as it was."""
    batch = make_events(MANY)
    bench.sink.send(batch)
    _same("the list that was passed to send", batch, make_events(MANY))
    bench.expect(batch)


def takes_a_batch_again(bench: Bench) -> None:
    """Delivery is at least once: the same batch again is no error, and no second charge if the sink deduplicates."""
    batch = make_events(3)
    bench.sink.send(batch)
    bench.sink.send(batch)
    bench.sink.send([*batch[1:], make_event(4)])
    bench.expect(batch, batch, [*batch[1:], make_event(4)])


def keeps_every_field(bench: Bench) -> None:
    """No field is lost or changed, filled or empty."""
    batch = [full_event(1), MeterEvent(id="evt_2", time=make_event(2).time, usage=Usage()), make_event(3)]
    bench.sink.send(batch)
    bench.expect(batch)


def keeps_unicode(bench: Bench) -> None:
    """Names are in any script, and may hold what a format uses for itself."""
    names = ["Ωmega", "株式会社", "🜚", 'quote " and \\ and \n and \u2028', "'; DROP TABLE events; --"]
    batch = [make_event(number, customer=name, dimensions={name: name}) for number, name in enumerate(names, start=1)]
    bench.sink.send(batch)
    bench.expect(batch)


def keeps_large_quantities(bench: Bench) -> None:
    """Quantities beyond what a float holds exactly stay exact."""
    batch = [make_event(1, usage=Usage(input=QUANTITY_MAX, output=2**53 + 1))]
    bench.sink.send(batch)
    bench.expect(batch)


def does_not_care_for_order(bench: Bench) -> None:
    """Batches and events arrive in any order."""
    batch = make_events(20)
    shuffled = random.Random(7).sample(batch, k=len(batch))
    for start in range(0, len(shuffled), 3):
        bench.sink.send(shuffled[start : start + 3])
    bench.expect(batch)


def can_be_used_by_threads(bench: Bench) -> None:
    """Several threads may send at the same time."""
    failures: list[BaseException] = []

    def send(thread: int) -> None:
        try:
            for batch in range(BATCHES_PER_THREAD):
                bench.sink.send([make_event(1 + thread * BATCHES_PER_THREAD + batch)])
        except Exception as failure:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(failure)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    bench.expect(make_events(THREADS * BATCHES_PER_THREAD))


def can_be_closed_twice(bench: Bench) -> None:
    """`close` is optional; if it is there, closing again is no error, and what was sent stays sent."""
    bench.sink.send([make_event(1)])
    bench.expect([make_event(1)])
    close = getattr(bench.sink, "close", lambda: None)
    close()
    close()


def leaves_nothing_half_when_broken(bench: Bench) -> None:
    """When the destination is down, `send` raises, nothing has arrived, and the same batch works afterwards."""
    if bench.broken is None:
        return
    batch = make_events(3)
    with bench.broken(bench.sink):
        try:
            bench.sink.send(batch)
        except Rejected as rejected:
            raise AssertionError(f"events were rejected because the destination was down: {rejected}") from rejected
        except Exception as problem:  # noqa: BLE001 - everything but Rejected counts as a retry
            _valid_retry(problem)
        else:
            raise AssertionError("send returned although the destination was down")
    bench.expect([])
    bench.sink.send(batch)
    bench.expect(batch)


def names_what_it_refuses(bench: Bench) -> None:
    """Of a batch with an unacceptable event exactly that one is rejected; the others can be sent again without it."""
    if bench.refused is None:
        return
    good = make_events(2)
    try:
        bench.sink.send([good[0], bench.refused, good[1]])
    except Rejected as rejected:
        _same("the rejected ids", [event.id for event in rejected.events], [bench.refused.id])
        if not rejected.reason:
            raise AssertionError("the reason of a rejection is empty") from rejected
    else:
        raise AssertionError("send returned although an event was unacceptable")
    bench.sink.send(good)
    if bench.deduplicates:
        bench.expect(good)
    else:
        bench.expect(good, good)


CHECKS: Final = (
    is_a_sink,
    takes_an_empty_batch,
    takes_one_event,
    takes_many_events,
    takes_a_batch_again,
    keeps_every_field,
    keeps_unicode,
    keeps_large_quantities,
    does_not_care_for_order,
    can_be_used_by_threads,
    can_be_closed_twice,
    leaves_nothing_half_when_broken,
    names_what_it_refuses,
)


def sink_conformance(
    make_sink: Callable[[], Any],
    received: Received | None = None,
    *,
    deduplicates: bool = False,
    broken: Broken | None = None,
    refused: MeterEvent | None = None,
) -> None:
    """Run every check, each on a sink of its own; raises AssertionError saying what is wrong.

    `make_sink()` makes a sink with an empty destination, `received(sink)` reads that back (events or ids; without it
    only errors are noticed). `deduplicates` says that an event sent twice arrives once, `broken(sink)` is a context
    manager in which the destination is down, `refused` an event that it will never take.
    """
    for check in CHECKS:
        sink = make_sink()
        try:
            check(Bench(sink, received, deduplicates, broken, refused))
        except AssertionError as failure:
            raise AssertionError(f"{check.__name__}: {failure}") from failure
        finally:
            getattr(sink, "close", lambda: None)()


class SinkConformance:
    """The checks as test methods; subclass it, provide the fixture `sink`, and override what you know more about.

    The fixture makes a sink with an empty destination for each test. `received` reads the destination back.
    """

    deduplicates: bool = False
    """Whether an event that is sent twice arrives once."""
    refused: MeterEvent | None = None
    """An event that the destination will never take."""

    def received(self, sink: Any) -> Iterable[MeterEvent | str] | None:
        """What has arrived: events, or only their ids. None, the default: unknown, so only errors are noticed."""
        return None

    broken: Broken | None = None
    """Override with a method: a context manager in which the destination of the sink is down."""

    def _bench(self, sink: Any) -> Bench:
        knows = type(self).received is not SinkConformance.received
        received: Received | None = (lambda sink: self.received(sink) or ()) if knows else None
        return Bench(sink, received, self.deduplicates, self.broken, self.refused)

    def test_is_a_sink(self, sink: Any) -> None:
        is_a_sink(self._bench(sink))

    def test_takes_an_empty_batch(self, sink: Any) -> None:
        takes_an_empty_batch(self._bench(sink))

    def test_takes_one_event(self, sink: Any) -> None:
        takes_one_event(self._bench(sink))

    def test_takes_many_events(self, sink: Any) -> None:
        takes_many_events(self._bench(sink))

    def test_takes_a_batch_again(self, sink: Any) -> None:
        takes_a_batch_again(self._bench(sink))

    def test_keeps_every_field(self, sink: Any) -> None:
        keeps_every_field(self._bench(sink))

    def test_keeps_unicode(self, sink: Any) -> None:
        keeps_unicode(self._bench(sink))

    def test_keeps_large_quantities(self, sink: Any) -> None:
        keeps_large_quantities(self._bench(sink))

    def test_does_not_care_for_order(self, sink: Any) -> None:
        does_not_care_for_order(self._bench(sink))

    def test_can_be_used_by_threads(self, sink: Any) -> None:
        can_be_used_by_threads(self._bench(sink))

    def test_can_be_closed_twice(self, sink: Any) -> None:
        can_be_closed_twice(self._bench(sink))

    def test_leaves_nothing_half_when_broken(self, sink: Any) -> None:
        leaves_nothing_half_when_broken(self._bench(sink))

    def test_names_what_it_refuses(self, sink: Any) -> None:
        names_what_it_refuses(self._bench(sink))


def _id(each: MeterEvent | str) -> str:
    return each if isinstance(each, str) else each.id


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: {found!r}, expected {wanted!r}")


def _valid_retry(problem: Exception) -> None:
    """A Retry that names a waiting time names a sensible one."""
    if isinstance(problem, Retry) and problem.after is not None and not problem.after >= 0:
        raise AssertionError(f"Retry(after={problem.after!r}) is no number of seconds")
