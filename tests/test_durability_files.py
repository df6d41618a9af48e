"""What is left on disk when processes die at any moment, and what readers make of it: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journal_kit import (
    FailingSink,
    ListSink,
    call,
    documents,
    event,
    fork,
    line,
    opened,
    put_segment,
    segments,
    start,
    wait,
    written,
)
from token_meter.backlog import status
from token_meter.cursors import Cursor
from token_meter.deliver import deliver_once, forget
from token_meter.errors import JournalError, NewerSchema, Retry
from token_meter.folder import JournalFolder
from token_meter.journal import Journal
from token_meter.locks import close_owned, lock_now, open_owned
from token_meter.problems import read_problems
from token_meter.quarantine import read_quarantine
from token_meter.retention import Retention
from token_meter.segments import SegmentIndex

SEALED = line(kind="sealed")
HEADER = line(kind="segment", schema=1, pid=4242, host="elsewhere", started="2026-03-01T11:59:59.000000Z")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    JournalFolder(tmp_path / "journal").create()
    return tmp_path / "journal"


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A journal folder for one example of a property."""
    # In memory where there is such a place: a property looks at hundreds of journals.
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    JournalFolder(path).create()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def deliver(folder: Path) -> tuple[list[str], list[str]]:
    """What a sink gets: ids of metered events, and of calls that nobody ended. Nothing may come twice."""
    sink = ListSink()
    deliver_once(folder, sink)
    assert sink.repeated() == []
    unmetered = [each.id for each in sink.events if each.status == "unmetered"]
    return [each.id for each in sink.events if each.status != "unmetered"], unmetered


# ---- dead writers ----


def test_a_call_whose_process_died_becomes_an_unmetered_event_with_everything_known_about_it(folder):
    put_segment(folder, HEADER + opened("a", dimensions={"team": "x"}, mode="test", host="api.openai.com", hold="h"))
    sink = ListSink()
    deliver_once(folder, sink)

    assert [each.to_json() for each in sink.events] == [
        {
            "schema": 1,
            "id": "a",
            "time": "2026-03-01T12:00:00.000000Z",
            "usage": {},
            "status": "unmetered",
            "meter": "llm_tokens",
            "customer": "acme",
            "provider": "openai",
            "model": "gpt-5",
            "model_requested": "gpt-5",
            "anomalies": ["no_response"],
            "dimensions": {"team": "x"},
            "host": "api.openai.com",
            "mode": "test",
        }
    ]


def test_a_void_ends_a_call(folder):
    put_segment(folder, HEADER + opened("a") + line(kind="void", call="a", reason="refused"))

    assert deliver(folder) == ([], [])


def test_an_event_that_names_no_call_ends_the_call_of_its_own_id(folder):
    put_segment(folder, HEADER + opened("a") + event("a").replace(b'"call":"a",', b""))

    assert deliver(folder) == (["a"], [])


def test_a_living_writers_calls_are_left_alone(folder):
    with Journal(folder) as journal:
        journal.opened("a", opened("a"))
        while_alive = deliver(folder)
        journal.ended("a", event("a"))

    assert while_alive == ([], [])
    assert deliver(folder) == (["a"], [])


def test_a_call_still_open_at_close_becomes_unmetered_only_when_the_process_is_gone(folder):
    def in_child() -> None:
        journal = Journal(folder)
        journal.opened("a", opened("a"))
        journal.close()
        assert deliver(folder) == ([], [])

    assert wait(fork(in_child)) == 0
    assert deliver(folder) == ([], ["a"])


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "sys.exit()", "1/0"]
)
def test_every_kind_of_end_keeps_every_call(folder, end):
    with start(
        f"""
        import os, sys
        journal = Journal(sys.argv[1])
        for number in range(20):
            call(journal, f"{{number}}")
        journal.opened("open", opened("open"))
        journal._closed = True  # a Meter would close it; here nobody warns either
        {end}
        """,
        folder,
    ) as process:
        process.communicate(timeout=30)

    assert deliver(folder) == ([f"{number}" for number in range(20)], ["open"])


