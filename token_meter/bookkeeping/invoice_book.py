"""The invoice book: drafts, final invoices with numbers without gaps, corrections, voids and credit notes.

A draft is worked out each time it is asked for. A final invoice is kept with what it was drawn up from, and nothing of
that changes afterwards: late events, voided events and corrected prices come on the next invoice, with their original
service period and price.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from token_meter.billing.invoice import Invoice, note_lines
from token_meter.billing.plans import Period
from token_meter.billing.render import DRAFT, Standing
from token_meter.bookkeeping.invoice_desk import SELLER, InvoiceDesk, Ran
from token_meter.bookkeeping.invoice_rows import (
    Kept,
    Numbers,
    change_invoice,
    everybody,
    kept_of,
    kept_of_row,
    micros,
    notes_on,
    read_invoice,
    sealed,
)
from token_meter.bookkeeping.segments import billings, month_around
from token_meter.bookkeeping.settings import read_setting, write_setting
from token_meter.errors import InvalidInvoice
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import invoices
from token_meter.ledger.text import to_stored
from token_meter.money import ZERO, decimal_of, rounded, total

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

PAGE: Final = 100
"""So many customers are invoiced in one transaction of a run."""

_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,15}")

Progress = Callable[[int, int], object]


class InvoiceBook:
    """Draws up and keeps the invoices of a ledger's customers."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = now

    # Drafts

    def draft(self, customer: str, *, within: Period | None = None, mode: str = "live") -> list[Invoice]:
        """What a customer's invoices for the periods that end within a span would be now.

        Without a span: the billing period under way. A period with a final invoice gives that invoice.
        """
        now = self._moment()
        with self._ledger.reading() as (store, connection):
            desk = InvoiceDesk(store, connection, mode, [customer])
            found = billings(desk.catalogue, mode, customer, within or _around(now))
            if within is None:
                found = [each for each in found if each.period.start <= now < each.period.stop]
            return [desk.final_or_draft(each, customer, now, assume=len(found) > 1) for each in found]

    # Final invoices

    def finalise(self, customer: str, period: Period, *, mode: str = "live") -> Invoice:
        """Make the invoice of a period final; if it is final already, that one is returned.

        Raises InvalidInvoice for a period that has not ended, for one that is none of this customer's, and where there
        is nothing to invoice: a number stands for something.
        """
        now = self._moment()
        with self._ledger.closing() as (store, connection):
            desk = InvoiceDesk(store, connection, mode, [customer])
            there = desk.final_of(customer, period)
            if there is not None:
                return there.invoice
            billing = desk.billing_of(customer, period)
            if billing is None:
                raise InvalidInvoice(f"{customer} has no billing period {period}: see `token-meter invoice show`")
            if period.stop > now:
                raise InvalidInvoice(
                    f"the period {period} has not ended: it can be final from {period.stop:%Y-%m-%d %H:%M} UTC on"
                )
            final = desk.finalise(billing, customer, now)
            if final is None:
                raise InvalidInvoice(f"there is nothing to invoice to {customer} for {period}")
            desk.write()
            return final

    def run(self, within: Period, *, mode: str = "live", progress: Progress | None = None) -> Ran:
        """Make every customer's invoices for the periods that end within a span final.

        Who has one keeps it, so a run that was stopped goes on where it was. An invoice without lines is not written.
        Raises InvalidInvoice for a span that has not ended.
        """
        now = self._moment()
        if within.stop > now:
            raise InvalidInvoice(f"the period {within} has not ended: it ends at {within.stop:%Y-%m-%d %H:%M} UTC")
        with self._ledger.reading() as (_, connection):
            names = everybody(connection, mode)
        ran = Ran([], 0, 0, {}, {}, {})
        for start in range(0, len(names), PAGE):
            with self._ledger.closing() as (store, connection):
                page = names[start : start + PAGE]
                desk = InvoiceDesk(store, connection, mode, page)
                for customer in page:
                    try:
                        ran = desk.run(customer, within, now, ran)
                    except InvalidInvoice as problem:
                        ran.failed[customer] = str(problem)
                desk.write()
            if progress is not None:
                progress(min(start + PAGE, len(names)), len(names))
        return ran

    # What becomes of them

    def get(self, number: str, *, mode: str = "live") -> Kept:
        """A kept invoice. Raises InvalidInvoice if there is none of this number."""
        with self._ledger.reading() as (_, connection):
            return read_invoice(connection, number, mode)

    def standing(self, number: str | None, *, mode: str = "live") -> Standing:
        """What became of a kept invoice; of a draft (None): nothing."""
        if number is None:
            return DRAFT
        with self._ledger.reading() as (_, connection):
            kept = read_invoice(connection, number, mode)
            noted = total(each.invoice.total for each in notes_on(connection, number, mode) if each.state == "final")
        why = str(kept.changed.get("reason", ""))
        return Standing(kept.kind, kept.state, kept.paid, why, kept.concerns, noted)

    def knows(self, customer: str, *, mode: str = "live") -> bool:
        """Whether there is a customer of this id."""
        with self._ledger.reading() as (_, connection):
            return customer in everybody(connection, mode)

    def list(self, *, customer: str | None = None, mode: str = "live", state: str | None = None) -> list[Kept]:
        """Kept invoices and credit notes, oldest first."""
        query = select(invoices).where(invoices.c.mode == mode).order_by(invoices.c.issued, invoices.c.number)
        if customer is not None:
            query = query.where(invoices.c.customer == to_stored(customer))
        if state is not None:
            query = query.where(invoices.c.state == state)
        with self._ledger.reading() as (_, connection):
            return [kept_of_row(row) for row in connection.execute(query)]

    def void(self, number: str, *, reason: str, mode: str = "live") -> Kept:
        """Declare a final invoice void: its number stays, its period can be invoiced again.

        Raises InvalidInvoice for one that is paid, or that a credit note or a later correction refers to.
        """
        with self._ledger.closing() as (_, connection):
            kept = read_invoice(connection, number, mode)
            if kept.state == "void":
                return kept
            if kept.paid is not None:
                raise InvalidInvoice(f"{number} is paid: write a credit note instead of voiding it")
            later = [each for each in kept_of(connection, kept.invoice.customer, mode) if each.state == "final"]
            for each in later:
                if each.concerns == number or any(line.corrects == number for line in each.invoice.lines):
                    raise InvalidInvoice(f"{each.invoice.number} refers to {number}: void that first")
            changed = json.dumps({"reason": reason, "at": self._moment().isoformat()})
            change_invoice(connection, number, mode, state="void", changed=changed)
            return read_invoice(connection, number, mode)

    def pay(self, number: str, *, at: datetime | None = None, reference: str = "", mode: str = "live") -> Kept:
        """Mark a final invoice as paid."""
        with self._ledger.writing() as (_, connection):
            kept = read_invoice(connection, number, mode)
            if kept.state != "final":
                raise InvalidInvoice(f"{number} is {kept.state}: only a final invoice is paid")
            paid = micros(at or self._moment())
            change_invoice(connection, number, mode, paid=paid, changed=json.dumps({"reference": reference}))
            return read_invoice(connection, number, mode)

    def credit_note(self, number: str, *, reason: str, amount: Decimal | None = None, mode: str = "live") -> Invoice:
        """Take a final invoice back, all that is left of it or an amount. The note has a number of its own.

        Raises InvalidInvoice for more than is left.
        """
        now = self._moment()
        with self._ledger.closing() as (_, connection):
            kept = read_invoice(connection, number, mode)
            if kept.state != "final" or kept.kind != "invoice":
                raise InvalidInvoice(f"{number} is no final invoice")
            noted = [each.invoice.total for each in notes_on(connection, number, mode) if each.state == "final"]
            left = total([kept.invoice.due_amount, *noted])
            taken = left if amount is None else decimal_of(amount, "amount")
            if not ZERO < taken <= left:
                has = f"{left:f} {kept.invoice.currency} is left of it"
                raise InvalidInvoice(f"{taken} cannot be taken back from {number}: {has}")
            if taken != rounded(taken, kept.invoice.currency):
                raise InvalidInvoice(f"{taken} {kept.invoice.currency} cannot be paid: it has too many decimals")
            numbers, prefix = Numbers(connection, mode), (read_setting(connection, SELLER) or {}).get("prefix")
            note = replace(
                kept.invoice, lines=note_lines(kept.invoice, taken, reason), held=(), issued=now, due=None,
                notes=(reason,), number=numbers.next(f"{prefix}-CN" if prefix else "CN"),
            )  # fmt: skip
            numbers.write()
            connection.execute(invoices.insert(), sealed(note, {"late_seen": 0}, "credit_note", number)[1])
            return note

    def set_seller(self, details: Mapping[str, Any]) -> None:
        """Who sells: name, address, tax_id, terms, prefix of numbers, rounding; on every invoice from now on.

        What is not named stays, and an empty text takes it away. Raises InvalidInvoice for a prefix that cannot be.
        """
        if not _PREFIX.fullmatch(str(details.get("prefix") or "INV")):
            raise InvalidInvoice(f"a prefix is up to 16 letters, digits and dashes, not {details['prefix']!r}")
        with self._ledger.closing() as (_, connection):
            known = {**(read_setting(connection, SELLER) or {}), **details}
            kept = {name: text for name, text in known.items() if text not in (None, "")}
            write_setting(connection, SELLER, kept, moment=micros(self._moment()))

    def _moment(self) -> datetime:
        return EPOCH + MICROSECOND * int(self._now() * 1_000_000)


def _around(now: datetime) -> Period:
    """A span in which every period that is under way ends."""
    month = month_around(now)
    return Period(month.start, month.stop + timedelta(days=366))
