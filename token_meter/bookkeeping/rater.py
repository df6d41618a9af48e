"""The rater of a ledger: prices and plans are read from it when they change, and events are rated by them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection

from token_meter.billing.rating import EventRater, Missing
from token_meter.bookkeeping.drawing import Drawing
from token_meter.bookkeeping.notice_rows import write_notice
from token_meter.bookkeeping.plan_book import read_catalogue, touch
from token_meter.bookkeeping.price_rows import read_history
from token_meter.bookkeeping.settings import read_setting, write_setting
from token_meter.bookkeeping.shipped_books import Shelf
from token_meter.budgets.following import Following
from token_meter.event import MeterEvent
from token_meter.ledger.rater import Rating
from token_meter.ledger.rows import EPOCH, Measure
from token_meter.ledger.store import Store
from token_meter.ledger.tables import SERIES_COLUMNS
from token_meter.prices.book import PriceBook
from token_meter.prices.overrides import Overrides
from token_meter.prices.price import Price
from token_meter.prices.shipped import ShippedBook

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

OVERRIDES: Final = "price_overrides"
"""The setting with the operator's own prices, as the ledger knows them."""

UNKNOWN: Final = "price.unknown"
UNATTRIBUTED: Final = "events.unattributed"
_MODE: Final = SERIES_COLUMNS.index("mode")
_CUSTOMER: Final = SERIES_COLUMNS.index("customer")

_log: Final = logging.getLogger("token_meter")

Prices = str | os.PathLike[str] | Mapping[str, Any] | PriceBook | None


