"""`token-meter customers`: who they are, what billing backends know them by, since when and how much they used."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.customer_book import IdArgument, customer_named
from token_meter.cli.customer_edits import pause_customer, resume_customer, set_customer
from token_meter.cli.customer_files import export_customers, import_customers
from token_meter.cli.exits import EPILOG, Commands
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.moments import read_zone
from token_meter.cli.output import Shape, chosen_shape, note, show, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.tables import Column, Table
from token_meter.event import format_time

if TYPE_CHECKING:
    from token_meter.accounts import Customer
    from token_meter.ledger import Ledger, UsageRow
    from token_meter.ledger.values import Mode

COLUMNS: Final = (
    Column("customer"),
    Column("name", expendable=True),
    Column("status", whole=True),
    Column("external_ids", expendable=True),
    Column("calls", number=True),
    Column("tokens", number=True),
    Column("first", "first seen", whole=True),
    Column("last", "last seen", whole=True),
)

app = typer.Typer(
    cls=Commands, help="The customers: see, edit, import, export, pause.", no_args_is_help=True, epilog=EPILOG
)


@app.command("list", epilog=EPILOG)
def list_customers(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    mode: ModeOption = None,
    time_zone: options.ZoneOption = "UTC",
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List every customer with its first and last event, calls and tokens. The largest come first.

    Those who have used nothing come last. Usage of nobody is a row too.
    """
    from token_meter.accounts import CustomerBook

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    zone, chosen = read_zone(time_zone), read_mode(mode)
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened:
        found = list(_rows(opened, {each.id: each for each in CustomerBook(opened).iterate(mode=chosen)}, chosen))
    if shape is Shape.JSON:
        write_json([each | {name: _utc(each[name]) for name in ("first", "last")} for each in found])
        return
    show(Table(COLUMNS, [_shown(each, zone) for each in found], nothing="(none)"), shape)
    if not found:
        note(f"{place.shown} has no {chosen} customers yet; if you expected some, run `token-meter doctor`")


@app.command("show", epilog=EPILOG)
def show_customer(
    id: IdArgument,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    mode: ModeOption = None,
    time_zone: options.ZoneOption = "UTC",
    json: options.JsonOption = False,
) -> None:
    """Show one customer with everything that is known about them."""
    zone, chosen = read_zone(time_zone), read_mode(mode)
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened:
        customer = customer_named(opened, id, chosen)
    if json:
        write_json(customer.to_json())
    else:
        show(Table((Column("field", quiet=True), Column("value")), list(_facts(customer, zone))), Shape.TABLE)


app.command("set", epilog=EPILOG)(set_customer)
app.command("import", epilog=EPILOG)(import_customers)
app.command("export", epilog=EPILOG)(export_customers)
app.command("pause", epilog=EPILOG)(pause_customer)
app.command("resume", epilog=EPILOG)(resume_customer)


def _rows(ledger: Ledger, book: dict[str, Customer], mode: Mode) -> Iterator[dict[str, Any]]:
    """Whoever used anything, the largest first, then the rest of the book."""
    from token_meter.ledger import ANY

    used = sorted(ledger.usage(by=("customer",), meter=ANY, mode=mode), key=lambda row: -row.usage.tokens)
    for row in used:
        id = row.group["customer"]
        yield _known(book.pop(id, None) if id is not None else None, id) | _used(ledger, row, mode)
    for id, customer in book.items():
        yield _known(customer, id) | {"calls": 0, "tokens": 0, "first": None, "last": None}


def _known(customer: Customer | None, id: str | None) -> dict[str, Any]:
    return {
        "customer": id,
        "name": customer and customer.name,
        "status": customer and customer.status,
        "external_ids": dict(customer.external_ids) if customer else {},
    }


def _used(ledger: Ledger, row: UsageRow, mode: Mode) -> dict[str, Any]:
    customer = row.group["customer"]
    first, last = (ledger.events(customer=customer, mode=mode, order=order, limit=1) for order in ("asc", "desc"))
    return {
        "calls": row.events,
        "tokens": row.usage.tokens,
        "first": first[0].time if first else None,
        "last": last[0].time if last else None,
    }


def _shown(row: dict[str, Any], zone: tzinfo) -> dict[str, Any]:
    """The row for a person. What is not known about a customer is left out; a row of nobody says so."""
    shown = row | {name: _local(row[name], zone) for name in ("first", "last")}
    shown |= {"external_ids": _on_one_line(row["external_ids"])}
    return {name: value for name, value in shown.items() if value not in (None, "") or name == "customer"}


def _on_one_line(external_ids: dict[str, str]) -> str:
    """Ids elsewhere on one line."""
    return " ".join(f"{backend}={id}" for backend, id in sorted(external_ids.items()))


def _facts(customer: Customer, zone: tzinfo) -> Iterator[dict[str, Any]]:
    document = customer.to_json()
    for name in ("id", "mode", "status", "name", "email", "currency", "time_zone"):
        if name in document:
            yield {"field": name.replace("_", " "), "value": document[name]}
    for prefix, mapping in (("external", customer.external_ids), ("detail", customer.details)):
        for name, value in sorted(mapping.items()):
            yield {"field": f"{prefix} {name}", "value": value.replace("\n", " / ")}
    for name in ("created", "updated"):
        yield {"field": name, "value": _local(getattr(customer, name), zone)}


def _utc(moment: datetime | None) -> str | None:
    return format_time(moment) if moment else None


def _local(moment: datetime | None, zone: tzinfo) -> str | None:
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S") if moment else None
