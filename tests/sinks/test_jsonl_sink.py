"""The sink that writes JSON lines: whole lines, rotation, full disks, other programs on the same file."""

from __future__ import annotations

import gc
import json
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from decimal import Decimal

import pytest

from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks import JsonlSink
from token_meter.testing.builders import full_event, make_event, make_events
from token_meter.testing.conformance import SinkConformance


def read(path):
    return [MeterEvent.from_json(json.loads(line)) for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


class Conformance(SinkConformance):
    refused = make_event(99, raw_usage={"cost": Decimal("0.1")})

    def received(self, sink):
        return [event for file in sorted(self.folder.iterdir()) for event in read(file)]

    @contextmanager
    def broken(self, sink):
        """The folder is not there."""
        away = self.folder.with_name("away")
        self.folder.rename(away)
        yield
        away.rename(self.folder)


class TestConformance(Conformance):
    @pytest.fixture
    def sink(self, tmp_path):
        self.folder = tmp_path / "out"
        self.folder.mkdir()
        with JsonlSink(self.folder / "events.jsonl") as sink:
            yield sink


class TestConformanceWhileRotating(Conformance):
    @pytest.fixture
    def sink(self, tmp_path):
        self.folder = tmp_path / "out"
        self.folder.mkdir()
        with JsonlSink(self.folder / "events.jsonl", rotate_bytes=1000, fsync="never") as sink:
            yield sink


def test_a_line_is_the_stable_json_form_and_the_file_is_private(path):
    with JsonlSink(path, name="mine") as sink:
        sink.send([full_event(1), make_event(2)])

    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [full_event(1).to_json(), make_event(2).to_json()]
    assert lines[0].startswith(b'{"schema":1,"id":"evt_1","time":"2026-01-01T00:00:01.000000Z","usage":{')
    assert lines[-1] == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sink.name == "mine"


def test_rotation_keeps_every_line_and_only_as_many_files_as_asked_for(path):
    size = len(json.dumps(make_event(1).to_json(), separators=(",", ":"))) + 1
    with JsonlSink(path, rotate_bytes=2 * size + 10) as sink:
        for event in make_events(9):
            sink.send([event])
    everything = {each.name: [event.id for event in read(each)] for each in path.parent.iterdir()}
    with JsonlSink(path, rotate_bytes=2 * size + 10, keep=2) as sink:
        sink.send(make_events(2))

    assert everything == {
        "events.jsonl.000001": ["evt_1", "evt_2"],
        "events.jsonl.000002": ["evt_3", "evt_4"],
        "events.jsonl.000003": ["evt_5", "evt_6"],
        "events.jsonl.000004": ["evt_7", "evt_8"],
        "events.jsonl": ["evt_9"],
    }
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "events.jsonl",
        "events.jsonl.000004",
        "events.jsonl.000005",
    ]


def test_a_batch_larger_than_the_limit_is_written_whole(path):
    (path.parent / "events.jsonl.old").write_text("not one of ours")
    with JsonlSink(path, rotate_bytes=10, keep=0) as sink:
        sink.send(make_events(3))
        sink.send(make_events(2))

    assert [event.id for event in read(path)] == ["evt_1", "evt_2"]
    assert sorted(each.name for each in path.parent.iterdir()) == ["events.jsonl", "events.jsonl.old"]


def test_another_program_may_rename_or_remove_the_file(path):
    with JsonlSink(path) as sink:
        sink.send(make_events(1))
        path.rename(path.with_suffix(".moved"))
        sink.send([make_event(2)])
        path.unlink()
        sink.send([make_event(3)])

    assert [event.id for event in read(path)] == ["evt_3"]
    assert [event.id for event in read(path.with_suffix(".moved"))] == ["evt_1"]


@pytest.mark.parametrize("piece", [b"{", b'{"schema"', b'{"schema":1,"id":"evt_2","ti', b'{"schema":' + b"x" * 200_000])
def test_what_a_crash_left_of_a_line_is_cut_off(path, piece):
    with JsonlSink(path) as sink:
        sink.send(make_events(1))
    with path.open("ab") as file:
        file.write(piece)
    with JsonlSink(path) as sink:
        sink.send([make_event(2)])

    assert read(path) == make_events(2)


def test_somebody_elses_line_is_ended_not_cut(path):
    path.write_bytes(b"# my notes")
    with JsonlSink(path) as sink:
        sink.send(make_events(1))

    head, *lines = path.read_bytes().splitlines()
    assert (head, [json.loads(line)["id"] for line in lines]) == (b"# my notes", ["evt_1"])


