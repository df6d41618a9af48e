"""`token-meter budgets`: limits on what may be spent: set them, see how they stand, look after what is held."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from token_meter.cli import options
from token_meter.cli.budget_view import (
    bar,
    hold_document,
    hold_row,
    limit_text,
    scope_text,
    screen,
    standings_table,
    whose,
)
from token_meter.cli.customer_book import near
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.output import Shape, chosen_shape, note, say, show, write_json, write_json_line
from token_meter.cli.place import find, reading
from token_meter.cli.rated import rated
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, did_you_mean
from token_meter.errors import InvalidBudget
from token_meter.money import plain

if TYPE_CHECKING:
    from token_meter.budgets.budget import Budget
    from token_meter.ledger import Ledger
    from token_meter.ledger.values import Mode

app = typer.Typer(
    cls=Commands,
    help="Budgets: what customers, keys or anything else may spend, before it is spent.",
    no_args_is_help=True,
    epilog=EPILOG,
)

BudgetArgument = Annotated[
    str, typer.Argument(metavar="BUDGET", help="Its id (or the beginning of it) or its name: see `budgets list`.")
]
ForOption = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        metavar="NAME=VALUE",
        help="Whose calls: customer=acme, key=*, model=gpt-5; * is one of each, key= calls without one. Repeatable.",
    ),
]


@app.command("set", epilog=EPILOG)
def set_budget(
    limit: Annotated[str, typer.Argument(metavar="LIMIT", help="How much: 25.00, or 2000000 tokens.")],
    scope: ForOption = None,
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="NAME", help="The same as --for customer=NAME.")
    ] = None,
    per: Annotated[
        str,
        typer.Option("--per", metavar="WINDOW", help="minute, hour, day, week, month, lifetime, plan, or 60s, 24h."),
    ] = "month",
    of: Annotated[str, typer.Option("--of", metavar="WHAT", help="charge, cost, tokens or requests.")] = "charge",
    enforce: Annotated[
        str | None,
        typer.Option(
            "--enforce", metavar="HOW", help="strict, bounded or soft: see docs/budgets.md. Default: bounded."
        ),
    ] = None,
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="What the limit is in.")] = "USD",
    time_zone: Annotated[
        str | None,
        typer.Option("--time-zone", metavar="NAME", help="Whose days and months: Europe/Berlin. Default: UTC."),
    ] = None,
    unpriced: Annotated[
        str | None,
        typer.Option("--unpriced", metavar="HOW", help="A model without a price: block (the default), dearest, allow."),
    ] = None,
    cut_off: Annotated[
        bool | None, typer.Option("--cut-off/--no-cut-off", help="End a stream when what was held for it is used up.")
    ] = None,
    tokenize: Annotated[
        bool | None,
        typer.Option("--tokenize/--no-tokenize", help="Count OpenAI's models' input with tiktoken before each call."),
    ] = None,
    threshold: Annotated[
        list[int] | None,
        typer.Option("--threshold", metavar="PERCENT", help="Tell when so much is spent. Default: 50, 80, 100."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What it is called.")] = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Limit what may be spent. One of the same scope, measure, currency and window is changed, and keeps what is not
    given; it counts within a second in every program."""
    from token_meter.budgets.budget import Budget
    from token_meter.budgets.desk import BudgetDesk

    wanted = _pairs(scope)
    if customer is not None and wanted.get("customer", customer) != customer:
        raise Failure(f"--customer {customer} and --for customer={wanted['customer']}: one of them", code=WRONG_USAGE)
    if customer is not None:
        wanted["customer"] = customer
    optional = {
        "enforce": enforce, "time_zone": time_zone, "unpriced": unpriced, "cut_off": cut_off, "tokenize": tokenize,
        "name": name, "thresholds": threshold,
    }  # fmt: skip
    given = {
        **{field: value for field, value in optional.items() if value is not None},
        "limit": limit, "scope": wanted, "window": per, "measure": of, "currency": currency, "mode": read_mode(mode),
    }  # fmt: skip
    try:
        Budget.read(given)
    except InvalidBudget as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    with rated(find(ledger, journal), make=True) as opened:
        desk = BudgetDesk(opened)
        doubts = [] if json else _doubts(opened, wanted, read_mode(mode))
        before, budget = desk.change(given)
        standings = desk.standings(budget.id)
        beside = [
            each for each in desk.list()
            if each.id != budget.id
            and (each.mode, each.scope, each.window, each.measure)
            == (budget.mode, budget.scope, budget.window, budget.measure)
        ]  # fmt: skip
    if json:
        write_json(budget.document())
        return
    say(f"{budget.id}: {limit_text(budget)} per {budget.window.shown} for {scope_text(budget)}, {budget.enforce}\n")
    for line in [*_changes(before, budget), *doubts, *(_beside(each) for each in beside)]:
        note(line)
    for each in standings:
        if each.spent > budget.limit and budget.enforce != "soft":
            note(f"{whose(each)} has spent {plain(each.spent)} already: their calls are refused until it begins anew")


