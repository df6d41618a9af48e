"""The book of customers, kept in the ledger: read it, edit it, many at a time if need be.

An edit reads and writes in one transaction and holds the customer meanwhile, so two people who edit different fields
of one customer at once do not undo each other's work. Live and test customers are two books: an id in one says
nothing about the same id in the other.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Unpack

from sqlalchemy import Connection, Row, bindparam, select

from token_meter.accounts.customer import (
    Customer,
    CustomerChanges,
    CustomerStatus,
    as_stored,
    changed,
    check_id,
    check_mode,
    check_status,
)
from token_meter.errors import InvalidCustomer
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import customers, state
from token_meter.ledger.text import from_stored, mapping_from_stored, mapping_to_stored, to_json, to_stored
from token_meter.ledger.values import Mode

if TYPE_CHECKING:
    from token_meter.ledger import Ledger

PAGE_SIZE: Final = 1_000
"""So many customers are read at once."""

EDITS_MAX: Final = 100_000
"""So many customers one transaction may edit."""

Customers: TypeAlias = list[Customer]
Ids: TypeAlias = list[str]
Edits: TypeAlias = Mapping[str, CustomerChanges]
"""By the id of a customer: what is to be changed."""

_IDS_MAX: Final = 500
_TEXTS: Final = ("name", "email", "currency", "time_zone")
_MAPPINGS: Final = ("external_ids", "details")


@dataclass(frozen=True, slots=True)
class Edited:
    """What editing many customers did, or would do: the ids of each kind.

    `refused` says for each customer that cannot be changed so why not; with any of those nothing was changed at all.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


class CustomerBook:
    """The customers of one ledger. Raises LedgerError when the database cannot be read or written now.

    A customer is in it from the first event on that the ledger has of them; editing one who is not enters them.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __repr__(self) -> str:
        return f"CustomerBook({self._ledger!r})"

    # Reading

    def get(self, id: str, *, mode: Mode = "live") -> Customer | None:
        """The customer with this id, or None."""
        with self._ledger.reading() as (_, connection):
            found = connection.execute(select(customers).where(_is(check_mode(mode), [id]))).first()
        return None if found is None else _customer_of(found)

    def list(self, *, mode: Mode = "live", status: CustomerStatus | None = None, limit: int | None = None) -> Customers:
        """The customers in the order of their ids, at most `limit`, only those with this status if one is given."""
        return [*islice(self.iterate(mode=mode, status=status), limit)]

    def iterate(self, *, mode: Mode = "live", status: CustomerStatus | None = None) -> Iterator[Customer]:
        """Every customer in the order of their ids, read page by page; no transaction stays open between."""
        query = select(customers).where(customers.c.mode == check_mode(mode)).order_by(customers.c.id).limit(PAGE_SIZE)
        if status is not None:
            query = query.where(customers.c.status == check_status(status))
        return self._pages(query)

    def _pages(self, query: Any) -> Iterator[Customer]:
        after = ""
        while True:
            with self._ledger.reading() as (_, connection):
                page = connection.execute(query.where(customers.c.id > after)).all()
            yield from map(_customer_of, page)
            if len(page) < PAGE_SIZE:
                return
            after = page[-1].id

    def external_ids(self, ids: Collection[str], *, backend: str, mode: Mode = "live") -> dict[str, str]:
        """What this backend knows these customers by; those without such an id are left out."""
        found: dict[str, str] = {}
        with self._ledger.reading() as (_, connection):
            for chunk in _chunks(sorted(ids)):
                rows = connection.execute(
                    select(customers.c.id, customers.c.external_ids).where(_is(check_mode(mode), chunk))
                )
                for row in rows:
                    if (known := mapping_from_stored(row.external_ids).get(backend)) is not None:
                        found[from_stored(row.id)] = known
        return found

    def customers_of(self, external_id: str, *, backend: str, mode: Mode = "live") -> Ids:
        """The ids of the customers whom this backend knows by that id: several may share one. Reads the whole book."""
        with self._ledger.reading() as (store, connection):
            known = store.member(customers.c.external_ids, to_stored(backend))
            mine = (customers.c.mode == check_mode(mode)) & (known == to_stored(external_id))
            found = connection.execute(select(customers.c.id).where(mine).order_by(customers.c.id)).scalars()
            return [from_stored(id) for id in found]

    # Editing

    def edit(self, id: str, *, mode: Mode = "live", **changes: Unpack[CustomerChanges]) -> Customer:
        """Change what is given and nothing else; the customer as they are then. One who is not there is entered.

        None takes a value away. `external_ids` and `details` are merged into what is there; None takes one name away.
        Raises InvalidCustomer, and changes nothing, when a value cannot be what it says.
        """
        done = self._edited(mode, {id: changes}, keep=True)
        if done.refused:
            raise InvalidCustomer(done.refused[id])
        return done.after[id]

    def edit_many(self, edits: Edits, *, mode: Mode = "live") -> Edited:
        """Edit these customers in one transaction, all of them or, if one is refused, none."""
        return self._edited(mode, edits, keep=True).told()

    def preview(self, edits: Edits, *, mode: Mode = "live") -> Edited:
        """What `edit_many` would do now; changes nothing."""
        return self._edited(mode, edits, keep=False).told()

    def save(self, customer: Customer) -> Customer:
        """Put this customer in the place of the one with the same id and mode, every field; as they are then.

        Whatever was changed since the value was read is overwritten: use `edit` to change some fields.
        """
        now = _now()
        with self._ledger.writing() as (store, connection):
            before = _held(store, connection, customer.mode, [customer.id], now)[customer.id]
            after = replace(customer, created=before.created, updated=_moment(now))
            _write(connection, [after], now)
        return after

    def _edited(self, mode: Mode, edits: Edits, *, keep: bool) -> _Plan:
        """Changes are planned while the customers are held, so that nothing comes between; kept, or undone."""
        if len(edits) > EDITS_MAX:
            raise InvalidCustomer(f"at most {EDITS_MAX:,} customers can be edited at once, not {len(edits):,}")
        check_mode(mode)
        now = _now()
        plan = _Plan.of({}, edits, mode, now)
        if plan.refused:
            return plan  # wrong whatever is there: nobody needs to wait for that
        if not keep:
            with self._ledger.reading() as (_, connection):
                return _Plan.of(_found(connection, mode, edits), edits, mode, now)
        try:
            with self._ledger.writing() as (store, connection):
                plan = _Plan.of(_held(store, connection, mode, edits, now), edits, mode, now)
                if plan.refused:
                    raise _Undone(plan)
                _write(connection, [plan.after[id] for id in (*plan.added, *plan.changed)], now)
        except _Undone as undone:
            return undone.plan
        return plan


@dataclass(slots=True)
class _Plan:
    """Who is changed to what. `after` has everybody who is not refused."""

    after: dict[str, Customer] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, there: Mapping[str, Customer], edits: Edits, mode: Mode, now: int) -> _Plan:
        """The plan for these edits of those who are there; whoever was entered at `now` is new."""
        plan, moment = cls(), _moment(now)
        for id, changes in edits.items():
            try:
                before = there.get(id) or Customer(id=id, mode=mode, created=moment)
                after = changed(before, changes)
            except InvalidCustomer as problem:
                plan.refused[id] = str(problem)
                continue
            new = before.created == moment
            kind = plan.added if new else plan.unchanged if after == before else plan.changed
            kind.append(id)
            plan.after[id] = before if kind is plan.unchanged else replace(after, updated=moment)
        return plan

    def told(self) -> Edited:
        if self.refused:
            return Edited(refused=self.refused)
        return Edited(tuple(self.added), tuple(self.changed), tuple(self.unchanged))


class _Undone(Exception):
    """Leaves the transaction so that it is rolled back."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan


