"""The invoice desk: draws up invoices of a page of customers inside one transaction, and makes them final.

What an invoice is drawn up from is kept with it: plans, cards, quantities by rating, credit, and how far it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection

from token_meter.billing.catalogue import Catalogue
from token_meter.billing.correction import Correction, corrections_to
from token_meter.billing.credit import CreditGrant, burn_order
from token_meter.billing.credit_line import Credit, credit_told
from token_meter.billing.invoice import Bought, Invoice, draw_up
from token_meter.billing.line import Line, Segment
from token_meter.billing.lines import lines_of
from token_meter.billing.plans import Period
from token_meter.billing.replay import cut, replayed
from token_meter.bookkeeping.credit_rows import bought_in, settle
from token_meter.bookkeeping.invoice_rows import (
    Documents,
    Kept,
    Numbers,
    check_currency,
    invoiced_lines,
    late_seen,
    micros,
    number_of,
    sealed,
    shown_buyer,
)
from token_meter.bookkeeping.notice_rows import note_invoice
from token_meter.bookkeeping.page import Page
from token_meter.bookkeeping.plan_book import read_catalogue
from token_meter.bookkeeping.segments import Billing, billings, has_fixed_charges, segments_of, terms_text
from token_meter.bookkeeping.settings import read_setting
from token_meter.ledger.rows import MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import invoices, reratings, state
from token_meter.money import EXACT, ZERO, plain, total

if TYPE_CHECKING:
    pass

BEHIND: Final = timedelta(days=92)
"""So far back a run looks for periods that are on no invoice; usage that came late is looked for however old it is."""

FIXED: Final = ("fee", "minimum", "discount")
"""The kinds of lines that come without any usage."""

SELLER: Final = "seller"
"""The setting that says who sells."""


class Ran(NamedTuple):
    """What a run did: the invoices it wrote, how many were there already, how many had nothing on them, and whose could
    not be written, with the reason: those need a human, the others do not wait for them."""

    written: list[Invoice]
    there: int
    empty: int
    failed: dict[str, str]
    behind: dict[str, str]
    """For whom an earlier month comes to something that is on no invoice: nobody ran that month, or an event was given
    to them later. By customer, the month to run."""
    unpriced: dict[str, str]
    """Whose period has no invoice, because all there is in it has no price yet. By customer, why."""


class InvoiceDesk:
    """Draws up invoices of a page of customers inside one transaction."""

    def __init__(self, store: Store, connection: Connection, mode: str, names: Sequence[str]) -> None:
        self._store = store
        self._connection = connection
        self._mode = mode
        self._page = Page(store, connection, mode, names)
        self.catalogue: Catalogue = read_catalogue(connection)
        self._seller: Mapping[str, Any] = read_setting(connection, SELLER) or {}
        self._documents = Documents()
        self._numbers = Numbers(connection, mode)
        self._rows: list[dict[str, Any]] = []
        self._closed = 0
        self._usual: dict[Period, list[Billing]] = {}
        self._late_seen = late_seen(connection)
        self._rerated_seen = number_of(connection, reratings.c.number)
        self._meters = {name: meter.model_dump(mode="json") for name, meter in sorted(self.catalogue.meters.items())}

    def final_of(self, customer: str, period: Period) -> Kept | None:
        """The final invoice of exactly this period."""
        mine = (each for each in self._page.kept(customer) if each.kind == "invoice" and each.state == "final")
        return next((each for each in mine if each.invoice.period == period), None)

    def billing_of(self, customer: str, period: Period) -> Billing | None:
        """The billing period of a customer that is exactly this one."""
        found = self._billings(customer, Period(period.stop - MICROSECOND, period.stop))
        return next((each for each in found if each.period == period), None)

    def final_or_draft(self, billing: Billing, customer: str, now: datetime, *, assume: bool) -> Invoice:
        """The final invoice of a period, or what it would be now. `assume`: as if the drafts before it were final, so
        that no credit is used and nothing is corrected in several of them."""
        there = self.final_of(customer, billing.period)
        if there is not None:
            return there.invoice
        invoice, inputs = self._draw_up(billing, customer)
        if assume:
            missing = self._missing(invoice, billing)
            written = replace(invoice, number=f"draft {billing.period}", issued=now)
            self._page.keep(sealed(written, inputs, kind="invoice")[0])
            self._page.assume(customer, missing, billing.period.stop - MICROSECOND)
        return invoice

    def _billings(self, customer: str, within: Period) -> list[Billing]:
        """A customer's billing periods; those without a subscription of their own all have the same."""
        if self.catalogue.subscriptions.get((self._mode, customer)):
            return billings(self.catalogue, self._mode, customer, within)
        if within not in self._usual:
            self._usual[within] = billings(self.catalogue, self._mode, customer, within)
        return self._usual[within]

    def run(self, customer: str, within: Period, now: datetime, ran: Ran) -> Ran:
        """The invoices of one customer in a run."""
        behind = self._behind(customer, within)
        if behind is not None:
            ran.behind[customer] = behind
        for billing in self._billings(customer, within):
            if self.final_of(customer, billing.period) is not None:
                ran = ran._replace(there=ran.there + 1)
                continue
            invoice, inputs = self._draw_up(billing, customer)
            if invoice.lines and not self._is_stranger(customer, billing, invoice.lines):
                ran.written.append(self._keep(invoice, inputs, billing, now))
                continue
            ran = ran._replace(empty=ran.empty + 1)
            if invoice.held and not invoice.lines:
                ran.unpriced[customer] = invoice.held[0].reason
        return ran

    def _is_stranger(self, customer: str, billing: Billing, lines: Sequence[Line] = ()) -> bool:
        """Who was not there yet, and used nothing, owes no fee and no minimum of the plan that everybody is on."""
        if billing.parts[-1].terms.subscription is not None or any(line.kind not in FIXED for line in lines):
            return False
        since = self._page.buyer(customer).since
        return since is not None and since >= billing.period.stop

    def _behind(self, customer: str, within: Period) -> str | None:
        """The first month before this span with a billing period that comes to something and has no final invoice."""
        late = [moment for moment in self._page.late(customer, 0, self._late_seen) if moment < within.start]
        for billing in self._billings(customer, Period(min([within.start - BEHIND, *late]), within.start)):
            if self.final_of(customer, billing.period) is None and self._is_owed(customer, billing):
                return f"{billing.period.stop - MICROSECOND:%Y-%m}"
        return None

    def _is_owed(self, customer: str, billing: Billing) -> bool:
        """Whether a period comes to something. Most are answered without a look at the sums."""
        idle = not has_fixed_charges(billing) or self._is_stranger(customer, billing)
        if idle and not self._page.has_events(customer, billing.period):
            return False
        alone = Page(self._store, self._connection, self._mode, [customer])
        lines, _ = lines_of(self._segments(billing, customer, alone), self.catalogue.meters)
        return bool(lines) and not self._is_stranger(customer, billing, lines)

    def finalise(self, billing: Billing, customer: str, now: datetime) -> Invoice | None:
        """Make the invoice of a period final; None if there is nothing on it."""
        invoice, inputs = self._draw_up(billing, customer)
        return self._keep(invoice, inputs, billing, now) if invoice.lines else None

    def _keep(self, invoice: Invoice, inputs: Mapping[str, Any], billing: Billing, now: datetime) -> Invoice:
        plan = billing.plan
        due = now + timedelta(days=plan.due_days if plan is not None else 30)
        number = self._numbers.next(str(self._seller.get("prefix") or "INV"))
        final = replace(invoice, number=number, state="final", issued=now, due=due)
        missing = self._missing(final, billing)
        kept, row = sealed(final, inputs, kind="invoice")
        self._page.keep(kept)
        self._rows.append(row)
        if missing:
            settle(self._connection, self._mode, final.customer, billing.period.stop, missing, number)
            self._page.forget_grants()
        until = micros(billing.period.stop)
        self._closed = max(self._closed, until)
        return final

    def _missing(self, invoice: Invoice, billing: Billing) -> dict[str, Decimal]:
        """What an invoice uses of each grant beyond what its usage has drawn; below zero: less."""
        drawn, used = self._drawn(invoice.customer, billing), credit_told(invoice.lines)
        amounts = {grant: EXACT.subtract(used.get(grant, ZERO), drawn.get(grant, ZERO)) for grant in {*drawn, *used}}
        return {grant: amount for grant, amount in amounts.items() if amount}

    def write(self) -> None:
        """Write what was made final, at the end of the transaction."""
        if not self._rows:
            return
        self._numbers.write()
        self._connection.execute(invoices.insert(), self._rows)
        for row in self._rows:
            if row["kind"] == "invoice":
                note_invoice(self._store, self._connection, row)
        self._rows = []
        self._connection.execute(state.update().where(state.c.closed < self._closed).values(closed=self._closed))

    def _draw_up(self, billing: Billing, customer: str) -> tuple[Invoice, dict[str, Any]]:
        """An invoice and what it was drawn up from."""
        buyer = self._page.buyer(customer)
        check_currency(buyer, billing, customer)
        segments = self._segments(billing, customer)
        corrections = self._corrections(customer)
        credit = self._credit(customer, billing)
        notes = list(self._noted(customer, corrections))
        bought = self._bought(customer, billing)
        invoice = draw_up(
            segments,
            customer=customer,
            mode=self._mode,
            period=billing.period,
            currency=billing.currency,
            meters=self.catalogue.meters,
            corrections=corrections,
            bought=bought,
            credit=credit,
            tax_percent=buyer.tax_percent,
            rounding=str(self._seller.get("rounding", "half_even")),
            show=billing.plan.show if billing.plan is not None else "token_type",
            seller=self._seller,
            buyer=shown_buyer(buyer, customer),
            notes=notes,
        )
        corrected = [part for each in corrections for part in each.segments]
        inputs = {
            "late_seen": self._late_seen,
            "reratings_seen": self._rerated_seen,
            "tax_percent": None if buyer.tax_percent is None else str(buyer.tax_percent),
            "segments": [self._documents.segment(segment) for segment in segments],
            "ratings": self._documents.seal_of_ratings([*segments, *corrected]),
            "meters": self._meters,
            "corrections": [self._documents.correction(each) for each in corrections],
            "bought": [[each.grant, each.title, plain(each.price)] for each in bought],
            "credit": [
                [each.grant, plain(each.available), dict(each.scope), plain(each.returned), plain(each.first)]
                for each in credit
            ],
            "terms": terms_text(billing),
            "final": [kept.invoice.number for kept in self._final(customer)] if corrections else [],
            "notes": notes,
        }
        return invoice, inputs

    def _noted(self, customer: str, corrections: Sequence[Correction]) -> Iterator[str]:
        """What credit notes took back of invoices that are corrected here: a human has to say if it is the same."""
        for each in corrections:
            notes = [
                kept
                for kept in self._page.kept(customer)
                if kept.kind == "credit_note" and kept.state == "final" and kept.concerns == each.invoice
            ]
            if notes:
                amount = total(kept.invoice.total for kept in notes)
                numbers = ", ".join(str(kept.invoice.number) for kept in notes)
                yield f"{numbers}: {abs(amount):f} {notes[0].invoice.currency} of {each.invoice} was taken back besides"

    def _segments(self, billing: Billing, customer: str, page: Page | None = None) -> list[Segment]:
        page = page or self._page
        return segments_of(self.catalogue, billing, partial(page.metered, customer), partial(page.aggregates, customer))

    def _final(self, customer: str) -> list[Kept]:
        """A customer's final invoices."""
        return [each for each in self._page.kept(customer) if each.kind == "invoice" and each.state == "final"]

    def _bought(self, customer: str, billing: Billing) -> list[Bought]:
        """What is owed for packs and on no invoice yet."""
        told: dict[str, Decimal] = {}
        for kept in self._final(customer):
            for line in kept.invoice.lines:
                if line.kind == "pack":
                    grant = line.key.removeprefix("pack|")
                    told[grant] = EXACT.add(told.get(grant, ZERO), line.exact)
        grants = self._page.grants(customer)
        return bought_in(grants, billing.period, billing.currency, self._page.owed, told)

    def _credit(self, customer: str, billing: Billing) -> list[Credit]:
        """What may be used of a customer's grants, in burn order: what usage has drawn and no invoice tells yet, and
        what is left."""
        last, drawn, found = billing.period.stop - MICROSECOND, self._drawn(customer, billing), []
        grants = [each for each in burn_order(self._page.grants(customer)) if each.currency == billing.currency]
        parts = cut(billing.period, grants)
        here = self._replayed(customer, billing, parts, grants) if len(parts) > 1 else {}
        for grant in grants:
            mine, first = drawn.get(grant.id, ZERO), ZERO
            available = EXACT.add(mine, grant.remaining if grant.usable_at(last) else ZERO)
            if here:
                paid, taken = here[grant.id]
                # What was drawn for other periods, which are final, stays: it pays for what came late to them.
                others = EXACT.subtract(mine, taken)
                first = max(ZERO, EXACT.add(paid, others))
                available = available if grant.usable_at(last) else EXACT.add(paid, others)
            if available or mine:
                found.append(Credit(grant.id, available, grant.scope, max(ZERO, EXACT.minus(mine)), first))
        return found

    def _replayed(
        self, customer: str, billing: Billing, parts: Sequence[Period], grants: Sequence[CreditGrant]
    ) -> dict[str, tuple[Decimal, Decimal]]:
        """Of each grant what it pays of a period by the time of the usage, and what was drawn of it for the period."""
        taken = dict.fromkeys((each.id for each in grants), ZERO)
        for grant_id, moment, amount in self._page.drawn(customer):
            if grant_id in taken and _floor(billing.period.start) <= moment < billing.period.stop:
                taken[grant_id] = EXACT.add(taken[grant_id], amount)
        pools = {each.id: max(ZERO, EXACT.add(taken[each.id], each.remaining)) for each in grants}
        alone = Page(self._store, self._connection, self._mode, [customer])
        paid = replayed([(part, alone.metered(customer, part)) for part in parts], grants, pools)
        return {each.id: (paid[each.id], taken[each.id]) for each in grants}

    def _drawn(self, customer: str, billing: Billing) -> dict[str, Decimal]:
        """What usage has drawn of each grant and no final invoice tells: in this period, and in those that are final,
        where something may have come or been taken back since. What is drawn in other open periods is theirs."""
        final = self._final(customer)
        periods = [billing.period, *(kept.invoice.period for kept in final)]
        mine = {grant.id for grant in self._page.grants(customer) if grant.currency == billing.currency}
        drawn: dict[str, Decimal] = {}
        for grant, moment, amount in self._page.drawn(customer):
            if grant in mine and any(_floor(period.start) <= moment < period.stop for period in periods):
                drawn[grant] = EXACT.add(drawn.get(grant, ZERO), amount)
        for kept in final:
            for grant, amount in credit_told(kept.invoice.lines).items():
                if grant in mine:
                    drawn[grant] = EXACT.subtract(drawn.get(grant, ZERO), amount)
        return drawn

    def _corrections(self, customer: str) -> list[Correction]:
        """What earlier final invoices of a customer come to now beyond what was invoiced: where events came or were
        rated again since, and where other plans hold in that time."""
        final = self._final(customer)
        found = []
        for each in final:
            period = each.invoice.period
            touched = self._page.late(customer, int(each.inputs["late_seen"]), self._late_seen)
            moved = any(_floor(period.start) <= moment < period.stop for moment in touched)
            if moved or each.inputs.get("terms") != self._terms_of(customer, period):
                correction = self._correction(customer, each, final)
                found += [correction] if correction is not None else []
        return found

    def _terms_of(self, customer: str, period: Period) -> str | None:
        """Which versions of which plans and cards hold in which parts of a period; None: it is no billing period."""
        billing = self.billing_of(customer, period)
        return None if billing is None else terms_text(billing)

    def _correction(self, customer: str, kept: Kept, final: Sequence[Kept]) -> Correction | None:
        billing = self.billing_of(customer, kept.invoice.period)
        # Where the period is none any more, other periods have its usage.
        segments = [] if billing is None else self._segments(billing, customer)
        now = lines_of(segments, self.catalogue.meters)[0]
        correction = corrections_to(invoiced_lines(final, kept), now, number=str(kept.invoice.number))
        return None if correction is None else replace(correction, segments=tuple(segments))


def _floor(moment: datetime) -> datetime:
    """The beginning of the hour: sums know the hour of an event, and no more."""
    return moment.replace(minute=0, second=0, microsecond=0)
