"""The budgets of a ledger: set, list and end them, see what is used, reset them, look after holds by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, select

from token_meter.billing.catalogue import Catalogue
from token_meter.bookkeeping.credit_rows import read_grants
from token_meter.bookkeeping.customers import enter
from token_meter.bookkeeping.notice_rows import POLICIES, balance_of
from token_meter.bookkeeping.plan_book import read_catalogue
from token_meter.bookkeeping.settings import write_setting
from token_meter.budgets.budget import EACH, Budget, replaced_by
from token_meter.budgets.crossing import lower_noted
from token_meter.budgets.history import make_counter, named_of, recount, used
from token_meter.budgets.hold import CREDIT, CREDIT_DECIMALS, Held, Request, read_parts, subject_of
from token_meter.budgets.policy import CreditPolicy, Policies, Unreachable
from token_meter.budgets.rows import carry_key, make_counters
from token_meter.budgets.snapshot import Snapshot, read_snapshot, span_of
from token_meter.budgets.stores import holds_of
from token_meter.budgets.window import Span
from token_meter.errors import InvalidBudget
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import budgets, holds, spend, state
from token_meter.money import EXACT, plain

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger


DAY: Final = 86_400_000_000
KEPT: Final = {"hour": 40 * DAY, "day": 40 * DAY}
KEPT_LONG: Final = 400 * DAY
"""So long the counters of past windows are kept: of hours and days, and of weeks, months and periods."""

PREFIX_MIN: Final = 8
"""So much of an id names a budget: all of them begin alike."""


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
            "limit": plain(self.budget.limit), "unit": self.budget.unit, "spent": plain(self.spent),
            "held": plain(self.held), "lost": plain(self.lost), "available": plain(self.available),
            "percent": self.percent, "enforce": self.budget.enforce, "window": str(self.budget.window),
            "since": None if self.since is None else self.since.isoformat(),
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

    def change(self, given: Mapping[str, Any], *, if_missing: bool = False) -> tuple[Budget | None, Budget]:
        """Set a budget from the fields that are given, and keep the others of one of the same scope, measure, currency
        and window: what it was (None: it is new), and what it is. `if_missing`: leave one that is there as it is.

        Raises InvalidBudget.
        """
        wanted = Budget.read(given)
        same = [
            each for each in self.snapshot().in_force
            if (each.mode, each.scope, each.measure, each.currency, each.window)
            == (wanted.mode, wanted.scope, wanted.measure, wanted.currency, wanted.window)
            and ("enforce" not in given or (each.enforce == "soft") == (wanted.enforce == "soft"))
        ]  # fmt: skip
        before = min(same, key=lambda each: each.enforce == "soft", default=None)
        if before is None:
            return None, self.set(wanted)
        if if_missing:
            return before, before
        return before, self.set(Budget.read({**before.document(), **given}))

    def set(self, budget: Budget) -> Budget:
        """Have exactly this budget from now on, in place of one of the same scope, measure, currency and window. What
        its window has used already counts."""
        now = self._micros()
        with self._ledger.writing() as (store, connection):
            in_force = read_snapshot(connection).budgets
            row = {"id": budget.id, "mode": budget.mode, "created": now, "changed": now,
                   "document": json.dumps(budget.document())}  # fmt: skip
            if not store.insert_if_missing(connection, budgets, row):
                values = {"changed": now, "ended": None, "document": row["document"]}
                connection.execute(budgets.update().where(budgets.c.id == budget.id).values(values))
            for other in read_snapshot(connection).budgets.values():
                if other.id != budget.id and replace(other, limit=budget.limit).id == budget.id:
                    self._end(connection, other.id, now)  # counted in other parts
            if budget.id not in in_force:
                recount(store, connection, budget, read_catalogue(connection), now)
            lower_noted(connection, budget)
            self._touch(connection)
            customer = dict(budget.scope).get("customer", EACH)
            if customer and "*" not in customer:
                enter(store, connection, mode=budget.mode, customer=customer, moment=now)
        return budget

    def end(self, id: str) -> Budget:
        """Take a budget away. Raises InvalidBudget if there is none of this id."""
        with self._ledger.writing() as (store, connection):
            snapshot, now = read_snapshot(connection), self._micros()
            found = _found(snapshot, id)
            self._end(connection, found.id, now)
            for other in snapshot.in_force:
                if other.id != found.id and other.kind == found.kind:
                    self._take_over(store, connection, found, other, now)
            self._touch(connection)
        return found

    def _take_over(self, store: Store, connection: Connection, ended: Budget, other: Budget, now: int) -> None:
        """What was counted in the place of another counts there from now on."""

        def concerned(subject: str) -> bool:
            return ended.subject(dict(named_of(other, subject))) is not None

        recount(store, connection, other, read_catalogue(connection), now, concerned=concerned)

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

        A budget for somebody in particular is there from the start. Where a call has not been held yet, what the ledger
        has recorded counts, as it will then.
        """
        now = self._micros()
        with self._ledger.reading() as (store, connection):
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
                    subjects.add(subject_of([value for _, value in budget.scope]))
                before = _before(store, connection, budget, catalogue, subjects, rows, customer, now)
                for subject in sorted(subjects | before.keys()):
                    named = named_of(budget, subject)
                    if customer is not None and named.get("customer") != customer:
                        continue
                    if replaced_by(budget, named, snapshot.in_force) is not None:
                        continue
                    span = span_of(budget, catalogue, named.get("customer"), now)
                    counters = rows.get((budget.id, subject), {})
                    found.append(_standing(budget, subject, span, counters, before.get(subject, 0)))
        return found

    def reset(self, id: str, *, subject: Mapping[str, str] | None = None) -> int:
        """Have what is spent in the windows under way forgotten; how many counters that were. What is held stays held.

        `subject`: only for these values of the scope. Raises InvalidBudget if the scope has no such names.
        """
        if unknown := sorted(set(subject or ()) - dict(self.get(id).scope).keys()):
            raise InvalidBudget(f"the budget {self.get(id).label!r} is not by {', '.join(unknown)}")
        changed = 0
        for standing in self.standings(id):
            named = named_of(standing.budget, standing.subject)
            if subject is not None and any(named.get(name) != value for name, value in subject.items()):
                continue
            with self._ledger.writing() as (store, connection):
                mine = (spend.c.budget == standing.budget.id) & (spend.c.subject == standing.subject)
                if not standing.budget.window.length:
                    start = 0 if standing.since is None else (standing.since - EPOCH) // MICROSECOND
                    make_counters(store, connection, [((standing.budget.id, standing.subject, start), 0)])
                    mine &= spend.c.start == start
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

    def release(self, ids: Sequence[str], *, under_way: bool = False) -> int:
        """Give lost holds back by hand, because the provider did not bill them; how many there were. `under_way`: also
        those whose calls may still be running, which then spend what nobody holds."""
        store = holds_of(self._ledger)
        known = {each.id for each in self.holds() if under_way or each.state == "lost"}
        wanted = known.intersection(ids)
        for id in sorted(wanted):
            store.settle(id, "released")
        return len(wanted)

    def sweep(self) -> tuple[int, int]:
        """Look after holds that have expired: how many were given back, how many are lost."""
        return holds_of(self._ledger).sweep(self._micros())

    def forget_old(self) -> None:
        """Drop the counters of windows that nobody asks for any more; what is held or lost in one keeps it."""
        now = self._micros()
        with self._ledger.writing() as (_, connection):
            for budget in read_snapshot(connection).in_force:
                before = now - (2 * budget.window.reach or KEPT.get(budget.window.kind, KEPT_LONG))
                old = (spend.c.start >= 0) & (spend.c.start < before) & (spend.c.held == 0) & (spend.c.lost == 0)
                if budget.window.kind != "lifetime":
                    mine = spend.c.budget.in_((budget.id, carry_key(budget.id, "", 0)[0]))
                    connection.execute(spend.delete().where(mine & old))

    def seed(self, request: Request, snapshot: Snapshot, facts: Mapping[str, str | None]) -> None:
        """Make the counters that a hold needs, with what the ledger knows was used in their windows.

        Nobody records meanwhile: what comes later adds to counters that are there.
        """
        with self._ledger.closing() as (store, connection):
            catalogue = read_catalogue(connection)
            for part in request.parts:
                budget = snapshot.budgets.get(part.budget)
                span = None if budget is None else span_of(budget, catalogue, facts.get("customer"), request.now)
                make_counter(store, connection, budget, part, span)

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


