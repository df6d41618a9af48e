"""An invoice for people: as text for a terminal, as rows for CSV, as a page to print."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Final, NamedTuple
from unicodedata import east_asian_width

from token_meter.billing.invoice import Invoice
from token_meter.billing.line import Held, Line
from token_meter.billing.plans import Period
from token_meter.money import EXACT, ONE, ZERO, plain, unit_of

_MILLION: Final = Decimal(1_000_000)

CSV_COLUMNS: Final = (
    "invoice", "state", "customer", "period_start", "period_stop", "kind", "title", "service_start", "service_stop",
    "meter", "provider", "model", "token_type", "quantity", "list_price", "per", "multiplier", "rate", "exact",
    "amount", "currency", "corrects",
)  # fmt: skip


class Standing(NamedTuple):
    """What became of a kept invoice since it was written; it is no part of the document, which never changes."""

    kind: str = "invoice"
    state: str = "final"
    paid: datetime | None = None
    why: str = ""
    concerns: str | None = None
    noted: Decimal = ZERO
    """What credit notes took back of it, as an amount below zero."""


DRAFT: Final = Standing(state="draft")


def as_text(invoice: Invoice, level: str | None = None, standing: Standing = DRAFT, *, zone: tzinfo = UTC) -> str:
    """The invoice in columns: what, how much, at which rate, amount. Its times are UTC, and shown in `zone`."""
    rows = [_text_row(line, invoice.currency) for line in invoice.collapsed(level)]
    widths = [max([_width(row[place]) for row in rows] or [0]) for place in range(4)]
    out = [f"{_heading(invoice, standing)}, {span_of(invoice.period, zone)}{_named(zone)}, {invoice.plan}"]
    for title, quantity, math, amount in rows:
        named = title + " " * (widths[0] - _width(title))
        out.append(f"  {named}  {quantity:>{widths[1]}}  {math:<{widths[2]}}  {amount:>{widths[3]}}".rstrip())
    out += [f"  {label:<{max(widths[0], 10)}}  {value}" for label, value in _totals(invoice)]
    out += [f"  {said}" for said in _said(invoice, standing, zone)]
    out += [f"  {_held(each)}" for each in invoice.held]
    out += [f"  {note}" for note in invoice.notes]
    return "\n".join(out)


def _width(text: str) -> int:
    """How many columns a text takes in a terminal: signs of East Asian scripts take two."""
    return sum(2 if east_asian_width(sign) in "WF" else 1 for sign in text)


def _held(each: Held, reason: bool = True) -> str:
    what = f"{each.quantity:,} {each.token_type.replace('_', ' ')} of {each.model or each.meter}"
    return f"Not on this invoice yet: {what}" + (f" ({each.reason})" if reason else "")


def _name(invoice: Invoice, standing: Standing) -> str:
    if not invoice.number:
        return "Draft invoice"
    kind = "Credit note" if standing.kind == "credit_note" else "Invoice"
    return f"{kind} {invoice.number}" + (" (VOID)" if standing.state == "void" else "")


def _heading(invoice: Invoice, standing: Standing) -> str:
    return f"{_name(invoice, standing)} for {invoice.buyer.get('name') or invoice.customer}"


def _said(invoice: Invoice, standing: Standing, zone: tzinfo) -> Iterator[str]:
    """What became of it."""
    if standing.concerns:
        yield f"concerns {standing.concerns}"
    if standing.state == "void":
        yield f"VOID: {standing.why}" if standing.why else "VOID"
    if standing.noted:
        yield f"taken back by credit notes: {grouped(standing.noted.copy_abs(), invoice.currency)} {invoice.currency}"
    if standing.paid is not None:
        yield f"paid on {standing.paid.astimezone(zone):%Y-%m-%d}"


def span_of(period: Period, zone: tzinfo = UTC) -> str:
    """A period for people: its first and its last day, where it is made of whole days of this zone."""
    start, stop = period.start.astimezone(zone), period.stop.astimezone(zone)
    if any((each.hour, each.minute, each.second, each.microsecond) != (0, 0, 0, 0) for each in (start, stop)):
        return f"{start:%Y-%m-%d %H:%M} to {stop:%Y-%m-%d %H:%M}"
    last = stop.date() - timedelta(days=1)
    return f"{start:%Y-%m-%d}" if last == start.date() else f"{start:%Y-%m-%d} to {last:%Y-%m-%d}"


def _named(zone: tzinfo) -> str:
    return "" if zone is UTC or str(zone) == "UTC" else f" ({zone})"


def money(amount: Decimal, currency: str) -> str:
    """An amount with the decimals of its currency."""
    return f"{amount.quantize(unit_of(currency), context=EXACT):f}"


def grouped(amount: Decimal, currency: str) -> str:
    """The same for people: 1,234.50."""
    return f"{amount.quantize(unit_of(currency), context=EXACT):,f}"


def _totals(invoice: Invoice) -> Iterator[tuple[str, str]]:
    if invoice.subtotal != invoice.total or invoice.due_amount != invoice.total:
        yield "subtotal", f"{grouped(invoice.subtotal, invoice.currency)} {invoice.currency}"
    yield "total", f"{grouped(invoice.total, invoice.currency)} {invoice.currency}"
    if invoice.due_amount != invoice.total:
        yield "to pay", f"{grouped(invoice.due_amount, invoice.currency)} {invoice.currency}"


def _text_row(line: Line, currency: str) -> tuple[str, str, str, str]:
    quantity = f"{line.quantity:,}" if line.quantity is not None else ""
    return line.title, quantity, math_of(line), grouped(line.amount, currency) if line.amount is not None else ""


def math_of(line: Line) -> str:
    """How a line's amount came about: `x 1.25 / 1M x 1.1 geo x 1.3 = 0.0017875`."""
    math: Mapping[str, Any] = line.math or {}
    kind = math.get("kind")
    if line.rate is None:
        if "percent" in math:
            return f"{math['percent']} % of {_short(Decimal(math['of']))}"
        if "share" in math:
            return f"{math['amount']} x {_short(Decimal(math['share']) * 100, 4)} % of the period"
        if kind in ("graduated", "volume", "per_unit"):
            return f"x {_price(math)} = {_short(line.exact)}"
        return f"{math['price']} each" if kind == "package" else ""
    if kind != "cost_plus" or "list" not in math:
        return f"x {_price(math) if 'price' in math else _short(line.rate)} = {_short(line.exact)}"
    steps = [f"{math['list']} / {_many(int(math['per']))}"]
    steps += [f"{multiplier} {kind}" for kind, multiplier, _ in math.get("factors", ())]
    if math.get("multiplier") not in (None, "1"):
        steps.append(str(math["multiplier"]))
    if "exchange" in math:
        steps.append(f"1/{math['exchange']}")
    return f"x {' x '.join(steps)} = {_short(line.exact)}"


