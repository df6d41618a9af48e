"""What a human decides about a quarantine: put events back into delivery, or give entries up.

A decision is a line at the end of the quarantine's file, so it can be taken while any process delivers: the one that
does sees it within its next turn. Decisions that a crash cut short are taken again by saying the same once more.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from token_meter.errors import InvalidEvent, JournalError, NewerSchema, Refusal
from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder, checked_sink_name
from token_meter.locks import FileLock
from token_meter.quarantine import (
    ENTRY_BYTES_MAX,
    append,
    discarded,
    id_in,
    mark_of,
    marks_in,
    open_to_read,
    parse,
    read_log,
    refused,
    released,
    returned,
    writing,
)
from token_meter.segments import read_lines, to_event
from token_meter.standing import History, Standing, State

Ids = Iterable[str] | Literal["all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """One entry of a quarantine: an event that a sink refused, or a line of the journal that nobody can read.

    `id` is the event's, or where the line stands. `state`: waiting for a human, released (on its way again),
    delivered, or discarded; `decided_at` says since when and `decision` why it was discarded. `event` is its JSON form.
    """

    sink: str
    id: str
    time: str | None
    reason: str | None
    state: State
    event: dict[str, Any] | None = None
    line: str | None = None
    decided_at: str | None = None
    decision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The ids that a decision was about, and those about which nothing was left to decide."""

    ids: tuple[str, ...] = ()
    already: tuple[str, ...] = ()


def quarantined(folder: str | os.PathLike[str], sink: str) -> Iterator[Quarantined]:
    """Every entry that a sink's quarantine ever had, oldest first, with what became of it."""
    path = JournalFolder(folder).refusals(sink)
    descriptor = open_to_read(path)
    if descriptor is None:
        return
    try:
        history = History(path)
        history.read_on(descriptor)
        for mark in history.places:
            yield _described(sink, mark, history, _entry(descriptor, history, mark))
    finally:
        os.close(descriptor)


def returning(
    folder: str | os.PathLike[str], sink: str, *, ready: Callable[[str], bool] | None = None
) -> Iterator[MeterEvent]:
    """What a sink refused and is to get once more: what was released, and what waits for what is `ready` by now."""
    path = JournalFolder(folder).refusals(sink)
    descriptor = open_to_read(path)
    if descriptor is None:
        return
    try:
        history = History(path)
        history.read_on(descriptor)
        is_there = {awaits: ready is not None and ready(awaits) for awaits in set(history.awaiting_for.values())}
        for mark, (_, is_event) in history.places.items():
            state, awaits = history.state(mark), history.awaiting_for.get(mark, "")
            if is_event and (state == "released" or (state == "waiting" and is_there.get(awaits))):
                with suppress(InvalidEvent, NewerSchema):  # whoever delivers tells of it
                    yield to_event(_entry(descriptor, history, mark)["event"])
    finally:
        os.close(descriptor)


def release(folder: str | os.PathLike[str], sink: str, *, ids: Ids) -> Decided:
    """Put refused events back into delivery to the sink that refused them, with the same ids.

    "all" means what waits; an event that was discarded can be released by its id. What is released or delivered
    already stays as it is. Raises ValueError for ids that are no events of the quarantine, or for a sink that the
    journal does not deliver to, and OSError when the file cannot be written.
    """
    if sink not in (JournalFolder(folder).registered() or ()):
        raise ValueError(f"this journal does not deliver to a sink {sink!r}, so nothing can be released to it")
    if ids == "all" and _nothing_waits(folder, sink):
        return Decided()
    with _deciding(folder, sink) as (descriptor, history):
        chosen = _chosen(history, ids)
        lines = [mark for mark in chosen if not history.places[mark][1]]
        if lines and ids != "all":
            raise ValueError(f"{lines[0]} is a line that nobody can read: it can only be discarded")
        open_to = ("waiting",) if ids == "all" else ("waiting", "discarded")
        now = [mark for mark in chosen if history.places[mark][1] and history.state(mark) in open_to]
        append(descriptor, (released(_event(descriptor, history, mark)) for mark in now))
        return _decided(history, now, chosen if ids != "all" else now)


def quarantine(
    folder: str | os.PathLike[str], sink: str, refusals: Iterable[Refusal], *, report: str | None = None
) -> int:
    """Put events into a sink's quarantine that it took and its destination refused afterwards; returns how many.

    `report` names where that was said: what the same report said before is not entered again, however often it comes.
    Raises ValueError for a sink that the journal does not deliver to, and OSError when the file cannot be written.
    """
    if sink not in (JournalFolder(folder).registered() or ()):
        raise ValueError(f"this journal does not deliver to a sink {sink!r}")
    path = JournalFolder(folder).refusals(checked_sink_name(sink))
    with writing(path) as descriptor:
        said = (line for line, _ in read_log(descriptor) if report is not None and line.get("report") == report)
        known = {mark for line in said for mark in marks_in(line)}
        new = {mark_of(entry): entry for entry in refused(refusals)}
        standing = Standing(path)
        standing.read_on(descriptor)
        append(descriptor, [_told(entry, report, standing) for mark, entry in new.items() if mark not in known])
    return len(new.keys() - known)


