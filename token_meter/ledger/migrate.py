"""Opening a ledger: bring its tables up to date under a lock, declare dimensions, and stay out of the way.

The usual case, a ledger that is up to date, costs two small reads and does not import Alembic.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select, text

from token_meter.errors import NewerSchema
from token_meter.ledger.rollups import rebuild
from token_meter.ledger.store import LedgerError, Store
from token_meter.ledger.tables import DIMENSIONS_DECLARED_MAX, VERSION_TABLE, dimensions, state

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every revision this code knows, oldest first; a ledger at another one was written by a newer version."""

HEAD: Final = REVISIONS[-1]

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_ALEMBIC_LOGGERS: Final = ("alembic.runtime.migration", "alembic.runtime.plugins", "alembic.env")
_one_at_a_time: Final = threading.Lock()


def bring_up_to_date(store: Store, declared: Sequence[str]) -> None:
    """Create or upgrade the tables and declare these dimensions, unless that is all done already.

    Any number of processes may do this at once: one does it, the others wait and find it done.
    """
    with store.reading() as connection:
        if stored_revision(store, connection) == HEAD and not _undeclared(connection, declared):
            return
    with store.migrating() as connection:
        if stored_revision(store, connection) != HEAD:
            _upgrade(connection)
            _create_state(connection)
        new = _undeclared(connection, declared)
        if new:
            _declare(store, connection, new)


def stored_revision(store: Store, connection: Connection) -> str | None:
    """The revision of the tables, None if there are none; NewerSchema if this code does not know it."""
    if not store.has_table(connection, VERSION_TABLE):
        return None
    revision = connection.execute(_REVISION).scalar()
    if revision is not None and revision not in REVISIONS:
        raise newer(store, revision)
    return revision


def newer(store: Store, revision: str) -> NewerSchema:
    """The error for a ledger at a revision this code does not know."""
    return NewerSchema(
        f"the ledger {store.place} is at revision {revision}, written by a newer version of token_meter; "
        f"this one knows up to {HEAD}. Upgrade token_meter."
    )


_REVISION: Final = text(f"SELECT version_num FROM {VERSION_TABLE}")


def _undeclared(connection: Connection, declared: Sequence[str]) -> list[str]:
    if not declared:
        return []
    known = set(connection.execute(select(dimensions.c.name)).scalars())
    return sorted(set(declared) - known)


def _declare(store: Store, connection: Connection, new: Sequence[str]) -> None:
    known = set(connection.execute(select(dimensions.c.name)).scalars())
    if len(known) + len(new) > DIMENSIONS_DECLARED_MAX:
        raise LedgerError(
            f"the ledger {store.place} has the dimensions {', '.join(sorted(known))}; with {', '.join(new)} these "
            f"are more than {DIMENSIONS_DECLARED_MAX}. Leave some undeclared: usage by them is read from the events."
        )
    connection.execute(dimensions.insert(), [{"name": name, "overflowed": False} for name in new])
    # The rollups of what was recorded before do not know the new dimension.
    rebuild(store, connection)


def _create_state(connection: Connection) -> None:
    if connection.execute(select(state.c.id)).first() is None:
        now = time.time_ns() // 1000
        connection.execute(state.insert(), {"id": 1, "generation": 1, "created": now, "catalogue": 0, "closed": 0})


def _upgrade(connection: Connection) -> None:
    # Alembic keeps the environment it runs in module globals: one thread at a time.
    with _one_at_a_time, _quiet(threading.get_ident()):
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _quiet(thread: int) -> Iterator[None]:
    """Keep what Alembic says in this thread out of the application's log, and touch nothing else of it."""

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.WARNING

    loggers = [logging.getLogger(name) for name in _ALEMBIC_LOGGERS]
    for logger in loggers:
        logger.addFilter(others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(others)
