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
from typing import Any, Final, Literal, NamedTuple

from token_meter.billing.credit import Place, Scope, pays_for
from token_meter.billing.lines import Held, Line, Segment, lines_of
from token_meter.billing.meters import BUILT_IN, MeterDefinition
from token_meter.billing.plans import Period
from token_meter.errors import InvalidInvoice
from token_meter.money import EXACT, ZERO, decimal_of, plain, rounded, shares, total, unit_of
from token_meter.prices.price import moment_of, moment_text

FORMAT: Final = 1
"""The version of the JSON form; a later one reads the earlier ones."""

Level = Literal["token_type", "model", "meter", "total"]


class Bought(NamedTuple):
    """A pack of credit that was sold in the period."""

    grant: str
    title: str
    price: Decimal


class Credit(NamedTuple):
    """What may be used of a grant, and for what.

    `available` is what usage has drawn and no invoice tells yet, and what is left; below zero where more came back than
    can be drawn again (it has expired meanwhile). `returned` is what came back of what earlier invoices used.
    """

    grant: str
    available: Decimal
    scope: Scope = ()
    returned: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Correction:
    """What an earlier period comes to now beyond what was invoiced for it: late events, voids, corrected prices."""

    invoice: str
    lines: tuple[Line, ...]
    segments: tuple[Segment, ...] = ()
    """What was used in that period, as it is now."""


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
                period=_period(document["period_start"], document["period_stop"]),
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
        wanted = level or self.show
        if wanted == "token_type":
            return list(self.lines)
        merged: dict[tuple[Any, ...], Line] = {}
        for line in self.lines:
            key = _collapse_key(line, wanted)
            merged[key] = _together(merged[key], line) if key in merged else _first(line, wanted)
        return list(merged.values())


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
    credit_line = _credit(lines, credit, period)
    if credit_line is not None:
        lines.append(credit_line)
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
        plan=", ".join(dict.fromkeys(segment.label for segment in segments)),
        rounding=rounding,
        show=show,
        seller=seller or {},
        buyer=buyer or {},
        notes=tuple(notes),
    )


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


_PAID_BY_CREDIT: Final = ("usage", "included", "minimum", "discount", "correction")


def _is_paid_by_credit(line: Line) -> bool:
    return line.kind in _PAID_BY_CREDIT and not line.key.startswith("fee|")


def _credit(lines: Sequence[Line], credit: Sequence[Credit], period: Period) -> Line | None:
    """What credit pays for: usage with what is included, discounted and corrected of it.

    Each grant in turn pays for what it is for, as far as none before it did. Where more is taken back than is charged,
    what had been paid with credit goes back to it, and only the rest is money.
    """
    mine = [line for line in lines if _is_paid_by_credit(line)]
    used = {each.grant: each.available for each in credit if each.available < ZERO}
    left = EXACT.subtract(total(line.exact for line in mine), total(used.values()))
    able = [each for each in credit if each.available >= ZERO]
    used |= _paid(mine, able, left) if left > ZERO else _given_back(able, EXACT.minus(left))
    if not used:
        return None
    amount = total(used.values())
    math = {"grants": {grant: plain(part) for grant, part in used.items()}}
    title = "Credit used" if amount >= ZERO else "Credit given back"
    return Line("credit", "credit", title, period, EXACT.minus(amount), math=math)


def _paid(lines: Sequence[Line], credit: Sequence[Credit], left: Decimal) -> dict[str, Decimal]:
    places: dict[Place, Decimal] = {}
    for line in lines:
        place: Place = (line.meter, line.provider, line.model, line.token_type)
        places[place] = EXACT.add(places.get(place, ZERO), line.exact)
    used: dict[str, Decimal] = {}
    for each in credit:
        matching = [place for place in places if places[place] > ZERO and pays_for(each.scope, place)]
        most = total(places[place] for place in matching) if each.scope else left
        amount = min(each.available, most, left)
        if amount <= ZERO:
            continue
        used[each.grant], left = amount, EXACT.subtract(left, amount)
        for place in matching:
            part = min(amount, places[place])
            places[place], amount = EXACT.subtract(places[place], part), EXACT.subtract(amount, part)
    return used


def _given_back(credit: Sequence[Credit], amount: Decimal) -> dict[str, Decimal]:
    """What burned last comes back first."""
    used: dict[str, Decimal] = {}
    for each in reversed(credit):
        part = min(each.returned, amount)
        if part > ZERO:
            used[each.grant], amount = EXACT.minus(part), EXACT.subtract(amount, part)
    return used


def credit_told(lines: Iterable[Line]) -> dict[str, Decimal]:
    """What an invoice says was used of each grant."""
    told = [line.math["grants"] for line in lines if line.kind == "credit" and line.math]
    return {grant: decimal_of_exact(amount) for grants in told for grant, amount in grants.items()}


