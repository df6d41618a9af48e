"""The budgets of a ledger: set, list and end them, see what is used, reset them, look after holds by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from token_meter.bookkeeping.credit_rows import read_grants
from token_meter.bookkeeping.customers import enter
from token_meter.bookkeeping.notice_rows import POLICIES, balance_of
from token_meter.bookkeeping.plan_book import read_catalogue
from token_meter.bookkeeping.settings import write_setting
from token_meter.budgets.amounts import taken
from token_meter.budgets.budget import EACH, Budget, meets
from token_meter.budgets.hold import CREDIT, CREDIT_DECIMALS, Held, Part, Request, read_parts, subject_of
from token_meter.budgets.policy import CreditPolicy, Policies, Unreachable
from token_meter.budgets.rows import make_counters
from token_meter.budgets.snapshot import Snapshot, read_snapshot, span_of
from token_meter.budgets.stores import holds_of
from token_meter.budgets.window import BUCKETS, ROLLING
from token_meter.errors import InvalidBudget
from token_meter.ledger.costs import read_costs
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import budgets, holds, spend, state
from token_meter.ledger.values import ANY, Filters, Search
from token_meter.money import EXACT, plain

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

SEED_SECONDS_MIN = 3600
"""Rolling windows shorter than this begin empty: what was used before is over before anybody notices."""

_EVENT_FACTS = ("provider", "publisher", "model", "operation")


@dataclass(frozen=True, slots=True)
class Standing:
    """How a budget stands for one subject in one window. Amounts are in the budget's unit."""

    budget: Budget
    subject: str
    since: datetime | None
    until: datetime | None
    spent: Decimal
    held: Decimal
    lost: Decimal

    @property
    def available(self) -> Decimal:
        """What may still be held."""
        used = EXACT.add(EXACT.add(self.spent, self.held), self.lost)
        return EXACT.subtract(self.budget.limit, used)

    @property
    def percent(self) -> int:
        """How much of the limit is spent, rounded down; 100 for a limit of nothing."""
        return int(EXACT.divide_int(self.spent * 100, self.budget.limit)) if self.budget.limit else 100

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "budget": self.budget.id, "label": self.budget.label, "subject": self.budget.whose(self.subject),
            "limit": plain(self.budget.limit), "unit": self.budget.currency if self.budget.is_money
            else self.budget.measure, "spent": plain(self.spent), "held": plain(self.held), "lost": plain(self.lost),
            "available": plain(self.available), "percent": self.percent, "enforce": self.budget.enforce,
            "window": str(self.budget.window), "since": None if self.since is None else self.since.isoformat(),
            "resets_at": None if self.until is None else self.until.isoformat(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class CreditStanding:
    """Prepaid credit in one currency: what the grants have left, used but not recorded yet, held by calls under way."""

    currency: str
    balance: Decimal
    pending: Decimal
    held: Decimal

    @property
    def available(self) -> Decimal:
        """What may still be used."""
        return EXACT.subtract(self.balance, EXACT.add(self.pending, self.held))


class BudgetDesk:
    """The budgets in a ledger. Every change counts at the next hold of every process."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = now

    # ---- budgets ----

    def set(self, budget: Budget) -> Budget:
        """Have this budget from now on; one of the same scope, measure and window is changed. What its window has used
        already counts."""
        now = self._micros()
        with self._ledger.writing() as (store, connection):
            row = {"id": budget.id, "mode": budget.mode, "created": now, "changed": now,
                   "document": json.dumps(budget.document())}  # fmt: skip
            if not store.insert_if_missing(connection, budgets, row):
                values = {"changed": now, "ended": None, "document": row["document"]}
                connection.execute(budgets.update().where(budgets.c.id == budget.id).values(values))
            for other in read_snapshot(connection).budgets.values():
                if other.id != budget.id and replace(other, limit=budget.limit).id == budget.id:
                    self._end(connection, other.id, now)  # counted in other parts
            self._touch(connection)
        return budget

    def end(self, id: str) -> Budget:
        """Take a budget away. Raises InvalidBudget if there is none of this id."""
        with self._ledger.writing() as (_, connection):
            found = _found(read_snapshot(connection), id)
            self._end(connection, found.id, self._micros())
            self._touch(connection)
        return found

    def get(self, id: str) -> Budget:
        """The budget with this id, the beginning of one, or this name. Raises InvalidBudget if there is none."""
        return _found(self.snapshot(), id)

    def list(self) -> Sequence[Budget]:
        """The budgets in force, in the order of what they are for."""
        return sorted(self.snapshot().in_force, key=lambda each: (each.mode, each.scope, each.measure, each.label))

    def snapshot(self) -> Snapshot:
        """Who may spend what."""
        with self._ledger.reading() as (_, connection):
            return read_snapshot(connection)

    def standings(self, id: str | None = None, *, customer: str | None = None) -> Sequence[Standing]:
        """How the budgets stand in the windows of now, for everybody who has used them; `customer`: only theirs.

        A budget for somebody in particular is there from the start.
        """
        now = self._micros()
        with self._ledger.reading() as (_, connection):
            snapshot, catalogue = read_snapshot(connection), read_catalogue(connection)
            mine = snapshot.in_force if id is None else (_found(snapshot, id),)
            rows: dict[tuple[str, str], dict[int, Any]] = {}
            query = select(spend).where(spend.c.budget.in_([each.id for each in mine]))
            for row in connection.execute(query):
                rows.setdefault((row.budget, row.subject), {})[row.start] = row
            found = []
            for budget in mine:
                subjects = {subject for known, subject in rows if known == budget.id}
                if all(value != EACH for _, value in budget.scope):
                    subjects.add(json.dumps([value for _, value in budget.scope], separators=(",", ":")))
                for subject in sorted(subjects):
                    named = _named(budget, subject)
                    if customer is not None and named.get("customer") != customer:
                        continue
                    span = span_of(budget, catalogue, named.get("customer"), now)
                    found.append(_standing(budget, subject, span, rows.get((budget.id, subject), {})))
        return found

    def reset(self, id: str, *, subject: Mapping[str, str] | None = None) -> int:
        """Have what is spent in the windows under way forgotten; how many counters that were. What is held stays held.

        `subject`: only for these values of the scope.
        """
        changed = 0
        for standing in self.standings(id):
            named = _named(standing.budget, standing.subject)
            if subject is not None and any(named.get(name) != value for name, value in subject.items()):
                continue
            with self._ledger.writing() as (_, connection):
                mine = (spend.c.budget == standing.budget.id) & (spend.c.subject == standing.subject)
                if standing.since is not None and not standing.budget.window.length:
                    mine &= spend.c.start == (standing.since - EPOCH) // MICROSECOND
                values = {"spent": 0, "noted": 0, "epoch": spend.c.epoch + 1}
                changed += connection.execute(spend.update().where(mine).values(values)).rowcount > 0
        return changed

    # ---- holds ----

    def holds(self, *, budget: str | None = None, pending: bool = False) -> Sequence[Held]:
        """The holds that are held or lost, the oldest first; `pending`: also those whose event is not recorded yet."""
        states = ("held", "lost", "settled") if pending else ("held", "lost")
        with self._ledger.reading() as (_, connection):
            query = select(holds).where(holds.c.state.in_(states)).order_by(holds.c.created, holds.c.id)
            found = [
                Held(row.id, row.state, bool(row.sent), row.created, row.expires, read_parts(row.parts),
                     row.who)
                for row in connection.execute(query)
            ]  # fmt: skip
        return [each for each in found if budget is None or any(part.budget == budget for part in each.parts)]

    def release(self, ids: Sequence[str]) -> int:
        """Give holds back by hand, such as lost ones that the provider did not bill; how many there were."""
        store = holds_of(self._ledger)
        known = {each.id for each in self.holds()}
        for id in ids:
            store.settle(id, "released")
        return len(known.intersection(ids))

    def sweep(self) -> tuple[int, int]:
        """Look after holds that have expired: how many were given back, how many are lost."""
        return holds_of(self._ledger).sweep(self._micros())

    def seed(self, request: Request, snapshot: Snapshot, facts: Mapping[str, str | None]) -> None:
        """Make the counters that a hold needs, with what the ledger knows was used in their windows.

        Nobody records meanwhile: what comes later adds to counters that are there.
        """
        with self._ledger.closing() as (store, connection):
            catalogue = read_catalogue(connection)
            for part in request.parts:
                budget = snapshot.budgets.get(part.budget)
                if _is_there(connection, part):
                    continue
                make_counters(store, connection, [(part.key, 0)])
                if budget is not None:
                    _seed(
                        store, connection, budget, part, span_of(budget, catalogue, facts.get("customer"), request.now)
                    )

    # ---- policies ----

    def policy(self, customer: str, policy: CreditPolicy, *, mode: str = "live") -> CreditPolicy:
        """What happens when a customer's credit is used up; `*`: for those who have no policy of their own."""
        with self._ledger.writing() as (store, connection):
            before = read_snapshot(connection).policies
            credit = {**before.credit, (mode, customer): policy}
            self._write(connection, replace(before, credit=credit))
            if customer != EACH:
                enter(store, connection, mode=mode, customer=customer, moment=self._micros())
        return policy

    def unreachable(self, *, prepaid: Unreachable | None = None, others: Unreachable | None = None) -> Policies:
        """What happens to calls when the ledger does not answer: "closed" refuses them, "open" lets them pass."""
        with self._ledger.writing() as (_, connection):
            before = read_snapshot(connection).policies
            after = replace(
                before, prepaid_unreachable=prepaid or before.prepaid_unreachable,
                unreachable=others or before.unreachable,
            )  # fmt: skip
            self._write(connection, after)
        return after

    def credit(self, customer: str, *, currency: str = "USD", mode: str = "live") -> CreditStanding:
        """What a customer's prepaid credit is worth now: granted less recorded, settled but not recorded, and held."""
        subject = subject_of([mode, currency, customer])
        with self._ledger.reading() as (_, connection):
            mine = (spend.c.budget == CREDIT) & (spend.c.subject == subject)
            row = connection.execute(select(spend).where(mine)).first()
            left = balance_of(read_grants(connection, mode, customer), currency)
        pending, held = (0, 0) if row is None else (row.spent, row.held + row.lost)
        scale = -CREDIT_DECIMALS
        return CreditStanding(currency, left, EXACT.scaleb(Decimal(pending), scale), EXACT.scaleb(Decimal(held), scale))

    # ---- inside ----

    def _write(self, connection: Connection, policies: Policies) -> None:
        write_setting(connection, POLICIES, policies.document(), moment=self._micros())
        self._touch(connection)

    def _end(self, connection: Connection, id: str, now: int) -> None:
        connection.execute(budgets.update().where(budgets.c.id == id).values(ended=now, changed=now))

    def _touch(self, connection: Connection) -> None:
        connection.execute(state.update().values(budgets=state.c.budgets + 1))

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)


