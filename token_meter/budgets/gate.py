"""The gate before a call: what it may take is held of every budget that concerns it, and settled when it has ended.

A process remembers who may spend what. Each hold says by which state of the ledger it was worked out, and one of an
older state is refused by the store, so that what somebody sets counts at the next hold. Where nobody has a budget, the
gate looks once a second whether that is still so.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_meter.budgets import refusal
from token_meter.budgets.budget import Budget, concerning, meets
from token_meter.budgets.crossing import period_of
from token_meter.budgets.desk import BudgetDesk
from token_meter.budgets.hold import (
    CREDIT,
    CreditAsk,
    HoldStore,
    Level,
    Part,
    Request,
    Unreachable,
    Verdict,
    subject_of,
)
from token_meter.budgets.holding import Key
from token_meter.budgets.learned import SEEDED_MAX, Learned, Observed
from token_meter.budgets.needs import Needs, credit_budget, facts_of
from token_meter.budgets.rates import Caller, Rates
from token_meter.budgets.snapshot import Snapshot, read_snapshot, span_of
from token_meter.budgets.stores import holds_of
from token_meter.budgets.tidings import Tidings
from token_meter.budgets.window import Span
from token_meter.errors import BudgetExceeded, TokenMeterError
from token_meter.ledger.rows import EPOCH
from token_meter.ledger.store import LedgerError, StatementRefused
from token_meter.ledger.tables import state
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


class Holding(NamedTuple):
    """What a call holds, kept with it until it ends: each of `parts` of one of `budgets`, credit included."""

    id: str
    caller: Caller
    budgets: tuple[Budget, ...]
    parts: tuple[Part, ...]
    size: int
    """Bytes of text of the request; 0 where it names what was not measured: it teaches nothing of bytes and tokens."""

    process: int
    cut: tuple[Budget, str, int] | None = None
    """The budget (and whose) that ends a stream when it has shown so many tokens."""


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
        self._rater = rater
        self._problem = problem
        self._mode = mode
        self._now = now
        self._hold_seconds = hold_seconds
        self._store = store if store is not None else holds_of(ledger)
        self._desk = BudgetDesk(ledger)
        self._learned = Learned(self._recall)
        self._tidings = Tidings(ledger, self._current, self._later, now)
        self._snapshot: Snapshot | None = None
        self._rates: Rates | None = None
        self._down_until = self._down_for = 0.0
        self._sweep_at = 0.0
        self._look_at = 0.0
        self._changes = ledger.changes
        self._told: set[Key] = set()
        self._begin()
        tell_after_fork(self)

    def _begin(self) -> None:
        self._chores: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        """In a forked child: what waits is the parent's, and another thread may have held the lock."""
        self._begin()
        self._learned.after_fork()

    # ---- before a call ----

    def concerns(self, customer: str | None, dimensions: Mapping[str, str]) -> bool:
        """Whether a call of this customer may have to be held. Cheap; said too often rather than too seldom."""
        if self._ledger.changes != self._changes:
            return True  # this process has set something just now: `hold` looks what
        snapshot = self._snapshot
        if snapshot is None or snapshot.is_idle:
            return snapshot is None
        if (self._mode, customer or "") in snapshot.paused:
            return True
        if snapshot.policies.of(self._mode, customer).policy == "block":
            return True
        given = {**dimensions, "customer": customer}
        return any(_may_concern(each, given, self._mode) for each in snapshot.in_force)

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a budget, as far as is known. None is known before `look`."""
        snapshot = self._snapshot
        return snapshot is not None and snapshot.is_idle

    def hold(self, id: str, caller: Caller, ask: Ask) -> Holding | None:
        """Hold what a call may take; None: nothing limits it.

        Raises BudgetExceeded where a budget leaves no room for it.
        """
        snapshot: Snapshot | None = self._snapshot
        try:
            if time.monotonic() < self._down_until:
                raise Unreachable("the ledger did not answer a moment ago")
            self._do_chores()
            if self._ledger.changes != self._changes:
                self.look()
            for _ in range(ATTEMPTS_MAX):
                snapshot = self._current()
                try:
                    wanted = self._wanted(id, caller, ask, snapshot)
                except BudgetExceeded:
                    if self._generation() == snapshot.generation:
                        raise
                    self._load()  # what was remembered is not true any more
                    continue
                if wanted is None:
                    return None
                holding, request, spans = wanted
                verdict = self._store.hold(request)
                self._down_for = 0.0
                if verdict.kind == "held":
                    return holding
                if verdict.kind == "refused":
                    raise self._refused(holding, verdict, spans, snapshot)
                if verdict.kind == "stale":
                    self._load()
                else:
                    self._desk.seed(request, snapshot, facts_of(caller))
            raise Unreachable("budgets change faster than a hold can be worked out")
        except BudgetExceeded:
            raise
        except (Unreachable, LedgerError) as problem:
            if not isinstance(problem, StatementRefused):
                if time.monotonic() >= self._down_until:
                    self._stay_away()
                return self._without_answer(caller, snapshot, problem)
            return self._without_answer(caller, snapshot, problem, unexpected=True)
        except Exception as problem:  # noqa: BLE001 - D3
            return self._without_answer(caller, snapshot, problem, unexpected=True)

    def _without_answer(
        self, caller: Caller, snapshot: Snapshot | None, problem: Exception, *, unexpected: bool = False
    ) -> Holding | None:
        """Nobody says what is left: the operator's setting decides, and it is told either way. `unexpected`: the ledger
        answers, and something about this call is not as it should be: whoever made it so must not get past a limit
        that is never passed."""
        if snapshot is None:
            self._problem(_OPEN, problem)
            return None
        prepaid = snapshot.policies.of(caller.mode, caller.customer).policy == "block"
        setting = snapshot.policies.prepaid_unreachable if prepaid else snapshot.policies.unreachable
        mine = concerning(self._mine(snapshot, hard_only=True), facts_of(caller))
        if not prepaid and not mine:
            return None
        if unexpected and (prepaid or any(budget.enforce == "strict" for budget, _ in mine)):
            setting = "closed"
        self._problem(_CLOSED if setting == "closed" else _OPEN, problem)
        if setting == "closed":
            raise refusal.unreachable(f"customer={caller.customer}" if prepaid else _who(caller), problem)
        return None

    def _wanted(
        self, id: str, caller: Caller, ask: Ask, snapshot: Snapshot
    ) -> tuple[Holding, Request, dict[Key, Span]] | None:
        if (caller.mode, caller.customer or "") in snapshot.paused:
            raise refusal.paused(caller.customer or "")
        now = self._now() // 1000
        facts = facts_of(caller)
        found = concerning(self._mine(snapshot), facts)
        policy = snapshot.policies.of(caller.mode, caller.customer)
        blocks = policy.policy == "block"
        if not found and not blocks:
            return None
        with self._lock:
            rates = self._rates_of(snapshot)
            needs = Needs(rates, caller, ask, self._learned, now)
            entries: list[tuple[Part, Budget, Span | None]] = []
            for budget, subject in found:
                span = span_of(budget, rates.catalogue, caller.customer, now)
                hard = budget.enforce != "soft"
                amount = needs.of(budget, subject) if hard else 0
                part = Part(
                    budget.id, subject, budget.start(span), amount, span.start, budget.parts_max if hard else None,
                    budget.window.reach,
                )  # fmt: skip
                entries.append((part, budget, span))
            credit = None
            if blocks and caller.customer is not None:
                budget = credit_budget(policy)
                subject = subject_of([caller.mode, policy.currency, caller.customer])
                amount = needs.of(budget, subject_of([caller.customer]))
                entries.append((Part(CREDIT, subject, 0, amount), budget, None))
                place = {"meter": "llm_tokens", "provider": caller.provider, "model": caller.model}
                credit = CreditAsk(caller.mode, caller.customer, policy.currency, place)
        entries.sort(key=lambda each: each[0].key)
        parts = tuple(part for part, _, _ in entries)
        holding = Holding(id, caller, tuple(budget for _, budget, _ in entries), parts,
                          0 if ask.opaque else ask.size or 0, os.getpid(),
                          needs.cut([(budget, part.subject) for part, budget, _ in entries]))  # fmt: skip
        who = json.dumps({
            "customer": caller.customer, "provider": caller.provider, "model": caller.model,
            "dimensions": dict(caller.dimensions), "process": _process(),
        })  # fmt: skip
        request = Request(
            id, parts, now, now + int(self._hold_seconds * 1_000_000), credit, snapshot.generation, True, who
        )
        return holding, request, {part.key: span for part, _, span in entries if span is not None}

    def _refused(
        self, holding: Holding, verdict: Verdict, spans: Mapping[Key, Span], snapshot: Snapshot
    ) -> BudgetExceeded:
        part, budget = holding.parts[verdict.place], holding.budgets[verdict.place]
        if part.budget == CREDIT:
            customer = holding.caller.customer or ""
            policy = snapshot.policies.of(holding.caller.mode, customer)
            error = refusal.no_credit(customer, policy, part, verdict)
            self._tell_once(part.key, lambda: self._tidings.tell_depleted(holding.caller, error))
            return error
        now = self._now() // 1000
        error = refusal.no_room(budget, part.subject, part, verdict, spans[part.key], now)
        period = period_of(budget, part.key, now)
        self._tell_once((*part.key[:2], period), lambda: self._tidings.tell_exceeded(budget, part.key, period, error))
        return error

    def _tell_once(self, key: Key, chore: Callable[[], None]) -> None:
        """The outbox has it once anyway; this saves writing it for each refusal."""
        if key in self._told:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add(key)
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
        with self._lock:
            return self._rates_of(self._current()).used(
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
            self.look()
            if not self.is_idle and time.monotonic() >= self._sweep_at:
                self._sweep_at = time.monotonic() + SWEEP_SECONDS
                self._store.sweep(self._now() // 1000)
                self._desk.forget_old()
                self._tidings.tell_untold()
        except (Unreachable, TokenMeterError) as problem:
            self._stay_away()
            self._problem("budgets cannot be looked up", problem)

    def _stay_away(self) -> None:
        """The ledger did not answer: it is not asked for a while, longer each time, so that no call waits for it."""
        self._down_for = min(DOWN_SECONDS_MAX, max(DOWN_SECONDS, 2 * self._down_for))
        self._down_until = time.monotonic() + self._down_for

    def look(self) -> None:
        """See whether budgets, prices or plans have changed, and read them."""
        changes, snapshot = self._ledger.changes, self._snapshot
        if snapshot is None or self._generation() != snapshot.generation:
            self._load()
        self._changes = changes

    def _generation(self) -> tuple[int, int]:
        found = self._ledger.quickly(lambda connection: connection.execute(_GENERATION).fetchone())
        return (found[0], found[1])

    def _load(self) -> Snapshot:
        with self._lock:
            with self._ledger.reading() as (_, connection):
                snapshot = read_snapshot(connection)
            if self._snapshot is not None and snapshot.generation[1] != self._snapshot.generation[1]:
                self._rates = None
            self._snapshot = snapshot
            self._told.clear()
            return snapshot

    def _current(self) -> Snapshot:
        return self._snapshot or self._load()

    def _rates_of(self, snapshot: Snapshot) -> Rates:
        if self._rates is None:
            with self._ledger.reading() as (_, connection):
                self._rates = Rates(self._rater().events(connection))
        return self._rates

    def _mine(self, snapshot: Snapshot, *, hard_only: bool = False) -> list[Budget]:
        return [
            each for each in snapshot.in_force
            if each.mode == self._mode and not (hard_only and each.enforce == "soft")
        ]  # fmt: skip

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


_GENERATION: Final = f"SELECT budgets, catalogue FROM {state.name} WHERE id = 1"


def _may_concern(budget: Budget, given: Mapping[str, str | None], mode: str) -> bool:
    """Whether nothing that is known before the request is read speaks against it."""
    if budget.mode != mode:
        return False
    for name, wanted in budget.scope:
        if name in _LATER:
            continue
        if not meets(wanted, given.get(name)):
            return False
    return True


_LATER: Final = frozenset({"provider", "publisher", "model", "operation"})


def _told(usage: Usage, size: int) -> Observed:
    into = sum(some for name, some in usage.items() if TOKEN_TYPES[name].headline in _INPUT_LINES)
    out = sum(some for name, some in usage.items() if TOKEN_TYPES[name].headline in ("output", "cached output"))
    return Observed(into, out, size)


_INPUT_LINES: Final = frozenset({"input", "cached input", "cache write"})


def _who(caller: Caller) -> str:
    return f"customer={caller.customer}" if caller.customer else "calls without a customer"


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
