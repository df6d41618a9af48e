"""`token-meter events`: the meter events themselves, newest, all, or one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.event_corrections import reassign_events, void_events
from token_meter.cli.event_ids import event_named
from token_meter.cli.event_rows import COLUMNS, EXPORT_COLUMNS, export_row, json_lines, short_row
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.filters import read_filters
from token_meter.cli.follow import column_printer, follow, newest, print_json
from token_meter.cli.moments import read_zone
from token_meter.cli.output import Shape, chosen_shape, note, on_terminal, show, write, write_csv, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.progress import counting
from token_meter.cli.tables import Table

if TYPE_CHECKING:
    pass

NUMBER_MAX: Final = 1_000_000
"""So many `tail` holds in memory; `export` holds none."""

app = typer.Typer(cls=Commands, help="See, follow and export the meter events.", no_args_is_help=True, epilog=EPILOG)


@app.command(epilog=EPILOG)
def tail(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=0, max=NUMBER_MAX, metavar="N", help="So many of the newest.")
    ] = 20,
    go_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on and show events as they arrive.")] = False,
    customer: options.CustomerOption = None,
    unattributed: options.UnattributedOption = False,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    time_zone: options.ZoneOption = "UTC",
    model: options.ModelOption = None,
    provider: options.ProviderOption = None,
    operation: options.OperationOption = None,
    status: options.StatusOption = None,
    meter: options.MeterOption = None,
    dimension: options.DimensionOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show the newest events, oldest of them first.

    With --json: an array; with --follow --json: one event per line, as they arrive.
    """
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    if go_on and shape in (Shape.CSV, Shape.MARKDOWN):
        raise Failure("--follow goes with the plain table or with --json", code=WRONG_USAGE)
    filters = read_filters(
        customer=customer, unattributed=unattributed, status=status, dimension=dimension, since=since, until=until,
        time_zone=time_zone, model=model, provider=provider, operation=operation, meter=meter,
    )  # fmt: skip
    zone = read_zone(time_zone)
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened:
        if go_on:
            printer = print_json if shape is Shape.JSON else column_printer(zone)
            follow(place, opened, filters, number=number, print_event=printer)
        found = newest(opened, number, filters)
    if shape is Shape.JSON:
        write_json([event.to_json() for event in found])
    elif shape is Shape.CSV:
        write_csv(EXPORT_COLUMNS, map(export_row, found))
    else:
        short = shape is Shape.TABLE and on_terminal()
        rows = [short_row(event, zone, short=short) for event in found]
        show(Table(COLUMNS, rows, nothing="(none)"), shape)
        if not found:
            note("no events; if you expected some, run `token-meter doctor`")


@app.command(epilog=EPILOG)
def export(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    format: Annotated[str, typer.Option("--format", metavar="jsonl|csv", help="What to write.")] = "jsonl",
    customer: options.CustomerOption = None,
    unattributed: options.UnattributedOption = False,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    time_zone: options.ZoneOption = "UTC",
    model: options.ModelOption = None,
    provider: options.ProviderOption = None,
    operation: options.OperationOption = None,
    status: options.StatusOption = None,
    meter: options.MeterOption = None,
    dimension: options.DimensionOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
) -> None:
    """Write every event to standard output, oldest first, in constant memory.

    JSON lines carry the whole event in its stable form. CSV has a column per token type; cells that a spreadsheet
    would run as a formula are made text with a leading '.
    """
    written = _export_format(format, chosen_shape(json=json, csv=csv))
    filters = read_filters(
        customer=customer, unattributed=unattributed, status=status, dimension=dimension, since=since, until=until,
        time_zone=time_zone, model=model, provider=provider, operation=operation, meter=meter,
    )  # fmt: skip
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened, counting("exporting") as count:
        events = count(opened.iter_events(**filters))
        if written == "csv":
            write_csv(EXPORT_COLUMNS, map(export_row, events))
        else:
            for lines in json_lines(events):
                write(lines)


@app.command("show", epilog=EPILOG)
def show_event(
    id: Annotated[str, typer.Argument(metavar="ID", help="The id, or enough characters of its end.")],
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Show one event with everything in it, the provider's own usage block too. Always JSON."""
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened:
        write_json(event_named(opened, id).to_json())


app.command("void", epilog=EPILOG)(void_events)
app.command("reassign", epilog=EPILOG)(reassign_events)


def _export_format(format: str, shape: Shape) -> str:
    if shape is not Shape.TABLE:
        return "csv" if shape is Shape.CSV else "jsonl"
    if format not in ("jsonl", "csv"):
        raise Failure(f"--format is jsonl or csv, not {format!r}", code=WRONG_USAGE)
    return format
