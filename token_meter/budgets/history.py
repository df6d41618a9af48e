"""What was used of a budget before a counter of it was there: as the ledger has recorded it."""

from __future__ import annotations

import json
from typing import Final

from sqlalchemy import Connection, select

from token_meter.budgets.amounts import taken
from token_meter.budgets.budget import EACH, Budget
from token_meter.budgets.hold import Part
from token_meter.budgets.rows import make_counters
from token_meter.budgets.window import BUCKETS, ROLLING, Span
from token_meter.ledger.costs import read_costs
from token_meter.ledger.store import Store
from token_meter.ledger.tables import spend
from token_meter.ledger.values import ANY, Filters, Search

SEED_SECONDS_MIN: Final = 3600
"""Rolling windows shorter than this begin empty: what was used before is over before anybody notices."""

_EVENT_FACTS: Final = ("provider", "publisher", "model", "operation")


def make_counter(store: Store, connection: Connection, budget: Budget | None, part: Part, span: Span | None) -> None:
    """Have the counter of a part, with what was used in its window before; `budget`: none, it counts from now on."""
    if _is_there(connection, part):
        return
    make_counters(store, connection, [(part.key, 0)])
    if budget is None or span is None:
        return
    named = named_of(budget, part.subject)
    if part.start != ROLLING:
        spent = used(store, connection, budget, span, named).get(part.subject, 0)
        mine = (spend.c.budget == part.budget) & (spend.c.subject == part.subject) & (spend.c.start == part.start)
        connection.execute(spend.update().where(mine).values(spent=spent))
        return
    if budget.window.seconds < SEED_SECONDS_MIN:
        return
    length = budget.window.length // BUCKETS
    for number in range(BUCKETS):
        start = part.bucket - number * length
        spent = used(store, connection, budget, Span(start, start + length), named).get(part.subject, 0)
        if spent:
            make_counters(store, connection, [((part.budget, part.subject, start), spent)])


def used(
    store: Store, connection: Connection, budget: Budget, span: Span, named: dict[str, str] | None = None
) -> dict[str, int]:
    """What each subject of a budget has used in a span, in the budget's smallest parts. `named`: only this one."""
    given = dict(budget.scope) if named is None else named
    fixed = {name: given[name] for name, wanted in budget.scope if wanted == EACH or "*" not in wanted}
    fixed = {name: value for name, value in fixed.items() if value != EACH}
    columns = {name: value for name, value in fixed.items() if name in ("customer", *_EVENT_FACTS)}
    others = {name: value for name, value in fixed.items() if name not in columns}
    meter = "llm_tokens" if not budget.is_money else ANY
    search = Search(
        Filters(**columns, mode=budget.mode, meter=meter, dimensions=others),
        span.start,
        span.stop,
    )
    found: dict[str, int] = {}
    by = tuple(name for name, _ in budget.scope if name not in fixed)
    for row in read_costs(store, connection, search, by=by, bucket=None, zone=budget.zone):
        subject = budget.subject({**fixed, **row.group})
        if subject is not None:
            some = row.events if budget.measure == "requests" else taken(budget, row.parts, is_call=False)
            found[subject] = found.get(subject, 0) + some
    return found


def named_of(budget: Budget, subject: str) -> dict[str, str]:
    """Whose counter it is: the values of the scope's names."""
    values = json.loads(subject)
    return dict(zip((name for name, _ in budget.scope), values, strict=True))


def _is_there(connection: Connection, part: Part) -> bool:
    mine = (spend.c.budget == part.budget) & (spend.c.subject == part.subject) & (spend.c.start == part.start)
    return connection.execute(select(spend.c.start).where(mine)).first() is not None
