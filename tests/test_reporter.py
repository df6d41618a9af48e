"""Delivery: every sink gets every event, at least once, with the same id; one process at a time; nothing hangs."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.journal_kit import (
    FailingSink,
    FileSink,
    HangingSink,
    ListSink,
    call,
    event,
    fork,
    line,
    opened,
    put_segment,
    run,
    segments,
    start,
    wait,
)
from token_meter.backlog import status
from token_meter.backoff import BACKOFF_SECONDS_MAX, backoff_seconds
from token_meter.deliver import deliver_once, forget
from token_meter.errors import JournalError, Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.journal import Journal
from token_meter.problems import read_problems
from token_meter.quarantine import read_quarantine
from token_meter.reporter import Reporter

LONG = 30.0
"""More than anything here takes; a test that needs it all has failed."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "usage.db.journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    with Journal(folder) as journal:
        yield journal


def ids(count: int, prefix: str = "e") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def flush(reporter: Reporter) -> bool:
    """Flush again and again: each time a backoff is cut short, which saves the tests their waiting."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        if reporter.flush(0.05):
            return True
    return False


def write(journal: Journal, names: Sequence[str]) -> None:
    for name in names:
        call(journal, name)


# ---- the plain case ----


def test_every_sink_gets_every_event_once_and_in_order(journal):
    one, two = ListSink("one"), ListSink("two")
    with Reporter(journal, [one, two]) as reporter:
        write(journal, ids(1_200))

        assert reporter.flush(LONG)
    assert one.ids == two.ids == ids(1_200)
    assert max(one.batches) <= 500


def test_events_arrive_without_anyone_asking(journal):
    """The first line a process writes starts its reporter."""
    sink = ListSink()
    with Reporter(journal, [sink], interval_seconds=0.01):
        write(journal, ["a"])
        deadline = time.monotonic() + LONG
        while not sink.ids and time.monotonic() < deadline:
            time.sleep(0.005)

        assert sink.ids == ["a"]


def test_no_thread_runs_before_something_is_written(journal):
    before = threading.active_count()
    with Reporter(journal, [ListSink()]) as reporter:
        reporter.flush(0)

        assert threading.active_count() == before


def test_a_batch_is_bounded_by_bytes(journal):
    sink = ListSink()
    with Reporter(journal, [sink], batch_bytes=1_000) as reporter:
        write(journal, ids(50))
        reporter.flush(LONG)

    assert sink.ids == ids(50)
    assert max(sink.batches) <= 1_000 // len(event("e0")) + 1


def test_a_restart_sends_nothing_again(journal, folder):
    with Reporter(journal, [ListSink()]):
        write(journal, ids(10))
    sink = ListSink()
    with Journal(folder) as again, Reporter(again, [sink]) as reporter:
        write(again, ["new"])
        reporter.flush(LONG)

    assert sink.ids == ["new"]


def test_a_clean_close_leaves_no_segment(journal, folder):
    with Reporter(journal, [ListSink("one"), ListSink("two")]):
        write(journal, ids(10))

    assert segments(folder) == []


def test_a_dead_processs_events_are_delivered_by_the_next_one(folder):
    assert wait(fork(lambda: _die_with_one_call_open(folder))) == 0
    sink = ListSink()
    with Journal(folder) as journal, Reporter(journal, [sink]) as reporter:
        assert reporter.flush(LONG)

    assert [(each.id, each.status) for each in sink.events] == [
        *((id, "complete") for id in ids(20)),
        ("open", "unmetered"),
    ]


def _die_with_one_call_open(folder: Path) -> None:
    journal = Journal(folder)
    write(journal, ids(20))
    journal.opened("open", opened("open"))
    os._exit(0)


# ---- sinks that fail ----


def test_an_outage_delays_and_loses_nothing(journal):
    sink = FailingSink(*[Retry("503")] * 3)
    with Reporter(journal, [sink]) as reporter:
        write(journal, ids(700))
        flush(reporter)

    assert sink.ids == ids(700)


def test_an_outage_until_exit_is_made_good_after_the_restart(folder):
    def outage() -> None:
        journal = Journal(folder)
        reporter = Reporter(journal, [FailingSink(*[Retry("503")] * 1_000, name="list")])
        write(journal, ids(20))
        assert not reporter.close(0.2)

    assert wait(fork(outage)) == 0
    sink = ListSink()
    with Journal(folder) as journal, Reporter(journal, [sink]) as reporter:
        assert reporter.flush(LONG)

    assert sink.ids == ids(20)


def test_whatever_a_sink_raises_is_a_retry_and_is_told(journal, folder):
    told: list[tuple[str, BaseException]] = []
    error = KeyError("customer's own text")
    sink = FailingSink(error, SystemExit(3), TimeoutError(110, "x"))
    with Reporter(journal, [sink], on_error=lambda what, error: told.append((what, error))) as reporter:
        write(journal, ["a"])
        flush(reporter)

    assert sink.ids == ["a"]
    assert ("sink failing", error) in told
    assert "customer's own text" not in (folder / "problems.jsonl").read_text()


def test_an_on_error_that_raises_harms_nothing(journal):
    def broken(what: str, error: BaseException) -> None:
        raise RuntimeError("broken")

    sink = FailingSink(Retry())
    with Reporter(journal, [sink], on_error=broken) as reporter:
        write(journal, ["a"])
        flush(reporter)

    assert sink.ids == ["a"]
    assert journal.state().problems["on_error"] == 1


def test_a_wait_the_destination_asked_for_is_kept_and_bounded(journal):
    sink = FailingSink(Retry("later", after=10**9))
    with Reporter(journal, [sink]) as reporter:
        write(journal, ["a"])
        flushed = reporter.flush(0.5)
        (state,) = reporter.deliveries()
        reporter.close(0)

    assert not flushed
    assert (sink.ids, state.last_error) == ([], "Retry: later")
    assert state.retry_at is not None
    assert 3_500 < state.retry_at.timestamp() - time.time() <= 3_601


@pytest.mark.parametrize("after", [float("nan"), float("-inf"), -5, 0, "soon", True])
def test_a_senseless_wait_does_not_stop_delivery(journal, after):
    sink = FailingSink(Retry("?", after=after))
    with Reporter(journal, [sink]) as reporter:
        write(journal, ["a"])

        assert flush(reporter)


def test_backoff_is_jittered_and_capped():
    waits = [backoff_seconds(failures) for failures in range(1, 2_000)]

    assert max(waits) <= BACKOFF_SECONDS_MAX
    assert max(waits) > BACKOFF_SECONDS_MAX * 0.9
    assert min(waits) < BACKOFF_SECONDS_MAX * 0.1
    assert backoff_seconds(1) <= 0.5


class RefusingSink(ListSink):
    """Never takes events of the customers it is given."""

    def __init__(self, *refused: str, at_once: int = 1) -> None:
        super().__init__("refusing")
        self.refused = refused
        self.at_once = at_once

    def send(self, events: Sequence[MeterEvent]) -> None:
        poison = [each for each in events if each.id in self.refused][: self.at_once]
        if poison:
            raise Rejected(poison, "unknown customer")
        super().send(events)


@pytest.mark.parametrize("at_once", [1, 2, 99])
def test_refused_events_go_to_quarantine_and_the_rest_arrives(journal, folder, at_once):
    poison = ["e3", "e4", "e77", "e610"]
    sink = RefusingSink(*poison, at_once=at_once)
    with Reporter(journal, [sink]) as reporter:
        write(journal, ids(700))
        flushed = reporter.flush(LONG)
        (state,) = reporter.deliveries()
    entries = list(read_quarantine(folder, "refusing"))

    assert flushed
    assert sink.ids == [id for id in ids(700) if id not in poison]
    assert [entry["event"]["id"] for entry in entries] == poison
    assert {entry["reason"] for entry in entries} == {"unknown customer"}
    assert MeterEvent.from_json(entries[0]["event"]).customer == "acme"
    assert (state.delivered, state.quarantined, state.backlog_events) == (696, 4, 0)


def test_a_refusal_that_names_no_event_of_the_batch_is_a_retry(journal, folder):
    stranger = MeterEvent.from_json(json.loads(event("stranger")))
    sink = FailingSink(Rejected([], "no reason"), Rejected([stranger], "not yours"))
    with Reporter(journal, [sink]) as reporter:
        write(journal, ids(5))
        flush(reporter)

    assert sink.ids == ids(5)
    assert list(read_quarantine(folder, "failing")) == []


def test_a_sink_that_refuses_nothing_forever_is_not_asked_without_end(journal):
    class Sink(ListSink):
        asked = 0

        def send(self, events: Sequence[MeterEvent]) -> None:
            self.asked += 1
            raise Rejected([], "no reason")

    sink = Sink()
    reporter = Reporter(journal, [sink], interval_seconds=0.001)
    write(journal, ["a"])

    assert not reporter.close(0.2)
    assert sink.asked < 20


def test_what_is_refused_before_an_outage_is_quarantined_once(journal, folder):
    class Sink(RefusingSink):
        outages = 2

        def send(self, events: Sequence[MeterEvent]) -> None:
            super().send(events)
            if self.outages:
                self.outages -= 1
                del self.events[:]
                raise Retry

    sink = Sink("e1")
    with Reporter(journal, [sink]) as reporter:
        write(journal, ids(3))
        flush(reporter)

    assert sink.ids == ["e0", "e2"]
    assert (folder / "quarantine" / "refusing.jsonl").read_text().count("\n") == 1


def test_a_sink_that_hangs_holds_back_no_other_and_flush_returns(journal, folder):
    hanging, working = HangingSink(), ListSink("working")
    reporter = Reporter(journal, [hanging, working])
    write(journal, ids(5))

    assert hanging.entered.wait(LONG)
    assert reporter.flush(LONG, sink="working")
    assert working.ids == ids(5)
    assert not reporter.flush(0.05)
    reporter.close(0.05)
    hanging.go_on.set()


def test_flushing_an_unknown_sink_is_a_mistake(journal):
    with Reporter(journal, [ListSink()]) as reporter, pytest.raises(ValueError, match="There is: list"):
        reporter.flush(1, sink="ledger")


# ---- which sinks ----


def test_the_sinks_of_a_new_journal_get_what_was_written_before_them(journal):
    write(journal, ["a"])
    sink = ListSink()
    with Reporter(journal, [sink]) as reporter:
        reporter.flush(LONG)

    assert sink.ids == ["a"]


@pytest.mark.parametrize(("replay", "expected"), [(False, ["new"]), (True, ["old", "new"])])
def test_a_sink_added_later_starts_now_or_at_the_beginning(folder, replay, expected):
    keeps = FailingSink(*[Retry()] * 1_000, name="keeps")
    with Journal(folder) as journal:
        write(journal, ["old"])
        Reporter(journal, [keeps]).close(0.1)
    late = ListSink("late")
    with Journal(folder) as journal:
        reporter = Reporter(journal, [keeps, late], replay=replay)
        write(journal, ["new"])
        assert reporter.flush(LONG, sink="late")
        reporter.close(0.1)

    assert late.ids == expected


def test_a_sink_added_in_the_middle_of_a_live_segment_starts_there(journal, folder):
    with Reporter(journal, [ListSink("one")]) as reporter:
        write(journal, ["before"])
        reporter.flush(LONG)
        added = ListSink("two")
        deliver_once(folder, added)
        write(journal, ["after"])
        reporter.flush(LONG)
        deliver_once(folder, added)

    assert added.ids == ["after"]


def test_opening_a_journal_without_one_of_its_sinks_is_refused_with_the_remedy(folder):
    with Journal(folder) as journal:
        Reporter(journal, [ListSink("ledger"), ListSink("stripe")]).close()
        with pytest.raises(JournalError, match="deliver forget stripe"):
            Reporter(journal, [ListSink("ledger")])
        forget(folder, "stripe")
        Reporter(journal, [ListSink("ledger")]).close()


def test_a_sink_someone_delivers_to_cannot_be_forgotten(journal, folder):
    with Reporter(journal, [ListSink()]) as reporter:
        write(journal, ["a"])
        reporter.flush(LONG)

        with pytest.raises(JournalError, match="stop it first"):
            forget(folder, "list")


@pytest.mark.parametrize("names", [("a", "a"), ("Ledger", "ledger"), ("../up",), ("",), ("x" * 101,)])
def test_sinks_that_cannot_be_told_apart_are_refused(journal, names):
    class Named(ListSink):
        def __init__(self, name: str) -> None:
            super().__init__(name or "..")

    with pytest.raises(JournalError):
        Reporter(journal, [Named(name) for name in names])


def test_two_processes_that_open_a_journal_at_once_agree_on_its_sinks(folder):
    children = [fork(lambda: Reporter(Journal(folder), [ListSink("one"), ListSink("two")])) for _ in range(6)]

    assert [wait(child) for child in children] == [0] * 6
    assert json.loads((folder / "journal.json").read_text())["sinks"] == ["one", "two"]


# ---- many processes ----


def test_processes_that_share_a_journal_deliver_each_event_once(folder, tmp_path):
    def work(name: str) -> None:
        journal = Journal(folder, segment_bytes_max=5_000)
        reporter = Reporter(journal, [FileSink(tmp_path / "sink")], interval_seconds=0.01)
        write(journal, ids(150, f"{name}-"))
        assert reporter.flush(LONG)
        reporter.close()

    children = [fork(lambda name=name: work(name)) for name in "abcd"]  # type: ignore[misc]
    assert [wait(child) for child in children] == [0] * 4

    rows = FileSink(tmp_path / "sink").rows()
    assert sorted(rows) == sorted(f"{id} complete" for name in "abcd" for id in ids(150, f"{name}-"))


def test_when_the_delivering_process_is_killed_another_takes_over(folder, tmp_path):
    holder = start(
        """
        import sys, time
        journal = Journal(sys.argv[1])
        reporter = Reporter(journal, [FileSink(sys.argv[2])])
        call(journal, "first")
        print(reporter.flush(30), flush=True)
        time.sleep(60)
        """,
        folder,
        tmp_path / "sink",
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with Journal(folder) as journal, Reporter(journal, [FileSink(tmp_path / "sink")]) as reporter:
            write(journal, ["second"])
            through_the_other = reporter.flush(LONG)
            state = reporter.deliveries()[0]
            holder.send_signal(signal.SIGSTOP)
            write(journal, ["third"])
            while_stopped = reporter.flush(0.3)
            holder.kill()
            holder.wait()
            after = reporter.flush(LONG)

    assert (through_the_other, while_stopped, after) == (True, False, True)
    assert state.holder == holder.pid
    assert FileSink(tmp_path / "sink").rows() == ["first complete", "second complete", "third complete"]


@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_at_random_lose_nothing(folder, tmp_path, seed):
    """Deliveries may repeat here (the sink does not deduplicate), but what was written arrives."""
    workers = [
        start(
            """
            import itertools, sys
            journal = Journal(sys.argv[1], segment_bytes_max=4_000)
            reporter = Reporter(journal, [FileSink(sys.argv[2])], interval_seconds=0.005)
            for number in itertools.count():
                call(journal, f"{sys.argv[3]}-{number}")
                print(number, flush=True)
            """,
            folder,
            tmp_path / "sink",
            name,
        )
        for name in ("a", "b")
    ]
    told = {}
    for place, worker in enumerate(workers):
        with worker:
            assert worker.stdout is not None
            rows = [worker.stdout.readline() for _ in range(20 + 97 * seed * (place + 1))]
            worker.kill()
            rows += worker.stdout.readlines()
            told["ab"[place]] = len([row for row in rows if row.endswith("\n")])
    sink = FileSink(tmp_path / "sink")
    while not deliver_once(folder, sink, timeout=LONG).complete:
        pass
    metered = {row.split()[0] for row in sink.rows() if row.endswith("complete")}
    unmetered = {row.split()[0] for row in sink.rows() if row.endswith("unmetered")}

    assert {f"{name}-{number}" for name, count in told.items() for number in range(count)} <= metered
    assert not metered & unmetered
    assert segments(folder) == []


# ---- fork ----


def test_preloaded_workers_deliver_what_they_meter(folder, tmp_path):
    """gunicorn --preload: the meter is made, and used, before the fork; workers end without any clean-up."""
    sink = FileSink(tmp_path / "sink")
    with Journal(folder) as journal, Reporter(journal, [sink]) as reporter:
        write(journal, ["parent"])
        reporter.flush(LONG)

        def work(name: str) -> None:
            write(journal, ids(20, f"{name}-"))
            assert reporter.flush(LONG)

        children = [fork(lambda name=name: work(name)) for name in "abc"]  # type: ignore[misc]
        statuses = [wait(child) for child in children]
        reporter.flush(LONG)

    assert statuses == [0, 0, 0]
    assert sorted(sink.rows()) == sorted(
        ["parent complete", *(f"{id} complete" for name in "abc" for id in ids(20, f"{name}-"))]
    )


def test_a_child_delivers_when_its_parent_does_not(folder, tmp_path):
    """The meter was made before the fork, nothing was written, and the parent never delivers."""
    sink = FileSink(tmp_path / "sink")
    journal = Journal(folder)
    reporter = Reporter(journal, [sink])

    def work() -> None:
        write(journal, ["a"])
        assert reporter.flush(LONG)

    assert wait(fork(work)) == 0
    assert sink.rows() == ["a complete"]
    reporter.close()
    journal.close()


def test_a_childs_threads_start_by_themselves(folder, tmp_path):
    sink = FileSink(tmp_path / "sink")
    journal = Journal(folder)
    reporter = Reporter(journal, [sink], interval_seconds=0.01)

    def work() -> None:
        write(journal, ["a"])
        while not sink.rows():
            time.sleep(0.01)

    assert wait(fork(work)) == 0
    assert reporter.close(LONG)


def test_forking_during_delivery_hangs_no_child(folder, tmp_path):
    out = run(
        """
        import os, sys, threading
        sink = FileSink(sys.argv[2])
        journal = Journal(sys.argv[1], segment_bytes_max=3_000)
        reporter = Reporter(journal, [sink], interval_seconds=0.001)
        stop = False
        def work():
            number = 0
            while not stop:
                call(journal, f"parent-{number}")
                number += 1
        thread = threading.Thread(target=work)
        thread.start()
        def child(number):
            call(journal, f"child-{number}")
            reporter.flush(0.05)
        children = [fork(lambda: child(number)) for number in range(25)]
        print(sum(wait(child) for child in children))
        stop = True
        thread.join()
        print(reporter.flush(30))
        reporter.close()
        """,
        folder,
        tmp_path / "sink",
    )
    rows = FileSink(tmp_path / "sink").rows()

    # A child that ends between sending and noting it leaves the batch to be sent again: at least once.
    assert out.split() == ["0", "True"]
    assert {f"child-{number} complete" for number in range(25)} <= set(rows)


# ---- flush and close wherever they are called ----


def test_flush_delivers_in_its_callers_thread_when_no_thread_can_start(folder, tmp_path):
    out = run(
        """
        import logging, sys, threading
        logging.disable()
        threading.stack_size(1 << 46)  # more than there is: no thread can start
        journal = Journal(sys.argv[1])
        reporter = Reporter(journal, [FileSink(sys.argv[2])])
        call(journal, "a")
        print(reporter.flush(30), threading.active_count())
        reporter.close()
        """,
        folder,
        tmp_path / "sink",
    )

    assert out.split() == ["True", "1"]
    assert FileSink(tmp_path / "sink").rows() == ["a complete"]


@pytest.mark.parametrize("late", ["atexit", "module", "thread"])
def test_flush_works_while_the_interpreter_goes_down(folder, tmp_path, late):
    """At exit, in a finaliser of the last moment (`module`), and after all threads were asked to end."""
    run(
        """
        import atexit, sys, threading
        journal = Journal(sys.argv[1])
        reporter = Reporter(journal, [FileSink(sys.argv[2])])
        def finish(flush=reporter.flush, close=reporter.close):
            call(journal, "late")
            assert flush(20)
            close(5)
        class Last:
            def __del__(self, finish=finish): finish()
        if sys.argv[3] == "atexit": atexit.register(finish)
        if sys.argv[3] == "module": last = Last()
        if sys.argv[3] == "thread":
            threading.Thread(target=lambda: (threading.main_thread().join(), finish())).start()
        call(journal, "early")
        """,
        folder,
        tmp_path / "sink",
        late,
    )
    sink = FileSink(tmp_path / "sink")
    deliver_once(folder, sink)

    assert sink.rows() == ["early complete", "late complete"]


def test_flush_in_a_signal_handler_neither_hangs_nor_loses(folder, tmp_path):
    out = run(
        """
        import os, signal, sys
        journal = Journal(sys.argv[1], segment_bytes_max=4_000)
        reporter = Reporter(journal, [FileSink(sys.argv[2])], interval_seconds=0.001)
        number = 0
        def stop(*_):
            reporter.close(20)
            print(number, flush=True)
            os._exit(0)
        signal.signal(signal.SIGTERM, stop)
        print("ready", flush=True)
        while True:
            call(journal, f"{number}")
            number += 1
            if number == 300:
                os.kill(os.getpid(), signal.SIGTERM)
        """,
        folder,
        tmp_path / "sink",
    )
    sink = FileSink(tmp_path / "sink")
    deliver_once(folder, sink)

    rows = sink.rows()
    assert len(rows) == len(set(rows)) >= int(out.split()[-1])


def test_flush_and_close_from_a_sink_do_not_wait_for_themselves(journal):
    class Curious(ListSink):
        reporter: Reporter

        def send(self, events: Sequence[MeterEvent]) -> None:
            self.answers = (self.reporter.flush(0.01), self.reporter.close(0.01))
            super().send(events)

    sink = Curious()
    sink.reporter = Reporter(journal, [sink])
    write(journal, ["a"])
    while not sink.ids:
        time.sleep(0.01)

    assert sink.answers == (False, False)
    assert sink.ids == ["a"]


def test_flush_with_nothing_written_is_true_at_once(journal):
    with Reporter(journal, [HangingSink()]) as reporter:
        assert reporter.flush(0)


def test_flush_writes_what_finalisers_queued(journal):
    sink = ListSink()
    with Reporter(journal, [sink]) as reporter:
        journal.opened("a", opened("a"))
        journal.defer("a", event("a"))

        assert reporter.flush(LONG)
    assert sink.ids == ["a"]


def test_flush_is_false_while_lines_wait_for_the_disk(folder):
    journal = Journal(folder)
    sink = ListSink()
    reporter = Reporter(journal, [sink])
    (folder / "segments").rmdir()
    (folder / "segments").write_text("in the way")
    write(journal, ["a"])
    blocked = reporter.flush(0.1)
    (folder / "segments").unlink()

    assert (blocked, reporter.flush(LONG), sink.ids) == (False, True, ["a"])
    reporter.close()


def test_flush_is_false_when_the_sinks_have_all_but_the_disk_does_not(folder):
    out = run(
        """
        import logging, resource, signal, sys, threading
        logging.disable()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(sys.argv[1])
        sink = HangingSink()
        reporter = Reporter(journal, [sink])
        call(journal, "written")
        sink.entered.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        call(journal, "waits")
        threading.Timer(0.2, sink.go_on.set).start()
        print(reporter.flush(30), sink.ids)
        """,
        folder,
    )

    assert out.split(maxsplit=1) == ["False", "['written']\n"]


def test_flush_does_not_wait_for_a_newer_version(journal, folder):
    put_segment(folder, line(kind="segment", schema=2))
    with Reporter(journal, [ListSink()]) as reporter:
        write(journal, ["a"])

        assert not reporter.flush(LONG)
        assert list(reporter.deliveries()[0].blocked) == [segments(folder)[0].name]
        for _ in range(5):
            reporter.flush(LONG)
    # Once when it was not recovered, once when it was not delivered.
    assert journal.state().problems == {"a segment waits for a newer version": 2}


def test_close_twice_and_flush_after_close(journal):
    sink = ListSink()
    reporter = Reporter(journal, [sink])
    write(journal, ["a"])
    closed = reporter.close(), reporter.close()
    write(journal, ["late"])

    assert closed == (True, True)
    assert reporter.flush(LONG)
    assert sink.ids == ["a", "late"]


def test_a_forgotten_reporter_warns_and_its_threads_end(folder):
    journal = Journal(folder)
    reporter = Reporter(journal, [ListSink()], interval_seconds=0.01)
    write(journal, ["a"])
    threads = [each for each in threading.enumerate() if each.name.startswith("token_meter-")]
    with pytest.warns(ResourceWarning, match="reporter was never closed"):
        del reporter
        gc.collect()
    for thread in threads:
        thread.join(LONG)

    assert threads
    assert not any(thread.is_alive() for thread in threads)
    journal.close()


def test_a_bound_on_error_does_not_keep_its_object_alive(journal):
    class Meter:
        def __init__(self) -> None:
            self.reporter = Reporter(journal, [ListSink()], on_error=self.told)

        def told(self, what: str, error: BaseException) -> None:
            raise AssertionError

        def __del__(self) -> None:
            self.reporter.close()
            gone.append(True)

    gone: list[bool] = []
    meter = Meter()
    write(journal, ["a"])
    del meter
    gc.collect()

    assert gone


# ---- health ----


def test_the_state_of_each_sink_is_known(journal, folder):
    dead, alive = FailingSink(*[Retry("closed")] * 10_000, name="dead"), ListSink("alive")
    reporter = Reporter(journal, [dead, alive])
    write(journal, ids(10))
    assert reporter.flush(LONG, sink="alive")
    reporter.flush(0.2)
    first, second = reporter.deliveries()
    from_outside = {each.name: each for each in status(folder).deliveries}
    reporter.close(0)

    assert (first.name, first.delivered, first.backlog_events, first.last_error) == ("dead", 0, 10, "Retry: closed")
    assert first.oldest_age_seconds is not None and first.oldest_age_seconds > 0
    assert (second.name, second.delivered, second.backlog_events, second.last_error) == ("alive", 10, 0, None)
    assert (second.oldest_age_seconds, second.backlog_bytes) == (None, 0)
    assert {first.holder, second.holder} == {os.getpid()}
    assert (from_outside["dead"].backlog_events, from_outside["alive"].delivered) == (10, 10)
    assert "sink dead" in [kind["what"] for kind in read_problems(folder)]


def test_a_journal_beyond_its_limit_is_loud_and_keeps_everything(folder):
    dead = FailingSink(*[Retry()] * 10_000)
    with Journal(folder, journal_bytes_max=2_000, segment_bytes_max=1_000) as journal:
        reporter = Reporter(journal, [dead], interval_seconds=0.01)
        write(journal, ids(30))
        deadline = time.monotonic() + LONG
        while not reporter.over_limit and time.monotonic() < deadline:
            time.sleep(0.01)
        flagged = reporter.over_limit
        reporter.close(0)

    sink = ListSink("failing")
    deliver_once(folder, sink)
    assert flagged
    assert "the journal is larger than journal_bytes_max" in journal.state().problems
    assert sorted(sink.ids) == sorted(ids(30))


def test_a_folder_deleted_under_a_running_reporter_is_made_again(journal, folder):
    sink = ListSink()
    with Reporter(journal, [sink], interval_seconds=0.01) as reporter:
        write(journal, ["a"])
        reporter.flush(LONG)
        folder.rename(folder.with_name("gone"))
        write(journal, ["b"])
        flushed = reporter.flush(LONG)
        documents = sorted(path.name for path in folder.iterdir())

    assert flushed
    assert sink.ids == ["a", "b"]
    assert {"journal.json", "segments", "cursors", "locks"} <= set(documents)


def test_a_deleted_journal_document_and_cursor_are_written_again(folder):
    journal = Journal(folder, fsync="never")
    with Reporter(journal, [ListSink()], interval_seconds=0.01) as reporter:
        write(journal, ["a"])
        reporter.flush(LONG)
        while not json.loads((folder / "cursors" / "list.json").read_text())["sent"]:
            time.sleep(0.01)
        (folder / "journal.json").unlink()
        (folder / "cursors" / "list.json").unlink()
        reporter.flush(LONG)
        while not (folder / "cursors" / "list.json").exists():
            time.sleep(0.01)

        assert json.loads((folder / "journal.json").read_text())["sinks"] == ["list"]
        assert json.loads((folder / "cursors" / "list.json").read_text())["sent"] == 1


def test_a_full_disk_does_not_stop_the_delivery_of_what_is_written(folder, tmp_path):
    """The cursor cannot be written then; delivered segments are deleted all the same, which makes room."""
    out = run(
        """
        import logging, resource, signal, sys, time
        logging.disable()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(sys.argv[1])
        sink = ListSink()
        reporter = Reporter(journal, [sink], interval_seconds=0.01)
        dead = put_segment(sys.argv[1], event("dead") + line(kind="sealed"))
        call(journal, "written")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        call(journal, "waits")
        print(reporter.flush(0.3), sorted(sink.ids))
        while dead.exists():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(reporter.flush(30), sorted(sink.ids))
        reporter.close()
        """,
        folder,
    )

    assert out.splitlines() == ["False ['dead', 'written']", "True ['dead', 'waits', 'written']"]


def test_a_sink_may_want_to_be_given_events_less_often(journal):
    """What it is given seldom is still given at once when somebody flushes.

    The flush may leave one more turn to take, in which the lazy one gets an event or two; after that it gets none.
    """

    class Lazy(ListSink):
        interval_seconds = 3_600.0

    ids = [f"e{number}" for number in range(20)]
    lazy, eager = Lazy("lazy"), ListSink("eager")
    with Reporter(journal, [lazy, eager], interval_seconds=0.01) as reporter:
        call(journal, ids[0])
        assert reporter.flush(10)
        for id in ids[1:]:
            call(journal, id)
            until = time.monotonic() + 20
            while id not in eager.ids and time.monotonic() < until:
                time.sleep(0.01)
        before = list(lazy.ids)
        assert reporter.flush(10)

    assert eager.ids == lazy.ids == ids
    assert len(eager.batches) == len(ids)
    assert before[:1] == ids[:1]
    assert ids[-1] not in before
