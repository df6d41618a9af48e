"""Cloudflare AI Gateway: its log, from the API or as Logpush writes it.

A log tells how many tokens went in and came out, and nothing about caches or reasoning: each event says so. Calls go to
the provider with a key of one's own, so the provider sets the price. `metadata` is what the caller named with
`cf-aig-metadata`, and the place to look for the customer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from token_meter.event import MeterEvent
from token_meter.partners.base import (
    Feed,
    Kind,
    Partner,
    Row,
    Skip,
    amount,
    count,
    derived_id,
    entry,
    instant,
    moment,
    needed,
    nested,
    words,
    yes,
)
from token_meter.partners.client import Client
from token_meter.partners.names import provider_named
from token_meter.partners.quantities import Quantities, settled
from token_meter.partners.walking import Batch, Pages, walk

HOST: Final = "gateway.ai.cloudflare.com"
PAGE_SIZE: Final = 50
"""The most that the API gives at once."""

OVERLAP: Final = timedelta(hours=1)


def logged(row: Row) -> MeterEvent:
    """One entry of the log. Raises Skip for a failed call without tokens and for answers out of the gateway's cache."""
    if yes(row, "cached"):
        raise Skip("answered from the gateway's cache")
    nested(row, "metadata")  # unreadable metadata would hide whose call it was
    failed = row.get("success") is not None and not yes(row, "success")
    return _event(
        row,
        ("log", needed(row, "id")),
        time=moment(row, "created_at"),
        prompt=count(row, "tokens_in"),
        completion=count(row, "tokens_out"),
        model=words(row, "model"),
        requested=None,
        provider=words(row, "provider"),
        operation=words(row, "model_type") or words(row, "request_type"),
        duration=count(row, "duration"),
        cost=amount(row, "cost"),
        failed=failed,
    )


def pushed(row: Row) -> MeterEvent:
    """One line of Logpush (`ai_gateway_events`). It has no id, so all of it together identifies it."""
    if yes(row, "Cached"):
        raise Skip("answered from the gateway's cache")
    nested(row, "Metadata")
    metrics = {name.lower().replace("_", ""): each for name, each in nested(row, "Metrics").items()}
    status = count(row, "StatusCode")
    return _event(
        row,
        ("push", needed(row, "ID")) if row.get("ID") else ("push", derived_id(*map(str, sorted(_told(row).items())))),
        time=moment(row, "Timestamp"),
        prompt=_any(metrics, "tokensin", "inputtokens", "prompttokens"),
        completion=_any(metrics, "tokensout", "outputtokens", "completiontokens"),
        model=words(row, "Model"),
        requested=words(row, "RequestedModel"),
        provider=words(row, "Provider"),
        operation=None,
        duration=_any(metrics, "durationms"),
        cost=amount(metrics, "cost"),
        failed=status is not None and status >= 400,
    )


def _event(
    row: Row,
    identity: tuple[str, ...],
    *,
    time: datetime,
    prompt: int | None,
    completion: int | None,
    model: str | None,
    requested: str | None,
    provider: str | None,
    operation: str | None,
    duration: int | None,
    cost: float | None,
    failed: bool,
) -> MeterEvent:
    anomalies: list[str] = []
    usage, status = settled(Quantities(prompt, completion), anomalies, model=model, cost=cost, failed=failed)
    return entry(
        "cloudflare",
        identity,
        time=time,
        usage=usage,
        model=model,
        model_requested=requested,
        provider=provider_named(provider),
        operation=operation,
        status=status,
        anomalies=anomalies,
        price_context={"context_tokens": prompt},
        duration_ms=duration,
        response_id=identity[1] if identity[0] == "log" else None,
        host=HOST,
        raw_usage={"tokens_in": prompt, "tokens_out": completion, "cost": cost},
    )


def _any(metrics: Mapping[str, Any], *names: str) -> int | None:
    return next((found for name in names if (found := count(metrics, name)) is not None), None)


def _told(row: Row) -> dict[str, Any]:
    """What a line says about the call, without the bodies, which are encrypted anew each time."""
    return {name: each for name, each in row.items() if name not in ("RequestBody", "ResponseBody")}


# ---- pulling: GET /accounts/ACCOUNT/ai-gateway/gateways/GATEWAY/logs -----------------------------------------------


def pages(client: Client, since: datetime, until: datetime, parameters: Mapping[str, str]) -> Pages:
    """The log between two times."""
    account, gateway = (quote(parameters[name], safe="") for name in ("account", "gateway"))
    narrowed = {name: each for name, each in parameters.items() if name not in ("account", "gateway")}

    def fetch(start: datetime, end: datetime, number: int) -> Batch:
        document = client.get(
            f"/accounts/{account}/ai-gateway/gateways/{gateway}/logs",
            {
                **narrowed,
                "start_date": f"{start:%Y-%m-%dT%H:%M:%S.%fZ}",
                "end_date": f"{end:%Y-%m-%dT%H:%M:%S.%fZ}",
                "page": str(number),
                "per_page": str(PAGE_SIZE),
                "order_by": "created_at",
                "order_by_direction": "asc",
            },
        )
        rows = client.rows(document, "result")
        told = document.get("result_info")
        total = told.get("total_count") if isinstance(told, dict) else None
        more = isinstance(total, int) and total > number * PAGE_SIZE
        return Batch(rows, len(rows) >= PAGE_SIZE or (bool(rows) and more))

    return walk(fetch, since, until, time_of=lambda row: instant(row.get("created_at")))


CLOUDFLARE: Final = Partner(
    name="cloudflare",
    title="Cloudflare AI Gateway",
    kinds=(
        Kind("log", lambda row: "id" in row and "created_at" in row and "provider" in row, logged),
        Kind("Logpush", lambda row: "Timestamp" in row and "Model" in row, pushed),
    ),
    customer_fields=(),
    feed=Feed(
        url="https://api.cloudflare.com/client/v4",
        variable="CLOUDFLARE_API_TOKEN",
        pages=pages,
        overlap=OVERLAP,
        parameters=("account", "gateway", "model", "provider", "search"),
        required=("account", "gateway"),
    ),
    lists=("result", "data"),
    looks_like="id, created_at and tokens_in (the log), or Timestamp and Model (Logpush)",
)
