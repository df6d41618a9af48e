"""Times, names and widths: the small functions under the commands."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_meter.cli.exits import Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import write_csv
from token_meter.cli.tables import Column, Table
from token_meter.cli.terminal import broken, rich_table, shared
from token_meter.cli.text import age, markdown_safe, printable, spreadsheet_safe, without_passwords

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 10, 25, 12, 30, tzinfo=UTC)  # the day on which Berlin has 25 hours


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", "2026-10-31T23:00Z"),
        ("2026-11", "2026-10-31T23:00Z"),
        ("2026-11-01T09:30", "2026-11-01T08:30Z"),
        ("2026-11-01T09:30Z", "2026-11-01T09:30Z"),
        ("2026-11-01 09:30+05:00", "2026-11-01T04:30Z"),
        ("now", "2026-10-25T12:30Z"),
        ("today", "2026-10-24T22:00Z"),
        ("yesterday", "2026-10-23T22:00Z"),
        ("tomorrow", "2026-10-25T23:00Z"),
        ("30min", "2026-10-25T12:00Z"),
        ("12h", "2026-10-25T00:30Z"),
        ("1d", "2026-10-24T12:30Z"),
        ("2w", "2026-10-11T12:30Z"),
    ],
)
def test_times_are_read_in_the_time_zone(text: str, moment: str) -> None:
    read = read_moment(text, zone=BERLIN, now=NOW)

    assert read is not None and read.astimezone(UTC) == datetime.fromisoformat(moment)


@pytest.mark.parametrize("text", ["", "7", "d", "2026-13", "2026-02-30", "999999w", "-1d", "2026-11-01T25:00"])
def test_what_is_no_time_is_said_with_examples(text: str) -> None:
    with pytest.raises(Failure, match=r"is no time: use one of 2026-11-01"):
        read_moment(text, zone=UTC, now=NOW)


@given(st.text())
def test_printable_text_has_nothing_that_steers_a_terminal(text: str) -> None:
    shown = printable(text)

    assert shown.isprintable() or not {
        sign for sign in shown if not sign.isprintable() and sign not in "\u3000\xa0"
    } & {chr(code) for code in (*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E)}
    shown.encode()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_csv_comes_back_as_it_went_but_for_the_mark_of_formulas(names: list[str]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([[spreadsheet_safe(name)] for name in names])

    read = [row[0] if row else "" for row in csv.reader(io.StringIO(buffer.getvalue(), newline=""))]
    assert [cell.removeprefix("'") if safe != name else cell for cell, name, safe in zip(
        read, names, map(spreadsheet_safe, names), strict=True
    )] == names  # fmt: skip
    number = re.compile(r"[-+]?\d+(\.\d+)?")
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not number.fullmatch(cell) for cell in read)


def test_numbers_in_csv_stay_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("a"), Column("b"), Column("c"), Column("d")]
    write_csv(columns, [{"a": 1234, "b": None, "c": "-", "d": "-10.17"}, {"d": "-1+A1"}])

    assert capsys.readouterr().out == "a,b,c,d\n1234,,'-,-10.17\n,,,'-1+A1\n"


@given(st.text())
def test_a_markdown_cell_stays_one_cell(text: str) -> None:
    cell = markdown_safe(text)

    assert "|" not in cell.replace("\\|", "") and "\n" not in cell


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://bob:p@ss:w/rd@host/db", "postgresql://bob:***@host/db"),
        (
            "postgresql+psycopg://bob:x@host:5432/db?sslmode=require",
            "postgresql+psycopg://bob:***@host:5432/db?sslmode=require",
        ),
        ("postgresql://host/db?user=bob&password=x", "postgresql://host/db?user=bob&password=***"),
        ("usage.db", "usage.db"),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    assert without_passwords(url) == shown


def test_ages() -> None:
    assert [age(each) for each in (-1, 0, 119, 120, 7199, 7200, 172_799, 172_800)] == [
        "0 s", "0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d"
    ]  # fmt: skip


def test_names_break_behind_hyphens() -> None:
    assert broken("claude-sonnet-4-5-20250929", 16) == "claude-sonnet-4-\n5-20250929"
    assert broken("gpt-5", 16) == "gpt-5"


@given(st.dictionaries(st.text(), st.integers(1, 60), min_size=1), st.integers(0, 200))
def test_widths_are_shared_fairly(wanted: dict[str, int], room: int) -> None:
    given_ = shared(wanted, room)

    assert all(given_[name] <= max(wanted[name], 8) for name in wanted)
    assert sum(given_.values()) <= max(room, 8 * len(wanted))
    if sum(wanted.values()) <= room and min(wanted.values()) >= 8:
        assert given_ == wanted


def _drawn(table: Table, width: int) -> list[str]:
    from rich.console import Console

    out = Console(width=width, file=io.StringIO())
    out.print(rich_table(table, width))
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def test_a_narrow_terminal_gets_broken_headings_and_loses_what_is_expendable() -> None:
    columns = [Column("model"), Column("operation", expendable=True), Column("cached input", number=True)]
    table = Table(columns, [{"model": "claude-sonnet-4-5", "operation": "chat", "cached input": 1_000_000}])

    assert _drawn(table, 80)[2].split() == ["claude-sonnet-4-5", "chat", "1,000,000"]
    assert _drawn(table, 28) == [
        "                      cached",
        "model                  input",
        "────────────────────────────",
        "claude-sonnet-4-5  1,000,000",
    ]
    assert _drawn(table, 22)[-2:] == ["claude-     1,000,000", "sonnet-4-5"]
