"""`token-meter events void` and `reassign`: corrections, which go to every sink like other events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.event_ids import event_named
from token_meter.cli.exits import Failure
from token_meter.cli.output import note, write, write_json
from token_meter.cli.partners import writing
from token_meter.cli.place import find, reading
from token_meter.cli.text import counted

if TYPE_CHECKING:
    from token_meter.event import MeterEvent
    from token_meter.ledger import Ledger

IdsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or enough characters of their ends.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stands on the correction.")]


def void_events(
    ids: IdsArgument,
    reason: ReasonOption,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Take events back: they count nothing any more, here and at every sink that takes corrections.

    The events stay; a correction is recorded for each. A final invoice is corrected by the next one.
    """
    from token_meter.bookkeeping.event_corrections import voiding

    now = datetime.now(UTC)
    _record(ledger, journal, ids, lambda opened, id: [voiding(opened, id, reason=reason, now=now)], json=json)


def reassign_events(
    ids: IdsArgument,
    to: Annotated[str, typer.Option("--to", metavar="CUSTOMER", help="Whose they are instead.")],
    reason: ReasonOption,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Give events to another customer: taken back from one, recorded for the other at their own time."""
    from token_meter.bookkeeping.event_corrections import reassigning

    now = datetime.now(UTC)
    _record(ledger, journal, ids, lambda opened, id: reassigning(opened, id, to, reason=reason, now=now), json=json)


def _record(
    ledger: str | None,
    journal: Path | None,
    ids: Sequence[str],
    make: Callable[[Ledger, str], list[MeterEvent]],
    *,
    json: bool,
) -> None:
    place = find(ledger, journal)
    catch_up(place)
    with reading(place) as opened:
        wanted = [event_named(opened, id).id for id in dict.fromkeys(ids)]
        made = [event for id in dict.fromkeys(wanted) for event in make(opened, id)]
    if not place.fed:
        raise Failure(f"which journal belongs to {place.shown}? Name it with --journal FOLDER")
    with writing(place, dry_run=False) as recording:
        for event in made:
            recording.record_event(event)
    catch_up(place, quiet=True)
    if json:
        write_json({"recorded": [event.id for event in made]})
        return
    write(f"{counted(len(made), 'correction')} recorded for {counted(len(set(ids)), 'event')}\n")
    note("they go to every sink of this journal; the program that runs delivers them, or `token-meter deliver run`")
