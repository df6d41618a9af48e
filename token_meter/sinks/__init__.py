"""Destinations for meter events. Each loads when first asked for, so that importing this costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from token_meter.errors import Rejected, Retry
    from token_meter.sinks.base import Sink
    from token_meter.sinks.callback import CallbackSink
    from token_meter.sinks.jsonl import JsonlSink
    from token_meter.sinks.ledger import LedgerSink
    from token_meter.sinks.memory import MemorySink

__all__ = ["CallbackSink", "JsonlSink", "LedgerSink", "MemorySink", "Rejected", "Retry", "Sink"]

_MODULES = {
    "CallbackSink": "token_meter.sinks.callback",
    "JsonlSink": "token_meter.sinks.jsonl",
    "LedgerSink": "token_meter.sinks.ledger",
    "MemorySink": "token_meter.sinks.memory",
    "Rejected": "token_meter.errors",
    "Retry": "token_meter.errors",
    "Sink": "token_meter.sinks.base",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
