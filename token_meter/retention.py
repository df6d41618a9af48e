"""Deleting what every sink has, and saying aloud when the rest grows too large. Nothing else is ever deleted."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from token_meter.cursors import Cursor
from token_meter.errors import JournalError
from token_meter.folder import JournalFolder
from token_meter.problems import Problem
from token_meter.segments import SegmentIndex, SegmentName

CursorOf = Callable[[str], Cursor | None]


class Retention:
    """Deletes sealed segments that every registered sink has finished."""

    def __init__(self, folder: JournalFolder, index: SegmentIndex, *, problem: Problem, journal_bytes_max: int) -> None:
        self.over_limit = False
        self._folder = folder
        self._index = index
        self._problem = problem
        self._journal_bytes_max = journal_bytes_max

    def sweep(self, cursor_of: CursorOf) -> int:
        """Delete what can go; returns how many segments. `cursor_of` says how far a sink is (None: ask later)."""
        try:
            if not self._finished(cursor_of):
                return 0
            # Under the journal's lock, so that no new sink is just being registered to get these segments too.
            with self._folder.locked():
                return sum(self._delete(name) for name in self._finished(cursor_of))
        except (OSError, JournalError) as error:
            self._problem("delete delivered segments", error)
            return 0

    def check_size(self) -> None:
        """Unacknowledged segments are kept whatever their size; beyond the limit a human must know."""
        total = self._index.total()
        self.over_limit = total > self._journal_bytes_max
        if self.over_limit:
            self._problem(
                "the journal is larger than journal_bytes_max",
                f"{total} bytes: a sink does not take its events; nothing is deleted before it does",
            )

    def _finished(self, cursor_of: CursorOf) -> list[str]:
        names = self._index.names()
        cursors = [cursor_of(sink) for sink in self._folder.registered() or ()]
        if not cursors:
            return []
        done = {name for name in names if all(cursor is not None and cursor.position(name).done for cursor in cursors)}
        # An earlier segment of the same writer that still waits may need the head of the next one to be recovered.
        waiting = {_place(name, 1) for name in names if name not in done}
        return [name for name in names if name in done and _place(name, 0) not in waiting]

    def _delete(self, name: str) -> bool:
        with suppress(FileNotFoundError):
            os.unlink(self._index.folder / name)
            return True
        return False


def _place(name: str, ahead: int) -> tuple[int, str, int] | None:
    """A segment's place in its writer's row, or the one `ahead` of it."""
    parsed = SegmentName.parse(name)
    return parsed and (parsed.pid, parsed.writer, parsed.number + ahead)