def _seed(store: Store, connection: Connection, budget: Budget, part: Part, span: Any) -> None:
    """Count what was used in the window before the counter was there."""
    if part.start != ROLLING:
        spent = _used(store, connection, budget, part.subject, span.start, span.stop)
        mine = (spend.c.budget == part.budget) & (spend.c.subject == part.subject) & (spend.c.start == part.start)
        connection.execute(spend.update().where(mine).values(spent=spent))
        return
    if budget.window.seconds < SEED_SECONDS_MIN:
        return
    length = budget.window.length // BUCKETS
    for number in range(BUCKETS):
        start = part.bucket - number * length
        spent = _used(store, connection, budget, part.subject, start, start + length)
        if spent:
            make_counters(store, connection, [((part.budget, part.subject, start), spent)])


def _used(store: Store, connection: Connection, budget: Budget, subject: str, start: int, stop: int) -> int:
    named = _named(budget, subject)
    patterns = {name: wanted for name, wanted in budget.scope if wanted != EACH and "*" in wanted}
    exact = {name: value for name, value in named.items() if name not in patterns}
    columns = {name: exact.pop(name) for name in ("customer", *_EVENT_FACTS) if name in exact}
    meter = "llm_tokens" if not budget.is_money else ANY
    filters = Filters(**columns, mode=budget.mode, meter=meter, dimensions=exact)
    search = Search(filters, start, stop)
    rows = [
        row
        for row in read_costs(store, connection, search, by=tuple(patterns), bucket=None, zone=budget.zone)
        if all(meets(wanted, row.group.get(name) or "") for name, wanted in patterns.items())
    ]
    if budget.measure == "requests":
        return sum(row.events for row in rows)
    return sum(taken(budget, row.parts, is_call=False) for row in rows)


