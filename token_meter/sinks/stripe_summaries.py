"""What Stripe has counted: its meters by event name, and the sums of a customer's usage over whole minutes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from token_meter.errors import Retry
from token_meter.sinks import stripe_wire as wire
from token_meter.sinks.http import Http, whole_number
from token_meter.sinks.mapping import LLM_TOKENS, Rule

METERS_PATH: Final = "/v1/billing/meters"
PAGES_MAX: Final = 100
PAGE_SIZE: Final = 100
METERS_SECONDS: Final = 60.0
"""How long the list of meters is believed."""
MINUTE: Final = timedelta(minutes=1)


class StripeMeter(NamedTuple):
    """One meter: `formula` says whether it sums values, counts events, or takes the last value; the keys are those
    of the payload under which it looks for the customer and the value."""

    id: str
    event_name: str
    active: bool
    formula: str
    customer_key: str
    value_key: str


class Summaries:
    """Reads meters and their event summaries."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._meters: dict[str, StripeMeter] = {}
        self._read_at = float("-inf")

    def meter(self, event_name: str) -> StripeMeter | None:
        """The meter of an event name, the active one if there are several; None if there never was one."""
        return self.meters().get(event_name)

    def meters(self) -> Mapping[str, StripeMeter]:
        """Every meter by its event name, read anew each minute."""
        if time.monotonic() - self._read_at > METERS_SECONDS:
            meters: dict[str, StripeMeter] = {}
            for each in map(_meter, self._pages(METERS_PATH, {})):
                # Stripe lists the newest first: of one name that is it, unless an older one is active.
                if each.active or each.event_name not in meters:
                    meters[each.event_name] = each
            self._meters = meters
            self._read_at = time.monotonic()
        return self._meters

    def forget(self) -> None:
        """Read the meters anew the next time: Stripe said something that does not fit to what is known."""
        self._read_at = float("-inf")

    def total(self, event_name: str, customer: str, *, since: datetime, until: datetime) -> int:
        """What Stripe counted in [since, until), whole minutes; 0 for a meter or customer that it does not have."""
        meter = self.meter(event_name)
        if meter is None:
            return 0
        parameters = {
            "customer": customer,
            "start_time": str(int(since.timestamp())),
            "end_time": str(int(until.timestamp())),
        }
        found = self._pages(f"{METERS_PATH}/{meter.id}/event_summaries", parameters)
        return sum(whole_number(each.get("aggregated_value"), what="Stripe") for each in found)

    def _pages(self, path: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            answer = self._http.get(path, {**parameters, "limit": str(PAGE_SIZE), **after})
            if wire.refuses(answer) and wire.CUSTOMER.search(wire.error(answer)[1]):
                return []
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


def misfits(
    rules: Sequence[Rule], meters: Mapping[str, StripeMeter], *, customer_key: str, value_key: str
) -> list[str]:
    """What Stripe would count otherwise than these rules mean it, one sentence each."""
    found = []
    for rule in rules:
        meter = meters.get(rule.meter)
        if meter is None:
            continue
        calls = not rule.types and rule.source == LLM_TOKENS
        if meter.formula != "sum" and not (calls and meter.formula == "count"):
            does = "counts events" if meter.formula == "count" else "takes the last value"
            found.append(f"Stripe's meter {rule.meter} {does} where {rule.key!r} reports amounts: it has to sum them")
        if meter.customer_key != customer_key:
            found.append(
                f"Stripe's meter {rule.meter} looks for the customer under {meter.customer_key!r}: give the sink "
                f"customer_key={meter.customer_key!r}"
            )
        if meter.value_key != value_key and meter.formula != "count":
            found.append(
                f"Stripe's meter {rule.meter} looks for the value under {meter.value_key!r}: give the sink "
                f"value_key={meter.value_key!r}"
            )
    return list(dict.fromkeys(found))


def _meter(document: Mapping[str, Any]) -> StripeMeter:
    return StripeMeter(
        id=str(document.get("id")),
        event_name=str(document.get("event_name")),
        active=document.get("status") == "active",
        formula=_inside(document, "default_aggregation", "formula") or "sum",
        customer_key=_inside(document, "customer_mapping", "event_payload_key") or "stripe_customer_id",
        value_key=_inside(document, "value_settings", "event_payload_key") or "value",
    )


def _inside(document: Mapping[str, Any], name: str, key: str) -> str:
    inner = document.get(name)
    return str(inner.get(key) or "") if isinstance(inner, dict) else ""
