"""When an event counts on a meter, and why not: one table of reasons for the answers and for the reports that follow.

Documented: the codes of the reports, those v2 answers with, 35 days and 5 minutes, 15 digits and how they are refused.
Observed by others: v1's words for a missing meter and an old timestamp. The rest of the wording, the codes of v1, v2's
code for a customer or a timestamp it does not like, and how many dimensions are too many, are assumptions.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from token_meter.testing.backends.stripe.errors import ApiError
from token_meter.testing.backends.stripe.params import NewEvent

PAST_SECONDS_MAX: Final = 35 * 86_400
FUTURE_SECONDS_MAX: Final = 5 * 60
VALUE_DIGITS_MAX: Final = 15
DIMENSIONS_MAX: Final = 10
"""Payload keys besides the customer's and the value's. The real number is not documented."""

Aggregation = Literal["sum", "count", "last"]

_WHOLE: Final = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, slots=True)
class Meter:
    """What is aggregated, and under which keys of the payload customer and value stand."""

    id: str
    event_name: str
    customer_key: str
    value_key: str
    aggregation: Aggregation
    dimension_keys: tuple[str, ...]
    created: int
    deactivated_at: int | None = None

    def customer(self, event: NewEvent) -> str:
        """Whom the event is for, once it was checked."""
        return event.payload[self.customer_key]

    def value(self, event: NewEvent) -> int:
        """How much it adds, once it was checked."""
        return 1 if self.aggregation == "count" else int(event.payload[self.value_key])

    def group(self, event: NewEvent) -> tuple[str, ...]:
        """The other values of the payload, in the order of their keys."""
        keys = (self.customer_key, self.value_key)
        return tuple(value for key, value in sorted(event.payload.items()) if key not in keys)


class Reason(NamedTuple):
    """Why an event does not count: the code of a report, and the codes that v1 and v2 answer with."""

    code: str
    v1: str | None
    v2: str


NO_METER: Final = Reason("no_meter", "resource_missing", "no_meter")
ARCHIVED: Final = Reason("archived_meter", "resource_missing", "archived_meter")
NO_CUSTOMER: Final = Reason("meter_event_no_customer_defined", None, "payload_no_customer_defined")
CUSTOMER_NOT_FOUND: Final = Reason("meter_event_customer_not_found", "resource_missing", "resource_missing")
NO_VALUE: Final = Reason("meter_event_invalid_value", None, "payload_no_value_defined")
INVALID_VALUE: Final = Reason("meter_event_invalid_value", None, "payload_invalid_value")
TOO_MANY_DIGITS: Final = Reason("meter_event_value_too_many_digits", None, "payload_invalid_value")
MISSING_DIMENSION: Final = Reason("missing_dimension_payload_keys", None, "missing_dimension_payload_keys")
TOO_MANY_DIMENSIONS: Final = Reason(
    "meter_event_dimension_count_too_high", None, "meter_event_dimension_count_too_high"
)
IN_FUTURE: Final = Reason("timestamp_in_future", None, "timestamp_in_future")
TOO_FAR_IN_PAST: Final = Reason("timestamp_too_far_in_past", None, "timestamp_too_far_in_past")


class Refusal(NamedTuple):
    """A reason, and what to say about it."""

    reason: Reason
    message: str
    param: str

    def error(self, version: str) -> ApiError:
        """The answer to who waits for it."""
        code = self.reason.v2 if version == "v2" else self.reason.v1
        return ApiError(self.message, code=code, param=self.param)


def judged(event: NewEvent, *, meter: Meter | None, customers: Container[str], now: float) -> Meter | Refusal:
    """The meter, if the event counts on it; otherwise the first reason why it does not."""
    if meter is None or meter.deactivated_at is not None:
        reason = NO_METER if meter is None else ARCHIVED
        return Refusal(reason, f'No active meter found for event name "{event.event_name}".', "event_name")
    return (
        _about_customer(event, meter, customers)
        or (None if meter.aggregation == "count" else _about_value(event, meter))
        or _about_dimensions(event, meter)
        or _about_time(event.at, now)
        or meter
    )


def _about_customer(event: NewEvent, meter: Meter, customers: Container[str]) -> Refusal | None:
    param = f"payload[{meter.customer_key}]"
    customer = event.payload.get(meter.customer_key)
    if not customer:
        return Refusal(NO_CUSTOMER, f"Customer mapping key {meter.customer_key} not found in payload.", param)
    if customer not in customers:
        return Refusal(CUSTOMER_NOT_FOUND, f"No such customer: '{customer}'", param)
    return None


def _about_value(event: NewEvent, meter: Meter) -> Refusal | None:
    param = f"payload[{meter.value_key}]"
    value = event.payload.get(meter.value_key)
    if value is None:
        return Refusal(NO_VALUE, f"Value key {meter.value_key} not found in payload.", param)
    if not _WHOLE.fullmatch(value):
        message = f"The value in the event payload must be a whole number. Received {value}."
        return Refusal(INVALID_VALUE, message, param)
    if len(value.lstrip("-").lstrip("0")) > VALUE_DIGITS_MAX:
        message = f"The value in the event payload can have at most {VALUE_DIGITS_MAX} digits. Received {value}."
        return Refusal(TOO_MANY_DIGITS, message, param)
    return None


def _about_dimensions(event: NewEvent, meter: Meter) -> Refusal | None:
    if absent := [key for key in meter.dimension_keys if not event.payload.get(key)]:
        return Refusal(MISSING_DIMENSION, f"Dimension keys not found in payload: {', '.join(absent)}.", "payload")
    if len(set(event.payload) - {meter.customer_key, meter.value_key}) > DIMENSIONS_MAX:
        return Refusal(TOO_MANY_DIMENSIONS, f"The payload has more than {DIMENSIONS_MAX} dimensions.", "payload")
    return None


def _about_time(at: float | None, now: float) -> Refusal | None:
    if at is None:
        return None
    if at > now + FUTURE_SECONDS_MAX:
        message = (
            "The event timestamp cannot be more than 5 minutes in the future. "
            f"Expected a timestamp less than or equal to {int(now + FUTURE_SECONDS_MAX)}."
        )
        return Refusal(IN_FUTURE, message, "timestamp")
    if at < now - PAST_SECONDS_MAX:
        message = (
            "The event timestamp cannot be more than 35 days in past. "
            f"Expected a timestamp greater than or equal to {int(now - PAST_SECONDS_MAX)}."
        )
        return Refusal(TOO_FAR_IN_PAST, message, "timestamp")
    return None
