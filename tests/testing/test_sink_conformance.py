"""The conformance suite itself: every way in which a sink can be wrong is noticed, and a right one passes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks import MemorySink
from token_meter.testing.builders import make_event
from token_meter.testing.conformance import CHECKS, SinkConformance, sink_conformance
from token_meter.usage import QUANTITY_MAX, Usage

STRANGER = make_event(99, customer="stranger")


class ListSink:
    """Right in everything, at least once."""

    def __init__(self):
        self.arrived = []
        self.down = False
        self.lock = threading.Lock()

    def send(self, events):
        if self.down:
            raise Retry("down", after=1)
        if strangers := [event for event in events if event.customer == "stranger"]:
            raise Rejected(strangers, "unknown customer")
        with self.lock:
            self.arrived += events

    def close(self):
        """Closing again is fine."""


@contextmanager
def broken(sink):
    sink.down = True
    yield
    sink.down = False


def conform(make_sink, **options):
    settings = {"broken": broken, "refused": STRANGER, **options}
    sink_conformance(make_sink, lambda sink: sink.arrived, **settings)


class NoSend:
    """No sink at all."""


class BadName(ListSink):
    name = "a/b"


class RefusesEmpty(ListSink):
    def send(self, events):
        super().send(events[:1] and events)
        events[0]


class LosesOne(ListSink):
    def send(self, events):
        super().send(events[:100])


class EmptiesTheList(ListSink):
    def send(self, events):
        super().send(events)
        if isinstance(events, list):
            events.clear()


class SendsTwice(ListSink):
    def send(self, events):
        super().send([*events, *events[:1]])


class LosesAField(ListSink):
    def send(self, events):
        super().send([replace(event, corrects=None) for event in events])


class AsciiOnly(ListSink):
    def send(self, events):
        super().send([replace(event, customer=ascii(event.customer)) for event in events])


class Floats(ListSink):
    def send(self, events):
        super().send(
            [
                replace(event, usage=Usage({n: min(int(float(q)), QUANTITY_MAX) for n, q in event.usage.items()}))
                for event in events
            ]
        )


class WantsOrder(ListSink):
    def send(self, events):
        last = max((int(event.id[4:]) for event in self.arrived), default=0)
        super().send([event for event in events if int(event.id[4:]) >= last - 20])


class OneThread(ListSink):
    def __init__(self):
        super().__init__()
        self.owner = threading.get_ident()

    def send(self, events):
        if threading.get_ident() != self.owner:
            raise RuntimeError("this belongs to another thread")
        super().send(events)


class ClosesOnce(ListSink):
    closed = False

    def close(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class HalfWhenBroken(ListSink):
    def send(self, events):
        if self.down:
            self.arrived += events[:1]
        super().send(events)


class SilentWhenBroken(ListSink):
    def send(self, events):
        if not self.down:
            super().send(events)


class RejectsWhenBroken(ListSink):
    def send(self, events):
        if self.down:
            raise Rejected(events, "the database is down")
        super().send(events)


class NegativeWait(ListSink):
    def send(self, events):
        if self.down:
            raise Retry("down", after=-1)
        super().send(events)


class RejectsAll(ListSink):
    def send(self, events):
        try:
            super().send(events)
        except Rejected as rejected:
            raise Rejected(events, rejected.reason) from None


class RejectsSilently(ListSink):
    def send(self, events):
        super().send([event for event in events if event.customer != "stranger"])


class NoReason(ListSink):
    def send(self, events):
        try:
            super().send(events)
        except Rejected as rejected:
            raise Rejected(rejected.events, "") from None


def test_right_sinks_pass():
    conform(ListSink)
    sink_conformance(MemorySink, lambda sink: sink.events, deduplicates=True)
    sink_conformance(MemorySink, lambda sink: [event.id for event in sink.events], deduplicates=True)
    sink_conformance(MemorySink)


@pytest.mark.parametrize(
    ("sink", "check"),
    [
        (NoSend, "is_a_sink"),
        (BadName, "is_a_sink"),
        (LosesOne, "takes_many_events"),
        (EmptiesTheList, "takes_many_events: the list that was passed to send"),
        (SendsTwice, "takes_one_event"),
        (LosesAField, "keeps_every_field"),
        (AsciiOnly, "takes_one_event"),
        (Floats, "keeps_large_quantities"),
        (HalfWhenBroken, "leaves_nothing_half_when_broken"),
        (SilentWhenBroken, "leaves_nothing_half_when_broken"),
        (RejectsWhenBroken, "leaves_nothing_half_when_broken"),
        (NegativeWait, "leaves_nothing_half_when_broken"),
        (RejectsAll, "names_what_it_refuses"),
        (RejectsSilently, "names_what_it_refuses"),
        (NoReason, "names_what_it_refuses"),
    ],
)
def test_a_wrong_sink_is_noticed(sink, check):
    with pytest.raises(AssertionError, match=f"^{check}"):
        conform(sink)


@pytest.mark.parametrize(
    ("sink", "error"), [(RefusesEmpty, IndexError), (OneThread, RuntimeError), (ClosesOnce, RuntimeError)]
)
def test_what_a_sink_raises_comes_through(sink, error):
    with pytest.raises(error):
        conform(sink)


def test_a_sink_that_only_claims_to_deduplicate_is_noticed():
    with pytest.raises(AssertionError, match="takes_a_batch_again: the ids that arrived too often"):
        conform(ListSink, deduplicates=True)


def test_a_sink_that_drops_late_events_is_noticed():
    class Forgetful(ListSink):
        def send(self, events):
            newest = max((int(event.id[4:]) for event in self.arrived), default=0)
            super().send([event for event in events if int(event.id[4:]) > newest] if len(events) == 3 else events)

    with pytest.raises(AssertionError, match="does_not_care_for_order: the ids that arrived"):
        conform(Forgetful, broken=None, refused=None)


def test_the_class_has_a_test_for_every_check():
    tests = {name for name in vars(SinkConformance) if name.startswith("test_")}

    assert tests == {f"test_{check.__name__}" for check in CHECKS}


class TestAsAClass(SinkConformance):
    """The class with every hook overridden."""

    refused = STRANGER

    @pytest.fixture
    def sink(self):
        return ListSink()

    def received(self, sink):
        return sink.arrived

    def broken(self, sink):
        return broken(sink)


def test_the_class_notices_what_the_function_notices():
    tests = TestAsAClass()

    with pytest.raises(AssertionError, match="the destination was down"):
        tests.test_leaves_nothing_half_when_broken(SilentWhenBroken())
    with pytest.raises(AssertionError, match="the rejected ids"):
        tests.test_names_what_it_refuses(RejectsAll())
    with pytest.raises(AssertionError, match="the event evt_1"):
        tests.test_keeps_every_field(LosesAField())


def test_a_batch_that_never_arrives_is_noticed():
    class Nothing(ListSink):
        def send(self, events):
            """Forgets everything."""

    with pytest.raises(AssertionError, match="takes_one_event: the ids that arrived"):
        conform(Nothing)


def test_ids_alone_are_enough_to_notice_a_loss():
    with pytest.raises(AssertionError, match="takes_many_events"):
        sink_conformance(LosesOne, lambda sink: [event.id for event in sink.arrived])


def test_events_compare_by_their_json_form():
    assert MeterEvent.from_json(make_event(1).to_json()).to_json() == make_event(1).to_json()
