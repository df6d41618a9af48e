"""The filters of a command line as the ledger wants them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.moments import read_moment, read_zone
from token_meter.cli.text import did_you_mean
from token_meter.event import STATUSES


def read_filters(
    *,
    customer: str | None = None,
    unattributed: bool = False,
    status: str | None = None,
    dimension: Sequence[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    time_zone: str = "UTC",
    **equal: str | None,
) -> dict[str, Any]:
    """Keyword arguments for the ledger's queries. Wrong usage for what cannot be meant."""
    if unattributed and customer is not None:
        raise Failure("--customer and --unattributed exclude each other", code=WRONG_USAGE)
    if status is not None and status not in STATUSES:
        hint = did_you_mean(status, STATUSES)
        raise Failure(f"no status is called {status!r}: {', '.join(STATUSES)}.{hint}", code=WRONG_USAGE)
    filters: dict[str, Any] = {name: value for name, value in equal.items() if value is not None}
    if unattributed or customer is not None:
        filters["customer"] = customer
    if status is not None:
        filters["status"] = status
    if dimension:
        filters["dimensions"] = dict(_named(each) for each in dimension)
    return filters | _window(since, until, time_zone)


def _named(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise Failure(f"--dimension wants NAME=VALUE, such as feature=chat, not {text!r}", code=WRONG_USAGE)
    return name, value


def _window(since: str | None, until: str | None, time_zone: str) -> dict[str, datetime]:
    zone, now = read_zone(time_zone), datetime.now(UTC)
    begin, end = (read_moment(text, zone=zone, now=now) for text in (since, until))
    if begin and end and begin >= end:
        raise Failure(f"--since {since} is not before --until {until}", code=WRONG_USAGE)
    return {name: moment for name, moment in (("since", begin), ("until", end)) if moment is not None}
