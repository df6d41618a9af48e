"""The one place that writes to standard output: a table in four shapes, JSON, and lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.text import markdown_safe, printable, spreadsheet_safe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

WIDTH_OF_NO_TERMINAL: Final = 10_000
"""Piped tables are as wide as they are: cutting a customer's name off would make two of them one."""


class Shape(Enum):
    """How a command shows what it found."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


def chosen_shape(*, json: bool = False, csv: bool = False, markdown: bool = False) -> Shape:
    """The shape that the options ask for. Wrong usage for more than one."""
    asked = [shape for shape, wanted in ((Shape.JSON, json), (Shape.CSV, csv), (Shape.MARKDOWN, markdown)) if wanted]
    if len(asked) > 1:
        raise Failure("choose one of --json, --csv and --markdown", code=WRONG_USAGE)
    return asked[0] if asked else Shape.TABLE


@dataclass(frozen=True, slots=True)
class Column:
    """One column: the name a program reads it by, the title a person does, and how it is set."""

    name: str
    title: str = ""
    number: bool = False
    quiet: bool = False
    fold: bool = False

    @property
    def heading(self) -> str:
        """What stands above it."""
        return self.title or self.name.replace("_", " ")


Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by column name; `total` stands below them. None is shown as `nothing`: a dash, or what it means."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    total: Row | None = None
    title: str = ""
    nothing: str = "-"

    def every_row(self) -> list[Row]:
        """The rows and the total."""
        return [*self.rows, *([self.total] if self.total else [])]


def console(stream: Literal["out", "error"] = "out") -> Console:
    """A Rich console: colours only on a terminal (and not with NO_COLOR), nothing cut off elsewhere."""
    from rich.console import Console

    file = sys.stderr if stream == "error" else sys.stdout
    width = None if file.isatty() else WIDTH_OF_NO_TERMINAL
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def show(table: Table, shape: Shape) -> None:
    """Write a table; JSON is for the caller, who knows what belongs around the rows."""
    if shape is Shape.CSV:
        write_csv(table.columns, table.rows)
    elif shape is Shape.MARKDOWN:
        write("".join(f"{line}\n" for line in markdown_lines(table)))
    else:
        console().print(rich_table(table))


def write(text: str) -> None:
    """Text as it is."""
    sys.stdout.write(text)


def write_json(document: Any) -> None:
    """One JSON document, indented."""
    write(json.dumps(document, indent=2, default=str) + "\n")


def write_json_line(document: Any) -> None:
    """One JSON document on one line, at once."""
    write(json.dumps(document, separators=(",", ":"), default=str) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A dim line on standard error: worth knowing, no part of what was asked for."""
    from rich.text import Text

    console("error").print(Text(printable(text), style="dim"), soft_wrap=True)


def write_csv(columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Comma-separated values with a heading, row by row, whatever their number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([spreadsheet_safe(column.name) for column in columns])
    for row in rows:
        writer.writerow([_csv_cell(row.get(column.name)) for column in columns])
        if buffer.tell() > 1 << 16:
            write(buffer.getvalue())
            buffer.seek(0)
            buffer.truncate()
    write(buffer.getvalue())


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, int):
        return value
    return spreadsheet_safe(str(value))


def markdown_lines(table: Table) -> Iterable[str]:
    """A GitHub-flavoured Markdown table."""
    yield f"| {' | '.join(markdown_safe(column.heading) for column in table.columns)} |"
    yield f"| {' | '.join('---:' if column.number else '---' for column in table.columns)} |"
    for row in table.every_row():
        yield f"| {' | '.join(markdown_safe(_shown(row, column, table.nothing)) for column in table.columns)} |"


def rich_table(table: Table) -> RichTable:
    """The table for a terminal or a log: one rule below the heading, one above the total, no frame."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, title=table.title or None, title_justify="left", title_style="bold")
    made.show_edge = False
    made.pad_edge = False
    for column in table.columns:
        made.add_column(
            Text(printable(column.heading)),
            justify="right" if column.number else "left",
            style="dim" if column.quiet else "",
            no_wrap=column.number,
            overflow="fold",
        )
    for row in table.rows:
        made.add_row(*(_cell(row, column, table.nothing) for column in table.columns))
    if table.total:
        made.add_section()
        made.add_row(*(_cell(table.total, column, "") for column in table.columns), style="bold")
    return made


def _cell(row: Row, column: Column, nothing: str) -> Any:
    from rich.text import Text

    shown = printable(_shown(row, column, nothing))
    return Text(shown, style="dim" if row.get(column.name) in (None, 0) else "")


def _shown(row: Row, column: Column, nothing: str) -> str:
    value = row.get(column.name)
    if value is None:
        return "" if column.name not in row else nothing
    return f"{value:,}" if isinstance(value, int) else str(value)
