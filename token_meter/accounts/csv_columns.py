"""Customers as rows of a CSV file: which columns there are, and how a text becomes a cell and comes back exactly.

A spreadsheet runs a cell that begins like a formula, and customers' names are other people's text. So such a text
gets a `'` in front when it is written, and loses it when it is read. So does one with blanks around it, because those
of any other cell are dropped: they are slips of whoever typed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from token_meter.accounts.customer import Customer, CustomerChanges
from token_meter.ledger.text import from_stored, to_stored

PLAIN: Final = ("id", "name", "email", "currency", "time_zone", "status")
EXTERNAL: Final = "external."
DETAIL: Final = "detail."
SHORT: Final[Mapping[str, str]] = {name: f"{EXTERNAL}{name.removesuffix('_id')}" for name in ("stripe_id", "lago_id")}
"""Other names for columns that people will have."""

KNOWN: Final = f"{', '.join(PLAIN)}, {EXTERNAL}<backend> (also {', '.join(SHORT)}), {DETAIL}<name>"

_FORMULA: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_MARK: Final = "'"


def column_of(heading: str) -> str:
    """The column that this heading means. ValueError if there is none."""
    name = heading.strip().lower()
    name = SHORT.get(name, name)
    if name in PLAIN or (name.startswith((EXTERNAL, DETAIL)) and name not in (EXTERNAL, DETAIL)):
        return name
    if ";" in heading or "\t" in heading:
        raise ValueError("the columns are not separated by commas: save the file as comma-separated values")
    raise ValueError(f"unknown column {heading.strip()[:80]!r}. Known: {KNOWN}.")


def changes_of(cells: Mapping[str, str]) -> CustomerChanges:
    """What the cells of one row change; an empty cell leaves things as they are."""
    changes: dict[str, Any] = {}
    for column, cell in cells.items():
        text = text_of(cell)
        if column == "id" or not text:
            continue
        if column.startswith(EXTERNAL):
            changes.setdefault("external_ids", {})[column.removeprefix(EXTERNAL)] = text
        elif column.startswith(DETAIL):
            # Spreadsheets end the lines of a cell in their own way.
            changes.setdefault("details", {})[column.removeprefix(DETAIL)] = text.replace("\r\n", "\n")
        else:
            changes[column] = text
    return cast(CustomerChanges, changes)


def texts_of(customer: Customer) -> dict[str, str]:
    """The texts of a customer by column, without those that are not set."""
    texts = {name: getattr(customer, name) for name in PLAIN}
    texts |= {f"{EXTERNAL}{name}": text for name, text in sorted(customer.external_ids.items())}
    texts |= {f"{DETAIL}{name}": text for name, text in sorted(customer.details.items())}
    return {name: text for name, text in texts.items() if text}


def cell_of(text: str) -> str:
    """The text as a cell that no spreadsheet runs and every encoding can hold."""
    stored = to_stored(text)
    return _MARK + stored if _needs_mark(stored) else stored


def text_of(cell: str) -> str:
    """The text that `cell_of` was given, or that a human typed into the cell."""
    return from_stored(cell[1:] if cell.startswith(_MARK) and _needs_mark(cell) else cell.strip())


def _needs_mark(text: str) -> bool:
    # Marks in front are looked through, so that a text which has one of its own gets a second, and keeps the first.
    bare = text.lstrip(_MARK)
    return bare.startswith(_FORMULA) or bare != bare.strip()
