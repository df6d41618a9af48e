"""The sink that writes files by day: every format read back, whole files at any moment, each event once whatever happens."""

from __future__ import annotations

import csv
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pyarrow.compute as arrow_compute
import pyarrow.dataset as arrow_dataset
import pyarrow.parquet as parquet
import pytest

from token_meter.errors import MissingExtra, Rejected, Retry
from token_meter.event import MeterEvent, parse_time
from token_meter.sinks import FilesSink
from token_meter.sinks.file_formats import COLUMNS, JSON_TEXTS, TEXTS, unguarded
from token_meter.testing.builders import full_event, make_event, make_events
from token_meter.testing.conformance import SinkConformance
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

FORMATS = ("jsonl", "csv", "parquet")
DAY = "date=2026-01-01"


def from_row(row):
    """An event from a row of the flat table."""
    quantities = {name: int(row[name]) for name in TOKEN_TYPES if int(row[name])}
    documents = {name: json.loads(row[name]) for name in JSON_TEXTS if row[name] is not None}
    duration = None if row["duration_ms"] is None else int(row["duration_ms"])
    texts = {name: row[name] for name in ("id", *TEXTS) if row[name] is not None}
    own = {"time": row["time"], "duration_ms": duration, "usage": Usage(quantities), "schema": int(row["schema"])}
    return MeterEvent(**{**texts, **documents, **own, "anomalies": tuple(documents["anomalies"])})


def read_jsonl(path):
    return [MeterEvent.from_json(json.loads(line)) for line in path.read_bytes().splitlines()]


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            {name: unguarded(text) or None for name, text in row.items()} for row in csv.DictReader(file, strict=True)
        ]
    return [from_row({**row, "time": parse_time(row["time"])}) for row in rows]


def read_parquet(path):
    with parquet.ParquetFile(path) as file:
        return [from_row(row) for row in file.read().to_pylist()]


READERS = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}


def parts(folder):
    """What a reader of the folder finds, in order."""
    return sorted(path for path in folder.glob("date=*/*") if not path.name.startswith("."))


def read(folder):
    return [event for path in parts(folder) for event in READERS[path.suffix[1:]](path)]


