"""`token-meter credits`: prepaid credit: packs, grants, balances, refunds, the journal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from token_meter.cli import options
from token_meter.cli.customer_book import near, note_if_new
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.moments import read_moment
from token_meter.cli.output import Shape, chosen_shape, note, say, show, write_json
from token_meter.cli.place import find
from token_meter.cli.rated import rated
from token_meter.cli.subscriptions import CustomerArgument
from token_meter.cli.tables import Column, Table
from token_meter.money import plain

app = typer.Typer(
    cls=Commands, help="Prepaid credit: grant, sell, refund, see what is left.", no_args_is_help=True, epilog=EPILOG
)

GrantArgument = Annotated[str, typer.Argument(metavar="GRANT", help="The grant's id, as `credits list` shows it.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the journal.")]
OnceOption = Annotated[
    str | None, typer.Option("--id", metavar="ID", help="Makes a repetition harmless: the same id grants once.")
]


@app.command("grant", epilog=EPILOG)
def grant(
    customer: CustomerArgument,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="How much: 25.00.")],
    paid: Annotated[bool, typer.Option("--paid", help="The customer pays for it: it stands on the invoice.")] = False,
    price: Annotated[
        str | None, typer.Option("--price", metavar="AMOUNT", help="What they pay, if not as much.")
    ] = None,
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="What it is in.")] = "USD",
    priority: Annotated[int, typer.Option("--priority", metavar="N", help="0 burns first, 1000 last.")] = 50,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Usable from then on.")] = None,
    expires: Annotated[str | None, typer.Option("--expires", metavar="TIME", help="Not usable from then on.")] = None,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="What it is called.")] = "Credit",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="NAME=PATTERN", help="Only for such usage: model=gpt-5*; may be repeated."),
    ] = None,
    once: OnceOption = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Grant credit to a customer; also an opening balance (--title "Opening balance")."""
    from token_meter.bookkeeping.credit_book import CreditBook

    now = datetime.now(UTC)
    start, stop = (read_moment(text, zone=UTC, now=now) for text in (since, expires))
    with rated(find(ledger, journal), make=True) as opened:
        note_if_new(opened, customer, read_mode(mode))
        made = CreditBook(opened).grant(
            customer, amount, kind="paid" if paid else "promotional", price=price, currency=currency,
            priority=priority, effective=start, expires=stop, title=title, scope=_scope(scope), mode=read_mode(mode),
            id=once,
        )  # fmt: skip
    _tell(made, json)


