"""The demo's proof: the ledger against the provider's own account, call by call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from token_meter.cli.demo.customers import GIVEN_UP
from token_meter.event import MeterEvent
from token_meter.testing.provider import Billed


@dataclass(frozen=True, slots=True)
class Pair:
    """One charged call and the event that stands for it."""

    billed: Billed
    event: MeterEvent

    @property
    def agrees(self) -> bool:
        """Whether the ledger says what the provider charged: every token type, and the model that answered."""
        return self.event.usage == self.billed.usage and self.event.model == self.billed.model


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`pairs` is every charged call that has an event; the other two must be empty. `killed` calls got no answer."""

    pairs: tuple[Pair, ...]
    missing: tuple[Billed, ...]
    unexplained: tuple[MeterEvent, ...]
    killed: int = 0

    @property
    def calls(self) -> int:
        """How many calls the provider charged for."""
        return len(self.pairs) + len(self.missing)

    @property
    def by_status(self) -> Counter[str]:
        """The accounted calls by status."""
        return Counter(pair.event.status for pair in self.pairs)

    @property
    def wrong(self) -> tuple[Pair, ...]:
        """Calls that the ledger calls complete although the provider charged something else."""
        return tuple(pair for pair in self.pairs if pair.event.status == "complete" and not pair.agrees)

    @property
    def unsure(self) -> tuple[Pair, ...]:
        """Calls of which the ledger itself says that it does not know all."""
        return tuple(pair for pair in self.pairs if pair.event.status != "complete")

    @property
    def needless(self) -> tuple[Pair, ...]:
        """Calls that the ledger is unsure of although they were neither given up nor killed."""
        silent = [pair for pair in self.unsure if pair.event.status == "unmetered"]
        ended = [pair for pair in self.unsure if pair.event.status != "unmetered"]
        read_to_the_end = [pair for pair in ended if pair.event.dimensions.get("feature") != GIVEN_UP]
        return (*silent[self.killed :], *read_to_the_end)

    @property
    def exact_tokens(self) -> int:
        """The tokens of the calls on which both agree."""
        return sum(pair.billed.usage.tokens for pair in self.pairs if pair.agrees)

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, made up, wrong or needlessly unsure."""
        return not (self.missing or self.unexplained or self.wrong or self.needless)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ok": self.ok,
            "calls": self.calls,
            "accounted": len(self.pairs),
            "by_status": dict(self.by_status),
            "exact_tokens": self.exact_tokens,
            "missing": [line.response_id for line in self.missing],
            "unexplained": [event.id for event in self.unexplained],
            "wrong": [pair.event.id for pair in self.wrong],
            "needlessly_unsure": [pair.event.id for pair in self.needless],
        }


def reconcile(billed: Iterable[Billed], events: Iterable[MeterEvent], *, killed: int = 0) -> Reconciliation:
    """Match by the id of the response; an `unmetered` event, whose response nobody saw, by the model asked for."""
    left = list(events)
    pairs, missing = [], []
    for line in billed:
        event = _take(left, line)
        if event is None:
            missing.append(line)
        else:
            pairs.append(Pair(line, event))
    return Reconciliation(tuple(pairs), tuple(missing), tuple(left), killed)


def _take(events: list[MeterEvent], line: Billed) -> MeterEvent | None:
    """The event of a charged call, each only once: a second one for the same response stays unexplained."""
    for stands_for in (_same_response, _never_answered):
        for place, event in enumerate(events):
            if stands_for(event, line):
                return events.pop(place)
    return None


def _same_response(event: MeterEvent, line: Billed) -> bool:
    return event.response_id is not None and event.response_id == line.response_id


def _never_answered(event: MeterEvent, line: Billed) -> bool:
    return event.status == "unmetered" and not event.response_id and event.model_requested == line.model_requested
