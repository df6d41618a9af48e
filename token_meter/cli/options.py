"""Options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        "-l",
        metavar="PATH|URL",
        help="The ledger: a file or a URL. Default: $TOKEN_METER_LEDGER, else usage.db.",
    ),
]
JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal", metavar="FOLDER", help="The journal. Default: $TOKEN_METER_JOURNAL, else <ledger>.journal."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]

CustomerOption = Annotated[str | None, typer.Option("--customer", metavar="NAME", help="Only this customer.")]
UnattributedOption = Annotated[bool, typer.Option("--unattributed", help="Only what has no customer.")]
ModelOption = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Only this model.")]
ProviderOption = Annotated[str | None, typer.Option("--provider", metavar="NAME", help="Only this provider.")]
OperationOption = Annotated[
    str | None, typer.Option("--operation", metavar="NAME", help="Only this operation, such as chat.")
]
StatusOption = Annotated[
    str | None, typer.Option("--status", metavar="NAME", help="Only complete, partial, estimated or unmetered.")
]
MeterOption = Annotated[str | None, typer.Option("--meter", metavar="NAME", help="Only this meter.")]
DimensionOption = Annotated[
    list[str] | None,
    typer.Option("--dimension", metavar="NAME=VALUE", help="Only this value of a dimension; may be repeated."),
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="From then on: 2026-11-01, 2026-11, 7d, 12h, today, yesterday."),
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then (not included).")]
ZoneOption = Annotated[
    str, typer.Option("--time-zone", metavar="NAME", help="Where days begin and times are shown: Europe/Berlin.")
]