@pytest.mark.parametrize("seed", range(6))
def test_a_writer_killed_at_a_random_moment_loses_nothing_it_was_told_is_written(folder, seed):
    with start(
        """
        import sys
        journal = Journal(sys.argv[1], segment_bytes_max=1_500)
        number = 0
        while True:
            journal.opened(f"{number}", opened(f"{number}"))
            print("o", number, flush=True)
            journal.ended(f"{number}", event(f"{number}"))
            print("e", number, flush=True)
            number += 1
        """,
        folder,
    ) as process:
        assert process.stdout is not None
        rows = [process.stdout.readline() for _ in range(random.Random(seed).randrange(2, 400))]
        process.send_signal(signal.SIGKILL)
        rows += process.stdout.readlines()
        process.wait()
    ended = {row.split()[1] for row in rows if row.startswith("e") and row.endswith("\n")}
    begun = {row.split()[1] for row in rows if row.startswith("o") and row.endswith("\n")}
    metered, unmetered = deliver(folder)

    assert ended <= set(metered)
    assert begun <= {*metered, *unmetered}
    assert not {*metered} & {*unmetered}
    assert len(metered) + len(unmetered) <= len(begun) + 1
    assert segments(folder) == []


# ---- cut anywhere ----

CALLS = st.lists(
    st.tuples(st.sampled_from(["ended", "void", "open", "two", "manual"]), st.text(max_size=5)), max_size=6
)


def a_segment(calls: list[tuple[str, str]]) -> list[bytes]:
    """The lines of one segment; several events of a call are one write, but separate lines."""
    lines = [HEADER]
    for number, (end, text) in enumerate(calls):
        id = f"call-{number}"
        if end != "manual":
            lines.append(opened(id, dimensions={"text": text}))
        if end in ("ended", "two", "manual"):
            lines.append(event(id))
        if end == "two":
            lines.append(event(f"{id}-second", call=id))
        if end == "void":
            lines.append(line(kind="void", call=id, reason="refused"))
    return lines


def expected(lines: list[bytes], cut: int) -> tuple[list[str], list[str]]:
    """What is known from the lines that are whole before the cut (a last line may lack just its newline)."""
    metered, calls = [], {}
    end = 0
    for each in lines:
        end += len(each)
        if end - 1 > cut:
            break
        document = json.loads(each)
        if document["kind"] == "opened":
            calls[document["id"]] = True
        if document["kind"] == "event":
            metered.append(document["id"])
        if document["kind"] in ("event", "void"):
            calls.pop(document["call"], None)
    return metered, list(calls)


@given(calls=CALLS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_segment_cut_at_any_byte_loses_nothing_before_the_cut_and_counts_nothing_twice(calls, data):
    lines = a_segment(calls)
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    with fresh_folder() as folder:
        put_segment(folder, whole[:cut])

        assert deliver(folder) == expected(lines, cut)


@given(calls=CALLS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_recovery_cut_at_any_byte_is_done_again_with_the_same_result(calls, data):
    """The process that recovers a dead one can die too, in the middle of its write."""
    lines = a_segment(calls)
    with fresh_folder() as folder:
        path = put_segment(folder, b"".join(lines))
        deliver_once(folder, FailingSink(*[Retry()] * 9, name="list"))
        recovered = path.read_bytes() if path.exists() else b"".join(lines)
        path.write_bytes(recovered[: data.draw(st.integers(len(b"".join(lines)), len(recovered)))])

        assert deliver(folder) == expected(lines, len(recovered))


@given(lines=st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"{}", b"[]", b"null", b'{"kind":"event"}']))))
@settings(max_examples=100, deadline=None)
def test_rubbish_between_lines_hides_no_event_and_is_kept_in_quarantine(lines):
    rubbish = [part for each in lines for part in each.split(b"\n") if part.strip() and part != SEALED.strip()]
    data = HEADER + b"".join(event(f"{place}") + part + b"\n" for place, part in enumerate(rubbish)) + event("last")
    with fresh_folder() as folder:
        put_segment(folder, data + SEALED)
        metered, unmetered = deliver(folder)
        kept = [entry["line"] for entry in read_quarantine(folder, "list")]
        invalid = status(folder).invalid

    assert metered == [*(f"{place}" for place in range(len(rubbish))), "last"]
    assert unmetered == []
    assert kept == [part.decode("utf-8", "backslashreplace") for part in rubbish]
    assert invalid == len(rubbish)


