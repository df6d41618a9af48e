"""Which event a user means: by its id, or by the end of it that a table shows."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from token_meter.cli.exits import Failure
from token_meter.cli.text import counted

if TYPE_CHECKING:
    from token_meter.event import MeterEvent
    from token_meter.ledger import Ledger

SEARCHED_MAX: Final = 100_000
"""Among so many of the newest events the end of an id is looked for."""


def event_named(ledger: Ledger, id: str) -> MeterEvent:
    """The event with this id, or the only one with an id that ends so."""
    exact = ledger.event(id)
    if exact is not None:
        return exact
    newest = islice(ledger.iter_events(order="desc"), SEARCHED_MAX)
    ending = [event for event in newest if event.id.endswith(id)]
    if not ending:
        raise Failure(f"no event has the id {id!r}; `token-meter events tail` shows the newest")
    if len(ending) > 1:
        raise Failure(f"{counted(len(ending), 'event')} have an id that ends in {id!r}: give more of it")
    return ending[0]