def corrections_to(invoiced: Sequence[Line], now: Sequence[Line], *, number: str) -> Correction | None:
    """What a period comes to now beyond what was invoiced for it, line by line; None: nothing.

    `invoiced` are the lines of its final invoice and every correction since. Fees and the like are compared too, so a
    plan that was changed for the past is corrected as well.
    """
    before, after = _by_key(invoiced), _by_key(now)
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        exact = EXACT.subtract(new.exact if new else ZERO, old.exact if old else ZERO)
        if not exact:
            continue
        base = new or old
        assert base is not None
        quantity = None
        if base.quantity is not None:
            quantity = ((new.quantity or 0) if new else 0) - ((old.quantity or 0) if old else 0)
        title = f"Correction of {number}: {base.title}"
        lines.append(
            replace(
                base, kind="correction", title=title, exact=exact, quantity=quantity, amount=None, corrects=number
            )
        )  # fmt: skip
    return Correction(number, tuple(lines)) if lines else None


def _by_key(lines: Sequence[Line]) -> dict[str, Line]:
    found: dict[str, Line] = {}
    for line in lines:
        if line.kind in ("tax", "credit", "pack"):
            continue
        seen = found.get(line.key)
        if seen is None:
            found[line.key] = line
        else:
            quantity = None if line.quantity is None else (seen.quantity or 0) + line.quantity
            found[line.key] = replace(seen, exact=EXACT.add(seen.exact, line.exact), quantity=quantity)
    return found


def _tax(subtotal: Decimal, percent: Decimal, period: Period, currency: str, rounding: str) -> Line:
    exact = EXACT.divide(EXACT.multiply(subtotal, percent), Decimal(100))
    math = {"percent": plain(percent), "of": f"{subtotal:f}"}
    amount = rounded(exact, currency, rounding)
    return Line("tax", "tax", f"Tax {plain(percent)} %", period, exact, math=math, amount=amount)


def _collapse_key(line: Line, level: str) -> tuple[Any, ...]:
    if line.kind not in _COLLAPSIBLE:
        return (line.kind, line.key, line.service)
    if level == "total":
        return (line.kind,)
    if level == "meter" or line.model is None:
        return (line.kind, line.meter or line.key, line.service)
    return (line.kind, line.meter, line.model, line.service)


_COLLAPSIBLE: Final = {"usage": "Usage", "included": "Included usage", "correction": "Corrections"}


def _first(line: Line, level: str) -> Line:
    if line.kind not in _COLLAPSIBLE:
        return line
    if level == "total" or line.meter is None:
        title = _COLLAPSIBLE[line.kind] if level == "total" else line.title
    else:
        title = line.model if level == "model" and line.model else _meter_title(line, line.meter)
        title += {"included": ", included", "correction": f", correction of {line.corrects}"}.get(line.kind, "")
    # Tokens, calls and documents have no sum.
    quantity = None if level == "total" else line.quantity
    return replace(
        line, title=title, token_type=None, rate=None, math=None, quantity=quantity,
        model=line.model if level == "model" else None,
    )  # fmt: skip


def _meter_title(line: Line, meter: str) -> str:
    if meter in BUILT_IN:
        return BUILT_IN[meter].title
    # What stands in brackets behind it is of one step of a scale.
    return line.title.partition(" (")[0] if line.kind == "usage" and not line.model else meter.replace("_", " ")


def _together(one: Line, other: Line) -> Line:
    quantity = None if one.quantity is None or other.quantity is None else one.quantity + other.quantity
    return replace(
        one,
        exact=EXACT.add(one.exact, other.exact),
        amount=EXACT.add(*(ZERO if each.amount is None else each.amount for each in (one, other))),
        quantity=quantity,
    )


def _period(start: str, stop: str) -> Period:
    begins, ends = moment_of(start), moment_of(stop)
    if begins is None or ends is None:
        raise ValueError("it has no period")
    return Period(begins, ends)


def line_of(document: Mapping[str, Any]) -> Line:
    amount = document.get("amount")
    rate = document.get("rate")
    return Line(
        kind=document["kind"],
        key=document["key"],
        title=document["title"],
        service=_period(document["service_start"], document["service_stop"]),
        exact=decimal_of_exact(document["exact"]),
        meter=document.get("meter"),
        provider=document.get("provider"),
        model=document.get("model"),
        token_type=document.get("token_type"),
        quantity=document.get("quantity"),
        rate=None if rate is None else decimal_of_exact(rate),
        card=document.get("card"),
        math=document.get("math"),
        amount=None if amount is None else decimal_of(amount, "amount"),
        corrects=document.get("corrects"),
    )


def decimal_of_exact(text: str) -> Decimal:
    """An exact amount back from its text: it may have as many digits as `EXACT` carries."""
    number = EXACT.create_decimal(text)
    if not number.is_finite():
        raise ValueError(f"{text!r} is no amount")
    return number
