"""The quarantine: nothing in it vanishes, what is released arrives once, what is discarded stays on record."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.journal_kit import FailingSink, FileSink, ListSink, call, event, fork, line, put_segment, start, wait
from token_meter import quarantine
from token_meter.backlog import status
from token_meter.deliver import Decided, deliver_once, discard, forget, quarantined, release
from token_meter.errors import JournalError, Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder
from token_meter.journal import Journal
from token_meter.quarantine import read_quarantine, write_quarantine
from token_meter.reporter import Reporter

LONG = 30.0


class Picky(ListSink):
    """Refuses the customers' events it is told to, until it is told to take them."""

    def __init__(self, *refused: str, name: str = "picky") -> None:
        super().__init__(name)
        self.refused = set(refused)

    def send(self, events: Sequence[MeterEvent]) -> None:
        named = [each for each in events if each.id in self.refused]
        if named:
            raise Rejected(named, "unknown customer")
        super().send(events)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "usage.db.journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    with Journal(folder) as journal:
        yield journal


@pytest.fixture
def refused(folder: Path) -> Picky:
    """The sink took `e0`, and refused `e1`, `e2` and `e3`."""
    sink = Picky("e1", "e2", "e3")
    with Journal(folder) as journal:
        for number in range(4):
            call(journal, f"e{number}")
    deliver_once(folder, sink, replay=True)
    assert sink.ids == ["e0"]
    return sink


def states(folder: Path, sink: str = "picky") -> dict[str, str]:
    return {each.id: each.state for each in quarantined(folder, sink)}


def file_of(folder: Path, sink: str = "picky") -> Path:
    return folder / "quarantine" / f"{sink}.jsonl"


def counts(folder: Path) -> tuple[int, int, int, int]:
    """Refused, unreadable, released, waiting for the sink."""
    (state,) = status(folder).deliveries
    return state.quarantined, state.invalid, state.released, state.backlog_events


# ---- releasing ----


def test_a_released_event_arrives_once_with_the_same_id(folder: Path, refused: Picky) -> None:
    refused.refused.clear()

    assert release(folder, "picky", ids=["e2"]) == Decided(ids=("e2",))
    assert counts(folder) == (2, 0, 1, 1)
    delivered = [deliver_once(folder, refused) for _ in range(3)]

    assert refused.ids == ["e0", "e2"]
    assert [(each.sent, each.complete) for each in delivered] == [(1, True), (0, True), (0, True)]
    assert states(folder) == {"e1": "waiting", "e2": "delivered", "e3": "waiting"}
    assert counts(folder) == (2, 0, 0, 0)


def test_releasing_all_releases_what_waits(folder: Path, refused: Picky) -> None:
    refused.refused.clear()
    release(folder, "picky", ids=["e2"])
    deliver_once(folder, refused)

    assert release(folder, "picky", ids="all") == Decided(ids=("e1", "e3"))
    deliver_once(folder, refused)

    assert refused.ids == ["e0", "e2", "e1", "e3"]
    assert counts(folder) == (0, 0, 0, 0)


def test_releasing_twice_sends_nothing_twice(folder: Path, refused: Picky) -> None:
    refused.refused.clear()

    first, second = release(folder, "picky", ids=["e1"]), release(folder, "picky", ids=["e1"])
    deliver_once(folder, refused)
    third = release(folder, "picky", ids=["e1"])
    deliver_once(folder, refused)

    assert [first.ids, second.ids, third.ids] == [("e1",), (), ()]
    assert second.already == third.already == ("e1",)
    assert refused.ids == ["e0", "e1"]


