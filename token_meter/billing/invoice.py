"""An invoice: lines with the math printed, rounded once so that they sum to the total, and its JSON form.

`draw_up` is a function of what it is given: the same segments, corrections and credit give the same bytes, which is how
a final invoice is verified.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from token_meter.billing.collapse import collapsed
from token_meter.billing.correction import Correction
from token_meter.billing.credit_line import Credit, credit_line
from token_meter.billing.line import Held, Line, Segment, line_of, period_of_text
from token_meter.billing.lines import lines_of
from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plans import Period
from token_meter.errors import InvalidInvoice
from token_meter.money import EXACT, ZERO, plain, rounded, shares, total, unit_of
from token_meter.prices.price import moment_of, moment_text

FORMAT: Final = 1
"""The version of the JSON form; a later one reads the earlier ones."""


class Bought(NamedTuple):
    """A pack of credit that was sold in the period."""

    grant: str
    title: str
    price: Decimal


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a customer owes for a billing period. `number` is None as long as it is a draft."""

    customer: str
    mode: str
    period: Period
    currency: str
    lines: tuple[Line, ...]
    held: tuple[Held, ...] = ()
    plan: str = ""
    rounding: str = "half_even"
    show: str = "token_type"
    number: str | None = None
    state: str = "draft"
    issued: datetime | None = None
    due: datetime | None = None
    seller: Mapping[str, Any] = field(default_factory=dict)
    buyer: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def subtotal(self) -> Decimal:
        """Everything before tax and credit, rounded."""
        return self._sum(line for line in self.lines if line.kind not in ("tax", "credit"))

    @property
    def total(self) -> Decimal:
        """With tax, before credit."""
        return self._sum(line for line in self.lines if line.kind != "credit")

    @property
    def due_amount(self) -> Decimal:
        """What is left to pay."""
        return self._sum(self.lines)

    def _sum(self, lines: Iterable[Line]) -> Decimal:
        return EXACT.add(total(line.amount or ZERO for line in lines), EXACT.multiply(ZERO, unit_of(self.currency)))

    def to_json(self) -> dict[str, Any]:
        """The invoice for programs, and as it is kept: money as text, every factor named."""
        return {
            "format": FORMAT,
            "number": self.number,
            "state": self.state,
            "customer": self.customer,
            "mode": self.mode,
            "plan": self.plan,
            "currency": self.currency,
            "period_start": moment_text(self.period.start),
            "period_stop": moment_text(self.period.stop),
            "issued": moment_text(self.issued),
            "due": moment_text(self.due),
            "rounding": self.rounding,
            "show": self.show,
            "seller": dict(self.seller),
            "buyer": dict(self.buyer),
            "lines": [line.to_json() for line in self.lines],
            "held": [each.to_json() for each in self.held],
            "subtotal": f"{self.subtotal:f}",
            "total": f"{self.total:f}",
            "due_amount": f"{self.due_amount:f}",
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from token_meter.billing.render import as_text

        return as_text(self)

    def text(self) -> str:
        """Its bytes: canonical JSON. What is final is kept and compared as this."""
        return json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Invoice:
        """Read what `to_json` wrote. Raises ValueError for anything else."""
        try:
            return cls(
                customer=document["customer"],
                mode=document["mode"],
                period=period_of_text(document["period_start"], document["period_stop"]),
                currency=document["currency"],
                lines=tuple(map(line_of, document["lines"])),
                held=tuple(Held(**each) for each in document["held"]),
                plan=document["plan"],
                rounding=document["rounding"],
                show=document["show"],
                number=document["number"],
                state=document["state"],
                issued=moment_of(document["issued"]),
                due=moment_of(document["due"]),
                seller=document["seller"],
                buyer=document["buyer"],
                notes=tuple(document["notes"]),
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"this is no invoice ({problem})") from None

    def collapsed(self, level: str | None = None) -> list[Line]:
        """The lines as the customer is to see them: usage summed up to this level; amounts stay what they are."""
        return collapsed(self.lines, level or self.show)


def draw_up(
    segments: Sequence[Segment],
    *,
    customer: str,
    mode: str,
    period: Period,
    currency: str,
    meters: Mapping[str, MeterDefinition],
    corrections: Sequence[Correction] = (),
    bought: Sequence[Bought] = (),
    credit: Sequence[Credit] = (),
    tax_percent: Decimal | None = None,
    rounding: str = "half_even",
    show: str = "token_type",
    seller: Mapping[str, Any] | None = None,
    buyer: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Invoice:
    """Draw up an invoice. `bought` are packs of credit. `credit` is what may be used of the customer's credit, in burn
    order: it pays for usage, not for fees, packs or tax. `tax_percent` goes on what is left after discounts and
    credit: a pack of credit was taxed when it was sold.

    Every line is exact first; then they are rounded together (largest remainder), so that they sum to the rounded
    total.
    """
    for segment in segments:
        _check_currency(segment, currency)
    lines, held = lines_of(segments, meters)
    lines += [Line("pack", f"pack|{each.grant}", each.title, period, each.price) for each in bought]
    lines += [line for correction in corrections for line in correction.lines]
    paid = credit_line(lines, credit, period)
    if paid is not None:
        lines.append(paid)
    amounts = shares([line.exact for line in lines], currency, rounding)
    lines = [replace(line, amount=amount) for line, amount in zip(lines, amounts, strict=True)]
    taxed = total(line.amount or ZERO for line in lines)
    if tax_percent is not None and tax_percent and taxed:
        lines.append(_tax(taxed, tax_percent, period, currency, rounding))
    return Invoice(
        customer=customer,
        mode=mode,
        period=period,
        currency=currency,
        lines=tuple(lines),
        held=tuple(held),
        plan=_plans(segments),
        rounding=rounding,
        show=show,
        seller=seller or {},
        buyer=buyer or {},
        notes=tuple(notes),
    )


def _plans(segments: Sequence[Segment]) -> str:
    """The plans of a period. Before and after them a customer may have had none, and used nothing."""
    named = [segment.label for segment in segments if segment.plan is not None or segment.usage]
    return ", ".join(dict.fromkeys(named or [segment.label for segment in segments]))


def _check_currency(segment: Segment, currency: str) -> None:
    for each in segment.usage:
        theirs = str(each.said.get("currency") or currency)
        if theirs != currency and each.quantity and "missing" not in each.said:
            raise InvalidInvoice(
                f"{each.model or each.charged_meter} is charged in {theirs} in {segment.span}, and the invoice is in "
                f"{currency}: let the plan in {currency} begin with the period, or give its rate card that currency"
            )


def note_lines(invoice: Invoice, amount: Decimal, reason: str) -> tuple[Line, ...]:
    """The lines of a credit note over an amount of an invoice, tax included: the tax in it is told apart."""
    percent = next((Decimal(line.math["percent"]) for line in invoice.lines if line.kind == "tax" and line.math), ZERO)
    whole = EXACT.add(Decimal(100), percent)
    tax = rounded(EXACT.divide(EXACT.multiply(amount, percent), whole), invoice.currency, invoice.rounding)
    net = EXACT.minus(EXACT.subtract(amount, tax))
    title = f"Credit note for {invoice.number}: {reason}"
    lines = [Line("correction", f"note|{invoice.number}", title, invoice.period, net, amount=net)]
    if tax:
        minus, math = EXACT.minus(tax), {"percent": plain(percent), "of": f"{net:f}"}
        lines.append(Line("tax", "tax", f"Tax {plain(percent)} %", invoice.period, minus, math=math, amount=minus))
    return tuple(lines)


def _tax(subtotal: Decimal, percent: Decimal, period: Period, currency: str, rounding: str) -> Line:
    exact = EXACT.divide(EXACT.multiply(subtotal, percent), Decimal(100))
    math = {"percent": plain(percent), "of": f"{subtotal:f}"}
    amount = rounded(exact, currency, rounding)
    return Line("tax", "tax", f"Tax {plain(percent)} %", period, exact, math=math, amount=amount)
