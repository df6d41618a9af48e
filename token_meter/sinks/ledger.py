"""The ledger as a sink: where the reporter records events."""

from __future__ import annotations

import os
from collections.abc import Sequence

from token_meter.errors import Retry
from token_meter.event import MeterEvent
from token_meter.ledger.ledger import Ledger
from token_meter.ledger.rater import Rater
from token_meter.ledger.store import LedgerError


class LedgerSink:
    """Records events in a ledger, each id once. `ledger` is that ledger, for queries.

    `rater` says what events cost; a Meter gives its own to a sink that has none.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        dimensions: Sequence[str] = (),
        name: str = "ledger",
        rater: Rater | None = None,
    ) -> None:
        self.name = name
        self.ledger = Ledger(url, dimensions=dimensions, rater=rater)

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Record a batch. Retry while the ledger cannot be reached, Rejected for events it can never hold."""
        if not events:
            return
        try:
            self.ledger.record(events)
        except LedgerError as problem:
            raise Retry(str(problem)) from problem

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def __repr__(self) -> str:
        return f"LedgerSink({self.ledger!r}, name={self.name!r})"
