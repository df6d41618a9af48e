"""OpenRouter: single generations (from its API or the CSV export of its activity page) and daily sums per model.

Counts are the provider's own ("native"); cached tokens are part of the prompt, reasoning and images of the completion.
What was written to a cache is told nowhere: where its price shows that there was something, the event says so.
OpenRouter sets the price, unless the call was made with a key of one's own at the provider behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from token_meter.event import MeterEvent
from token_meter.partners.base import (
    AGGREGATE,
    Feed,
    Kind,
    Partner,
    Row,
    Skip,
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
from token_meter.usage import QUANTITY_MAX

HOST: Final = "openrouter.ai"
SETTLE: Final = timedelta(hours=6)
"""A day's sums are taken when it has been over for so long."""

OPERATIONS: Final = {"completions": "chat", "tts": "audio", "stt": "audio"}
NARROWED_BY: Final = ("api_key_hash", "user_id", "workspace_id")
"""What sums can be asked for; those of one key are others than those of all."""


def generation(row: Row) -> MeterEvent:
    """One generation, as the API tells it."""
    if words(row, "response_cache_source_id"):
        raise Skip("answered from the gateway's cache")
    return _generation(
        row,
        needed(row, "id"),
        quantities=Quantities(
            prompt=_first(row, "native_tokens_prompt", "tokens_prompt"),
            completion=_first(row, "native_tokens_completion", "tokens_completion"),
            cached=count(row, "native_tokens_cached"),
            reasoning=count(row, "native_tokens_reasoning"),
            images=count(row, "native_tokens_completion_images"),
        ),
        model=words(row, "model"),
        duration=row.get("generation_time"),
        wrote=(amount(row, "cache_discount") or 0) < 0,  # a discount below nothing: writing to a cache costs more
        cost=amount(row, "total_cost"),
    )


def exported(row: Row) -> MeterEvent:
    """One generation, as a row of the activity export."""
    return _generation(
        row,
        needed(row, "generation_id"),
        quantities=Quantities(
            prompt=count(row, "tokens_prompt"),
            completion=count(row, "tokens_completion"),
            cached=count(row, "tokens_cached"),
            reasoning=count(row, "tokens_reasoning"),
        ),
        model=words(row, "model_permaslug"),
        duration=row.get("generation_time_ms"),
        wrote=(amount(row, "cost_cache") or 0) > 0,
        cost=amount(row, "cost_total"),
    )


def _generation(
    row: Row,
    identity: str,
    *,
    quantities: Quantities,
    model: str | None,
    duration: Any,
    wrote: bool,
    cost: float | None,
) -> MeterEvent:
    anomalies = ["cache_write_unknown"] if wrote else []
    usage, status = settled(quantities, anomalies, model=model, cost=cost, failed=False)
    upstream = provider_named(words(row, "provider_name"))
    own_key = yes(row, "is_byok") or bool(amount(row, "byok_usage_inference"))
    return entry(
        "openrouter",
        ("generation", identity),
        time=moment(row, "created_at"),
        usage=usage,
        model=model,
        provider=upstream if own_key else "openrouter",
        operation=OPERATIONS.get(words(row, "api_type") or "completions", words(row, "api_type")),
        status="partial" if status == "complete" and yes(row, "cancelled") else status,
        anomalies=anomalies,
        price_context={
            "service_tier": words(row, "service_tier"),
            "upstream": None if own_key else upstream,
            "context_tokens": quantities.prompt,
        },
        duration_ms=_whole(duration),
        response_id=identity if len(identity) <= 512 else None,
        host=HOST,
        raw_usage={**_numbers(row), "cost": cost},
    )


def day(row: Row) -> MeterEvent:
    """The sum of a day, a model and an endpoint: one event for many calls, and flagged as that."""
    at = moment(row, "date").date()
    anomalies = ["aggregated"]
    quantities = Quantities(
        prompt=count(row, "prompt_tokens"),
        completion=count(row, "completion_tokens"),
        cached=count(row, "cached_tokens"),
        reasoning=count(row, "reasoning_tokens"),
    )
    model = words(row, "model_permaslug") or words(row, "model")
    if model is None:
        raise Unreadable("has no model")
    own = amount(row, "byok_usage_inference")
    usage, status = settled(quantities, anomalies, model=model, cost=amount(row, "usage") or own, failed=False)
    upstream = provider_named(words(row, "provider_name"))
    own_key = bool(own) and not amount(row, "usage")
    parts = (str(row.get(name) or "") for name in ("endpoint_id", "provider_name", *NARROWED_BY))
    return entry(
        "openrouter",
        ("day", at.isoformat(), model, *parts),
        time=noon_of(at),
        usage=usage,
        model=model,
        model_requested=words(row, "model"),
        provider=upstream if own_key else "openrouter",
        operation=AGGREGATE,
        status=status,
        anomalies=anomalies,
        price_context={"upstream": None if own_key else upstream},
        host=HOST,
        raw_usage={**_numbers(row), "cost": amount(row, "usage")},
    )


_COUNTED: Final = ("native_tokens_", "tokens_", "num_", "cached_tokens", "prompt_tokens", "completion_tokens",
                   "reasoning_tokens", "requests")  # fmt: skip


def _first(row: Row, *names: str) -> int | None:
    return next((found for name in names if (found := count(row, name)) is not None), None)


def _whole(value: Any) -> int | None:
    """A number that is only kept to be looked at; None for what is none."""
    try:
        return min(max(0, int(float(value))), QUANTITY_MAX)
    except (TypeError, ValueError, OverflowError):
        return None


def _numbers(row: Row) -> dict[str, Any]:
    """What was counted, under OpenRouter's own names."""
    return {name: _whole(each) for name, each in row.items() if name.startswith(_COUNTED) and each not in (None, "")}


# ---- pulling: GET /activity by day, GET /generation by id ---------------------------------------------------------


def pages(client: Client, since: datetime, until: datetime, parameters: Mapping[str, str]) -> Pages:
    """The sums of each finished day. OpenRouter keeps thirty; the key is a management key."""
    for each in finished_days(since, until, settle=SETTLE):
        rows = client.rows(client.get("/activity", {**parameters, "date": each.isoformat()}), "data")
        yield Page([_told(row, parameters) for row in rows], end_of(each))


def _told(row: Any, parameters: Mapping[str, str]) -> Row:
    """The row with what was asked for: sums of one key are others than those of all."""
    return {**parameters, **row} if isinstance(row, dict) else row


def lookup(client: Client, id: str) -> Row:
    """One generation by its id."""
    found = client.get("/generation", {"id": id}).get("data")
    if not isinstance(found, dict):
        raise Unreadable("OpenRouter answers without `data`")
    return found


OPENROUTER: Final = Partner(
    name="openrouter",
    title="OpenRouter",
    kinds=(
        Kind("activity export", lambda row: "generation_id" in row and "tokens_prompt" in row, exported),
        Kind("generation", lambda row: "id" in row and "tokens_prompt" in row, generation),
        Kind("daily activity", lambda row: "date" in row and "prompt_tokens" in row, day),
    ),
    customer_fields=("external_user", "user"),
    feed=Feed(
        url="https://openrouter.ai/api/v1",
        variable="OPENROUTER_API_KEY",
        pages=pages,
        overlap=timedelta(days=2),
        parameters=(*NARROWED_BY, "group_by"),
        lookup=lookup,
    ),
    looks_like="generation_id and tokens_prompt (the activity export), id and tokens_prompt (a generation), or date "
    "and prompt_tokens (a day)",
)
