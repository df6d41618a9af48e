"""What a running Meter tells: notices to its callbacks and webhooks, and notices of its own about sinks that fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from token_meter.backlog import DeliveryState
    from token_meter.health import Health
    from token_meter.ledger import Ledger
    from token_meter.notices.herald import Callback, Herald

LOOK_SECONDS: Final = 10.0
"""So often the ledger is asked for endpoints, and the deliveries are looked at."""

FAILING_SECONDS: Final = 300.0
"""A sink whose oldest event has waited so long fails."""

FAILING: Final = "sink.failing"
QUARANTINED: Final = "events.quarantined"
_ENDPOINTS: Final = "SELECT 1 FROM token_meter_endpoints WHERE disabled IS NULL LIMIT 1"


class Telling:
    """Looks after the notices of one Meter, in the reporter's thread; callbacks and webhooks have one of their own."""

    def __init__(
        self, ledger: Ledger, health: Callable[[], Health], *, problem: Callable[[str, BaseException], None], mode: str
    ) -> None:
        self._ledger = ledger
        self._health = health
        self._problem = problem
        self._mode = mode
        self._herald: Herald | None = None
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._told: dict[tuple[str, str], Any] = {}

    def listen(self, callback: Callback, kinds: Sequence[str]) -> None:
        """Call this with each new notice of these kinds."""
        self._made().listen(callback, kinds)

    def tend(self) -> None:
        """Now and then: see whether there are endpoints, and write down which sinks fail."""
        if time.monotonic() < self._look_at:
            return
        if self._herald is not None:
            self._herald.tend()
        self._look_at = time.monotonic() + LOOK_SECONDS
        if self._ledger.file is not None and not self._ledger.file.exists():
            return
        from token_meter.errors import TokenMeterError

        try:
            if self._ledger.quickly(lambda connection: connection.execute(_ENDPOINTS).fetchone()) is not None:
                self._made().post()
            self._note_deliveries(self._health())
        except TokenMeterError as error:
            self._problem("notices", error)

    def close(self, timeout: float) -> None:
        """Tell what is new, then stop."""
        if self._herald is not None:
            self._herald.close(timeout)

    def _made(self) -> Herald:
        if self._herald is None:
            from token_meter.notices.herald import Herald

            self._herald = Herald(self._ledger, problem=self._problem)
        return self._herald

    def _note_deliveries(self, health: Health) -> None:
        """Each trouble is told once a day, as long as it lasts."""
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        for each in health.deliveries:
            failing = each.oldest_age_seconds is not None and each.oldest_age_seconds > FAILING_SECONDS
            if failing:
                self._note(FAILING, each, day, {
                    "backlog_events": each.backlog_events, "oldest_age_seconds": int(each.oldest_age_seconds or 0),
                    "last_error": each.last_error,
                    "what_now": "nothing is lost: events wait in the journal. See `token-meter doctor`",
                })  # fmt: skip
            if each.quarantined:
                # Again when there are ten times as many, and not for each of them.
                self._note(QUARANTINED, each, f"{day}|{len(str(each.quarantined))}", {
                    "quarantined": each.quarantined,
                    "what_now": "refused events wait for a decision: `token-meter deliver quarantine list`",
                })  # fmt: skip

    def _note(self, kind: str, delivery: DeliveryState, occasion: str, document: dict[str, Any]) -> None:
        if self._told.get((kind, delivery.name)) == occasion:
            return
        from token_meter.bookkeeping.notice_rows import write_notice

        with self._ledger.writing() as (store, connection):
            write_notice(
                store, connection, kind, f"{kind}|{self._health().journal}|{delivery.name}|{occasion}",
                {"sink": delivery.name, "journal": self._health().journal, **document}, mode=self._mode,
            )  # fmt: skip
        self._told[kind, delivery.name] = occasion