def _is_there(connection: Connection, part: Part) -> bool:
    mine = (spend.c.budget == part.budget) & (spend.c.subject == part.subject) & (spend.c.start == part.start)
    return connection.execute(select(spend.c.start).where(mine)).first() is not None


def _named(budget: Budget, subject: str) -> dict[str, str]:
    values = json.loads(subject)
    return dict(zip((name for name, _ in budget.scope), values, strict=True))


def _standing(budget: Budget, subject: str, span: Any, rows: Mapping[int, Any]) -> Standing:
    main = rows.get(budget.start(span))
    spent = 0 if main is None else main.spent
    if budget.window.length:
        spent = sum(
            row.spent for start, row in rows.items() if start > span.start - budget.window.length and start >= 0
        )
    moments = [EPOCH + MICROSECOND * each for each in span] if budget.window.kind != "lifetime" else [None, None]
    if budget.window.length:
        moments = [EPOCH + MICROSECOND * (span.start - budget.window.length), None]
    return Standing(
        budget, subject, moments[0], moments[1], budget.amount(spent),
        budget.amount(0 if main is None else main.held), budget.amount(0 if main is None else main.lost),
    )  # fmt: skip


def _found(snapshot: Snapshot, id: str) -> Budget:
    named = [each for each in snapshot.in_force if each.id == id or each.name == id]
    found = named or [each for each in snapshot.in_force if each.id.startswith(id)]
    if len(found) != 1:
        what = f"there is no budget {id!r}" if not found else f"{id!r} may be any of {len(found)} budgets"
        raise InvalidBudget(f"{what}: `token-meter budgets list` shows their ids")
    return found[0]
