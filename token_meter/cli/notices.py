"""`token-meter notices`: what somebody should know or do."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from token_meter.cli import options
from token_meter.cli.exits import EPILOG, Commands
from token_meter.cli.output import Shape, chosen_shape, show, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.tables import Column, Table

app = typer.Typer(
    cls=Commands,
    help="Notices: prices that changed or are missing, credit that runs low.",
    no_args_is_help=True,
    epilog=EPILOG,
)


@app.command("list", epilog=EPILOG)
def list_notices(
    after: Annotated[int, typer.Option("--after", metavar="NUMBER", help="Only those behind this number.")] = 0,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Only of this kind, as price.unknown.")
    ] = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """List notices, oldest first. Each has a key: whoever acts on it uses that as idempotency key."""
    from token_meter.bookkeeping.notice_rows import read_notices

    shape = chosen_shape(json=json)
    with reading(find(ledger)) as opened, opened.reading() as (_, connection):
        found = [each for each in read_notices(connection, after) if kind is None or each["kind"] == kind]
    if shape is Shape.JSON:
        write_json(found)
        return
    rows = [each | {"document": json_module.dumps(each["document"], ensure_ascii=False)} for each in found]
    columns = (Column("number", number=True), Column("recorded", whole=True), Column("kind", whole=True),
               Column("customer"), Column("document"))  # fmt: skip
    show(Table(columns, rows, nothing=""), shape)
