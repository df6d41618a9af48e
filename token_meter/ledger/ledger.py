"""The ledger as the rest of the program sees it: record events, read them back, ask what was used."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack, cast

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.ledger.costs import CostRow, read_costs
from token_meter.ledger.migrate import stored_revision
from token_meter.ledger.opening import Opened, parse, reason_of
from token_meter.ledger.periods import Bucket, moment, time_zone_of
from token_meter.ledger.query import (
    Order,
    cursor_of,
    read_conflicts,
    read_event,
    read_events,
    read_pending,
    read_summary,
    selected,
)
from token_meter.ledger.rater import Rater
from token_meter.ledger.ratings import Rerated, rate_again
from token_meter.ledger.record import TRANSACTION_EVENTS_MAX, record
from token_meter.ledger.rollups import rebuild
from token_meter.ledger.rows import Prepared, prepare
from token_meter.ledger.store import LedgerError, Result, Store
from token_meter.ledger.tables import DIMENSIONS_DECLARED_MAX, TEXT_BYTES_MAX
from token_meter.ledger.tables import events as events_table
from token_meter.ledger.text import to_stored
from token_meter.ledger.usage import RESERVED, UNGROUPABLE, read_usage
from token_meter.ledger.values import (
    Conflict,
    Cursor,
    EventFilters,
    EventPage,
    Filters,
    LedgerSummary,
    Recorded,
    Search,
    UsageRow,
)

RATE_ATTEMPTS_MAX: Final = 5
"""So often a page of events is rated again when the database gives way to another writer."""

PAGE_SIZE_MAX: Final = 10_000
"""So many events are read at once at most."""


class Ledger:
    """The append-only store of meter events, in an SQLite file or a PostgreSQL database.

    `url` is a path ("usage.db"), "sqlite:///path" or "postgresql://user@host/database"; `file` is the SQLite file,
    None on PostgreSQL. Nothing is opened before the first use; then the tables are made or migrated, under a lock,
    so any number of processes may start at once. Any thread may use it, and a forked child opens connections of its
    own. Close it, or use it as a context manager.

    `dimensions` are those that enter rollups. A ledger remembers them: they hold for every process that records
    into it, also one that does not name them. Declaring one later rebuilds the rollups at the next opening, which
    takes minutes for millions of events.
    Usage by any other dimension is answered too, by reading the events.

    `rater` says what events cost and what is charged for them (`token_meter.bookkeeping` makes one); what is recorded
    without one is rated later.
    """

    def __init__(
        self, url: str | os.PathLike[str], *, dimensions: Sequence[str] = (), rater: Rater | None = None
    ) -> None:
        parsed = parse(url)
        self.rater = rater
        self.url: str = parsed.render_as_string(hide_password=False)
        self.file: Path | None = Path(str(parsed.database)) if parsed.drivername == "sqlite" else None
        self._shown = parsed.render_as_string(hide_password=True)
        self._opened = Opened(parsed, _declared(dimensions))
        self.changes = 0
        """So often this object has written something beside events: who remembers what a ledger says looks again."""

    def __repr__(self) -> str:
        return f"Ledger({self._shown!r})"

    # Recording

    def record(self, events: Sequence[MeterEvent]) -> Recorded:
        """Record events, each id once; `token_meter.ledger.record` says what becomes of an id that is there.

        An event and its rollups are one transaction. Raises Rejected for events that no ledger can hold and
        Retry when the database cannot take them now. In both cases some of the others may be recorded already:
        record them again, that is always safe.
        """
        moment_recorded = time.time_ns() // 1000
        prepared, refused = _prepare(events, moment_recorded)
        if refused:
            raise _rejection(refused)
        done = Recorded()
        for start in range(0, len(prepared), TRANSACTION_EVENTS_MAX):
            done = done.plus(self._record(prepared[start : start + TRANSACTION_EVENTS_MAX]))
        return done

    def _record(self, batch: Sequence[Prepared]) -> Recorded:
        try:
            return self._transaction(batch)
        except DataError as problem:
            if len(batch) == 1:
                raise _rejection([(batch[0].event, reason_of(problem))]) from problem
            return self._record_singly(batch)
        except (DBAPIError, PoolTimeout) as problem:
            raise Retry(f"the ledger {self._shown}: {reason_of(problem)}") from problem

    def _transaction(self, batch: Sequence[Prepared]) -> Recorded:
        with self._opened.alone() as store:
            with store.writing() as connection:
                recorded, remember = record(store, connection, self._opened.memory, batch, self.rater)
            remember()
        return recorded

    def _record_singly(self, batch: Sequence[Prepared]) -> Recorded:
        """The database refused something in the batch and does not say what: find out."""
        done, refused = Recorded(), list[tuple[MeterEvent, str]]()
        for each in batch:
            try:
                done = done.plus(self._record([each]))
            except Rejected as rejected:
                refused.append((each.event, rejected.reason))
        if refused:
            raise _rejection(refused)
        return done

    def rate_again(
        self,
        *,
        pending_only: bool = False,
        reason: str,
        progress: Callable[[int], object] | None = None,
        **filters: Unpack[EventFilters],
    ) -> int:
        """Rate the matching events as prices and plans are now; how many changed. Nothing else about them changes.

        The rollups get what is taken from the old rating and given to the new one, and the old one stays on record.
        `pending_only`: just those that are not rated, or lack a price. `progress` is told how many were looked at.
        Rating the same events again without a change of prices and plans changes nothing.
        """
        if self.rater is None:
            raise LedgerError("this ledger has no rater: open it with one to rate its events")
        search, seen, changed = _search(filters), 0, 0
        after: tuple[int, str] | None = None
        while True:
            page = self._rate_page_at_last(search, after, pending_only, reason)
            seen, changed = seen + page.seen, changed + page.changed
            if progress is not None:
                progress(seen)
            if page.after is None:
                return changed
            after = page.after

    def _rate_page_at_last(
        self, search: Search, after: tuple[int, str] | None, pending_only: bool, reason: str
    ) -> Rerated:
        """Try again when the database gave way to somebody who records: that is its answer to a deadlock."""
        for attempt in range(RATE_ATTEMPTS_MAX):
            try:
                return self._rate_page(search, after, pending_only, reason)
            except LedgerError as problem:
                deadlock = "deadlock" in str(problem) or "locked" in str(problem)
                if not deadlock or attempt == RATE_ATTEMPTS_MAX - 1:
                    raise
                time.sleep(0.1 * (attempt + 1))
        raise AssertionError("the last attempt returns or raises")

    def _rate_page(self, search: Search, after: tuple[int, str] | None, pending_only: bool, reason: str) -> Rerated:
        assert self.rater is not None
        try:
            with self._opened.alone() as store:
                with store.writing() as connection:
                    where = selected(store, search)
                    if pending_only:
                        where.append(events_table.c.pending == 1)
                    page, remember = rate_again(
                        store, connection, self._opened.memory, self.rater,
                        where=where, after=after, recorded=time.time_ns() // 1000, reason=reason,
                    )  # fmt: skip
                remember()
            return page
        except (DBAPIError, PoolTimeout) as problem:
            raise LedgerError(f"cannot rate in the ledger {self._shown}: {reason_of(problem)}") from problem

    def rebuild_rollups(self) -> None:
        """Make all rollups anew from the events; writers wait meanwhile. Never needed, unless a human edited."""
        with self._opened.alone() as store, store.migrating() as connection:
            rebuild(store, connection)

    # Events

    def event(self, id: str) -> MeterEvent | None:
        """The event with exactly this id, or None."""
        with self.reading() as (_, connection):
            return read_event(connection, to_stored(id))

    def iter_events(
        self,
        *,
        after: Cursor | str | None = None,
        order: Order = "asc",
        page_size: int = 1000,
        **filters: Unpack[EventFilters],
    ) -> Iterator[MeterEvent]:
        """Every matching event in the order (time, id), read page by page; no transaction stays open between.

        An event that is recorded meanwhile is seen if its place is still ahead.
        """
        _check_limit("page_size", page_size, PAGE_SIZE_MAX)
        return self._iterate(_search(filters), _cursor(after), order, page_size)

    def events(
        self, *, limit: int | None = None, order: Order = "asc", **filters: Unpack[EventFilters]
    ) -> list[MeterEvent]:
        """The matching events in the order (time, id) as a list, at most `limit`."""
        page_size = PAGE_SIZE_MAX if limit is None else max(1, min(limit, PAGE_SIZE_MAX))
        return list(islice(self._iterate(_search(filters), None, order, page_size), limit))

    def page(
        self,
        *,
        after: Cursor | str | None = None,
        order: Order = "desc",
        limit: int = 100,
        **filters: Unpack[EventFilters],
    ) -> EventPage:
        """One page of events, newest first unless told otherwise; its `next` is the `after` of the following."""
        _check_limit("limit", limit, PAGE_SIZE_MAX)
        found = self._read(_search(filters), _cursor(after), order, limit + 1)
        page = found[:limit]
        return EventPage(page, str(cursor_of(page[-1])) if len(found) > limit else None)

    def _iterate(self, search: Search, after: Cursor | None, order: Order, page_size: int) -> Iterator[MeterEvent]:
        while True:
            page = self._read(search, after, order, page_size)
            yield from page
            if len(page) < page_size:
                return
            after = cursor_of(page[-1])

    def _read(self, search: Search, after: Cursor | None, order: Order, limit: int) -> list[MeterEvent]:
        with self.reading() as (store, connection):
            return read_events(store, connection, search, after=after, order=order, limit=limit)

    # Usage

    def usage(
        self,
        *,
        by: str | Sequence[str] = ("model",),
        bucket: Bucket | None = None,
        **filters: Unpack[EventFilters],
    ) -> list[UsageRow]:
        """What was used, one row for each group that has any: exactly the sum over the matching events.

        `by` names what to group by: customer, provider, publisher, model, operation, status, meter, mode, host,
        price_context, correction (does the event correct another?), token_type or headline (one row each), or
        any dimension; an event without a value is in the group None. `bucket` splits the time into the hours,
        days or months of `time_zone`; each row's group then has "bucket", the bucket's own start. Buckets
        without events have no row. `meter` is "llm_tokens" unless given; ANY sums over all meters.

        Whole hours and days are read from rollups, the rest of the time from events. A dimension that is not
        declared, or has too many values (`summary().dimensions_overflowed`), is answered from the events alone.
        """
        if bucket not in (None, "hour", "day", "month"):
            raise ValueError(f"bucket must be 'hour', 'day' or 'month', not {bucket!r}")
        names = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
        if not UNGROUPABLE.isdisjoint(names):
            raise ValueError(f"cannot group by {', '.join(sorted(UNGROUPABLE.intersection(names)))}")
        search = _search({"meter": "llm_tokens", **filters})
        zone = time_zone_of(filters.get("time_zone", "UTC"))
        with self.reading() as (store, connection):
            return read_usage(store, connection, search, by=names, bucket=bucket, zone=zone)

    def costs(
        self,
        *,
        by: str | Sequence[str] = ("model",),
        bucket: Bucket | None = None,
        **filters: Unpack[EventFilters],
    ) -> list[CostRow]:
        """What was used, what it cost us and what is charged for it; arguments as for `usage`.

        Exact: a cost is the sum of quantities times rates. What has no price yet is in no sum, and is named in each
        row. It is as good as the ratings in the ledger: `rate_again(pending_only=True)` brings those up to date.
        """
        if bucket not in (None, "hour", "day", "month"):
            raise ValueError(f"bucket must be 'hour', 'day' or 'month', not {bucket!r}")
        names = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
        if not UNGROUPABLE.isdisjoint(names):
            raise ValueError(f"cannot group by {', '.join(sorted(UNGROUPABLE.intersection(names)))}")
        search = _search({"meter": "llm_tokens", **filters})
        zone = time_zone_of(filters.get("time_zone", "UTC"))
        with self.reading() as (store, connection):
            return read_costs(store, connection, search, by=names, bucket=bucket, zone=zone)

    def pending(self) -> int:
        """How many events are not rated, or lack a price."""
        with self.reading() as (_, connection):
            return read_pending(connection)

    # State

    def summary(self) -> LedgerSummary:
        """Totals over everything recorded."""
        with self.reading() as (_, connection):
            return read_summary(connection)

    def conflicts(self, limit: int = 100) -> list[Conflict]:
        """Events that were not counted because their id was taken, newest first; superseded placeholders too."""
        _check_limit("limit", limit, PAGE_SIZE_MAX)
        with self.reading() as (_, connection):
            return read_conflicts(connection, limit)

    # For those who keep tables of their own in it

    @contextmanager
    def reading(self) -> Iterator[tuple[Store, Connection]]:
        """A transaction that reads, in which every statement sees the same moment.

        What the database says goes wrong, here and in what is done inside, is raised as LedgerError.
        """
        try:
            with self._opened.reading() as transaction:
                yield transaction
        except (DBAPIError, PoolTimeout) as problem:
            raise LedgerError(f"cannot read the ledger {self._shown}: {reason_of(problem)}") from problem

    @contextmanager
    def writing(self) -> Iterator[tuple[Store, Connection]]:
        """A transaction that writes; an exception inside undoes all of it. Be quick: recording may wait for it.

        One thread of a process at a time is inside: do not record from in here. What the database says goes wrong
        is raised as LedgerError; NewerSchema is raised when a newer version has migrated the ledger meanwhile.
        """
        try:
            with self._opened.alone() as store, store.writing() as connection:
                stored_revision(store, connection)
                yield store, connection
            self.changes += 1
        except (DBAPIError, PoolTimeout) as problem:
            raise LedgerError(f"cannot write to the ledger {self._shown}: {reason_of(problem)}") from problem

    def quickly(self, action: Callable[[Any], Result]) -> Result:
        """Do something with a connection of the database's driver: a step of microseconds that a caller waits for, as
        holds on budgets are.

        Each is one statement or one transaction; a power failure may undo the last ones. What the database says goes
        wrong is raised as LedgerError.
        """
        return self._opened.quickly(action)

    @contextmanager
    def closing(self) -> Iterator[tuple[Store, Connection]]:
        """A transaction that has the ledger for itself: nobody records meanwhile, here or elsewhere.

        For what must see everything that came before it and nothing that comes after: making invoices final.
        """
        try:
            with self._opened.alone() as store, store.migrating() as connection:
                stored_revision(store, connection)
                yield store, connection
        except (DBAPIError, PoolTimeout) as problem:
            raise LedgerError(f"cannot write to the ledger {self._shown}: {reason_of(problem)}") from problem

    def close(self) -> None:
        """Close every connection; a closed ledger cannot be used again."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        opened: Opened | None = getattr(self, "_opened", None)
        if opened is not None and opened.is_open:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            opened.close()


