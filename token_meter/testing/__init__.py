"""Public helpers for tests of applications that are metered, and of sinks by third parties.

capture             what the calls inside a block consumed, with a fake clock and sequential ids
FakeClock           one second per reading, from 2026-01-01T00:00:00Z
LoopbackProvider    a provider on this machine that speaks all three wire formats
sink_conformance    the checks every sink must pass
make_event, events  meter events: one by hand, or a hypothesis strategy
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from token_meter.testing.builders import events, make_event
from token_meter.testing.capturing import Captured, FakeClock, SequentialIds, capture

if TYPE_CHECKING:
    from token_meter.testing.conformance import SinkConformance, sink_conformance
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

_LAZY = {"LoopbackProvider": "provider", "SinkConformance": "conformance", "sink_conformance": "conformance"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
