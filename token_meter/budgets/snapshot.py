"""Who may spend what, as a ledger says at one moment: what a process remembers between holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, select

from token_meter.billing.catalogue import Catalogue
from token_meter.bookkeeping.notice_rows import POLICIES
from token_meter.bookkeeping.settings import read_setting
from token_meter.budgets.budget import FIELDS, Budget
from token_meter.budgets.hold import Generation
from token_meter.budgets.policy import Policies
from token_meter.budgets.window import Span
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import budgets, customers, state
from token_meter.ledger.text import from_stored


@dataclass(frozen=True)
class Snapshot:
    """The budgets in force, the policies, and who is paused (mode and customer)."""

    generation: Generation
    budgets: Mapping[str, Budget]
    policies: Policies
    paused: frozenset[tuple[str, str]]

    @property
    def is_idle(self) -> bool:
        """Whether no call can be refused or has to be counted."""
        return not (self.budgets or self.paused or self.policies.credit)

    @property
    def in_force(self) -> tuple[Budget, ...]:
        """Every budget."""
        return tuple(self.budgets.values())


def read_snapshot(connection: Connection) -> Snapshot:
    """What the ledger says now."""
    generation = connection.execute(select(state.c.budgets, state.c.catalogue)).one()
    rows = connection.execute(select(budgets.c.document).where(budgets.c.ended.is_(None))).scalars()
    # What a newer version has written beside is left to it.
    documents = [json.loads(document) for document in rows]
    made = [Budget.read({name: each[name] for name in FIELDS.intersection(each)}) for each in documents]
    paused = connection.execute(select(customers.c.mode, customers.c.id).where(customers.c.status == "paused"))
    return Snapshot(
        (generation[0], generation[1]),
        {each.id: each for each in made},
        Policies.read(read_setting(connection, POLICIES) or {}),
        frozenset((mode, from_stored(id)) for mode, id in paused),
    )


def span_of(budget: Budget, catalogue: Catalogue, customer: str | None, moment: int) -> Span:
    """The window of a budget around a moment (microseconds since 1970): a plan's is the customer's billing period."""
    if budget.window.kind != "plan":
        return budget.window.span(moment, budget.zone)
    _, period = catalogue.period_at(budget.mode, customer, EPOCH + timedelta(microseconds=moment))
    return Span((period.start - EPOCH) // MICROSECOND, (period.stop - EPOCH) // MICROSECOND)