def test_a_torn_last_line_of_a_living_writer_is_not_complete_yet(folder):
    with Journal(folder) as journal:
        call(journal, "a")
        path = segments(folder)[0]
        whole = event("b")
        with path.open("ab", buffering=0) as file:
            file.write(whole[:30])
            first = deliver(folder)
            file.write(whole[30:])

        assert first == (["a"], [])
        assert deliver(folder) == (["b"], [])
        assert list(read_quarantine(folder, "list")) == []


def test_an_unreadable_opened_line_is_reported(folder):
    put_segment(folder, HEADER + line(kind="opened", id="a", time="yesterday"))

    assert deliver(folder) == ([], [])
    assert [kind["what"] for kind in read_problems(folder)] == ["an opened line that makes no event"]


@pytest.mark.parametrize("damaged", [
    opened("a")[:-40], opened("a")[:-2] + b"\0\0", opened("a")[:-30] + event("a")[:-1], opened("a")[:-1] + event("a")[:-1],
    opened("a", dimensions={"feature": "chat"})[:-2],
])  # fmt: skip
def test_a_damaged_opened_line_is_kept_in_quarantine(folder, damaged):
    """Its call cannot be recovered, and an event may have run into it: this is the only trace of both."""
    put_segment(folder, HEADER + damaged + b"\n" + opened("b") + event("b") + SEALED)

    assert deliver(folder) == (["b"], [])
    assert [entry["line"].encode() for entry in read_quarantine(folder, "list")] == [damaged]


def test_half_a_surrogate_pair_is_refused_before_it_can_stop_a_sink(folder):
    put_segment(folder, HEADER + event("a", customer="\ud800") + event("b", customer="\U0001f600") + SEALED)

    assert deliver(folder) == (["b"], [])
    assert len(list(read_quarantine(folder, "list"))) == 1


