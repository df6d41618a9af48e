"""Random schedules of holds, settlements, losses and sweeps: what is documented of a budget holds in each.

`TOKEN_METER_SCHEDULES=10000 python -m pytest tests/budgets/test_schedules.py` runs as many.
"""

from __future__ import annotations

import os

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.budgets.kit import NOW
from token_meter.budgets.hold import Part, Request
from token_meter.budgets.memory_store import MemoryHolds

SCHEDULES = int(os.environ.get("TOKEN_METER_SCHEDULES", "60"))
LIMIT = 1_000
CEILING = 120
"""What one call can take at most: its model's ceiling."""

LIVES = 50


class Schedule(RuleBasedStateMachine):
    """Calls of two customers with one budget each and one together, whose cost may pass what they hold."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryHolds()
        self.now = NOW
        self.number = 0
        self.held: dict[str, tuple[tuple[Part, ...], int]] = {}
        self.settled: dict[str, int] = {}
        self.in_flight_most: dict[tuple[str, str], int] = {}
        self.reserved_least: dict[tuple[str, str], int] = {}

    def parts(self, customer: str, amount: int) -> tuple[Part, ...]:
        own = Part("each", f'["{customer}"]', 0, amount, limit=LIMIT)
        return own, Part("together", "[]", 0, amount, limit=int(1.5 * LIMIT))

    @rule(target=calls, customer=st.sampled_from("ab"), reserved=st.integers(1, CEILING))
    def hold(self, customer, reserved):
        self.number += 1
        id = f"call-{self.number}"
        parts = self.parts(customer, reserved)
        before = {part.key: self.store.used(part) for part in parts}
        verdict = self.store.hold(Request(id, parts, self.now, self.now + LIVES))
        fits = all(sum(before[part.key]) + reserved <= part.limit for part in parts)
        # No call is refused that fits, and none is let through that does not.
        assert (verdict.kind == "held") == fits
        if verdict.kind == "refused":
            assert {part.key: self.store.used(part) for part in parts} == before
            return id
        self.held[id] = parts, reserved
        for part in parts:
            mine = part.key[:2]
            flying = sum(1 for others, _ in self.held.values() if any(other.key[:2] == mine for other in others))
            self.in_flight_most[mine] = max(self.in_flight_most.get(mine, 0), flying)
            self.reserved_least[mine] = min(self.reserved_least.get(mine, CEILING), reserved)
        return id

    @rule(id=calls, actual=st.integers(0, CEILING))
    def settle(self, id, actual):
        self.end(id, actual)

    def end(self, id, actual):
        self.store.settle(id, "settled", [actual, actual])
        if id in self.held:
            self.settled[id] = actual
            del self.held[id]

    @rule(id=consumes(calls))
    def release(self, id):
        self.store.settle(id, "released")
        self.held.pop(id, None)

    @rule(id=calls)
    def lose(self, id):
        self.store.settle(id, "lost")

    @rule(later=st.integers(1, 2 * LIVES))
    def sweep(self, later):
        self.now += later
        self.store.sweep(self.now)

    @invariant()
    def everything_is_accounted_for(self):
        for part in (*self.parts("a", 0), *self.parts("b", 0)):
            mine = part.key[:2]
            _, held, lost = self.store.used(part)
            flying = [amount for parts, amount in self.held.values() if any(each.key[:2] == mine for each in parts)]
            assert held + lost == sum(flying)
            assert held >= 0 and lost >= 0

    @invariant()
    def what_is_spent_is_the_sum_of_what_was_settled(self):
        spent, _, _ = self.store.used(self.parts("a", 0)[1])
        assert spent == sum(self.settled.values())

    @invariant()
    def the_overshoot_is_never_more_than_documented(self):
        """Calls in flight x (ceiling - reserved): docs/budgets.md."""
        for part in (*self.parts("a", 0), *self.parts("b", 0)):
            mine = part.key[:2]
            if mine in self.in_flight_most:
                spent, _, _ = self.store.used(part)
                allowed = self.in_flight_most[mine] * (CEILING - self.reserved_least[mine])
                assert spent <= part.limit + allowed


class StrictSchedule(Schedule):
    """No call takes more than it holds: nothing is ever over."""

    @rule(id=Schedule.calls, actual=st.integers(0, CEILING))
    def settle(self, id, actual):
        reserved = self.held[id][1] if id in self.held else 0
        self.end(id, min(actual, reserved))

    @invariant()
    def nothing_is_ever_over(self):
        for part in (*self.parts("a", 0), *self.parts("b", 0)):
            assert sum(self.store.used(part)) <= part.limit


PROFILE = settings(
    max_examples=SCHEDULES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
Schedule.TestCase.settings = PROFILE
StrictSchedule.TestCase.settings = PROFILE
TestBounded = Schedule.TestCase
TestStrict = StrictSchedule.TestCase