def _told(entry: dict[str, Any], report: str | None, standing: Standing) -> dict[str, Any]:
    """The line for what a report says; of an event that is on its way again, that it came back."""
    mark = mark_of(entry)
    if mark in standing.released:
        entry = returned([mark], entry["reason"], awaits=entry.get("awaits"))
    return entry if report is None else {**entry, "report": report}


def discard(folder: str | os.PathLike[str], sink: str, *, ids: Ids, reason: str) -> Decided:
    """Give entries up: the sink never gets them. They stay in the file, with the reason.

    "all" means what waits. An event that is released can be discarded by its id while no process delivers to the
    sink; one that the sink has cannot. Raises ValueError for ids that are not in the quarantine or an empty reason,
    JournalError when a process may be sending what was released, and OSError when the file cannot be written.
    """
    if not reason.strip():
        raise ValueError("discarding needs a reason: it is what is left of the decision")
    if ids == "all" and _nothing_waits(folder, sink):
        return Decided()
    with _deciding(folder, sink) as (descriptor, history):
        chosen = _chosen(history, ids)
        delivered = next((mark for mark in chosen if ids != "all" and history.state(mark) == "delivered"), None)
        if delivered is not None:
            raise ValueError(f"{id_in(delivered)} was released and {sink} has it: correct it there")
        open_to = ("waiting",) if ids == "all" else ("waiting", "released")
        now = [mark for mark in chosen if history.state(mark) in open_to]
        with _undelivered(folder, sink, history, now):
            append(descriptor, (discarded(mark, reason) for mark in now))
        return _decided(history, now, chosen if ids != "all" else now)


@contextmanager
def _deciding(folder: str | os.PathLike[str], sink: str) -> Iterator[tuple[int, History]]:
    """The quarantine's file with its lock held, and how its entries stand."""
    path = JournalFolder(folder).refusals(checked_sink_name(sink))
    if not path.exists():
        raise ValueError(f"sink {sink!r} has no quarantine: it refused nothing")
    with writing(path) as descriptor:
        history = History(path)
        history.read_on(descriptor)
        yield descriptor, history


def _nothing_waits(folder: str | os.PathLike[str], sink: str) -> bool:
    """Read without the lock, so that who asks again and again does not hold up the process that delivers."""
    standing = Standing(JournalFolder(folder).refusals(checked_sink_name(sink)))
    standing.read()
    return standing.path.exists() and not standing.waiting


@contextmanager
def _undelivered(folder: str | os.PathLike[str], sink: str, history: History, marks: Iterable[str]) -> Iterator[None]:
    """Nobody sends released events meanwhile."""
    if not any(history.state(mark) == "released" for mark in marks):
        yield
        return
    lock = FileLock(JournalFolder(folder).lock(sink))
    if not lock.acquire():
        raise JournalError(
            f"a running process delivers to {sink!r} and may be sending what was released: stop it first"
        )
    try:
        yield
    finally:
        lock.release()


def _chosen(history: History, ids: Ids) -> list[str]:
    """The marks of the entries that are meant, oldest first."""
    if ids == "all":
        return list(history.places)
    known: dict[str, list[str]] = defaultdict(list)
    for mark in history.places:
        known[_id(history, mark)].append(mark)
    found = {mark for text in ids for mark in known[_known(text, known)]}
    return [mark for mark in history.places if mark in found]


def _known(text: str, known: Iterable[str]) -> str:
    """The id that is meant: by all of it, or by enough characters of its end."""
    if text in known:
        return text
    ending = [id for id in known if text and id.endswith(text)]
    if not ending:
        raise ValueError(f"nothing in this quarantine has the id {text!r}")
    if len(ending) > 1:
        raise ValueError(f"{len(ending)} entries have an id that ends in {text!r}: give more of it")
    return ending[0]


def _decided(history: History, now: Iterable[str], chosen: Iterable[str]) -> Decided:
    ids = dict.fromkeys(_id(history, mark) for mark in now)
    rest = (id for id in (_id(history, mark) for mark in chosen) if id not in ids)
    return Decided(ids=tuple(ids), already=tuple(dict.fromkeys(rest)))


def _id(history: History, mark: str) -> str:
    return id_in(mark) if history.places[mark][1] else mark


def _entry(descriptor: int, history: History, mark: str) -> dict[str, Any]:
    raw = next(read_lines(descriptor, history.places[mark][0], bytes_max=ENTRY_BYTES_MAX)).raw
    return parse(raw) or {}


def _event(descriptor: int, history: History, mark: str) -> dict[str, Any]:
    """The event of an entry, as it is to be sent. Raises InvalidEvent and NewerSchema for one that cannot be."""
    event: dict[str, Any] = _entry(descriptor, history, mark)["event"]
    to_event(event)
    return event


def _described(sink: str, mark: str, history: History, entry: dict[str, Any]) -> Quarantined:
    state, last = history.state(mark), history.decided.get(mark, {})
    again = last if last.get("action") == "returned" else entry
    decided = last if state != "waiting" else {}
    return Quarantined(
        sink=sink,
        id=_id(history, mark),
        time=again.get("time"),
        reason=again.get("reason"),
        state=state,
        event=entry.get("event"),
        line=entry.get("line"),
        decided_at=decided.get("time"),
        decision=decided.get("reason"),
    )
