"""`token-meter customers set`, `pause` and `resume`: edit one customer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.customer_book import IdArgument, customer_named, editing, near
from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.output import note, write, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.text import printable

if TYPE_CHECKING:
    from pathlib import Path

    from token_meter.accounts import CustomerChanges
    from token_meter.accounts.customer import CustomerStatus


def set_customer(
    id: IdArgument,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What people call them.")] = None,
    email: Annotated[str | None, typer.Option("--email", metavar="ADDRESS", help="Where invoices go.")] = None,
    currency: Annotated[
        str | None, typer.Option("--currency", metavar="CODE", help="What they pay in: USD, EUR, ...")
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option("--time-zone", metavar="NAME", help="Where their days and months begin: Europe/Berlin."),
    ] = None,
    external: Annotated[
        list[str] | None,
        typer.Option(
            "--external", metavar="BACKEND=ID", help="What a backend knows them by: stripe=cus_...; may be repeated."
        ),
    ] = None,
    detail: Annotated[
        list[str] | None,
        typer.Option(
            "--detail", metavar="NAME=TEXT", help="What an invoice says besides: tax_id=...; may be repeated."
        ),
    ] = None,
    status: Annotated[str | None, typer.Option("--status", metavar="active|paused", help="Their status.")] = None,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Change what is given about a customer, and nothing else. One who is not there is entered.

    An empty value takes away what was there: --name "", --external stripe=.
    """
    given = {"name": name, "email": email, "currency": currency, "time_zone": time_zone, "status": status}
    changes: dict[str, Any] = {field: text or None for field, text in given.items() if text is not None}
    if external:
        changes["external_ids"] = _pairs("--external", external)
    if detail:
        changes["details"] = _pairs("--detail", detail)
    chosen = read_mode(mode)
    place = find(ledger, journal)
    catch_up(place)
    with editing(place) as book:
        done = book.edit_many({id: cast("CustomerChanges", changes)}, mode=chosen)
        if done.refused:
            raise Failure(done.refused[id], code=WRONG_USAGE)
        hint = near(book, id, chosen) if done.added else ""
        customer = book.get(id, mode=chosen)
    if json:
        assert customer is not None
        write_json(customer.to_json())
    else:
        said = f"new {chosen} customer" if done.added else "changed" if done.changed else "nothing to change"
        write(f"{printable(id)}: {said}\n")
    if hint:
        note(f"{id!r} was not there before.{hint}")


def pause_customer(
    id: IdArgument,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Pause a customer: no call is made for them. What is recorded for them all the same goes on counting."""
    _mark(id, "paused", mode=mode, ledger=ledger, journal=journal, json=json)


def resume_customer(
    id: IdArgument,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Let calls be made for a paused customer again."""
    _mark(id, "active", mode=mode, ledger=ledger, journal=journal, json=json)


def _mark(
    id: str, status: CustomerStatus, *, mode: str | None, ledger: str | None, journal: Path | None, json: bool
) -> None:
    from token_meter.accounts import CustomerBook

    chosen = read_mode(mode)
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened:
        before = customer_named(opened, id, chosen)
        after = CustomerBook(opened).edit(id, mode=chosen, status=status)
    if json:
        write_json(after.to_json())
    else:
        write(f"{printable(id)}: {status}{' already' if before.status == status else ''}\n")


def _pairs(option: str, given: Sequence[str]) -> dict[str, str | None]:
    """NAME=VALUE by name; an empty value takes the name away."""
    pairs: dict[str, str | None] = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator or not name:
            raise Failure(f"{option} is NAME=VALUE, not {each!r}; NAME= takes the value away", code=WRONG_USAGE)
        if name in pairs:
            raise Failure(f"{option} names {name!r} twice", code=WRONG_USAGE)
        pairs[name] = value or None
    return pairs
