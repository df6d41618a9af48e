"""What an event costs and what is charged for it, one by one: for sinks that report amounts.

prices = EventPrices("usage.db")
LagoSink(price=prices.charge)                            # dynamic charges: Lago bills what we say
OpenMeterSink(properties={"cost_usd": prices.cost_text})
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Final

from sqlalchemy import select

from token_meter.bookkeeping.rater import LedgerRater, Prices
from token_meter.event import MeterEvent
from token_meter.ledger.ledger import Ledger
from token_meter.ledger.rater import Rating
from token_meter.ledger.tables import EVENTS, state
from token_meter.money import EXACT, ZERO, plain, product

LOOKED_EVERY_SECONDS: Final = 1.0
"""So often it is asked whether prices or plans of the ledger changed."""


class EventPrices:
    """Prices events by the price book and the plans of a ledger. Any thread may use it; close it.

    Charges that depend on the whole billing period (tiers, packages) cannot be told for one event: they are None.
    """

    def __init__(self, ledger: str | os.PathLike[str], *, prices: Prices = None) -> None:
        self._ledger = Ledger(ledger)
        self._rater = LedgerRater(prices)
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._catalogue = -1

    def charge(self, event: MeterEvent, types: Iterable[str]) -> Decimal | None:
        """What is charged for these token types of an event, exact; without any, for the call itself."""
        return self._sum(event, types, lambda rating: rating.charge)

    def cost(self, event: MeterEvent, types: Iterable[str] = ()) -> Decimal | None:
        """What these token types (without any: all of them) cost us, in US dollars."""
        return self._sum(event, tuple(types) or tuple(event.usage), lambda rating: rating.cost)

    def cost_text(self, event: MeterEvent) -> str | None:
        """What an event cost us, as a property of a measure; None without a price."""
        cost = self.cost(event)
        return None if cost is None else plain(cost)

    def _sum(self, event: MeterEvent, types: Iterable[str], rate: Callable[[Rating], str | None]) -> Decimal | None:
        with self._lock:
            self._renew()
            answer = self._rater.rate(event)
        total = ZERO
        for name in tuple(types) or (EVENTS,):
            found = rate(answer[name]) if name in answer else None
            if found is None:
                return None
            total = EXACT.add(total, product(Decimal(found), event.usage.get(name, 1)))
        return total

    def _renew(self) -> None:
        if time.monotonic() - self._looked < LOOKED_EVERY_SECONDS:
            return
        with self._ledger.reading() as (_, connection):
            catalogue = connection.execute(select(state.c.catalogue)).scalar_one()
            if catalogue != self._catalogue:
                self._rater.read(connection)
                self._catalogue = catalogue
        self._looked = time.monotonic()

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()
