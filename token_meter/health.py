"""The state of a meter for humans and monitors: what works, what waits, what needs attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from token_meter.backlog import DeliveryState
from token_meter.event import format_time

if TYPE_CHECKING:
    from token_meter.journal import Journal
    from token_meter.reporter import Reporter


@dataclass(frozen=True, slots=True)
class Health:
    """`ok` is false when a human should look; `warnings` say at what, one sentence each.

    Counters are of this process since it started: events, unattributed, partial, estimated, unmetered, deferred
    (background responses whose usage comes with a later read), anomalies, problems (internal failures). `pending`
    lines wait in memory because the journal cannot be written; `lost` ones did not fit there any more.
    """

    journal: str | None
    deliveries: tuple[DeliveryState, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    lost: int = 0
    journal_bytes: int = 0
    segments: int = 0
    invalid_lines: int = 0
    problems: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing needs a human."""
        return not self.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """What needs a human, most urgent first."""
        return tuple(_warnings(self))

    def to_json(self) -> dict[str, Any]:
        """The whole state as plain JSON."""
        document = {**asdict(self), "ok": self.ok, "warnings": list(self.warnings)}
        for delivery in document["deliveries"]:
            delivery["retry_at"] = None if delivery["retry_at"] is None else format_time(delivery["retry_at"])
        return document

    def prometheus(self) -> str:
        """The state in the Prometheus text format (version 0.0.4)."""
        return "".join(f"{line}\n" for line in _prometheus(self))


STALE_SECONDS: Final = 300.0
"""A sink whose oldest event has waited longer than this needs attention."""


def _warnings(health: Health) -> Iterator[str]:
    if health.lost:
        yield f"{health.lost} journal lines were lost: the journal could not be written and memory was full"
    if health.pending:
        yield f"{health.pending} journal lines wait in memory: the journal folder cannot be written"
    for delivery in health.deliveries:
        if delivery.oldest_age_seconds is not None and delivery.oldest_age_seconds > STALE_SECONDS:
            yield (
                f"sink {delivery.name}: {delivery.backlog_events} events wait, the oldest for "
                f"{delivery.oldest_age_seconds:.0f} s ({delivery.last_error or 'no error seen'})"
            )
        for segment, reason in delivery.blocked.items():
            yield f"sink {delivery.name}: segment {segment} waits ({reason})"
        if delivery.quarantined:
            yield f"sink {delivery.name}: refused events in quarantine: {delivery.quarantined}"
    if health.counters.get("unmetered"):
        yield f"calls that the provider may have billed without known usage: {health.counters['unmetered']}"
    if health.counters.get("unattributed"):
        yield f"events without a customer: {health.counters['unattributed']}"
    if health.invalid_lines:
        yield f"unreadable lines in the journal: {health.invalid_lines}"
    yield from health.flags
    attempts = {f"sink {delivery.name}" for delivery in health.deliveries}
    for kind, count in health.problems.items():
        what = f"failed attempts of {kind}" if kind in attempts else f"internal failure {kind}"
        yield f"{what}: {count}"


def _prometheus(health: Health) -> Iterator[str]:
    per_sink = (
        ("delivered_events_total", "counter", "Events a sink acknowledged.", "delivered"),
        ("backlog_events", "gauge", "Events a sink has not acknowledged.", "backlog_events"),
        ("backlog_bytes", "gauge", "Journal bytes a sink has not acknowledged.", "backlog_bytes"),
        ("oldest_event_age_seconds", "gauge", "Age of the oldest event a sink waits for.", "oldest_age_seconds"),
        ("quarantined_events", "gauge", "Events a sink refused and nobody has decided about.", "quarantined"),
    )
    for name, kind, text, attribute in per_sink:
        yield f"# HELP token_meter_{name} {text}"
        yield f"# TYPE token_meter_{name} {kind}"
        for delivery in health.deliveries:
            yield f'token_meter_{name}{{sink="{_escaped(delivery.name)}"}} {getattr(delivery, attribute) or 0}'
    yield "# HELP token_meter_events_total Events this process recorded, by what is notable about them."
    yield "# TYPE token_meter_events_total counter"
    for counter in ("events", "unattributed", "partial", "estimated", "unmetered", "anomalies"):
        yield f'token_meter_events_total{{kind="{counter}"}} {health.counters.get(counter, 0)}'
    yield "# HELP token_meter_problems_total Internal failures by kind."
    yield "# TYPE token_meter_problems_total counter"
    for kind, count in health.problems.items():
        yield f'token_meter_problems_total{{kind="{_escaped(kind)}"}} {count}'
    plain = (
        ("journal_pending_lines", "Lines that wait in memory.", health.pending),
        ("journal_lost_lines", "Lines that were lost.", health.lost),
        ("journal_bytes", "Size of the journal.", health.journal_bytes),
        ("journal_segments", "Segments of the journal.", health.segments),
        ("journal_invalid_lines", "Unreadable lines nobody has decided about.", health.invalid_lines),
    )
    for name, text, value in plain:
        yield f"# HELP token_meter_{name} {text}"
        yield f"# TYPE token_meter_{name} gauge"
        yield f"token_meter_{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def health_of(journal: Journal | None, reporter: Reporter | None, counters: Mapping[str, int]) -> Health:
    """The health of a running meter (a disabled one has neither journal nor reporter)."""
    if journal is None or reporter is None:
        return Health(journal=None, counters=dict(counters))
    state = journal.state()
    deliveries = tuple(reporter.deliveries())
    size, segments = reporter.size()
    flags = ("the journal is larger than its limit because a sink does not take its events",)
    return Health(
        journal=str(state.path),
        deliveries=deliveries,
        counters=dict(counters),
        pending=state.pending,
        lost=state.lost,
        journal_bytes=size,
        segments=segments,
        invalid_lines=max((delivery.invalid for delivery in deliveries), default=0),
        problems=dict(state.problems),
        flags=flags if reporter.over_limit else (),
    )
