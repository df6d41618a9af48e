"""The writer: on disk before the call returns, whatever the disk, the signals, the threads and forks do."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.journal_kit import call, documents, event, fork, opened, run, segments, start, wait, written
from token_meter.errors import JournalError
from token_meter.journal import Journal
from token_meter.problems import read_problems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "usage.db.journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    with Journal(folder) as journal:
        yield journal


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A real file system of its own. Only root may mount one."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here; the RLIMIT_FSIZE test covers short writes")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


# ---- what is written ----


def test_every_line_is_in_the_file_when_the_call_returns(journal, folder):
    journal.opened("a", opened("a"))
    first = segments(folder)[0].read_bytes()
    journal.ended("a", event("a"))
    second = segments(folder)[0].read_bytes()

    assert first.endswith(opened("a"))
    assert second == first + event("a")


def test_a_segment_begins_with_who_writes_it(journal, folder):
    call(journal, "a")

    header = documents(segments(folder)[0])[0]
    assert (header["kind"], header["schema"], header["pid"]) == ("segment", 1, os.getpid())
    assert header["host"] == os.uname().nodename


def test_nobody_else_may_read_the_journal(journal, folder):
    call(journal, "a")
    journal.problem("test", "something")

    modes = {path.relative_to(folder).parts[0]: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert modes.pop("segments") == 0o600  # the last seen: the file
    assert (folder / "segments").stat().st_mode & 0o777 == 0o700
    assert {mode & 0o077 for mode in modes.values()} == {0}


def test_a_journal_that_wrote_nothing_leaves_no_segment(folder):
    Journal(folder).close()

    assert segments(folder) == []


def test_a_closed_journal_is_sealed(journal, folder):
    call(journal, "a")
    journal.close()

    assert documents(segments(folder)[0])[-1] == {"kind": "sealed"}


def test_closing_twice_changes_nothing(journal, folder):
    call(journal, "a")
    journal.close()
    before = segments(folder)[0].read_bytes()
    journal.close()

    assert [path.read_bytes() for path in segments(folder)] == [before]


def test_a_call_that_ends_after_close_is_still_written(journal, folder):
    journal.opened("a", opened("a"))
    journal.close()
    journal.ended("a", event("a"))
    call(journal, "b")

    assert written(folder) == ["a", "b"]


def test_writing_after_a_sealed_close_begins_another_segment(journal, folder):
    call(journal, "a")
    journal.close()
    call(journal, "b")
    journal.close()

    assert [documents(path)[-1]["kind"] for path in segments(folder)] == ["sealed", "sealed"]
    assert sorted(written(folder)) == ["a", "b"]


def test_a_relative_folder_survives_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal("here.journal") as journal:
        monkeypatch.chdir("/")
        call(journal, "a")

    assert written(tmp_path / "here.journal") == ["a"]


def test_a_forgotten_journal_warns(folder):
    journal = Journal(folder)
    call(journal, "a")

    with pytest.warns(ResourceWarning, match="never closed"):
        del journal
        gc.collect()


def test_an_unusable_folder_is_refused_at_once_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(JournalError, match="another folder"):
        Journal(tmp_path / "file" / "journal")


def test_an_unknown_fsync_policy_is_refused(folder):
    with pytest.raises(ValueError, match="always"):
        Journal(folder, fsync="sometimes")  # type: ignore[arg-type]


# ---- rotation ----


def test_open_calls_are_carried_into_the_next_segment_before_the_old_one_is_sealed(folder):
    with Journal(folder, segment_bytes_max=2_000) as journal:
        journal.opened("long", opened("long"))
        for number in range(20):
            call(journal, f"short-{number}")
        journal.ended("long", event("long"))
    paths = sorted(segments(folder), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    parts = [documents(path) for path in paths]

    assert len(parts) > 2
    for part in parts:
        calls = {document["id"] for document in part if document["kind"] == "opened"}
        ends = {document["call"] for document in part if document["kind"] == "event"}
        assert part[-1] == {"kind": "sealed"}
        assert ends <= calls
    for before, part in zip(paths, parts[1:], strict=False):
        head = part[1 : [document["kind"] for document in part].index("carried") + 1]
        assert head[0]["id"] == "long"
        assert {document["kind"] for document in head[:-1]} == {"opened"}
        assert head[-1] == {"kind": "carried", "from": before.name}


def test_many_open_calls_do_not_make_every_write_rotate(folder):
    with Journal(folder, segment_bytes_max=4_000) as journal:
        for number in range(200):
            journal.opened(f"{number}", opened(f"{number}"))
        for number in range(200):
            journal.ended(f"{number}", event(f"{number}"))

    assert len(segments(folder)) < 50
    assert len(set(written(folder))) == 200


def test_threads_lose_and_tear_nothing_across_rotations(folder):
    with Journal(folder, segment_bytes_max=20_000) as journal:
        workers = [
            threading.Thread(target=lambda name=name: [call(journal, f"{name}-{n}") for n in range(300)])
            for name in range(6)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    assert sorted(written(folder)) == sorted(f"{name}-{n}" for name in range(6) for n in range(300))
    assert {documents(path)[-1]["kind"] for path in segments(folder)} == {"sealed"}


# ---- entering again ----


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_a_signal_handler_may_meter_calls_at_any_moment(folder, fsync):
    """The handler runs inside the writes, fsyncs and rotations of the same thread."""
    ticks: list[str] = []
    done = threading.Event()

    def interrupt() -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not done.is_set():
            seen = len(ticks)
            signal.pthread_kill(main, signal.SIGUSR1)
            while len(ticks) == seen and not done.is_set():
                done.wait(0.0002)

    with Journal(folder, segment_bytes_max=3_000, fsync=fsync) as journal:

        def handler(*_: object) -> None:
            call(journal, f"signal-{len(ticks)}")
            ticks.append("")

        before = signal.signal(signal.SIGUSR1, handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        number = 0
        try:
            while len(ticks) < 300:
                call(journal, f"main-{number}")
                number += 1
        finally:
            done.set()
            thread.join()
            signal.signal(signal.SIGUSR1, before)

    expected = [*(f"main-{n}" for n in range(number)), *(f"signal-{n}" for n in range(len(ticks)))]
    assert sorted(written(folder)) == sorted(expected)
    assert journal.state().problems == {}


def test_a_finaliser_only_queues_and_the_next_write_writes(journal, folder):
    class Stream:
        def __del__(self) -> None:
            journal.defer("a", event("a"))

    journal.opened("a", opened("a"))
    stream = Stream()
    stream.me = stream  # only the garbage collector can end it
    del stream
    gc.collect()
    queued = written(folder)
    call(journal, "b")

    assert queued == []
    assert sorted(written(folder)) == ["a", "b"]


def test_what_finalisers_queued_is_written_at_close(journal, folder):
    journal.opened("a", opened("a"))
    journal.defer("a", event("a"))
    journal.close()

    assert [document["kind"] for document in documents(segments(folder)[0])] == ["segment", "opened", "event", "sealed"]


# ---- fork ----


def test_a_child_writes_its_own_segment_and_leaves_the_parents_calls_to_the_parent(journal, folder):
    journal.opened("parents", opened("parents"))

    def in_child() -> None:
        journal.ended("parents", event("parents", status="estimated"))
        call(journal, "childs")
        journal.close()

    child = fork(in_child)
    assert wait(child) == 0
    journal.ended("parents", event("parents"))

    assert sorted(written(folder)) == ["childs", "parents"]
    headers = [documents(path)[0]["pid"] for path in segments(folder)]
    assert sorted(headers) == sorted([os.getpid(), child])


def test_a_childs_exit_does_not_unlock_the_parents_segment(journal, folder):
    """Else another process would take the parent for dead."""
    from token_meter.locks import close_owned, lock_now, open_owned

    call(journal, "a")
    wait(fork(lambda: None))

    descriptor = open_owned(segments(folder)[0], os.O_RDWR)
    assert not lock_now(descriptor)
    close_owned(descriptor)


def test_a_living_child_does_not_keep_its_dead_parents_segment_locked(folder):
    process = start(
        """
        import sys, time
        journal = Journal(sys.argv[1])
        call(journal, "a")
        wait(fork(lambda: (print(os.getpid(), flush=True), time.sleep(25))))
        """,
        folder,
    )
    assert process.stdout is not None and process.stderr is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        from token_meter.locks import close_owned, lock_now, open_owned

        descriptor = open_owned(segments(folder)[0], os.O_RDWR)
        assert lock_now(descriptor)
        close_owned(descriptor)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
        process.stderr.close()


def test_forking_while_other_threads_write_deadlocks_nobody(folder):
    out = run(
        """
        import sys, threading
        journal = Journal(sys.argv[1], segment_bytes_max=2_000, fsync="always")
        stop = False
        def work(name):
            number = 0
            while not stop:
                call(journal, f"thread-{name}-{number}")
                number += 1
        threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in range(3)]
        for thread in threads: thread.start()
        children = []
        for number in range(40):
            children.append(fork(lambda: (call(journal, f"child-{number}"), journal.close())))
        print(sum(wait(child) for child in children))
        stop = True
        for thread in threads: thread.join()
        journal.close()
        """,
        folder,
    )

    ids = written(folder)
    assert out.strip() == "0"
    assert len(ids) == len(set(ids))
    assert {f"child-{number}" for number in range(40)} <= set(ids)


# ---- a disk that does not take it ----


def test_a_full_disk_loses_nothing_and_leaves_one_torn_line(folder):
    """A real short write: the kernel takes a part of the line, then nothing."""
    out = run(
        """
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(sys.argv[1])
        call(journal, "before")
        size = segments(sys.argv[1])[0].stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3 * len(opened("waits-0")) + 10, resource.RLIM_INFINITY))
        for number in range(50):
            call(journal, f"waits-{number}")
        print(journal.pending > 40, journal.lost)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        call(journal, "after")
        print(journal.pending, journal.lost)
        journal.close()
        """,
        folder,
    )
    raw = segments(folder)[0].read_bytes().splitlines()

    bad = [each for each in raw if not each.endswith(b"}")]
    ids = [each for each in raw if each.startswith(b'{"kind":"event"') and each.endswith(b"}")]
    assert out.split() == ["True", "0", "0", "0"]
    assert len(bad) == 1
    assert len(ids) == len(set(ids)) == 52
    assert raw[-1] == b'{"kind":"sealed"}'


def test_a_write_cut_between_two_events_repeats_neither(folder):
    run(
        """
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(sys.argv[1])
        journal.opened("a", opened("a"))
        size = segments(sys.argv[1])[0].stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + len(event("a")) + 10, resource.RLIM_INFINITY))
        journal.ended("a", event("a") + event("b", call="a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.close()
        """,
        folder,
    )
    raw = segments(folder)[0].read_bytes().splitlines(keepends=True)

    assert raw[2:] == [event("a"), event("b", call="a")[:10] + b"\n", event("b", call="a"), b'{"kind":"sealed"}\n']


def test_a_really_full_file_system_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "256k"):
        filler = disk / "filler"
        with Journal(disk / "journal", segment_bytes_max=30_000) as journal:
            call(journal, "before")
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4_096)
            for number in range(300):
                call(journal, f"waits-{number}")
            waiting = journal.pending
            filler.unlink()
            journal.maintain()
            left = journal.pending, journal.lost
        ids = [
            each
            for path in segments(disk / "journal")
            for each in path.read_bytes().splitlines()
            if each.startswith(b'{"kind":"event"') and each.endswith(b"}")
        ]

    assert waiting > 0
    assert left == (0, 0)
    assert len(ids) == len(set(ids)) == 301


def test_when_memory_is_full_too_the_loss_is_counted_and_loud(folder, caplog):
    folder.mkdir()
    journal = Journal(folder, pending_max=10)
    (folder / "segments").rmdir()
    (folder / "segments").write_text("in the way")
    with caplog.at_level(logging.ERROR, "token_meter"):
        for number in range(15):
            call(journal, f"{number}")
    state = journal.state()
    (folder / "segments").unlink()
    journal.maintain()
    journal.close()

    assert (state.pending, state.lost) == (10, 5)
    assert "events lost" in caplog.text
    assert written(folder) == [f"{number}" for number in range(10)]


def test_a_folder_that_becomes_read_only_keeps_lines_waiting(tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        journal = Journal(disk / "journal")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        call(journal, "a")
        waiting = journal.pending, journal.lost
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        call(journal, "b")
        journal.close()
        ids = written(disk / "journal")

    assert waiting == (1, 0)
    assert ids == ["a", "b"]


def test_a_read_only_folder_is_refused_at_the_start(tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        with pytest.raises(JournalError, match="Read-only"):
            Journal(disk / "journal")


def test_the_end_of_a_call_needs_no_line_for_its_opening_while_the_disk_is_full(folder):
    journal = Journal(folder, pending_max=1)
    (folder / "segments").rmdir()
    (folder / "segments").write_text("in the way")
    journal.opened("a", opened("a"))
    journal.ended("a", event("a"))
    (folder / "segments").unlink()
    journal.close()

    assert (written(folder, "opened"), written(folder)) == ([], ["a"])


# ---- files that vanish ----


def test_a_deleted_segment_is_written_again_byte_for_byte(journal, folder):
    journal.opened("a", opened("a"))
    path = segments(folder)[0]
    before = path.read_bytes()
    path.unlink()
    journal.maintain()
    restored = path.read_bytes()
    journal.ended("a", event("a"))

    assert restored == before
    assert path.read_bytes() == before + event("a")
    assert [kind["what"] for kind in read_problems(folder)] == ["journal segment"]


def test_a_deleted_folder_is_made_again(journal, folder):
    import shutil

    call(journal, "a")
    shutil.rmtree(folder)
    journal.maintain()
    call(journal, "b")

    assert written(folder) == ["a", "b"]


def test_a_descriptor_closed_by_other_code_never_receives_a_line_meant_for_us(journal, folder, tmp_path):
    call(journal, "before")
    journal.opened("a", opened("a"))
    descriptor = next(number for number in range(3, 1_000) if _is_open_at(number, segments(folder)[0]))
    os.close(descriptor)
    stranger = os.open(tmp_path / "stranger", os.O_RDWR | os.O_CREAT)
    assert stranger == descriptor
    journal.maintain()
    journal.ended("a", event("a"))
    journal.close()

    assert (tmp_path / "stranger").read_bytes() == b""
    os.fstat(stranger)  # and it is still open
    os.close(stranger)
    assert written(folder) == ["before", "a"]


def test_a_closed_descriptor_is_noticed_by_the_next_write(journal, folder):
    call(journal, "before")
    os.close(next(number for number in range(3, 1_000) if _is_open_at(number, segments(folder)[0])))
    call(journal, "a")

    assert written(folder) == ["before", "a"]
    assert journal.pending == 0


def _is_open_at(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


# ---- fsync ----


@pytest.mark.parametrize(
    ("policy", "in_call", "in_background"), [("always", 20, 0), ("interval", 0, 1), ("never", 0, 0)]
)
def test_when_lines_are_forced_to_disk(folder, monkeypatch, policy, in_call, in_background):
    forced = []
    monkeypatch.setattr("token_meter.writer.datasync", lambda descriptor: forced.append(os.fdatasync(descriptor)))
    with Journal(folder, fsync=policy) as journal:
        for number in range(20):
            call(journal, f"{number}")
        after_calls = len(forced)
        journal.maintain()
        journal.maintain()
        after_turns = len(forced)

    assert (after_calls, after_turns - after_calls) == (in_call, in_background)


# ---- problems ----


def test_a_problem_is_told_once_per_kind_then_at_ten(journal, folder, caplog):
    with caplog.at_level(logging.ERROR, "token_meter"):
        for _ in range(12):
            journal.problem("tap", "odd answer")
        journal.problem("other", "else")

    kinds = {kind["what"]: (kind["count"], kind["error"]) for kind in read_problems(folder)}
    assert kinds == {"tap": (10, "odd answer"), "other": (1, "else")}
    assert len(caplog.records) == 3
    assert journal.state().problems == {"tap": 12, "other": 1}


def test_what_an_exception_quotes_is_not_kept(journal, folder):
    """Its text may be a prompt or a key."""
    try:
        int("my secret prompt")
    except ValueError as error:
        journal.problem("tap", error)

    assert "secret" not in (folder / "problems.jsonl").read_text()
    assert "ValueError at test_journal.py" in read_problems(folder)[0]["error"]


def test_the_file_of_problems_is_begun_again_when_it_is_large(journal, folder):
    entry = b'{"what":"earlier","process":"x","error":"%s","count":1}\n' % (b"x" * 1_000)
    (folder / "problems.jsonl").write_bytes(entry * ((1 << 20) // len(entry) + 1))
    journal.problem("later", "else")

    assert (folder / "problems.jsonl").stat().st_size < 1_000
    assert {kind["what"]: kind["count"] for kind in read_problems(folder)} == {"earlier": 1, "later": 1}


def test_problems_stay_bounded(journal, folder):
    for number in range(1_000):
        journal.problem(f"kind {number}", "x" * 5_000)

    assert len(journal.state().problems) <= 201
    assert sum(path.stat().st_size for path in folder.glob("problems*")) < 300_000
