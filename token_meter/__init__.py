"""Meter every LLM call once, exactly, durably, to the right customer.

>>> import openai
>>> from token_meter import Meter
>>> meter = Meter("usage.db")
>>> client = meter.wrap(openai.OpenAI())
>>> with meter.customer("acme", feature="chat") as tally:
...     client.responses.create(model="gpt-5", input="Hello")
>>> print(tally.usage)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from token_meter.context import Tally
from token_meter.customer import CustomerScope
from token_meter.errors import (
    BudgetExceeded,
    InvalidCustomer,
    InvalidEvent,
    JournalError,
    MeteringUnavailable,
    MissingExtra,
    NewerSchema,
    NoLedger,
    Rejected,
    Retry,
    SinkError,
    TokenMeterError,
    UnsupportedClient,
)
from token_meter.meter import Meter
from token_meter.usage import HEADLINES, TOKEN_TYPES, TokenType, Usage

if TYPE_CHECKING:
    from token_meter.accounts.customer import Customer
    from token_meter.event import MeterEvent

__version__ = "0.1.0"

__all__ = [
    "HEADLINES",
    "TOKEN_TYPES",
    "BudgetExceeded",
    "Customer",
    "CustomerScope",
    "InvalidCustomer",
    "InvalidEvent",
    "JournalError",
    "Meter",
    "MeterEvent",
    "MeteringUnavailable",
    "MissingExtra",
    "NewerSchema",
    "NoLedger",
    "Rejected",
    "Retry",
    "SinkError",
    "Tally",
    "TokenMeterError",
    "TokenType",
    "UnsupportedClient",
    "Usage",
]


def __getattr__(name: str) -> Any:
    """These classes are loaded when they are first asked for: the hot path does without them."""
    if name == "Customer":
        from token_meter.accounts.customer import Customer

        return Customer
    if name == "MeterEvent":
        from token_meter.event import MeterEvent

        return MeterEvent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