def test_a_hostile_line_takes_no_memory_and_hides_nothing(folder):
    path = put_segment(folder, HEADER + event("a"))
    with path.open("ab") as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + event("b") + SEALED)
    tracemalloc.start()
    metered, _ = deliver(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert metered == ["a", "b"]
    assert [entry["reason"] for entry in read_quarantine(folder, "list")] == ["a line of more than 1 MiB"]
    assert peak < 8 << 20


def test_a_hostile_line_that_never_ends_is_noted_once(folder):
    put_segment(folder, HEADER + event("a") + b"x" * (3 << 20))
    deliver(folder)
    again = deliver(folder)

    assert again == ([], [])
    assert len(list(read_quarantine(folder, "list"))) == 1
    assert segments(folder) == []


# ---- rotation and death ----


def test_a_call_carried_on_is_not_unmetered_in_the_segment_that_was_never_sealed(folder):
    """The process died between beginning the next segment and sealing this one."""
    first = put_segment(folder, HEADER + opened("a") + opened("b"), number=1)
    carried = opened("a") + opened("b") + line(kind="carried", **{"from": first.name})
    put_segment(folder, HEADER + carried + event("a"), number=2)

    assert deliver(folder) == (["a"], ["b"])


def test_a_head_that_was_not_finished_carries_nothing_on(folder):
    put_segment(folder, HEADER + opened("a") + opened("b"), number=1)
    put_segment(folder, HEADER + opened("a"), number=2)
    sink = ListSink()
    deliver_once(folder, sink)

    assert {each.id for each in sink.events} == {"a", "b"}


def test_a_segment_stays_while_an_earlier_one_of_its_writer_may_need_its_head(folder):
    """The earlier one is locked, as by a process that could not seal it and still tries."""
    first = put_segment(folder, HEADER + opened("a"), number=1)
    second = put_segment(folder, HEADER + line(kind="carried", **{"from": first.name}) + SEALED, number=2)

    def in_child() -> None:
        assert lock_now(open_owned(first, os.O_RDWR))
        deliver_once(folder, ListSink())
        assert segments(folder) == [first, second]

    assert wait(fork(in_child)) == 0
    assert deliver(folder) == ([], [])
    assert segments(folder) == []


# ---- versions ----


def test_a_newer_line_waits_for_a_newer_reader_and_says_so(folder):
    newer = line(kind="event", schema=2, id="b", time="2026-03-01T12:00:00.000000Z", usage={}, status="complete")
    path = put_segment(folder, HEADER + event("a") + newer + event("c") + SEALED)
    put_segment(folder, HEADER + event("other") + SEALED, pid=1)
    metered, _ = deliver(folder)

    assert sorted(metered) == ["a", "other"]
    assert list(status(folder).deliveries[0].blocked) == [path.name]
    assert segments(folder) == [path]
    assert not deliver_once(folder, ListSink()).complete


def test_a_newer_dead_segment_is_not_recovered_by_an_older_version(folder):
    path = put_segment(folder, line(kind="segment", schema=2) + opened("a"))
    before = path.read_bytes()

    assert deliver(folder) == ([], [])
    assert path.read_bytes() == before


def test_a_newer_journal_is_refused(folder):
    (folder / "journal.json").write_text('{"schema": 2}')

    with pytest.raises(NewerSchema, match="upgrade"):
        Journal(folder)


# ---- cursors ----


@pytest.mark.parametrize("text", ["{", "", "[]", '{"segments": 5}', '{"segments": {"x": {"offset": "y"}}}'])
def test_a_broken_cursor_sends_again_rather_than_losing(folder, text):
    with Journal(folder) as journal:
        call(journal, "a")
        first = deliver(folder)
        (folder / "cursors" / "list.json").write_text(text)

        assert (first, deliver(folder)) == ((["a"], []), (["a"], []))


def test_a_segment_that_is_not_what_its_cursor_knew_is_read_again(folder):
    """After a power cut the file system may have kept the cursor and lost the end of the segment."""
    path = put_segment(folder, HEADER + event("a") + event("b"))
    descriptor = open_owned(path, os.O_RDWR)
    assert lock_now(descriptor)  # its writer lives: it is not recovered yet
    deliver(folder)
    path.write_bytes(HEADER + event("a"))
    shorter = deliver(folder)
    path.write_bytes(HEADER + event("a") + event("c", customer="a longer name"))
    close_owned(descriptor)

    assert shorter == (["a"], [])
    assert deliver(folder) == (["c"], [])


def test_an_emptied_segment_is_told_of_once(folder):
    path = put_segment(folder, HEADER + event("a"))
    descriptor = open_owned(path, os.O_RDWR)
    assert lock_now(descriptor)
    deliver(folder)
    path.write_bytes(b"")
    deliver(folder)
    deliver(folder)
    close_owned(descriptor)

    assert [(kind["what"], kind["count"]) for kind in read_problems(folder)] == [
        ("a segment changed under its cursor: sending it again", 1)
    ]


def test_a_delivered_journal_without_its_document_is_not_taken_for_a_new_one(folder):
    with Journal(folder) as journal:
        call(journal, "a")
        deliver(folder)
        (folder / "journal.json").unlink()

        assert deliver(folder) == ([], [])


# ---- retention ----


def test_a_segment_is_deleted_when_every_sink_has_it(folder):
    with Journal(folder) as journal:
        deliver_once(folder, ListSink("one"))
        deliver_once(folder, ListSink("two"))
        call(journal, "a")
    deliver_once(folder, ListSink("one"))
    kept = len(segments(folder))
    deliver_once(folder, ListSink("two"))

    assert (kept, len(segments(folder))) == (1, 0)


def test_a_living_writers_segment_is_never_deleted(folder):
    with Journal(folder) as journal:
        call(journal, "a")
        deliver(folder)

        assert len(segments(folder)) == 1


def test_nothing_is_deleted_while_no_sink_is_known(folder):
    path = put_segment(folder, HEADER + event("a") + SEALED)
    index = SegmentIndex(JournalFolder(folder).segments)
    problems: list[str] = []
    retention = Retention(
        JournalFolder(folder), index, problem=lambda what, _: problems.append(what), journal_bytes_max=1 << 30
    )

    assert (retention.sweep(lambda _: Cursor()), path.exists(), problems) == (0, True, [])


def test_a_forgotten_sink_no_longer_keeps_segments(folder):
    deliver_once(folder, ListSink("dead"))
    put_segment(folder, HEADER + event("a") + SEALED)
    deliver_once(folder, ListSink("alive"), replay=True)
    kept = len(segments(folder))
    forget(folder, "dead")
    deliver_once(folder, ListSink("alive"))

    assert (kept, len(segments(folder))) == (1, 0)


def test_forgetting_an_unknown_sink_names_the_known_ones(folder):
    deliver_once(folder, ListSink("one"))

    with pytest.raises(JournalError, match="It has: one"):
        forget(folder, "two")


def test_a_name_from_a_clock_that_stepped_back_is_delivered_and_deleted_like_others(folder):
    put_segment(folder, HEADER + event("future") + SEALED, milliseconds=9_999_999_999_999)
    put_segment(folder, HEADER + event("past") + SEALED, milliseconds=0)

    assert deliver(folder) == (["past", "future"], [])
    assert segments(folder) == []


def test_thousands_of_short_lived_processes_are_delivered_and_cleaned_up(folder):
    """Serverless: every invocation leaves a segment, sealed or not."""
    for number in range(2_000):
        tail = [opened(f"{number}-open"), SEALED, b'{"kind":"ev'][number % 3]
        put_segment(folder, HEADER + event(f"{number}") + tail, pid=number, milliseconds=number)
    metered, unmetered = deliver(folder)

    assert metered == [f"{number}" for number in range(2_000)]
    assert unmetered == [f"{number}-open" for number in range(0, 2_000, 3)]
    assert segments(folder) == []


def test_a_large_backlog_is_read_in_bounded_memory(folder):
    for part in range(4):
        data = b"".join(event(f"{part}-{number}") for number in range(3_000))
        put_segment(folder, HEADER + data + SEALED, pid=part)

    class Counting(ListSink):
        def send(self, events: Any) -> None:
            self.batches.append(len(events))

    sink = Counting()
    tracemalloc.start()
    result = deliver_once(folder, sink)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (result.sent, sum(sink.batches), max(sink.batches)) == (12_000, 12_000, 500)
    assert peak < 8 << 20


# ---- from outside ----


def test_status_counts_what_waits_without_disturbing_anyone(folder):
    with Journal(folder) as journal:
        call(journal, "a")
        deliver_once(folder, ListSink("list"))
        call(journal, "b")
        call(journal, "c")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        state = status(folder)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    (delivery,) = state.deliveries
    assert after == before
    assert (delivery.name, delivery.delivered, delivery.backlog_events, delivery.holder) == ("list", 1, 2, None)
    assert delivery.backlog_bytes == 2 * len(opened("b") + event("b"))
    assert delivery.oldest_age_seconds is not None
    assert (state.segments, state.invalid, state.problems) == (1, 0, ())
    assert state.bytes == sum(len(data) for path, data in after.items() if path.parent.name == "segments")


def test_a_folder_that_is_no_journal_has_nothing_to_deliver_and_stays_untouched(tmp_path):
    result = deliver_once(tmp_path / "nothing", ListSink())

    assert (result.sent, result.complete) == (0, True)
    assert not (tmp_path / "nothing").exists()


def test_delivering_in_vain_says_why(folder):
    put_segment(folder, HEADER + event("a") + SEALED)
    result = deliver_once(folder, FailingSink(Retry("maintenance until noon")))

    assert (result.sent, result.complete, result.error) == (0, False, "Retry: maintenance until noon")
    assert status(folder).deliveries[0].last_error == "Retry: maintenance until noon"


def test_an_event_written_twice_by_a_short_write_is_one_line(folder):
    """Only the torn line is written again, not those before it."""
    assert written(folder) == []
    with Journal(folder) as journal:
        journal.append(event("a") + event("b"))

    assert written(folder) == ["a", "b"]
    assert documents(segments(folder)[0])[-1] == {"kind": "sealed"}
