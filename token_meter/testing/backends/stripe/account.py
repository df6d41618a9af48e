"""What belongs to one Stripe account: its meters and customers, what it bills, and what it will report."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from token_meter.testing.backends.base import Counted
from token_meter.testing.backends.stripe.book import Book
from token_meter.testing.backends.stripe.params import NewEvent
from token_meter.testing.backends.stripe.reports import Reports
from token_meter.testing.backends.stripe.rules import Meter, Refusal, judged


class Account:
    """The caller holds the backend's lock."""

    def __init__(self, counted: list[Counted], *, customers: Iterable[str], livemode: bool) -> None:
        self.livemode = livemode
        self.customers = set(customers)
        self.meters: dict[str, Meter] = {}
        self.book = Book(counted)
        self.reports = Reports(self.new_id, livemode=livemode)
        self._meter_of: dict[str, str] = {}

    def new_id(self, prefix: str) -> str:
        """An id as Stripe makes them."""
        return f"{prefix}_{'' if self.livemode else 'test_'}{secrets.token_hex(12)}"

    def meter(self, event_name: str) -> Meter | None:
        """The meter that was last set up for this name."""
        id = self._meter_of.get(event_name)
        return None if id is None else self.meters[id]

    def add(self, meter: Meter) -> None:
        """Set one up. An active one of the same name is in its way."""
        current = self.meter(meter.event_name)
        if current is not None and current.deactivated_at is None:
            raise ValueError(f"there is an active meter for {meter.event_name!r}: {current.id}. Archive it first.")
        self.meters[meter.id] = meter
        self._meter_of[meter.event_name] = meter.id

    def archive(self, event_name: str, *, now: float) -> None:
        """Take events of this name no more."""
        meter = self.meter(event_name)
        if meter is None:
            raise KeyError(f"there is no meter for {event_name!r}")
        self.meters[meter.id] = replace(meter, deactivated_at=int(now))

    def judged(self, event: NewEvent, *, now: float) -> Meter | Refusal:
        """The meter on which the event counts, or why there is none."""
        return judged(event, meter=self.meter(event.event_name), customers=self.customers, now=now)

    def count(self, event: NewEvent, identifier: str, meter: Meter, *, now: float) -> bool:
        """Bill it; False if its identifier was used, and nothing was billed."""
        name = meter.event_name
        if self.book.repeats(name, identifier, now):
            return False
        customer, group, value = meter.customer(event), meter.group(event), meter.value(event)
        at = now if event.at is None else event.at
        self.book.add(Counted(identifier, customer, name, group, value, at, now))
        return True

    def count_or_report(self, event: NewEvent, *, now: float) -> None:
        """What the stream does, after it said yes. A repeated identifier is passed over, without a report."""
        identifier = event.identifier or secrets.token_hex(16)
        found = self.judged(event, now=now)
        if isinstance(found, Meter):
            self.count(event, identifier, found, now=now)
            return
        meter = self.meter(event.event_name)
        self.reports.note(found, meter=meter.id if meter else None, identifier=identifier, now=now)

    def latest(self, counted: Iterable[Counted]) -> dict[tuple[str, ...], int]:
        """The last value by (customer, meter, *group), on meters that bill that instead of a sum."""
        names = {meter.event_name for meter in self.meters.values() if meter.aggregation == "last"}
        found: dict[tuple[str, ...], Counted] = {}
        for each in counted if names else ():
            key: tuple[Any, ...] = (each.customer, each.meter, *each.group)
            if each.meter in names and (key not in found or each.at >= found[key].at):
                found[key] = each
        return {key: each.value for key, each in found.items()}
