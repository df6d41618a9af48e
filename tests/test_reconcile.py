"""A backend's totals beside the ledger's: every difference has a reason, or is shown as having none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.journals import write_journal
from tests.sinks.kit import Books
from token_meter import reconcile as module
from token_meter.deliver import deliver_once, discard, release
from token_meter.event import MeterEvent
from token_meter.reconcile import Line, Reconciliation, aligned, reconcile
from token_meter.sinks import LagoSink, OpenMeterSink
from token_meter.testing import make_event
from token_meter.testing.backends import FakeLago, FakeOpenMeter
from token_meter.testing.builders import EPOCH
from token_meter.usage import Usage

HOUR = timedelta(hours=1)
Account = Callable[..., Reconciliation]


class Case:
    """A ledger, a journal, a backend, and a sink between them."""

    def __init__(self, folder: Path, backend: FakeLago | FakeOpenMeter, sink: LagoSink | OpenMeterSink) -> None:
        self.books = Books(folder)
        self.journal = folder / "usage.db.journal"
        self.backend = backend
        self.sink = sink
        sink.bind(self.books.accounts)

    def meter(self, *events: MeterEvent) -> None:
        """These were metered: they are in the ledger, and in the journal for the sink."""
        self.books.hold(*events)
        write_journal(self.journal, events, sinks=[self.sink.name])

    def deliver(self) -> None:
        deliver_once(self.journal, self.sink, replay=True)

    def account(self, *, since: datetime = EPOCH, until: datetime = EPOCH + HOUR, **more: Any) -> Reconciliation:
        return reconcile(self.books.ledger, self.sink, self.journal, since=since, until=until, **more)

    def close(self) -> None:
        self.sink.close()
        self.backend.close()
        self.books.close()


@pytest.fixture(params=["lago", "openmeter"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """With Lago, which lists events, and OpenMeter, which sums them."""
    if request.param == "lago":
        lago = FakeLago(key="key", strict=True, subscriptions={"acme": "acme", "globex": "globex"}).start()
        made = Case(tmp_path, lago, LagoSink("key", base_url=lago.url, customers="same"))
    else:
        openmeter = FakeOpenMeter(key="key").start()
        openmeter.add_meter("tokens_total", "prompt", "$.tokens")
        made = Case(tmp_path, openmeter, OpenMeterSink("key", base_url=openmeter.url))
    yield made
    made.close()


@pytest.fixture
def lago(tmp_path: Path) -> Iterator[Case]:
    """A Lago that knows one subscription, for what is refused."""
    backend = FakeLago(key="key", strict=True, subscriptions={"acme": "acme"}).start()
    made = Case(tmp_path, backend, LagoSink("key", base_url=backend.url, customers="same"))
    yield made
    made.close()


def event(number: int, **fields: Any) -> MeterEvent:
    """An event of so many input tokens as its number says."""
    return make_event(number, **{"usage": Usage(input=number), **fields})


def lines(found: Reconciliation) -> list[tuple[Any, ...]]:
    """Customer, ledger, there, in flight, quarantined, given up, unexplained, estimated."""
    return [
        (each.external, each.ledger, each.there, each.in_flight, each.quarantined, each.given_up, each.unexplained,
         each.estimated)
        for each in found.lines
    ]  # fmt: skip


def test_what_was_delivered_agrees(case: Case) -> None:
    case.meter(event(10), event(20, customer="globex"), event(30))
    case.deliver()

    found = case.account()

    assert found.agrees
    assert lines(found) == [("acme", 40, 40, 0, 0, 0, 0, 0), ("globex", 20, 20, 0, 0, 0, 0, 0)]
    assert (found.sink, found.events, found.left_out, found.refused) == (case.sink.name, 3, 0, {})
    assert [each.customers for each in found.lines] == [("acme",), ("globex",)]


def test_nothing_agrees_with_nothing(case: Case) -> None:
    found = case.account()

    assert (found.lines, found.agrees, found.events) == ((), True, 0)


def test_what_waits_in_the_journal_is_in_flight(case: Case) -> None:
    case.meter(event(10))
    case.deliver()
    case.backend.down = True
    case.meter(event(20), event(30))
    case.deliver()
    case.backend.down = False

    found = case.account()

    assert (found.agrees, lines(found)) == (True, [("acme", 60, 10, 50, 0, 0, 0, 0)])


def test_what_was_refused_is_in_quarantine_and_what_was_discarded_is_given_up(lago: Case) -> None:
    lago.meter(event(10), *(event(number, customer="globex") for number in (20, 30, 40)))
    lago.deliver()
    discard(lago.journal, "lago", ids=["evt_30"], reason="a test customer")

    before = lago.account()
    release(lago.journal, "lago", ids=["evt_20"])
    released = lago.account()
    lago.backend.subscriptions = None  # type: ignore[union-attr]
    lago.deliver()
    after = lago.account()

    assert lines(before) == [("acme", 10, 10, 0, 0, 0, 0, 0), ("globex", 90, 0, 0, 60, 30, 0, 0)]
    assert lines(released) == lines(before)  # on its way, and not there yet
    assert lines(after)[1] == ("globex", 90, 20, 0, 40, 30, 0, 0)
    assert before.agrees and released.agrees and after.agrees


def test_of_an_event_that_was_refused_in_part_that_part_is_in_quarantine(tmp_path: Path) -> None:
    backend = FakeLago(key="key", strict=True, metrics={"llm_input_tokens": "value"}).start()
    case = Case(tmp_path, backend, LagoSink("key", base_url=backend.url, customers="same"))
    case.meter(make_event(1, usage=Usage(input=7, output=5)))
    case.deliver()

    found = case.account()
    case.close()

    assert [(each.meter, each.ledger, each.there, each.quarantined, each.unexplained) for each in found.lines] == [
        ("llm_input_tokens", 7, 7, 0, 0),
        ("llm_output_tokens", 5, 0, 5, 0),
    ]


def test_estimates_are_told_and_explain_nothing(case: Case) -> None:
    """What the provider counted before a stream broke is its own count."""
    case.meter(event(10), event(20, status="estimated"), event(30, status="partial"))
    case.deliver()

    assert lines(case.account()) == [("acme", 60, 60, 0, 0, 0, 0, 20)]


def test_what_is_not_for_the_sink_is_counted_as_left_out(tmp_path: Path) -> None:
    backend = FakeLago(key="key").start()
    sink = LagoSink("key", base_url=backend.url, customers="same", where=lambda each: each.model != "free")
    case = Case(tmp_path, backend, sink)
    case.meter(event(10), event(20, model="free"), event(30, mode="test"), event(40, usage=Usage(), status="unmetered"))
    case.deliver()

    found = case.account()
    case.close()

    assert (found.agrees, found.events, found.left_out, found.refused) == (True, 4, 3, {})
    assert lines(found) == [("acme", 10, 10, 0, 0, 0, 0, 0)]


def test_what_the_sink_refuses_by_itself_is_on_neither_side(case: Case) -> None:
    case.meter(event(10), event(20, customer=None), event(30, customer=None))
    case.deliver()

    found = case.account()

    assert (found.agrees, found.left_out, list(found.refused.values())) == (True, 0, [2])
    assert next(iter(found.refused)).startswith("it has no customer.")
    assert lines(found) == [("acme", 10, 10, 0, 0, 0, 0, 0)]


def test_what_the_sink_never_got_is_unexplained(case: Case) -> None:
    """As from before it was added."""
    case.books.hold(event(10))
    case.meter(event(20))
    case.deliver()

    found = case.account()

    assert (found.agrees, lines(found)) == (False, [("acme", 30, 20, 0, 0, 0, 10, 0)])


def test_what_others_entered_is_unexplained_too(case: Case) -> None:
    case.meter(event(10))
    case.deliver()
    case.sink.send([event(20)])

    found = case.account()

    assert (found.agrees, lines(found)) == (False, [("acme", 10, 30, 0, 0, 0, -20, 0)])


def test_a_loss_that_others_make_up_for_is_found_by_meter(lago: Case) -> None:
    lago.books.hold(event(5))
    lago.sink.send([event(6, usage=Usage(output=5))])
    lago.meter(event(7, usage=Usage(input=1, output=1)))
    lago.deliver()

    found = lago.account()

    assert [(each.meter, each.unexplained) for each in found.lines] == [
        ("llm_input_tokens", 5),
        ("llm_output_tokens", -5),
    ]
    assert not found.agrees


def test_a_correction_counts_where_the_corrected_event_does(case: Case) -> None:
    """It was entered a day later, and takes back usage of this hour."""
    tomorrow = EPOCH + timedelta(days=1)
    correction = event(20, corrects="evt_10", customer="globex", time=tomorrow)
    case.meter(event(10), event(30))
    case.meter(correction)
    case.deliver()

    first, second = case.account(), case.account(since=tomorrow, until=tomorrow + HOUR)

    assert (lines(first), first.events) == ([("acme", 30, 30, 0, 0, 0, 0, 0)], 2)
    assert (lines(second), second.events) == ([("globex", 20, 20, 0, 0, 0, 0, 0)], 1)


def test_a_period_includes_its_beginning_and_not_its_end(case: Case) -> None:
    case.meter(
        event(1, time=EPOCH - timedelta(seconds=1)),
        event(2, time=EPOCH),
        event(4, time=EPOCH + HOUR - timedelta(milliseconds=1)),
        event(8, time=EPOCH + HOUR),
    )
    case.deliver()

    assert lines(case.account()) == [("acme", 6, 6, 0, 0, 0, 0, 0)]


def test_customers_who_share_an_id_there_share_a_line(case: Case) -> None:
    for customer in ("globex", "globex-eu"):
        case.books.know(customer, lago="globex", openmeter="globex")
    case.meter(event(10, customer="globex"), event(20, customer="globex-eu"))
    case.deliver()

    (line,) = case.account().lines

    assert (line.customers, line.external, line.ledger, line.there) == (("globex", "globex-eu"), "globex", 30, 30)


def test_events_are_read_in_pieces_and_every_one_is_watched(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 3)
    case.meter(*(event(number) for number in range(1, 11)))
    case.deliver()
    watched: list[str] = []

    def watch(events: Any) -> Iterator[MeterEvent]:
        for each in events:
            watched.append(each.id)
            yield each

    found = case.account(watched=watch)

    assert lines(found) == [("acme", 55, 55, 0, 0, 0, 0, 0)]
    assert len(watched) == 10


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (EPOCH, EPOCH, "the period ends before it begins"),
        (EPOCH + HOUR, EPOCH, "the period ends before it begins"),
        (EPOCH + timedelta(milliseconds=1), EPOCH + HOUR, "the period has to begin at a multiple of 0:0"),
        (EPOCH, EPOCH + timedelta(milliseconds=1), "the period has to end at a multiple of 0:0"),
    ],
)
def test_a_period_that_the_backend_cannot_tell_is_refused(
    case: Case, since: datetime, until: datetime, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        case.account(since=since, until=until)


def test_too_many_totals_are_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAIRS_MAX", 1)
    case.meter(event(1), event(2, customer="globex"))

    with pytest.raises(ValueError, match="more than 1 pairs of customer and meter: ask for a shorter period"):
        case.account()


def test_a_sink_that_the_journal_does_not_know_has_nothing_in_flight(case: Case) -> None:
    case.books.hold(event(10))

    assert lines(case.account()) == [("acme", 10, 0, 0, 0, 0, 10, 0)]


def test_periods_are_aligned_downwards() -> None:
    moment = datetime(2026, 11, 25, 13, 37, 42, 5, tzinfo=UTC)

    assert aligned(moment, timedelta(minutes=1)) == datetime(2026, 11, 25, 13, 37, tzinfo=UTC)
    assert aligned(moment, HOUR) == datetime(2026, 11, 25, 13, tzinfo=UTC)
    assert aligned(EPOCH, HOUR) == EPOCH


@pytest.mark.parametrize("quantities", [(10, 10, 0, 0, 0), (10, 0, 10, 0, 0), (10, 2, 3, 1, 4)])
def test_a_line_adds_up(quantities: Sequence[int]) -> None:
    ledger, there, in_flight, quarantined, given_up = quantities
    line = Line(
        customers=(), external="x", meter="m", ledger=ledger, there=there, in_flight=in_flight,
        quarantined=quarantined, given_up=given_up,
    )  # fmt: skip

    assert line.unexplained == 0
    assert replace(line, there=there - 1).unexplained == 1
