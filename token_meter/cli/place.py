"""Where the ledger and its journal are: from the options, the environment, or the working directory."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from token_meter.cli.exits import NOTHING_THERE, WRONG_USAGE, Failure
from token_meter.cli.text import first_line, without_passwords
from token_meter.folder import JournalFolder

if TYPE_CHECKING:
    from token_meter.ledger import Ledger

LEDGER_VARIABLE: Final = "TOKEN_METER_LEDGER"
JOURNAL_VARIABLE: Final = "TOKEN_METER_JOURNAL"
LEDGER_DEFAULT: Final = "usage.db"
JOURNAL_WITHOUT_FILE: Final = "token_meter.journal"
_SQLITE: Final = "sqlite"
ADVICE: Final = {
    "not a database": "Name the ledger's file with --ledger.",
    "locked": "Another program keeps it locked: try again when that is done.",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A ledger (path or URL), the file it is in if it is one, and a journal folder.

    `fed`: the journal surely feeds this ledger. A journal only knows that it feeds *a* ledger, so one that merely
    lies here may be another's, and delivering it would mix two ledgers.
    """

    ledger: str
    file: Path | None
    journal: Path
    fed: bool = True

    @property
    def shown(self) -> str:
        """The ledger as it may be shown."""
        return without_passwords(self.ledger)

    @property
    def again(self) -> str:
        """What a command needs to be told to look at the same place: nothing where it would look by itself."""
        here = find()
        parts = ["--ledger", self.ledger] if self.ledger != here.ledger else []
        parts += ["--journal", str(self.journal)] if self.journal != find(self.ledger).journal else []
        return "".join(f" {shlex.quote(without_passwords(part))}" for part in parts)

    @property
    def missing(self) -> bool:
        """Whether it should be a file and there is none."""
        return self.file is not None and not self.file.exists()


def find(ledger: str | None = None, journal: Path | None = None) -> Place:
    """The place that the options name, else the environment, else `usage.db` here."""
    configured = os.environ.get(LEDGER_VARIABLE) or LEDGER_DEFAULT
    named = ledger or configured
    file = _file(named)
    if journal is not None:
        return Place(named, file, journal)
    # $TOKEN_METER_JOURNAL belongs to the ledger that the environment names, not to one named on the command line.
    configured_journal = os.environ.get(JOURNAL_VARIABLE) if named == configured else None
    if configured_journal:
        return Place(named, file, Path(configured_journal))
    if file is not None:
        return Place(named, file, Path(f"{file}.journal"))
    return Place(named, None, Path(JOURNAL_WITHOUT_FILE), fed=named == configured)


def _file(ledger: str) -> Path | None:
    """The file of a SQLite ledger; None for one behind a server."""
    scheme, separator, rest = ledger.partition("://")
    if not separator:
        return Path(ledger).expanduser()
    if scheme.partition("+")[0] != _SQLITE:
        return None
    return Path(rest.removeprefix("/").partition("?")[0]).expanduser()


def no_ledger(place: Place) -> Failure:
    """The end of a command that wanted to read a ledger where there is none."""
    return Failure(
        f"no ledger at {place.shown}; run `token-meter demo` to see one, or name yours with --ledger PATH "
        f"or ${LEDGER_VARIABLE}",
        code=NOTHING_THERE,
    )


def existing_journal(place: Place) -> Path:
    """The journal's folder. Failure when there is none."""
    try:
        there = JournalFolder(place.journal).exists()
    except OSError as error:
        raise Failure(
            f"cannot read the journal {place.journal}: {error.strerror or error}. Run this as the user that the "
            "program runs as, or name another with --journal FOLDER."
        ) from None
    if not there:
        raise Failure(
            f"no journal at {place.journal}; name it with --journal FOLDER, or its ledger with --ledger",
            code=NOTHING_THERE,
        )
    return place.journal


@contextmanager
def reading(place: Place) -> Iterator[Ledger]:
    """The ledger, opened to read; never made by reading. Raises Failure when there is none."""
    if place.missing or not holds_ledger(place):
        raise no_ledger(place)
    from token_meter.ledger import Ledger

    ledger = Ledger(place.ledger)
    try:
        yield ledger
    finally:
        ledger.close()


def holds_ledger(place: Place) -> bool:
    """Whether the database has a ledger's tables: opening one makes them, and a reader must not.

    Raises Failure when it cannot be opened, NewerSchema when it is of a newer version.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from token_meter.ledger.migrate import stored_revision
    from token_meter.ledger.opening import make_store, parse

    try:
        store = make_store(parse(place.ledger))
    except ValueError as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    try:
        with store.reading() as connection:
            return stored_revision(store, connection) is not None
    except SQLAlchemyError as error:
        raise Failure(_why_not(place, first_line(error))) from None
    finally:
        store.engine.dispose()


def _why_not(place: Place, reason: str) -> str:
    """What to do about a ledger that does not open."""
    advice = "Is the server there, and may this user use the database?"
    if place.file is not None:
        advice = "Is it the right file, and may you read it and write beside it?"
    for sign, known in ADVICE.items():
        if sign in reason:
            advice = known
    return f"cannot open the ledger {place.shown}: {reason}. {advice}"
