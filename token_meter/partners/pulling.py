"""Pulling from a partner's API, with a cursor that moves only once the events are on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from token_meter.event import MeterEvent, format_time
from token_meter.partners.base import Feed, Partner, PartnerError, Row, Unreadable
from token_meter.partners.client import Client, Key, NotThere
from token_meter.partners.fields import Field, attributing
from token_meter.partners.importing import able
from token_meter.partners.intake import Imported, Intake, Recent, Recording, UnreadableRows, Writing
from token_meter.partners.known import partner_named
from token_meter.partners.state import RECENT_MAX, Cursor, Position, default_path
from token_meter.partners.walking import Page

if TYPE_CHECKING:
    from token_meter.meter import Meter

KEY_LENGTH_MAX: Final = 8_192


class Pulling(Recording, Protocol):
    """Where pulled events go: a Meter, which has a journal folder for the cursor."""

    @property
    def journal_folder(self) -> Path | None: ...


def pull(
    meter: Meter | Pulling,
    partner: str,
    *,
    url: str | None = None,
    key: Key | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    ids: Iterable[str] | None = None,
    customer_field: Field | None = None,
    dimensions: Mapping[str, Field] | None = None,
    parameters: Mapping[str, str] | None = None,
    overlap: timedelta | None = None,
    cursor: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    watch: Callable[[MeterEvent], object] | None = None,
) -> Imported:
    """Record what a partner has logged since the last pull; the first one needs `since`.

    Where the last pull came to stands in `cursor` (default: a file in the journal folder), which moves only when the
    events are on disk. The time before it is read again for as far as `overlap`, because rows come late; ids make that
    exact. With `ids`, single records are looked up instead, and no cursor is used. `key` is the key or a function that
    gives it (default: the partner's environment variable); `parameters` go along with each request.
    A `since` before the first pull's goes back to there; a later one changes nothing.

    Raises ValueError for what cannot be meant, PartnerError when the API does not give what it should: everything up to
    there is recorded, and the next pull goes on.
    """
    found = partner_named(partner)
    feed = found.feed
    given = _checked(found, parameters)
    base = url or feed.url
    if base is None:
        raise ValueError(f"{found.title} runs at a place of your own: say where, url=https://…")
    chosen = attributing(customer_field, dimensions, default=found.customer_fields)
    if not dry_run:
        able(meter)
    intake = Intake(found, chosen, watch=watch)
    writing = None if dry_run else Writing(meter)
    with Client(base, title=found.title, key=key_of(key, found)) as client:
        if ids is not None:
            return _look_up(client, found, list(ids), intake, writing, skip_bad=skip_bad)
        about = {"partner": found.name, "url": base.rstrip("/"), "parameters": given}
        position = Cursor(_cursor_path(meter, cursor, about), about=about)
        with nullcontext() if dry_run else position.locked():
            span = _Span.of(position.load(), since, until, feed.overlap if overlap is None else overlap, found)
            return _pull(client, feed, given, span, position, intake, writing, skip_bad=skip_bad)


class _Span:
    """What of the time to read, and what to remember of it."""

    def __init__(
        self, before: Position | None, start: datetime, until: datetime, began: datetime, overlap: timedelta
    ) -> None:
        self.before = before
        self.start = start
        self.until = until
        self.began = began
        self.overlap = overlap

    @classmethod
    def of(
        cls,
        before: Position | None,
        since: datetime | None,
        until: datetime | None,
        overlap: timedelta,
        partner: Partner,
    ) -> _Span:
        """From the last pull on, less the overlap. Raises ValueError for a first pull that does not say since when."""
        now = datetime.now(UTC)
        end = min(_utc(until), now) if until else now  # what is still to come has not been read
        if before is None:
            if since is None:
                raise ValueError(
                    f"this is the first pull from {partner.title}: say from when on, since= (or --since 2026-11-01)"
                )
            return cls(None, _utc(since), end, _utc(since), overlap)
        start = min(before.reached - overlap, end)
        if since is not None and _utc(since) < before.began:
            return cls(before, _utc(since), end, _utc(since), overlap)
        return cls(before, max(start, before.began), end, before.began, overlap)

    def furthest(self, reached: datetime | None) -> datetime:
        """How far everything is known, now or before."""
        before = self.before.reached if self.before else self.began
        return before if reached is None else max(reached, before)

    def position(self, reached: datetime | None, recent: Recent) -> Position:
        """What to write down after a page; never less than what there was."""
        furthest = self.furthest(reached)
        began = self.began
        if self.before is not None and (reached is None or reached < self.before.began):
            began = self.before.began  # what lies before it has not all been read yet
        again = format_time(furthest - 2 * self.overlap)
        return Position(began, furthest, recent.since(again, most=RECENT_MAX))


def _pull(
    client: Client,
    feed: Feed,
    parameters: Mapping[str, str],
    span: _Span,
    cursor: Cursor,
    intake: Intake,
    writing: Writing | None,
    *,
    skip_bad: bool,
) -> Imported:
    intake.recent = Recent(span.before.recent if span.before else None)
    reached: datetime | None = None
    saved = False
    try:
        for number, page in enumerate(feed.pages(client, span.start, span.until, parameters), 1):
            _record(page, number, intake, writing, skip_bad=skip_bad)
            reached = page.reached or reached
            if writing is not None:
                # The ids are written at the end: after a crash in between they come again, which the sinks see by them.
                cursor.save(span.position(reached, Recent()))
                saved = True
    except BaseException as problem:
        if saved:
            with suppress(OSError):  # the ids come again then, as after a crash
                cursor.save(span.position(reached, intake.recent))
        if isinstance(problem, Unreadable):
            raise PartnerError(f"{intake.partner.title} answers with what cannot be read: {problem}") from None
        raise
    if saved:
        cursor.save(span.position(reached, intake.recent))
    return intake.report(recorded=writing is not None, reached=span.furthest(reached))


def _record(page: Page, number: int, intake: Intake, writing: Writing | None, *, skip_bad: bool) -> None:
    """The whole page or, where a row of it is bad, nothing of it: the next pull reads it again."""
    place = f"page {number}"
    events = [event for at, row in enumerate(page.rows, 1) if (event := intake.take(row, place, at)) is not None]
    try:
        if intake.bad_rows and not skip_bad:
            raise UnreadableRows(intake.report(recorded=False), of=f" of {place}")
        if writing is not None:
            for event in events:
                writing.write(event)
            writing.settle()
    except BaseException:
        for event in events:  # not known to be on disk, so they must be taken when they come again
            intake.recent.forget(event.id)
        raise


def _look_up(
    client: Client, partner: Partner, ids: Sequence[str], intake: Intake, writing: Writing | None, *, skip_bad: bool
) -> Imported:
    lookup = partner.feed.lookup
    if lookup is None:
        raise ValueError(f"{partner.title} gives no single records by id: leave ids out")
    for number, id in enumerate(ids, 1):
        try:
            row: Row = lookup(client, id)
        except (NotThere, Unreadable) as problem:
            reason = "there is no record with this id" if isinstance(problem, NotThere) else str(problem)
            intake.refuse("ids", number, reason)
            if not skip_bad:
                raise UnreadableRows(intake.report(recorded=False), of=" from there on") from None
            continue
        _record(Page([row]), number, intake, writing, skip_bad=skip_bad)
    return intake.report(recorded=writing is not None)


def _checked(partner: Partner, parameters: Mapping[str, str] | None) -> dict[str, str]:
    given = {name: str(value) for name, value in (parameters or {}).items()}
    known = partner.feed.parameters
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{partner.title} takes no parameter {unknown[0]!r}. Known: {', '.join(known) or 'none'}.")
    missing = [name for name in partner.feed.required if not given.get(name)]
    if missing:
        raise ValueError(f"{partner.title} needs the parameter {' and '.join(missing)}")
    return given


def key_of(key: Key | None, partner: Partner) -> Callable[[], str]:
    """How to get the key: the one given, a function, or the environment variable, each time anew."""
    variable = partner.feed.variable

    def read() -> str:
        found = key() if callable(key) else key or os.environ.get(variable, "")
        if not isinstance(found, str) or not found.strip():
            raise PartnerError(f"{partner.title} needs a key and there is none: set ${variable}, or give key=")
        found = found.strip()
        if len(found) > KEY_LENGTH_MAX or not found.isascii() or not found.isprintable():
            raise PartnerError(f"the key for {partner.title} cannot be sent: it has characters that no header takes")
        return found

    return read


def _cursor_path(meter: Meter | Pulling, cursor: str | os.PathLike[str] | None, about: Mapping[str, object]) -> Path:
    if cursor is not None:
        return Path(cursor)
    folder = meter.journal_folder
    if folder is None:
        raise PartnerError("this meter has no journal folder to keep the position in: name a file, cursor=")
    return default_path(folder, about)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