def test_an_event_that_is_refused_again_waits_again_with_the_new_reason(folder: Path, refused: Picky) -> None:
    class Stricter(Picky):
        def send(self, events: Sequence[MeterEvent]) -> None:
            raise Rejected(events, "no such product")

    release(folder, "picky", ids="all")
    result = deliver_once(folder, Stricter())

    assert (result.sent, result.quarantined, result.complete) == (0, 3, True)
    assert [(each.id, each.state, each.reason) for each in quarantined(folder, "picky")] == [
        (id, "waiting", "no such product") for id in ("e1", "e2", "e3")
    ]
    assert counts(folder) == (3, 0, 0, 0)
    assert release(folder, "picky", ids=["e1"]).ids == ("e1",)
    refused.refused.clear()
    deliver_once(folder, refused)
    assert refused.ids == ["e0", "e1"]


def test_some_of_a_released_batch_may_be_refused_again(folder: Path, refused: Picky) -> None:
    release(folder, "picky", ids="all")
    refused.refused = {"e2"}
    deliver_once(folder, refused)

    assert refused.ids == ["e0", "e1", "e3"]
    assert states(folder) == {"e1": "delivered", "e2": "waiting", "e3": "delivered"}


def test_a_running_process_delivers_what_is_released(journal: Journal, folder: Path) -> None:
    sink = Picky("bad")
    with Reporter(journal, [sink], interval_seconds=0.01) as reporter:
        call(journal, "bad")
        reporter.flush(LONG)
        assert reporter.deliveries()[0].quarantined == 1
        sink.refused.clear()
        release(folder, "picky", ids="all")
        assert reporter.flush(LONG)

        assert sink.ids == ["bad"]
        assert (reporter.deliveries()[0].quarantined, reporter.deliveries()[0].backlog_events) == (0, 0)


def test_released_events_that_fail_do_not_hold_up_new_ones(journal: Journal, folder: Path) -> None:
    class Broken(Picky):
        def send(self, events: Sequence[MeterEvent]) -> None:
            if self.refused == {"broken"} and any(each.id == "bad" for each in events):
                raise RuntimeError("cannot even refuse it")
            super().send(events)

    sink = Broken("bad")
    reporter = Reporter(journal, [sink], interval_seconds=0.01)
    call(journal, "bad")
    reporter.flush(LONG)
    sink.refused = {"broken"}
    release(folder, "picky", ids="all")
    for number in range(3):
        call(journal, f"{number}")
        deadline = time.monotonic() + LONG
        while f"{number}" not in sink.ids and time.monotonic() < deadline:
            reporter.flush(0.01)
    sink.refused.clear()
    while not reporter.flush(0.05):
        pass
    reporter.close()

    assert sink.ids == ["0", "1", "2", "bad"]
    assert states(folder) == {"bad": "delivered"}


def test_an_outage_delays_what_was_released(folder: Path, refused: Picky) -> None:
    release(folder, "picky", ids="all")

    result = deliver_once(folder, FailingSink(Retry("503"), name="picky"))
    assert (result.sent, result.complete, result.error) == (0, False, "Retry: 503")
    assert counts(folder) == (0, 0, 3, 3)
    refused.refused.clear()
    deliver_once(folder, refused)

    assert refused.ids == ["e0", "e1", "e2", "e3"]


def test_what_is_released_long_ago_is_a_backlog_that_grows_old(folder: Path, refused: Picky) -> None:
    release(folder, "picky", ids="all")

    (state,) = status(folder).deliveries

    assert state.oldest_age_seconds is not None and state.oldest_age_seconds < LONG


def test_a_placeholder_and_its_real_event_are_two_entries_under_one_id(folder: Path) -> None:
    """A background response is recorded twice under one id; the second replaces the first in the ledger."""
    sink = Picky("deferred")
    with Journal(folder) as journal:
        journal.append(event("deferred", usage={}, status="unmetered"))
        journal.append(event("deferred", usage={"input": 9}))
    deliver_once(folder, sink, replay=True)
    assert counts(folder) == (2, 0, 0, 0)

    sink.refused.clear()
    assert release(folder, "picky", ids=["deferred"]).ids == ("deferred",)
    deliver_once(folder, sink)

    assert [(each.id, each.usage.input) for each in sink.events] == [("deferred", 0), ("deferred", 9)]


