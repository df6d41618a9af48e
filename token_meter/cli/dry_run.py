"""`deliver run --dry-run`: the requests that sinks would make, without making them."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.output import note, write, write_json_line
from token_meter.cli.place import Place, reading
from token_meter.cli.sink_names import Destination
from token_meter.cli.text import counted, printable
from token_meter.folder import JournalFolder
from token_meter.sinks.base import Sketch, Sketching, Waiting

if TYPE_CHECKING:
    from token_meter.errors import Refusal
    from token_meter.event import MeterEvent

REFUSALS_SHOWN: Final = 20
BATCH_EVENTS: Final = 500
NOTHING_WAITS: Final = "nothing waits (--last N shows what the ledger's last N events would make)"


def dry_run(place: Place, folder: Path, destinations: Sequence[Destination], *, last: int | None, json: bool) -> None:
    """Show what waits for each sink as it would be sent, or the last events of the ledger instead."""
    for each in destinations:
        if not isinstance(each.sink, Sketching):
            raise Failure(f"the sink {each.name!r} makes no requests that could be shown", code=WRONG_USAGE)
        if last is None:
            _show(each, each.sink, _waiting(folder, each), json=json, nothing=NOTHING_WAITS)
        else:
            _show(each, each.sink, _recent(place, last), json=json, nothing="the ledger has no events")


def _waiting(folder: Path, destination: Destination) -> Iterator[list[MeterEvent]]:
    """What is new to the sink, then what it refused and would be given again."""
    from token_meter.deliver import returning, waiting_events

    if destination.name not in (JournalFolder(folder).registered() or ()):
        note(f"{destination.name} is new to this journal: all that is still in it, as --replay would send it")
    yield from waiting_events(folder, destination.name)
    refused = returning(folder, destination.name, ready=_ready(destination))
    while again := list(islice(refused, BATCH_EVENTS)):
        note(
            f"{destination.name}: {counted(len(again), 'event')} that it refused before {_goes(len(again))} out again:"
        )
        yield again


def _goes(count: int) -> str:
    return "goes" if count == 1 else "go"


def _ready(destination: Destination) -> Callable[[str], bool] | None:
    """Whether something is there that refused events wait for. A sink that cannot tell now is not believed to."""
    sink = destination.sink
    if not isinstance(sink, Waiting):
        return None

    def ready(awaits: str) -> bool:
        try:
            return sink.ready(awaits)
        except Exception as error:  # noqa: BLE001 - a backend that is away, a user's own sink
            note(f"{destination.name}: cannot tell whether what refused events wait for is there: {error}")
            return False

    return ready


def _recent(place: Place, count: int) -> Iterator[list[MeterEvent]]:
    with reading(place) as ledger:
        yield list(reversed(ledger.events(order="desc", limit=count)))


def _show(
    destination: Destination, sink: Sketching, batches: Iterable[list[MeterEvent]], *, json: bool, nothing: str
) -> None:
    events = requests = refused = 0
    for batch in batches:
        events += len(batch)
        sketches, refusals = sink.sketch(batch)
        requests += len(sketches)
        for sketch in sketches:
            _show_request(destination.name, sketch, json=json)
        for refusal in islice(refusals, max(0, REFUSALS_SHOWN - refused)):
            _show_refusal(destination.name, refusal, json=json)
        refused += len(refusals)
    if refused > REFUSALS_SHOWN and not json:
        note(f"and {counted(refused - REFUSALS_SHOWN, 'event')} more that would be quarantined")
    made = f"{counted(events, 'event')}, {counted(requests, 'request')}, {refused} refused. Nothing was sent"
    note(f"{destination.name}: {made if events else nothing}")


def _show_request(name: str, sketch: Sketch, *, json: bool) -> None:
    if json:
        write_json_line({"sink": name, "method": sketch.method, "url": sketch.url, "body": _parsed(sketch.body)})
    else:
        write(f"{sketch.method} {sketch.url}\n{printable(sketch.body)}\n\n")


def _show_refusal(name: str, refusal: Refusal, *, json: bool) -> None:
    if json:
        write_json_line({"sink": name, "refused": refusal.event.id, "reason": refusal.reason})
    else:
        note(f"would be quarantined: {refusal.event.id}: {refusal.reason}")


def _parsed(body: str) -> Any:
    """The body as JSON if it is that; a form stays text."""
    try:
        return jsonlib.loads(body)
    except ValueError:
        return body
