"""The doctor's facts in the Prometheus text format, for a scraper that runs the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from token_meter.cli.facts import Facts

_PER_SINK: Final = (
    ("delivered_events_total", "counter", "Events a sink acknowledged.", "delivered"),
    ("backlog_events", "gauge", "Events a sink has not acknowledged.", "backlog_events"),
    ("backlog_bytes", "gauge", "Journal bytes a sink has not acknowledged.", "backlog_bytes"),
    ("oldest_event_age_seconds", "gauge", "Age of the oldest event a sink waits for.", "oldest_age_seconds"),
    ("quarantined_events", "gauge", "Events a sink refused and nobody has decided about.", "quarantined"),
)


def metrics(facts: Facts, *, wrong: int) -> str:
    """Metrics named as those of a running meter where they mean the same; `wrong` is how many checks need a human."""
    needing = _family("checks_needing_a_human", "gauge", "Checks of the doctor that need a human.", {"": wrong})
    return "".join(f"{line}\n" for line in (*needing, *_lines(facts)))


def _lines(facts: Facts) -> Iterator[str]:
    yield from _family("up", "gauge", "Whether the ledger can be read.", {"": int(facts.ledger is not None)})
    if facts.ledger is not None:
        summary = facts.ledger.summary
        by_status = {_label("status", name): number for name, number in summary.by_status.items()}
        yield from _family("ledger_events_total", "counter", "Events in the ledger.", by_status)
        plain = (
            ("ledger_unattributed_events_total", "Events without a customer.", summary.unattributed),
            ("ledger_anomalous_events_total", "Events with an anomaly.", summary.with_anomalies),
            ("ledger_conflicts_total", "Events not counted because their id was taken.", summary.conflicts),
        )
        for name, text, value in plain:
            yield from _family(name, "counter", text, {"": value})
        last = summary.last.timestamp() if summary.last else 0
        yield from _family("ledger_last_event_timestamp_seconds", "gauge", "When the last event was.", {"": last})
    if facts.journal is not None:
        for name, kind, text, attribute in _PER_SINK:
            values = {_label("sink", each.name): getattr(each, attribute) or 0 for each in facts.journal.deliveries}
            yield from _family(name, kind, text, values)
        failures = {_label("kind", str(each["what"])): each.get("count", 1) for each in facts.journal.problems}
        yield from _family("problems_total", "counter", "Internal failures by kind.", failures)
        yield from _family("journal_bytes", "gauge", "Size of the journal.", {"": facts.journal.bytes})
        yield from _family("journal_segments", "gauge", "Segments of the journal.", {"": facts.journal.segments})
    if facts.disk is not None:
        yield from _family("journal_free_bytes", "gauge", "Room on the journal's disk.", {"": facts.disk.free_bytes})


def _family(name: str, kind: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP token_meter_{name} {text}"
    yield f"# TYPE token_meter_{name} {kind}"
    for label, value in values.items():
        yield f"token_meter_{name}{label} {value}"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{name}="{escaped}"}}'
