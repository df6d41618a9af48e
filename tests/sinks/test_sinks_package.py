"""What `token_meter.sinks` exports, and that asking for it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import token_meter.sinks
from token_meter.errors import Rejected, Retry
from token_meter.sinks.base import Sink

NAMES = [
    "AmberfloSink", "CallbackSink", "FilesSink", "JsonlSink", "LagoSink", "LedgerSink", "Measure", "MemorySink",
    "OpenMeterSink", "OpenTelemetrySink", "Refusal", "Rejected", "Retry", "Rule", "Sink", "StripeSink", "WebhookSink",
]  # fmt: skip


def test_the_names_are_there():
    assert [name for name in dir(token_meter.sinks) if name in NAMES] == NAMES == sorted(token_meter.sinks.__all__)
    assert (token_meter.sinks.Sink, token_meter.sinks.Retry, token_meter.sinks.Rejected) == (Sink, Retry, Rejected)
    assert isinstance(token_meter.sinks.MemorySink(), token_meter.sinks.Sink)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'NoSink'"):
        _ = token_meter.sinks.NoSink


def test_nothing_is_loaded_before_it_is_asked_for():
    program = (
        "import sys; import token_meter.sinks as sinks; names = ('callback', 'jsonl', 'ledger', 'memory'); "
        "loaded = [name for name in names if f'token_meter.sinks.{name}' in sys.modules]; "
        "sinks.JsonlSink; print(loaded, 'sqlalchemy' in sys.modules, 'token_meter.sinks.jsonl' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[] False True"