def _before(
    store: Store,
    connection: Connection,
    budget: Budget,
    catalogue: Catalogue,
    subjects: Iterable[str],
    rows: Mapping[tuple[str, str], Mapping[int, Any]],
    customer: str | None,
    now: int,
) -> dict[str, int]:
    """What those have used who have no counter in the window of now."""
    if budget.window.length:
        return {}  # its buckets are made when a call is held
    everybody = any(value == EACH for _, value in budget.scope)
    if not everybody:
        [subject] = subjects
        span = span_of(budget, catalogue, named_of(budget, subject).get("customer"), now)
        there = budget.start(span) in rows.get((budget.id, subject), {})
        return {} if there else used(store, connection, budget, span)
    if budget.window.kind == "plan" and customer is None:
        return {}  # each customer has a period of their own
    span = span_of(budget, catalogue, customer, now)
    start = budget.start(span)
    found = used(store, connection, budget, span)
    return {subject: some for subject, some in found.items() if start not in rows.get((budget.id, subject), {})}


def _standing(budget: Budget, subject: str, span: Span, rows: Mapping[int, Any], before: int) -> Standing:
    main = rows.get(budget.start(span))
    spent = before if main is None else main.spent
    if budget.window.length:
        spent = sum(row.spent for start, row in rows.items() if start > span.start - budget.window.reach and start >= 0)
    moments: list[datetime | None] = (
        [EPOCH + MICROSECOND * each for each in span] if budget.window.kind != "lifetime" else [None, None]
    )
    if budget.window.length:
        moments = [EPOCH + MICROSECOND * (span.start - budget.window.length), None]
    return Standing(
        budget, subject, moments[0], moments[1], budget.amount(spent),
        budget.amount(0 if main is None else main.held), budget.amount(0 if main is None else main.lost),
    )  # fmt: skip


def _found(snapshot: Snapshot, id: str) -> Budget:
    named = [each for each in snapshot.in_force if id and id in (each.id, each.name, each.label)]
    enough = len(id) >= PREFIX_MIN
    found = named or [each for each in snapshot.in_force if enough and each.id.startswith(id)]
    if len(found) != 1:
        what = f"there is no budget {id!r}" if not found else f"{id!r} may be any of {len(found)} budgets"
        raise InvalidBudget(f"{what}: `token-meter budgets list` shows their ids")
    return found[0]
