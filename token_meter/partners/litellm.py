"""LiteLLM: rows of its spend log, and the payloads its callbacks are given (`StandardLoggingPayload`).

Both say the same about a call. LiteLLM counts in OpenAI's way, whoever served it: `prompt_tokens` contains what was
read from and written to a cache, `completion_tokens` contains reasoning. What identifies a call: `request_id` (`id` in
a payload), and `litellm_call_id` beside it, because some providers give every answer the same id.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from token_meter.event import MeterEvent
from token_meter.partners.base import (
    Feed,
    Kind,
    Partner,
    Row,
    Skip,
    Unreadable,
    amount,
    count,
    entry,
    instant,
    moment,
    needed,
    nested,
    words,
    yes,
)
from token_meter.partners.client import Client
from token_meter.partners.names import bare_model, provider_named
from token_meter.partners.quantities import FAILED, NOTHING, cache_write_of
from token_meter.partners.walking import Batch, Pages, walk
from token_meter.providers.anthropic import message_usage
from token_meter.providers.base import fit, mapping, tells_counts, whole
from token_meter.providers.hosts import host_named
from token_meter.providers.openai import responses_usage
from token_meter.schema import Status
from token_meter.usage import Usage

PAGE_SIZE: Final = 100
"""What every version takes; newer ones take up to 1,000: `parameters={"page_size": "1000"}`."""

OVERLAP: Final = timedelta(hours=2)
"""A row is there when the call ended and is found by when it began, so long calls come late."""

PARAMETERS: Final = (
    "api_key", "user_id", "team_id", "end_user", "model", "model_id", "model_group", "key_alias", "page_size",
)  # fmt: skip
TOTALS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
LIFETIMES: Final = ("1h", "5m", "30m", "12h")
OPERATIONS: Final = {
    "completion": "chat", "text_completion": "completions", "embedding": "embeddings", "responses": "responses",
    "compact_responses": "responses", "anthropic_messages": "messages", "image_generation": "images",
    "image_edit": "images", "transcription": "audio", "speech": "audio", "generate_content": "generate_content",
    "generate_content_stream": "generate_content", "retrieve_batch": "batch", "rerank": "rerank",
    "moderation": "moderation", "pass_through_endpoint": "pass_through", "_realtime": "realtime",
}  # fmt: skip
"""LiteLLM's call types; the asynchronous ones begin with an `a`."""


def call(row: Row) -> MeterEvent:
    """One call. Raises Skip for one that failed without tokens and for answers out of LiteLLM's own cache."""
    key = "request_id" if "request_id" in row else "id"
    identity = needed(row, key)
    if yes(row, "cache_hit"):
        raise Skip("answered from the gateway's cache")
    metadata = nested(row, "metadata")
    failed = (words(row, "status") or words(metadata, "status")) == "failure"
    anomalies: list[str] = []
    provider, host = _served_by(row)
    model = bare_model(words(row, "model"), words(row, "custom_llm_provider"))
    block = _usage_block(row, metadata, anomalies)
    usage, status, estimator = _counted(row, block, model, anomalies, failed=failed)
    ended = moment(row, "endTime", "end_time", "startTime")
    call_id = words(row, "litellm_call_id")
    return entry(
        "litellm",
        (identity, call_id) if call_id and call_id != identity else (identity,),
        time=ended,
        usage=usage,
        model=model,
        model_requested=words(row, "model_group"),
        provider=provider,
        operation=_operation(words(row, "call_type")),
        status=status,
        estimator=estimator,
        anomalies=anomalies,
        price_context={
            "service_tier": words(block, "service_tier"),
            "speed": words(block, "speed"),
            "geo": words(block, "inference_geo"),
            "batch": True if "retrieve_batch" in str(row.get("call_type")) else None,
            "context_tokens": whole(block.get("prompt_tokens"), [], "prompt_tokens") or None,
        },
        duration_ms=_duration(row, ended),
        response_id=identity if len(identity) <= 512 else None,
        host=host,
        raw_usage={**block, "cost": _cost(row)},
    )