@app.command("list", epilog=EPILOG)
def list_budgets(
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List the budgets in force."""
    from token_meter.budgets.desk import BudgetDesk

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    with reading(find(ledger)) as opened:
        found = BudgetDesk(opened).list()
    if shape is Shape.JSON:
        write_json([each.document() for each in found])
        return
    rows = [
        {"budget": each.id, "name": each.name or None, "for": scope_text(each), "limit": plain(each.limit),
         "of": each.currency if each.measure == "charge" else f"{each.currency} cost" if each.is_money
         else each.measure, "per": str(each.window), "enforce": each.enforce,
         "zone": None if each.time_zone == "UTC" else each.time_zone, "mode": each.mode}
        for each in found
    ]  # fmt: skip
    columns = [Column("budget", whole=True), Column("name"), Column("for"), Column("limit", number=True), Column("of"),
               Column("per"), Column("enforce"), Column("zone")]  # fmt: skip
    columns += [Column("mode")] if any(each.mode != "live" for each in found) else []
    show(Table(tuple(columns), rows, nothing=""), shape)
    if not found:
        note("nobody has a budget: token-meter budgets set 25 --customer acme")


@app.command("show", epilog=EPILOG)
def show_budgets(
    budget: Annotated[str | None, typer.Argument(metavar="[BUDGET]", help="Only this one.")] = None,
    customer: options.CustomerOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show what is spent, held and left in the windows under way."""
    from token_meter.budgets.desk import BudgetDesk

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    with rated(find(ledger, journal)) as opened:
        desk = BudgetDesk(opened)
        found = desk.standings(budget, customer=customer)
        limits = [
            each for each in (desk.list() if budget is None else [desk.get(budget)])
            if customer is None or dict(each.scope).get("customer", "*") in ("*", customer)
        ]  # fmt: skip
    if shape is Shape.JSON:
        write_json([each.document() for each in found])
        return
    show(standings_table(found, on_screen=shape is Shape.TABLE), shape)
    if any(each.lost for each in found):
        note("lost: calls of which nobody knows what became. `token-meter budgets holds --lost` shows them")
    unused = [each.label for each in limits if each.id not in {standing.budget.id for standing in found}]
    if unused:
        whose = "used by nobody" if customer is None else f"not used by {customer} by name"
        note(f"{whose} so far: {'; '.join(unused)}")


@app.command("reset", epilog=EPILOG)
def reset(
    budget: BudgetArgument,
    scope: ForOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Forget what is spent in the window under way: it begins anew now. What calls under way hold stays held."""
    from token_meter.budgets.desk import BudgetDesk

    with rated(find(ledger)) as opened:
        changed = BudgetDesk(opened).reset(budget, subject=_pairs(scope) or None)
    write_json({"reset": changed}) if json else say(
        f"{counted(changed, 'counter')} {'begins' if changed == 1 else 'begin'} at zero\n"
    )


@app.command("remove", epilog=EPILOG)
def remove(budget: BudgetArgument, ledger: options.LedgerOption = None, json: options.JsonOption = False) -> None:
    """Take a budget away: it limits nothing any more."""
    from token_meter.budgets.desk import BudgetDesk

    with rated(find(ledger)) as opened:
        desk = BudgetDesk(opened)
        ended = desk.end(desk.get(budget).id)
    write_json(ended.document()) if json else say(f"{ended.id}: {ended.label} is gone\n")


@app.command("holds", epilog=EPILOG)
def show_holds(
    lost: Annotated[bool, typer.Option("--lost", help="Only those of which nobody knows what became.")] = False,
    pending: Annotated[
        bool, typer.Option("--pending", help="Also those that are settled and wait for their event to be recorded.")
    ] = False,
    release: Annotated[
        list[str] | None,
        typer.Option(
            "--release", metavar="ID", help="Give this one back: the provider did not bill it. May be repeated."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --release: also one whose call may be under way still.")
    ] = False,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Show what calls under way hold, and what is lost; give a lost one back once you know it was not billed."""
    from token_meter.budgets.desk import BudgetDesk

    shape = chosen_shape(json=json)
    with rated(find(ledger)) as opened:
        desk = BudgetDesk(opened)
        if release:
            under_way = sorted({each.id for each in desk.holds() if each.state == "held"}.intersection(release))
            if under_way and not force:
                raise Failure(f"the call of {under_way[0]} may be under way still. If it is not: --force")
            given_back = desk.release(release, under_way=force)
            write_json({"released": given_back}) if json else say(f"{counted(given_back, 'hold')} given back\n")
            if given_back < len(set(release)):
                raise Failure("some of these ids hold nothing: see `token-meter budgets holds`")
            return
        desk.sweep()
        budgets = {each.id: each for each in desk.list()}
        found = [each for each in desk.holds(pending=pending) if not lost or each.state == "lost"]
    rows = [hold_row(each, budgets) for each in found]
    if shape is Shape.JSON:
        write_json([hold_document(each, budgets) for each in found])
        return
    columns = (Column("id", whole=True), Column("state"), Column("since", whole=True), Column("customer"),
               Column("model"), Column("held"), Column("process", expendable=True))  # fmt: skip
    show(Table(columns, rows, nothing=""), shape)


@app.command("watch", epilog=EPILOG)
def watch(
    budget: Annotated[str | None, typer.Argument(metavar="[BUDGET]", help="Only this one.")] = None,
    customer: options.CustomerOption = None,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.2, max=86_400, help="How often to look.")
    ] = 2.0,
    times: Annotated[int, typer.Option("--times", metavar="N", min=0, help="Look so often; 0: until Ctrl-C.")] = 0,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Watch budgets fill up: bars on a terminal, a line of JSON for each look with --json."""
    from token_meter.budgets.desk import BudgetDesk

    with reading(find(ledger)) as opened, screen(still=json) as draw:
        desk = BudgetDesk(opened)
        looked = 0
        while not times or looked < times:
            if looked:
                time.sleep(every)
            looked += 1
            found = desk.standings(budget, customer=customer)
            moment = datetime.now(UTC)
            if json:
                write_json_line({
                    "time": moment.isoformat(timespec="milliseconds"), "budgets": [each.document() for each in found],
                })  # fmt: skip
                continue
            bars = [f"  {bar(each)}\n" for each in found] or ["  nobody has used a budget yet\n"]
            draw(f"{moment:%H:%M:%S} UTC\n" + "".join(bars))


@app.command("unreachable", epilog=EPILOG)
def unreachable(
    prepaid: Annotated[
        str | None, typer.Option("--prepaid", metavar="closed|open", help="Customers who pay in advance.")
    ] = None,
    others: Annotated[str | None, typer.Option("--others", metavar="closed|open", help="All others.")] = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """What happens to calls when the ledger does not answer: closed refuses them, open lets them pass."""
    from token_meter.budgets.desk import BudgetDesk

    for given in (prepaid, others):
        if given not in (None, "closed", "open"):
            raise Failure(f"closed or open, not {given!r}", code=WRONG_USAGE)
    with rated(find(ledger), make=True) as opened:
        after = BudgetDesk(opened).unreachable(prepaid=prepaid, others=others)  # type: ignore[arg-type]
    if json:
        write_json({"prepaid": after.prepaid_unreachable, "others": after.unreachable})
        return
    say(f"when the ledger does not answer: prepaid {after.prepaid_unreachable}, others {after.unreachable}\n")


def _doubts(ledger: Ledger, scope: Mapping[str, str], mode: Mode) -> list[str]:
    """What may be a slip of the pen: a budget that no call will ever meet limits nothing."""
    from token_meter.accounts import CustomerBook

    found = []
    for name, value in scope.items():
        if name == "customer" and value and "*" not in value:
            book = CustomerBook(ledger)
            if book.get(value, mode=mode) is None:
                found.append(f"{value} is a new customer.{near(book, value, mode)}")
        elif name not in _FACTS and (hint := did_you_mean(name, _FACTS)):
            found.append(f"only calls that carry a dimension {name!r} are concerned.{hint}")
    return found


def _beside(budget: Budget) -> str:
    """Another budget of the same calls that holds as well: nobody should take it to be replaced."""
    return f"{budget.id} holds as well: {limit_text(budget)}, {budget.enforce}. Or: budgets remove {budget.id}"


_FACTS: Final = ("customer", "provider", "publisher", "model", "operation")


def _changes(before: Budget | None, after: Budget) -> list[str]:
    """What is not as it was, field by field."""
    if before is None:
        return []
    was, now = before.document(), after.document()
    changed = [name for name in now if name != "id" and was[name] != now[name]]
    return ["it was there: " + ", ".join(f"{name} {was[name]} -> {now[name]}" for name in changed)] if changed else []


def _pairs(given: Sequence[str] | None) -> dict[str, str]:
    pairs = [each.partition("=") for each in given or ()]
    if any(not separator or not name for name, separator, _ in pairs):
        raise Failure("--for wants NAME=VALUE, such as customer=acme, key=* or customer= for none", code=WRONG_USAGE)
    names = [name for name, _, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Failure(f"--for {twice[0]} is given twice: a budget has one value of each name", code=WRONG_USAGE)
    return {name: value for name, _, value in pairs}
