"""The rater of a ledger: prices and plans are read from it when they change, and events are rated by them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from token_meter.billing.rating import EventRater
from token_meter.bookkeeping.drawing import Drawing
from token_meter.bookkeeping.plan_book import read_catalogue
from token_meter.bookkeeping.price_rows import read_rows
from token_meter.event import MeterEvent
from token_meter.ledger.rater import Rating
from token_meter.ledger.rows import Measure
from token_meter.ledger.store import Store
from token_meter.prices.book import PriceBook

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger
    from token_meter.prices.overrides import Overrides

Prices = str | os.PathLike[str] | Mapping[str, Any] | PriceBook | None


class LedgerRater:
    """Rates by the shipped price book, the rows the ledger has beside it, and the operator's overrides.

    `prices` is a file of overrides, the same as a mapping, or a whole PriceBook. Raises InvalidPrices at once for
    overrides that are wrong.
    """

    def __init__(self, prices: Prices = None) -> None:
        self._given = prices
        self._base: PriceBook | None = self._given if isinstance(self._given, PriceBook) else None
        self._events: EventRater | None = None
        self._drawing: Drawing | None = None
        if self._given is not None:
            self._book()

    def _book(self) -> PriceBook:
        """The book is read when the first event comes, in the thread that delivers."""
        if self._base is None:
            self._base = PriceBook.load(self._given if not isinstance(self._given, PriceBook) else None)
        return self._base

    def renew(self, store: Store, connection: Connection) -> None:
        """Read prices and plans of this ledger."""
        rows = read_rows(connection)
        book = self._book()
        catalogue = read_catalogue(connection)
        self._events = EventRater(book.with_rows([*book.rows, *rows]) if rows else book, catalogue)
        self._drawing = Drawing(catalogue, connection)

    def rate(self, event: MeterEvent) -> Mapping[str, Rating]:
        """The rating of each token type of an event."""
        assert self._events is not None, "`renew` comes first"
        return self._events.rate(event)

    def charged(self, store: Store, connection: Connection, measures: Sequence[tuple[Measure, int]]) -> None:
        """Draw what was charged from the customers' credit, and give back what was taken away."""
        assert self._events is not None and self._drawing is not None, "`renew` comes first"
        self._drawing.follow(store, connection, measures)

    @property
    def overrides(self) -> Overrides | None:
        """The operator's own prices."""
        return self._book().overrides

    def book_of(self, ledger: Ledger) -> PriceBook:
        """The price book by which this ledger's events are rated."""
        with ledger.reading() as (_, connection):
            rows = read_rows(connection)
        book = self._book()
        return book.with_rows([*book.rows, *rows]) if rows else book


def rate_pending(ledger: Ledger, progress: Any = None) -> int:
    """Rate what no rater has seen, and what lacked a price that may be there now; how many events changed."""
    return ledger.rate_again(pending_only=True, reason="was pending", progress=progress)
