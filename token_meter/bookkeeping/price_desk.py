"""The price desk: new prices come in here, wait here for a human where they are unlikely, and are decided on here.

What is recorded is never edited: a decision is another row. Whatever changes is followed at once by rating again what
lacked a price, and what happened since the new price holds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn

from sqlalchemy import Connection, func, select

from token_meter.bookkeeping.notice_rows import write_notice
from token_meter.bookkeeping.plan_book import touch
from token_meter.bookkeeping.price_impact import Effect, effects
from token_meter.bookkeeping.price_rows import decide, read_rows, write_rows
from token_meter.bookkeeping.rater import LedgerRater, rate_pending
from token_meter.bookkeeping.settings import SETTING
from token_meter.errors import InvalidPrices
from token_meter.ledger.ledger import Ledger
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import LedgerError
from token_meter.ledger.tables import catalogue, state
from token_meter.ledger.text import to_stored
from token_meter.prices.book import PriceBook
from token_meter.prices.change import change_of, evidence, is_first_seen, was_refused
from token_meter.prices.drift import Comparison, Disagreement, compare
from token_meter.prices.feeds import Fetched
from token_meter.prices.merge import NewName, merge
from token_meter.prices.price import Price, Status
from token_meter.prices.stated import SecondSource, in_force

ETAG: Final = "prices_etag:"
"""Settings whose name begins so say what a source gave the last time."""

ADJUDICATIONS: Final = "price_adjudications"
CONFIRMED: Final = "confirmed by hand"
ATTEMPTS_MAX: Final = 5
"""So often a sync begins anew because prices or plans changed meanwhile."""

ID_CHARACTERS_MIN: Final = 8
"""So much of a row's id is enough to name it, as long as no other begins alike."""


@dataclass(frozen=True, slots=True)
class Synced:
    """What came of a sync. `agreed` prices are the same, `rated` is how many events have another rating now, and
    `superseded` rows no longer wait, because the source no longer states them."""

    source: str
    version: str
    unchanged: bool
    effects: tuple[Effect, ...]
    agreed: int = 0
    lagging: int = 0
    rated: int = 0
    superseded: tuple[Price, ...] = ()
    names: tuple[NewName, ...] = ()
    """Names of known models that only the source has: for `aliases` in the overrides."""

    @property
    def waiting(self) -> list[Effect]:
        """What needs a human: held and refused now, and held before."""
        return [
            each
            for each in self.effects
            if each.change.verdict == "held" or (each.change.verdict == "refused" and not each.change.standing)
        ]