def ids(folder):
    return [event.id for event in read(folder)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "usage"


@pytest.fixture(params=FORMATS)
def format(request):
    return request.param


class Conformance(SinkConformance):
    deduplicates = True
    refused = make_event(99, raw_usage={"cost": Decimal("0.1")})

    @pytest.fixture
    def sink(self, folder, format):
        self.folder = folder
        yield self.make(folder, format)

    def received(self, sink):
        return read(self.folder)

    @contextmanager
    def broken(self, sink):
        """The disk with the folder is not mounted any more."""
        sink.send([make_event(1000)])
        away = self.folder.with_name("away")
        self.folder.rename(away)
        yield
        assert not self.folder.exists()
        away.rename(self.folder)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


class TestConformance(Conformance):
    def make(self, folder, format):
        return FilesSink(folder, format=format)


class TestConformanceWithSmallParts(Conformance):
    def make(self, folder, format):
        return FilesSink(folder, format=format, part_events=3, fsync="never")


def test_events_stand_in_the_folder_of_their_day_in_utc(folder, format):
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    times = [
        midnight - timedelta(microseconds=1),
        midnight,
        datetime(2026, 1, 2, 1, 59, 59, tzinfo=timezone(timedelta(hours=2))),
        datetime(2026, 1, 1, 23, 0, tzinfo=timezone(timedelta(hours=-5))),
        datetime(2026, 1, 2, 12, 0),  # noqa: DTZ001 - without a zone it is UTC, as in the JSON form
    ]
    sink = FilesSink(folder, format=format)
    sink.send([make_event(number, time=time) for number, time in enumerate(times, start=1)])

    found = {path.relative_to(folder).as_posix(): [e.id for e in READERS[format](path)] for path in parts(folder)}
    assert found == {
        f"date=2026-01-01/part-000001.{format}": ["evt_1", "evt_3"],
        f"date=2026-01-02/part-000001.{format}": ["evt_2", "evt_4", "evt_5"],
    }
    assert {event.id: event.time for event in read(folder)}["evt_4"] == datetime(2026, 1, 2, 4, tzinfo=UTC)


def test_files_are_private_whatever_they_are(folder, format):
    FilesSink(folder, format=format).send(make_events(3))

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert {modes.pop(DAY), stat.S_IMODE(folder.stat().st_mode)} == {0o700}
    assert modes == dict.fromkeys([f"part-000001.{format}", f".ids-{format}.sqlite3", ".token-meter.lock"], 0o600)


def test_parts_are_filled_and_then_left_alone(folder, format):
    sink = FilesSink(folder, format=format, part_events=4)
    sink.send(make_events(3))
    sink.send([make_event(4)])
    first = parts(folder)[0].stat()
    sink.send([make_event(5)])
    sink.send(make_events(12)[5:])
    sink.send([make_event(13)])

    assert [[event.id for event in READERS[format](path)] for path in parts(folder)] == [
        ["evt_1", "evt_2", "evt_3", "evt_4"],
        ["evt_5"],
        [f"evt_{number}" for number in range(6, 13)],
        ["evt_13"],
    ]
    now = parts(folder)[0].stat()
    assert (now.st_ino, now.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def test_batches_that_are_cut_differently_after_a_restart_add_only_what_is_new(folder, format):
    FilesSink(folder, format=format, part_events=4).send(make_events(7))
    again = FilesSink(folder, format=format, part_events=4)
    for start, end in ((0, 2), (2, 9), (6, 11), (0, 11)):
        again.send(make_events(11)[start:end])
    again.send([make_event(12), make_event(12), make_event(3)])

    assert sorted(ids(folder)) == sorted(f"evt_{number}" for number in range(1, 13))


def test_a_batch_that_is_already_there_writes_nothing(folder, format):
    sink = FilesSink(folder, format=format)
    sink.send(make_events(5))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    sink.send(make_events(5)[1:3])

    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_first_of_two_different_events_with_one_id_stays(folder, format):
    sink = FilesSink(folder, format=format)
    sink.send([make_event(1, customer="acme")])
    sink.send([make_event(1, customer="globex")])

    assert [(event.id, event.customer) for event in read(folder)] == [("evt_1", "acme")]


def test_a_placeholder_and_the_event_it_stood_for_both_have_a_row_once(folder, format):
    placeholder = make_event(1, status="unmetered", usage=Usage())
    batch = [placeholder, make_event(1), make_event(2, status="unmetered", usage=Usage(input=1))]
    for sink in (FilesSink(folder, format=format), FilesSink(folder, format=format)):
        sink.send(batch[:1])
        sink.send(batch)
        sink.send(batch[::-1])
    (folder / DAY / f".ids-{format}.sqlite3").unlink()
    FilesSink(folder, format=format).send(batch)

    assert [(event.id, event.status) for event in read(folder)] == [
        ("evt_1", "unmetered"),
        ("evt_1", "complete"),
        ("evt_2", "unmetered"),
    ]


DERIVED = "0f8e1d2c-3b4a-8998-8776-6554433221ff"
"""The id of an object that may be read on several days, as the recorder derives it."""


@pytest.mark.parametrize("id", [DERIVED, "job-4711"])
def test_what_is_read_or_recorded_again_on_another_day_is_not_written_again(folder, format, id):
    first = make_event(1, id=id, time=datetime(2026, 1, 1, 23, 59, tzinfo=UTC))
    again = make_event(2, id=id, time=datetime(2026, 1, 2, 0, 1, tzinfo=UTC))
    much_later = make_event(3, id=id, time=datetime(2026, 1, 20, tzinfo=UTC))
    FilesSink(folder, format=format).send([first])
    FilesSink(folder, format=format).send([again, make_event(4, time=again.time)])
    FilesSink(folder, format=format).send([much_later, again, first])

    assert ids(folder) == [id, "evt_4"]


def test_an_id_minted_on_the_day_of_its_event_is_looked_up_in_that_day_only(folder):
    """Other days are not even opened: their index may be broken."""
    minted = "019b775b-d000-7aaa-8bbb-cccccccccccc"
    sink = FilesSink(folder)
    sink.send([make_event(1, time=datetime(2025, 12, 30, tzinfo=UTC))])
    (folder / "date=2025-12-30" / ".ids-jsonl.sqlite3").write_bytes(b"no database" * 100)
    sink.send([make_event(2, id=minted, time=datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC))])
    with pytest.raises(Retry, match="not a database"):
        sink.send([make_event(3, id=minted, time=datetime(2026, 1, 2, tzinfo=UTC))])
    sink.send([make_event(3, id=minted, time=datetime(2026, 1, 2, tzinfo=UTC))])

    assert ids(folder) == ["evt_1", minted]


def test_ids_may_be_long_and_strange(folder, format):
    strange = ["=1+1", "'", "", "x" * 500, "x" * 501, "x" * 64, "日本語" * 30, "a\r\nb", 'a"b', "a,b", " a ", "\0"]
    batch = [make_event(1, id=id) for id in strange if id]
    for sink in (FilesSink(folder, format=format), FilesSink(folder, format=format)):
        sink.send(batch)
        (folder / DAY / f".ids-{format}.sqlite3").unlink()

    assert ids(folder) == [id for id in strange if id]


# ---- the index is a cache ----


def test_without_its_index_the_folder_is_read(folder, format):
    FilesSink(folder, format=format, part_events=2).send(make_events(2))
    FilesSink(folder, format=format, part_events=2).send(make_events(4))
    (folder / DAY / f".ids-{format}.sqlite3").unlink()
    FilesSink(folder, format=format, part_events=2).send(make_events(5))

    assert ids(folder) == [f"evt_{number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be taken for one" * 20, b"SQLite format 3\0" * 99]
)
def test_a_broken_index_is_made_anew(folder, format, content):
    sink = FilesSink(folder, format=format)
    sink.send(make_events(3))
    (folder / DAY / f".ids-{format}.sqlite3").write_bytes(content)
    with pytest.raises(Retry, match=r"not a database|malformed"):
        sink.send(make_events(4))
    sink.send(make_events(4))

    assert ids(folder) == [f"evt_{number}" for number in range(1, 5)]


