"""What the tests of the Stripe sink share: a fake that remembers requests, and a bench with a ledger and a journal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from token_meter import Meter, Usage
from token_meter.deliver import Quarantined, quarantined, request_hurry
from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder
from token_meter.sinks import LedgerSink, StripeSink
from token_meter.sinks.stripe import TOKEN_BILLING
from token_meter.testing.backends import FakeStripe, VirtualClock
from token_meter.testing.backends.base import Fault, Request, Response
from token_meter.testing.builders import make_event

KEY = "sk_live_fake"
CUSTOMERS = {"acme": "cus_acme", "globex": "cus_globex"}
HOUR, DAY = 3_600.0, 86_400.0


class Watched(FakeStripe):
    """A fake that keeps every request."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"key": KEY, "customers": CUSTOMERS.values(), **options})
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Response:
        self.requests.append(request)
        return super().answer(request)

    def serve(self, request: Request) -> tuple[Response, Fault | None]:
        """What goes wrong goes wrong with what is sent; a script would be hard to write if it counted reads too."""
        if request.method == "GET" and not self.down:
            return self._noted(request, self._answer(request)), None
        return super().serve(request)

    def posted(self) -> list[tuple[str, str]]:
        return [(each.path, each.body.decode()) for each in self.requests if each.method == "POST"]


def token_fake(**options: Any) -> Watched:
    """One with the meter of token billing."""
    fake = Watched(**options)
    fake.add_token_billing_meter()
    return fake


def now() -> datetime:
    return datetime.now(UTC)


def event(number: int = 1, *, ago: float = 60.0, **fields: Any) -> MeterEvent:
    """An event that ended so many seconds ago."""
    return make_event(number, **{"time": now() - timedelta(seconds=ago), **fields})


class Bench:
    """A fake of Stripe on a clock of its own, one ledger and one journal, on which meters can be opened one by one."""

    def __init__(self, folder: Path, fake: Watched, **options: Any) -> None:
        self.folder = folder
        self.fake = fake
        self.options = options

    @property
    def clock(self) -> VirtualClock:
        return self.fake.clock

    def sink(self, **options: Any) -> StripeSink:
        chosen = {"base_url": self.fake.url, "now": self.clock.now, **self.options, **options}
        return StripeSink(chosen.pop("api_key", KEY), **chosen)

    @contextmanager
    def meter(self, *, ledger: bool = True, **options: Any) -> Iterator[Meter]:
        """A meter with a ledger and the sink; what cannot be delivered at its end stays in the journal."""
        sinks = [LedgerSink(self.folder / "usage.db")] if ledger else []
        meter = Meter(*sinks, self.sink(**options), journal=self.folder / "journal")
        try:
            if ledger:
                for customer, external in CUSTOMERS.items():
                    if meter.customers.get(customer) is None:
                        meter.customers.edit(customer, external_ids={"stripe": external})
            yield meter
        finally:
            meter.close(timeout=0.0)

    def hurry(self, *, sink: str = "stripe") -> None:
        request_hurry(JournalFolder(self.folder / "journal"), sink)

    def until(self, condition: Callable[[], object], *, seconds: float = 20.0) -> None:
        """Wait for it, with a delivery that does not wait out its pauses."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen: {self.quarantine()}, {self.fake.seen}"
            self.hurry()
            time.sleep(0.02)

    def deliver(self, meter: Meter, *, seconds: float = 20.0) -> None:
        """Deliver everything, as often as it takes."""
        deadline = time.monotonic() + seconds
        while not meter.flush(0.3):
            assert time.monotonic() < deadline, meter.health().deliveries
            self.hurry()

    def quarantine(self) -> list[Quarantined]:
        if not (self.folder / "journal").exists():
            return []
        return list(quarantined(self.folder / "journal", "stripe"))

    def waiting(self) -> dict[str, str]:
        """What waits in quarantine: id to reason."""
        return {each.id: each.reason or "" for each in self.quarantine() if each.state == "waiting"}

    def twice(self) -> list[str]:
        """Identifiers that are billed more than once."""
        return self.fake.counted_twice()

    def tokens(self) -> dict[str, int]:
        """What Stripe bills, by customer."""
        sums: Counter[str] = Counter()
        for each in self.fake.counted:
            sums[each.customer] += each.value
        return dict(sums)


def spend(meter: Meter, tokens: int, *, customer: str | None = "acme", **more: Any) -> MeterEvent:
    """Usage of so many input tokens."""
    return meter.record(Usage(input=tokens), **{"model": "gpt-5", "provider": "openai", "customer": customer, **more})


def billed(*values: tuple[str, int], customer: str = "cus_acme", model: str = "openai/gpt-5") -> dict[Any, int]:
    """Totals of token billing by token type."""
    return {(customer, TOKEN_BILLING, model, token_type): value for token_type, value in values}
