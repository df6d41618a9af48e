"""Before the ledger is read: bring in what still waits in its journal, so that a killed program's usage shows.

Nothing happens while a running program delivers: it does the same within a fraction of a second.
"""

from __future__ import annotations

from typing import Final

from token_meter.cli.output import note
from token_meter.cli.place import Place
from token_meter.cli.text import counted
from token_meter.folder import JournalFolder

LEDGER_SINK: Final = "ledger"
"""The name under which a journal knows the ledger beside it."""


def catch_up(place: Place) -> int:
    """Deliver the journal to the ledger unless someone else does; how many events that were. Says so if any."""
    if not feeds_the_ledger(place):
        return 0
    from token_meter.reporter import deliver_once
    from token_meter.sinks import LedgerSink

    sink = LedgerSink(place.ledger)
    try:
        delivered = deliver_once(place.journal, sink)
    finally:
        sink.close()
    if delivered:
        note(f"delivered {counted(delivered, 'event')} from the journal first")
    return delivered


def feeds_the_ledger(place: Place) -> bool:
    """Whether there is a journal whose events belong into this ledger."""
    folder = JournalFolder(place.journal)
    if not folder.exists():
        return False
    sinks = folder.registered()
    return sinks is None or LEDGER_SINK in sinks