def test_a_part_that_was_taken_away_is_written_again_when_its_events_come_again(folder, format):
    sink = FilesSink(folder, format=format, part_events=2)
    for start in (0, 2, 4):
        sink.send(make_events(6)[start : start + 2])
    parts(folder)[1].unlink()
    sink.send(make_events(6))

    assert sorted(ids(folder)) == [f"evt_{number}" for number in range(1, 7)]


def test_parts_that_somebody_merged_are_known(folder, format):
    sink = FilesSink(folder, format=format, part_events=2)
    sink.send(make_events(2))
    sink.send(make_events(4)[2:])
    whole = FilesSink(folder.with_name("other"), format=format)
    whole.send(make_events(4))
    (merged,) = parts(folder.with_name("other"))
    for path in parts(folder):
        path.unlink()
    merged.rename(folder / DAY / f"merged.{format}")
    sink.send(make_events(5))
    sink.send(make_events(6))

    assert sorted(ids(folder)) == [f"evt_{number}" for number in range(1, 7)]
    assert [path.stem for path in parts(folder)] == ["merged", "part-000001"]


def test_a_file_that_is_none_of_ours_stops_the_day_and_is_named(folder, format):
    sink = FilesSink(folder, format=format)
    sink.send(make_events(1))
    (folder / DAY / f"notes.{format}").write_text("my notes")
    (folder / DAY / "notes.txt").write_text("these do not matter")
    with pytest.raises(Retry, match=rf"notes\.{format} is no {format} file of meter events; move it elsewhere"):
        sink.send(make_events(2))
    (folder / DAY / f"notes.{format}").unlink()
    sink.send(make_events(2))

    assert sorted(event.id for event in READERS[format](folder / DAY / f"part-000001.{format}")) == ["evt_1", "evt_2"]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_part_with_the_columns_of_an_older_version_is_not_mixed_with_new_rows(folder, format, monkeypatch):
    from token_meter.sinks import file_formats

    older = [name for name in COLUMNS if name != "images"]
    monkeypatch.setattr(file_formats, "COLUMNS", older)
    monkeypatch.setattr(file_formats, "_HEADER", ",".join(older).encode() + b"\r\n")
    monkeypatch.setattr(file_formats, "cells", lambda event, now=file_formats.cells: now(event)[:-2] + now(event)[-1:])
    FilesSink(folder, format=format).send(make_events(2))
    monkeypatch.undo()
    FilesSink(folder, format=format).send(make_events(3))

    first, second = parts(folder)
    assert COLUMNS[-2:] == ("images", "units")
    assert [event.id for event in READERS[format](second)] == ["evt_3"]
    if format == "csv":
        assert first.read_text().splitlines()[0] == ",".join(older)
    else:
        assert parquet.read_schema(first).names == older