def test_a_large_release_goes_out_in_batches(folder: Path) -> None:
    names = [f"e{number}" for number in range(1_200)]
    sink = Picky(*names)
    with Journal(folder) as journal:
        for name in names:
            call(journal, name)
    deliver_once(folder, sink, replay=True)
    sink.refused.clear()

    assert len(release(folder, "picky", ids="all").ids) == 1_200
    deliver_once(folder, sink)

    assert sink.ids == names
    assert max(sink.batches) <= 500


# ---- discarding ----


def test_what_is_discarded_stays_on_record_with_the_reason(folder: Path, refused: Picky) -> None:
    before = file_of(folder).read_bytes()

    assert discard(folder, "picky", ids=["e1"], reason="test customer").ids == ("e1",)
    refused.refused.clear()
    deliver_once(folder, refused)

    assert refused.ids == ["e0"]
    first = next(quarantined(folder, "picky"))
    assert (first.id, first.state, first.decision, first.reason) == (
        "e1",
        "discarded",
        "test customer",
        "unknown customer",
    )
    assert first.event is not None and first.event["usage"] == {"input": 3}
    assert file_of(folder).read_bytes().startswith(before)
    assert len(list(read_quarantine(folder, "picky"))) == 3
    assert discard(folder, "picky", ids=["e1"], reason="again") == Decided(already=("e1",))


def test_a_discarded_event_can_still_be_released_by_its_id(folder: Path, refused: Picky) -> None:
    refused.refused.clear()
    discard(folder, "picky", ids=["e1"], reason="a mistake")
    assert release(folder, "picky", ids="all").ids == ("e2", "e3")

    assert release(folder, "picky", ids=["e1"]).ids == ("e1",)
    deliver_once(folder, refused)

    assert refused.ids == ["e0", "e2", "e3", "e1"]


def test_a_released_event_can_be_discarded_while_nobody_delivers(folder: Path, refused: Picky) -> None:
    release(folder, "picky", ids=["e1", "e2"])
    with Journal(folder) as journal, Reporter(journal, [FailingSink(*[Retry()] * 99, name="picky")]) as reporter:
        call(journal, "new")
        reporter.flush(0.1)
        with pytest.raises(JournalError, match="stop it first"):
            discard(folder, "picky", ids=["e1"], reason="stuck")
        reporter.close(0)

    assert discard(folder, "picky", ids=["e1"], reason="stuck").ids == ("e1",)
    refused.refused.clear()
    deliver_once(folder, refused)
    assert sorted(refused.ids) == ["e0", "e2", "new"]
    with pytest.raises(ValueError, match="picky has it"):
        discard(folder, "picky", ids=["e2"], reason="too late")


def test_unreadable_lines_can_only_be_discarded(folder: Path) -> None:
    Journal(folder).close()
    put_segment(folder, event("good") + b"rubbish\n" + line(kind="sealed"))
    sink = ListSink("picky")
    deliver_once(folder, sink, replay=True)
    (entry,) = quarantined(folder, "picky")
    assert (entry.line, entry.event, counts(folder)) == ("rubbish", None, (0, 1, 0, 0))

    assert release(folder, "picky", ids="all") == Decided()
    with pytest.raises(ValueError, match="only be discarded"):
        release(folder, "picky", ids=[entry.id])
    assert discard(folder, "picky", ids="all", reason="an editor").ids == (entry.id,)

    assert counts(folder) == (0, 0, 0, 0)


# ---- what is no decision ----


def test_an_id_may_be_shortened_to_its_end(folder: Path, refused: Picky) -> None:
    with pytest.raises(ValueError, match="'e9'"):
        release(folder, "picky", ids=["e9"])
    with pytest.raises(ValueError, match="''"):
        release(folder, "picky", ids=[""])

    assert release(folder, "picky", ids=["3"]).ids == ("e3",)


