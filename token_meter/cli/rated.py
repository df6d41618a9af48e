"""A ledger opened with prices and plans, everything in it rated that can be: for commands that speak of money."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from token_meter.cli.catch_up import catch_up
from token_meter.cli.output import note
from token_meter.cli.place import Place, holds_ledger, no_ledger
from token_meter.cli.text import counted

if TYPE_CHECKING:
    from token_meter.ledger import Ledger


@contextmanager
def rated(place: Place, *, make: bool = False) -> Iterator[Ledger]:
    """The ledger with a rater. What waits in the journal is delivered first, what was pending is rated.

    `make`: a ledger that is not there yet is made, for commands that set prices up before the first call. Raises
    Failure when there is none.
    """
    from token_meter.bookkeeping.lazy import LazyRater
    from token_meter.bookkeeping.rater import rate_pending
    from token_meter.ledger import Ledger

    catch_up(place)
    missing = place.missing or not holds_ledger(place)
    if missing and not make:
        raise no_ledger(place)
    if missing:
        note(f"there was no ledger at {place.shown}: making one")
    ledger = Ledger(place.ledger, rater=LazyRater())
    try:
        with _watching() as progress:
            changed = rate_pending(ledger, progress)
        if changed:
            note(f"rated {counted(changed, 'event')} that had no price before")
        yield ledger
    finally:
        ledger.close()


@contextmanager
def _watching() -> Iterator[Callable[[int], object] | None]:
    """A counter on a terminal: a ledger that was never rated may hold millions of events."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from token_meter.cli.terminal import console

    columns = (SpinnerColumn(), TextColumn("rating events"), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=console("error"), transient=True) as progress:
        task = progress.add_task("rating", total=None)
        yield lambda seen: progress.update(task, completed=seen)