def test_only_the_days_used_last_keep_an_index(folder, monkeypatch):
    monkeypatch.setattr("token_meter.sinks.files.INDEXES_MAX", 2)
    sink = FilesSink(folder, fsync="never")
    days = [make_event(day, time=datetime(2026, 1, day, tzinfo=UTC)) for day in range(1, 6)]
    for number, event in enumerate([*days, days[1]]):
        sink.send([event])
        for path in folder.glob("date=*/.ids*"):
            if event.time.strftime("%Y-%m-%d") in str(path):
                os.utime(path, (number, number))

    assert sorted(path.parent.name for path in folder.glob("date=*/.ids*")) == ["date=2026-01-02", "date=2026-01-05"]
    assert ids(folder) == [f"evt_{day}" for day in range(1, 6)]


# ---- what the formats hold ----


def test_csv_is_what_rfc_4180_says(folder):
    odd = make_event(2, customer='a "b", c\r\nd', dimensions={"ключ": "значение"}, duration_ms=0)
    FilesSink(folder, format="csv").send([make_event(1), odd])

    text = parts(folder)[0].read_bytes().decode("utf-8")
    header, first, *_ = text.split("\r\n")
    assert header == ",".join(COLUMNS)
    assert first == (
        "evt_1,2026-01-01T00:00:01.000000Z,acme,openai,openai,gpt-5-2025-08-07,gpt-5,chat,complete,llm_tokens,live,"
        "chatcmpl-1,,,api.openai.com,,{},{},[],,1,3,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0"
    )
    assert '"a ""b"", c\r\nd"' in text and '"{""ключ"":""значение""}"' in text
    assert text.endswith("\r\n") and not text.startswith("\ufeff")
    assert read(folder) == [make_event(1), odd]


DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "''=1", "＝1", '=HYPERLINK("http://x";"y")']
HARMLESS = ["'", "'tis", "1-1", "a=b", " =1"]


def test_csv_text_never_begins_like_a_formula_and_comes_back_exactly(folder):
    batch = [make_event(number, customer=text, model=text) for number, text in enumerate(DANGEROUS + HARMLESS, start=1)]
    FilesSink(folder, format="csv").send(batch)

    with parts(folder)[0].open(encoding="utf-8", newline="") as file:
        cells = [row["customer"] for row in csv.DictReader(file)]
    assert cells == [f"'{text}" for text in DANGEROUS] + HARMLESS
    assert [event.customer for event in read(folder)] == DANGEROUS + HARMLESS


def test_quantities_are_exact_integers_in_every_format(folder, format):
    usage = Usage({name: QUANTITY_MAX - place for place, name in enumerate(TOKEN_TYPES)})
    FilesSink(folder, format=format).send([make_event(1, usage=usage, duration_ms=QUANTITY_MAX)])

    (event,) = read(folder)
    assert (event.usage, event.duration_ms) == (usage, QUANTITY_MAX)


def test_parquet_has_types_and_a_stable_schema(folder):
    FilesSink(folder, format="parquet").send([full_event(1)])

    schema = parquet.read_schema(parts(folder)[0])
    types = {field.name: str(field.type) for field in schema}
    expected = dict.fromkeys(COLUMNS, "int64") | dict.fromkeys((*TEXTS, *JSON_TEXTS, "id"), "string")
    assert types == expected | {"time": "timestamp[us, tz=UTC]"}
    assert tuple(schema.names) == COLUMNS and len(set(COLUMNS)) == len(COLUMNS)


def test_the_columns_are_those_that_are_documented():
    documented = (
        "id", "time", "customer", "provider", "publisher", "model", "model_requested", "operation", "status", "meter",
        "mode", "response_id", "corrects", "estimator", "host", "duration_ms", "dimensions", "price_context",
        "anomalies", "raw_usage", "schema", *TOKEN_TYPES,
    )  # fmt: skip

    assert documented == COLUMNS