def _usage_block(row: Row, metadata: Mapping[str, Any], anomalies: list[str]) -> dict[str, Any]:
    """The provider's usage as LiteLLM keeps it; its totals are those of the columns, by which LiteLLM bills."""
    said = {name: each for name, each in mapping(metadata.get("usage_object")).items() if each is not None}
    block = {**mapping(metadata.get("additional_usage_values")), **said}
    totals = {name: count(row, name) for name in TOTALS}
    if not block and not any(name in row for name in TOTALS):
        raise Unreadable(f"has no counts: none of {', '.join(TOTALS)} is there")
    if not block and any(totals.values()):
        anomalies.append("only_totals")
    if any(totals.values()) and "input_tokens" not in block:
        block |= {name: number or 0 for name, number in totals.items() if number or name != "total_tokens"}
    return block


def _counted(
    row: Row, block: dict[str, Any], model: str | None, anomalies: list[str], *, failed: bool
) -> tuple[Usage, Status, str | None]:
    """The quantities, how sure they are, and who estimated them. Raises Skip where nothing was consumed."""
    usage = tokens(block, anomalies, model) if tells_counts(block) else Usage()
    if usage:
        return usage, "partial" if failed else "complete", None
    if total := whole(block.get("total_tokens"), anomalies, "total_tokens"):
        anomalies.append("unsplit_total")
        return Usage(input=total), "estimated", "all_input"
    if _cost(row):
        anomalies.append("no_counts")
        return usage, "unmetered", None
    raise Skip(FAILED if failed else NOTHING)


