"""Random schedules of holds, settlements, charges, losses and sweeps: what is documented of a budget holds in each, on
every store.

`TOKEN_METER_SCHEDULES=10000 python -m pytest tests/budgets/test_schedules.py` runs as many on each of them.
"""

from __future__ import annotations

import os
from itertools import count

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from tests.budgets.kit import NOW
from token_meter.budgets.hold import Part, Request
from token_meter.budgets.window import ROLLING
from token_meter.ledger.tables import spend

WANTED = os.environ.get("TOKEN_METER_SCHEDULES")
SCHEDULES = {"memory": 60, "sqlite": 40, "postgresql": 15}
"""So many each time: a step on a server takes longer."""

ROUND = 250

LIMIT = 200
CEILING = 120
"""What one call can take at most: its model's ceiling."""

LIVES = 50
STEP = 10
REACH = 30 * STEP
"""A rolling window counts so far back, in buckets of a step."""

_numbers = count(1)


class Schedule(RuleBasedStateMachine):
    """Calls of two customers with one budget each and one together, whose cost may pass what they hold."""

    calls = Bundle("calls")

    def __init__(self, kit) -> None:
        super().__init__()
        self.kit = kit
        self.store = kit.store
        self.name = f"schedule-{next(_numbers)}"
        self.now = NOW
        self.number = 0
        self.held: dict[str, tuple[tuple[Part, ...], int]] = {}
        self.expires: dict[str, int] = {}
        self.lost: set[str] = set()
        self.rolled: list[tuple[int, int]] = []
        """What is spent in buckets of the rolling window: where, and how much."""
        self.settled: dict[str, int] = {}
        self.charged: dict[tuple[str, str], int] = {}
        self.in_flight_most: dict[tuple[str, str], int] = {}
        self.reserved_least: dict[tuple[str, str], int] = {}
        kit.make(*self.everything)

    def parts(self, customer: str, amount: int) -> tuple[Part, ...]:
        own = Part(f"{self.name}-each", f'["{customer}"]', 0, amount, limit=LIMIT)
        together = Part(f"{self.name}-together", "[]", 0, amount, limit=int(1.5 * LIMIT))
        if customer == "c":  # no budget of their own: the store's short way for a hold of one part
            return (together,)
        if customer == "d":
            bucket = self.now // STEP * STEP
            return Part(f"{self.name}-rolling", "[]", ROLLING, amount, bucket, LIMIT, REACH), together
        return own, together

    @property
    def everything(self) -> tuple[Part, ...]:
        return self.parts("a", 0) + self.parts("b", 0)[:1] + self.parts("d", 0)[:1]

    def used(self) -> dict[tuple[str, str, int], tuple[int, int, int]]:
        """What is spent, held and lost of each budget."""
        if self.kit.ledger is None:
            return {part.key: self.store.used(part) for part in self.everything}
        # In the driver's own words: this is looked at after every step.
        where = f"budget LIKE '{self.name}-%'"
        rows = self.kit.ledger.quickly(
            lambda connection: connection.execute(
                f"SELECT budget, subject, start, spent, held, lost FROM {spend.name} WHERE {where}"
            ).fetchall()
        )
        found = {(row[0], row[1], row[2]): (row[3], row[4], row[5]) for row in rows}
        rolling = self.parts("d", 0)[0]
        inside = [
            found.pop(key)[0] * (key[2] > rolling.bucket - REACH)
            for key in list(found) if key[0] == rolling.budget and key[2] != ROLLING
        ]  # fmt: skip
        found[rolling.key] = (sum(inside), *found[rolling.key][1:])
        return found

    @rule(target=calls, customer=st.sampled_from("abcd"), reserved=st.integers(1, CEILING), sent=st.booleans())
    def hold(self, customer, reserved, sent):
        self.number += 1
        id = f"{self.name}-{self.number}"
        parts = self.parts(customer, reserved)
        before = self.used()
        verdict = self.store.hold(Request(id, parts, self.now, self.now + LIVES, sent=sent))
        fits = all(sum(before[part.key]) + reserved <= part.limit for part in parts)
        # No call is refused that fits, and none is let through that does not.
        assert (verdict.kind == "held") == fits
        if verdict.kind == "refused":
            assert self.used() == before
            return id
        self.held[id] = parts, reserved
        self.expires[id] = self.now + LIVES
        self.unsent(id, sent)
        for part in parts:
            mine = part.key[:2]
            flying = sum(1 for others, _ in self.held.values() if any(other.key[:2] == mine for other in others))
            self.in_flight_most[mine] = max(self.in_flight_most.get(mine, 0), flying)
            self.reserved_least[mine] = min(self.reserved_least.get(mine, CEILING), reserved)
        return id

    def unsent(self, id, sent):
        """From here on it may have been sent: a hold that is not is given back when it expires."""
        if not sent:
            self.store.mark_sent([id])

    @rule(id=calls, actual=st.just(0) | st.integers(0, CEILING), event=st.sampled_from(["", "-event"]))
    def settle(self, id, actual, event):
        self.end(id, actual, event)

    def end(self, id, actual, event):
        parts = self.held[id][0] if id in self.held else ()
        levels = self.store.settle(id, "settled", [actual] * len(parts), event=f"{id}{event}" if event else None)
        calendar = [part for part in parts if part.start != ROLLING]
        assert len(levels) == (len(calendar) if actual else 0), "each counter that went up is told, and no other"
        if id in self.held:
            self.settled[id] = actual
            self.rolled += [(part.bucket, actual) for part in parts if part.start == ROLLING]
            del self.held[id]

    @rule(id=consumes(calls))
    def release(self, id):
        assert self.store.settle(id, "released") == []
        self.held.pop(id, None)

    @rule(id=calls)
    def lose(self, id):
        assert self.store.settle(id, "lost") == []
        self.lost.add(id)

    @rule(customer=st.sampled_from("abcd"), amount=st.integers(1, CEILING), twice=st.booleans())
    def charge(self, customer, amount, twice):
        """What nobody held: events of other programs."""
        self.number += 1
        request = Request(f"{self.name}-{self.number}-charge", self.parts(customer, amount), self.now, self.now)
        assert len(self.store.charge(request)) == sum(part.start != ROLLING for part in request.parts)
        if twice:
            assert self.store.charge(request) == []
        self.rolled += [(part.bucket, amount) for part in request.parts if part.start == ROLLING]
        for part in request.parts:
            self.charged[part.key[:2]] = self.charged.get(part.key[:2], 0) + amount

    @rule(later=st.integers(1, 2 * LIVES))
    def sweep(self, later):
        self.now += later
        self.store.sweep(self.now)
        self.lost.update(id for id in self.held if self.expires[id] <= self.now)

    @invariant()
    def everything_is_accounted_for(self):
        for key, (_, held, lost) in self.used().items():
            mine = {id: amount for id, (parts, amount) in self.held.items() if any(each.key == key for each in parts)}
            assert held == sum(amount for id, amount in mine.items() if id not in self.lost)
            assert lost == (0 if key[2] == ROLLING else sum(mine.values()) - held)

    @invariant()
    def a_rolling_window_counts_what_was_spent_and_lost_within_its_reach(self):
        rolling = self.parts("d", 0)[0]
        lost = [
            (part.bucket, amount) for id, (parts, amount) in self.held.items() if id in self.lost
            for part in parts if part.start == ROLLING
        ]  # fmt: skip
        spent, _, _ = self.used()[rolling.key]
        assert spent == sum(amount for bucket, amount in [*self.rolled, *lost] if bucket > rolling.bucket - REACH)

    @invariant()
    def what_is_spent_is_the_sum_of_what_was_settled(self):
        together = self.parts("c", 0)[0]
        spent, _, _ = self.used()[together.key]
        assert spent == sum(self.settled.values()) + self.charged.get(together.key[:2], 0)

    @invariant()
    def the_overshoot_is_never_more_than_documented(self):
        """Calls in flight x (ceiling - reserved): docs/budgets.md. What is charged without a hold comes on top."""
        used = self.used()
        for part in self.everything:
            mine = part.key[:2]
            if mine in self.in_flight_most and part.start != ROLLING:
                allowed = self.in_flight_most[mine] * (CEILING - self.reserved_least[mine])
                assert used[part.key][0] <= part.limit + allowed + self.charged.get(mine, 0)

    def teardown(self):
        """Leave nothing for the sweeps of the next schedule: settled holds wait for events that never come here."""
        self.kit.clear()


class StrictSchedule(Schedule):
    """No call takes more than it holds, and none goes without a hold: nothing is ever over."""

    charge = None

    def end(self, id, actual, event):
        super().end(id, min(actual, self.held[id][1] if id in self.held else 0), event)

    @invariant()
    def nothing_is_ever_over(self):
        used = self.used()
        for part in self.everything:
            assert sum(used[part.key]) <= part.limit


@pytest.mark.timeout(max(120, int(WANTED or 0)))
@pytest.mark.parametrize("schedule", [Schedule, StrictSchedule])
def test_what_is_documented_holds_in_every_schedule(kit, schedule):
    left = int(WANTED or SCHEDULES[kit.engine])
    while left > 0:  # in rounds: hypothesis remembers all of one, and slows down
        profile = settings(
            max_examples=min(left, ROUND), stateful_step_count=40, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        run_state_machine_as_test(lambda: schedule(kit), settings=profile)
        left -= ROUND
