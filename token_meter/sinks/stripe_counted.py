"""The 24-hour rule: what Stripe may have counted, and knows no more, is looked up before it is sent again.

Stripe cannot be asked for one identifier, only for a customer's sum of a meter over whole minutes. Beside the ledger,
which knows everything that happened in those minutes, that tells what is there:

    Stripe's sum  =  what surely is there  +  some of what may be there  +  the first of what is in doubt

What is in doubt went out in this order, so it is there up to some place. If exactly one place fits, that is the answer;
otherwise a human has to compare, and nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks.records import Record, Refused, part_of, parts_refused
from token_meter.sinks.stripe_corrections import cancels
from token_meter.sinks.stripe_summaries import MINUTE, Summaries, minute_of

if TYPE_CHECKING:
    from token_meter.sinks.base import Accounts, Unsent

SUMS_MAX: Final = 10_000
"""So many sums of what may be there are tried; with more, nearly everything would fit."""

LEDGER_SECONDS_MAX: Final = 600.0
"""So long the ledger is waited for to record what is in doubt."""

SHOWN_MAX: Final = 10
SUMMED: Final = frozenset({"sum", "count"})
"""Formulas of meters from whose sums one can tell what is in them."""

NO_LEDGER: Final = (
    "it may have reached Stripe more than 24 hours ago, and Stripe counts it again if it is sent again. Compare with "
    "`token-meter reconcile sink`, then release or discard it (with a ledger beside the sink, that is done by itself)"
)
LEDGER_LACKS_IT: Final = (
    "it may have reached Stripe more than 24 hours ago, and would be counted again. The ledger does not have it, or "
    "something that was sent with it, so nobody can tell: compare, then release or discard it"
)

Group = tuple[str, str, datetime]
"""A customer at Stripe, a meter, a minute."""


class Recount:
    """Looks up what Stripe has, for one sink. `customers_behind` says whose usage goes to an id of Stripe's.

    `lately` are identifiers that were sent a moment ago, which a summary may not show yet; `clock_is_fast` says that
    Stripe has our events at other times than we do.
    """

    def __init__(
        self,
        summaries: Summaries,
        *,
        records: Callable[[Iterable[MeterEvent]], list[Record]],
        customers_behind: Callable[[str], Collection[str | None]],
        lately: Callable[[], Collection[str]],
        clock_is_fast: Callable[[], bool],
    ) -> None:
        self._summaries = summaries
        self._records = records
        self._customers_behind = customers_behind
        self._lately = lately
        self._clock_is_fast = clock_is_fast
        self._ledger_behind_since: float | None = None

    def left(self, doubtful: Sequence[Record], accounts: Accounts | None, unsent: Unsent) -> list[MeterEvent]:
        """What is to be sent of events that may have been counted: those, or the parts, that surely were not.

        Raises Rejected for what cannot be told, and Retry when it cannot be told yet.
        """
        if accounts is None:
            raise Rejected.each(
                parts_refused(doubtful, [Refused(each, NO_LEDGER) for each in doubtful]), rest_taken=False
            )
        missing, unclear = self._answer(doubtful, accounts, unsent)
        if unclear:
            # Of an event that is set aside, what is surely missing is set aside too.
            reasons = {id(each.record.event): each for each in unclear}
            also = [reasons[id(each.event)]._replace(record=each) for each in missing if id(each.event) in reasons]
            raise Rejected.each(parts_refused(doubtful, [*unclear, *also]), rest_taken=False)
        by_event: dict[int, list[Record]] = {}
        for record in missing:
            by_event.setdefault(id(record.event), []).append(record)
        return [
            part_of(kept[0].event, [each for each in doubtful if each.event is kept[0].event], kept=kept)
            for kept in by_event.values()
        ]

    def _answer(
        self, doubtful: Sequence[Record], accounts: Accounts, unsent: Unsent
    ) -> tuple[list[Record], list[Refused]]:
        """Of records that may have been counted: those that were not, and those that cannot be told."""
        unique: dict[str, Record] = {}
        for record in in_order(doubtful):
            unique.setdefault(record.identifier, record)
        groups: dict[Group, list[Record]] = {}
        for record in unique.values():
            group = (record.customer, record.measure.meter, minute_of(record.time))
            groups.setdefault(group, []).append(record)
        recorded = self._recorded(groups, accounts)
        known = self._ledger_has(groups, recorded)
        others = {group: [each for each in all if each.identifier not in unique] for group, all in recorded.items()}
        standing = _Standing.of(
            [each for all in others.values() for each in all], accounts, unsent, self._records, self._lately()
        )
        missing: list[Record] = []
        unclear: list[Refused] = []
        for group, mine in groups.items():
            reason = self._judge(group, mine, standing.split(others[group]), missing) if known else LEDGER_LACKS_IT
            if reason is not None:
                unclear += [Refused(record, reason) for record in mine]
        return missing, unclear

    def _recorded(self, groups: Collection[Group], accounts: Accounts) -> dict[Group, list[Record]]:
        """What the ledger has of each group. A correction belongs into the minute of what it corrects as well."""
        back: dict[Group, list[Record]] = {}
        for record in self._records(accounts.corrections(since=min(minute for _, _, minute in groups))):
            if record.reverses is not None:
                group = (record.customer, record.measure.meter, minute_of(record.time))
                back.setdefault(group, []).append(record)
        minutes: dict[tuple[str, datetime], list[Record]] = {}
        for customer, _, minute in groups:
            if (customer, minute) not in minutes:
                minutes[customer, minute] = self._own_records(customer, minute, accounts)
        return {
            (customer, meter, minute): [
                *(each for each in minutes[customer, minute] if each.measure.meter == meter),
                *back.get((customer, meter, minute), ()),
            ]
            for customer, meter, minute in groups
        }

    def _own_records(self, customer: str, minute: datetime, accounts: Accounts) -> list[Record]:
        """What everything that happened in a minute reports for this customer."""
        events = {
            event.id: event
            for behind in self._customers_behind(customer)
            for event in accounts.events(since=minute, until=minute + MINUTE, customer=behind)
        }
        return [each for each in self._records(events.values()) if each.reverses is None and each.customer == customer]

    def _ledger_has(self, groups: Mapping[Group, list[Record]], recorded: Mapping[Group, list[Record]]) -> bool:
        """Whether what is in doubt is recorded. The ledger may be behind too, and then every sum would lack something.

        Raises Retry while there is hope.
        """
        lacking = any(
            not {each.identifier for each in mine} <= {each.identifier for each in recorded[group]}
            for group, mine in groups.items()
        )
        if not lacking:
            self._ledger_behind_since = None
            return True
        now = time.monotonic()
        since = self._ledger_behind_since = now if self._ledger_behind_since is None else self._ledger_behind_since
        if now - since < LEDGER_SECONDS_MAX:
            raise Retry("the ledger has to record first what may have reached Stripe already")
        return False

    def _judge(self, group: Group, mine: Sequence[Record], others: _Others, missing: list[Record]) -> str | None:
        """Add what is missing of one customer, meter and minute; or say why that cannot be told."""
        customer, name, minute = group
        meter = self._summaries.meter(name)
        formula = "sum" if meter is None else meter.formula
        there = self._summaries.total(name, customer, since=minute, until=minute + MINUTE)
        surely = sum(_weight(each, formula) for each in others.surely)
        perhaps = [_weight(each, formula) for each in others.perhaps]
        places = _places(there - surely, [_weight(each, formula) for each in mine], perhaps)
        if formula in SUMMED and not self._clock_is_fast() and _one_answer(mine, places):
            missing += mine[places[-1] :]
            return None
        doubtful = ", ".join(str(each.value) for each in mine[:SHOWN_MAX]) + (", …" if len(mine) > SHOWN_MAX else "")
        return (
            f"it may have reached Stripe more than 24 hours ago, and would be counted again. In the minute of "
            f"{minute:%Y-%m-%d %H:%M} UTC Stripe has {there} of {name} for {customer}; by the ledger it has {surely}"
            f"{f' to {surely + sum(perhaps)}' if perhaps else ''} without what is in doubt ({doubtful}): compare, then "
            "release or discard it"
        )


class _Others(NamedTuple):
    surely: list[Record]
    perhaps: list[Record]


class _Standing(NamedTuple):
    """Where everything else of the minutes is: not sent at all, as a whole or in part, or sent with no answer (yet)."""

    never: set[str]
    never_parts: set[str]
    in_part: set[str]
    perhaps: set[str]
    lately: set[str]
    shared: bool

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        accounts: Accounts,
        unsent: Unsent,
        records_of: Callable[[Iterable[MeterEvent]], list[Record]],
        lately: Collection[str],
    ) -> _Standing:
        ids = {record.event.id for record in records}
        kept = unsent.kept(ids) if ids else []
        return cls(
            never=unsent(ids) if ids else set(),
            never_parts={record.identifier for record in records_of(kept)},
            in_part={event.id for event in kept},
            perhaps=unsent.perhaps(ids) if ids else set(),
            lately=set(lately),
            shared=accounts.shared,
        )

    def split(self, records: Sequence[Record]) -> _Others:
        """Those of the records that Stripe has, and those that it may have."""
        others = _Others([], [])
        for record in records:
            id = record.event.id
            if record.identifier in self.never_parts or (id in self.never and id not in self.in_part):
                continue
            unsure = self.shared or id in self.perhaps or record.identifier in self.lately
            (others.perhaps if unsure else others.surely).append(record)
        return others


def in_order(records: Iterable[Record]) -> list[Record]:
    """The order in which records go out: what takes others back comes last."""
    return sorted(records, key=lambda record: record.reverses is not None)


def _weight(record: Record, formula: str) -> int:
    """How much a record adds to Stripe's sum; a cancellation takes its event away."""
    if formula == "count":
        return -1 if cancels(record) else 1
    return record.value


def _places(there: int, values: Sequence[int], perhaps: Sequence[int]) -> list[int]:
    """After how many of the first values, with some of what may be there, the sum is this; empty if nobody can tell."""
    sums = {0}
    for value in perhaps:
        sums |= {each + value for each in sums}
        if len(sums) > SUMS_MAX:
            return []
    before = [sum(values[:count]) for count in range(len(values) + 1)]
    return [count for count, value in enumerate(before) if there - value in sums]


def _one_answer(records: Sequence[Record], places: Sequence[int]) -> bool:
    """Whether the places come to the same: what lies between them takes itself back, there or not."""
    if not places:
        return False
    between = records[places[0] : places[-1]]
    reported = {each.identifier for each in between if each.reverses is None}
    return reported == {each.reverses for each in between if each.reverses is not None}
