"""The ledger in a PostgreSQL schema, through psycopg 3."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import BoundedSemaphore
from typing import Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    URL,
    ColumnElement,
    Connection,
    Select,
    Table,
    TableValuedAlias,
    cast,
    column,
    create_engine,
    func,
)
from sqlalchemy.dialects.postgresql import insert

from token_meter.errors import MissingExtra
from token_meter.ledger.rows import COLUMNS
from token_meter.ledger.store import LedgerError, QuantityRow, Result, StatementRefused, Store
from token_meter.ledger.tables import events

CONNECT_SECONDS: Final = 10
"""How long to wait for a server that does not answer, unless the URL says `connect_timeout`."""

QUICK_CONNECTIONS_MAX: Final = 8
"""So many connections one process has for quick steps."""

QUICK_WAIT: Final = "5s"
"""How long a quick step waits for a row that another one has locked."""

_TYPES: Final = {
    "digest": "bytea[]",
    "time": "bigint[]",
    "duration_ms": "bigint[]",
    "recorded": "bigint[]",
    "pending": "int[]",
}
_ARRAYS: Final = ", ".join(f"%s::{_TYPES.get(name, 'text[]')}" for name in COLUMNS)
_INSERT_EVENTS: Final = (
    f"INSERT INTO {events.name} ({', '.join(COLUMNS)}) SELECT * FROM unnest({_ARRAYS}) "
    "ON CONFLICT (id) DO NOTHING RETURNING id"
)
# The lock belongs to one ledger: a database may hold several, each in its own schema.
_KEY: Final = "hashtextextended('token_meter/' || coalesce(current_schema(), ''), 0)"


class PostgresqlStore(Store):
    """Many writers at once. Every writer locks rows in the same order: events, customers, dimension values,
    series, hours, days, each sorted by key; so writers wait for each other and never in a circle.
    """

    insert: ClassVar[Any] = insert

    def __init__(self, url: URL) -> None:
        self.place = url.render_as_string(hide_password=True)
        self._quick: deque[Any] = deque()
        self._closed = False
        self._quick_slots = BoundedSemaphore(QUICK_CONNECTIONS_MAX)
        # The server converts, so that text it cannot hold is refused by it, for exactly that event.
        arguments: dict[str, Any] = {
            "application_name": "token_meter",
            "connect_timeout": CONNECT_SECONDS,
            "client_encoding": "utf8",
        }
        given = {name: value for name, value in arguments.items() if name not in url.query}
        try:
            self.engine = create_engine(
                url.set(drivername="postgresql+psycopg"),
                hide_parameters=True,
                pool_pre_ping=True,
                connect_args=given,
            )
            self._given = given
        except ImportError:
            raise MissingExtra("a PostgreSQL ledger needs: pip install 'token-meter[postgres]'") from None

    def _connect(self, purpose: str) -> Connection:
        # Not the server's default: reads need one moment for all statements, writes must see each other's rows.
        if purpose == "write":
            return self.engine.connect().execution_options(isolation_level="READ COMMITTED")
        return self.engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def quickly(self, action: Callable[[Any], Result]) -> Result:
        self._quick_slots.acquire()
        try:
            while self._quick:
                kept = self._quick.pop()
                try:
                    return self._with(kept, action)
                except self.engine.dialect.loaded_dbapi.Error:
                    if not kept.broken:
                        raise
                    # The server was restarted, or closed it: what is done here may be done twice.
            return self._with(self._connect_quick(), action)
        except self.engine.dialect.loaded_dbapi.Error as problem:
            driver = self.engine.dialect.loaded_dbapi
            away = isinstance(problem, (driver.OperationalError, driver.InterfaceError))
            kind = LedgerError if away else StatementRefused
            raise kind(f"the ledger {self.place}: {_first_line(problem)}") from problem
        finally:
            self._quick_slots.release()

    def _with(self, connection: Any, action: Callable[[Any], Result]) -> Result:
        try:
            return action(connection)
        finally:
            if connection.broken or connection.closed or self._closed:
                connection.close()
            else:
                self._quick.append(connection)
                if self._closed:  # just now
                    self._close_quick()

    def _close_quick(self) -> None:
        while self._quick:
            try:
                self._quick.pop().close()
            except IndexError:  # another thread was quicker
                return

    def _connect_quick(self) -> Any:
        # Not of the pool: it is kept, and nothing is asked of the server when it is used again.
        dialect = self.engine.dialect
        arguments, named = dialect.create_connect_args(self.engine.url)
        connection: Any = dialect.loaded_dbapi.connect(*arguments, **{**named, **self._given, "autocommit": True})
        try:
            connection.execute("SET synchronous_commit = off")
            connection.execute(f"SET lock_timeout = '{QUICK_WAIT}'")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close every connection, the quick ones as well."""
        self._closed = True
        self._close_quick()
        super().close()

    def create(self) -> None:
        """The database and the schema are the operator's to make."""

    def lock(self, connection: Connection, *, shared: bool) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{'_shared' if shared else ''}({_KEY})")

    def claim(self, connection: Connection, ids: Iterable[str]) -> None:
        # In their order, so that two who claim several never wait in a circle.
        for id in sorted(ids):
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (id,))

    def has_table(self, connection: Connection, name: str) -> bool:
        return connection.exec_driver_sql("SELECT to_regclass(%s)", (name,)).scalar() is not None

    def insert_events(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> set[str]:
        if not rows:
            return set()
        columns = tuple(_array(each) for each in zip(*rows, strict=True))
        return set(connection.exec_driver_sql(_INSERT_EVENTS, columns).scalars())

    def add_quantities(self, connection: Connection, table: Table, rows: Iterable[QuantityRow]) -> None:
        columns = list(zip(*rows, strict=True))
        if not columns:
            return
        # Numbers and names of token types: none needs quotes.
        arrays = tuple("{" + ",".join(map(str, each)) + "}" for each in columns)
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} AS kept (period, series, quantity, rating, high, low) "
            "SELECT * FROM unnest(%s::int[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[]) "
            "ON CONFLICT (period, series, quantity, rating) "
            "DO UPDATE SET high = kept.high + excluded.high, low = kept.low + excluded.low",
            arrays,
        )

    def among(self, number: ColumnElement[Any], numbers: Select[Any]) -> ColumnElement[bool]:
        # With IN the planner joins, and so reads a whole table for a few rows of it.
        return number == func.any(func.array(numbers.scalar_subquery()))

    def unfold(self, usage: ColumnElement[Any]) -> TableValuedAlias:
        return func.json_each_text(cast(usage, JSON)).table_valued(column("key"), column("value"), name="unfolded")

    def member(self, document: ColumnElement[Any], name: str | ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(document, JSON).op("->>")(name)


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _array(values: Iterable[object]) -> str:
    """An array in PostgreSQL's text form, which it is several times cheaper to write than to let the driver."""
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    text = "\\x" + value.hex() if isinstance(value, bytes) else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
