"""The gate before a call: what it may take is held of every budget that concerns it, and settled when it has ended.

A process remembers who may spend what. Each hold says by which state of the ledger it was worked out, and one of an
older state is refused by the store, so that what somebody sets counts at the next hold. Where nobody has a budget, the
gate looks once a second whether that is still so.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_meter.budgets import refusal
from token_meter.budgets.budget import concerning
from token_meter.budgets.crossing import period_of
from token_meter.budgets.desk import BudgetDesk
from token_meter.budgets.hold import CREDIT, Generation, HoldStore, Level, Request, Unreachable, Verdict
from token_meter.budgets.holding import Key
from token_meter.budgets.known import Known
from token_meter.budgets.learned import SEEDED_MAX, Learned, Observed
from token_meter.budgets.needs import facts_of
from token_meter.budgets.plan import Holding, Plan, limits_of, planned
from token_meter.budgets.rates import Caller
from token_meter.budgets.snapshot import Snapshot
from token_meter.budgets.stores import holds_of
from token_meter.budgets.tidings import Tidings
from token_meter.errors import BudgetExceeded, TokenMeterError
from token_meter.ledger.rows import EPOCH
from token_meter.ledger.store import LedgerError, StatementRefused
from token_meter.locks import tell_after_fork
from token_meter.providers.asking import Ask
from token_meter.usage import TOKEN_TYPES, Usage

if TYPE_CHECKING:
    from token_meter.bookkeeping.rater import LedgerRater
    from token_meter.ledger.ledger import Ledger

HOLD_SECONDS: Final = 900.0
"""A hold expires after so long; longer than the SDKs wait for an answer. A stream may outlive it."""

LOOK_SECONDS: Final = 1.0
"""So often somebody looks whether budgets were set or changed."""

DOWN_SECONDS: Final = 1.0
"""So long a ledger that did not answer is not asked again, at first."""

DOWN_SECONDS_MAX: Final = 30.0

SWEEP_SECONDS: Final = 30.0
FORGET_SECONDS: Final = 300.0
ATTEMPTS_MAX: Final = 6
CHORES_MAX: Final = 100_000
TOLD_MAX: Final = 10_000

_OPEN: Final = "the ledger does not answer: calls pass WITHOUT their budgets"
_CLOSED: Final = "the ledger does not answer: calls are refused"

Problem = Callable[[str, BaseException], None]


class Ended(NamedTuple):
    """One billed event of a call that ended."""

    id: str
    usage: Usage
    model: str | None
    status: str
    context: Mapping[str, Any]


class Gate:
    """Holds and settles for the calls of one Meter. `rater` knows the prices; `now` is wall time in nanoseconds."""

    def __init__(
        self,
        ledger: Ledger,
        rater: Callable[[], LedgerRater],
        *,
        problem: Problem,
        mode: str,
        now: Callable[[], int] = time.time_ns,
        store: HoldStore | None = None,
        hold_seconds: float = HOLD_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._problem = problem
        self._mode = mode
        self._now = now
        self._hold_seconds = hold_seconds
        self._store = store if store is not None else holds_of(ledger)
        self._desk = BudgetDesk(ledger)
        self._learned = Learned(self._recall)
        self._known = Known(ledger, rater, mode)
        self._tidings = Tidings(ledger, self._known.current, self._later, now)
        self._down_until = self._down_for = 0.0
        self._sweep_at = self._forget_at = 0.0
        self._look_at = 0.0
        self._told: set[tuple[Generation, Key]] = set()
        self._begin()
        tell_after_fork(self)

    def _begin(self) -> None:
        self._chores: deque[Callable[[], None]] = deque()

    def after_fork(self) -> None:
        """In a forked child: what waits is the parent's, and another thread may have held the lock."""
        self._begin()
        self._known.after_fork()
        self._learned.after_fork()

    # ---- before a call ----

    def concerns(self, customer: str | None, dimensions: Mapping[str, str]) -> bool:
        """Whether a call of this customer may have to be held. Cheap; said too often rather than too seldom."""
        return self._known.concerns(customer, dimensions)

    def hold(self, id: str, caller: Caller, ask: Ask) -> Holding | None:
        """Hold what a call may take; None: nothing limits it.

        Raises BudgetExceeded where a budget leaves no room for it.
        """
        known = self._known
        try:
            if time.monotonic() < self._down_until:
                raise Unreachable("the ledger did not answer a moment ago")
            self._do_chores()
            if known.may_be_old:
                known.look()
            for _ in range(ATTEMPTS_MAX):
                snapshot, now = known.current(), self._now() // 1000
                try:
                    expires = now + int(self._hold_seconds * 1_000_000)
                    plan = planned(id, caller, ask, snapshot, known, self._learned, now=now, expires=expires)
                except BudgetExceeded:
                    if known.generation() == snapshot.generation:
                        raise
                    known.load()  # what was remembered is not true any more
                    continue
                if plan is None:
                    return None
                verdict = self._store.hold(plan.request)
                self._down_for = 0.0
                if verdict.kind == "held":
                    return plan.holding
                if verdict.kind == "refused":
                    raise self._refused(plan, verdict, snapshot)
                if verdict.kind == "stale":
                    known.load()
                else:
                    self._desk.seed(plan.request, snapshot, facts_of(caller))
            raise Unreachable("budgets change faster than a hold can be worked out")
        except BudgetExceeded:
            raise
        except (Unreachable, LedgerError) as problem:
            if isinstance(problem, StatementRefused):
                return self._without_answer(caller, problem, unexpected=True)
            if time.monotonic() >= self._down_until:
                self._stay_away()
            return self._without_answer(caller, problem)
        except Exception as problem:  # noqa: BLE001 - D3
            return self._without_answer(caller, problem, unexpected=True)

    def _without_answer(self, caller: Caller, problem: Exception, *, unexpected: bool = False) -> Holding | None:
        """Nobody says what is left: the operator's setting decides, and it is told either way. `unexpected`: the ledger
        answers, and something about this call is not as it should be: whoever made it so must not get past a limit
        that is never passed."""
        snapshot = self._known.snapshot
        if snapshot is None:
            self._problem(_OPEN, problem)
            return None
        prepaid = snapshot.policies.of(caller.mode, caller.customer).policy == "block"
        setting = snapshot.policies.prepaid_unreachable if prepaid else snapshot.policies.unreachable
        mine = concerning(limits_of(snapshot, caller.mode, hard_only=True), facts_of(caller))
        if not prepaid and not mine:
            return None
        if unexpected and (prepaid or any(budget.enforce == "strict" for budget, _ in mine)):
            setting = "closed"
        self._problem(_CLOSED if setting == "closed" else _OPEN, problem)
        if setting == "closed":
            raise refusal.unreachable(f"customer={caller.customer}" if prepaid else _who(caller), problem)
        return None

    def _refused(self, plan: Plan, verdict: Verdict, snapshot: Snapshot) -> BudgetExceeded:
        holding, generation = plan.holding, snapshot.generation
        part, budget = holding.parts[verdict.place], holding.budgets[verdict.place]
        if part.budget == CREDIT:
            customer = holding.caller.customer or ""
            policy = snapshot.policies.of(holding.caller.mode, customer)
            error = refusal.no_credit(customer, policy, part, verdict)
            self._tell_once(generation, part.key, lambda: self._tidings.tell_depleted(holding.caller, error))
            return error
        now = self._now() // 1000
        error = refusal.no_room(budget, part.subject, part, verdict, plan.spans[part.key], now)
        period = period_of(budget, part.key, now)
        key = (*part.key[:2], period)
        self._tell_once(generation, key, lambda: self._tidings.tell_exceeded(budget, part.key, period, error))
        return error

    def _tell_once(self, generation: Generation, key: Key, chore: Callable[[], None]) -> None:
        """The outbox has it once anyway; this saves writing it for each refusal."""
        if (generation, key) in self._told:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add((generation, key))
        self._later(chore)

    # ---- after it ----

    def settle(self, holding: Holding, events: Sequence[Ended], *, later: bool = False) -> None:
        """Count what a call took. `later`: from an event loop or a finaliser, which must not wait."""
        if holding.process != os.getpid():  # a stream that a fork has copied is its parent's to settle
            return
        if later:
            self._later(lambda: self._settle(holding, events))
        else:
            self._guarded(lambda: self._settle(holding, events))

    def release(self, holding: Holding, *, later: bool = False) -> None:
        """Give everything back: the provider bills nothing."""
        self._end(holding, "released", later=later)

    def lose(self, holding: Holding, *, later: bool = False) -> None:
        """Keep it charged: nobody knows whether the provider bills it."""
        self._end(holding, "lost", later=later)

    def _end(self, holding: Holding, became: Any, *, later: bool) -> None:
        if holding.process != os.getpid():
            return

        def end() -> None:
            self._store.settle(holding.id, became)

        if later:
            self._later(end)
        else:
            self._guarded(end)

    def _settle(self, holding: Holding, events: Sequence[Ended]) -> None:
        moment = EPOCH + timedelta(microseconds=self._now() // 1000)
        levels: list[Level] = []
        for place, ended in enumerate(events):
            amounts = self._amounts(holding, ended, moment)
            if place == 0 and ended.status == "deferred":
                self._store.settle(holding.id, "lost", event=ended.id)  # until what it took is read
            elif place == 0:
                levels += self._store.settle(holding.id, "settled", amounts, event=ended.id)
                self._observe(holding, ended)
            else:
                parts = tuple(part._replace(amount=each) for part, each in zip(holding.parts, amounts, strict=True))
                request = Request(ended.id, parts, self._now() // 1000, self._now() // 1000)
                levels += self._store.charge(request)
        self._tidings.notice_levels(levels)

    def _amounts(self, holding: Holding, ended: Ended, at: datetime) -> list[int]:
        status = "unmetered" if ended.status == "deferred" else ended.status
        with self._known.lock:
            return self._known.rates().used(
                holding.budgets, holding.caller, ended.usage, at=at, context=ended.context, status=status,
                answered=ended.model,
            )  # fmt: skip

    def _observe(self, holding: Holding, ended: Ended) -> None:
        if ended.status != "complete" or holding.caller.model is None:
            return
        told = _told(ended.usage, holding.size)
        self._learned.observe(holding.caller.customer, holding.caller.model, told)

    # ---- away from the callers' threads ----

    def tend(self) -> None:
        """What is done once in a while: settle what waits, look whether anything changed, sweep, tell crossings."""
        self._do_chores()
        if time.monotonic() < self._down_until:
            return
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        try:
            self._known.look()
            if not self._known.is_idle and time.monotonic() >= self._sweep_at:
                self._sweep_at = time.monotonic() + SWEEP_SECONDS
                self._store.sweep(self._now() // 1000)
                if time.monotonic() >= self._forget_at:
                    self._forget_at = time.monotonic() + FORGET_SECONDS
                    self._desk.forget_old()
                self._tidings.tell_untold()
        except (Unreachable, TokenMeterError) as problem:
            self._stay_away()
            self._problem("budgets cannot be looked up", problem)

    def _stay_away(self) -> None:
        """The ledger did not answer: it is not asked for a while, longer each time, so that no call waits for it."""
        self._down_for = min(DOWN_SECONDS_MAX, max(DOWN_SECONDS, 2 * self._down_for))
        self._down_until = time.monotonic() + self._down_for

    def _later(self, chore: Callable[[], None]) -> None:
        if len(self._chores) >= CHORES_MAX:
            self._problem("budgets", RuntimeError("too many settlements wait: some holds will be lost"))
            return
        self._chores.append(chore)

    def _do_chores(self) -> None:
        for _ in range(len(self._chores)):
            try:
                chore = self._chores.popleft()
            except IndexError:
                return
            self._guarded(chore)

    def _guarded(self, chore: Callable[[], None]) -> None:
        """A settlement that fails is not lost for the ledger: the event itself ends its hold when it is recorded."""
        try:
            chore()
        except Exception as error:  # noqa: BLE001 - D3: told, never raised into a model call
            self._problem("budgets", error)

    def _recall(self, customer: str | None, model: str) -> Iterable[Observed]:
        page = self._ledger.page(customer=customer, limit=SEEDED_MAX, mode=self._mode)
        for event in reversed(page.events):
            if model in (event.model_requested, event.model) and event.status == "complete":
                yield _told(event.usage, 0)


def _told(usage: Usage, size: int) -> Observed:
    into = sum(some for name, some in usage.items() if TOKEN_TYPES[name].headline in _INPUT_LINES)
    out = sum(some for name, some in usage.items() if TOKEN_TYPES[name].headline in ("output", "cached output"))
    return Observed(into, out, size)


_INPUT_LINES: Final = frozenset({"input", "cached input", "cache write"})


def _who(caller: Caller) -> str:
    return f"customer={caller.customer}" if caller.customer else "calls without a customer"
