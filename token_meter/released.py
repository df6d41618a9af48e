"""The queue of events that a human put back into delivery to one sink: the released ones of its quarantine.

It stands in the quarantine's file itself, so that releasing an event and queueing it are one line. How far it is
delivered stands there too: a cursor that is lost, or a sink that is given up and added again, sends nothing twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from token_meter.batch import Batch, BatchLimits
from token_meter.errors import InvalidEvent, NewerSchema
from token_meter.problems import Problem
from token_meter.quarantine import (
    ACTION_PREFIX,
    ENTRY_BYTES_MAX,
    delivered,
    id_in,
    marks_in,
    open_to_read,
    parse,
    write_quarantine,
)
from token_meter.segments import read_lines, to_event
from token_meter.standing import Log

MARKS_MAX: Final = 500
"""So many events one line tells of at most: after a long outage all of them would make a line that nobody reads."""


class Released(Log):
    """Those that are not delivered yet, in the order of their release; only their places are remembered."""

    def __init__(self, path: Path, *, problem: Problem) -> None:
        super().__init__(path)
        self._problem = problem
        self._unsaid: set[str] = set()
        self._useless: set[str] = set()
        self.clear()

    def clear(self) -> None:
        """Forget what was read."""
        self._places: dict[str, int] = {}

    def take(self, raw: bytes, begin: int) -> None:
        """One line, and where it begins. Entries, which are most of the file, are not looked into."""
        line = parse(raw) if raw.startswith(ACTION_PREFIX) else None
        for mark in marks_in(line) if line is not None else ():
            match line and line["action"]:
                case "released":
                    self._places[mark] = begin
                case "delivered" | "returned" | "discarded":
                    self._places.pop(mark, None)

    @property
    def unfinished(self) -> bool:
        """Whether something is not delivered, or not known to be on disk."""
        try:
            self.read()
        except OSError as error:
            self._problem("read what was released", error)
        return any(mark not in self._useless for mark in list(self._places)) if self._useless else bool(self._places)

    def next(self, limits: BatchLimits) -> Batch:
        """The next batch; empty when there is nothing. Raises OSError."""
        batch = Batch()
        descriptor = open_to_read(self.path) if self.unfinished else None
        if descriptor is None:
            return batch
        try:
            passed_over = self._unsaid | self._useless
            ids: set[str] = set()
            for mark, place in list(islice(self._places.items(), limits.events + len(passed_over))):
                if batch.is_full(limits):
                    break
                # Parts of one event go out in batches of their own, so that each answer is about one of them.
                if mark not in passed_over and id_in(mark) not in ids:
                    ids.add(id_in(mark))
                    self._add(batch, mark, descriptor, place)
        finally:
            os.close(descriptor)
        return batch

    def _add(self, batch: Batch, mark: str, descriptor: int, place: int) -> None:
        line = next(read_lines(descriptor, place, bytes_max=ENTRY_BYTES_MAX), None)
        raw = line.raw if line else None
        try:
            event = to_event((parse(raw) or {}).get("event", {}))
        except (InvalidEvent, NewerSchema) as error:
            self._useless.add(mark)
            self._problem("a released event cannot be read", error)
        else:
            batch.events.append(event)
            batch.released[mark] = event
            batch.bytes += len(raw or b"")

    def took(self, marks: Iterable[str]) -> None:
        """The sink has them. While that cannot be written down it is remembered, and written with the next."""
        self._unsaid.update(marks)
        self.say()

    def say(self) -> None:
        """Write down what is delivered."""
        if not self._unsaid:
            return
        try:
            self.read()
            # What came back meanwhile, by a report of the destination's, is not delivered.
            marks = sorted(self._unsaid & self._places.keys())
            pieces = (marks[begin : begin + MARKS_MAX] for begin in range(0, len(marks), MARKS_MAX))
            write_quarantine(self.path, [delivered(piece) for piece in pieces])
            self.read()
        except OSError as error:
            self._problem("write down what was delivered", error)
        else:
            self._unsaid.clear()
