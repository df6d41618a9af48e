"""Which set of sinks a journal belongs to, so that no sink is left out by accident and none is billed twice.

Opening a journal without a sink it belongs to would silently stop delivery there and keep every segment for
ever; so that is refused until someone says `deliver forget`.
"""

from __future__ import annotations

from collections.abc import Sequence

from token_meter.cursors import Cursor, at_the_end
from token_meter.errors import JournalError
from token_meter.folder import JournalFolder, checked_sink_name
from token_meter.locks import FileLock
from token_meter.segments import SegmentIndex


def adopt(folder: JournalFolder, names: Sequence[str], *, replay: bool) -> None:
    """Open the journal for exactly these sinks; a new one starts now, or at the beginning with `replay`.

    Raises JournalError when the journal belongs to a sink that is not among them, or two have one name.
    """
    lowered = [checked_sink_name(name).lower() for name in names]
    if len(set(lowered)) != len(lowered):
        raise JournalError(f"two sinks have the same name ({', '.join(names)}): give each its own, Sink(..., name=...)")
    with folder.locked():
        missing = [name for name in folder.registered() or () if name not in names]
        if missing:
            raise JournalError(
                f"the journal {str(folder.path)!r} also belongs to {', '.join(map(repr, missing))}, which was not "
                f"given. Add it again, or give it up with `token-meter deliver forget {missing[0]}`, or use another "
                "journal folder."
            )
        _register(folder, names, replay=replay)


def add(folder: JournalFolder, name: str, *, replay: bool) -> None:
    """Make sure that one sink belongs to the journal, whatever others do."""
    checked_sink_name(name)
    with folder.locked():
        _register(folder, (name,), replay=replay)


def _register(folder: JournalFolder, names: Sequence[str], *, replay: bool) -> None:
    known = folder.registered()
    if known is None and not names:
        return
    new = [name for name in names if name not in (known or ())]
    if known is not None and not new and folder.document.exists():
        return
    # The first sinks of a journal get everything in it: it may have been written before anyone could deliver.
    from_start = replay or known is None
    for name in new:
        folder.cursor(name).unlink(missing_ok=True)
        if not from_start:
            at_the_end(SegmentIndex(folder.segments)).save(folder.cursor(name), durable=True)
    folder.write_document((*(known or ()), *new))
    # Only now: a crash before journal.json was written must not make a half-registered set look like an old one.
    for name in new if from_start else ():
        Cursor().save(folder.cursor(name), durable=True)


def forget(folder: JournalFolder, name: str) -> None:
    """Give a sink up: it gets nothing more and no longer keeps segments. Its quarantine stays.

    Raises JournalError when the journal does not know it or a process is delivering to it.
    """
    checked_sink_name(name)
    with folder.locked():
        known = folder.registered() or ()
        if name not in known:
            raise JournalError(f"this journal has no sink {name!r}. It has: {', '.join(known) or 'none'}.")
        lock = FileLock(folder.lock(name))
        if not lock.acquire():
            raise JournalError(f"a running process delivers to {name!r}: stop it first, then forget the sink.")
        try:
            folder.write_document(tuple(other for other in known if other != name))
            folder.cursor(name).unlink(missing_ok=True)
        finally:
            lock.release()