def _held(store: Store, connection: Connection, mode: Mode, ids: Iterable[str], now: int) -> dict[str, Customer]:
    """These customers, entered if they were not there, and nobody else's to change until the transaction ends."""
    ordered = sorted(check_id(id) for id in ids)
    empty = {"mode": mode, "status": "active", "created": now, "updated": now}
    store.insert_missing(connection, customers, [empty | {"id": id} for id in sorted(map(to_stored, ordered))])
    return _found(connection, mode, ordered, hold=True)


def _found(connection: Connection, mode: Mode, ids: Iterable[str], *, hold: bool = False) -> dict[str, Customer]:
    found: dict[str, Customer] = {}
    for chunk in _chunks(sorted(ids, key=to_stored)):
        query = select(customers).where(_is(mode, chunk)).order_by(customers.c.id)
        rows = connection.execute(query.with_for_update() if hold else query)
        found.update((customer.id, customer) for customer in map(_customer_of, rows))
    return found


def _write(connection: Connection, held: Sequence[Customer], now: int) -> None:
    if held:
        if _changes_status(connection, held):  # whoever holds for calls has to look who is paused
            connection.execute(state.update().values(budgets=state.c.budgets + 1))
        place = (customers.c.mode == bindparam("_mode")) & (customers.c.id == bindparam("_id"))
        connection.execute(customers.update().where(place), [_row_of(customer, now) for customer in held])


def _changes_status(connection: Connection, held: Sequence[Customer]) -> bool:
    wanted = {(each.mode, to_stored(each.id)): each.status for each in held}
    for chunk in _chunks(sorted({id for _, id in wanted})):
        mine = select(customers.c.mode, customers.c.id, customers.c.status).where(customers.c.id.in_(chunk))
        for row in connection.execute(mine):
            if wanted.get((row.mode, row.id), row.status) != row.status:
                return True
    return False


def _is(mode: Mode, ids: Sequence[str]) -> Any:
    return (customers.c.mode == mode) & customers.c.id.in_([to_stored(id) for id in ids])


def _row_of(customer: Customer, now: int) -> dict[str, Any]:
    """What may change about a customer, and under names of their own the columns of the key."""
    row: dict[str, Any] = {"_mode": customer.mode, "_id": to_stored(customer.id)}
    row |= {"status": customer.status, "updated": now}
    row |= {name: text and to_stored(text) for name in _TEXTS for text in (getattr(customer, name),)}
    for name in _MAPPINGS:
        mapping = getattr(customer, name)
        row[name] = to_json(mapping_to_stored(mapping)) if mapping else None
    return row


def _customer_of(row: Row[Any]) -> Customer:
    values: dict[str, Any] = {"id": from_stored(row.id), "mode": row.mode, "status": row.status}
    values |= {name: text and from_stored(text) for name in _TEXTS for text in (getattr(row, name),)}
    values |= {name: mapping_from_stored(getattr(row, name)) for name in _MAPPINGS}
    return as_stored(values | {"created": _moment(row.created), "updated": _moment(row.updated)})


def _now() -> int:
    return time.time_ns() // 1000


def _moment(microseconds: int) -> datetime:
    return EPOCH + MICROSECOND * microseconds


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _IDS_MAX):
        yield ids[start : start + _IDS_MAX]