class PriceDesk:
    """Takes prices into a ledger: from feeds, within bounds, and by decisions of a human."""

    def __init__(self, ledger: Ledger, rater: LedgerRater, *, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._rater = rater
        self._now = now

    @property
    def book(self) -> PriceBook:
        """The book by which this ledger's events are rated."""
        return self._rater.book_of(self._ledger)

    # Feeds

    def etag(self, source: str) -> str | None:
        """The ETag to send to a source: None if it gave none, or if the shipped book is another one by now."""
        with self._ledger.reading() as (_, connection):
            known = _setting(connection, ETAG + source)
        return known["etag"] if known and known["book"] == self.book.shipped.version else None

    def checked(self) -> datetime | None:
        """When prices were last compared with a source."""
        with self._ledger.reading() as (_, connection):
            mine = (catalogue.c.kind == SETTING) & catalogue.c.name.startswith(ETAG, autoescape=True)
            recorded = connection.execute(select(func.max(catalogue.c.recorded)).where(mine)).scalar()
        return None if recorded is None else EPOCH + MICROSECOND * recorded

    def preview(self, fetched: Fetched, *, second: SecondSource | None = None) -> Synced:
        """What `sync` would do; nothing is recorded."""
        if fetched.feed is None:
            return Synced(fetched.source, fetched.version, True, ())
        book = self.book
        merged = merge(book, fetched.feed, now=self._moment(), second=second)
        found = effects(self._ledger, book, merged.changes, now=self._moment())
        return Synced(
            fetched.source, fetched.version, False, tuple(found), merged.agreed, merged.lagging,
            superseded=merged.superseded, names=merged.names,
        )  # fmt: skip

    def sync(self, fetched: Fetched, *, confirm: bool = False, second: SecondSource | None = None) -> Synced:
        """Take what a feed changes: likely changes hold from their date on, the others wait or are refused.

        `confirm`: changes beyond a factor of ten, which would be refused, are taken. Raises InvalidPrices for a feed
        that is older than the book, or only a part of one; then nothing changes.
        """
        for _ in range(ATTEMPTS_MAX):
            before = self._catalogue_number()
            found = self.preview(fetched, second=second)
            if confirm:
                found = replace(found, effects=tuple(map(_confirmed, found.effects)))
            new = [each.change.price for each in found.effects if each.change.verdict and not each.change.standing]
            rows = [*new, *found.superseded]
            try:
                self._record(rows, fetched, before, found.effects)
            except _Moved:
                continue
            return replace(found, rated=self._rate(_since(found), f"prices from {found.source} {found.version}"))
        raise LedgerError("prices and plans of this ledger change all the time: try again later")

    def _catalogue_number(self) -> int:
        with self._ledger.reading() as (_, connection):
            return int(connection.execute(select(state.c.catalogue)).scalar_one())

    def _record(self, rows: Sequence[Price], fetched: Fetched, before: int, found: Sequence[Effect]) -> None:
        """Record the rows, unless prices changed since they were compared: then they must be compared again."""
        book = self.book.shipped.version
        with self._ledger.closing() as (store, connection):
            if connection.execute(select(state.c.catalogue)).scalar_one() != before:
                raise _Moved
            touch(connection)
            write_rows(connection, rows, recorded=self._micros())
            for each in found:
                if each.change.verdict and not each.change.standing:
                    kind = _kind(each)
                    write_notice(store, connection, kind, f"{kind}|{each.change.price.id}", each.to_json())
            said = {"etag": fetched.etag, "version": fetched.version, "book": book}
            self._keep(connection, ETAG + fetched.source, said)

    # Decisions

    def held(self) -> list[Effect]:
        """What waits for a human, oldest first, with what it would mean."""
        return self._effects(row for row in self._rows() if row.status == "held")

    def accept(self, price_id: str, *, effective_from: datetime | None = None) -> Effect:
        """Let a row that was held or rejected hold from its date on, or from another one: then a row with that date
        takes its place, because a feed's "first seen" is later than the change. Raises InvalidPrices for an unknown
        id, and for a date at which the row had ended."""
        if effective_from is None:
            return self._decide(price_id, "active", "accepted by hand")
        return self._date(price_id, effective_from)

    def reject(self, price_id: str) -> Effect:
        """Let a row not hold, also one that did, and one of the shipped book; what the book said before holds again.
        It is not proposed again."""
        return self._decide(price_id, "rejected", "rejected by hand")

    def changes(self, since: datetime) -> list[Effect]:
        """What was recorded since, in the order it was, and then every price that is still to come."""
        now = self._moment()
        recorded = [row for row in self._rows() if row.recorded_at is not None and row.recorded_at >= since]
        named = {row.id for row in recorded}
        return self._effects([*recorded, *(row for row in scheduled(self.book, now) if row.id not in named)])

    def _decide(self, price_id: str, status: Status, said: str) -> Effect:
        with self._ledger.closing() as (_, connection):
            touch(connection)
            row = self._named(price_id, connection)
            if row.status != status:
                decide(connection, replace(row, evidence=evidence(is_first_seen(row), said)), status)
        decided = next((each for each in self._rows() if each.id == row.id), row)
        found = self._effects([decided])[0]
        if row.status != status:
            self._tell(found)
            self._rate(row.effective_from or EPOCH, f"price {row.id} {said}")
        return found

    def _tell(self, effect: Effect) -> None:
        """A notice that a price holds from now on that did not."""
        change = effect.change
        if change.verdict == "active":
            kind = _kind(effect)
            with self._ledger.writing() as (store, connection):
                key = f"{kind}|{change.price.id}|{self._micros()}"
                write_notice(store, connection, kind, key, effect.to_json())

    def _date(self, price_id: str, start: datetime) -> Effect:
        """Accept a row with another date: it is rejected, and one like it with that date holds."""
        with self._ledger.closing() as (_, connection):
            row = self._named(price_id, connection)
            if row.effective_to is not None and start >= row.effective_to:
                raise InvalidPrices(f"{row.id} ends at {row.effective_to:%Y-%m-%d}: it cannot hold from {start}")
            if start == row.effective_from:
                raise InvalidPrices(f"{row.id} has this date already: accept it without one")
            touch(connection)
            dated = replace(row, effective_from=start, evidence=evidence(False, f"accepted by hand from {start}"))
            if row.status != "rejected":
                decide(connection, replace(row, evidence=evidence(is_first_seen(row), f"dated {start}")), "rejected")
            decide(connection, dated, "active")
        found = self._effects([replace(dated, status="active")])[0]
        self._tell(found)
        self._rate(min(start, row.effective_from or EPOCH), f"price {row.id} accepted from {start}")
        return found

    # Drift

    def check(self, second: SecondSource) -> Comparison:
        """Where the book and a second source state different prices now."""
        with self._ledger.reading() as (_, connection):
            known = _setting(connection, ADJUDICATIONS) or {}
        return compare(self.book, second, at=self._moment(), adjudicated=known)

    def adjudicate(self, disagreements: Sequence[Disagreement]) -> None:
        """A human has looked at these: they do not come back until one of their amounts changes."""
        with self._ledger.closing() as (_, connection):
            touch(connection)
            known = dict(_setting(connection, ADJUDICATIONS) or {})
            new = {each.id: each.to_json() for each in disagreements if each.id not in known}
            if new:
                self._keep(connection, ADJUDICATIONS, {**known, **new})

    # Inside

    def _named(self, price_id: str, connection: Connection) -> Price:
        """The row that a user means: of the ledger's own, then of the shipped book. Raises InvalidPrices for none."""
        own = read_rows(connection)
        return _named(price_id, own) or _named(price_id, self._rater.shipped_rows(connection)) or _refuse(price_id, own)

    def _rows(self) -> list[Price]:
        with self._ledger.reading() as (_, connection):
            return read_rows(connection)

    def _effects(self, rows: Sequence[Price] | Iterator[Price]) -> list[Effect]:
        now, book = self._moment(), self.book
        changes = [change_of(book, row, now=now) for row in rows]
        return effects(self._ledger, book, changes, now=now)

    def _rate(self, since: datetime | None, reason: str) -> int:
        """Rate what lacked a price, and what happened since a price holds that replaces another."""
        if self._ledger.rater is None:
            return 0
        rated = self._ledger.rate_again(since=since, reason=reason) if since is not None else 0
        return rated + rate_pending(self._ledger)

    def _keep(self, connection: Connection, name: str, content: Mapping[str, Any]) -> None:
        stored = to_stored(name)
        mine = (catalogue.c.kind == SETTING) & (catalogue.c.name == stored)
        number = connection.execute(select(func.max(catalogue.c.number)).where(mine)).scalar() or 0
        row = {
            "kind": SETTING, "name": stored, "number": number + 1, "effective": self._micros(),
            "recorded": self._micros(), "document": json.dumps(content, sort_keys=True),
        }  # fmt: skip
        connection.execute(catalogue.insert(), row)

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)

    def _moment(self) -> datetime:
        return EPOCH + timedelta(microseconds=self._micros())


