"""`token-meter customers import` and `export`: the book of customers as a CSV file."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.customer_book import editing, there_is_none
from token_meter.cli.exits import Failure
from token_meter.cli.mode import ModeOption, read_mode
from token_meter.cli.output import Shape, note, show, write, write_json
from token_meter.cli.place import Place, find, reading
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_meter.accounts import Edited
    from token_meter.accounts.csv_import import Problem
    from token_meter.ledger.values import Mode

PROBLEMS_SHOWN_MAX: Final = 50
"""So many wrong lines are shown; with --json all of them."""

STANDARD_INPUT: Final = Path("-")


def import_customers(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="The file, or - for standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Enter and edit customers from a CSV file: all of it, or nothing and a list of the lines that are wrong.

    The first line names the columns: id, name, email, currency, time_zone, status, external.BACKEND (stripe_id is
    short for external.stripe), detail.NAME. An empty cell leaves things as they are.
    """
    from token_meter.accounts import CsvRefused

    chosen = read_mode(mode)
    place = find(ledger, journal)
    data = _content(file)
    catch_up(place)
    try:
        done = _imported(place, data, chosen, dry_run=dry_run)
    except CsvRefused as refused:
        _tell_problems(refused.problems, dry_run=dry_run, json=json)
        named = "standard input" if file == STANDARD_INPUT else file
        raise Failure(
            f"{named}: {counted(len(refused.problems), 'line is', 'lines are')} wrong; nothing was changed"
        ) from None
    if json:
        write_json(_document(done, (), dry_run=dry_run))
    else:
        would = "would be " if dry_run else ""
        write(
            f"{len(done.added):,} {would}new, {len(done.changed):,} {would}changed, {len(done.unchanged):,} unchanged\n"
        )


def export_customers(
    mode: ModeOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Write every customer to standard output as CSV that `customers import` reads back; with --json, a line each.

    Cells that a spreadsheet would run as a formula are made text with a leading '.
    """
    from token_meter.accounts import CustomerBook, export_csv

    chosen = read_mode(mode)
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened:
        book = CustomerBook(opened)
        if json:
            for customer in book.iterate(mode=chosen):
                write(jsonlib.dumps(customer.to_json(), separators=(",", ":")) + "\n")
        else:
            for piece in export_csv(book, mode=chosen):
                write(piece)


def _imported(place: Place, data: bytes, mode: Mode, *, dry_run: bool) -> Edited:
    from token_meter.accounts import CustomerBook, check_csv, import_csv

    if not dry_run:
        check_csv(None, data, mode=mode)  # no ledger is made for a file that cannot be imported
        with editing(place) as book:
            return import_csv(book, data, mode=mode)
    if there_is_none(place):
        return check_csv(None, data, mode=mode)
    with reading(place) as opened:
        return check_csv(CustomerBook(opened), data, mode=mode)


def _content(file: Path) -> bytes:
    from token_meter.accounts.csv_import import read_file, read_stream

    return read_stream(sys.stdin.buffer) if file == STANDARD_INPUT else read_file(file)


def _tell_problems(problems: Sequence[Problem], *, dry_run: bool, json: bool) -> None:
    if json:
        from token_meter.accounts import Edited

        write_json(_document(Edited(), problems, dry_run=dry_run))
        return
    rows = [{"line": each.line, "reason": printable(each.reason)} for each in problems[:PROBLEMS_SHOWN_MAX]]
    show(Table((Column("line", number=True), Column("reason")), rows), Shape.TABLE)
    if len(problems) > PROBLEMS_SHOWN_MAX:
        note(f"and {len(problems) - PROBLEMS_SHOWN_MAX:,} more lines: --json has them all")


def _document(done: Edited, problems: Sequence[Problem], *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "added": list(done.added),
        "changed": list(done.changed),
        "unchanged": list(done.unchanged),
        "problems": [{"line": each.line, "reason": each.reason} for each in problems],
    }