def _prepare(events: Sequence[MeterEvent], recorded: int) -> tuple[list[Prepared], list[tuple[MeterEvent, str]]]:
    prepared: list[Prepared] = []
    refused: list[tuple[MeterEvent, str]] = []
    for event in events:
        try:
            prepared.append(prepare(event, recorded=recorded))
        except (ValueError, TypeError, AttributeError, OverflowError) as problem:
            # Whatever is wrong with one event, it must not hold up the others.
            refused.append((event, str(problem)))
    return prepared, refused


def _rejection(refused: Sequence[tuple[MeterEvent, str]]) -> Rejected:
    reasons = list(dict.fromkeys(reason for _, reason in refused))
    said = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else "")
    return Rejected([event for event, _ in refused], f"the ledger cannot hold this event: {said}")


def _declared(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ValueError(f"dimensions must be a sequence of names, not the text {names!r}")
    for name in names:
        if not name or len(name.encode(errors="replace")) > TEXT_BYTES_MAX // 4:
            raise ValueError(f"{name!r} cannot be a dimension: a name has 1 to {TEXT_BYTES_MAX // 4} bytes")
        if name in RESERVED:
            raise ValueError(f"{name!r} cannot be a declared dimension: usage is always split by it")
    if len(set(names)) > DIMENSIONS_DECLARED_MAX:
        raise ValueError(f"at most {DIMENSIONS_DECLARED_MAX} dimensions can be declared, not {len(set(names))}")
    return tuple(sorted({to_stored(name) for name in names}))


def _search(filters: EventFilters) -> Search:
    given = cast(dict[str, Any], {**filters})
    zone = time_zone_of(given.pop("time_zone", "UTC"))
    since, until = (moment(given.pop(name, None), zone) for name in ("since", "until"))
    return Search(Filters(**given), since, until)


def _cursor(after: Cursor | str | None) -> Cursor | None:
    return Cursor.read(after) if isinstance(after, str) else after


def _check_limit(name: str, value: int, maximum: int) -> None:
    if not 1 <= value <= maximum:
        raise ValueError(f"{name} must be between 1 and {maximum}, not {value}")