class LedgerRater:
    """Rates by the shipped price book, the rows the ledger has beside it, and the operator's overrides.

    `prices` is a file of overrides, the same as a mapping, or a whole PriceBook; `shipped` another book than the
    package's. The ledger remembers overrides, so
    that every process rates alike: one that is given none uses those that the ledger knows. Raises InvalidPrices at
    once for overrides that are wrong.
    """

    def __init__(self, prices: Prices = None, *, shipped: ShippedBook | None = None) -> None:
        self._given = prices
        self._own_shipped = shipped
        self._base: PriceBook | None = prices if isinstance(prices, PriceBook) else None
        self._remembered: str | None = None
        self._told: set[str] = set()
        self._unattributed: set[tuple[str, str]] = set()
        self._books: Shelf | None = None
        self._events: EventRater | None = None
        self._drawing: Drawing | None = None
        self._following: Following | None = None
        if prices is not None:
            for doubt in self._shipped().doubts():
                _log.warning("price overrides: %s", doubt)

    def _shipped(self) -> PriceBook:
        """The book is read when the first event comes, in the thread that delivers."""
        if self._base is None:
            self._base = PriceBook.load(
                self._given if not isinstance(self._given, PriceBook) else None, shipped=self._own_shipped
            )
        return self._base

    @property
    def _shelf(self) -> Shelf | None:
        """The shipped books of the ledger; None for a whole book of one's own, which counts alone."""
        if self._books is None and not isinstance(self._given, PriceBook):
            self._books = Shelf(self._shipped().shipped)
        return self._books

    def _book(self, connection: Connection) -> PriceBook:
        """The book of a ledger: the newest shipped one, its rows, and the overrides that were given or it knows."""
        book = self._shipped()
        if self._shelf is not None:
            books = self._shelf.read(connection)
            book = book.with_shipped(self._shelf.newest(books), books)
        if self._given is None:
            known = read_setting(connection, OVERRIDES)
            if known is not None:
                book = book.with_overrides(Overrides.read(known))
        rows = read_history(connection)
        return book.with_rows([*book.history, *rows]) if rows else book

    def renew(self, store: Store, connection: Connection) -> None:
        """Read prices and plans of this ledger, in a transaction that writes: what was given here is kept in it."""
        self._remember(store, connection)
        self.read(connection)

    def read(self, connection: Connection) -> None:
        """Read prices and plans of this ledger; nothing is written."""
        self._events = self.events(connection)
        catalogue = self._events.catalogue
        self._drawing = Drawing(catalogue, connection)
        self._following = Following(catalogue, connection)

    def events(self, connection: Connection) -> EventRater:
        """A rater of single events by the prices and plans of a ledger as they are now: for estimates."""
        return EventRater(self._book(connection), read_catalogue(connection))

    @property
    def _own(self) -> Overrides | None:
        """The overrides that were given here."""
        return self._shipped().overrides if self._given is not None else None

    def _remember(self, store: Store, connection: Connection) -> None:
        """The shipped book and the overrides that were given here hold for every process. Overrides are written once,
        so that two that differ do not take turns."""
        now = time.time_ns() // 1000
        if self._shelf is not None and self._shelf.add(store, connection, self._shelf.read(connection), now):
            touch(connection)
        overrides = self._own
        if overrides is None or overrides.version == self._remembered:
            return
        document = overrides.document()
        if read_setting(connection, OVERRIDES) != document:
            write_setting(connection, OVERRIDES, document, moment=now)
            touch(connection)

    def rate(self, event: MeterEvent) -> Mapping[str, Rating]:
        """The rating of each token type of an event."""
        assert self._events is not None, "`renew` comes first"
        return self._events.rate(event)

    def charged(
        self, store: Store, connection: Connection, measures: Sequence[tuple[Measure, int]]
    ) -> Callable[[], None]:
        """Draw what was charged from the customers' credit, and give back what was taken away, and count it in budgets;
        tell of what has no price, once for each model."""
        assert self._events is not None and self._drawing is not None, "`renew` comes first"
        assert self._following is not None
        drawing = self._drawing
        followed = drawing.follow(store, connection, measures)
        self._following.follow(store, connection, measures, lambda numbers: drawing.rates(connection, numbers))
        missing = [each for each in self._events.missing.values() if each.key not in self._told]
        new = [each for each in missing if self._write_notice(store, connection, each)]

        days = _unattributed(measures) - self._unattributed
        for mode, day in days:
            document = {
                "day": day,
                "what_now": "put calls in `with meter.customer(...)`: usage nobody has is not billed",
            }
            write_notice(store, connection, UNATTRIBUTED, f"{UNATTRIBUTED}|{mode}|{day}", document, mode=mode)

        def remember() -> None:
            followed()
            self._unattributed.update(days)
            if self._own is not None:
                self._remembered = self._own.version
            self._told.update(each.key for each in missing)
            for each in new:
                _log.warning("%s", each)

        return remember

    def _write_notice(self, store: Store, connection: Connection, missing: Missing) -> bool:
        return write_notice(store, connection, UNKNOWN, f"{UNKNOWN}|{missing.key}", missing.document())

    def shipped_rows(self, connection: Connection) -> list[Price]:
        """Every row of the shipped book that a ledger goes by."""
        book = self._book(connection).with_overrides(None).with_rows(())
        return [price for model in book.models() for price in model.prices]

    def book_of(self, ledger: Ledger) -> PriceBook:
        """The price book by which this ledger's events are rated."""
        with ledger.reading() as (_, connection):
            return self._book(connection)


def _unattributed(measures: Sequence[tuple[Measure, int]]) -> set[tuple[str, str]]:
    """The modes and days of new usage that has no customer."""
    found = {
        (str(each.series[_MODE]), each.hour // 24)
        for each, sign in measures
        if sign > 0 and each.id and not each.series[_CUSTOMER]
    }
    return {(mode, f"{EPOCH + timedelta(days=day):%Y-%m-%d}") for mode, day in found}


def rate_pending(ledger: Ledger, progress: Any = None) -> int:
    """Rate what no rater has seen, and what lacked a price that may be there now; how many events changed."""
    return ledger.rate_again(pending_only=True, reason="was pending", progress=progress)
