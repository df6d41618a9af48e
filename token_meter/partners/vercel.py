"""Vercel AI Gateway: single generations by id, and daily reports by model and user.

Cached and cache-written tokens are part of the prompt, reasoning of the completion. Vercel sets the price, unless the
call was made with a key of one's own at the provider behind it. A report can be split by one thing only, and one user
at a time can be asked for: so a day is read by user, then by model for each of them. What is left belongs to nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from token_meter.event import MeterEvent
from token_meter.partners.base import (
    AGGREGATE,
    Feed,
    Kind,
    Partner,
    PartnerError,
    Row,
    Unreadable,
    amount,
    count,
    entry,
    moment,
    needed,
    words,
    yes,
)
from token_meter.partners.client import Client
from token_meter.partners.names import provider_named
from token_meter.partners.quantities import Quantities, settled
from token_meter.partners.walking import Page, Pages, end_of, finished_days, noon_of

HOST: Final = "ai-gateway.vercel.sh"
SETTLE: Final = timedelta(hours=6)
"""A day's report is taken when the day has been over for so long."""

USERS_MAX: Final = 10_000
"""Each user of a day is a request, and Vercel charges for requests of reports."""

COUNTED: Final = (
    "input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_input_tokens", "reasoning_tokens",
    "request_count",
)  # fmt: skip
NARROWED_BY: Final = ("provider", "credential_type", "tags", "api_key_id")
"""What a report can be asked for besides a user; the sums of one key are others than those of all."""


def generation(row: Row) -> MeterEvent:
    """One generation."""
    identity = needed(row, "id")
    anomalies: list[str] = []
    quantities = Quantities(
        prompt=count(row, "native_tokens_prompt"),
        completion=count(row, "native_tokens_completion"),
        cached=count(row, "native_tokens_cached"),
        written=count(row, "native_tokens_cache_creation"),
        reasoning=count(row, "native_tokens_reasoning"),
        searches=count(row, "billable_web_search_calls"),
    )
    model = words(row, "model")
    cost = amount(row, "total_cost") or amount(row, "upstream_inference_cost")
    usage, status = settled(quantities, anomalies, model=model, cost=cost, failed=False)
    upstream = provider_named(words(row, "provider_name"))
    own_key = yes(row, "is_byok")
    return entry(
        "vercel",
        ("generation", identity),
        time=moment(row, "created_at"),
        usage=usage,
        model=model,
        provider=upstream if own_key else "vercel",
        operation="chat",
        status=status,
        anomalies=anomalies,
        price_context={"upstream": None if own_key else upstream, "context_tokens": quantities.prompt},
        duration_ms=_whole(row.get("generation_time")),
        response_id=identity if len(identity) <= 512 else None,
        host=HOST,
        raw_usage={
            **{name: each for name, each in row.items() if name.startswith(("native_tokens_", "billable_"))},
            "cost": amount(row, "total_cost"),
        },
    )


def report(row: Row) -> MeterEvent:
    """One row of a report: one event for many calls, and flagged as that."""
    if not row.get("day") and not row.get("hour"):
        raise Unreadable("is a sum over an unknown time: it has no `day`; ask for a report of one day at a time")
    at = moment(row, "hour", "day")
    anomalies = ["aggregated"]
    model = words(row, "model")
    if model is None:
        anomalies.append("model_unknown")
    quantities = Quantities(
        prompt=count(row, "input_tokens"),
        completion=count(row, "output_tokens"),
        cached=count(row, "cached_input_tokens"),
        written=count(row, "cache_creation_input_tokens"),
        reasoning=count(row, "reasoning_tokens"),
    )
    usage, status = settled(quantities, anomalies, model=model, cost=amount(row, "total_cost"), failed=False)
    own_key = words(row, "credential_type") == "byok"
    upstream = provider_named(words(row, "provider"))
    user = row.get("user") or row.get("user_id")
    parts = (str(each or "") for each in (model, user, *(row.get(name) for name in ("tag", *NARROWED_BY))))
    return entry(
        "vercel",
        ("report", at.isoformat(), *parts),
        time=at if row.get("hour") else noon_of(at.date()),
        usage=usage,
        model=model,
        provider=upstream if own_key and upstream else "vercel",
        operation=AGGREGATE,
        status=status,
        anomalies=anomalies,
        price_context={"upstream": None if own_key else upstream},
        host=HOST,
        raw_usage={**{name: row.get(name) for name in COUNTED}, "cost": amount(row, "total_cost")},
    )


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1e12 else None


