"""What the gate writes to the outbox, away from its callers: thresholds crossed, calls refused, credit used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from token_meter.bookkeeping.notice_rows import note_depleted
from token_meter.budgets.budget import Budget
from token_meter.budgets.crossing import crossed, find_untold, tell_crossings, tell_exceeded
from token_meter.budgets.hold import Level
from token_meter.budgets.holding import Key
from token_meter.budgets.rates import Caller
from token_meter.budgets.snapshot import Snapshot
from token_meter.errors import BudgetExceeded
from token_meter.money import plain

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

_MONTH: Final = 32 * 86_400 * 1_000_000


class Tidings:
    """`current` is who may spend what, `later` has something done in another thread than the caller's."""

    def __init__(
        self,
        ledger: Ledger,
        current: Callable[[], Snapshot],
        later: Callable[[Callable[[], None]], None],
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._ledger = ledger
        self._current = current
        self._later = later
        self._now = now

    def notice_levels(self, levels: Iterable[Level]) -> None:
        """Counters that a settlement has taken over a threshold: somebody should know."""
        snapshot = self._current()
        keys = [
            (each.budget, each.subject, each.start)
            for each in levels
            if (budget := snapshot.budgets.get(each.budget)) is not None and crossed(budget, each.spent, each.noted)
        ]
        if keys:
            self._later(lambda: self._tell(keys))

    def _tell(self, keys: Sequence[Key]) -> None:
        with self._ledger.writing() as (store, connection):
            tell_crossings(store, connection, self._current(), keys)

    def tell_untold(self) -> None:
        """Crossings that nobody was told of, because whoever crossed died."""
        with self._ledger.reading() as (_, connection):
            untold = find_untold(connection, self._current(), self._now() // 1000 - _MONTH)
        if untold:
            self._tell(untold)

    def tell_exceeded(self, budget: Budget, key: Key, period: int, error: BudgetExceeded) -> None:
        """A budget has refused a call."""
        details: dict[str, Any] = {
            "message": str(error),
            "spent": None if error.spent is None else plain(error.spent),
            "needed": None if error.needed is None else str(error.needed),
            "resets_at": None if error.resets_at is None else error.resets_at.isoformat(),
        }
        with self._ledger.writing() as (store, connection):
            tell_exceeded(store, connection, budget, key, period, details)

    def tell_depleted(self, caller: Caller, error: BudgetExceeded) -> None:
        """A customer's credit did not cover a call."""
        with self._ledger.writing() as (store, connection):
            note_depleted(store, connection, caller.mode, caller.customer or "", error.unit, str(error))