def test_json_lines_are_the_stable_json_form(folder):
    FilesSink(folder).send([full_event(1), make_event(2)])

    lines = parts(folder)[0].read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [full_event(1).to_json(), make_event(2).to_json()]


def other_day():
    return [make_event(number, time=datetime(2026, 1, 2, tzinfo=UTC), customer="globex") for number in (4, 5)]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_the_folder_is_one_partitioned_data_set(folder, format):
    FilesSink(folder, format=format, part_events=2).send(make_events(3))
    FilesSink(folder, format=format).send(other_day())

    data = arrow_dataset.dataset(folder, format=format, partitioning="hive")
    totals = (
        data.to_table(columns=["date", "customer", "input"])
        .group_by(["date", "customer"])
        .aggregate([("input", "sum")])
    )
    assert sorted(totals.to_pylist(), key=lambda row: row["date"]) == [
        {"date": "2026-01-01", "customer": "acme", "input_sum": 9},
        {"date": "2026-01-02", "customer": "globex", "input_sum": 6},
    ]
    one_day = data.to_table(filter=arrow_compute.field("date") == "2026-01-02")
    assert one_day.column("id").to_pylist() == ["evt_4", "evt_5"]


@pytest.mark.parametrize(
    ("format", "reader"), [("jsonl", "read_json"), ("csv", "read_csv"), ("parquet", "read_parquet")]
)
def test_duckdb_reads_it(folder, format, reader):
    duckdb = pytest.importorskip("duckdb")
    FilesSink(folder, format=format).send(make_events(3))
    FilesSink(folder, format=format).send(other_day())

    quantity = "usage.input" if format == "jsonl" else "input"
    query = f"select date::varchar, sum({quantity})::bigint from {reader}('{folder}/*/*.{format}', hive_partitioning = true) group by 1 order by 1"
    assert duckdb.sql(query).fetchall() == [("2026-01-01", 9), ("2026-01-02", 6)]


# ---- what cannot be written ----


BAD_FOR_ALL = [
    {"price_context": {"x": {1, 2}}},
    {"raw_usage": {"n": float("nan")}},
    {"time": None},
]
BAD_FOR_TABLES = [
    {"customer": 5},
    {"model": "\ud800"},
    {"dimensions": {"a": "\ud800"}},
    {"duration_ms": 1.5},
    {"duration_ms": -1},
    {"duration_ms": 2**63},
]


@pytest.mark.parametrize(
    ("format", "fields"),
    [(format, fields) for format in FORMATS for fields in BAD_FOR_ALL + (BAD_FOR_TABLES if format != "jsonl" else [])],
)
def test_what_a_format_cannot_hold_is_rejected_before_anything_is_written(folder, format, fields):
    bad = [make_event(number, **fields) for number in (2, 4)]
    sink = FilesSink(folder, format=format)
    with pytest.raises(Rejected, match=f"cannot be written as {format}") as caught:
        sink.send([make_event(1), bad[0], make_event(3), bad[1]])

    assert [event.id for event in caught.value.events] == ["evt_2", "evt_4"]
    assert not folder.exists()


def test_a_csv_field_that_no_reader_takes_is_rejected(folder):
    sink = FilesSink(folder, format="csv")
    sink.send([make_event(1, dimensions={"note": "x" * 131_000})])
    with pytest.raises(Rejected, match="less than 131072 characters"):
        sink.send([make_event(2, dimensions={"note": "x" * 131_072})])

    assert ids(folder) == ["evt_1"]


def test_a_folder_that_cannot_be_made_is_a_retry(tmp_path, format):
    (tmp_path / "file").write_text("")

    with pytest.raises(Retry, match=r"cannot write to .*Not a directory"):
        FilesSink(tmp_path / "file" / "usage", format=format).send(make_events(1))


