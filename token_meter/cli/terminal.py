"""Tables on a terminal or in a log: one rule below the heading, one line above the total, no frame.

On a terminal that is too narrow, headings of numbers break, names break where they may, and what is expendable goes.
Elsewhere nothing is ever cut or broken: two customers must not look like one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from token_meter.cli.exits import ReaderGone
from token_meter.cli.tables import Column, Row, Table
from token_meter.cli.text import printable

WIDTH_OF_NO_TERMINAL: Final = 10_000
GAP: Final = 2
NAME_WIDTH_MIN: Final = 8
_BREAKS: Final = re.compile(r"[^-_/.:@ ]*[-_/.:@ ]*")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would leave with 1, as if the command had failed."""
        raise ReaderGone


def console(stream: Literal["out", "error"] = "out") -> Console:
    """A Rich console: colours only on a terminal, and not with NO_COLOR."""
    file = sys.stderr if stream == "error" else sys.stdout
    width = None if file.isatty() else WIDTH_OF_NO_TERMINAL
    return _Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def rich_table(table: Table, width: int) -> RichTable:
    """The table, made to fit the width if that is possible."""
    columns, widths = _fitted(table, width)
    made = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        made.add_column(
            Text(_heading(column, widths)),
            justify="right" if column.number else "left",
            style="dim" if column.quiet else "",
            no_wrap=column.unbroken,
            overflow="fold",
        )
    for row in table.rows:
        made.add_row(*(_cell(table, row, column, widths) for column in columns))
    if table.total:
        made.add_section()
        made.add_row(*(_cell(table, table.total, column, widths) for column in columns), style="bold")
    return made


def _cell(table: Table, row: Row, column: Column, widths: Mapping[str, int]) -> Text:
    shown = broken(printable(table.text(row, column)), widths.get(column.name))
    return Text(shown, style="dim" if row.get(column.name) in (None, 0) else "")


def _heading(column: Column, widths: Mapping[str, int]) -> str:
    heading = printable(column.heading)
    return heading.replace(" ", "\n") if widths and column.number else broken(heading, widths.get(column.name))


def broken(text: str, width: int | None) -> str:
    """The text in lines of at most `width`, broken behind a hyphen or the like where it can be."""
    if width is None or len(text) <= width:
        return text
    lines = [""]
    for piece in _BREAKS.findall(text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _fitted(table: Table, width: int) -> tuple[Sequence[Column], dict[str, int]]:
    """Which columns are shown, and how wide the names among them may be; no widths where all has room."""
    columns = list(table.columns)
    for expendable in (False, True):
        if expendable:
            columns = [column for column in columns if not column.expendable]
        natural = {column.name: _natural(table, column, compact=False) for column in columns}
        if sum(natural.values()) + GAP * (len(columns) - 1) <= width:
            return columns, {}
    names = {column.name: natural[column.name] for column in columns if not column.unbroken}
    fixed = sum(_natural(table, column, compact=True) for column in columns if column.unbroken)
    return columns, shared(names, width - fixed - GAP * (len(columns) - 1))


def _natural(table: Table, column: Column, *, compact: bool) -> int:
    heading = column.heading.split(" ") if compact else [column.heading]
    cells = (printable(table.text(row, column)) for row in table.every_row())
    return max(len(each) for each in (*heading, *cells))


def shared(wanted: Mapping[str, int], room: int) -> dict[str, int]:
    """Widths for columns that want more than there is: the narrow ones get what they want, the rest share."""
    given: dict[str, int] = {}
    for left, name in zip(range(len(wanted), 0, -1), sorted(wanted, key=lambda each: wanted[each]), strict=True):
        given[name] = max(min(wanted[name], room // left), NAME_WIDTH_MIN)
        room -= given[name]
    return given
