"""Holds in this process's memory: for tests, and for a single process that needs no ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from token_meter.budgets import holding
from token_meter.budgets.hold import Became, CreditAsk, Generation, Held, Level, Part, Request, Verdict
from token_meter.budgets.holding import Counter, Key


class MemoryHolds:
    """A HoldStore in memory. `balance` says what a customer's credit is worth, in the smallest parts; none: nothing."""

    def __init__(self, *, balance: Callable[[CreditAsk], int] = lambda credit: 0) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Key, Counter] = {}
        self._holds: dict[str, Held] = {}
        self._recorded: set[str] = set()
        self._balance = balance
        self.state: Generation = (0, 0)

    # ---- the protocol ----

    def hold(self, request: Request) -> Verdict:
        """Reserve all parts or none."""
        with self._lock:
            for part in request.parts:
                self._counters.setdefault(part.key, (0, 0, 0, 0))
            return holding.hold(self, request)

    def settle(self, id: str, became: Became, amounts: Sequence[int] = (), *, event: str | None = None) -> list[Level]:
        """End a hold, once."""
        with self._lock:
            return holding.settle(self, id, became, amounts, event)

    def charge(self, request: Request) -> list[Level]:
        """Count what was spent without a hold."""
        with self._lock:
            for part in request.parts:
                self._counters.setdefault(part.key, (0, 0, 0, 0))
            return holding.charge(self, request)

    def mark_sent(self, ids: Sequence[str]) -> None:
        """From here on the provider may have got these requests."""
        with self._lock:
            for id in ids:
                if id in self._holds:
                    self._holds[id] = self._holds[id]._replace(sent=True)

    def sweep(self, now: int) -> tuple[int, int]:
        """Look after holds that have expired."""
        with self._lock:
            expired = [each for each in self._holds.values() if each.state == "held" and each.expires <= now]
            for each in expired:
                holding.settle(self, each.id, "lost" if each.sent else "released", (), None)
            return sum(not each.sent for each in expired), sum(each.sent for each in expired)

    # ---- for tests ----

    def used(self, part: Part) -> tuple[int, int, int]:
        """What is spent, held and lost where a part counts."""
        spent, held, lost, _ = self._counters.get(part.key, (0, 0, 0, 0))
        if part.rolling:
            spent = self.rolling(part.budget, part.subject, part.bucket - part.rolling)
        return spent, held, lost

    # ---- Rows ----

    def generation(self) -> Generation:
        """The state of budgets and prices."""
        return self.state

    def counter(self, key: Key) -> Counter | None:
        """What is counted under a key."""
        return self._counters.get(key)

    def rolling(self, budget: str, subject: str, after: int) -> int:
        """What is spent in the buckets of a rolling window."""
        return sum(
            counter[0]
            for key, counter in self._counters.items()
            if key[:2] == (budget, subject) and key[2] > after and key[2] >= 0
        )

    def reserve(self, key: Key, amount: int, limit: int | None) -> bool:
        """Hold an amount if it stays within the limit."""
        spent, held, lost, _ = self._counters[key]
        if limit is not None and spent + held + lost + amount > limit:
            return False
        self.add(key, 0, amount, 0)
        return True

    def add(self, key: Key, spent: int, held: int, lost: int) -> Counter:
        """Add to a counter."""
        was = self._counters.get(key, (0, 0, 0, 0))
        now = self._counters[key] = (was[0] + spent, was[1] + held, was[2] + lost, was[3])
        return now

    def add_bucket(self, budget: str, subject: str, bucket: int, spent: int) -> None:
        """Add to a bucket of a rolling window."""
        self.add((budget, subject, bucket), spent, 0, 0)

    def balance(self, credit: CreditAsk, now: int) -> int:
        """What a customer's credit is worth now."""
        return self._balance(credit)

    def get(self, id: str) -> Held | None:
        """A hold."""
        return self._holds.get(id)

    def insert(self, hold: Held) -> bool:
        """Keep a new hold."""
        return self._holds.setdefault(hold.id, hold) is hold

    def change(self, id: str, hold: Held) -> None:
        """What a hold has become."""
        del self._holds[id]
        self._holds[hold.id] = hold

    def delete(self, id: str) -> None:
        """Forget a hold."""
        self._holds.pop(id, None)

    def is_recorded(self, event: str) -> bool:
        """Nothing is recorded here."""
        return False