def test_an_end_that_several_ids_have_is_refused(folder: Path) -> None:
    sink = Picky("a1", "b1")
    with Journal(folder) as journal:
        call(journal, "a1")
        call(journal, "b1")
    deliver_once(folder, sink, replay=True)

    with pytest.raises(ValueError, match="2 entries"):
        discard(folder, "picky", ids=["1"], reason="x")
    assert counts(folder)[0] == 2


def test_wrong_decisions_change_nothing(folder: Path, refused: Picky) -> None:
    before = file_of(folder).read_bytes()

    for reason in ("", "  "):
        with pytest.raises(ValueError, match="reason"):
            discard(folder, "picky", ids="all", reason=reason)
    with pytest.raises(ValueError, match="does not deliver to a sink 'other'"):
        release(folder, "other", ids="all")
    with pytest.raises(ValueError, match="no quarantine"):
        discard(folder, "other", ids="all", reason="x")
    with pytest.raises(JournalError):
        discard(folder, "../picky", ids="all", reason="x")
    with pytest.raises(ValueError, match="'nope'"):
        release(folder, "picky", ids=["e1", "nope"])

    assert file_of(folder).read_bytes() == before
    assert not file_of(folder, "other").exists()


def test_a_sink_that_was_given_up_gets_nothing_and_its_quarantine_can_be_discarded(
    folder: Path, refused: Picky
) -> None:
    forget(folder, "picky")

    with pytest.raises(ValueError, match="does not deliver"):
        release(folder, "picky", ids="all")
    assert len(discard(folder, "picky", ids="all", reason="the sink is gone").ids) == 3


def test_a_sink_given_up_and_added_again_gets_nothing_twice(folder: Path, refused: Picky) -> None:
    release(folder, "picky", ids=["e1"])
    refused.refused = {"e2", "e3"}
    deliver_once(folder, refused)
    forget(folder, "picky")

    deliver_once(folder, refused)

    assert refused.ids == ["e0", "e1"]
    assert states(folder) == {"e1": "delivered", "e2": "waiting", "e3": "waiting"}


# ---- crashes ----


def test_what_is_in_quarantine_is_not_sent_again_from_the_cursor(folder: Path) -> None:
    """The rest of the batch fails for hours, a human decides meanwhile, and the process dies before the cursor moved."""

    class Outage(Picky):
        def send(self, events: Sequence[MeterEvent]) -> None:
            super().send(events)
            raise Retry("503")

    def dies() -> None:
        journal = Journal(folder)
        for name in ("discarded", "good", "released", "waits"):
            call(journal, name)
        Reporter(journal, [Outage("discarded", "released", "waits")]).flush(0.3)
        os._exit(0)

    assert wait(fork(dies)) == 0
    assert counts(folder)[0] == 3
    discard(folder, "picky", ids=["discarded"], reason="test customer")
    release(folder, "picky", ids=["released"])
    sink = Picky()
    for _ in range(2):
        deliver_once(folder, sink)

    assert sink.ids == ["good", "released"]
    assert states(folder) == {"discarded": "discarded", "released": "delivered", "waits": "waiting"}


@pytest.mark.parametrize("action", ["release", "discard"])
def test_a_decision_killed_at_any_byte_is_completed_by_saying_it_again(
    folder: Path, refused: Picky, action: str
) -> None:
    refused.refused.clear()
    before = file_of(folder).read_bytes()
    decide = {
        "release": lambda: release(folder, "picky", ids="all"),
        "discard": lambda: discard(folder, "picky", ids="all", reason="x"),
    }[action]
    decide()
    whole = file_of(folder).read_bytes()
    delivered = 3 if action == "release" else 0
    for size in range(len(before), len(whole) + 1, 7):
        file_of(folder).write_bytes(whole[:size])
        sink = Picky()
        deliver_once(folder, sink)  # a process that delivers does not wait for the human to come back

        decide()
        deliver_once(folder, sink)

        assert len(sink.ids) == len(set(sink.ids)) == delivered, size
        assert counts(folder) == (0, 0, 0, 0), size


