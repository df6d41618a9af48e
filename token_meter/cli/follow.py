"""Events as they arrive in the ledger, one line each, until somebody stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.catch_up import catch_up
from token_meter.cli.event_rows import COLUMNS, short_row
from token_meter.cli.output import on_terminal, write_json_line
from token_meter.cli.place import Place
from token_meter.cli.tables import Row
from token_meter.cli.text import printable
from token_meter.event import MeterEvent

if TYPE_CHECKING:
    from token_meter.ledger import Ledger

POLL_SECONDS: Final = 0.5
OVERLAP: Final = timedelta(minutes=1)
"""Events that arrive up to so much later than others of their time are shown."""

WIDTHS: Final = {"time": 14, "customer": 16, "model": 28, "operation": 16, "status": 10}
NUMBER_WIDTH: Final = 9


def follow(
    place: Place, ledger: Ledger, filters: Mapping[str, Any], *, number: int, print_event: Callable[[MeterEvent], None]
) -> None:
    """Print the newest `number`, then whatever arrives."""
    arrivals = Arrivals(ledger, filters)
    for event in arrivals.newest(number):
        print_event(event)
    while True:
        time.sleep(POLL_SECONDS)
        catch_up(place, quiet=True)
        for event in arrivals.new():
            print_event(event)


def newest(ledger: Ledger, number: int, filters: Mapping[str, Any]) -> list[MeterEvent]:
    """The last so many events, oldest first."""
    return ledger.events(order="desc", limit=number, **filters)[::-1] if number else []


class Arrivals:
    """Tells which events were not there when it was made, also those that come late for their time."""

    def __init__(self, ledger: Ledger, filters: Mapping[str, Any]) -> None:
        self._ledger = ledger
        self._filters = filters
        self._since: datetime | None = None
        self._seen: dict[str, datetime] = {}
        self._move(ledger.events(order="desc", limit=1, **filters))
        self._seen.update((event.id, event.time) for event in self._recent())

    def newest(self, number: int) -> list[MeterEvent]:
        """The last so many, oldest first; they count as seen."""
        found = newest(self._ledger, number, self._filters)
        self._seen.update((event.id, event.time) for event in found)
        return found

    def new(self) -> Iterator[MeterEvent]:
        """The new ones, in the order of their times."""
        for event in self._recent():
            if event.id not in self._seen:
                self._seen[event.id] = event.time
                yield event
                self._move([event])
        if self._since is not None:
            self._seen = {id: moment for id, moment in self._seen.items() if moment >= self._since}

    def _recent(self) -> Iterator[MeterEvent]:
        since = max(filter(None, (self._since, self._filters.get("since"))), default=None)
        return self._ledger.iter_events(**{**self._filters, "since": since})

    def _move(self, events: Iterable[MeterEvent]) -> None:
        """Look no further back than need be; an event from a clock that is ahead must not hide what follows."""
        for event in events:
            begin = min(event.time, datetime.now(UTC)) - OVERLAP
            self._since = begin if self._since is None else max(begin, self._since)


def print_json(event: MeterEvent) -> None:
    """The whole event on one line."""
    write_json_line(event.to_json())


def column_printer(zone: tzinfo) -> Callable[[MeterEvent], None]:
    """Prints a heading, then gives what prints events below it; a table would have to know them all first."""
    from rich.text import Text

    from token_meter.cli.terminal import console

    out, short = console(), on_terminal()
    out.print(Text(_line({column.name: column.name for column in COLUMNS}), style="bold"), soft_wrap=True)

    def print_event(event: MeterEvent) -> None:
        out.print(Text(_line(short_row(event, zone, short=short))), soft_wrap=True)
        out.file.flush()

    return print_event


def _line(row: Row) -> str:
    cells = []
    for column in COLUMNS:
        value = row[column.name]
        shown = f"{value:,}" if isinstance(value, int) else printable(str("(none)" if value is None else value))
        cells.append(f"{shown:>{NUMBER_WIDTH}}" if column.number else f"{shown:<{WIDTHS.get(column.name, 0)}}")
    return "  ".join(cells).rstrip()
