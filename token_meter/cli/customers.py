"""`token-meter customers`: who has used anything, since when, how much."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.exits import EPILOG, Commands
from token_meter.cli.moments import read_zone
from token_meter.cli.output import Shape, chosen_shape, note, show, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.tables import Column, Table
from token_meter.event import format_time

if TYPE_CHECKING:
    from token_meter.ledger import Ledger, UsageRow

app = typer.Typer(cls=Commands, help="The customers in the ledger.", no_args_is_help=True, epilog=EPILOG)


@app.command("list", epilog=EPILOG)
def list_customers(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    time_zone: options.ZoneOption = "UTC",
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List every customer with its first and last event, calls and tokens. The largest come first."""
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    zone = read_zone(time_zone)
    place = find(ledger, journal)
    catch_up(place)
    from token_meter.ledger import ANY

    with reading(place) as opened:
        rows = sorted(opened.usage(by=("customer",), meter=ANY), key=lambda row: -row.usage.tokens)
        found = [_row(opened, row) for row in rows]
    if shape is Shape.JSON:
        write_json([each | {name: _utc(each[name]) for name in ("first", "last")} for each in found])
        return
    local = [each | {name: _local(each[name], zone) for name in ("first", "last")} for each in found]
    columns = (
        Column("customer"), Column("calls", number=True), Column("tokens", number=True),
        Column("first", "first seen", whole=True), Column("last", "last seen", whole=True),
    )  # fmt: skip
    show(Table(columns, local, nothing="(none)"), shape)
    if not found:
        note(f"{place.shown} has no events yet; if you expected some, run `token-meter doctor`")


def _row(ledger: Ledger, row: UsageRow) -> dict[str, Any]:
    customer = row.group["customer"]
    first, last = (ledger.events(customer=customer, order=order, limit=1) for order in ("asc", "desc"))
    return {
        "customer": customer,
        "calls": row.events,
        "tokens": row.usage.tokens,
        "first": first[0].time if first else None,
        "last": last[0].time if last else None,
    }


def _utc(moment: datetime | None) -> str | None:
    return format_time(moment) if moment else None


def _local(moment: datetime | None, zone: tzinfo) -> str | None:
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S") if moment else None
