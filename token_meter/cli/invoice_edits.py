"""`token-meter invoice void`, `pay`, `credit-note` and `seller`: what becomes of a final invoice, and who sells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.output import write, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.rated import rated
from token_meter.cli.text import did_you_mean

if TYPE_CHECKING:
    from token_meter.bookkeeping.invoice_rows import Kept


SELLER_FIELDS: Final = (
    "name", "address", "email", "phone", "website", "tax_id", "registration", "bank", "terms", "prefix", "rounding",
)  # fmt: skip


NumberArgument = Annotated[str, typer.Argument(metavar="NUMBER", help="The invoice's number: INV-000001.")]


ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stays with the invoice.")]


def void_invoice(
    number: NumberArgument,
    reason: ReasonOption,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Declare an invoice void: its number stays, its period can be invoiced again."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook

    with reading(find(ledger)) as opened:
        kept = InvoiceBook(opened).void(number, reason=reason, mode=read_mode(mode))
    write_json(listed(kept)) if json else write(f"{number} is void: {reason}\n")


def pay_invoice(
    number: NumberArgument,
    reference: Annotated[str, typer.Option("--reference", metavar="TEXT", help="Of the payment.")] = "",
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Mark an invoice as paid."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook

    with reading(find(ledger)) as opened:
        kept = InvoiceBook(opened).pay(number, reference=reference, mode=read_mode(mode))
    write_json(listed(kept)) if json else write(f"{number} was paid on {kept.paid:%Y-%m-%d}\n")


def write_credit_note(
    number: NumberArgument,
    reason: ReasonOption,
    amount: Annotated[str | None, typer.Option("--amount", metavar="AMOUNT", help="Default: all that is left.")] = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Take a final invoice back, all of it or an amount, by a note with a number of its own."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook
    from token_meter.money import decimal_of

    try:
        taken = None if amount is None else decimal_of(amount, "--amount")
    except ValueError as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    with reading(find(ledger)) as opened:
        note_ = InvoiceBook(opened).credit_note(number, reason=reason, amount=taken, mode=read_mode(mode))
    if json:
        write_json(note_.to_json())
    else:
        write(f"{note_.number}: {note_.total:f} {note_.currency} of {number}: {reason}\n")


def set_seller(
    detail: Annotated[
        list[str],
        typer.Argument(metavar="NAME=TEXT...", help="name=, address=, tax_id=, terms=, prefix=, rounding=half_up."),
    ],
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Say who sells: it stands on every invoice from now on."""
    from token_meter.bookkeeping.invoice_book import InvoiceBook
    from token_meter.money import ROUNDINGS

    pairs = [each.partition("=") for each in detail]
    if any(not separator for _, separator, _ in pairs):
        raise Failure("write details as NAME=TEXT, such as name='Example Ltd'", code=WRONG_USAGE)
    details = {name: value for name, _, value in pairs}
    for name in details:
        if name not in SELLER_FIELDS:
            hint = did_you_mean(name, SELLER_FIELDS)
            raise Failure(
                f"{name!r} is no detail of a seller.{hint} Known: {', '.join(SELLER_FIELDS)}", code=WRONG_USAGE
            )
    if details.get("rounding", "half_even") not in ROUNDINGS:
        raise Failure(f"rounding is one of {', '.join(ROUNDINGS)}", code=WRONG_USAGE)
    with rated(find(ledger), make=True) as opened:
        InvoiceBook(opened).set_seller(details)
    write_json(details) if json else write("it stands on every invoice from now on\n")


def listed(kept: Kept) -> dict[str, Any]:
    """An invoice or credit note as a row of a list."""
    invoice = kept.invoice
    return {
        "number": invoice.number,
        "customer": invoice.customer,
        "period": str(invoice.period),
        "state": "credit note" if kept.kind == "credit_note" else kept.state,
        "issued": f"{kept.issued:%Y-%m-%d}",
        "paid": f"{kept.paid:%Y-%m-%d}" if kept.paid else None,
        "total": f"{invoice.total:f}",
        "currency": invoice.currency,
        "concerns": kept.concerns,
    }
