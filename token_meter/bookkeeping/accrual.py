"""Accrual: what was used and is on no final invoice yet, customer by customer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, select

from token_meter.billing.invoice import Invoice
from token_meter.billing.plans import Period
from token_meter.bookkeeping.invoice_book import InvoiceBook
from token_meter.bookkeeping.invoice_rows import everybody
from token_meter.bookkeeping.segments import month_around
from token_meter.errors import InvalidInvoice
from token_meter.ledger.query import read_bounds
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import subscriptions
from token_meter.money import ZERO, total

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger


class Accrual(NamedTuple):
    """The draft of a period that has no final invoice, or why it cannot be drawn up."""

    customer: str
    draft: Invoice | None
    problem: str | None = None

    @property
    def amount(self) -> Decimal:
        """What was earned and is neither invoiced nor paid for with credit, before tax. Credit that was sold is earned
        as it is used: by its own journal."""
        if self.draft is None:
            return ZERO
        return total(line.amount or ZERO for line in self.draft.lines if line.kind not in ("pack", "tax"))


def accruals(ledger: Ledger, *, mode: str = "live", now: Callable[[], float] = time.time) -> Iterator[Accrual]:
    """Every period, ended or under way, that has no final invoice and comes to something."""
    with ledger.reading() as (_, connection):
        names = everybody(connection, mode)
        bounds = read_bounds(connection)
        subscribed = connection.execute(select(func.min(subscriptions.c.start)).where(subscriptions.c.mode == mode))
        starts = [each for each in (bounds[0] if bounds else None, subscribed.scalar()) if each is not None]
    moment = EPOCH + MICROSECOND * int(now() * 1_000_000)
    if not starts:
        return
    first, last = month_around(EPOCH + MICROSECOND * min(starts)), month_around(moment)
    within = Period(first.start, last.stop + timedelta(days=366))
    book = InvoiceBook(ledger, now=now)
    for customer in names:
        try:
            drafts = book.draft(customer, within=within, mode=mode)
        except InvalidInvoice as problem:
            yield Accrual(customer, None, str(problem))
            continue
        for invoice in drafts:
            if invoice.number is None and invoice.period.start <= moment and (invoice.lines or invoice.held):
                yield Accrual(customer, invoice)
