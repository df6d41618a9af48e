"""What Stripe has counted: meters by event name, their summaries, and what follows for events it may have forgotten.

Stripe has no way to ask for one identifier. A summary sums a customer's usage of a meter over whole minutes; beside the
ledger, which knows everything that happened in those minutes, that tells what is missing, or that it cannot be told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from token_meter.errors import Refusal, Retry, SinkError
from token_meter.sinks.http import Http, whole_number

if TYPE_CHECKING:
    from token_meter.sinks.backend import Record
    from token_meter.sinks.base import Accounts, Unsent

METERS_PATH: Final = "/v1/billing/meters"
PAGES_MAX: Final = 100
PAGE_SIZE: Final = 100
METERS_SECONDS: Final = 60.0
"""How long the list of meters is believed."""
MINUTE: Final = timedelta(minutes=1)


class Summaries:
    """Reads meters and their event summaries."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._meters: dict[str, str] = {}
        self._read_at = float("-inf")

    def meter(self, event_name: str) -> str | None:
        """The id of the active meter of an event name, None if there is none."""
        return self.names().get(event_name)

    def names(self, *, refresh: bool = False) -> Mapping[str, str]:
        """Active meters, event name to id."""
        if refresh or time.monotonic() - self._read_at > METERS_SECONDS:
            found = self._pages(METERS_PATH, {"status": "active"})
            self._meters = {str(each.get("event_name")): str(each.get("id")) for each in found}
            self._read_at = time.monotonic()
        return self._meters

    def total(self, event_name: str, customer: str, *, since: datetime, until: datetime) -> int:
        """The usage that Stripe counted in [since, until); both are whole minutes. Raises SinkError for no meter."""
        meter = self.meter(event_name)
        if meter is None:
            raise SinkError(f"Stripe has no active meter with the event name {event_name!r}")
        parameters = {
            "customer": customer,
            "start_time": str(int(since.timestamp())),
            "end_time": str(int(until.timestamp())),
        }
        found = self._pages(f"{METERS_PATH}/{meter}/event_summaries", parameters)
        return sum(whole_number(each.get("aggregated_value"), what="Stripe") for each in found)

    def _pages(self, path: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            answer = self._http.get(path, {**parameters, "limit": str(PAGE_SIZE), **after})
            document = answer.json()
            page = document.get("data") if isinstance(document, dict) else None
            if not answer.ok or not isinstance(page, list):
                raise Retry(f"Stripe does not answer {path} (HTTP {answer.status}): {answer.text}")
            found += [each for each in page if isinstance(each, dict)]
            if not document.get("has_more") or not page:
                return found
            after = {"starting_after": str(found[-1].get("id"))}
        raise Retry(f"{path}: more than {PAGES_MAX} pages")


def minute_of(moment: datetime) -> datetime:
    """The beginning of its minute."""
    return moment.astimezone(UTC).replace(second=0, microsecond=0)


Expected = Callable[[str, datetime, datetime], "list[Record]"]
"""What the ledger says of a customer there in a span of time."""


def uncounted_records(
    records: Sequence[Record], summaries: Summaries, accounts: Accounts, *, expected: Expected, unsent: Unsent
) -> tuple[list[Record], list[Refusal]]:
    """Of records that may have been counted: those that were not, and refusals of events that cannot be told.

    Each customer, meter and minute is judged by itself: what else the ledger has there is counted (unless it was never
    sent), so the rest of Stripe's sum is what it has of the doubtful records. They went out in order, so that must be
    the sum of the first so many of them.
    """
    groups: dict[tuple[str, str, datetime], list[Record]] = {}
    for record in records:
        groups.setdefault((record.customer, record.measure.meter, minute_of(record.time)), []).append(record)
    missing: list[Record] = []
    unclear: dict[str, Refusal] = {}
    for (customer, meter, minute), doubtful in groups.items():
        mine = {record.identifier for record in doubtful}
        others = [
            each
            for each in expected(customer, minute, minute + MINUTE)
            if each.measure.meter == meter and each.identifier not in mine
        ]
        never = unsent({each.event.id for each in others}) if others else set()
        base = sum(each.value for each in others if each.event.id not in never)
        there = summaries.total(meter, customer, since=minute, until=minute + MINUTE) - base
        taken = _taken(there, [record.value for record in doubtful])
        if taken is None:
            reason = (
                f"it may have reached Stripe more than 24 hours ago, and would be counted again. In the minute of "
                f"{minute:%Y-%m-%d %H:%M} UTC Stripe has {there + base} of {meter} for {customer}, the ledger {base} "
                f"without what is in doubt ({', '.join(str(record.value) for record in doubtful[:10])}): compare, then "
                "release or discard it"
            )
            unclear.update((record.event.id, Refusal(record.event, reason)) for record in doubtful)
        else:
            missing += doubtful[taken:]
    return [record for record in missing if record.event.id not in unclear], list(unclear.values())


def _taken(there: int, values: Sequence[int]) -> int | None:
    """How many of the first values make this sum; None if no number of them does, or several do."""
    sums = [sum(values[:count]) for count in range(len(values) + 1)]
    return sums.index(there) if sums.count(there) == 1 else None
