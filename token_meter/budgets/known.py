"""What a process remembers of who may spend what, and of prices: read anew when the ledger says something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from token_meter.budgets.budget import Budget, meets
from token_meter.budgets.hold import Generation
from token_meter.budgets.rates import Rates
from token_meter.budgets.snapshot import Snapshot, read_snapshot
from token_meter.ledger.tables import state

if TYPE_CHECKING:
    from token_meter.bookkeeping.rater import LedgerRater
    from token_meter.ledger.ledger import Ledger

_GENERATION: Final = f"SELECT budgets, catalogue FROM {state.name} WHERE id = 1"
_LATER: Final = frozenset({"provider", "publisher", "model", "operation"})
"""What is known of a call only when its request is read."""


class Known:
    """Of one ledger, for the calls of one mode. `lock` is held by whoever uses rates: one thread at a time."""

    def __init__(self, ledger: Ledger, rater: Callable[[], LedgerRater], mode: str) -> None:
        self._ledger = ledger
        self._rater = rater
        self._mode = mode
        self._rates: Rates | None = None
        self._changes = ledger.changes
        self.snapshot: Snapshot | None = None
        """None: nobody has looked yet."""
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self.lock = threading.RLock()

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a budget, as far as is known. None is known before `look`."""
        return self.snapshot is not None and self.snapshot.is_idle

    @property
    def may_be_old(self) -> bool:
        """Whether this process has set something itself since somebody looked."""
        return self._ledger.changes != self._changes

    def concerns(self, customer: str | None, dimensions: Mapping[str, str]) -> bool:
        """Whether a call of this customer may have to be held. Cheap; said too often rather than too seldom."""
        snapshot = self.snapshot
        if snapshot is None or self.may_be_old:
            return True
        if snapshot.is_idle:
            return False
        if (self._mode, customer or "") in snapshot.paused:
            return True
        if snapshot.policies.of(self._mode, customer).policy == "block":
            return True
        given = {**dimensions, "customer": customer}
        return any(_may_concern(each, given, self._mode) for each in snapshot.in_force)

    def look(self) -> None:
        """See whether budgets, prices or plans have changed, and read them."""
        changes, snapshot = self._ledger.changes, self.snapshot
        if snapshot is None or self.generation() != snapshot.generation:
            self.load()
        self._changes = changes

    def generation(self) -> Generation:
        """The state of budgets, and that of prices and plans, as the ledger has it now."""
        found = self._ledger.quickly(lambda connection: connection.execute(_GENERATION).fetchone())
        return (found[0], found[1])

    def load(self) -> Snapshot:
        """Read who may spend what."""
        with self.lock:
            with self._ledger.reading() as (_, connection):
                snapshot = read_snapshot(connection)
            if self.snapshot is not None and snapshot.generation[1] != self.snapshot.generation[1]:
                self._rates = None
            self.snapshot = snapshot
            return snapshot

    def current(self) -> Snapshot:
        """Who may spend what, as it is remembered."""
        return self.snapshot or self.load()

    def rates(self) -> Rates:
        """Prices and plans; hold the lock while they are used."""
        if self._rates is None:
            with self._ledger.reading() as (_, connection):
                self._rates = Rates(self._rater().events(connection))
        return self._rates


def _may_concern(budget: Budget, given: Mapping[str, str | None], mode: str) -> bool:
    """Whether nothing that is known before the request is read speaks against it."""
    return budget.mode == mode and all(
        name in _LATER or meets(wanted, given.get(name)) for name, wanted in budget.scope
    )  # fmt: skip
