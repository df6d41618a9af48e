"""One sink's delivery: at least once, in order per segment, by one process at a time.

    read a batch -> send -> quarantine what was refused, send the rest -> move the cursor

A batch that could not be sent stays in memory and is sent again, the same events with the same ids; after a crash
it is read again from the cursor. Nothing moves the cursor past an event that is neither acknowledged nor in the
quarantine on disk. What is in quarantine leaves it only when a human releases it, also when the batch it came from
is read again; released events follow the others, and never hold them up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from token_meter.aside import Aside
from token_meter.attempts import Attempts
from token_meter.awaiting import Awaiting
from token_meter.backlog import Whereabouts
from token_meter.backoff import Backoff
from token_meter.batch import Batch, BatchLimits, BatchReader
from token_meter.cursors import Cursor, CursorReader
from token_meter.errors import JournalError, NewerSchema, Rejected, Retry
from token_meter.event import MeterEvent, format_time
from token_meter.folder import JournalFolder
from token_meter.locks import FileLock
from token_meter.patience import TryLock
from token_meter.problems import Problem, describe
from token_meter.released import Released
from token_meter.segments import SegmentIndex
from token_meter.sinks.base import Forgetful, Preparing, Sink, Waiting, sink_name
from token_meter.steps import Ahead, Steps, meanwhile, worked_off

LOCK_RETRY_SECONDS: Final = 2.0
"""How often a process looks whether the one that delivers is gone."""

AWAITED_SECONDS: Final = 5.0
"""How often a sink is asked whether what refused events wait for is there."""

RELEASED: Final = "released events"
"""What `missing` calls them, among the names of segments."""

OnError = Callable[[str, BaseException], object]
log: Final = logging.getLogger("token_meter")


class Delivery:
    """Delivers the journal to one sink while this process holds the sink's lock."""

    def __init__(
        self,
        sink: Sink,
        folder: JournalFolder,
        index: SegmentIndex,
        *,
        limits: BatchLimits,
        problem: Problem,
        fsync: Literal["always", "interval", "never"],
        on_error: OnError | None = None,
    ) -> None:
        self.name = sink_name(sink)
        self.lock_path = folder.lock(self.name)
        self.interval_seconds: float | None = getattr(sink, "interval_seconds", None)
        self.cursor = Cursor()
        self._sink = sink
        self._folder = folder
        self._index = index
        self._problem = problem
        self._on_error = on_error
        self._fsync = fsync
        self._limits = limits
        self._aside = Aside(folder.refusals(self.name), sink=self.name)
        self._released = Released(self._aside.path, problem=problem)
        self._awaiting = Awaiting(self._aside.path) if isinstance(sink, Waiting) else None
        self._attempts = _attempts_of(sink, folder.attempts / f"{self.name}.json")
        self._backoff = Backoff(folder.hurry / self.name)
        self._reader = BatchReader(index, limits=limits, problem=problem)
        self._lock = FileLock(self.lock_path)
        self._others = CursorReader(folder)
        self._batch: Batch | None = None
        self._running = TryLock()
        self._stopping = False
        self._leaving = False
        self._displaced = False
        self._moved = False
        self._volatile = False
        self._save_failed = False
        self._lock_at = float("-inf")
        self._awaited_at = float("-inf")

    # ---- what the reporter calls, from its threads or a caller's ----

    def run(self) -> None:
        """Deliver what there is now, as far as the sink takes it. Nothing while another thread is at it."""
        if not self._running.acquire():
            return
        try:
            if self._hold():
                self._drain()
                if self._moved or (self._volatile and self._fsync == "interval"):
                    self._save(durable=self._fsync != "never")
        finally:
            self._running.release()

    def hurry(self) -> None:
        """Do not wait out a backoff of our own, nor for the lock; a wait the destination asked for stands."""
        self._lock_at = self._awaited_at = float("-inf")
        if not self._backoff.asked:
            self._backoff.end()

    def stop(self) -> None:
        """Begin no further batch."""
        self._stopping = True

    def resume(self) -> None:
        """Deliver again after `stop`: a late flush."""
        self._stopping = self._leaving = False

    def finish(self) -> None:
        """After the writer sealed its segment: note that it is done; send nothing."""
        if not self._running.acquire():
            return
        try:
            if self.held:
                self._released.say()
            if self.held and self._batch is None:
                self._pass_over()
        finally:
            self._running.release()

    def release(self) -> None:
        """Give the lock back; a thread that is still sending does so when it leaves."""
        self._leaving = True
        if self._running.acquire():
            if self.held:
                self._note_attempts()
            self._lock.release()
            self._running.release()

    def leave(self) -> None:
        """The thread ends. Until `release` was called the lock is kept, for what `close` has yet to do."""
        if self._leaving:
            self.release()

    @property
    def held(self) -> bool:
        """Whether this process delivers to the sink."""
        return self._lock.held

    def current(self) -> Cursor:
        """The cursor: ours while we deliver, else what the delivering process last wrote down."""
        return self.cursor if self.held else self._others.get(self.name)

    def settled(self) -> Cursor | None:
        """The cursor if it is on disk, or can be on no disk (full); None while it is about to be written."""
        return None if self.held and self._moved and not self._save_failed else self.current()

    def missing(self, ends: Mapping[str, int]) -> list[str]:
        """The segments where something before these ends is neither acknowledged nor in quarantine.

        RELEASED is among them while released events wait, or it is not on disk that they are delivered.
        """
        cursor = self.current()
        behind = [name for name, end in ends.items() if cursor.position(name).offset < end]
        there = [name for name in behind if (self._index.folder / name).exists()]
        return [*there, RELEASED] if self._released.unfinished else there

    def keep_cursor(self) -> None:
        """Write the cursor again when someone deleted it."""
        if self.held and not self._folder.cursor(self.name).exists():
            self._moved = True

    def after_fork(self) -> None:
        """The child does not deliver until it gets the lock itself."""
        self._lock.after_fork()
        self._released.after_fork()
        if self._awaiting is not None:
            self._awaiting.after_fork()
        if self._attempts is not None:
            self._attempts.forget()
        self._running = TryLock()
        self._batch, self._moved, self._displaced = None, False, False
        self._lock_at = float("-inf")
        self._backoff.end()

    # ---- holding the lock ----

    def _hold(self) -> bool:
        try:
            if self._lock.lost():
                self._lock.release()
                self._displaced = True
            return self.held or self._acquire()
        except (OSError, NewerSchema) as error:
            self._lock.release()
            self._problem(f"sink {self.name}: cannot deliver", error)
            return False

    def _acquire(self) -> bool:
        if time.monotonic() < self._lock_at:
            return False
        self._lock_at = time.monotonic() + LOCK_RETRY_SECONDS
        if not self._lock.acquire():
            return False
        path = self._folder.cursor(self.name)
        displaced, self._displaced = self._displaced, False
        if displaced and not path.exists():
            # The whole folder was deleted under us; what we know is more than what is left of it.
            self._moved = True
            return True
        self.cursor = Cursor.load(path)
        # What an older version could not read may be readable now.
        self.cursor.blocked.clear()
        self._batch, self._moved = None, False
        if self._attempts is not None:
            self._attempts.forget()
            if not self.cursor.has_moved:
                # The cursor is new, or was lost. The sink may have had the events all the same.
                with suppress(JournalError):  # raised again when the first batch begins
                    self._attempts.distrust()
        self._aside.begin(self.cursor)
        return True

    # ---- delivering ----

    def _drain(self) -> None:
        self._released.say()
        self._heed_hurry()
        self._release_awaited()
        ahead: Ahead[Batch | None] | None = None
        planned = False
        try:
            while self._may_go_on():
                if not planned:
                    self._reader.plan(self.cursor)
                    planned = True
                if self._batch is None:
                    self._batch = ahead.finish() if ahead is not None else worked_off(self._reading())
                if self._batch is None:
                    self._drain_released()
                    return
                ahead = Ahead(self._reading_ahead(self._batch))
                with meanwhile(ahead.step):
                    delivered = self._deliver(self._batch)
                if not delivered:
                    return
                self._batch = None
        finally:
            if ahead is not None:
                ahead.drop()

    def _drain_released(self) -> None:
        """What a human put back. A batch that fails is not held, so that it comes after what is new by then."""
        while self._may_go_on():
            batch = self._released.next(self._limits)
            if not batch.events or not self._deliver(batch):
                return

    def _release_awaited(self) -> None:
        """Put refused events back into delivery when what they wait for is there."""
        if self._awaiting is None or time.monotonic() < self._awaited_at:
            return
        self._awaited_at = time.monotonic() + AWAITED_SECONDS
        try:
            assert isinstance(self._sink, Waiting)
            self._awaiting.release(self._sink.ready)
        except Exception as error:  # noqa: BLE001 - told; the next turn asks again
            self._problem(f"sink {self.name}: look for what refused events wait for", error)

    def _heed_hurry(self) -> None:
        """Somebody asked us not to wait (`backoff.request_hurry`): not even as long as the destination wanted."""
        if self._backoff.was_hurried():
            self._awaited_at = float("-inf")
            self._backoff.end()

    def _may_go_on(self) -> bool:
        return not self._stopping and self._backoff.over

    def _reading(self, after: Batch | None = None) -> Steps[Batch | None]:
        """The next batch, without what went into quarantine when it was read before, in a process that is gone."""
        batch = yield from self._reader.reading(self.cursor, after=after)
        if batch is not None:
            self._aside.leave_out(batch)
        return batch

    def _reading_ahead(self, after: Batch) -> Steps[Batch | None]:
        """The batch after this one, prepared by a sink that can do that."""
        batch = yield from self._reading(after)
        if batch is not None and batch.events and isinstance(self._sink, Preparing):
            # Whatever is wrong, `send` finds it again, where it has its consequences.
            with suppress(Exception):
                batch.prepared = yield from self._sink.prepare(batch.unsent)
        return batch

    def _deliver(self, batch: Batch) -> bool:
        """Send a batch; True when it is behind us."""
        try:
            self._aside.unreadable(batch, self.cursor)
            sent = self._send(batch)
        except Retry as retry:
            self._postpone(retry, after=retry.after)
        except Exception as error:  # noqa: BLE001 - whatever a sink raises, its events are sent again
            self._postpone(error, after=None)
        else:
            self._acknowledge(batch, sent)
            return True
        return False

    def _send(self, batch: Batch) -> int:
        while batch.events:
            try:
                self._hand_over(batch)
            except Rejected as rejected:
                if not self._set_aside(batch, rejected):
                    raise
                if rejected.rest_taken:
                    break
            else:
                break
        return len(batch.events)

    def _hand_over(self, batch: Batch) -> None:
        """Send what is to be sent, of what was tried long ago only what is not there."""
        if self._attempts is not None:
            durable = self._fsync == "always"
            doubtful = self._attempts.begin(batch.unsent, durable=durable)
            if doubtful:
                self._ask(batch, doubtful, durable=durable)
        prepared, batch.prepared = batch.prepared, None
        if to_send := batch.unsent:
            self._sink.send(prepared if prepared is not None and not batch.parts else to_send)

    def _ask(self, batch: Batch, doubtful: Mapping[str, float], *, durable: bool) -> None:
        assert self._attempts is not None and isinstance(self._sink, Forgetful)
        self._attempts.unsure = set()  # what is said now is the answer
        asked: dict[str, MeterEvent] = {}
        for event in batch.unsent:
            if event.id in doubtful and (event.usage or event.corrects):
                asked.setdefault(event.id, event)
        whereabouts = Whereabouts(
            self._folder,
            self._index,
            self.name,
            self.cursor,
            batch={event.id for event in batch.events},
            tried=doubtful,
            unanswered=self._attempts.unanswered(),
            distrusted_until=self._attempts.distrusted_until,
        )
        missing = {event.id: event for event in self._sink.uncounted(list(asked.values()), unsent=whereabouts)}
        # Of one that is there in part the rest goes out now, but the whole would by a process that begins after this.
        self._attempts.renew((id for id, event in missing.items() if event is asked[id]), durable=durable)
        for event in batch.events:
            # An event that was entered twice under one id stands here twice: it is sent once, if at all.
            if event.id in asked and (event.usage or event.corrects):
                batch.parts[id(event)] = missing.pop(event.id, None)

    def _set_aside(self, batch: Batch, rejected: Rejected) -> bool:
        """Quarantine the refused events of this batch; False when it named none (then it is an error like others)."""
        ids = self._aside.refused(batch, rejected, self.cursor)
        if ids and self._attempts is not None:
            # What a human releases goes out as if for the first time, also by a process that begins only then; unless
            # it may be there from an attempt before, which nobody answered.
            self._attempts.done(ids - self._attempts.unsure)
            self._note_attempts()
        return bool(ids)

    def _acknowledge(self, batch: Batch, sent: int) -> None:
        self.cursor.segments.update(batch.positions)
        self._moved = True
        if batch.released:
            self._released.took(batch.released)
        if self._aside.end:
            self.cursor.quarantine_bytes = self._aside.end
        if self._attempts is not None:
            self._attempts.done(event.id for event in batch.events)
        if not sent:
            return
        self.cursor.sent += sent
        self.cursor.error, self.cursor.failures, self.cursor.retry_at = None, 0, None
        self._backoff.end()
        self._save(durable=self._fsync == "always")

    def _postpone(self, error: BaseException, *, after: float | None) -> None:
        cursor = self.cursor
        cursor.failures += 1
        delay = self._backoff.begin(cursor.failures, after=after)
        cursor.error = describe(error)
        cursor.retry_at = format_time(datetime.now(UTC) + timedelta(seconds=delay))
        self._problem(f"sink {self.name}", error)
        self._tell(error)
        self._save(durable=False)

    def _tell(self, error: BaseException) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(f"sink {self.name}", error)
        except Exception as failure:  # noqa: BLE001 - the user's own code
            self._problem("on_error", failure)

    def _save(self, *, durable: bool) -> None:
        try:
            self.cursor.save(self._folder.cursor(self.name), durable=durable)
        except OSError as error:
            # Delivered all the same: at worst the events are sent once more after a crash, with the same ids.
            self._save_failed = self._moved = True
            self._problem(f"sink {self.name}: cursor", error)
        else:
            self._save_failed = self._moved = False
            self._volatile = not durable

    def _note_attempts(self) -> None:
        try:
            if self._attempts is not None:
                self._attempts.write()
        except (OSError, JournalError, NewerSchema) as error:
            self._problem(f"sink {self.name}: attempts", error)

    def _pass_over(self) -> None:
        self._reader.plan(self.cursor)
        batch = self._reader.next(self.cursor)
        if batch is not None and not batch.events and not batch.unreadable:
            self.cursor.segments.update(batch.positions)
            self._save(durable=self._fsync != "never")


def _attempts_of(sink: Sink, path: Path) -> Attempts | None:
    if not isinstance(sink, Forgetful):
        return None
    return Attempts(path, remembers_seconds=sink.remembers_seconds, now=sink.now)