def test_what_json_cannot_say_is_rejected_before_anything_is_written(path):
    bad = [make_event(1, price_context={"x": {1, 2}}), make_event(3, raw_usage={"n": float("nan")})]
    with JsonlSink(path) as sink, pytest.raises(Rejected, match="not writable as JSON") as caught:
        sink.send([bad[0], make_event(2), bad[1]])

    assert [event.id for event in caught.value.events] == ["evt_1", "evt_3"]
    assert not path.exists()


FULL_DISK = """
import resource, sys
from token_meter.errors import Retry
from token_meter.sinks import JsonlSink
from token_meter.testing.builders import make_events

path, limit = sys.argv[1], int(sys.argv[2])
with JsonlSink(path) as sink:
    sink.send(make_events(2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        sink.send(make_events(5)[2:])
    except Retry as problem:
        print("retry", problem)
    full = open(path, "rb").read()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sink.send(make_events(5)[2:])
print(full.count(b"\\n"), full.endswith(b"\\n"))
"""


@pytest.mark.parametrize("beyond", [0, 1, 100, 400])
def test_a_full_disk_leaves_no_half_line_and_the_batch_comes_again(path, beyond):
    with JsonlSink(path) as sink:
        sink.send(make_events(2))
    size = path.stat().st_size
    path.unlink()
    program = [sys.executable, "-c", FULL_DISK, str(path), str(size + beyond)]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()

    assert output[0].startswith("retry cannot write") and "File too large" in output[0]
    assert output[1] == "2 True"
    assert read(path) == make_events(5)


def test_a_folder_that_is_not_there_is_a_retry(tmp_path):
    sink = JsonlSink(tmp_path / "nowhere" / "events.jsonl")
    with pytest.raises(Retry, match="No such file"):
        sink.send(make_events(1))
    with pytest.raises(Retry, match="directory"):
        JsonlSink(tmp_path).send(make_events(1))


def test_standard_output_gets_whole_lines(capfdbinary):
    with JsonlSink("-") as sink:
        sink.send(make_events(2))
        sink.send([])

    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["evt_1", "evt_2"]


def test_standard_output_may_be_text_only(capsys, monkeypatch):
    import io

    replaced = io.StringIO()
    monkeypatch.setattr(sys, "stdout", replaced)
    JsonlSink("-").send(make_events(1))

    assert json.loads(replaced.getvalue())["id"] == "evt_1"


def test_a_reader_that_went_away_is_a_retry():
    program = "from token_meter.sinks import JsonlSink; from token_meter.testing.builders import make_events\n"
    program += "import os, sys\nread, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
    program += "try: JsonlSink('-').send(make_events(1))\n"
    program += "except Exception as problem: print(type(problem).__name__, file=sys.stderr); os._exit(0)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.stderr.strip() == "Retry"


def test_two_sinks_on_one_file_do_not_tear_each_others_lines(path):
    program = (
        "import sys\nfrom token_meter.sinks import JsonlSink\nfrom token_meter.testing.builders import make_event\n"
    )
    program += "start = int(sys.argv[2])\n"
    program += "with JsonlSink(sys.argv[1], rotate_bytes=5000, fsync='never') as sink:\n"
    program += "    for number in range(start, start + 100): sink.send([make_event(number), make_event(number + 1000)])"
    processes = [subprocess.Popen([sys.executable, "-c", program, str(path), str(start)]) for start in (1, 101)]
    codes = [process.wait(30) for process in processes]

    files = [each for each in path.parent.iterdir() if each.name.startswith("events.jsonl")]
    ids = sorted(event.id for each in files for event in read(each))
    assert codes == [0, 0]
    assert ids == sorted(f"evt_{number + more}" for number in range(1, 201) for more in (0, 1000))
    assert len(files) > 5 and all(each.stat().st_size <= 5000 for each in files)


def test_sending_after_close_opens_the_file_again(path):
    sink = JsonlSink(path)
    sink.send(make_events(1))
    sink.close()
    sink.send([make_event(2)])
    sink.close()

    assert read(path) == make_events(2)


def test_forgetting_to_close_is_a_warning(path):
    sink = JsonlSink(path)
    sink.send(make_events(1))
    descriptor = sink._file
    with pytest.warns(ResourceWarning, match="unclosed JsonlSink"):
        del sink
        gc.collect()

    with pytest.raises(OSError):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"rotate_bytes": 0}, "rotate_bytes"), ({"keep": -1}, "keep"), ({"fsync": "sometimes"}, "fsync")],
)
def test_options_that_make_no_sense_are_refused_at_once(path, options, problem):
    with pytest.raises(ValueError, match=problem):
        JsonlSink(path, **options)


def test_lines_are_on_the_disk_before_send_returns(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with JsonlSink(path) as sink:
        sink.send(make_events(1))
    with_fsync = synced[-1]
    synced.clear()
    with JsonlSink(path, fsync="never") as sink:
        sink.send(make_events(1))

    assert (with_fsync * 2, synced) == (path.stat().st_size, [])