def scheduled(book: PriceBook, now: datetime) -> list[Price]:
    """Every price of the book that is still to come, as it is announced by now."""
    return [
        price
        for model in book.with_overrides(None).models()
        for start in sorted({each.effective_from for each in model.prices if each.effective_from})
        if start > now
        for price in in_force(model.prices, start).values()
        if price.effective_from == start
    ]


class _Moved(Exception):
    """Somebody else changed prices or plans meanwhile."""


def _kind(effect: Effect) -> str:
    """The kind of notice."""
    return "price.added" if effect.change.kind == "added" else "price.changed"


def _since(synced: Synced) -> datetime | None:
    """Since when what was rated may have another price, or one whose rise waits. What had none is pending anyway."""
    changes = [each.change for each in synced.effects if each.change.verdict in ("active", "held")]
    dates = [each.effective_from for each in changes if each.old] + [row.effective_from for row in synced.superseded]
    return min((date for date in dates if date is not None), default=None)


def _confirmed(effect: Effect) -> Effect:
    """What was refused only for its size holds after all."""
    change = effect.change
    if change.verdict != "refused" or (change.standing and not was_refused(change.price)):
        return effect
    price = replace(change.price, status="active", evidence=evidence(change.first_seen, f"{CONFIRMED}: {change.why}"))
    return replace(effect, change=replace(change, price=price, verdict="active", standing=False))


def _named(price_id: str, rows: Sequence[Price]) -> Price | None:
    found = [row for row in rows if row.id == price_id]
    if not found and len(price_id) >= ID_CHARACTERS_MIN:
        found = [row for row in rows if row.id.startswith(price_id)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidPrices(f"{price_id} may mean {len(found)} prices: give more of the id")
    return None


def _refuse(price_id: str, rows: Sequence[Price]) -> NoReturn:
    waiting = [row.id for row in rows if row.status == "held"]
    hint = f"waiting are {', '.join(waiting[:5])}" if waiting else "none waits"
    raise InvalidPrices(f"there is no price {price_id!r}; {hint}")


def _setting(connection: Connection, name: str) -> dict[str, Any] | None:
    mine = (catalogue.c.kind == SETTING) & (catalogue.c.name == to_stored(name))
    last = select(catalogue.c.document).where(mine).order_by(catalogue.c.number.desc()).limit(1)
    text = connection.execute(last).scalar()
    return None if text is None else json.loads(text)