@app.command("buy", epilog=EPILOG)
def buy(
    customer: CustomerArgument,
    pack: Annotated[str, typer.Argument(metavar="PACK", help="A pack, as a plans file names it under `packs`.")],
    once: OnceOption = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Sell a pack: the credit is there at once, its price stands on the next invoice."""
    from token_meter.bookkeeping.credit_book import CreditBook

    with rated(find(ledger, journal)) as opened:
        made = CreditBook(opened).buy(customer, pack, mode=read_mode(mode), id=once)
    _tell(made, json)


@app.command("list", epilog=EPILOG)
def list_credits(
    customer: CustomerArgument,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show a customer's grants in the order in which they burn, and what is left."""
    from token_meter.bookkeeping.credit_book import CreditBook

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    with rated(find(ledger, journal)) as opened:
        book = CreditBook(opened)
        found = book.grants(customer, mode=read_mode(mode))
        currencies = sorted({each.currency for each in found})
        left = {name: plain(book.balance(customer, currency=name, mode=read_mode(mode))) for name in currencies}
    rows = [_row(each) for each in found]
    if shape is Shape.JSON:
        write_json({"customer": customer, "balance": left, "grants": rows})
        return
    columns = [Column("grant", whole=True), Column("title"), Column("kind"), Column("priority", number=True),
               Column("amount", number=True), Column("remaining", number=True), Column("currency"),
               Column("expires", whole=True)]  # fmt: skip
    columns += [Column("scope")] if any(row["scope"] for row in rows) else []
    show(Table(columns, rows, nothing="never"), shape)
    note(f"{customer} can use {', '.join(f'{amount} {name}' for name, amount in left.items()) or 'nothing'}")


@app.command("refund", epilog=EPILOG)
def refund(
    grant: GrantArgument,
    reason: ReasonOption,
    amount: Annotated[str | None, typer.Option("--amount", metavar="AMOUNT", help="Default: all that is left.")] = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Pay back what is left of a grant, or some of it."""
    from token_meter.bookkeeping.credit_book import CreditBook

    with rated(find(ledger)) as opened:
        try:
            left = CreditBook(opened).refund(grant, amount, reason=reason)
        except ValueError as error:
            raise Failure(str(error)) from None
    if json:
        write_json(_row(left))
    else:
        say(f"{grant}: {plain(left.remaining)} {left.currency} is left\n")


@app.command("void", epilog=EPILOG)
def void(
    grant: GrantArgument,
    reason: ReasonOption,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Take back what is left of a grant, as if it had not been granted."""
    from token_meter.bookkeeping.credit_book import CreditBook

    with rated(find(ledger)) as opened:
        left = CreditBook(opened).void(grant, reason=reason)
    write_json(_row(left)) if json else say(f"{grant} is void: {reason}\n")


@app.command("expire", epilog=EPILOG)
def expire(mode: ModeOption = None, ledger: options.LedgerOption = None, json: options.JsonOption = False) -> None:
    """Book what is left of expired grants as breakage. They cannot be used from their expiry on, booked or not."""
    from token_meter.bookkeeping.credit_book import CreditBook

    with rated(find(ledger)) as opened:
        found = CreditBook(opened).expire(mode=read_mode(mode))
    if json:
        write_json([_row(each) for each in found])
        return
    for each in found:
        say(f"{each.id} of {each.customer}: {plain(each.remaining)} {each.currency} expired\n")
    if not found:
        say("nothing has expired\n")


@app.command("journal", epilog=EPILOG)
def journal_of(
    customer: CustomerArgument,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
) -> None:
    """Show every entry of a customer's credit: the entries of each posting sum to zero."""
    from token_meter.bookkeeping.credit_book import CreditBook

    shape = chosen_shape(json=json, csv=csv)
    with rated(find(ledger)) as opened:
        book = CreditBook(opened)
        rows = [
            {"recorded": each.recorded.isoformat() if shape is Shape.JSON else f"{each.recorded:%Y-%m-%d %H:%M:%S}",
             "kind": each.kind, "account": each.account,
             "amount": plain(each.amount), "currency": each.currency, "grant": each.grant, "reason": each.reason,
             "posting": each.posting}
            for each in book.journal(customer, mode=read_mode(mode))
        ]  # fmt: skip
        wrong = book.check()
    if shape is Shape.JSON:
        write_json(rows)
    else:
        columns = (Column("recorded", whole=True), Column("kind"), Column("account"), Column("amount", number=True),
                   Column("currency"), Column("grant", expendable=True), Column("reason"))  # fmt: skip
        show(Table(columns, rows, nothing=""), shape)
    if wrong:
        raise Failure("; ".join(wrong))


@app.command("recharge", epilog=EPILOG)
def recharge(
    customer: CustomerArgument,
    threshold: Annotated[str, typer.Option("--below", metavar="AMOUNT", help="When less than this is left.")],
    pack: Annotated[str, typer.Option("--pack", metavar="PACK", help="What to sell then.")],
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Have a notice written for your payment system when a customer's credit runs low."""
    from token_meter.bookkeeping.credit_book import CreditBook

    with rated(find(ledger)) as opened:
        CreditBook(opened).recharge_at(customer, threshold, pack, mode=read_mode(mode))
    if json:
        write_json({"customer": customer, "below": threshold, "pack": pack})
        return
    say(f"a notice is written when {customer} has less than {threshold} left: see `token-meter notices list`\n")


@app.command("balance", epilog=EPILOG)
def balance(
    customer: CustomerArgument,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Show what a customer may use: what is left, less what calls under way hold and what is not recorded yet."""
    from token_meter.accounts import CustomerBook
    from token_meter.bookkeeping.credit_book import CreditBook
    from token_meter.budgets.desk import BudgetDesk

    chosen = read_mode(mode)
    with rated(find(ledger, journal)) as opened:
        book, desk = CreditBook(opened), BudgetDesk(opened)
        policy = desk.snapshot().policies.of(chosen, customer)
        currencies = sorted({each.currency for each in book.grants(customer, mode=chosen)} or {policy.currency})
        found = [desk.credit(customer, currency=each, mode=chosen) for each in currencies]
        customers = CustomerBook(opened)
        unknown = None if customers.get(customer, mode=chosen) else near(customers, customer, chosen) or " "
    rows = [
        {"currency": each.currency, "balance": plain(each.balance), "pending": plain(each.pending),
         "held": plain(each.held), "available": plain(each.available)}
        for each in found
    ]  # fmt: skip
    if json:
        write_json({"customer": customer, "policy": policy.document(), "credit": rows})
        return
    columns = (Column("currency"), *(Column(name, number=True) for name in ("balance", "pending", "held", "available")))
    show(Table(columns, rows, nothing=""), Shape.TABLE)
    if unknown:
        note(f"{customer} is not known here.{unknown}")
    note(
        f"when it is used up: {policy.policy} ({'calls are refused' if policy.policy == 'block' else 'it is invoiced'})"
    )


@app.command("policy", epilog=EPILOG)
def policy(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Whose; * for everybody without one.")],
    wanted: Annotated[
        str,
        typer.Argument(metavar="block|overage", help="block: no credit, no call. overage: what is beyond is invoiced."),
    ],
    enforce: Annotated[
        str,
        typer.Option("--enforce", metavar="HOW", help="strict: never beyond it; bounded: by what calls usually take."),
    ] = "bounded",
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="What their credit is in.")] = "USD",
    low: Annotated[
        str | None, typer.Option("--low", metavar="AMOUNT", help="Tell when less than this is left.")
    ] = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Say what happens when a customer's credit is used up. It counts within a second in every program."""
    from token_meter.budgets.desk import BudgetDesk
    from token_meter.budgets.policy import CreditPolicy
    from token_meter.errors import InvalidBudget

    chosen = read_mode(mode)
    if not customer.strip():
        raise Failure("say whose policy it is: a customer, or * for everybody without one", code=WRONG_USAGE)
    try:
        made = CreditPolicy.read({"policy": wanted, "enforce": enforce, "currency": currency, "low": low})
    except InvalidBudget as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    with rated(find(ledger, journal), make=True) as opened:
        if customer != "*":
            note_if_new(opened, customer, chosen)
        BudgetDesk(opened).policy(customer, made, mode=chosen)
    if json:
        write_json({"customer": customer, "mode": chosen, **made.document()})
        return
    said = "calls are refused when their credit does not cover them" if made.policy == "block" else (
        "calls go on when their credit is used up; what is beyond it is invoiced"
    )  # fmt: skip
    say(f"{'everybody without a policy of their own' if customer == '*' else customer}: {said}\n")


def _scope(pairs: list[str] | None) -> dict[str, str]:
    found = {name: pattern for name, _, pattern in (pair.partition("=") for pair in pairs or ())}
    if any("=" not in pair for pair in pairs or ()):
        raise Failure("--scope wants NAME=PATTERN, such as model=gpt-5*", code=WRONG_USAGE)
    return found


def _tell(made: Any, json: bool) -> None:
    if json:
        write_json(_row(made))
        return
    until = f", until {made.expires:%Y-%m-%d %H:%M} UTC" if made.expires else ""
    paid = f", paid with {plain(made.price)}" if made.price else ""
    left = "" if made.remaining == made.amount else f"; {plain(made.remaining)} is left"
    say(f"{made.customer} has {plain(made.amount)} {made.currency}{paid}{until} ({made.id}){left}\n")


def _row(grant: Any) -> dict[str, Any]:
    return {
        "grant": grant.id,
        "title": grant.title,
        "kind": grant.kind,
        "priority": grant.priority,
        "amount": plain(grant.amount),
        "remaining": plain(grant.remaining),
        "currency": grant.currency,
        "expires": f"{grant.expires:%Y-%m-%d %H:%M}" if grant.expires else None,
        "scope": ", ".join(f"{name}={pattern}" for name, pattern in grant.scope) or None,
    }