def _price(math: Mapping[str, Any]) -> str:
    per = int(math.get("per") or 1)
    return str(math["price"]) if per == 1 else f"{math['price']} / {_many(per)}"


def _short(number: Decimal, decimals: int = 12) -> str:
    """A number as it is, unless nobody would read its decimals to the end: then rounded, and it says so."""
    text = plain(number)
    _, _, behind = text.partition(".")
    return text if len(behind) <= decimals else f"≈ {plain(number.quantize(ONE.scaleb(-decimals), context=EXACT))}"


def _many(per: int) -> str:
    return {1_000_000: "1M", 1_000: "1K", 3_600_000: "hour"}.get(per, f"{per:,}")


def as_rows(invoice: Invoice, level: str | None = None) -> Iterator[dict[str, Any]]:
    """One row for each line, as accounting programs read them."""
    for line in invoice.collapsed(level):
        math: Mapping[str, Any] = line.math or {}
        yield {
            "invoice": invoice.number or "draft",
            "state": invoice.state,
            "customer": invoice.customer,
            "period_start": invoice.period.start.date().isoformat(),
            "period_stop": invoice.period.stop.date().isoformat(),
            "kind": line.kind,
            "title": line.title,
            "service_start": line.service.start.isoformat(),
            "service_stop": line.service.stop.isoformat(),
            "meter": line.meter,
            "provider": line.provider,
            "model": line.model,
            "token_type": line.token_type,
            "quantity": line.quantity,
            "list_price": math.get("list", math.get("price")),
            "per": math.get("per"),
            "multiplier": math.get("multiplier"),
            "rate": None if line.rate is None else plain(line.rate),
            "exact": plain(line.exact),
            "amount": None if line.amount is None else f"{line.amount:f}",
            "currency": invoice.currency,
            "corrects": line.corrects,
        }


_STYLE: Final = """
body{font:14px/1.5 system-ui,sans-serif;color:#1a1a1a;margin:2.5rem auto;max-width:56rem;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .2rem}.parties{display:flex;justify-content:space-between;gap:2rem;margin:1.5rem 0}
.parties div{white-space:pre-line}table{border-collapse:collapse;width:100%}th,td{padding:.4rem .5rem;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top}th{font-size:.8rem;color:#555}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}.math{color:#666;font-size:.8rem}tfoot td{font-weight:600;
border-bottom:0}.draft{color:#b45309}.held{color:#b45309;font-size:.9rem}@media print{body{margin:0}}
"""


def as_html(
    invoice: Invoice,
    level: str | None = None,
    standing: Standing = DRAFT,
    *,
    math: bool = True,
    zone: tzinfo = UTC,
) -> str:
    """A page to print or mail: no scripts, nothing loaded from elsewhere, all text escaped.

    Without `math` it tells what a customer should see: the price of a unit, and not what it costs us.
    """
    rows = "".join(_html_row(line, invoice.currency, math, zone) for line in invoice.collapsed(level))
    totals = "".join(
        f'<tr><td colspan="3">{label.capitalize()}</td><td class="n">{html.escape(value)}</td></tr>'
        for label, value in _totals(invoice)
    )
    held = "".join(f'<p class="held">{html.escape(_held(each, math))}</p>' for each in invoice.held)
    title = html.escape(_name(invoice, standing))
    draft = '<p class="draft">Draft: it changes with usage until it is final.</p>' if not invoice.number else ""
    became = "".join(f'<p class="draft">{html.escape(said)}</p>' for said in _said(invoice, standing, zone))
    dates = [f"Period {span_of(invoice.period, zone)}{_named(zone)}"]
    dates += [f"Issued {invoice.issued.astimezone(zone):%Y-%m-%d}"] if invoice.issued else []
    dates += [f"Due {invoice.due.astimezone(zone):%Y-%m-%d}"] if invoice.due else []
    plan = ", ".join(each.partition("@")[0] for each in invoice.plan.split(", "))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in invoice.notes)
    terms = html.escape(str(invoice.seller.get("terms") or ""))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}</h1>{draft}{became}<p>{html.escape(' · '.join(dates))}<br>{html.escape(plan)}</p>"
        f'<div class="parties"><div>{_party(invoice.seller)}</div><div>{_party(invoice.buyer)}</div></div>'
        '<table><thead><tr><th>Description</th><th class="n">Quantity</th><th>Service period</th>'
        f'<th class="n">{html.escape(invoice.currency)}</th></tr></thead><tbody>{rows}</tbody><tfoot>{totals}</tfoot>'
        f"</table>{held}{notes}<p>{terms}</p></body></html>\n"
    )


def _party(details: Mapping[str, Any]) -> str:
    hidden = ("prefix", "rounding", "terms")
    named = [str(details["name"])] if details.get("name") else []
    others = [f"{key.replace('_', ' ')}: {value}" if key not in ("address",) else str(value)
              for key, value in sorted(details.items()) if key not in (*hidden, "name")]  # fmt: skip
    return html.escape("\n".join([*named, *others]))


def _html_row(line: Line, currency: str, math: bool, zone: tzinfo) -> str:
    title, quantity, shown, amount = map(html.escape, _text_row(line, currency))
    if not math and line.rate is not None:
        shown = html.escape(f"{_short(line.rate * _MILLION, 6)} / 1M" if line.token_type else _short(line.rate, 6))
    below = f'<div class="math">{shown}</div>' if shown else ""
    described = f'<td>{title}{below}</td><td class="n">{quantity}</td>'
    return f'<tr>{described}<td>{html.escape(span_of(line.service, zone))}</td><td class="n">{amount}</td></tr>'
