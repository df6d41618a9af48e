"""`token-meter invoice`: drafts, final invoices, runs over all customers, verification, accounting files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.customer_book import customer_named
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.invoice_edits import listed, pay_invoice, set_seller, void_invoice, write_credit_note
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.moments import read_zone
from token_meter.cli.output import Shape, chosen_shape, note, show, write, write_csv, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.rated import rated
from token_meter.cli.subscriptions import CustomerArgument
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, printable, printable_lines

if TYPE_CHECKING:
    from token_meter.billing.invoice import Invoice
    from token_meter.billing.plans import Period
    from token_meter.billing.render import Standing
    from token_meter.bookkeeping.invoice_rows import Kept

SHOWN_MAX: Final = 5
"""So many customers are named."""

LEVELS: Final = ("token_type", "model", "meter", "total")

_NUMBER: Final = re.compile(r"(?:TEST-)?[A-Za-z0-9-]+-\d{6}")

app = typer.Typer(
    cls=Commands, help="Invoices: see drafts, make them final, verify, export.", no_args_is_help=True, epilog=EPILOG
)

PeriodOption = Annotated[
    str | None,
    typer.Option("--period", metavar="PERIOD", help="Billing periods that end within: 2026-11, 2026-Q4, 2026."),
]
NoMathOption = Annotated[
    bool, typer.Option("--no-math", help="On the page, the price of a unit instead of cost and markup.")
]
LevelOption = Annotated[
    str | None, typer.Option("--level", metavar="LEVEL", help="Lines by token_type, model, meter or total.")
]


@app.command("show", epilog=EPILOG)
def show_invoice(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER|NUMBER", help="A customer's draft, or a kept invoice.")],
    period: PeriodOption = None,
    level: LevelOption = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to print instead.")] = None,
    time_zone: Annotated[
        str | None,
        typer.Option("--time-zone", metavar="ZONE", help="Show times in it. Default: the customer's, else UTC."),
    ] = None,
    no_math: NoMathOption = False,
) -> None:
    """Show what a customer's invoice is, or would be now, with the math of every line.

    Without --period: the billing period under way.
    """
    from token_meter.billing.render import as_html, as_text

    shape = chosen_shape(json=json, csv=csv)
    _check_level(level)
    zone = None if time_zone is None else read_zone(time_zone)
    with rated(find(ledger, journal)) as opened:
        found = _found(opened, customer, _period(period), read_mode(mode))
        zone = zone or _zone_of(opened, found[0][0].customer, read_mode(mode))
    if html is not None:
        pages = (as_html(each, level, standing, math=not no_math, zone=zone) for each, standing in found)
        html.write_text("".join(pages), encoding="utf-8")
        note(f"wrote {html}")
    elif shape is Shape.JSON:
        write_json([each.to_json() for each, _ in found])
    elif shape is Shape.CSV:
        _write_rows([each for each, _ in found], level)
    else:
        write(
            printable_lines("\n\n".join(as_text(each, level, standing, zone=zone) for each, standing in found)) + "\n"
        )


@app.command("run", epilog=EPILOG)
def run(
    period: Annotated[str, typer.Option("--period", metavar="PERIOD", help="Periods that end within: 2026-11.")],
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Make every customer's invoices of a period final. Safe to run again: who has one keeps it."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook

    with rated(find(ledger, journal)) as opened, _bar("invoicing") as progress:
        ran = InvoiceBook(opened).run(_needed(period), mode=read_mode(mode), progress=progress)
    total = _totals(ran.written)
    if json:
        write_json({"written": [each.number for each in ran.written], "there": ran.there, "empty": ran.empty,
                    "totals": total, "failed": ran.failed, "behind": ran.behind, "unpriced": ran.unpriced})  # fmt: skip
        _fail(ran.failed)
        return
    amounts = ", ".join(f"{amount} {currency}" for currency, amount in total.items()) or "nothing"
    write(f"{counted(len(ran.written), 'invoice')} written, {amounts}; {ran.there} were there already, "
          f"{counted(ran.empty, 'period')} had nothing to invoice\n")  # fmt: skip
    held = [each for each in ran.written if each.held]
    if held:
        numbers = ", ".join(str(each.number) for each in held[:5])
        note(f"{counted(len(held), 'invoice')} leave usage without a price for later: {numbers}")
    if ran.unpriced:
        why = next(iter(ran.unpriced.values()))
        note(f"no invoice for {_some(list(ran.unpriced))}: what they used has no price yet ({why})")
    for month, customers in _by_month(ran.behind).items():
        note(f"{month} is on no invoice of {_some(customers)}: token-meter invoice run --period {month}")
    for problem in ran.failed.values():
        note(problem)
    _fail(ran.failed)


@app.command("finalise", epilog=EPILOG)
def finalise(
    customer: CustomerArgument,
    period: Annotated[str, typer.Option("--period", metavar="PERIOD", help="The billing period: 2026-11.")],
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Make one customer's invoice final: it gets a number and never changes again."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook

    with rated(find(ledger, journal)) as opened:
        invoice = InvoiceBook(opened).finalise(customer, _needed(period), mode=read_mode(mode))
    write_json(invoice.to_json()) if json else write(f"{invoice}\n")


@app.command("list", epilog=EPILOG)
def list_invoices(
    customer: options.CustomerOption = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List the invoices and credit notes that were written, oldest first."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    with reading(find(ledger)) as opened:
        rows = [listed(each) for each in InvoiceBook(opened).list(customer=customer, mode=read_mode(mode))]
    if shape is Shape.JSON:
        write_json(rows)
        return
    columns = (Column("number", whole=True), Column("customer"), Column("period", whole=True), Column("state"),
               Column("issued", whole=True), Column("paid", whole=True), Column("total", number=True),
               Column("currency"), Column("concerns", expendable=True))  # fmt: skip
    show(Table(columns, rows, nothing=""), shape)


app.command("void", epilog=EPILOG)(void_invoice)
app.command("pay", epilog=EPILOG)(pay_invoice)
app.command("credit-note", epilog=EPILOG)(write_credit_note)


@app.command("verify", epilog=EPILOG)
def verify(
    numbers: Annotated[list[str] | None, typer.Argument(metavar="[NUMBER]...", help="Default: all of them.")] = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Work final invoices out again from events, prices and plans, byte for byte; exit code 1 if one differs."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook
    from token_meter.bookkeeping.verification import verify as verify_one
    from token_meter.errors import NotVerified

    wrong: dict[str, str] = {}
    with reading(find(ledger)) as opened, _bar("verifying") as progress:
        chosen = read_mode(mode)
        wanted = numbers or [str(each.invoice.number) for each in InvoiceBook(opened).list(mode=chosen)]
        for place, number in enumerate(wanted, 1):
            try:
                verify_one(opened, number, mode=chosen)
            except NotVerified as problem:
                wrong[number] = str(problem)
            progress(place, len(wanted))
    if json:
        write_json({"verified": len(wanted) - len(wrong), "wrong": wrong})
    else:
        write(f"{counted(len(wanted) - len(wrong), 'invoice')} worked out again, byte for byte the same\n")
    if wrong:
        raise Failure("; ".join(wrong.values()))


@app.command("export", epilog=EPILOG)
def export(
    period: PeriodOption = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FOLDER", help="Write a page to print of each: NUMBER.html."),
    ] = None,
    no_math: NoMathOption = False,
    level: LevelOption = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Write every line of every final invoice as CSV, for accounting; --period: of invoices for periods within it."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook

    _check_level(level)

    within = _period(period)
    with reading(find(ledger)) as opened:
        kept = InvoiceBook(opened).list(mode=read_mode(mode), state="final")
        chosen = [each.invoice for each in kept if within is None or _ends_in(each, within)]
        if html is not None:
            _write_pages(opened, chosen, html, level=level, math=not no_math, mode=read_mode(mode))
            return
    if json:
        write_json([each.to_json() for each in chosen])
    else:
        _write_rows(chosen, level)


def _write_pages(
    ledger: Any, chosen: Sequence[Invoice], folder: Path, *, level: str | None, math: bool, mode: Any
) -> None:
    from token_meter.billing.render import as_html
    from token_meter.bookkeeping.invoice_book import InvoiceBook

    book = InvoiceBook(ledger)
    folder.mkdir(parents=True, exist_ok=True)
    with _bar("writing") as progress:
        for place, each in enumerate(chosen, 1):
            standing, zone = book.standing(each.number, mode=mode), _zone_of(ledger, each.customer, mode)
            page = as_html(each, level, standing, math=math, zone=zone)
            (folder / f"{each.number}.html").write_text(page, encoding="utf-8")
            progress(place, len(chosen))
    write(f"{counted(len(chosen), 'page')} written to {folder}\n")


@app.command("accrual", epilog=EPILOG)
def accrual(
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
) -> None:
    """Show what every customer has used up to now and is on no final invoice yet: what to accrue at month's end.

    Without tax, and without what was paid for with credit: that was booked when the credit was sold and drawn.
    """
    from token_meter.billing.render import money, span_of
    from token_meter.bookkeeping.accrual import accruals

    shape = chosen_shape(json=json, csv=csv)
    with rated(find(ledger, journal)) as opened:
        found = list(accruals(opened, mode=read_mode(mode)))
    rows = [
        {"customer": each.customer, "period": span_of(each.draft.period), "plan": each.draft.plan,
         "amount": money(each.amount, each.draft.currency), "currency": each.draft.currency,
         "unpriced": len(each.draft.held) or None}
        for each in found if each.draft is not None
    ]  # fmt: skip
    failed = {each.customer: each.problem for each in found if each.problem is not None}
    if shape is Shape.JSON:
        write_json(rows)
        _fail(failed)
        return
    columns = (Column("customer"), Column("period", whole=True), Column("plan"), Column("amount", number=True),
               Column("currency"), Column("unpriced", number=True))  # fmt: skip
    show(Table(columns, rows, nothing=""), shape)
    for problem in failed.values():
        note(str(problem))
    _fail(failed)


app.command("seller", epilog=EPILOG)(set_seller)


def _found(ledger: Any, wanted: str, period: Period | None, mode: Any) -> list[tuple[Invoice, Standing]]:
    from token_meter.bookkeeping.invoice_book import InvoiceBook
    from token_meter.errors import InvalidInvoice

    book = InvoiceBook(ledger)
    try:
        return [(book.get(wanted, mode=mode).invoice, book.standing(wanted, mode=mode))]
    except InvalidInvoice as problem:
        if _NUMBER.fullmatch(wanted) and not book.knows(wanted, mode=mode):
            raise Failure(str(problem)) from None
        customer_named(ledger, wanted, mode)  # or a hint what else may be meant
        found = book.draft(wanted, within=period, mode=mode)
    if not found:
        raise Failure(f"{wanted} has no billing period that ends within {period or 'this one'}")
    return [(each, book.standing(each.number, mode=mode)) for each in found]


def _zone_of(ledger: Any, customer: str, mode: Any) -> tzinfo:
    from token_meter.accounts import CustomerBook

    known = CustomerBook(ledger).get(customer, mode=mode)
    return read_zone(known.time_zone) if known is not None and known.time_zone else UTC


def _some(customers: Sequence[str]) -> str:
    more = f" and {len(customers) - SHOWN_MAX:,} more" if len(customers) > SHOWN_MAX else ""
    return ", ".join(printable(each) for each in customers[:SHOWN_MAX]) + more


def _by_month(behind: Mapping[str, str]) -> dict[str, list[str]]:
    """Customers by the month that has to be run for them."""
    found: dict[str, list[str]] = {}
    for customer, month in sorted(behind.items(), key=lambda each: (each[1], each[0])):
        found.setdefault(month, []).append(customer)
    return found


def _fail(failed: Mapping[str, object]) -> None:
    if failed:
        raise Failure(f"{counted(len(failed), 'customer')} could not be invoiced: {', '.join(list(failed)[:5])}")


def _write_rows(found: list[Invoice], level: str | None) -> None:
    from token_meter.billing.render import CSV_COLUMNS, as_rows

    write_csv([Column(name) for name in CSV_COLUMNS], (row for each in found for row in as_rows(each, level)))


def _ends_in(kept: Kept, within: Period) -> bool:
    return within.start < kept.invoice.period.stop <= within.stop


def _totals(written: list[Invoice]) -> dict[str, str]:
    from token_meter.money import total

    currencies = sorted({each.currency for each in written})
    return {name: f"{total(each.total for each in written if each.currency == name):f}" for name in currencies}


def _period(text: str | None) -> Period | None:
    return None if text is None else _needed(text)


def _needed(text: str) -> Period:
    from token_meter.bookkeeping.plan_files import read_period

    try:
        return read_period(text)
    except ValueError as error:
        raise Failure(str(error), code=WRONG_USAGE) from None


def _check_level(level: str | None) -> None:
    if level is not None and level not in LEVELS:
        raise Failure(f"--level is one of {', '.join(LEVELS)}, not {level!r}", code=WRONG_USAGE)


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    """Progress on a terminal: told how much of how many is done."""
    import sys

    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from token_meter.cli.terminal import console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console("error"), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
