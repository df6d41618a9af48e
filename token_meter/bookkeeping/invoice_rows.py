"""Kept invoices as rows of the ledger: reading them, giving out numbers, keeping and changing them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, select

from token_meter.billing.cards import RateCard
from token_meter.billing.correction import Correction
from token_meter.billing.invoice import Invoice
from token_meter.billing.line import Line, Metered, Segment
from token_meter.billing.plans import Period, Plan
from token_meter.bookkeeping.segments import Billing
from token_meter.errors import InvalidInvoice
from token_meter.ledger.ratings import Read
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import counters, customers, invoices, late
from token_meter.ledger.text import from_stored, mapping_from_stored, to_stored
from token_meter.money import decimal_of


class Kept(NamedTuple):
    """A final (or void) invoice as it is kept."""

    invoice: Invoice
    kind: str
    state: str
    issued: datetime
    paid: datetime | None
    changed: Mapping[str, Any]
    concerns: str | None
    inputs: Mapping[str, Any]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Buyer:
    """What is known of a customer for an invoice."""

    name: str | None
    currency: str | None
    details: Mapping[str, str]
    tax_percent: Decimal | None
    since: datetime | None
    """When they were first seen."""


def read_invoice(connection: Connection, number: str, mode: str) -> Kept:
    mine = (invoices.c.mode == mode) & (invoices.c.number == number)
    row = connection.execute(select(invoices).where(mine)).first()
    if row is None:
        raise InvalidInvoice(f"there is no invoice {number!r}: see `token-meter invoice list`")
    return kept_of_row(row)


def knows(connection: Connection, number: str, mode: str) -> bool:
    """Whether there is an invoice of this number."""
    mine = (invoices.c.mode == mode) & (invoices.c.number == number)
    return connection.execute(select(invoices.c.number).where(mine)).first() is not None


def kept_of_row(row: Row[Any]) -> Kept:
    """A row as a kept invoice. Raises InvalidInvoice for one that somebody has made unreadable."""
    try:
        return Kept(
            invoice=Invoice.from_json(json.loads(row.document)),
            kind=row.kind,
            state=row.state,
            issued=EPOCH + MICROSECOND * row.issued,
            paid=None if row.paid is None else EPOCH + MICROSECOND * row.paid,
            changed=json.loads(row.changed) if row.changed else {},
            concerns=row.concerns,
            inputs=json.loads(row.inputs),
            digest=bytes(row.digest),
        )
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as problem:
        raise InvalidInvoice(f"{row.number} is damaged: what is kept of it cannot be read ({problem})") from None


def kept_of(connection: Connection, customer: str, mode: str) -> list[Kept]:
    mine = (invoices.c.mode == mode) & (invoices.c.customer == to_stored(customer))
    return [kept_of_row(row) for row in connection.execute(select(invoices).where(mine).order_by(invoices.c.issued))]


def notes_on(connection: Connection, number: str, mode: str) -> list[Kept]:
    mine = (invoices.c.mode == mode) & (invoices.c.concerns == number)
    return [kept_of_row(row) for row in connection.execute(select(invoices).where(mine))]


def invoiced_lines(final: Sequence[Kept], kept: Kept) -> list[Line]:
    """What was invoiced for a period: its invoice's own lines, and every correction of it on these others."""
    own = [line for line in kept.invoice.lines if line.kind != "correction"]
    since = [line for each in final for line in each.invoice.lines if line.corrects == kept.invoice.number]
    return [*own, *since]


def late_seen(connection: Connection) -> int:
    return number_of(connection, late.c.number)


def number_of(connection: Connection, column: Any) -> int:
    return int(connection.execute(select(func.max(column))).scalar() or 0)


def everybody(connection: Connection, mode: str) -> list[str]:
    """Everybody in the customer book: usage, fees or corrections may be there for each of them."""
    mine = select(customers.c.id).where(customers.c.mode == mode).order_by(customers.c.id)
    return [from_stored(each) for each in connection.execute(mine).scalars()]


def buyer_of_row(row: Any) -> Buyer:
    """What a row of the customer book says for an invoice."""
    details = mapping_from_stored(row.details)
    percent = details.get("tax_percent")
    try:
        tax = None if percent is None else decimal_of(percent, "tax_percent")
    except ValueError as problem:
        raise InvalidInvoice(f"customer {from_stored(row.id)}: {problem}") from None
    since = EPOCH + MICROSECOND * row.created
    return Buyer(None if row.name is None else from_stored(row.name), row.currency, details, tax, since)


def shown_buyer(buyer: Buyer, customer: str) -> dict[str, str]:
    shown = {name: value for name, value in buyer.details.items() if name != "tax_percent"}
    return {"name": buyer.name or customer, **shown}


def check_currency(buyer: Buyer, billing: Billing, customer: str) -> None:
    currencies = {part.terms.plan.content.currency for part in billing.parts if part.terms.plan is not None}
    if len(currencies) > 1:
        raise InvalidInvoice(
            f"{customer} has plans in {' and '.join(sorted(currencies))} within {billing.period}: let one end with it"
        )
    if buyer.currency is not None and buyer.currency != billing.currency:
        plan = billing.plan
        raise InvalidInvoice(
            f"{customer} pays in {buyer.currency}, and {'plan ' + plan.name if plan else 'usage at cost'} is in "
            f"{billing.currency}: give the customer a plan in {buyer.currency}"
        )


