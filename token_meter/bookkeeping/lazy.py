"""A rater that costs nothing until an event is rated: prices and plans load in the thread that delivers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from token_meter.locks import tell_after_fork

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from token_meter.bookkeeping.rater import LedgerRater
    from token_meter.event import MeterEvent
    from token_meter.ledger.rater import Rating
    from token_meter.ledger.rows import Measure
    from token_meter.ledger.store import Store
    from token_meter.prices.book import PriceBook

PRICES_VARIABLE = "TOKEN_METER_PRICES"
"""A file of price overrides, for every process that records into a ledger."""


class LazyRater:
    """A `LedgerRater` that is made when it is first needed; at once if there are overrides that may be wrong."""

    def __init__(self, prices: str | os.PathLike[str] | Mapping[str, Any] | PriceBook | None = None) -> None:
        self._prices = prices if prices is not None else os.environ.get(PRICES_VARIABLE) or None
        self._made: LedgerRater | None = None
        self.after_fork()
        tell_after_fork(self)
        if self._prices is not None:
            self.made()

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._making = threading.Lock()

    def made(self) -> LedgerRater:
        """The rater itself: the same for whoever delivers and whoever holds."""
        if self._made is None:
            with self._making:
                if self._made is None:
                    from token_meter.bookkeeping.rater import LedgerRater

                    self._made = LedgerRater(self._prices)
        return self._made

    def renew(self, store: Store, connection: Connection) -> None:
        """Read prices and plans of the ledger."""
        self.made().renew(store, connection)

    def charged(
        self, store: Store, connection: Connection, measures: Sequence[tuple[Measure, int]]
    ) -> Callable[[], None]:
        """Let prepaid credit follow what was recorded."""
        return self.made().charged(store, connection, measures)

    def rate(self, event: MeterEvent) -> Mapping[str, Rating]:
        """The rating of each token type of an event."""
        return self.made().rate(event)
