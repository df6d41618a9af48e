"""`token-meter reconcile`: our totals beside what a billing backend counted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.exits import EPILOG, TROUBLE, WRONG_USAGE, Commands, Failure
from token_meter.cli.moments import read_moment, read_zone
from token_meter.cli.output import Shape, chosen_shape, note, show, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.progress import counting
from token_meter.cli.sink_names import closing, read_sinks
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted
from token_meter.event import format_time

if TYPE_CHECKING:
    from token_meter.reconcile import Line, Reconciliation

app = typer.Typer(cls=Commands, help="Compare our totals with others'.", no_args_is_help=True, epilog=EPILOG)

COLUMNS: Final = (
    Column("customer"),
    Column("there_as", "there as", quiet=True, expendable=True),
    Column("meter", whole=True),
    Column("ledger", number=True),
    Column("there", number=True),
    Column("in_flight", "in flight", number=True),
    Column("quarantined", number=True),
    Column("given_up", "given up", number=True),
    Column("unexplained", number=True),
    Column("estimated", "of it estimated", number=True, expendable=True),
)


@app.command("sink", epilog=EPILOG)
def reconcile_sink(
    name: Annotated[
        str, typer.Argument(metavar="SINK", help="stripe, lago, …, NAME=stripe, or module:attribute, as in `deliver`.")
    ],
    period: Annotated[
        str | None, typer.Option("--period", metavar="MONTH|DAY", help="2026-11 or 2026-11-25. Default: this month.")
    ] = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    all: Annotated[bool, typer.Option("--all", help="Also the lines that agree.")] = False,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Compare what a billing backend counted with the ledger, by customer and meter, and explain the difference.

    Exits with 1 when something is left unexplained. Times are UTC, in whole minutes or hours as the backend sums them.
    """
    from token_meter.reconcile import aligned, reconcile
    from token_meter.sinks.base import Counting

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    place = find(ledger, journal)
    destinations = read_sinks([name], place)
    with closing(destinations):
        sink = destinations[0].sink
        if not isinstance(sink, Counting):
            raise Failure(f"the destination of {destinations[0].name!r} cannot be asked what it has", code=WRONG_USAGE)
        begin, end = _period(period, since, until, lambda moment: aligned(moment, sink.counted_step))
        catch_up(place)
        with reading(place) as opened, counting("reading events") as watched:
            try:
                found = reconcile(opened, sink, place.journal, since=begin, until=end, watched=watched)
            except ValueError as error:
                raise Failure(str(error), code=WRONG_USAGE) from None
    if shape is Shape.JSON:
        write_json(_document(found))
    else:
        lines = [line for line in found.lines if all or line.ledger != line.there]
        show(Table(COLUMNS, [_row(line) for line in lines]), shape)
        _tell(found, shown=len(lines))
    if not found.agrees:
        raise typer.Exit(TROUBLE)


def _period(
    period: str | None, since: str | None, until: str | None, aligned: Callable[[datetime], datetime]
) -> tuple[datetime, datetime]:
    """The period that was asked for, in UTC and as the backend can be asked about it."""
    if period is not None and (since is not None or until is not None):
        raise Failure("say --period, or --since and --until", code=WRONG_USAGE)
    now = datetime.now(UTC)
    zone = read_zone("UTC")
    if since is None and until is None:
        begin = read_moment(period or f"{now:%Y-%m}", zone=zone, now=now)
        assert begin is not None
        month = period is None or len(period) == len("2026-11")
        end = _next_month(begin) if month else begin + timedelta(days=1)
    else:
        begin = read_moment(since, zone=zone, now=now) or datetime(1970, 1, 1, tzinfo=UTC)
        end = read_moment(until, zone=zone, now=now) or now + timedelta(hours=1)
    # An end in the future is none that a backend can be asked about.
    return aligned(begin.astimezone(UTC)), aligned(min(end.astimezone(UTC), now + timedelta(hours=1)))


def _next_month(begin: datetime) -> datetime:
    return (begin.replace(day=28) + timedelta(days=4)).replace(day=1)


def _row(line: Line) -> dict[str, Any]:
    return {
        "customer": ", ".join(line.customers) or None,
        "there_as": line.external,
        "meter": line.meter,
        "ledger": line.ledger,
        "there": line.there,
        "in_flight": line.in_flight,
        "quarantined": line.quarantined,
        "given_up": line.given_up,
        "unexplained": line.unexplained,
        "estimated": line.estimated,
    }


def _document(found: Reconciliation) -> dict[str, Any]:
    rows = [{**_row(line), "customers": list(line.customers)} for line in found.lines]
    for row in rows:
        del row["customer"]
    return {
        "sink": found.sink,
        "since": format_time(found.since),
        "until": format_time(found.until),
        "agrees": found.agrees,
        "events": found.events,
        "left_out": found.left_out,
        "refused": dict(found.refused),
        "lines": rows,
    }


def _tell(found: Reconciliation, *, shown: int) -> None:
    span = f"{found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC"
    note(f"{found.sink}, {span}: {counted(found.events, 'event')}, {counted(len(found.lines), 'total')} compared")
    if not shown and found.agrees:
        note("they agree" if found.lines else "there is nothing to compare")
    if found.left_out:
        note(f"{counted(found.left_out, 'event')} not for this sink (filtered, test usage, or nothing it reports)")
    for reason, count in found.refused.items():
        note(f"{counted(count, 'event')} on neither side: {reason}")
    if not found.agrees:
        note(
            "unexplained: usage from before the sink was added, or entered in the backend by others; a backend that "
            "sums late; or events it refused after it took them. Ask again in an hour, or for days: --period 2026-11-25"
        )
