"""Files from elsewhere: every form of the same records gives the same rows, and nothing that is no record gets lost."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from token_meter.partners import files
from token_meter.partners.base import PartnerError
from token_meter.partners.files import Found, rows

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "n": 1, "text": 'quotes " and \\ and { [ , ] }'},
    {"id": "b", "n": 2, "text": "two\nlines", "inner": {"list": [1, [2, {"x": "]"}]]}},
    {"id": "c", "n": 3, "text": "ünïcode 😀"},
]


def found(path: Path, *, lists: tuple[str, ...] = ("data",)) -> list[Found]:
    return list(rows(path, lists=lists))


def records(path: Path) -> list[Any]:
    """The records of a file in which everything is one."""
    everything = found(path)
    assert [each.problem for each in everything if each.problem] == []
    return [each.record for each in everything]


def lines(made: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(each)}\n" for each in made)


FORMS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "lines": lines,
    "lines, the last without its end": lambda made: lines(made).rstrip("\n"),
    "lines with blank ones": lambda made: "\n\n" + lines(made).replace("\n", "\r\n\r\n"),
    "lines of raw text": lambda made: "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in made),
    "an array": json.dumps,
    "an array, indented": lambda made: json.dumps(made, indent=4),
    "an array per line": lambda made: "".join(f"{json.dumps([each])}\n" for each in made),
    "an object around them": lambda made: json.dumps({"data": made, "total": 3}),
    "an object around them, indented": lambda made: json.dumps({"total": 3, "data": made}, indent=2),
    "an object per page": lambda made: lines([{"data": made[:2]}, {"data": made[2:]}]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
def test_every_form_gives_the_same_records(tmp_path: Path, form: str, packed: bool, mark: str) -> None:
    path = tmp_path / "records"
    data = (mark + FORMS[form](RECORDS)).encode()
    path.write_bytes(gzip.compress(data) if packed else data)

    assert records(path) == RECORDS


def test_one_record_that_an_api_answered_is_one() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"data": RECORDS[0]}, file)
        file.flush()

        assert records(Path(file.name)) == [RECORDS[0]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_is_told_by_its_heading(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "export.csv"
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerows([["id", "n", "text"], *([each["id"], each["n"], each["text"]] for each in RECORDS)])
    path.write_text("\ufeff" + text.getvalue() + "\n", "utf-8", newline="")

    everything = found(path)

    assert [each.record for each in everything] == [
        {"id": each["id"], "n": str(each["n"]), "text": each["text"].replace("\n", "\n")} for each in RECORDS
    ]
    assert [each.number for each in everything] == [2, 3, 5]  # the second takes two lines


def test_bad_lines_are_told_with_their_numbers_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"id":1}\nnot json\n\n{"id":2}\n[1]\n"text"\n{"id":NaN}\n\xff\xfe{\n{"id":3}')

    assert [(each.number, each.record) for each in found(path) if each.record] == [
        (1, {"id": 1}),
        (4, {"id": 2}),
        (9, {"id": 3}),
    ]
    assert [(each.number, each.problem) for each in found(path) if each.problem] == [
        (2, "the line is no JSON: Expecting value at character 1"),
        (5, "1 is no record"),
        (6, "'text' is no record"),
        (7, "the line is no JSON: NaN is no number"),
        (8, "the line is no JSON: it is not UTF-8"),
    ]


def test_a_broken_first_line_does_not_hide_those_that_follow(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('\n{"id": 1,\n{"id": 2}\n', "utf-8")

    assert [(each.number, bool(each.problem)) for each in found(path)] == [(2, True), (3, False)]


def test_bad_elements_of_an_array_are_told_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('[{"id": 1}, {"id": 2 "x"}, 7, {"id": 3}]', "utf-8")

    assert [(each.number, each.problem) for each in found(path) if each.problem] == [
        (2, "the record is no JSON: Expecting ',' delimiter at character 10"),
        (3, "7 is no record"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"id": 1}, {"id"', "the file ends in the middle of a record"),
        ('[{"id": 1},, {"id": 2}]', "a record is missing between two commas"),
        ('[{"id": 1}] {"id": 2}', "something stands outside the array"),
        ('[{"id": 1}] x', "something stands outside the array"),
        ('[{"id": 1}]]', "something stands outside the array"),
    ],
)
def test_a_broken_array_says_from_where_on(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(text, "utf-8")

    assert found(path)[0].record == {"id": 1}
    assert found(path)[1] == Found(2, None, f"{reason}; what follows cannot be read")


def test_a_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    packed = gzip.compress(b"".join(json.dumps({"id": number}).encode() + b"\n" for number in range(20_000)))
    path.write_bytes(packed[: len(packed) // 2])

    everything = found(path)

    assert len(everything) > 1
    assert [each for each in everything if each.problem] == [everything[-1]]
    assert "cut off or damaged" in (everything[-1].problem or "")


@pytest.mark.parametrize(
    ("text", "number", "reason"),
    [
        ("id,n\na,1\nb\n", 3, "has 1 cells under 2 headings"),
        ("id,n\na,1\nb,2,3\n", 3, "has 3 cells under 2 headings"),
        ('id,n\na,1\nb,"2"x\n', 3, "',' expected after '\"'"),
        ('id,n\na,1\nb,"2\nc,3\nd,4\n', 3, "unexpected end of data; lines 3 to 5 cannot be told apart"),
    ],
)
def test_bad_rows_of_a_table_are_told_with_their_lines(tmp_path: Path, text: str, number: int, reason: str) -> None:
    path = tmp_path / "export.csv"
    path.write_text(text, "utf-8")

    assert [each for each in found(path) if each.problem] == [Found(number, None, reason)]


def test_a_cell_that_is_no_utf_8_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes(b"id,n\na,\xff\xfe\n")

    assert found(path) == [Found(2, None, "n is not UTF-8")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"just words\n", "neither JSON nor CSV with a heading"),
        (b"a,b,a\n1,2,3\n", "neither JSON nor CSV with a heading"),
        (b"a,,c\n1,2,3\n", "neither JSON nor CSV with a heading"),
        ("id,n\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"PK\x03\x04\x00\x00", "is no text"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "export"
    path.write_bytes(data)

    with pytest.raises(PartnerError, match=reason):
        found(path)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"\n\n")

    assert found(path) == []


def test_lines_that_are_too_long_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_BYTES_MAX", 100)
    monkeypatch.setattr(files._Lines.next, "__defaults__", (100,))
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"id": 1}}\n{{"id": "{"x" * 5_000}"}}\n{{"id": 3}}\n', "utf-8")

    assert found(path) == [
        Found(1, {"id": 1}),
        Found(2, None, "the line is longer than 100 bytes"),
        Found(3, {"id": 3}),
    ]


def test_a_record_of_an_array_that_is_too_long_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LINE_BYTES_MAX", 100)
    path = tmp_path / "log.json"
    path.write_text(f'[{{"id": 1}}, {{"id": "{"x" * 200_000}"}}]', "utf-8")

    assert found(path) == [
        Found(1, {"id": 1}),
        Found(2, None, "a record is longer than 100 bytes; what follows cannot be read"),
    ]


def test_deep_nesting_is_bad_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"id":1}\n' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "\n", "utf-8")

    assert found(path)[1] == Found(2, None, "the line is nested too deeply")


def test_progress_is_told_in_bytes_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TOLD_BYTES_MIN", 100_000)
    path = tmp_path / "log.jsonl"
    path.write_text(lines(RECORDS * 2_000), "utf-8")
    told: list[int] = []

    list(rows(path, lists=(), moved=told.append))

    assert sum(told) == path.stat().st_size
    assert len(told) >= 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
json_records = st.lists(
    st.dictionaries(st.text(max_size=8), json_values, min_size=1, max_size=5), min_size=1, max_size=6
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=json_records, form=st.sampled_from(["lines", "an array", "an array, indented", "an array per line"]))
def test_whatever_is_written_comes_back(tmp_path: Path, made: list[dict[str, Any]], form: str) -> None:
    path = tmp_path / "records"
    path.write_text(FORMS[form](made), "utf-8")

    assert [each.record for each in rows(path, lists=())] == made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(st.sampled_from('{}[]",:\\ \n1a;\t'), max_size=80).map(str.encode))
def test_whatever_a_file_holds_every_row_is_a_record_or_has_a_problem(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "anything"
    path.write_bytes(data)

    try:
        everything = found(path)
    except PartnerError:
        return

    assert all((each.record is None) == (each.problem is not None) for each in everything)
