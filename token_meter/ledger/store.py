"""What differs between the engines a ledger can live in, behind one small class.

Everything else in this package speaks SQLAlchemy Core and does not know which engine it talks to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, TableValuedAlias

from token_meter.errors import TokenMeterError

QuantityRow = tuple[int, int, str, int, int, int]
"""(period, series, quantity, rating, high, low), as `tables.hours` and `tables.days` hold them."""


Result = TypeVar("Result")


class LedgerError(TokenMeterError):
    """The ledger cannot be opened or used as asked; the message says why and what to do."""


class StatementRefused(LedgerError):
    """The database answers, and takes not this: to ask again would be in vain."""


class Store(ABC):
    """One database. `place` names it in messages, without a password."""

    place: str
    engine: Engine
    insert: ClassVar[Callable[[Table], Any]]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction in which every statement sees the same moment."""
        with self._connect("read") as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; `migrating` waits for it and keeps it waiting."""
        with self._connect("write") as connection, connection.begin():
            self.lock(connection, shared=True)
            yield connection

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A transaction that has the ledger for itself (readers go on with what was)."""
        with self._connect("write") as connection, connection.begin():
            self.lock(connection, shared=False)
            yield connection

    def insert_missing(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert the rows whose key is not there yet."""
        if rows:
            connection.execute(type(self).insert(table).on_conflict_do_nothing(), rows)

    def insert_if_missing(self, connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
        """Insert a row unless its key is there; whether it was inserted."""
        insert = type(self).insert(table).on_conflict_do_nothing()
        return connection.execute(insert.execution_options(preserve_rowcount=True), row).rowcount == 1

    @abstractmethod
    def _connect(self, purpose: str) -> Connection: ...

    @abstractmethod
    def create(self) -> None:
        """Make the database ready to be opened for the first time, as far as that is ours to do."""

    @abstractmethod
    def quickly(self, action: Callable[[Any], Result]) -> Result:
        """Do something with a connection of the driver: a short step of one statement or transaction, which need not
        survive a power failure. Where a connection turns out to be broken it is done again, so it must be safe to
        repeat. Raises LedgerError for what the database says goes wrong."""

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def before_fork(self) -> None:
        """The process is about to fork, and no transaction is under way."""
        return

    @abstractmethod
    def lock(self, connection: Connection, *, shared: bool) -> None:
        """Take the lock of this ledger until the transaction ends: writers share it, a migration does not."""

    @abstractmethod
    def claim(self, connection: Connection, ids: Iterable[str]) -> None:
        """Have events of these ids for oneself until the transaction ends, as whoever counts them beside recording."""

    @abstractmethod
    def has_table(self, connection: Connection, name: str) -> bool: ...

    @abstractmethod
    def insert_events(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> set[str]:
        """Insert the events whose id is new; the ids of those. The rows are sorted by id."""

    @abstractmethod
    def add_quantities(self, connection: Connection, table: Table, rows: Iterable[QuantityRow]) -> None:
        """Add to the rollup rows, making those that are missing. The rows are sorted by their key."""

    @abstractmethod
    def among(self, number: ColumnElement[Any], numbers: Select[Any]) -> ColumnElement[bool]:
        """The number is one of those that a query gives, and the engine is to look them up one by one."""

    @abstractmethod
    def unfold(self, usage: ColumnElement[Any]) -> TableValuedAlias:
        """The quantities inside a JSON column as a table of (key, value)."""

    @abstractmethod
    def member(self, document: ColumnElement[Any], name: str | ColumnElement[Any]) -> ColumnElement[Any]:
        """The text under this name in a JSON column, NULL if there is none."""
