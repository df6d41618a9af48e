"""What the tests of billing sinks share: a ledger with customers, and a backend as plain as one can be."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from token_meter.accounts import CustomerBook
from token_meter.accounts.directory import LedgerAccounts
from token_meter.errors import Rejected
from token_meter.event import MeterEvent
from token_meter.ledger import Ledger
from token_meter.sinks.backend import BackendSink
from token_meter.sinks.http import Http
from token_meter.sinks.mapping import MODEL, Mapped, Rule, measured
from token_meter.sinks.records import Call, Record
from token_meter.testing.backends.base import Counted, FakeBackend, Request, Response
from token_meter.testing.conformance import SinkConformance

RULES = (
    Rule(key="in", meter="tokens_in", types=("input", "cache_read")),
    Rule(key="out", meter="tokens_out", types=("output", "reasoning")),
)


class Books:
    """A ledger in a folder, with the customers and events that a test puts into it."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "usage.db")
        self.customers = CustomerBook(self.ledger)
        self.accounts = LedgerAccounts(self.ledger)

    def know(self, customer: str, *, mode: Any = "live", **external: str | None) -> None:
        """Set what backends know a customer by."""
        self.customers.edit(customer, mode=mode, external_ids=external)

    def hold(self, *events: MeterEvent) -> None:
        """Record events."""
        self.ledger.record(events)

    def close(self) -> None:
        self.ledger.close()


class Plain(FakeBackend):
    """Takes {"records": [{"id", "customer", "meter", "value", ...}]}, each id once; refuses those of `refuses`.

    A request with one of them is refused as a whole, with `status`.
    """

    name = "plain"

    def __init__(self, *, refuses: Callable[[dict[str, Any]], bool] = lambda record: False, status: int = 400) -> None:
        super().__init__()
        self.refuses = refuses
        self.status = status
        self.bodies: list[list[dict[str, Any]]] = []

    def answer(self, request: Request) -> Response:
        records = json.loads(request.body)["records"]
        with self.lock:
            self.bodies.append(records)
            if any(self.refuses(record) for record in records):
                return Response.json({"error": "no"}, status=self.status)
            known = {each.identifier for each in self.counted}
            for each in records:
                if each["id"] not in known:
                    group = (each["model"],) if "model" in each else ()
                    whose = (each["id"], each["customer"], each["meter"])
                    self.counted.append(Counted(*whose, group, each["value"], each["at"], self.clock.now()))
        return Response.json({})

    @property
    def sizes(self) -> list[int]:
        """How many records each request held."""
        return [len(body) for body in self.bodies]


class PlainSink(BackendSink):
    """The least that a vendor's file writes."""

    vendor, shown, records_max = "plain", "Plain", 4

    def __init__(
        self, url: str, *, mapping: Sequence[Rule] | Mapped = RULES, customers: Any = "same", **options: Any
    ) -> None:
        if not callable(mapping):
            mapping = measured(mapping, MODEL)
        http = Http(url, what="Plain", authorise=lambda: {"Authorization": "Bearer plain-secret"})
        super().__init__(name="plain", http=http, mapping=mapping, customers=customers, **options)

    def call(self, records: Sequence[Record]) -> Call:
        documents = [
            {
                "id": each.identifier,
                "customer": each.customer,
                "meter": each.measure.meter,
                "value": each.value,
                "at": each.time.timestamp(),
                **each.measure.properties,
            }
            for each in records
        ]
        return Call("/usage", json.dumps({"records": documents}).encode(), {}, records)


def rejected(sink: Any, events: Sequence[MeterEvent]) -> dict[str, str]:
    """The reasons of what a sink refuses of these events, by id; empty if it refuses nothing."""
    try:
        sink.send(events)
    except Rejected as refused:
        assert refused.rest_taken
        return {refusal.event.id: refusal.reason for refusal in refused.refusals}
    return {}


def refusals(sink: Any, events: Sequence[MeterEvent]) -> list[Any]:
    """What a sink refuses of these events."""
    try:
        sink.send(events)
    except Rejected as refused:
        return list(refused.refusals)
    return []


def event_ids(counted: Iterable[Counted]) -> list[str]:
    """The events behind what was counted, as often as their records were counted at most."""
    times = Counter(each.identifier for each in counted)
    most: dict[str, int] = {}
    for identifier, count in times.items():
        id = identifier.rpartition(":")[0]
        most[id] = max(most.get(id, 0), count)
    return [id for id, count in most.items() for _ in range(count)]


class BackendConformance(SinkConformance):
    """The suite as far as it applies to a sink that reports sums: an event without usage reports nothing, and a
    correction needs the event that it corrects."""

    deduplicates = True

    def test_keeps_every_field(self, sink: Any) -> None:
        """What is kept of an event is told by tests of each sink's own."""


class down:
    """The backend is closed while this is open."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend

    def __enter__(self) -> None:
        self.backend.stop()

    def __exit__(self, *_: object) -> None:
        self.backend.start()


def until(said: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
