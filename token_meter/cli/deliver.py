"""`token-meter deliver`: what the journal holds for each sink, delivering it, giving a sink up."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.dry_run import dry_run as show_dry_run
from token_meter.cli.exits import EPILOG, TROUBLE, WRONG_USAGE, Commands, Failure
from token_meter.cli.output import Shape, chosen_shape, note, show, write, write_json
from token_meter.cli.place import existing_journal, find
from token_meter.cli.quarantine import app as quarantine_app
from token_meter.cli.sidecar import Report, Sidecar
from token_meter.cli.sink_names import Destination, closing, read_sinks
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import age, counted, did_you_mean
from token_meter.folder import JournalFolder

if TYPE_CHECKING:
    from token_meter.backlog import DeliveryState, JournalStatus

app = typer.Typer(cls=Commands, help="Deliver the journal, and see how far it is.", epilog=EPILOG)
app.add_typer(quarantine_app, name="quarantine")

COLUMNS: Final = (
    Column("sink"),
    Column("delivered", number=True),
    Column("backlog", number=True),
    Column("oldest"),
    Column("quarantined", number=True),
    Column("delivering", expendable=True),
    Column("last_error"),
)

SinkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="SINK",
        help="ledger (default), stripe, lago, amberflo, openmeter, webhook (set up by the environment; options as in "
        "stripe:api=stream), jsonl:PATH, files:FOLDER, or module:attribute for one of yours; NAME=... names it; may be "
        "repeated.",
    ),
]

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the exact requests that the sinks would make, and make none.")
]
LastOption = Annotated[
    int | None,
    typer.Option("--last", min=1, max=10_000, metavar="N", help="With --dry-run: of the ledger's last N events."),
]


@app.callback(invoke_without_command=True)
def deliver(
    context: typer.Context,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    sink: SinkOption = None,
    dry_run: DryRunOption = False,
    last: LastOption = None,
    json: options.JsonOption = False,
) -> None:
    """Deliver the journal, and see how far it is. With --sink and no command: the same as `deliver run`."""
    if context.invoked_subcommand is None and sink:
        run(ledger=ledger, journal=journal, sink=sink, dry_run=dry_run, last=last, json=json)
    elif context.invoked_subcommand is None:
        write(f"{context.get_help()}\n")
        raise typer.Exit(WRONG_USAGE)
    elif any((ledger, journal, sink, dry_run, last, json)):
        raise Failure(f"options belong after the command: `deliver {context.invoked_subcommand} ...`", code=WRONG_USAGE)


@app.command(epilog=EPILOG)
def status(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show for each sink what it has, what waits, what was refused, and which process delivers.

    Reads files only and disturbs nobody.
    """
    from token_meter.backlog import status as read_status

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    folder = existing_journal(find(ledger, journal))
    found = read_status(folder)
    if shape is Shape.JSON:
        write_json(status_document(found))
        return
    show(Table(COLUMNS, [_row(each) for each in found.deliveries]), shape)
    if shape is Shape.TABLE:
        note(f"{found.path}: {found.bytes:,} bytes in {counted(found.segments, 'segment')}")
        if not found.deliveries:
            note("no process has delivered from this journal yet: `token-meter deliver run` does")


@app.command(epilog=EPILOG)
def run(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    sink: SinkOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until SIGTERM or Ctrl-C: a sidecar.")] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Add sinks that this journal does not know yet, from now on.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Add them with everything that is still in the journal.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Try so long when a sink does not take its events.")
    ] = 10.0,
    dry_run: DryRunOption = False,
    last: LastOption = None,
    json: options.JsonOption = False,
) -> None:
    """Deliver what waits in the journal, calls of killed processes included.

    Exits with 1 when something could not be delivered; that stays in the journal.
    """
    if last is not None and not dry_run:
        raise Failure("--last belongs to --dry-run: what is delivered is what waits", code=WRONG_USAGE)
    if dry_run and (watch or add or replay):
        raise Failure("--dry-run changes nothing: leave out --watch, --add and --replay", code=WRONG_USAGE)
    place = find(ledger, journal)
    folder = existing_journal(place)
    destinations = read_sinks(sink or ["ledger"], place)
    reports: list[Report] = []
    with closing(destinations):
        if dry_run:
            show_dry_run(place, folder, destinations, last=last, json=json)
            return
        _check_known(folder, destinations, add=add or replay)
        sidecar = Sidecar(folder, destinations, replay=replay, tell=_teller(json, watch=watch))
        reports = sidecar.watch() if watch else sidecar.once(timeout)
    if json and not watch:
        write_json([report.to_json() for report in reports])
    _name_the_others(folder, destinations)
    if any(not report.complete for report in reports):
        raise typer.Exit(TROUBLE)


@app.command(epilog=EPILOG)
def check(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    sink: SinkOption = None,
    json: options.JsonOption = False,
) -> None:
    """Prove that each sink can be reached, that its key is taken, and that what it reports to is there.

    Sends no usage. Exits with 1 when something is wrong.
    """
    place = find(ledger, journal)
    destinations = read_sinks(sink or ["ledger"], place)
    with closing(destinations):
        found = [_checked(each) for each in destinations]
    if json:
        write_json(found)
    else:
        for each in found:
            for line in each["lines"]:
                write(f"{each['sink']}: {line}\n")
            if each["problem"] is not None:
                write(f"{each['sink']}: WRONG: {each['problem']}\n")
    if any(each["problem"] is not None for each in found):
        raise typer.Exit(TROUBLE)


