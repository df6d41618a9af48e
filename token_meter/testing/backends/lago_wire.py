"""What stands in Lago's requests and responses: casts as Rails and PostgreSQL do them, rows as Lago writes them."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Final, NamedTuple

from token_meter.testing.backends.base import Request, Response
from token_meter.testing.backends.values import number, read_json, write_json

JSON: Final = {"Content-Type": "application/json"}
PER_PAGE: Final = 100
"""Rows of a page, unless the client asks for another number; Lago has no upper limit."""
CENTS_SCALE: Final = Decimal(1).scaleb(-15)
"""Lago keeps `precise_total_amount_cents` as decimal(40, 15)."""
CENTS_CONTEXT: Final = Context(prec=40)
YEAR_1: Final = -62_135_596_800
YEAR_10000: Final = 253_402_300_800
TIMESTAMP_MAX: Final = 9_224_318_016_000
"""Seconds until the year 294277, where PostgreSQL's timestamps end."""
UNITS: Final = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
"""What PostgreSQL sums of a text property; `1e3`, `+5` and `.5` are not of it."""


class Kept(NamedTuple):
    """One event as Lago stores it. `counted` is its place among what is billed, -1 if it is not."""

    transaction_id: str
    subscription: str | None
    code: str
    at: Decimal
    properties: str
    cents: Decimal | None
    created: float
    counted: int


class Window:
    """So many requests a second, by the seconds of the clock; None is without limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._second = 0
        self._used = 0

    def admit(self, now: float) -> bool:
        """Whether one more fits."""
        if int(now) != self._second:
            self._second, self._used = int(now), 0
        self._used += 1
        return self.limit is None or self._used <= self.limit

    def headers(self) -> dict[str, str]:
        """What every response tells, if there is a limit."""
        if self.limit is None:
            return {}
        left = max(0, self.limit - self._used)
        return {"X-RateLimit-Limit": str(self.limit), "X-RateLimit-Remaining": str(left), "X-RateLimit-Reset": "1"}


def read_body(request: Request) -> Mapping[str, Any]:
    """What Rails takes as parameters: nothing, unless the body says that it is JSON. Raises ValueError if it is not."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return {}
    document = read_json(request.body or b"{}")
    return document if isinstance(document, dict) else {}


def read_text(value: object) -> str | None:
    """A scalar as a string column takes it; anything else is not let through."""
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value) if isinstance(value, (str, int, Decimal)) else None


def read_timestamp(value: object, now: Decimal) -> Decimal | None:
    """Seconds since 1970, as number or text; now if none are given; None if they cannot be read."""
    if value is None or value is False or isinstance(value, (dict, list)):
        return now
    at = number(value.strip() if isinstance(value, str) else value)
    return at if at is not None and YEAR_1 <= at < TIMESTAMP_MAX else None


def read_cents(value: object) -> Decimal | None:
    """As ActiveRecord casts: a text that is no number becomes 0."""
    if value is None or value == "" or isinstance(value, (dict, list)):
        return None
    return (number(value) or Decimal()).quantize(CENTS_SCALE, context=CENTS_CONTEXT)


def read_units(value: object) -> Decimal | None:
    """What is summed of a property: a JSON number, or a text of plain digits."""
    return None if isinstance(value, str) and not UNITS.fullmatch(value) else number(value)


def read_moment(text: str) -> Decimal | None:
    """ISO 8601, a date alone included, as seconds since 1970."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return Decimal(int(aware.replace(microsecond=0).timestamp())) + Decimal(aware.microsecond).scaleb(-6)


def month(moment: datetime) -> tuple[int, int]:
    """Start of this month and of the next, in UTC."""
    start = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return int(start.timestamp()), int(following.timestamp())


def refusal(status: int, error: str, *, code: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """How Lago refuses."""
    document = {"status": status, "error": error, **({"code": code} if code else {})}
    return Response.json(document, status=status, headers=headers)


def invalid(details: Mapping[str, Any]) -> Response:
    """How Lago says which field, or which event by its index, is wrong."""
    document = {"status": 422, "error": "Unprocessable Entity", "code": "validation_errors", "error_details": details}
    return Response.json(document, status=422)


def milliseconds(at: Decimal) -> int:
    """What ClickHouse and the rows keep of a time."""
    return int((at * 1000).to_integral_value(ROUND_FLOOR))


def iso(seconds: int) -> str:
    """ISO 8601 in UTC. Years past 9999 occur: whoever sends milliseconds gets the year 58000."""
    return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z".format(*time.gmtime(seconds)[:6])


def event_row(index: int, event: Kept) -> str:
    """An event as the API gives it back, in JSON: its properties are text already."""
    millis = milliseconds(event.at)
    row = {
        "lago_id": f"00000000-0000-0000-0000-{index + 1:012x}",
        "transaction_id": event.transaction_id,
        "lago_customer_id": None,
        "code": event.code,
        "timestamp": f"{iso(millis // 1000)[:-1]}.{millis % 1000:03}Z",
        "precise_total_amount_cents": None if event.cents is None else _plain(event.cents),
        "lago_subscription_id": None,
        "external_subscription_id": event.subscription,
        "created_at": iso(int(event.created)),
    }
    return f'{write_json(row)[:-1]},"properties":{event.properties}}}'


def event_answer(row: str) -> Response:
    """One event."""
    return Response(body=f'{{"event":{row}}}'.encode(), headers=JSON)


def events_answer(rows: Iterable[str], meta: Mapping[str, int | None] | None = None) -> Response:
    """Several events; a page of them says where it stands."""
    rest = "" if meta is None else f',"meta":{write_json(meta)}'
    return Response(body=f'{{"events":[{",".join(rows)}]{rest}}}'.encode(), headers=JSON)


def _plain(amount: Decimal) -> str:
    """A BigDecimal as Rails writes it: plain digits, at least one after the point."""
    integer, _, fraction = f"{amount:f}".partition(".")
    return f"{integer}.{fraction.rstrip('0') or '0'}"


def metric_row(code: str, field: str) -> dict[str, Any]:
    """A billable metric that sums one property."""
    return {
        "lago_id": str(uuid.uuid5(uuid.NAMESPACE_OID, code)),
        "name": code,
        "code": code,
        "description": None,
        "aggregation_type": "sum_agg",
        "recurring": False,
        "field_name": field,
        "filters": [],
    }


def charge_row(code: str, units: int, events: int) -> dict[str, Any]:
    """What current usage says of one metric. Money is not computed here: the amounts are 0."""
    metric = metric_row(code, "")
    return {
        "units": f"{units}.0",
        "total_aggregated_units": f"{units}.0",
        "events_count": events,
        "amount_cents": 0,
        "amount_currency": "USD",
        "charge": {"lago_id": str(uuid.uuid5(uuid.NAMESPACE_URL, code)), "code": code, "charge_model": "standard"},
        "billable_metric": {name: metric[name] for name in ("lago_id", "name", "code", "aggregation_type")},
        "filters": [],
        "grouped_usage": [],
    }


def page_of(found: Sequence[int], wanted: Mapping[str, str]) -> tuple[Sequence[int], dict[str, int | None]]:
    """The rows of one page, and where it stands."""
    page = max(1, _count(wanted.get("page"), 1))
    size = max(1, _count(wanted.get("per_page"), PER_PAGE))
    pages = -(-len(found) // size)
    meta = {
        "current_page": page if found else 0,
        "next_page": page + 1 if page < pages else None,
        "prev_page": page - 1 if found and page > 1 else None,
        "total_pages": pages,
        "total_count": len(found),
    }
    return found[(page - 1) * size : page * size], meta


def _count(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else default
