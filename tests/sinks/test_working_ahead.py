"""A sink prepares the next batch while it waits for the answers about the one before; what goes wrong changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import vcr

from tests.journal_kit import event, opened
from tests.sinks.kit import RULES, Books, Plain, PlainSink, event_ids
from token_meter.deliver import deliver_once, quarantined
from token_meter.errors import Retry
from token_meter.event import MeterEvent
from token_meter.journal import Journal
from token_meter.reporter import Reporter
from token_meter.sinks.mapping import MODEL, measured
from token_meter.sinks.webhook import WebhookSink
from token_meter.steps import Ahead, meanwhile, worked_off
from token_meter.testing.backends.base import Request, Response
from token_meter.testing.backends.webhook import SECRET, WebhookReceiver
from token_meter.testing.builders import make_event
from token_meter.usage import Usage


@pytest.fixture
def plain() -> Iterator[Plain]:
    with Plain() as backend:
        yield backend


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "usage.db.journal"


def write(folder: Path, count: int, **more: Any) -> list[str]:
    ids = [f"e{number:03}" for number in range(count)]
    with Journal(folder) as journal:
        for id in ids:
            journal.opened(id, opened(id))
            journal.ended(id, event(id, **more))
    return ids


class Watched:
    """A mapping that says which events it was asked about."""

    def __init__(self, *, fails: Callable[[str], bool] = lambda id: False, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self._table = measured(RULES, MODEL)
        self._fails = fails
        self._error = error or ValueError("this one not")

    def __call__(self, event: MeterEvent) -> Any:
        self.asked.append(event.id)
        if self._fails(event.id):
            raise self._error
        return self._table(event)


def waiting_for(backend: Plain, said: Callable[[], object]) -> list[bool]:
    """The backend answers its first request when this is so; whether it was."""
    found: list[bool] = []
    answer = backend.answer

    def patient(request: Request) -> Response:
        if not found:
            moment = threading.Event()
            for _ in range(500):
                if said():
                    break
                moment.wait(0.01)
            found.append(bool(said()))
        return answer(request)

    backend.answer = patient  # type: ignore[method-assign]
    return found


def test_the_next_batch_is_prepared_before_the_answer_is_there(plain: Plain, folder: Path) -> None:
    ids = write(folder, 6)
    mapping = Watched()
    in_time = waiting_for(plain, lambda: len(mapping.asked) == 4)

    done = deliver_once(folder, PlainSink(plain.url, mapping=mapping), replay=True, batch_events=2)

    assert in_time == [True]
    assert done.complete
    assert mapping.asked == ids  # and each once: what was prepared is what was sent
    assert sorted(event_ids(plain.counted)) == ids


def test_a_batch_that_failed_is_sent_again_and_then_the_next_one(plain: Plain, folder: Path) -> None:
    ids = write(folder, 6)
    mapping = Watched()
    sink = PlainSink(plain.url, mapping=mapping)
    plain.chaos.script = ["unavailable"]

    assert not deliver_once(folder, sink, replay=True, batch_events=2).complete
    assert deliver_once(folder, sink, timeout=20, batch_events=2).complete

    assert sorted(event_ids(plain.counted)) == ids


def test_an_id_that_was_changed_while_a_batch_waited_is_used(plain: Plain, folder: Path) -> None:
    write(folder, 4)
    theirs = {"acme": "old"}
    sink = PlainSink(plain.url, customers=lambda event: theirs[event.customer or ""])
    plain.chaos.script = ["unavailable"]

    assert not deliver_once(folder, sink, replay=True, batch_events=2).complete
    theirs["acme"] = "new"
    assert deliver_once(folder, sink, timeout=20, batch_events=2).complete

    assert {each.customer for each in plain.counted} == {"new"}


def test_an_event_whose_mapping_fails_is_refused_once_and_at_its_turn(plain: Plain, folder: Path) -> None:
    ids = write(folder, 6)
    mapping = Watched(fails=lambda id: id == "e003")

    done = deliver_once(folder, PlainSink(plain.url, mapping=mapping), replay=True, batch_events=2)

    assert (done.complete, done.quarantined) == (True, 1)
    assert [each.id for each in quarantined(folder, "plain")] == ["e003"]
    assert sorted(event_ids(plain.counted)) == [id for id in ids if id != "e003"]


def test_what_is_missing_ahead_and_there_at_its_turn_is_not_refused(plain: Plain, folder: Path) -> None:
    ids = write(folder, 4)
    asked: list[str] = []

    def theirs(event: MeterEvent) -> str | None:
        asked.append(event.id)
        return None if asked.count(event.id) == 1 and event.id == "e002" else "c"

    in_time = waiting_for(plain, lambda: len(asked) == 4)

    done = deliver_once(folder, PlainSink(plain.url, customers=theirs), replay=True, batch_events=2)

    assert in_time == [True]
    assert (done.complete, done.quarantined) == (True, 0)
    assert sorted(event_ids(plain.counted)) == ids


def test_what_cannot_be_prepared_now_is_a_retry_at_its_turn_and_not_before(plain: Plain, folder: Path) -> None:
    ids = write(folder, 6)
    away = [True]
    mapping = Watched(fails=lambda id: id == "e003" and away[0], error=Retry("the directory is away"))
    sink = PlainSink(plain.url, mapping=mapping)

    done = deliver_once(folder, sink, replay=True, batch_events=2)

    assert (done.sent, done.complete) == (2, False)
    assert "the directory is away" in (done.error or "")
    away[0] = False
    assert deliver_once(folder, sink, timeout=20, batch_events=2).complete
    assert sorted(event_ids(plain.counted)) == ids


def test_what_a_batch_refused_leaves_the_prepared_one_as_it_is(plain: Plain, folder: Path) -> None:
    ids = write(folder, 6)
    plain.refuses = lambda record: record["id"].startswith(("e000", "e005"))

    done = deliver_once(folder, PlainSink(plain.url), replay=True, batch_events=2)

    assert (done.complete, done.sent, done.quarantined) == (True, 4, 2)
    assert sorted(event_ids(plain.counted)) == ids[1:5]


def test_a_reporter_that_is_stopped_between_two_batches_loses_none(plain: Plain, folder: Path) -> None:
    ids = write(folder, 40)
    sink = PlainSink(plain.url)
    stopped: list[bool] = []
    answer = plain.answer

    with Journal(folder) as journal:
        reporter = Reporter(journal, [sink], batch_events=2, replay=True)

        def stopping(request: Request) -> Response:
            if not stopped:
                stopped.append(True)
                threading.Thread(target=lambda: reporter.close(timeout=0)).start()
            return answer(request)

        plain.answer = stopping  # type: ignore[method-assign]
        reporter.start()
        reporter.flush(timeout=20)
        reporter.close(timeout=20)

    assert deliver_once(folder, PlainSink(plain.url), timeout=20, batch_events=2).complete
    assert sorted(event_ids(plain.counted)) == ids
    assert plain.counted_twice() == []


def test_events_that_another_sink_prepared_are_events_like_others(plain: Plain) -> None:
    one, other = (
        PlainSink(plain.url, customers=lambda event: "one"),
        PlainSink(plain.url, customers=lambda event: "two"),
    )

    other.send(worked_off(one.prepare([make_event(1, usage=Usage(input=3))])))

    assert [each.customer for each in plain.counted] == ["two"]


def test_a_subclass_that_changes_what_is_sent_is_asked(plain: Plain, folder: Path) -> None:
    class Choosy(PlainSink):
        def send(self, events: Sequence[MeterEvent]) -> None:
            super().send([each for each in events if each.id != "e003"])

    write(folder, 6)

    assert deliver_once(folder, Choosy(plain.url), replay=True, batch_events=2).complete

    assert "e003" not in event_ids(plain.counted)
    assert len(event_ids(plain.counted)) == 5


def test_a_webhook_is_prepared_ahead_too(folder: Path) -> None:
    ids = write(folder, 6)
    told: list[str] = []

    def content(event: MeterEvent) -> dict[str, str]:
        told.append(event.id)
        return {"id": event.id}

    with WebhookReceiver() as receiver:
        sink = WebhookSink(receiver.url, secret=SECRET, content=content)
        assert deliver_once(folder, sink, replay=True, batch_events=2).complete
        assert sum(receiver.messages.values()) == 3

    assert told == ids  # each once: what was prepared is what was sent


def test_the_ledger_of_the_sink_may_be_asked_meanwhile(plain: Plain, folder: Path, tmp_path: Path) -> None:
    write(folder, 6)
    books = Books(tmp_path)
    books.know("acme", plain="theirs")
    sink = PlainSink(plain.url, customers="registered")
    sink.bind(books.accounts)

    assert deliver_once(folder, sink, replay=True, batch_events=2).complete

    books.close()
    assert {each.customer for each in plain.counted} == {"theirs"}


def test_requests_that_vcrpy_records_and_plays_are_no_exception(plain: Plain, tmp_path: Path) -> None:
    cassette = str(tmp_path / "plain.yaml")
    events = [make_event(number, usage=Usage(input=3), customer="acme") for number in (1, 2)]

    for number in range(2):
        with vcr.use_cassette(cassette) as played:
            with meanwhile(Ahead(iter_steps()).step):
                PlainSink(plain.url).send(events)
            assert (len(played), played.play_count) == (1, number)

    assert len(plain.bodies) == 1


def iter_steps() -> Any:
    for _ in range(1000):
        yield
