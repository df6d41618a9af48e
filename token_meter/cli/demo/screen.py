"""What the demo shows while it runs: lines, and on a terminal a table below them that grows as usage arrives."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.text import Text

from token_meter.cli.output import on_terminal
from token_meter.cli.tables import Table
from token_meter.cli.terminal import console, rich_table
from token_meter.cli.text import printable

if TYPE_CHECKING:
    from rich.live import Live


class Screen(Protocol):
    """Where the story is told."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, who: str, what: str, *, sign: str = " ", style: str = "", aside: str = "") -> None:
        """One line: who did what, with something smaller behind it."""

    def board(self, table: Table) -> None:
        """The table as it is now."""


class Silence:
    """Tells nothing: somebody wants JSON."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, who: str, what: str, *, sign: str = " ", style: str = "", aside: str = "") -> None:
        """Nothing."""

    def board(self, table: Table) -> None:
        """Nothing."""


class Lines(Silence):
    """Plain lines, for a pipe or a log."""

    def say(self, who: str, what: str, *, sign: str = " ", style: str = "", aside: str = "") -> None:
        """Print it."""
        console().print(_line(who, what, sign=sign, style=style, aside=aside))


class Board(Silence):
    """Lines that scroll by, above a table that stays: for a terminal."""

    def __init__(self) -> None:
        from rich.live import Live

        self._console = console()
        self._live: Live = Live("", console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, who: str, what: str, *, sign: str = " ", style: str = "", aside: str = "") -> None:
        """Print it above the table."""
        self._live.console.print(_line(who, what, sign=sign, style=style, aside=aside))

    def board(self, table: Table) -> None:
        """Draw the table anew."""
        from rich.console import Group

        self._live.update(Group("", rich_table(table, self._console.width)), refresh=True)


def chosen_screen(*, silent: bool) -> Screen:
    """The screen that fits where the output goes."""
    if silent:
        return Silence()
    return Board() if on_terminal() and not console().is_dumb_terminal else Lines()


def _line(who: str, what: str, *, sign: str, style: str, aside: str) -> Text:
    parts: Sequence[tuple[str, str]] = (
        (f"{sign} ", style or "dim"),
        (f"{who:<8} ", "bold"),
        (printable(what), style),
        (f"  {aside}" if aside else "", "dim"),
    )
    return Text.assemble(*parts)