@app.command(epilog=EPILOG)
def retry(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="SINK", help="The sinks, as `deliver status` names them. Default: all."),
    ] = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Ask the process that delivers to try again now, whatever it waits for: a backoff, or what a backend asked for."""
    from token_meter.deliver import request_hurry
    from token_meter.locks import holder

    folder = JournalFolder(existing_journal(find(ledger, journal)))
    known = folder.registered() or ()
    for name in names or ():
        if name not in known:
            told = f"this journal has no sink {name!r}. It has: {', '.join(known) or 'none'}."
            raise Failure(f"{told}{did_you_mean(name, known)}", code=WRONG_USAGE)
    asked = []
    for name in names or known:
        request_hurry(folder, name)
        asked.append({"sink": name, "process": holder(folder.lock(name))})
    if json:
        write_json(asked)
        return
    for each in asked:
        who = f"process {each['process']} tries again" if each["process"] is not None else "nobody delivers to it now"
        write(f"{each['sink']}: {who}\n")
    if any(each["process"] is None for each in asked):
        note("the program that delivers starts with it; or `token-meter deliver run --sink ...`")


@app.command(epilog=EPILOG)
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sink, as `deliver status` names it.")],
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: options.JsonOption = False,
) -> None:
    """Give a sink up: it gets nothing more, and no longer keeps the journal from being tidied."""
    from token_meter.backlog import status as read_status
    from token_meter.deliver import forget as forget_sink

    folder = existing_journal(find(ledger, journal))
    found = next((each for each in read_status(folder).deliveries if each.name == name), None)
    if found is None:
        known = JournalFolder(folder).registered() or ()
        raise Failure(
            f"this journal has no sink {name!r}. It has: {', '.join(known) or 'none'}.{did_you_mean(name, known)}",
            code=WRONG_USAGE,
        )
    if not yes:
        _confirm(found)
    forget_sink(folder, name)
    if json:
        write_json({"forgotten": name, "undelivered": found.backlog_events})
    else:
        write(f"{name} is forgotten; {counted(found.backlog_events, 'event')} will not reach it\n")


def _checked(destination: Destination) -> dict[str, Any]:
    """What a sink says about its destination."""
    from token_meter.errors import TokenMeterError
    from token_meter.sinks.base import Checked

    lines: list[str] = []
    problem: str | None = None
    try:
        if isinstance(destination.sink, Checked):
            lines = destination.sink.check()
        else:
            destination.sink.send([])
            lines = ["takes an empty batch (it has no check of its own)"]
    except (TokenMeterError, OSError, ValueError) as error:
        problem = str(error)
    return {"sink": destination.name, "lines": lines, "problem": problem}


def status_document(found: JournalStatus) -> dict[str, Any]:
    """The journal's state for programs."""
    from dataclasses import asdict

    return {**asdict(found), "path": str(found.path)}


def _row(state: DeliveryState) -> dict[str, Any]:
    error = next(iter(state.blocked.values()), None) or state.last_error
    return {
        "sink": state.name,
        "delivered": state.delivered,
        "backlog": state.backlog_events,
        "oldest": None if state.oldest_age_seconds is None else age(state.oldest_age_seconds),
        "quarantined": state.quarantined + state.invalid,
        "delivering": None if state.holder is None else f"process {state.holder}",
        "last_error": error,
    }


def _check_known(folder: Path, destinations: list[Destination], *, add: bool) -> None:
    """Adding a sink changes what every program on this journal must name, so it is never done by the way."""
    known = JournalFolder(folder).registered()
    new = [each.name for each in destinations if known is not None and each.name not in known]
    if new and not add:
        raise Failure(
            f"this journal does not belong to a sink {new[0]!r} (it has: {', '.join(known or ()) or 'none'}). Add it "
            "with --add (what comes from now on) or --replay (with what is still there); every Meter on this journal "
            "must then name it too, or it refuses to start",
            code=WRONG_USAGE,
        )


def _name_the_others(folder: Path, destinations: list[Destination]) -> None:
    given = {each.name for each in destinations}
    others = [name for name in JournalFolder(folder).registered() or () if name not in given]
    if others:
        note(f"not delivered by this command: {', '.join(others)} (name them with --sink)")


def _teller(json: bool, *, watch: bool) -> Callable[[Report], None]:
    """Tells of an attempt as it is made; a single run in JSON is told as a whole afterwards."""

    def tell(report: Report) -> None:
        if json and not watch:
            return
        if json:
            write(jsonlib.dumps(report.to_json(), separators=(",", ":")) + "\n")
        else:
            write(f"{report}\n")
        sys.stdout.flush()

    return tell


def _confirm(state: DeliveryState) -> None:
    if not sys.stdin.isatty():
        raise Failure(f"forgetting {state.name} cannot be taken back: say --yes", code=WRONG_USAGE)
    lost = f" {counted(state.backlog_events, 'event')} will not reach it." if state.backlog_events else ""
    typer.confirm(f"Forget the sink {state.name}?{lost} This cannot be taken back.", abort=True, err=True)
