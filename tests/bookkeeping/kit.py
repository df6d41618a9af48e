"""Events of one customer in November 2026."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from token_meter.event import MeterEvent
from token_meter.usage import Usage

START = datetime(2026, 11, 10, 12, tzinfo=UTC)


def call(number, *, customer="acme", model="gpt-5", provider="openai", usage=None, operation="chat", **more):
    """The numbered call: 1,000 input and 100 output tokens of gpt-5 unless told otherwise."""
    fields = {
        "id": f"evt_{number}",
        "time": START + timedelta(minutes=number),
        "usage": usage if usage is not None else Usage(input=1000, output=100),
        "customer": customer,
        "provider": provider,
        "publisher": provider,
        "model": model,
        "operation": operation,
    }
    return MeterEvent(**{**fields, **more})


def counted(number, value, *, meter, customer="acme", **more):
    """The numbered event of a meter of one's own."""
    fields = {"id": f"evt_{number}", "time": START + timedelta(minutes=number), "usage": Usage(units=value)}
    return MeterEvent(**{**fields, "meter": meter, "customer": customer, **more})


def told(invoice):
    """The lines of an invoice: kind, title, quantity, exact amount, amount."""
    return [
        (line.kind, line.title, line.quantity, str(line.exact.normalize()), str(line.amount)) for line in invoice.lines
    ]
