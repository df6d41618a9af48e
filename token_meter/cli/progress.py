"""Progress on standard error, only where a person watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

Item = TypeVar("Item")

SHOWN_EVERY: Final = 500
SHOWN_BYTES_MIN: Final = 1 << 20
"""Less than this is done before a bar could be read."""


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


@contextmanager
def measuring(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Yields a function to be told how much more of `total` bytes is done, shown as a bar on a terminal."""
    if not sys.stderr.isatty() or total < SHOWN_BYTES_MIN:
        yield _silent
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from token_meter.cli.terminal import console

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console("error"), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda more: progress.update(task, advance=more)


def _silent(more: int) -> None:
    """Nobody watches."""