FULL_DISK = """
import resource, sys
from token_meter.errors import Retry
from token_meter.sinks import FilesSink
from token_meter.testing.builders import make_events

folder, format = sys.argv[1:3]
limit, before, total = map(int, sys.argv[3:])
sink = FilesSink(folder, format=format)
sink.send(make_events(before))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    sink.send(make_events(total)[before - 5 :])
except Retry as problem:
    print("retry", problem)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


LIMITS = [("jsonl", 0), ("jsonl", 1_000), ("jsonl", 30_000), ("csv", 9_000), ("parquet", 9_000)]


@pytest.mark.parametrize(("format", "limit"), LIMITS)
def test_a_full_disk_leaves_nothing_half_and_the_batch_comes_again(folder, format, limit):
    program = [sys.executable, "-c", FULL_DISK, str(folder), format, str(limit), "50", "300"]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    left = ids(folder), list(folder.rglob("*.tmp"))
    FilesSink(folder, format=format).send(make_events(300)[40:])

    assert output.startswith("retry cannot write to")
    assert left == ([f"evt_{number}" for number in range(1, 51)], [])
    assert ids(folder) == [f"evt_{number}" for number in range(1, 301)]


def test_a_part_is_not_written_twice_when_only_the_index_found_no_room(folder):
    """The part of five kilobytes fits, the three pages of the index do not."""
    program = [sys.executable, "-c", FULL_DISK, str(folder), "jsonl", "8191", "10", "11"]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    left = ids(folder)
    FilesSink(folder).send(make_events(12))

    assert output.startswith("retry cannot write to")
    assert left == [f"evt_{number}" for number in range(1, 12)]
    assert ids(folder) == [f"evt_{number}" for number in range(1, 13)]


# ---- killed, forked, several at once ----


KILLED = """
import json, os, signal, sys
from token_meter.sinks import FilesSink
from token_meter.testing.builders import make_events

folder, format, stride = sys.argv[1], sys.argv[2], int(sys.argv[3])

