"""Accrual: what was used and is on no final invoice yet, customer by customer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from token_meter.billing.invoice import Invoice
from token_meter.billing.plans import Period
from token_meter.bookkeeping.invoice_book import InvoiceBook
from token_meter.bookkeeping.invoice_rows import everybody
from token_meter.bookkeeping.segments import month_around
from token_meter.ledger.query import read_bounds
from token_meter.ledger.rows import EPOCH, MICROSECOND

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger


def accruals(ledger: Ledger, *, mode: str = "live", now: Callable[[], float] = time.time) -> Iterator[Invoice]:
    """The drafts of every period, ended or under way, that has no final invoice and comes to something."""
    with ledger.reading() as (_, connection):
        names = everybody(connection, mode)
        bounds = read_bounds(connection)
    if bounds is None:
        return
    first = month_around(EPOCH + MICROSECOND * bounds[0])
    last = month_around(EPOCH + MICROSECOND * int(now() * 1_000_000))
    within = Period(first.start, last.stop + timedelta(days=366))
    book = InvoiceBook(ledger, now=now)
    for customer in names:
        for invoice in book.draft(customer, within=within, mode=mode):
            if invoice.number is None and invoice.period.start <= last.start and (invoice.lines or invoice.held):
                yield invoice
