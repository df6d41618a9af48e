"""Refusals event by event: each with its reason, in part or as a whole, for good or until something is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.journal_kit import ListSink, call, event, opened
from token_meter.attempts import Attempts
from token_meter.awaiting import ASKED_AT_ONCE_MAX
from token_meter.backlog import status
from token_meter.deliver import (
    deliver_once,
    discard,
    quarantine,
    quarantined,
    release,
    request_hurry,
    waiting_events,
)
from token_meter.errors import Refusal, Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder
from token_meter.journal import Journal
from token_meter.reporter import Reporter
from token_meter.testing.builders import make_event
from token_meter.usage import Usage


class Register(ListSink):
    """Takes events of customers it knows, refuses the others one by one, and has taken the rest by then."""

    def __init__(self, *known: str, name: str = "register") -> None:
        super().__init__(name)
        self.known = set(known)
        self.asked: list[str] = []

    def send(self, events: Sequence[MeterEvent]) -> None:
        unknown = [each for each in events if each.customer not in self.known]
        super().send([each for each in events if each.customer in self.known])
        if unknown:
            refusals = [Refusal(each, f"who is {each.customer}?", str(each.customer)) for each in unknown]
            raise Rejected.each(refusals, rest_taken=True)

    def ready(self, awaits: str) -> bool:
        self.asked.append(awaits)
        return awaits in self.known


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "usage.db.journal"


def write(folder: Path, *ids: str, customer: str = "acme", **more: object) -> None:
    with Journal(folder) as journal:
        for id in ids:
            journal.opened(id, opened(id))
            journal.ended(id, event(id, customer=customer, **more))


def states(folder: Path, sink: str) -> dict[str, tuple[str, str | None]]:
    return {each.id: (each.state, each.reason) for each in quarantined(folder, sink)}


# ---- each with its reason ----


def test_each_refused_event_keeps_its_own_reason_and_the_rest_is_sent_once(folder: Path) -> None:
    write(folder, "a1", "a2")
    write(folder, "b1", customer="bob")
    write(folder, "c1", customer="carol")
    sink = Register("acme")

    done = deliver_once(folder, sink, replay=True)

    assert (done.sent, done.quarantined, done.complete) == (2, 2, True)
    assert sink.ids == ["a1", "a2"]
    assert states(folder, "register") == {
        "b1": ("waiting", "who is bob?"),
        "c1": ("waiting", "who is carol?"),
    }


def test_a_refusal_that_names_no_event_of_the_batch_is_an_error_like_others(folder: Path) -> None:
    class Confused(ListSink):
        def send(self, events: Sequence[MeterEvent]) -> None:
            raise Rejected.each([Refusal(make_event(99), "not yours")], rest_taken=True)

    write(folder, "a1")

    done = deliver_once(folder, Confused(), replay=True)

    assert (done.sent, done.quarantined, done.complete) == (0, 0, False)


# ---- in part ----


class Halves(ListSink):
    """Refuses output tokens while told to; what it took stands in `taken` as (id, token type)."""

    def __init__(self) -> None:
        super().__init__("halves")
        self.refusing = True
        self.taken: list[tuple[str, str]] = []

    def send(self, events: Sequence[MeterEvent]) -> None:
        refusals = []
        for each in events:
            refused = Usage({name: each.usage[name] for name in each.usage if name == "output" and self.refusing})
            self.taken += [(each.id, name) for name in each.usage if name not in refused]
            if refused:
                refusals.append(Refusal(replace(each, usage=refused), "no output today"))
        if refusals:
            raise Rejected.each(refusals, rest_taken=True)


def test_of_an_event_that_was_refused_in_part_only_that_part_is_sent_when_it_is_released(folder: Path) -> None:
    write(folder, "e1", usage={"input": 3, "output": 2})
    sink = Halves()
    deliver_once(folder, sink, replay=True)

    still = [release(folder, "halves", ids="all"), deliver_once(folder, sink)]
    sink.refusing = False
    release(folder, "halves", ids="all")
    deliver_once(folder, sink)

    assert still[1].quarantined == 1
    assert sink.taken == [("e1", "input"), ("e1", "output")]
    assert states(folder, "halves") == {"e1": ("delivered", "no output today")}


def test_a_released_event_that_is_taken_in_part_leaves_the_other_part_waiting(folder: Path) -> None:
    write(folder, "e1", usage={"input": 3, "output": 2})
    sink = Halves()

    class Nothing(ListSink):
        def send(self, events: Sequence[MeterEvent]) -> None:
            raise Rejected(events, "nothing today")

    deliver_once(folder, Nothing("halves"), replay=True)
    release(folder, "halves", ids="all")
    deliver_once(folder, sink)

    entries = [(each.state, (each.event or {})["usage"]) for each in quarantined(folder, "halves")]
    assert entries == [("delivered", {"input": 3, "output": 2}), ("waiting", {"output": 2})]
    assert sink.taken == [("e1", "input")]


def test_two_parts_of_one_event_are_told_apart_when_both_are_released(folder: Path) -> None:
    write(folder, "e1", usage={"input": 3, "output": 2, "reasoning": 1})
    sink = Halves()
    deliver_once(folder, sink, replay=True)
    whole = MeterEvent.from_json(json.loads(event("e1", usage={"reasoning": 1})))
    quarantine(folder, "halves", [Refusal(whole, "no reasoning either")], report="r1")

    release(folder, "halves", ids="all")
    deliver_once(folder, sink)

    entries = sorted((each.state, str((each.event or {})["usage"])) for each in quarantined(folder, "halves"))
    assert entries == [("delivered", "{'reasoning': 1}"), ("waiting", "{'output': 2}")]


# ---- until something is there ----


def test_what_waits_for_a_customer_goes_out_by_itself_when_that_is_known(folder: Path) -> None:
    write(folder, "b1", "b2", customer="bob")
    write(folder, "c1", customer="carol")
    sink = Register("acme")
    deliver_once(folder, sink, replay=True)

    sink.known.add("bob")
    done = deliver_once(folder, sink)

    assert (done.sent, sink.ids) == (2, ["b1", "b2"])
    assert {id: state for id, (state, _) in states(folder, "register").items()} == {
        "b1": "delivered", "b2": "delivered", "c1": "waiting",
    }  # fmt: skip


def test_what_is_awaited_is_known_to_the_next_process_too(folder: Path) -> None:
    write(folder, "b1", customer="bob")
    deliver_once(folder, Register(), replay=True)
    (waiting,) = status(folder).deliveries

    later = Register("bob")
    deliver_once(folder, later)

    assert later.ids == ["b1"]
    (state,) = status(folder).deliveries
    assert (waiting.awaiting, state.awaiting) == (1, 0)


def test_an_event_that_was_discarded_does_not_come_back_by_itself(folder: Path) -> None:
    write(folder, "b1", customer="bob")
    sink = Register()
    deliver_once(folder, sink, replay=True)
    discard(folder, "register", ids=["b1"], reason="a test of ours")

    sink.known.add("bob")
    deliver_once(folder, sink)

    assert sink.ids == []
    assert states(folder, "register")["b1"][0] == "discarded"


def test_a_running_meter_sends_it_without_being_told(folder: Path) -> None:
    sink = Register()
    with Journal(folder) as journal, Reporter(journal, [sink], interval_seconds=0.01) as reporter:
        call(journal, "e1")
        assert reporter.flush(10)
        sink.known.add("acme")

        until = time.monotonic() + 20
        while not sink.ids and time.monotonic() < until:
            reporter._deliveries[0]._awaited_at = float("-inf")
            time.sleep(0.01)

    assert sink.ids == ["e1"]


def test_a_sink_is_not_asked_about_everything_in_every_turn(folder: Path) -> None:
    count = ASKED_AT_ONCE_MAX + 50
    for number in range(count):
        write(folder, f"e{number}", customer=f"customer {number}")
    sink = Register()
    deliver_once(folder, sink, replay=True)

    sink.asked.clear()
    deliver_once(folder, sink)
    once = len(sink.asked)
    sink.known.update(f"customer {number}" for number in range(count))
    for _ in range(3):
        deliver_once(folder, sink)

    assert once == ASKED_AT_ONCE_MAX
    assert sorted(sink.ids) == sorted(f"e{number}" for number in range(count))


def test_a_sink_that_cannot_tell_now_is_asked_again(folder: Path) -> None:
    class Unsure(Register):
        broken = True

        def ready(self, awaits: str) -> bool:
            if self.broken:
                raise OSError("no ledger at the moment")
            return super().ready(awaits)

    write(folder, "b1", customer="bob")
    sink = Unsure()
    deliver_once(folder, sink, replay=True)
    sink.known.add("bob")

    meanwhile = deliver_once(folder, sink)
    sink.broken = False
    deliver_once(folder, sink)

    assert (meanwhile.sent, sink.ids) == (0, ["b1"])


# ---- reported later ----


def test_what_a_report_said_is_entered_once_however_often_it_comes(folder: Path) -> None:
    write(folder, "e1", usage={"input": 3, "output": 2})
    sink = ListSink()
    deliver_once(folder, sink, replay=True)
    refusal = Refusal(MeterEvent.from_json(json.loads(event("e1", usage={"output": 2}))), "refused after all")

    entered = [quarantine(folder, "list", [refusal], report="r1") for _ in range(2)]
    release(folder, "list", ids="all")
    deliver_once(folder, sink)
    entered.append(quarantine(folder, "list", [refusal], report="r1"))
    entered.append(quarantine(folder, "list", [refusal], report="r2"))

    assert entered == [1, 0, 0, 1]
    assert sink.ids == ["e1", "e1"]
    assert [dict(each.usage) for each in sink.events] == [{"input": 3, "output": 2}, {"output": 2}]


def test_a_report_about_an_unknown_sink_is_refused(folder: Path) -> None:
    write(folder, "e1")
    deliver_once(folder, ListSink(), replay=True)

    with pytest.raises(ValueError, match="does not deliver to a sink 'lst'"):
        quarantine(folder, "lst", [])


# ---- destinations that forget ----


class Forgetting(ListSink):
    """A destination that knows ids for a day, on a clock of the test, and counts them again after that."""

    remembers_seconds = 86_400.0

    def __init__(self) -> None:
        super().__init__("forgetting")
        self.clock = 1_000_000.0
        self.fail_after: Callable[[MeterEvent], bool] = lambda each: False
        self.seen: dict[str, float] = {}
        self.asked: list[list[str]] = []
        self.tells = True

    def now(self) -> float:
        return self.clock

    def send(self, events: Sequence[MeterEvent]) -> None:
        for each in events:
            if self.clock - self.seen.get(each.id, float("-inf")) > self.remembers_seconds:
                self.events.append(each)
                self.seen[each.id] = self.clock
            if self.fail_after(each):
                raise Retry("the line went dead after it was taken")

    def uncounted(
        self, events: Sequence[MeterEvent], *, unsent: Callable[[Collection[str]], set[str]]
    ) -> list[MeterEvent]:
        self.asked.append([each.id for each in events])
        self.waiting = unsent(["e1", "e2", "e3", "e4", "e9"])
        if not self.tells:
            raise Rejected(events, "cannot tell whether it is there")
        return [each for each in events if each.id not in self.seen]


def test_what_may_have_been_forgotten_is_asked_for_before_it_is_sent_again(folder: Path) -> None:
    write(folder, "e1", "e2", "e3")
    sink = Forgetting()
    sink.fail_after = lambda each: each.id == "e2"
    deliver_once(folder, sink, replay=True)

    sink.clock += 90_000
    sink.fail_after = lambda each: False
    again = Forgetting()
    again.__dict__.update(sink.__dict__)
    write(folder, "e4")
    deliver_once(folder, again)

    assert again.ids == ["e1", "e2", "e3", "e4"]
    assert again.asked == [["e1", "e2", "e3"]]
    assert again.waiting == {"e4"}


def test_within_the_time_it_remembers_nothing_is_asked(folder: Path) -> None:
    write(folder, "e1", "e2")
    sink = Forgetting()
    sink.fail_after = lambda each: each.id == "e1"
    deliver_once(folder, sink, replay=True)

    sink.clock += 80_000
    sink.fail_after = lambda each: False
    deliver_once(folder, sink)

    assert (sink.ids, sink.asked) == (["e1", "e2"], [])


def test_what_nobody_can_tell_waits_for_a_human(folder: Path) -> None:
    write(folder, "e1", "e2")
    sink = Forgetting()
    sink.fail_after = lambda each: each.id == "e2"
    deliver_once(folder, sink, replay=True)

    sink.clock += 90_000
    sink.fail_after = lambda each: False
    sink.tells = False
    done = deliver_once(folder, sink)

    assert (done.quarantined, done.complete, sink.ids) == (2, True, ["e1", "e2"])
    assert states(folder, "forgetting")["e1"] == ("waiting", "cannot tell whether it is there")


def test_after_a_second_failure_it_is_asked_about_the_whole_batch_again(folder: Path) -> None:
    write(folder, "e1", "e2")
    sink = Forgetting()
    sink.fail_after = lambda each: each.id == "e1"
    deliver_once(folder, sink, replay=True)
    sink.clock += 90_000

    sink.fail_after = lambda each: each.id == "e2"
    deliver_once(folder, sink)
    sink.clock += 3_600
    sink.fail_after = lambda each: False
    deliver_once(folder, sink)

    assert sink.ids == ["e1", "e2"]
    assert sink.asked == [["e1", "e2"], ["e1", "e2"]]


def test_a_damaged_file_of_attempts_stops_delivery_rather_than_billing_twice(folder: Path) -> None:
    write(folder, "e1")
    attempts = folder / "attempts" / "forgetting.json"
    attempts.parent.mkdir()
    attempts.write_text("{}")
    sink = Forgetting()

    done = deliver_once(folder, sink, replay=True)

    assert (done.complete, sink.ids) == (False, [])
    assert "it says what may have been sent already" in (done.error or "")


def test_only_what_is_under_way_is_remembered(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "attempts" / "x.json", remembers_seconds=86_400, now=lambda: 5.0)

    attempts.begin([make_event(1), make_event(2)], durable=False)
    attempts.done(["evt_1", "evt_2"])
    attempts.begin([make_event(3)], durable=True)

    assert json.loads((tmp_path / "attempts" / "x.json").read_text())["first"] == {"evt_3": 5.0}


# ---- hurry, and looking without touching ----


def test_a_process_that_was_asked_to_wait_tries_again_when_somebody_says_so(folder: Path) -> None:
    class Busy(ListSink):
        busy = True

        def send(self, events: Sequence[MeterEvent]) -> None:
            if self.busy:
                raise Retry("come back in an hour", after=3_600)
            super().send(events)

    sink = Busy()
    with Journal(folder) as journal, Reporter(journal, [sink], interval_seconds=0.01) as reporter:
        call(journal, "e1")
        assert not reporter.flush(0.3)
        sink.busy = False
        assert not reporter.flush(0.3)

        request_hurry(JournalFolder(folder), "list")
        assert reporter.flush(20)

    assert sink.ids == ["e1"]


def test_what_waits_can_be_looked_at_without_sending_it(folder: Path) -> None:
    write(folder, "e1", "e2", "e3")
    sink = ListSink()
    deliver_once(folder, sink, replay=True)
    write(folder, "e4", "e5")

    waiting = [[each.id for each in batch] for batch in waiting_events(folder, "list")]
    new = [[each.id for each in batch] for batch in waiting_events(folder, "another", batch_events=2)]
    deliver_once(folder, sink)

    assert waiting == [["e4", "e5"]]
    assert [id for batch in new for id in batch][-2:] == ["e4", "e5"]
    assert sink.ids == ["e1", "e2", "e3", "e4", "e5"]
