"""Before the ledger is read: bring in what still waits in its journal, so that a killed program's usage shows.

Nothing happens while a running program delivers: it does the same within a fraction of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from token_meter.cli.output import note
from token_meter.cli.place import Place
from token_meter.cli.text import counted
from token_meter.errors import JournalError
from token_meter.folder import JournalFolder

if TYPE_CHECKING:
    from token_meter.deliver import Delivered

LEDGER_SINK: Final = "ledger"
"""The name under which a journal knows the ledger beside it."""


def catch_up(place: Place, *, quiet: bool = False) -> int:
    """Deliver the journal to the ledger unless someone else does; how many events that were.

    Says so, and says too when it was not possible: the ledger then shows less than was used.
    """
    try:
        result = _delivered(place)
    except (JournalError, OSError) as error:
        if not quiet:
            note(f"could not look into the journal first: {error}")
        return 0
    if result is None:
        return 0
    if not quiet:
        _tell(result)
    return result.sent


def _delivered(place: Place) -> Delivered | None:
    if not feeds_the_ledger(place):
        return None
    from token_meter.bookkeeping.lazy import LazyRater
    from token_meter.deliver import deliver_once
    from token_meter.sinks import LedgerSink

    sink = LedgerSink(place.ledger, rater=LazyRater())
    try:
        return deliver_once(place.journal, sink)
    finally:
        sink.close()


def _tell(result: Delivered) -> None:
    if result.sent:
        note(f"delivered {counted(result.sent, 'event')} from the journal first")
    if not result.complete and result.holder is None:
        note(f"some events still wait in the journal: {result.error or 'see `token-meter deliver status`'}")


def feeds_the_ledger(place: Place) -> bool:
    """Whether there is a journal whose events belong into this ledger."""
    folder = JournalFolder(place.journal)
    if not place.fed or not folder.exists():
        return False
    sinks = folder.registered()
    return sinks is None or LEDGER_SINK in sinks
