"""Public helpers for tests of applications that are metered, and of sinks by third parties.

capture             what the calls inside a block consumed, with a fake clock and sequential ids
FakeClock           one second per reading, from 2026-01-01T00:00:00Z
LoopbackProvider    a provider on this machine that speaks all three wire formats
sink_conformance    the checks every sink must pass
make_event, events  meter events: one by hand, or a hypothesis strategy
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from token_meter.testing.capture import Captured, FakeClock, SequentialIds, capture
    from token_meter.testing.conformance import SinkConformance, sink_conformance
    from token_meter.testing.events import events, make_event
    from token_meter.testing.provider import LoopbackProvider

__all__ = [
    "Captured",
    "FakeClock",
    "LoopbackProvider",
    "SequentialIds",
    "SinkConformance",
    "capture",
    "events",
    "make_event",
    "sink_conformance",
]

_HOMES = {
    "Captured": "capture",
    "FakeClock": "capture",
    "LoopbackProvider": "provider",
    "SequentialIds": "capture",
    "SinkConformance": "conformance",
    "capture": "capture",
    "events": "events",
    "make_event": "events",
    "sink_conformance": "conformance",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    # A submodule of the same name is set on this package by the import above: the object wins.
    globals()[name] = found
    return found
