"""Fake billing backends on this machine, as strict as the real ones are documented to be.

FakeStripe, FakeLago, FakeAmberflo, FakeOpenMeter, WebhookReceiver   context managers with a `url`
Chaos                                                                what goes wrong, and how often
VirtualClock                                                         the backend's time, to be moved by tests

`python -m token_meter.testing.backends stripe --port 4010` serves one for any program.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from token_meter.testing.backends.base import Chaos, Counted, FakeBackend, VirtualClock

if TYPE_CHECKING:
    from token_meter.testing.backends.amberflo import FakeAmberflo
    from token_meter.testing.backends.lago import FakeLago
    from token_meter.testing.backends.openmeter import FakeOpenMeter
    from token_meter.testing.backends.stripe import FakeStripe
    from token_meter.testing.backends.webhook import WebhookReceiver

__all__ = [
    "Chaos",
    "Counted",
    "FakeAmberflo",
    "FakeBackend",
    "FakeLago",
    "FakeOpenMeter",
    "FakeStripe",
    "VirtualClock",
    "WebhookReceiver",
]

_LAZY = {
    "FakeAmberflo": "amberflo",
    "FakeLago": "lago",
    "FakeOpenMeter": "openmeter",
    "FakeStripe": "stripe",
    "WebhookReceiver": "webhook",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
