"""What invoices of a page of customers are drawn up from, read for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, Final

from sqlalchemy import Connection, select

from token_meter.billing.credit import RECEIVABLE, REVENUE, CreditGrant
from token_meter.billing.line import Metered
from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plans import Period
from token_meter.bookkeeping.aggregates import read_aggregates
from token_meter.bookkeeping.credit_rows import grant_of, micros
from token_meter.bookkeeping.invoice_rows import Buyer, Kept, buyer_of_row, kept_of_row
from token_meter.ledger.costs import read_costs
from token_meter.ledger.periods import time_zone_of
from token_meter.ledger.ratings import Read
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import customers, entries, events, grants, invoices, late
from token_meter.ledger.text import from_stored, to_stored
from token_meter.ledger.values import ANY, Filters, Search
from token_meter.money import EXACT, total

GROUPS: Final = ("customer", "meter", "provider", "model")
"""What the lines of an invoice are told apart by, besides token type and rating."""

_UTC: Final = time_zone_of("UTC")


class Page:
    """A few customers inside one transaction. What one of them needs is read for all."""

    def __init__(self, store: Store, connection: Connection, mode: str, names: Sequence[str]) -> None:
        self.mode = mode
        self.connection = connection
        self._store = store
        self._names = [to_stored(name) for name in names]
        self._usage: dict[Period, dict[str, list[Metered]]] = {}
        self._ratings: dict[int, Read] = {}
        self._active: dict[Period, set[str]] = {}

    def metered(self, customer: str, span: Period) -> list[Metered]:
        """What a customer used in a span, by meter, provider, model, token type and rating."""
        if span not in self._usage:
            self._usage[span] = self._read_usage(span)
        return self._usage[span].get(customer, [])

    def _read_usage(self, span: Period) -> dict[str, list[Metered]]:
        search = Search(Filters(mode=self.mode, meter=ANY), micros(span.start), micros(span.stop))
        found: dict[str, list[Metered]] = {}
        rows = read_costs(
            self._store, self.connection, search, by=GROUPS, bucket=None, zone=_UTC, customers=self._names,
            known=self._ratings,
        )  # fmt: skip
        for row in rows:
            group = row.group
            mine = found.setdefault(str(group["customer"]), [])
            mine += [
                Metered(str(group["meter"]), group["provider"], group["model"], part.name, part.quantity, part.rating)
                for part in row.parts
            ]
        return found

    def has_events(self, customer: str, span: Period) -> bool:
        """Whether anything of a customer happened in a span."""
        if span not in self._active:
            inside = (events.c.time >= micros(span.start)) & (events.c.time < micros(span.stop))
            theirs = select(events.c.id).where(events.c.customer == customers.c.id, events.c.mode == self.mode, inside)
            mine = (customers.c.mode == self.mode) & customers.c.id.in_(self._names)
            found = self.connection.execute(select(customers.c.id).where(mine, theirs.exists()))
            self._active[span] = set(map(from_stored, found.scalars()))
        return customer in self._active[span]

    def aggregates(self, customer: str, span: Period, meters: Sequence[MeterDefinition]) -> dict[str, int]:
        """What these meters come to in a span that no sum tells."""
        if not meters:
            return {}
        return read_aggregates(self.connection, meters, mode=self.mode, customer=customer, span=span)

    def kept(self, customer: str) -> list[Kept]:
        """A customer's invoices and credit notes, oldest first."""
        return self._kept.get(customer, [])

    def keep(self, kept: Kept) -> None:
        """An invoice that was just written."""
        self._kept.setdefault(kept.invoice.customer, []).append(kept)

    @cached_property
    def _kept(self) -> dict[str, list[Kept]]:
        return self._by_customer(invoices, kept_of_row, invoices.c.issued, invoices.c.number)

    def grants(self, customer: str) -> list[CreditGrant]:
        """A customer's grants, as they were when the page began."""
        return self._grants.get(customer, [])

    def owed(self, grant: CreditGrant) -> Decimal:
        """What is owed for a grant that was sold: its price, less what a void took back."""
        mine = (entries.c.grant_id == grant.id) & (entries.c.account == RECEIVABLE)
        query = select(entries.c.amount).where(mine)
        return total(Decimal(amount) for amount in self.connection.execute(query).scalars())

    def assume(self, customer: str, missing: Mapping[str, Decimal], moment: datetime) -> None:
        """As if an invoice had been settled: so much was drawn of these grants, for usage of that moment."""
        self._grants[customer] = [
            replace(grant, remaining=EXACT.subtract(grant.remaining, missing.get(grant.id, Decimal(0))))
            for grant in self._grants.get(customer, [])
        ]
        self._drawn.setdefault(customer, []).extend((grant, moment, amount) for grant, amount in missing.items())

    def forget_grants(self) -> None:
        """Somebody's grants changed: read them anew, and what was drawn of them."""
        self.__dict__.pop("_grants", None)
        self.__dict__.pop("_drawn", None)

    @cached_property
    def _grants(self) -> dict[str, list[CreditGrant]]:
        return self._by_customer(grants, grant_of, grants.c.id)

    def drawn(self, customer: str) -> list[tuple[str, datetime, Decimal]]:
        """What usage has drawn: of which grant, when that usage was, how much (below zero: given back)."""
        return self._drawn.get(customer, [])

    @cached_property
    def _drawn(self) -> dict[str, list[tuple[str, datetime, Decimal]]]:
        found: dict[str, list[tuple[str, datetime, Decimal]]] = {}
        mine = (entries.c.mode == self.mode) & entries.c.customer.in_(self._names)
        columns = (entries.c.customer, entries.c.grant_id, entries.c.service, entries.c.amount)
        query = select(*columns).where(mine, entries.c.account == REVENUE, entries.c.service.is_not(None))
        for customer, grant, service, amount in self.connection.execute(query):
            drawn = (grant, EPOCH + MICROSECOND * service, EXACT.minus(Decimal(amount)))
            found.setdefault(from_stored(customer), []).append(drawn)
        return found

    def late(self, customer: str, after: int, until: int) -> list[datetime]:
        """When those count that came too late for a final invoice, by their numbers."""
        return [moment for number, moment in self._late.get(customer, []) if after < number <= until]

    @cached_property
    def _late(self) -> dict[str, list[tuple[int, datetime]]]:
        def read(row: Any) -> tuple[int, datetime]:
            return row.number, EPOCH + MICROSECOND * row.time

        return self._by_customer(late, read, late.c.number)

    def buyer(self, customer: str) -> Buyer:
        """What is known of a customer for an invoice."""
        return self._buyers.get(customer) or Buyer(None, None, {}, None, None)

    @cached_property
    def _buyers(self) -> Mapping[str, Buyer]:
        mine = (customers.c.mode == self.mode) & customers.c.id.in_(self._names)
        rows = self.connection.execute(select(customers).where(mine))
        return {from_stored(row.id): buyer_of_row(row) for row in rows}

    def _by_customer(self, table: Any, read: Any, *order: Any) -> dict[str, list[Any]]:
        mine = (table.c.mode == self.mode) & table.c.customer.in_(self._names)
        found: dict[str, list[Any]] = {}
        for row in self.connection.execute(select(table).where(mine).order_by(*order)):
            found.setdefault(from_stored(row.customer), []).append(read(row))
        return found