# ---- pulling: GET /v1/report by day, GET /v1/generation by id -----------------------------------------------------


def pages(client: Client, since: datetime, until: datetime, parameters: Mapping[str, str]) -> Pages:
    """The reports of each finished day."""
    for each in finished_days(since, until, settle=SETTLE):
        asked = {**parameters, "start_date": each.isoformat(), "end_date": each.isoformat()}
        told = {**parameters, "day": each.isoformat()}
        yield Page([{**told, **row} for row in _rows_of_day(client, asked)], end_of(each))


def _rows_of_day(client: Client, asked: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    """A day by user and model. With `user_id` among the parameters: of that user alone."""
    everything = _report(client, asked, by="model")
    if "user_id" in asked:
        return [{**row, "user": asked["user_id"]} for row in everything]
    users = [str(row.get("user") or "") for row in _report(client, asked, by="user")]
    found: list[dict[str, Any]] = []
    named = [user for user in dict.fromkeys(users) if user]
    if len(named) > USERS_MAX:
        raise PartnerError(f"Vercel reports {len(named):,} users for one day; at most {USERS_MAX:,} can be read")
    for user in named:
        found += [{**row, "user": user} for row in _report(client, {**asked, "user_id": user}, by="model")]
    return [*found, *_left(everything, found)]


def _left(everything: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What of each model's sum no user accounts for: calls that named none."""
    taken: dict[Any, Counter[str]] = {}
    for row in found:
        taken.setdefault(row.get("model"), Counter()).update({name: count(row, name) or 0 for name in COUNTED})
    for row in everything:
        sums = taken.get(row.get("model"), Counter[str]())
        rest = {name: (count(row, name) or 0) - sums[name] for name in COUNTED}
        if any(number > 0 for number in rest.values()):
            cost = row.get("total_cost") if row.get("model") not in taken else None
            yield {**row, "total_cost": cost, **{name: max(0, number) for name, number in rest.items()}}


def _report(client: Client, asked: Mapping[str, str], *, by: str) -> list[dict[str, Any]]:
    rows = client.rows(client.get("/v1/report", {**asked, "group_by": by}), "results")
    wrong = next((row for row in rows if not isinstance(row, dict)), None)
    if wrong is not None:
        raise PartnerError(f"Vercel gives a report with {type(wrong).__name__} in place of a row")
    return list(rows)  # type: ignore[arg-type]


def lookup(client: Client, id: str) -> Row:
    """One generation by its id."""
    found = client.get("/v1/generation", {"id": id}).get("data")
    if not isinstance(found, dict):
        raise Unreadable("Vercel answers without `data`")
    return found


VERCEL: Final = Partner(
    name="vercel",
    title="Vercel AI Gateway",
    kinds=(
        Kind("generation", lambda row: "id" in row and "native_tokens_prompt" in row, generation),
        Kind("report", lambda row: "total_cost" in row or "input_tokens" in row, report),
    ),
    customer_fields=("user",),
    feed=Feed(
        url="https://ai-gateway.vercel.sh",
        variable="AI_GATEWAY_API_KEY",
        pages=pages,
        overlap=timedelta(days=2),
        parameters=("user_id", *NARROWED_BY),
        lookup=lookup,
    ),
    lists=("results", "data"),
    looks_like="id and native_tokens_prompt (a generation), or day and input_tokens (a report)",
)
