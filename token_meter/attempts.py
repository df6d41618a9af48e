"""Which events may be with a destination already, and since when: for destinations that do not remember ids for ever.

Sending an event again is safe as long as the destination still knows its id. One that remembers ids for a day, and
takes an event an hour before an outage of two days, would count it twice. So for such a sink the ids of a batch are
written down before it is sent for the first time, and what was tried longer ago than the destination remembers is not
sent again before somebody asked it whether it is there.

attempts/<sink>.json holds the ids of the batch that is under way (and of those that a crash left), never more than
`IDS_MAX`: what is acknowledged is not in it any more when the next batch begins. When the cursor of a sink is lost that
has acknowledged something before, everything that happened until then may be there: it counts as tried when it
happened. Only the process that holds the sink's lock writes the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from token_meter.errors import JournalError
from token_meter.event import MeterEvent
from token_meter.folder import JOURNAL_SCHEMA, read_document, replace

IDS_MAX: Final = 20_000
"""So many ids are remembered; batches have a few hundred, so more means that something else is wrong."""

MARGIN_SECONDS: Final = 600.0
"""So much earlier than the destination forgets we stop to rely on it: clocks differ, and requests take time."""


class Attempts:
    """First attempts of what is not acknowledged, for a sink that forgets after `remembers_seconds`."""

    def __init__(self, path: Path, *, remembers_seconds: float, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._remembers_seconds = remembers_seconds
        self._now = now
        self._first: dict[str, float] | None = None
        self._done: set[str] = set()
        self._acknowledged = False
        self.distrusted_until = 0.0
        self.unsure: set[str] = set()
        """Of the batch that is under way, what was sent before without an answer: a refusal now says nothing about
        that."""

    def forget(self) -> None:
        """Read the file again: another process may have delivered meanwhile."""
        self._first, self._done = None, set()

    def begin(self, events: Sequence[MeterEvent], *, durable: bool) -> dict[str, float]:
        """Write down that these are about to be sent. Returns what is in doubt: id to first attempt.

        Nothing is, as long as the destination still knows whatever was tried before. Else everything that was, also
        lately, because one answer has to tell about all of it. Raises OSError when it cannot be written down, and
        JournalError when it cannot be read: then nothing may be sent.
        """
        first, now = self._known(), self._now()
        horizon = now - max(0.0, self._remembers_seconds - MARGIN_SECONDS)
        tried = {event.id: first[event.id] for event in events if event.id in first}
        if self.distrusted_until:
            happened = {event.id: event.time.timestamp() for event in events}
            tried = {id: moment for id, moment in happened.items() if moment < self.distrusted_until} | tried
        # A first attempt that is yet to come is one by a clock that was wrong then, or is now.
        doubtful = tried if any(not horizon <= moment <= now + MARGIN_SECONDS for moment in tried.values()) else {}
        self.unsure = set(tried)
        new = [event.id for event in events if event.id not in first]
        if new:
            self._drop_done()
            first.update((id, tried.get(id, now)) for id in new)
            self._save(durable=durable)
        return doubtful

    def distrust(self) -> None:
        """Nobody knows any more how far the sink was: whatever happened until now may have been sent long ago."""
        self._known()
        if self._acknowledged:
            self.distrusted_until = self._now()
            self._save(durable=True)

    def renew(self, ids: Iterable[str], *, durable: bool) -> None:
        """These are known not to be there, so their first attempt is now."""
        self._known().update(dict.fromkeys(ids, self._now()))
        self._save(durable=durable)

    def unanswered(self) -> set[str]:
        """What was sent and neither acknowledged nor refused, as far as we know."""
        return set(self._known()) - self._done

    def done(self, ids: Iterable[str]) -> None:
        """These are acknowledged, or refused: written down with the next batch, since they never come again."""
        self._done.update(ids)

    def write(self) -> None:
        """Write down what is done now, because there may be no next batch. Raises OSError."""
        if self._done:
            self._drop_done()
            self._save(durable=False)

    def _known(self) -> dict[str, float]:
        if self._first is None:
            document = _read(self._path)
            self._first = {str(id): float(moment) for id, moment in document["first"].items()}
            self._acknowledged = bool(document.get("acknowledged"))
            self.distrusted_until = float(document.get("distrusted_until") or 0.0)
        return self._first

    def _drop_done(self) -> None:
        first = self._known()
        for id in self._done & first.keys():
            del first[id]
        self._acknowledged = self._acknowledged or bool(self._done)
        self._done.clear()
        while len(first) > IDS_MAX:
            del first[next(iter(first))]

    def _save(self, *, durable: bool) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        document = {"schema": JOURNAL_SCHEMA, "first": self._known(), "acknowledged": self._acknowledged}
        replace(self._path, {**document, "distrusted_until": self.distrusted_until}, durable=durable)


def _read(path: Path) -> dict[str, Any]:
    """What stands in the file. One that cannot be read is an error: to take it for empty could bill twice."""
    if not path.exists():
        return {"first": {}}
    document = read_document(path) or {}
    first = document.get("first")
    if not isinstance(first, dict) or not all(isinstance(moment, (int, float)) for moment in first.values()):
        raise JournalError(
            f"{path} is damaged: it says what may have been sent already, which this destination would count again. "
            "Compare what it has (`token-meter reconcile sink`), then delete the file"
        )
    return document
