"""What was used of a budget before a counter of it was there: as the ledger has recorded it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, select

from token_meter.billing.catalogue import Catalogue
from token_meter.budgets.amounts import taken
from token_meter.budgets.budget import EACH, Budget
from token_meter.budgets.hold import Part, read_parts
from token_meter.budgets.holding import Key
from token_meter.budgets.rows import carry_key, make_counters
from token_meter.budgets.snapshot import span_of
from token_meter.budgets.window import BUCKETS, ROLLING, Span
from token_meter.ledger.costs import read_costs
from token_meter.ledger.store import Store
from token_meter.ledger.tables import holds, spend
from token_meter.ledger.values import ANY, Filters, Search

SEED_SECONDS_MIN: Final = 300
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
        spent -= _take_carried(connection, part.key)
        connection.execute(spend.update().where(_at(part.key)).values(spent=spent))
    else:
        _fill_buckets(store, connection, budget, (part.subject,), part.bucket, {})


def recount(
    store: Store,
    connection: Connection,
    budget: Budget,
    catalogue: Catalogue,
    now: int,
    *,
    concerned: Callable[[str], bool] = lambda subject: True,
) -> None:
    """Have the counters of a budget say what they would if it had been in force all the time.

    What calls hold stays held, and what they were settled with counts until their events are recorded. `concerned`:
    only the counters of these subjects.
    """
    mine = select(spend).where(spend.c.budget == budget.id).with_for_update()  # nobody settles meanwhile
    rows = [row for row in connection.execute(mine.order_by(spend.c.subject, spend.c.start)) if concerned(row.subject)]
    pending = _pending(connection, budget.id)
    if budget.window.length:
        for row in rows:
            if row.start >= 0:
                connection.execute(spend.delete().where(_at((row.budget, row.subject, row.start))))
        subjects = {row.subject for row in rows if row.start == ROLLING}
        _fill_buckets(store, connection, budget, subjects, budget.window.span(now, budget.zone).start, pending)
        return
    spans: dict[Span, dict[str, int]] = {}
    for row in rows:
        key = (row.budget, row.subject, row.start)
        span = span_of(budget, catalogue, named_of(budget, row.subject).get("customer"), now)
        if row.start == budget.start(span):
            if span not in spans:
                spans[span] = used(store, connection, budget, span)
            spent = spans[span].get(row.subject, 0) + pending.get(key, 0)
            connection.execute(spend.update().where(_at(key)).values(spent=spent))
        elif not row.held and not row.lost:
            connection.execute(spend.delete().where(_at(key)))


def _fill_buckets(
    store: Store,
    connection: Connection,
    budget: Budget,
    subjects: Collection[str],
    last: int,
    pending: Mapping[Key, int],
) -> None:
    if budget.window.seconds < SEED_SECONDS_MIN or not subjects:
        return
    length = budget.window.length // BUCKETS
    named = named_of(budget, next(iter(subjects))) if len(subjects) == 1 else None
    whole = used(store, connection, budget, Span(last - BUCKETS * length, last + length), named)
    if not pending and not any(whole.get(subject) for subject in subjects):
        return  # the usual case: somebody new
    for number in range(BUCKETS + 1):
        start = last - number * length
        found = used(store, connection, budget, Span(start, start + length), named)
        keys = [(budget.id, subject, start) for subject in subjects]
        some = [(key, found.get(key[1], 0) + pending.get(key, 0)) for key in keys]
        make_counters(store, connection, [each for each in some if each[1]])


def _pending(connection: Connection, budget: str) -> dict[Key, int]:
    """What calls were settled with (in a rolling window: or lost) that are not recorded yet."""
    found: dict[Key, int] = {}
    query = select(holds.c.state, holds.c.parts).where(holds.c.state.in_(("settled", "lost")))
    for state, text in connection.execute(query):
        for part in read_parts(text):
            if part.budget == budget and (state == "settled" or part.start == ROLLING):
                key = (part.budget, part.subject, part.bucket if part.start == ROLLING else part.start)
                found[key] = found.get(key, 0) + part.amount
    return found


def _take_carried(connection: Connection, key: Key) -> int:
    """What is recorded in a window and was counted in the one before, in which its call was admitted."""
    mine = _at(carry_key(*key))
    row = connection.execute(select(spend.c.spent).where(mine)).first()
    if row is None:
        return 0
    connection.execute(spend.delete().where(mine))
    return int(row.spent)


def used(
    store: Store, connection: Connection, budget: Budget, span: Span, named: dict[str, str] | None = None
) -> dict[str, int]:
    """What each subject of a budget has used in a span, in the budget's smallest parts. `named`: only this one."""
    given = dict(budget.scope) if named is None else named
    fixed = {name: given[name] for name, wanted in budget.scope if wanted == EACH or "*" not in wanted}
    fixed = {name: value for name, value in fixed.items() if value != EACH}
    fields = ("customer", *_EVENT_FACTS)
    columns: dict[str, Any] = {name: value or None for name, value in fixed.items() if name in fields}
    others = {name: value or None for name, value in fixed.items() if name not in fields}
    meter = "llm_tokens" if not budget.is_money else ANY
    search = Search(
        Filters(**columns, mode=budget.mode, meter=meter, dimensions=others),
        span.start,
        span.stop,
    )
    found: dict[str, int] = {}
    by = tuple(name for name, _ in budget.scope if name not in fixed)
    for row in read_costs(store, connection, search, by=by, bucket=None, zone=budget.zone):
        subject = budget.subject({**columns, **others, **row.group})
        if subject is not None:
            some = row.events if budget.measure == "requests" else taken(budget, row.parts, is_call=False)
            found[subject] = found.get(subject, 0) + some
    return found


def named_of(budget: Budget, subject: str) -> dict[str, str]:
    """Whose counter it is: the values of the scope's names."""
    values = json.loads(subject)
    return dict(zip((name for name, _ in budget.scope), values, strict=True))


def _is_there(connection: Connection, part: Part) -> bool:
    return connection.execute(select(spend.c.start).where(_at(part.key))).first() is not None


def _at(key: Key) -> ColumnElement[bool]:
    return (spend.c.budget == key[0]) & (spend.c.subject == key[1]) & (spend.c.start == key[2])
