"""Customers at first sight: whoever an event names is in the book from the transaction on that records the event.

So nobody can be charged, looked up or exported whom the book does not know, and nobody has to be entered by hand
before their first call. What the book says about a customer is for `token_meter.accounts` to edit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection

from token_meter.ledger.rollups import REMEMBERED_MAX, CustomerKey, Memory
from token_meter.ledger.rows import Measure
from token_meter.ledger.store import Store
from token_meter.ledger.tables import SERIES_COLUMNS, customers
from token_meter.ledger.values import MODES

_CUSTOMER: Final = SERIES_COLUMNS.index("customer")
_MODE: Final = SERIES_COLUMNS.index("mode")


class FirstSight:
    """The customers met inside one writing transaction. `remember` after its commit, or nothing is remembered."""

    def __init__(self, store: Store, connection: Connection, memory: Memory) -> None:
        self._store = store
        self._connection = connection
        self._known = memory.customers
        self._met: set[CustomerKey] = set()

    def meet(self, measures: Iterable[Measure], moment: int) -> None:
        """Enter the customers of these events who are not in the book yet, as of this moment."""
        named = {(measure.series[_MODE], measure.series[_CUSTOMER]) for measure in measures}
        # An empty name is nobody's, and a mode that is neither live nor test has no book.
        self._met = {(mode, id) for mode, id in named - self._known if id and mode in MODES}
        self._store.insert_missing(
            self._connection,
            customers,
            [
                {"mode": mode, "id": id, "status": "active", "created": moment, "updated": moment}
                for mode, id in sorted(self._met)
            ],
        )

    def remember(self) -> None:
        """The transaction is committed: those it met are in the book."""
        if len(self._known) > REMEMBERED_MAX:
            self._known.clear()
        self._known.update(self._met)
