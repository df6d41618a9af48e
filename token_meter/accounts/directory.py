"""What billing sinks ask of the ledger beside them: customers' ids elsewhere, and events that were recorded.

Ids are asked for with every batch, so they are remembered for a moment; and while the ledger cannot be read, what was
known last is still good: a sink must not stop because another one is down.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from token_meter.accounts.book import CustomerBook
from token_meter.ledger.rows import EPOCH, MICROSECOND, event_of
from token_meter.ledger.store import LedgerError
from token_meter.ledger.tables import events
from token_meter.ledger.text import to_stored
from token_meter.ledger.values import ANY

if TYPE_CHECKING:
    from token_meter.event import MeterEvent
    from token_meter.ledger import Ledger

FRESH_SECONDS: Final = 10.0
"""How long an id is used without looking again."""

REMEMBERED_MAX: Final = 100_000
"""So many ids are remembered."""

IDS_MAX: Final = 500
"""So many events are looked up by one query."""


class LedgerAccounts:
    """The `Accounts` that a meter's ledger gives its sinks. Any thread may use it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._book = CustomerBook(ledger)
        self._known: dict[tuple[str, str, str], tuple[float, str]] = {}

    def external_ids(self, customers: Collection[str], *, backend: str, mode: Any) -> Mapping[str, str]:
        """What the backend knows these customers by; those without such an id are left out."""
        now = time.monotonic()
        known = {each: self._known.get((mode, backend, each)) for each in customers}
        stale = [each for each, entry in known.items() if entry is None or now - entry[0] > FRESH_SECONDS]
        if stale:
            try:
                found = self._book.external_ids(stale, backend=backend, mode=mode)
            except LedgerError:
                if any(known[each] is None for each in stale):
                    raise
            else:
                self._remember(found, stale, backend=backend, mode=mode, now=now)
                known = {each: self._known.get((mode, backend, each)) for each in customers}
        return {each: entry[1] for each, entry in known.items() if entry is not None}

    def _remember(
        self, found: Mapping[str, str], asked: Collection[str], *, backend: str, mode: str, now: float
    ) -> None:
        """An id that was taken away is forgotten; that there is none is not remembered, it may be set any moment."""
        if len(self._known) > REMEMBERED_MAX:
            self._known.clear()
        for each in asked:
            if each in found:
                self._known[(mode, backend, each)] = (now, found[each])
            else:
                self._known.pop((mode, backend, each), None)

    def event(self, id: str) -> MeterEvent | None:
        """The event with this id, None if the ledger does not have it (yet)."""
        return self._ledger.event(id)

    def events_with(self, ids: Collection[str]) -> dict[str, MeterEvent]:
        """Those of these that the ledger has, by their ids."""
        known: dict[str, MeterEvent] = {}
        stored = sorted(to_stored(id) for id in ids)
        with self._ledger.reading() as (_, connection):
            for start in range(0, len(stored), IDS_MAX):
                wanted = select(events).where(events.c.id.in_(stored[start : start + IDS_MAX]))
                known.update((event.id, event) for event in map(event_of, connection.execute(wanted)))
        return known

    def events(self, *, since: datetime, until: datetime, customer: str | None = None) -> Iterable[MeterEvent]:
        """Every event in [since, until), of one customer if named."""
        wanted = ANY if customer is None else customer
        return self._ledger.iter_events(since=since, until=until, customer=wanted)

    def corrections(self, *, since: datetime) -> list[MeterEvent]:
        """Every event since then that corrects another."""
        moment = (since - EPOCH) // MICROSECOND
        with self._ledger.reading() as (_, connection):
            wanted = select(events).where(events.c.corrects.is_not(None), events.c.time >= moment)
            return [event_of(row) for row in connection.execute(wanted)]

    @property
    def shared(self) -> bool:
        """Whether other hosts may record in this ledger too: in a database server, not in a file."""
        return self._ledger.file is None

    def customers_of(self, external_id: str, *, backend: str, mode: Any) -> list[str]:
        """The ids of the customers whom the backend knows by that id."""
        return self._book.customers_of(external_id, backend=backend, mode=mode)


def bind(sinks: Iterable[Any]) -> None:
    """Let the sinks that can make use of a ledger work with the one among them, if there is one."""
    every = list(sinks)
    ledger = next((sink.ledger for sink in every if hasattr(sink, "ledger")), None)
    if ledger is None:
        return
    accounts = LedgerAccounts(ledger)
    for sink in every:
        if callable(getattr(sink, "bind", None)):
            sink.bind(accounts)
