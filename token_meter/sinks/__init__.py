"""Destinations for meter events. Each loads when first asked for, so that importing this costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from token_meter.errors import Refusal, Rejected, Retry
    from token_meter.sinks.amberflo import AmberfloSink
    from token_meter.sinks.base import Sink
    from token_meter.sinks.callback import CallbackSink
    from token_meter.sinks.files import FilesSink
    from token_meter.sinks.jsonl import JsonlSink
    from token_meter.sinks.lago import LagoSink
    from token_meter.sinks.ledger import LedgerSink
    from token_meter.sinks.mapping import Measure, Rule
    from token_meter.sinks.memory import MemorySink
    from token_meter.sinks.openmeter import OpenMeterSink
    from token_meter.sinks.opentelemetry import OpenTelemetrySink
    from token_meter.sinks.stripe import StripeSink
    from token_meter.sinks.webhook import WebhookSink

__all__ = [
    "AmberfloSink",
    "CallbackSink",
    "FilesSink",
    "JsonlSink",
    "LagoSink",
    "LedgerSink",
    "Measure",
    "MemorySink",
    "OpenMeterSink",
    "OpenTelemetrySink",
    "Refusal",
    "Rejected",
    "Retry",
    "Rule",
    "Sink",
    "StripeSink",
    "WebhookSink",
]

_MODULES = {
    "AmberfloSink": "token_meter.sinks.amberflo",
    "CallbackSink": "token_meter.sinks.callback",
    "FilesSink": "token_meter.sinks.files",
    "JsonlSink": "token_meter.sinks.jsonl",
    "LagoSink": "token_meter.sinks.lago",
    "LedgerSink": "token_meter.sinks.ledger",
    "Measure": "token_meter.sinks.mapping",
    "MemorySink": "token_meter.sinks.memory",
    "OpenMeterSink": "token_meter.sinks.openmeter",
    "OpenTelemetrySink": "token_meter.sinks.opentelemetry",
    "Refusal": "token_meter.errors",
    "Rejected": "token_meter.errors",
    "Retry": "token_meter.errors",
    "Rule": "token_meter.sinks.mapping",
    "Sink": "token_meter.sinks.base",
    "StripeSink": "token_meter.sinks.stripe",
    "WebhookSink": "token_meter.sinks.webhook",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
