"""What comes for a time that invoices are final for: it is written down, so that the next invoice corrects it.

Everything else about invoices is for others; but only who records knows that something came too late, and it must not
depend on anybody looking. The numbers grow, so that an invoice can say up to which it has seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection

from token_meter.ledger.rows import HOUR, Measure
from token_meter.ledger.tables import SERIES_COLUMNS, late

_CUSTOMER: Final = SERIES_COLUMNS.index("customer")
_MODE: Final = SERIES_COLUMNS.index("mode")


def mark_late(connection: Connection, closed: int, measures: Iterable[tuple[str, Measure]]) -> None:
    """Write down those that count before `closed` (microseconds since 1970): some invoice may be final for them."""
    if not closed:
        return
    rows = [
        {
            "mode": measure.series[_MODE],
            "customer": measure.series[_CUSTOMER],
            "event_id": identity,
            "time": measure.hour * HOUR,
        }
        for identity, measure in measures
        if measure.hour * HOUR < closed
    ]
    if rows:
        connection.execute(late.insert(), rows)
