"""Customers as a CSV file that `csv_import` reads back: the same customers, in whatever book it is read into."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Final

from token_meter.accounts.book import CustomerBook
from token_meter.accounts.csv_columns import DETAIL, PLAIN, cell_of, texts_of
from token_meter.errors import TokenMeterError
from token_meter.ledger.values import Mode

PIECE_CHARACTERS: Final = 1 << 16


def export_csv(book: CustomerBook, *, mode: Mode = "live") -> Iterator[str]:
    """The file in pieces, in constant memory.

    There is a column for every backend and every detail that any customer has, so the book is read twice. Raises
    TokenMeterError when an edit in between needs another column.
    """
    named = {name for customer in book.iterate(mode=mode) for name in texts_of(customer)}
    columns = (*PLAIN, *sorted(named.difference(PLAIN), key=_place))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\r\n")
    writer.writeheader()
    for customer in book.iterate(mode=mode):
        cells = {name: cell_of(text) for name, text in texts_of(customer).items()}
        if not cells.keys() <= set(columns):
            raise TokenMeterError("a customer got a new kind of external id or detail meanwhile: export again")
        writer.writerow(cells)
        if buffer.tell() > PIECE_CHARACTERS:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _place(column: str) -> tuple[bool, str]:
    """Ids elsewhere before details, each in the order of their names."""
    return column.startswith(DETAIL), column
