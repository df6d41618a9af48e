"""`token-meter deliver quarantine`: what sinks refused, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import LEDGER_SINK
from token_meter.cli.event_rows import SHORT_ID
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.output import Shape, chosen_shape, note, on_terminal, show, write, write_csv, write_json
from token_meter.cli.place import existing_journal, find
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, did_you_mean
from token_meter.folder import JournalFolder
from token_meter.locks import holder

if TYPE_CHECKING:
    from token_meter.deliver import Decided, Quarantined

app = typer.Typer(
    cls=Commands, help="What sinks refused: see it, release it, discard it.", no_args_is_help=True, epilog=EPILOG
)

COLUMNS: Final = (
    Column("sink"),
    Column("id", quiet=True, whole=True),
    Column("time", whole=True),
    Column("customer"),
    Column("model", expendable=True),
    Column("reason"),
)
DECIDED_COLUMNS: Final = (Column("state", whole=True), Column("decided", expendable=True), Column("why"))

SinkArgument = Annotated[str, typer.Argument(metavar="SINK", help="The sink that refused them.")]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="Their ids, or enough characters of the end of each.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Everything of this sink that waits.")]


@app.command("list", epilog=EPILOG)
def list_quarantine(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    sink: Annotated[str | None, typer.Option("--sink", metavar="NAME", help="Only of this sink.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Also what was decided, and how.")] = False,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List what sinks refused and lines nobody could read, with the reasons.

    The time is when it was refused. An entry that is no event has the place of its line for an id.
    """
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    folder = existing_journal(find(ledger, journal))
    if sink is not None:
        _check_sink(sink, _names(folder))
    found = (each for each in _entries(folder, sink) if all or each.state == "waiting")
    if shape is Shape.JSON:
        write_json([asdict(each) for each in found])
        return
    columns = (*COLUMNS, *DECIDED_COLUMNS) if all else COLUMNS
    short = shape is Shape.TABLE and on_terminal()
    rows = (_row(each, short=short) for each in found)
    if shape is Shape.CSV:
        write_csv(columns, rows)
    else:
        shown = list(rows)
        show(Table(columns, shown), shape)
        if not shown:
            note("nothing waits in quarantine" if not all else "nothing was ever refused")


@app.command(epilog=EPILOG)
def release(
    sink: SinkArgument,
    ids: IdsArgument = None,
    all: AllOption = False,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Put refused events back into delivery to the sink that refused them, with the same ids.

    Any process may deliver meanwhile; the one that does sends them next. Saying it twice sends nothing twice.
    """
    from token_meter.deliver import release as decide

    place = find(ledger, journal)
    folder = existing_journal(place)
    chosen = _chosen(ids, all=all)
    _check_sink(sink, JournalFolder(folder).registered() or ())
    try:
        decided = decide(folder, sink, ids=chosen)
    except ValueError as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    _tell(decided, "released", sink, json=json)
    if decided.ids and holder(JournalFolder(folder).lock(sink)) is None:
        command = "deliver run" if sink == LEDGER_SINK else "deliver run --sink ..."
        note(f"nobody delivers to {sink} now: the program that does when it runs next, or `token-meter {command}`")
    left = sum(each.state == "waiting" and each.event is None for each in _entries(folder, sink)) if all else 0
    if left:
        note(f"{counted(left, 'line')} that nobody can read can only be discarded")


@app.command(epilog=EPILOG)
def discard(
    sink: SinkArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why. It is kept with the entry.")],
    ids: IdsArgument = None,
    all: AllOption = False,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Give refused events and unreadable lines up: the sink will not get them. They stay on record.

    An event that was discarded can still be released by its id.
    """
    from token_meter.deliver import discard as decide

    folder = existing_journal(find(ledger, journal))
    chosen = _chosen(ids, all=all)
    _check_sink(sink, _names(folder))
    try:
        decided = decide(folder, sink, ids=chosen, reason=reason)
    except ValueError as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    _tell(decided, "discarded", sink, json=json)


app.command("drop", help="Give up refused events: another name for `discard`.", epilog=EPILOG)(discard)


def _chosen(ids: list[str] | None, *, all: bool) -> list[str] | Literal["all"]:
    if bool(ids) == all:
        raise Failure("name the ids, or say --all (and not both)", code=WRONG_USAGE)
    return ids or "all"


def _check_sink(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise Failure(
            f"this journal has no sink {name!r}. It has: {', '.join(known) or 'none'}.{did_you_mean(name, known)}",
            code=WRONG_USAGE,
        )


def _names(folder: Path) -> tuple[str, ...]:
    """The sinks of the journal, and those that were forgotten and left a quarantine."""
    journal = JournalFolder(folder)
    left = sorted(path.stem for path in journal.quarantine.glob("*.jsonl"))
    return tuple(dict.fromkeys((*(journal.registered() or ()), *left)))


def _entries(folder: Path, sink: str | None) -> Iterator[Quarantined]:
    from token_meter.deliver import quarantined

    for name in _names(folder):
        if sink in (None, name):
            yield from quarantined(folder, name)


def _row(entry: Quarantined, *, short: bool) -> dict[str, Any]:
    event = entry.event or {}
    return {
        "sink": entry.sink,
        "id": entry.id[-SHORT_ID:] if short else entry.id,
        "time": _shown(entry.time),
        "customer": event.get("customer"),
        "model": event.get("model") or event.get("model_requested"),
        "reason": entry.reason,
        "state": entry.state,
        "decided": _shown(entry.decided_at),
        "why": entry.decision,
    }


def _shown(time: str | None) -> str | None:
    return time and time[:19].replace("T", " ")


def _tell(decided: Decided, done: str, sink: str, *, json: bool) -> None:
    if json:
        write_json({"sink": sink, done: list(decided.ids), "already_decided": list(decided.already)})
        return
    what = counted(len(decided.ids), "event") if done == "released" else counted(len(decided.ids), "entry", "entries")
    write(f"{sink}: {done} {what}\n")
    if decided.already:
        note(f"{counted(len(decided.already), 'id was', 'ids were')} decided before: see `--all` of `quarantine list`")
