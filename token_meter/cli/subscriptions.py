"""`token-meter plans subscriptions`, `subscribe`, `unsubscribe` and `cancel`: who is on which plan."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from token_meter.cli import options
from token_meter.cli.customer_book import note_if_new
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.moments import read_moment
from token_meter.cli.output import Shape, chosen_shape, note, show, write, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.rated import rated
from token_meter.cli.tables import Column, Table

if TYPE_CHECKING:
    from token_meter.billing.plans import Subscription


SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="From then on, also in the past: 2026-11-01. Default: now."),
]


PlanArgument = Annotated[str, typer.Argument(metavar="PLAN", help="A plan, or one version of it: pro, pro@2.")]


CustomerArgument = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id.")]


def subscribe(
    customer: CustomerArgument,
    plan: PlanArgument,
    since: SinceOption = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Ends then (not included).")] = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Put a customer on a plan, from now on or from a time on. The plan they were on ends there."""
    from token_meter.bookkeeping.plan_book import PlanBook

    now = datetime.now(UTC)
    start, stop = (read_moment(text, zone=UTC, now=now) for text in (since, until))
    with rated(find(ledger, journal)) as opened:
        note_if_new(opened, customer, read_mode(mode))
        made = PlanBook(opened).subscribe(customer, plan, start=start, stop=stop, mode=read_mode(mode))
    if json:
        write_json({"id": made.id, "customer": customer, "plan": f"{made.plan}@{made.version}",
                    "start": made.start.isoformat(), "stop": made.stop and made.stop.isoformat()})  # fmt: skip
    else:
        write(f"{customer} is on {_named(made)} {_span(made)}\n")


def unsubscribe(
    customer: CustomerArgument,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="Ends then. Default: now.")] = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """End a customer's subscription; they are on the default plan from then on, or at cost."""
    from token_meter.bookkeeping.plan_book import PlanBook

    moment = read_moment(at, zone=UTC, now=datetime.now(UTC))
    with rated(find(ledger, journal)) as opened:
        ended = PlanBook(opened).unsubscribe(customer, at=moment, mode=read_mode(mode))
    if json:
        write_json({"id": ended.id, "customer": customer, "plan": f"{ended.plan}@{ended.version}",
                    "stop": ended.stop and ended.stop.isoformat()})  # fmt: skip
    else:
        write(f"{customer} was on {ended.plan}@{ended.version} until {ended.stop:%Y-%m-%d %H:%M} UTC\n")


def cancel(
    subscription: Annotated[str, typer.Argument(metavar="ID", help="From `token-meter plans subscriptions`.")],
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Take a subscription back as if it had not been made; the one that it ended goes on."""
    from token_meter.bookkeeping.plan_book import PlanBook

    with rated(find(ledger, journal)) as opened:
        book = PlanBook(opened)
        before = book.cancel(subscription)
        cancelled = next(each for each in book.subscriptions() if each.id == subscription)
    if json:
        write_json({"cancelled": _row(cancelled), "goes_on": None if before is None else _row(before)})
        return
    write(f"{cancelled.customer} is not on {_named(cancelled)} {_span(cancelled)} after all\n")
    if before is not None:
        write(f"{before.customer} is on {_named(before)} {_span(before)}\n")
    elif cancelled.start <= datetime.now(UTC):
        note(f"nothing goes on in its place: {cancelled.customer} is on the default plan, or at cost")


def list_subscriptions(
    customer: options.CustomerOption = None,
    plan: Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="Only this plan: pro, pro@2.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that ended or were cancelled.")] = False,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List who is on which plan, or will be, from when until when."""
    from token_meter.bookkeeping.plan_book import PlanBook

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    place = find(ledger)
    with reading(place) as opened:
        found = PlanBook(opened).subscriptions(customer=customer, mode=read_mode(mode))
    chosen = [_row(each) for each in found if plan in (None, each.plan, _named(each))]
    rows = [each for each in chosen if every or each["state"] in ("active", "scheduled")]
    if shape is Shape.JSON:
        write_json(rows)
        return
    columns = (Column("id", whole=True), Column("customer"), Column("plan"), Column("state", whole=True),
               Column("since", whole=True), Column("until", whole=True))  # fmt: skip
    show(Table(columns, rows, nothing=""), shape)
    if not rows:
        note(f"{len(chosen)} that ended or were cancelled: --all" if chosen else "nobody is on a plan of their own yet")


def _row(each: Subscription) -> dict[str, Any]:
    return {
        "id": each.id,
        "customer": each.customer,
        "plan": _named(each),
        "state": _state(each, datetime.now(UTC)),
        "since": f"{each.start:%Y-%m-%d %H:%M}",
        "until": None if each.stop is None else f"{each.stop:%Y-%m-%d %H:%M}",
    }


def _state(each: Subscription, now: datetime) -> str:
    if each.cancelled is not None:
        return "cancelled"
    if each.start > now:
        return "scheduled"
    return "active" if each.holds_at(now) else "ended"


def _named(each: Subscription) -> str:
    return f"{each.plan}@{each.version}"


def _span(each: Subscription) -> str:
    until = f" until {each.stop:%Y-%m-%d %H:%M}" if each.stop else ""
    return f"from {each.start:%Y-%m-%d %H:%M} UTC on{until}"
