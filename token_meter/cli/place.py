"""Where the ledger and its journal are: from the options, the environment, or the working directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from token_meter.cli.exits import NOTHING_THERE, Failure
from token_meter.cli.text import without_passwords

if TYPE_CHECKING:
    from token_meter.ledger import Ledger

LEDGER_VARIABLE: Final = "TOKEN_METER_LEDGER"
JOURNAL_VARIABLE: Final = "TOKEN_METER_JOURNAL"
LEDGER_DEFAULT: Final = "usage.db"
JOURNAL_WITHOUT_FILE: Final = "token_meter.journal"
_SQLITE: Final = "sqlite"


@dataclass(frozen=True, slots=True)
class Place:
    """A ledger (path or URL), the file it is in if it is one, and the journal folder that feeds it."""

    ledger: str
    file: Path | None
    journal: Path

    @property
    def shown(self) -> str:
        """The ledger as it may be shown."""
        return without_passwords(self.ledger)

    @property
    def missing(self) -> bool:
        """Whether it should be a file and there is none."""
        return self.file is not None and not self.file.exists()


def find(ledger: str | None = None, journal: Path | None = None) -> Place:
    """The place that the options name, else the environment, else `usage.db` here."""
    named = ledger or os.environ.get(LEDGER_VARIABLE) or LEDGER_DEFAULT
    file = _file(named)
    folder = journal or os.environ.get(JOURNAL_VARIABLE) or (f"{file}.journal" if file else JOURNAL_WITHOUT_FILE)
    return Place(named, file, Path(folder))


def _file(ledger: str) -> Path | None:
    """The file of a SQLite ledger; None for one behind a server."""
    scheme, separator, rest = ledger.partition("://")
    if not separator:
        return Path(ledger)
    if scheme.partition("+")[0] != _SQLITE:
        return None
    return Path(rest.removeprefix("/").partition("?")[0])


def no_ledger(place: Place) -> Failure:
    """The end of a command that wanted to read a ledger where there is none."""
    return Failure(
        f"no ledger at {place.shown}; run `token-meter demo` to see one, or name yours with --ledger PATH "
        f"or ${LEDGER_VARIABLE}",
        code=NOTHING_THERE,
    )


@contextmanager
def reading(place: Place) -> Iterator[Ledger]:
    """The ledger, opened to read; never made by reading. Raises Failure when there is none."""
    if place.missing:
        raise no_ledger(place)
    from token_meter.ledger import Ledger

    ledger = Ledger(place.ledger)
    try:
        yield ledger
    finally:
        ledger.close()