class Numbers:
    """Gives out numbers without gaps, inside a transaction that has the ledger for itself. `write` at its end."""

    def __init__(self, connection: Connection, mode: str) -> None:
        self._connection = connection
        self._mode = mode
        self._given: dict[str, int] = {}
        self._known: dict[str, int | None] = {}

    def next(self, prefix: str) -> str:
        """The next number of this prefix."""
        name = f"{self._mode}/{prefix}"
        if name not in self._given:
            query = select(counters.c.value).where(counters.c.name == name)
            self._known[name] = self._connection.execute(query).scalar()
            self._given[name] = self._known[name] or 0
        self._given[name] += 1
        test = "TEST-" if self._mode == "test" else ""
        return f"{test}{prefix}-{self._given[name]:06d}"

    def write(self) -> None:
        """Write down how far the numbers have come."""
        for name, value in self._given.items():
            if self._known[name] is None:
                self._connection.execute(counters.insert(), {"name": name, "value": value})
            else:
                self._connection.execute(counters.update().where(counters.c.name == name).values(value=value))
            self._known[name] = value


def row_of(kept: Kept, text: str, inputs: str) -> dict[str, Any]:
    """A kept invoice as a row."""
    invoice = kept.invoice
    return {
        "mode": invoice.mode, "number": invoice.number, "kind": kept.kind, "customer": to_stored(invoice.customer),
        "start": micros(invoice.period.start), "stop": micros(invoice.period.stop), "state": "final",
        "currency": invoice.currency, "due_amount": f"{invoice.due_amount:f}", "issued": micros(kept.issued),
        "concerns": kept.concerns, "document": text, "inputs": inputs, "digest": kept.digest,
    }  # fmt: skip


def sealed(
    invoice: Invoice, inputs: Mapping[str, Any], kind: str, concerns: str | None = None
) -> tuple[Kept, dict[str, Any]]:
    """A final invoice with what it was drawn up from, under a seal; and its row."""
    text = invoice.text()
    told = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    assert invoice.issued is not None
    seal = digest_of(text, told, kind, concerns)
    kept = Kept(invoice, kind, "final", invoice.issued, None, {}, concerns, inputs, seal)
    return kept, row_of(kept, text, told)


def change_invoice(connection: Connection, number: str, mode: str, **values: Any) -> None:
    mine = (invoices.c.mode == mode) & (invoices.c.number == number)
    connection.execute(invoices.update().where(mine).values(**values))


def digest_of(document: str, inputs: str, kind: str, concerns: str | None) -> bytes:
    """The seal of a kept invoice."""
    return sha256(f"{kind}\n{concerns or ''}\n{document}\n{inputs}".encode()).digest()


class Documents:
    """Plans, cards and ratings as they are kept with an invoice; what many invoices share is written out once."""

    def __init__(self) -> None:
        self._models: dict[int, tuple[Any, Any]] = {}
        self._ratings: dict[int, str] = {}

    def segment(self, segment: Segment) -> dict[str, Any]:
        """A segment, so that its lines can be worked out again."""
        return {
            "label": segment.label,
            "plan": None if segment.plan is None else self._model(segment.plan),
            "cards": {name: self._model(card) for name, card in sorted(segment.cards.items())},
            "span": [segment.span.start.isoformat(), segment.span.stop.isoformat()],
            "whole": [segment.whole.start.isoformat(), segment.whole.stop.isoformat()],
            "usage": [
                [each.meter, each.provider, each.model, each.name, each.quantity, each.rating.number]
                for each in sorted(segment.usage, key=Metered.order)
            ],
            "aggregates": dict(sorted(segment.aggregates.items())),
        }

    def correction(self, correction: Correction) -> dict[str, Any]:
        """A correction."""
        return {
            "invoice": correction.invoice,
            "lines": [line.to_json() for line in correction.lines],
            "segments": [self.segment(segment) for segment in correction.segments],
        }

    def seal_of_ratings(self, segments: Iterable[Segment]) -> str:
        """A digest of every rating by which these segments are charged, with all its factors."""
        used = {each.rating.number: each.rating for segment in segments for each in segment.usage}
        digest = sha256()
        for number in sorted(used):
            if number not in self._ratings:
                rating = used[number]
                told = [number, str(rating.cost), str(rating.charge), rating.document]
                self._ratings[number] = json.dumps(told, sort_keys=True)
            digest.update(self._ratings[number].encode())
        return digest.hexdigest()

    def _model(self, model: Any) -> Any:
        known = self._models.get(id(model))
        if known is None:
            document = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            # Kept with the model, so that no other object takes its identity.
            known = self._models[id(model)] = (model, document)
        return known[1]


def segment_of(document: Mapping[str, Any], ratings: Mapping[int, Read]) -> Segment:
    """Read back what `Documents.segment` gave."""
    return Segment(
        plan=None if document["plan"] is None else Plan.model_validate(document["plan"]),
        label=document["label"],
        cards={name: RateCard.model_validate(card) for name, card in document["cards"].items()},
        span=Period(*map(datetime.fromisoformat, document["span"])),
        whole=Period(*map(datetime.fromisoformat, document["whole"])),
        usage=[
            Metered(meter, provider, model, name, quantity, ratings[number])
            for meter, provider, model, name, quantity, number in document["usage"]
        ],
        aggregates=document["aggregates"],
    )


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND
