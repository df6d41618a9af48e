"""An invoice for people: as text for a terminal, as rows for CSV, as a page to print."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from token_meter.billing.invoice import Invoice
from token_meter.billing.lines import Held, Line
from token_meter.money import plain

WIDTH_MAX: Final = 100

CSV_COLUMNS: Final = (
    "invoice", "state", "customer", "period_start", "period_stop", "kind", "title", "service_start", "service_stop",
    "meter", "provider", "model", "token_type", "quantity", "list_price", "per", "multiplier", "rate", "exact",
    "amount", "currency", "corrects",
)  # fmt: skip


def as_text(invoice: Invoice, level: str | None = None) -> str:
    """The invoice in columns: what, how much, at which rate, amount; the math below each line that has any."""
    rows = [_text_row(line) for line in invoice.collapsed(level)]
    widths = [max([len(row[place]) for row in rows] or [0]) for place in range(4)]
    out = [_heading(invoice)]
    for title, quantity, math, amount in rows:
        out.append(
            f"  {title:<{widths[0]}}  {quantity:>{widths[1]}}  {math:<{widths[2]}}  {amount:>{widths[3]}}".rstrip()
        )
    out += [f"  {label:<{max(widths[0], 10)}}  {value}" for label, value in _totals(invoice)]
    out += [f"  {_held(each)}" for each in invoice.held]
    out += [f"  {note}" for note in invoice.notes]
    return "\n".join(out)


def _held(each: Held) -> str:
    what = f"{each.quantity:,} {each.token_type.replace('_', ' ')} of {each.model or each.meter}"
    return f"Not on this invoice yet: {what} ({each.reason})"


def _heading(invoice: Invoice) -> str:
    name = f"Invoice {invoice.number}" if invoice.number else "Draft invoice"
    state = f" ({invoice.state})" if invoice.number and invoice.state != "final" else ""
    buyer = str(invoice.buyer.get("name") or invoice.customer)
    return f"{name}{state} for {buyer}, {invoice.period}, {invoice.plan}"


def _totals(invoice: Invoice) -> Iterator[tuple[str, str]]:
    if invoice.due_amount != invoice.total:
        yield "total", f"{invoice.total:f} {invoice.currency}"
        yield "to pay", f"{invoice.due_amount:f} {invoice.currency}"
    else:
        yield "total", f"{invoice.total:f} {invoice.currency}"


def _text_row(line: Line) -> tuple[str, str, str, str]:
    quantity = f"{line.quantity:,}" if line.quantity is not None else ""
    return line.title, quantity, math_of(line), f"{line.amount:f}" if line.amount is not None else ""


def math_of(line: Line) -> str:
    """How a line's rate came about, on one line: `x 1.25 / 1M x 1.1 geo x 1.3 = 0.0017875`."""
    math: Mapping[str, Any] = line.math or {}
    if line.rate is None:
        if "percent" in math:
            return f"{math['percent']} % of {math['of']}"
        return f"{math['amount']} x {_short(math['share'])}" if "share" in math else ""
    if math.get("kind") != "cost_plus" or "list" not in math:
        return f"x {plain(line.rate)} = {plain(line.exact)}"
    per = int(math["per"])
    steps = [f"{math['list']} / {_many(per)}"]
    steps += [f"{multiplier} {kind}" for kind, multiplier, _ in math.get("factors", ())]
    if math.get("multiplier") not in (None, "1"):
        steps.append(str(math["multiplier"]))
    if "exchange" in math:
        steps.append(f"1/{math['exchange']}")
    return f"x {' x '.join(steps)} = {plain(line.exact)}"


def _many(per: int) -> str:
    return {1_000_000: "1M", 1_000: "1K", 3_600_000: "hour"}.get(per, f"{per:,}")


def _short(number: str) -> str:
    return number if len(number) <= 12 else f"{Decimal(number):.8f}"


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


def as_html(invoice: Invoice, level: str | None = None) -> str:
    """A page to print or mail: no scripts, nothing loaded from elsewhere, all text escaped."""
    rows = "".join(_html_row(line) for line in invoice.collapsed(level))
    totals = "".join(
        f'<tr><td colspan="3">{label}</td><td class="n">{html.escape(value)}</td></tr>'
        for label, value in _totals(invoice)
    )
    held = "".join(f'<p class="held">{html.escape(_held(each))}</p>' for each in invoice.held)
    title = html.escape(f"Invoice {invoice.number}" if invoice.number else "Draft invoice")
    draft = '<p class="draft">Draft: it changes with usage until it is final.</p>' if not invoice.number else ""
    void = '<p class="draft">Void.</p>' if invoice.state == "void" else ""
    dates = [f"Period {invoice.period}"]
    dates += [f"Issued {invoice.issued:%Y-%m-%d}"] if invoice.issued else []
    dates += [f"Due {invoice.due:%Y-%m-%d}"] if invoice.due else []
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in invoice.notes)
    terms = html.escape(str(invoice.seller.get("terms") or ""))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}</h1>{draft}{void}<p>{html.escape(' · '.join(dates))}<br>{html.escape(invoice.plan)}</p>"
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


def _html_row(line: Line) -> str:
    title, quantity, math, amount = map(html.escape, _text_row(line))
    shown = f'<div class="math">{math}</div>' if math else ""
    described = f'<td>{title}{shown}</td><td class="n">{quantity}</td>'
    return f'<tr>{described}<td>{line.service}</td><td class="n">{amount}</td></tr>'
