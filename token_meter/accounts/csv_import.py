"""Importing customers from a CSV file: all of it, or nothing and a list of what is wrong on which line.

The file comes from a spreadsheet that somebody filled in, so everything about it may be wrong, and everything that is
wrong is told at once. What the columns are is said in `csv_columns`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from token_meter.accounts.book import EDITS_MAX, CustomerBook, Edited
from token_meter.accounts.csv_columns import changes_of, column_of, text_of
from token_meter.accounts.customer import Customer, CustomerChanges, changed
from token_meter.errors import InvalidCustomer
from token_meter.ledger.values import Mode

FILE_BYTES_MAX: Final = 64 << 20
"""The largest file that is read."""

ROWS_MAX: Final = EDITS_MAX
"""So many customers one file may have."""

COLUMNS_MAX: Final = 1_000
"""So many columns one file may have; customers may have different ones."""

_TOLD_MAX: Final = 3


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong on one line of the file; the heading is line 1."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class CsvRefused(InvalidCustomer):
    """A file was not imported, and nothing of it; `problems` has every line that is wrong, in their order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        told = [str(problem) for problem in self.problems[:_TOLD_MAX]]
        more = len(self.problems) - len(told)
        super().__init__(f"nothing was imported: {'; '.join(told)}{f'; and {more:,} more lines' if more else ''}")


@dataclass(slots=True)
class Sheet:
    """What a file says: the changes by customer, the line of each, and what is wrong."""

    edits: dict[str, CustomerChanges] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def import_csv(book: CustomerBook, source: str | os.PathLike[str] | bytes, *, mode: Mode = "live") -> Edited:
    """Edit the customers that a CSV file (its path, or what is in it) names, in one transaction.

    Who is not there is entered; an empty cell leaves things as they are. Raises CsvRefused, and changes nothing, when
    anything in it is wrong.
    """
    sheet = _right(read_sheet(source if isinstance(source, bytes) else read_file(source)))
    return _told(sheet, book.edit_many(sheet.edits, mode=mode))


def check_csv(book: CustomerBook | None, source: str | os.PathLike[str] | bytes, *, mode: Mode = "live") -> Edited:
    """What `import_csv` would do now, also to a book that is not made yet (None); changes nothing.

    Raises CsvRefused where that would.
    """
    sheet = _right(read_sheet(source if isinstance(source, bytes) else read_file(source)))
    return Edited(added=tuple(sheet.edits)) if book is None else _told(sheet, book.preview(sheet.edits, mode=mode))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """What is in this file, as far as it is read; `read_sheet` says when that is not all."""
    with Path(path).open("rb") as file:
        return read_stream(file)


def read_stream(stream: BinaryIO) -> bytes:
    """What comes out of this stream, as far as it is read; `read_sheet` says when that is not all."""
    return stream.read(FILE_BYTES_MAX + 1)


def read_sheet(data: bytes) -> Sheet:
    """What this file says, as far as that can be said without looking at the customers who are there."""
    sheet = Sheet()
    try:
        text = _decoded(data)
        rows = _rows(text)
        columns = _columns(*next(rows, (1, [])))
        for line, cells in rows:
            _take(sheet, columns, line, cells)
    except _Unreadable as wrong:
        sheet.problems.append(wrong.problem)
    return sheet


class _Unreadable(Exception):
    """There is no use in reading on."""

    def __init__(self, line: int, reason: str) -> None:
        self.problem = Problem(line, reason)


def _decoded(data: bytes) -> str:
    if len(data) > FILE_BYTES_MAX:
        raise _Unreadable(1, f"the file is larger than {FILE_BYTES_MAX >> 20} MiB: split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise _Unreadable(line, "this is not UTF-8 text: save the file as CSV in UTF-8") from None


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Every row that holds anything, and the line it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            raise _Unreadable(line, f"this is not CSV: {problem}") from None
        if cells is None:
            return
        if any(cells):
            yield line, cells


def _columns(line: int, headings: Sequence[str]) -> list[str]:
    if len(headings) > COLUMNS_MAX:
        raise _Unreadable(line, f"the file has {len(headings):,} columns; at most {COLUMNS_MAX:,} are read")
    try:
        columns = [column_of(heading) for heading in headings]
    except ValueError as problem:
        raise _Unreadable(line, str(problem)) from None
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise _Unreadable(line, f"the column {twice[0]!r} is there twice")
    if "id" not in columns:
        raise _Unreadable(line, "there is no column 'id': the first line names the columns")
    return columns


def _take(sheet: Sheet, columns: Sequence[str], line: int, cells: Sequence[str]) -> None:
    if len(sheet.lines) + len(sheet.problems) >= ROWS_MAX:
        raise _Unreadable(line, f"the file has more than {ROWS_MAX:,} rows: split it")
    if len(cells) < len(columns) or any(cells[len(columns) :]):
        sheet.problems.append(Problem(line, f"the first line names {len(columns)} columns, here are {len(cells):,}"))
        return
    named = dict(zip(columns, cells, strict=False))
    id, changes = text_of(named["id"]), changes_of(named)
    if id in sheet.lines:
        sheet.problems.append(Problem(line, f"customer {id[:80]!r} stands on line {sheet.lines[id]} already"))
        return
    try:
        changed(Customer(id=id), changes)
    except InvalidCustomer as problem:
        sheet.problems.append(Problem(line, str(problem)))
        return
    sheet.edits[id], sheet.lines[id] = changes, line


def _right(sheet: Sheet) -> Sheet:
    if sheet.problems:
        raise CsvRefused(sheet.problems)
    return sheet


def _told(sheet: Sheet, edited: Edited) -> Edited:
    if edited.refused:
        raise CsvRefused([Problem(sheet.lines[id], reason) for id, reason in edited.refused.items()])
    return edited
