"""Progress on standard error, only where a person watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

Item = TypeVar("Item")

SHOWN_EVERY: Final = 500


@contextmanager
def counting(what: str) -> Iterator[Callable[[Iterable[Item]], Iterator[Item]]]:
    """Yields a function to pass items through, which counts them aloud when both streams allow it.

    With the output on the same terminal the counter would stand between its lines.
    """
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield iter
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from token_meter.cli.terminal import console

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=console("error"), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def counted(items: Iterable[Item]) -> Iterator[Item]:
            for number, item in enumerate(items, 1):
                if number % SHOWN_EVERY == 0:
                    progress.update(task, completed=number)
                yield item

        yield counted
