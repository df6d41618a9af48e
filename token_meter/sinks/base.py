"""The sink protocol: one destination for meter events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from token_meter.event import MeterEvent


@runtime_checkable
class Sink(Protocol):
    """One destination. Any object with `send` is a sink; `name` is optional and defaults to the class name.

    `send` returns when every event of the batch is safely there. It raises `Retry(after=seconds)` when the
    destination cannot take the batch now, and `Rejected(events, reason)` for events it will never take; anything
    else it raises counts as a retry. Batches are delivered at least once, always with the same event ids: a
    destination that can deduplicate by id is exact. `close` is called, if present, when the meter closes.
    """

    def send(self, events: Sequence[MeterEvent]) -> None: ...


def sink_name(sink: Sink) -> str:
    """The name a sink's cursor and quarantine are kept under."""
    return str(getattr(sink, "name", None) or type(sink).__name__)