def die_before(step):
    calls = 0

    def deadly(name):
        call = getattr(os, name)

        def counted(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == step:
                if name == "write":
                    call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        setattr(os, name, counted)

    for name in ("open", "write", "fsync", "replace", "close", "mkdir"):
        deadly(name)

def child(step):
    sink = FilesSink(f"{folder}/{step}", format=format, part_events=20)
    sink.send(make_events(15))
    if step == "warm":
        return
    die_before(step)
    sink.send(make_events(18)[10:])
    sink.send(make_events(40)[15:])

child("warm")
codes = []
for step in range(1, 37, stride):
    process = os.fork()
    if process == 0:
        child(step)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(json.dumps(codes))
"""


@pytest.mark.parametrize(("format", "stride"), [("jsonl", 1), ("csv", 2), ("parquet", 3)])
def test_killed_at_any_step_nothing_is_half_lost_or_double(folder, format, stride):
    """Before every call to the operating system that writing makes: the files are whole, and sending again is exact."""
    folder.mkdir()
    steps = range(1, 37, stride)
    program = [sys.executable, "-c", KILLED, str(folder), format, str(stride)]
    codes = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    after = []
    for step in steps:
        after.append(ids(folder / f"{step}"))
        sink = FilesSink(folder / f"{step}", format=format, part_events=20, fsync="never")
        sink.send(make_events(45)[12:])
        sink.send(make_events(20))

    expected = [f"evt_{number}" for number in range(1, 46)]
    killed = codes.count(-signal.SIGKILL)
    assert codes == [-signal.SIGKILL] * killed + [0] * (len(steps) - killed) and 20 < killed * stride < 36
    assert [len(found) for found in after] == sorted(len(found) for found in after)
    assert {len(found) for found in after} == {15, 18, 40}
    assert all(found == expected[: len(found)] for found in after)
    assert all(sorted(ids(folder / f"{step}")) == sorted(expected) for step in steps)


WRITER = """
import sys
from token_meter.sinks import FilesSink
from token_meter.testing.builders import make_events

folder, format, start = sys.argv[1], sys.argv[2], int(sys.argv[3])
sink = FilesSink(folder, format=format, part_events=15, fsync="never")
for at in range(start, start + 30, 3):
    sink.send(make_events(200)[at : at + 6])
"""


def test_several_processes_write_to_one_folder_each_event_once(folder, format):
    """Two write the same events at the same time, a third others, and one reader finds whole files all the while."""
    starts = (0, 0, 20)
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(folder), format, str(start)]) for start in starts]
    looks = []
    while any(process.poll() is None for process in processes):
        found = ids(folder)
        assert len(found) == len(set(found))
        looks.append(len(found))

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(ids(folder)) == sorted(f"evt_{number}" for number in range(1, 54))
    assert looks == sorted(looks)
    assert all(len(READERS[format](path)) <= 15 for path in parts(folder))


FORKING = """
import os, sys, threading
from token_meter.sinks import FilesSink
from token_meter.testing.builders import make_event

sink = FilesSink(sys.argv[1], format=sys.argv[2], fsync="never")
stop = threading.Event()
numbers = iter(range(1000, 100_000))
written = threading.Semaphore(0)

def write():
    while not stop.is_set():
        sink.send([make_event(next(numbers))])
        written.release()

thread = threading.Thread(target=write)
thread.start()
codes = []
for number in range(1, 6):
    for _ in range(3):  # it writes, however busy the machine is
        written.acquire(timeout=30)
    child = os.fork()
    if child == 0:
        sink.send([make_event(number)])
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
thread.join()
print(codes)
"""


def test_a_forked_process_goes_on_writing(folder, format):
    """A thread of the parent writes all the while, so that a fork meets a lock that is held."""
    program = [sys.executable, "-c", FORKING, str(folder), format]
    output = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout

    found = ids(folder)
    assert output == "[0, 0, 0, 0, 0]\n"
    assert {f"evt_{number}" for number in range(1, 6)} <= set(found) and len(found) == len(set(found)) > 10


TORN = """
import os, sys, threading
from token_meter.errors import Retry
from token_meter.sinks import FilesSink, native
from token_meter.testing.builders import make_events

native.FORK_SECONDS_MAX = 0.01
sink = FilesSink(sys.argv[1])
busy, done = threading.Event(), threading.Event()

def work():
    with native.native_work():
        busy.set()
        done.wait()

thread = threading.Thread(target=work)
thread.start()
busy.wait()
child = os.fork()
if child == 0:
    try:
        sink.send(make_events(1))
    except Retry as problem:
        print(problem, flush=True)
    os._exit(0)
os.waitpid(child, 0)
done.set()
thread.join()
sink.send(make_events(2))
"""


def test_a_process_that_was_forked_in_the_middle_of_a_write_says_so_instead_of_hanging(folder):
    ran = subprocess.run([sys.executable, "-c", TORN, str(folder)], capture_output=True, text=True, timeout=60)

    assert "this process was forked in the middle of a write" in ran.stdout and ran.stderr == ""
    assert ids(folder) == ["evt_1", "evt_2"]


def test_a_process_that_keeps_the_lock_is_a_retry(folder, monkeypatch):
    import fcntl

    monkeypatch.setattr("token_meter.sinks.files.LOCK_SECONDS_MAX", 0.02)
    sink = FilesSink(folder)
    sink.send(make_events(1))
    with (folder / ".token-meter.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Retry, match=r"another process keeps \.token-meter\.lock locked"):
            sink.send(make_events(2))
    sink.send(make_events(2))

    assert ids(folder) == ["evt_1", "evt_2"]


def test_events_are_on_the_disk_before_send_returns(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}").rpartition("/")[2])
    )
    FilesSink(folder).send(make_events(1))
    with_fsync = list(synced)
    synced.clear()
    FilesSink(folder, fsync="never").send(make_events(2))

    assert (with_fsync, synced) == ([folder.parent.name, "usage", ".part.jsonl.tmp", DAY], [])


# ---- making one ----


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "xml"}, "jsonl, csv, parquet"),
        ({"part_events": 0}, "part_events"),
        ({"fsync": "sometimes"}, "fsync"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(folder, options, problem):
    with pytest.raises(ValueError, match=problem):
        FilesSink(folder, **options)


def test_parquet_without_its_extra_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(MissingExtra, match=r"pip install 'token-meter\[parquet\]'"):
        FilesSink(folder, format="parquet")


def test_pyarrow_is_loaded_for_parquet_only():
    program = "import sys; from token_meter.sinks import FilesSink; FilesSink('x', format='csv'); FilesSink('x'); print('pyarrow' in sys.modules)"

    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_it_shows_what_it_writes(folder):
    assert repr(FilesSink("usage", format="csv")) == "FilesSink('usage', format='csv', name='files')"
    assert FilesSink(folder, name="lake").name == "lake"
