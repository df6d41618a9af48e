"""The door of a Meter: opens the gate when there is a budget, and costs next to nothing as long as there is none.

Nothing here needs more than the standard library: a program without budgets never loads the rest.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from token_meter.locks import tell_after_fork
from token_meter.providers.asking import UNKNOWN
from token_meter.providers.base import Call, CutOff, Reading
from token_meter.providers.estimate import BYTES_PER_TOKEN
from token_meter.providers.publishers import publisher_of
from token_meter.usage import Usage

if TYPE_CHECKING:
    from token_meter.bookkeeping.rater import LedgerRater
    from token_meter.budgets.gate import Gate
    from token_meter.budgets.plan import Holding
    from token_meter.ledger.ledger import Ledger

LOOK_SECONDS: Final = 1.0
"""So often a program without budgets looks whether there are some now."""

_GENERATION: Final = "SELECT budgets FROM token_meter_state WHERE id = 1"


class Door:
    """In front of the calls of one Meter. `now` is wall time in nanoseconds."""

    def __init__(
        self,
        ledger: Ledger,
        rater: Callable[[], LedgerRater],
        *,
        problem: Callable[[str, BaseException], None],
        mode: str,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._ledger = ledger
        self._rater = rater
        self._problem = problem
        self._mode = mode
        self._now = now
        self._gate: Gate | None = None
        self._look_at = 0.0
        self._changes = ledger.changes
        self._may = False
        """What the last look found: whether there may be budgets."""
        self.after_fork()
        tell_after_fork(self)

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the locks."""
        self._opening, self._looking = threading.Lock(), threading.Lock()

    def guards(self, customer: str | None, dimensions: Mapping[str, str]) -> bool:
        """Whether a call has to pass the gate."""
        gate = self._gate
        if gate is not None:
            return gate.concerns(customer, dimensions)
        if time.monotonic() < self._look_at and self._ledger.changes == self._changes:
            return self._may
        with self._looking:  # whoever comes meanwhile waits for what is found
            if time.monotonic() >= self._look_at or self._ledger.changes != self._changes:
                changes = self._ledger.changes
                self._may = self._may_have_budgets()
                self._changes, self._look_at = changes, time.monotonic() + LOOK_SECONDS
        return self._may

    def hold(self, call: Call, body: Mapping[str, Any]) -> Holding | None:
        """Hold what a call may take; None: nothing limits it. Raises BudgetExceeded."""
        from token_meter.budgets.rates import Caller

        gate = self.gate
        who = call.attribution
        caller = Caller(
            self._mode, who.customer, call.provider, call.model_requested, publisher_of(call.model_requested),
            call.operation, who.dimensions,
        )  # fmt: skip
        try:
            ask = call.endpoint.ask(dict(body)) if call.endpoint.ask is not None else UNKNOWN
        except Exception as error:  # noqa: BLE001 - a request of an unheard-of shape is the SDK's to refuse
            self._problem("request", error)
            ask = UNKNOWN
        return gate.hold(call.id, caller, ask)

    def cut_off(self, hold: Holding | None) -> CutOff | None:
        """Where a stream of this call ends, if a budget wants that."""
        if hold is None or hold.cut is None:
            return None
        from token_meter.budgets.refusal import used_up

        budget, subject, tokens = hold.cut
        return CutOff(tokens * BYTES_PER_TOKEN, used_up(budget, subject, tokens))

    def settle(self, hold: Holding, readings: list[Reading], *, later: bool = False) -> None:
        """A call has ended with these readings, written under their `event_id`."""
        from token_meter.budgets.gate import Ended

        main = readings[0]
        if main.status == "unmetered" and not main.usage and "deferred" not in main.anomalies:
            self.gate.lose(hold, later=later)
            return
        ended = [
            Ended(
                each.event_id, each.usage or Usage(), each.model,
                "deferred" if "deferred" in each.anomalies else each.status, each.price_context,
            )
            for each in readings
        ]  # fmt: skip
        self.gate.settle(hold, ended, later=later)

    def release(self, hold: Holding, *, later: bool = False) -> None:
        """A call has ended and billed nothing."""
        self.gate.release(hold, later=later)

    def tend(self) -> None:
        """What is done once in a while, away from the callers' threads."""
        if self._gate is not None:
            self._gate.tend()

    @property
    def gate(self) -> Gate:
        """The gate; opened now if it was not."""
        if self._gate is None:
            from token_meter.budgets.gate import Gate

            with self._opening:
                if self._gate is None:
                    self._gate = Gate(self._ledger, self._rater, problem=self._problem, mode=self._mode, now=self._now)
        return self._gate

    def _may_have_budgets(self) -> bool:
        """A look into the ledger's file that makes nothing; a server has to be asked by the gate."""
        file = self._ledger.file
        if file is None:
            return True
        if not file.exists():
            return False
        try:
            connection = sqlite3.connect(f"file:{_quoted(str(file))}?mode=ro", uri=True, timeout=LOOK_SECONDS)
            try:
                found = connection.execute(_GENERATION).fetchone()
            finally:
                connection.close()
        except sqlite3.Error as error:
            # No tables yet, or tables from before there were budgets: nobody has one.
            if "no such" not in str(error):
                self._problem("budgets cannot be looked up", error)
            return False
        return found is not None and found[0] > 0


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