def test_killed_between_the_sink_and_the_note_the_same_ids_go_out_again(folder: Path, refused: Picky) -> None:
    class Dies(ListSink):
        def send(self, events: Sequence[MeterEvent]) -> None:
            os._exit(0)

    release(folder, "picky", ids="all")
    assert wait(fork(lambda: deliver_once(folder, Dies("picky")))) == 0

    assert counts(folder) == (0, 0, 3, 3)
    refused.refused.clear()
    deliver_once(folder, refused)
    assert refused.ids == ["e0", "e1", "e2", "e3"]


def test_a_delivery_that_cannot_be_noted_is_not_made_again_by_this_process(
    folder: Path, refused: Picky, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = ExitStack()

    class Locking(ListSink):
        """From its delivery on, somebody else keeps the quarantine locked."""

        def send(self, events: Sequence[MeterEvent]) -> None:
            super().send(events)
            locked.enter_context(quarantine.writing(file_of(folder)))

    monkeypatch.setattr(quarantine, "LOCK_WAIT_SECONDS_MAX", 0.01)
    release(folder, "picky", ids="all")
    sink = Locking("picky")
    with Journal(folder) as journal, Reporter(journal, [sink], interval_seconds=0.01) as reporter:
        with locked:
            while "write down what was delivered" not in journal.state().problems:
                reporter.flush(0.05)
            assert states(folder)["e1"] == "released"
        assert reporter.flush(LONG)
        assert states(folder)["e1"] == "delivered"

    assert sink.ids == ["e1", "e2", "e3"]


def test_however_much_could_not_be_noted_is_noted_so_that_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is read beyond a size; it is made small here."""
    ids = [f"e{number}" for number in range(2_000)]
    with Journal(folder) as journal:
        for id in ids:
            call(journal, id)
    sink = Picky(*ids)
    deliver_once(folder, sink, replay=True)
    release(folder, "picky", ids="all")
    sink.refused.clear()
    monkeypatch.setattr("token_meter.standing.ENTRY_BYTES_MAX", 32 << 10)
    monkeypatch.setattr(quarantine, "LOCK_WAIT_SECONDS_MAX", 0.0)
    with Journal(folder) as journal, Reporter(journal, [sink], interval_seconds=0.01) as reporter:
        with quarantine.writing(file_of(folder)):
            while len(sink.ids) < len(ids):
                reporter.flush(0.05)
        assert reporter.flush(LONG)

    assert sink.ids == ids
    assert set(states(folder).values()) == {"delivered"}


@pytest.mark.parametrize("kill", [False, True], ids=["all end well", "one is killed"])
def test_processes_deliver_while_others_decide(folder: Path, tmp_path: Path, kill: bool) -> None:
    """Every event is refused once; releases race with each other, with new refusals, and with a kill.

    The sink does not deduplicate: killed between its delivery and our note, a batch goes out once more.
    """
    script = """
    import sys
    from token_meter.errors import Rejected
    class Once(FileSink):
        def send(self, events):
            seen = {row.split()[0] for row in FileSink(self.path + ".refused").rows()}
            new = [each for each in events if each.id not in seen]
            if new:
                FileSink(self.path + ".refused").send(new)
                raise Rejected(new, "not yet")
            super().send(events)
    journal = Journal(sys.argv[1])
    reporter = Reporter(journal, [Once(sys.argv[2], "once")], interval_seconds=0.001)
    print("ready", flush=True)
    for number in range(60):
        call(journal, f"{sys.argv[3]}-{number}")
    reporter.flush(30)
    print("done", flush=True)
    if sys.argv[3] == "killed":
        signal.pause()
    reporter.close()
    """
    sink = tmp_path / "sink"
    names = ("killed" if kill else "b", "a")
    workers = [start(script, folder, sink, name) for name in names]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    stop = threading.Event()

    def keep_releasing() -> None:
        while not stop.is_set():
            if file_of(folder, "once").exists():
                release(folder, "once", ids="all")
            time.sleep(0.002)

    threads = [threading.Thread(target=keep_releasing) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert workers[0].stdout is not None
    workers[0].stdout.readline()
    if kill:
        workers[0].kill()
    for worker in workers:
        worker.communicate(timeout=60)
    with Journal(folder) as journal, Reporter(journal, [FileSink(sink, "once")]) as reporter:
        deadline = time.monotonic() + LONG
        while (
            any(states(folder, "once")[id] != "delivered" for id in states(folder, "once"))
            and time.monotonic() < deadline
        ):
            reporter.flush(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        assert reporter.flush(LONG)

    rows = FileSink(sink).rows()
    assert sorted(set(rows)) == sorted(f"{name}-{number} complete" for name in names for number in range(60))
    assert kill or len(rows) == 120


# ---- the file ----


def test_an_older_files_entries_count(folder: Path, refused: Picky) -> None:
    """Entries as they were always written: no action, no mark."""
    first = json.loads(file_of(folder).read_text().splitlines()[0])

    assert sorted(first) == ["event", "reason", "time"]


def test_rubbish_in_the_file_harms_nothing(folder: Path, refused: Picky) -> None:
    with file_of(folder).open("ab") as file:
        file.write(b'{"action":"released","marks":7}\n[]\n"x"\n{"action":"dreamt"}\n{"event":3}\n{"half')

    refused.refused.clear()
    release(folder, "picky", ids="all")
    deliver_once(folder, refused)

    assert refused.ids == ["e0", "e1", "e2", "e3"]
    assert counts(folder)[0] == 0


def test_a_released_event_that_cannot_be_read_is_told_and_stays_visible(folder: Path, refused: Picky) -> None:
    newer = {"schema": 99, "id": "later"}
    write_quarantine(file_of(folder), [{"action": "released", "time": "2026-01-01T00:00:00Z", "event": newer}])

    result = deliver_once(folder, refused)

    assert result.complete
    assert counts(folder) == (3, 0, 1, 1)
    assert "a released event cannot be read" in (folder / "problems.jsonl").read_text()


def test_a_quarantine_that_is_taken_away_is_empty(journal: Journal, folder: Path) -> None:
    sink = Picky("bad")
    with Reporter(journal, [sink]) as reporter:
        call(journal, "bad")
        reporter.flush(LONG)
        assert reporter.deliveries()[0].quarantined == 1
        file_of(folder).unlink()

        assert reporter.deliveries()[0].quarantined == 0
        sink.refused = {"worse"}
        call(journal, "worse")
        reporter.flush(LONG)
        assert reporter.deliveries()[0].quarantined == 1


def test_a_locked_quarantine_makes_the_sink_wait_and_loses_nothing(
    folder: Path, refused: Picky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "LOCK_WAIT_SECONDS_MAX", 0.05)
    refused.refused.add("new")
    with Journal(folder) as journal:
        call(journal, "new")
    with quarantine.writing(file_of(folder)):
        assert not deliver_once(folder, refused).complete
    deliver_once(folder, refused)

    assert states(folder)["new"] == "waiting"


def test_a_refusal_is_no_failure_of_ours(folder: Path, refused: Picky) -> None:
    assert status(folder).problems == ()
    assert not JournalFolder(folder).problems.exists()


def test_a_very_long_reason_is_cut(folder: Path) -> None:
    class Wordy(ListSink):
        def send(self, events: Sequence[MeterEvent]) -> None:
            raise Rejected(events, "x" * 10_000_000)

    with Journal(folder) as journal:
        call(journal, "a")
    deliver_once(folder, Wordy("picky"), replay=True)

    (entry,) = quarantined(folder, "picky")
    assert entry.reason is not None and len(entry.reason) == 4_096
