"""The objects as Stripe shows them, and the pages it shows them in.

Assumptions: summaries come newest first, hours and days without events have none, and a range without grouping has one
even when it is 0. `end_time` is exclusive, as two of the three places that describe it say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from token_meter.testing.backends.base import Counted
from token_meter.testing.backends.stripe.book import aggregated
from token_meter.testing.backends.stripe.errors import ApiError, missing
from token_meter.testing.backends.stripe.moments import rfc3339
from token_meter.testing.backends.stripe.params import Cancel, NewEvent, known, whole
from token_meter.testing.backends.stripe.rules import Meter

LIMIT_DEFAULT: Final = 10
LIMIT_MAX: Final = 100
GROUPING_SECONDS: Final = {"hour": 3600, "day": 86_400}
MINUTE_SECONDS: Final = 60
PAGING: Final = frozenset({"limit", "starting_after", "ending_before", "expand"})

Query = Mapping[str, list[str]]


class Span(NamedTuple):
    """What a summary is asked for: whom, from when, until when, and by steps of how many seconds."""

    customer: str
    start: int
    end: int
    step: int | None


def meter_document(meter: Meter, *, livemode: bool) -> dict[str, Any]:
    """A `billing.meter`."""
    return {
        "id": meter.id,
        "object": "billing.meter",
        "created": meter.created,
        "customer_mapping": {"event_payload_key": meter.customer_key, "type": "by_id"},
        "default_aggregation": {"formula": meter.aggregation},
        "display_name": meter.event_name,
        "event_name": meter.event_name,
        "event_time_window": None,
        "livemode": livemode,
        "status": "active" if meter.deactivated_at is None else "inactive",
        "status_transitions": {"deactivated_at": meter.deactivated_at},
        "updated": meter.deactivated_at or meter.created,
        "value_settings": {"event_payload_key": meter.value_key},
    }


def event_document(event: NewEvent, *, version: str, now: float, livemode: bool) -> dict[str, Any]:
    """A meter event, with what Stripe filled in. v1 counts in seconds, v2 writes RFC 3339."""
    at = now if event.at is None else event.at
    return {
        "object": "v2.billing.meter_event" if version == "v2" else "billing.meter_event",
        "created": rfc3339(now) if version == "v2" else int(now),
        "event_name": event.event_name,
        "identifier": event.identifier,
        "livemode": livemode,
        "payload": dict(event.payload),
        "timestamp": rfc3339(at) if version == "v2" else int(at),
    }


def adjustment_document(which: Cancel, *, new_id: str | None, now: float, livemode: bool) -> dict[str, Any]:
    """An adjustment; only v2 gives it an id. It is `pending` in the answer, and there is no way to ask again."""
    document: dict[str, Any] = {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": which.identifier},
        "event_name": which.event_name,
        "livemode": livemode,
        "status": "pending",
        "type": "cancel",
    }
    if new_id is not None:
        document |= {"object": "v2.billing.meter_event_adjustment", "id": new_id, "created": rfc3339(now)}
    return document


def session_document(session: str, *, token: str, now: float, expires_at: float, livemode: bool) -> dict[str, Any]:
    """The right to send to the stream for a while."""
    return {
        "object": "v2.billing.meter_event_session",
        "id": session,
        "authentication_token": token,
        "created": rfc3339(now),
        "expires_at": rfc3339(expires_at),
        "livemode": livemode,
    }


def span_of(query: Query) -> Span:
    """The parameters of `GET /v1/billing/meters/{id}/event_summaries`."""
    _known(query, PAGING | {"customer", "start_time", "end_time", "value_grouping_window"})
    for name in ("customer", "start_time", "end_time"):
        if not query.get(name, [""])[0]:
            raise ApiError(f"Missing required param: {name}.", code="parameter_missing", param=name)
    step = None
    if "value_grouping_window" in query:
        step = GROUPING_SECONDS.get(query["value_grouping_window"][0])
        if step is None:
            raise ApiError("Invalid value_grouping_window: must be day or hour", param="value_grouping_window")
    start, end = (_aligned(query, name, step or MINUTE_SECONDS) for name in ("start_time", "end_time"))
    if start >= end:
        raise ApiError("end_time has to be after start_time.", param="end_time")
    return Span(query["customer"][0], start, end, step)


def summaries(meter: Meter, records: Sequence[Counted], span: Span, *, livemode: bool) -> list[dict[str, Any]]:
    """What one customer used, at once or by hours or days."""
    return [
        {
            "id": _summary_id(meter, span.customer, begin, until, livemode),
            "object": "billing.meter_event_summary",
            "aggregated_value": aggregated(inside, meter.aggregation),
            "end_time": until,
            "livemode": livemode,
            "meter": meter.id,
            "start_time": begin,
        }
        for begin, until, inside in _grouped(records, span)
    ]


def with_status(meters: list[dict[str, Any]], query: Query) -> list[dict[str, Any]]:
    """The meters that `GET /v1/billing/meters` was asked for."""
    _known(query, PAGING | {"status"})
    if "status" not in query:
        return meters
    status = query["status"][0]
    if status not in ("active", "inactive"):
        raise ApiError("Invalid status: must be active or inactive", param="status")
    return [meter for meter in meters if meter["status"] == status]


def page(documents: Sequence[dict[str, Any]], query: Query, url: str) -> dict[str, Any]:
    """A list object with the part that was asked for."""
    limit = whole(query["limit"][0], "limit") if "limit" in query else LIMIT_DEFAULT
    if not 1 <= limit <= LIMIT_MAX:
        raise ApiError(f"Invalid limit: must be 1 to {LIMIT_MAX}.", param="limit")
    places = {document["id"]: place for place, document in enumerate(documents)}
    if "ending_before" in query:
        stop = _place(places, query, "ending_before")
        start = max(0, stop - limit)
        more = start > 0
    else:
        start = _place(places, query, "starting_after") + 1 if "starting_after" in query else 0
        stop = start + limit
        more = stop < len(documents)
    return {"object": "list", "data": list(documents[start:stop]), "has_more": more, "url": url}


def _place(places: Mapping[str, int], query: Query, name: str) -> int:
    cursor = query[name][0]
    if cursor not in places:
        raise missing("object", cursor, param=name)
    return places[cursor]


def _known(query: Query, names: frozenset[str]) -> None:
    known({name.partition("[")[0]: value for name, value in query.items()}, names)


def _aligned(query: Query, name: str, step: int) -> int:
    moment = whole(query[name][0], name)
    if moment % step:
        unit = {MINUTE_SECONDS: "minute", 3600: "hour", 86_400: "UTC day"}[step]
        raise ApiError(f"{name} must be aligned with {unit} boundaries.", param=name)
    return moment


def _grouped(records: Sequence[Counted], span: Span) -> Iterator[tuple[int, int, list[Counted]]]:
    inside = [each for each in records if span.start <= each.at < span.end]
    if span.step is None:
        yield span.start, span.end, inside
        return
    groups: dict[int, list[Counted]] = {}
    for each in inside:
        groups.setdefault(int(each.at) // span.step * span.step, []).append(each)
    for begin in sorted(groups, reverse=True):
        yield begin, begin + span.step, groups[begin]


def _summary_id(meter: Meter, customer: str, start: int, end: int, livemode: bool) -> str:
    digest = hashlib.blake2b(f"{meter.id} {customer} {start} {end}".encode(), digest_size=18).hexdigest()
    return f"mtrusg_{'' if livemode else 'test_'}{digest}"