def tokens(block: dict[str, Any], anomalies: list[str], model: str | None) -> Usage:
    """The disjoint quantities of a usage block, in LiteLLM's shape or (pass-through) in the provider's own."""
    if "prompt_tokens" not in block and "input_tokens" in block:
        disjoint = any(name in block for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
        return message_usage(block, anomalies) if disjoint else responses_usage(block, anomalies)
    inside = mapping(block.get("prompt_tokens_details"))
    outside = mapping(block.get("completion_tokens_details"))
    prompt = whole(block.get("prompt_tokens"), anomalies, "prompt_tokens")
    completion = whole(block.get("completion_tokens"), anomalies, "completion_tokens")
    reasoning = whole(outside.get("reasoning_tokens"), anomalies, "reasoning_tokens")
    total = block.get("total_tokens")
    if type(total) is int and total not in (0, prompt + completion):
        beside = bool(reasoning) and total == prompt + completion + reasoning
        completion += reasoning if beside else 0
        anomalies.extend(() if beside else ("total_mismatch",))
    read = _cache_reads(block, inside, anomalies)
    parts = {**read, **_cache_writes(block, inside, model, anomalies), **_modalities(inside, read, anomalies)}
    made = {
        "output_audio": whole(outside.get("audio_tokens"), anomalies, "audio_tokens"),
        "output_image": whole(outside.get("image_tokens"), anomalies, "image_tokens"),
        "output_video": whole(outside.get("video_tokens"), anomalies, "video_tokens"),
        "reasoning": reasoning,
    }
    quantities = {**fit(prompt, parts, "input", anomalies), **fit(completion, made, "output", anomalies)}
    quantities |= _others(block, inside, quantities, anomalies)
    return Usage.of({name: number for name, number in quantities.items() if number})


def _cache_reads(block: Mapping[str, Any], inside: Mapping[str, Any], anomalies: list[str]) -> dict[str, int]:
    beside = (block.get(name) for name in ("cache_read_input_tokens", "prompt_cache_hit_tokens"))
    read = next((each for each in (inside.get("cached_tokens"), *beside) if each), 0)
    by = mapping(inside.get("cached_tokens_details"))
    split = {f"cache_read_{kind}": _of(by, f"{kind}_tokens", anomalies) for kind in ("audio", "image")}
    return fit(whole(read, anomalies, "cached_tokens"), split, "cache_read", anomalies)


def _cache_writes(
    block: Mapping[str, Any], inside: Mapping[str, Any], model: str | None, anomalies: list[str]
) -> dict[str, int]:
    told = (inside.get(name) for name in ("cache_write_tokens", "cache_creation_tokens"))
    first = next((each for each in (*told, block.get("cache_creation_input_tokens")) if each), 0)
    written = whole(first, anomalies, "cache_write_tokens")
    by = mapping(inside.get("cache_creation_token_details"))
    split = {f"cache_write_{life}": _of(by, f"ephemeral_{life}_input_tokens", anomalies) for life in LIFETIMES}
    rest = cache_write_of(model)
    written = written or sum(split.values())
    split.pop(rest)  # it takes what has no lifetime too
    return fit(written, split, rest, anomalies)


def _modalities(inside: Mapping[str, Any], read: Mapping[str, int], anomalies: list[str]) -> dict[str, int]:
    """Audio and images of the prompt contain what of them was cached; video is told without."""
    found = {kind: _of(inside, f"{kind}_tokens", anomalies) for kind in ("audio", "image", "video")}
    return {f"input_{kind}": max(0, number - read.get(f"cache_read_{kind}", 0)) for kind, number in found.items()}


def _of(details: Mapping[str, Any], name: str, anomalies: list[str]) -> int:
    return whole(details.get(name), anomalies, name)


def _others(
    block: Mapping[str, Any], inside: Mapping[str, Any], counted: Mapping[str, int], anomalies: list[str]
) -> dict[str, int]:
    """What is billed by other units: searches, seconds of audio, and pictures of models that tell no tokens."""
    searched = mapping(block.get("server_tool_use")).get("web_search_requests") or inside.get("web_search_requests")
    found = {"web_search": whole(searched, anomalies, "web_search_requests")}
    seconds = block.get("seconds")
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < 1e9:
        found["audio_ms"] = round(seconds * 1000)
    if not counted:
        found["images"] = whole(block.get("output_image_count"), anomalies, "output_image_count")
    return found


def _served_by(row: Row) -> tuple[str | None, str | None]:
    """The provider and the host. A host that is known says better who is billed than the dialect it speaks."""
    try:
        parts = urlsplit(words(row, "api_base") or "")
        host = f"{parts.hostname}:{parts.port}" if parts.hostname and parts.port else parts.hostname
    except ValueError:
        host = None
    known = host_named(host) if host else None
    return known.provider if known else provider_named(words(row, "custom_llm_provider")), host


def _operation(call_type: str | None) -> str | None:
    if call_type is None:
        return None
    return OPERATIONS.get(call_type) or OPERATIONS.get(call_type.removeprefix("a"), call_type)


def _duration(row: Row, ended: datetime) -> int | None:
    began = instant(row.get("startTime"))
    return max(0, int((ended - began).total_seconds() * 1000)) if began else None


def _cost(row: Row) -> float | None:
    return amount(row, "spend") or amount(row, "response_cost")


# ---- pulling: GET /spend/logs/v2 -----------------------------------------------------------------------------------


def pages(client: Client, since: datetime, until: datetime, parameters: Mapping[str, str]) -> Pages:
    """The spend log between two times, by when calls began; to the second, as that is what the API takes."""
    size = int(parameters.get("page_size", PAGE_SIZE))

    def fetch(start: datetime, end: datetime, number: int) -> Batch:
        document = client.get(
            "/spend/logs/v2",
            {
                **parameters,
                "start_date": f"{start:%Y-%m-%d %H:%M:%S}",
                "end_date": f"{end + timedelta(seconds=1):%Y-%m-%d %H:%M:%S}",
                "page": str(number),
                "page_size": str(size),
                "sort_by": "startTime",
                "sort_order": "asc",
            },
        )
        rows = client.rows(document, "data")
        last = document.get("total_pages")
        return Batch(rows, len(rows) >= size or (bool(rows) and isinstance(last, int) and number < last))

    return walk(fetch, since, until, time_of=lambda row: instant(row.get("startTime")))


LITELLM: Final = Partner(
    name="litellm",
    title="LiteLLM",
    kinds=(
        Kind("spend log", lambda row: "request_id" in row and ("startTime" in row or "endTime" in row), call),
        Kind("callback payload", lambda row: "id" in row and "call_type" in row, call),
    ),
    customer_fields=("end_user",),
    feed=Feed(
        url=None,
        variable="LITELLM_API_KEY",
        pages=pages,
        overlap=OVERLAP,
        parameters=PARAMETERS,
    ),
    lists=("data",),
    looks_like="request_id and startTime (a spend log), or id and call_type (what a callback is given)",
)
