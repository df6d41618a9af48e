"""Tables as values: columns, rows, a total. How they look is for `terminal` and `output` to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: the name a program reads it by, the title a person does, and how it is set.

    `number` is set right, `quiet` is dim. Where there is no room, `whole` and numbers stay unbroken and what is
    `expendable` goes first.
    """

    name: str
    title: str | None = None
    number: bool = False
    quiet: bool = False
    whole: bool = False
    expendable: bool = False

    @property
    def unbroken(self) -> bool:
        """Whether its cells stay on one line."""
        return self.number or self.whole

    @property
    def heading(self) -> str:
        """What stands above it."""
        return self.title or self.name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by column name; `total` stands below them. None is shown as `nothing`: a dash, or what it means."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    total: Row | None = None
    nothing: str = "-"

    def every_row(self) -> list[Row]:
        """The rows and the total."""
        return [*self.rows, *([self.total] if self.total else [])]

    def text(self, row: Row, column: Column) -> str:
        """A cell as a person reads it; empty where the row says nothing about the column."""
        value = row.get(column.name)
        if value is None:
            return self.nothing if column.name in row else ""
        return f"{value:,}" if isinstance(value, int) else str(value)
