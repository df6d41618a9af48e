"""What Stripe does not take: in its words, with what to do about it, and with what it waits for if a sink can tell."""

from __future__ import annotations

import shlex
from typing import Final

from token_meter.sinks import stripe_wire as wire
from token_meter.sinks.recording import CUSTOMER_KEY
from token_meter.sinks.records import Record, Refused

METER_KEY: Final = "meter"
"""What a refusal awaits that goes out when a meter is active."""
CHANGE_KEY: Final = f"{CUSTOMER_KEY}-changes"
"""The same when a customer has another id at Stripe than the one that Stripe does not know."""

TOO_OLD: Final = (
    "it is older than 35 days, which is as far back as Stripe takes usage: charge it in another way (an invoice item), "
    "then discard it here"
)


def refused(record: Record, *, code: str, message: str, registered: bool) -> Refused:
    """A refusal by the code and message of Stripe's error. `registered`: the customer's id stands in the ledger."""
    said = f"{code} {message}"
    message = message.rstrip(".")
    meter, customer = record.measure.meter, record.event.customer
    if wire.METER.search(said):
        reason = f"Stripe: {message}. It is sent when there is an active meter with the event name {meter}"
        return Refused(record, reason, f"{METER_KEY}:{meter}")
    if wire.CUSTOMER.search(said) and registered and customer is not None and record.reverses is None:
        reason = (
            f"Stripe: {message}. It is sent when {customer!r} has another id: `token-meter customers set "
            f"{shlex.quote(customer)} --external stripe=ID`"
        )
        return Refused(record, reason, f"{CHANGE_KEY}:{record.customer}:{customer}")
    return Refused(record, f"Stripe: {message}")
