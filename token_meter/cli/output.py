"""The one place that writes to standard output: a table in four shapes, JSON, and lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final

from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.tables import Column, Row, Table
from token_meter.cli.text import markdown_safe, printable, printable_lines, spreadsheet_safe

CSV_PIECE_CHARACTERS: Final = 1 << 16


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


def show(table: Table, shape: Shape) -> None:
    """Write a table; JSON is for the caller, who knows what belongs around the rows."""
    if shape is Shape.CSV:
        write_csv(table.columns, table.rows)
    elif shape is Shape.MARKDOWN:
        write("".join(f"{line}\n" for line in markdown_lines(table)))
    else:
        from token_meter.cli.terminal import console, rich_table

        out = console()
        out.print(rich_table(table, out.width))


def on_terminal() -> bool:
    """Whether a person sees standard output."""
    return sys.stdout.isatty()


def write(text: str) -> None:
    """Text as it is."""
    sys.stdout.write(text)


def say(text: str) -> None:
    """Lines for people, with whatever would steer a terminal written as an escape: names are other people's text."""
    sys.stdout.write(printable_lines(text))


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

    from token_meter.cli.terminal import console

    console("error").print(Text(printable(text), style="dim"))


def write_csv(columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Comma-separated values with a heading, in pieces, whatever their number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([spreadsheet_safe(column.name) for column in columns])
    for row in rows:
        writer.writerow([_csv_cell(row.get(column.name)) for column in columns])
        if buffer.tell() > CSV_PIECE_CHARACTERS:
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
    yield _markdown_line(column.heading for column in table.columns)
    yield f"| {' | '.join('---:' if column.number else '---' for column in table.columns)} |"
    for row in table.every_row():
        yield _markdown_line(table.text(row, column) for column in table.columns)


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(markdown_safe, cells))} |"
