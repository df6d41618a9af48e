"""Records as the partners write them, meters to bring them into, and servers on this machine that give them out."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from token_meter import Meter
from token_meter.event import MeterEvent
from token_meter.ledger import Ledger
from token_meter.partners.base import instant
from token_meter.partners.known import partner_named
from token_meter.testing.backends.base import Chaos, FakeBackend, Request, Response

KEY = "sk-secret-of-the-test-4711"
SPEND_LOG: Mapping[str, Any] = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
    "spend": 0.0123,
    "total_tokens": 1500,
    "prompt_tokens": 1000,
    "completion_tokens": 500,
    "startTime": "2026-11-20T10:00:00.000Z",
    "endTime": "2026-11-20T10:00:02.500Z",
    "completionStartTime": "2026-11-20T10:00:01.000Z",
    "model": "claude-sonnet-4-5-20250929",
    "model_id": "b3f1",
    "model_group": "sonnet",
    "custom_llm_provider": "anthropic",
    "api_base": "https://api.anthropic.com/v1/messages",
    "user": "default_user_id",
    "end_user": "acme",
    "team_id": "team-1",
    "metadata": {
        "user_api_key_alias": "prod",
        "spend_logs_metadata": {"tenant": "globex"},
        "usage_object": {
            "prompt_tokens": 1000,
            "completion_tokens": 500,
            "total_tokens": 1500,
            "prompt_tokens_details": {
                "cached_tokens": 300,
                "cache_creation_tokens": 200,
                "cache_creation_token_details": {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 150},
            },
            "completion_tokens_details": {"reasoning_tokens": 120, "text_tokens": 380},
            "cache_read_input_tokens": 300,
            "cache_creation_input_tokens": 200,
        },
    },
    "cache_hit": "False",
    "cache_key": "Cache OFF",
    "request_tags": ["prod", "eu"],
    "status": "success",
    "litellm_call_id": "5b0d2ab4-7b3c-4a5f-8a77-7c6b4c52a001",
    "request_duration_ms": 2500,
}
GENERATION: Mapping[str, Any] = {
    "id": "gen-3bhGkxlo4XFrqiabUM7NDtwDzWwG",
    "api_type": "completions",
    "created_at": "2026-11-20T10:00:00.433273+00:00",
    "model": "openai/gpt-5-mini",
    "provider_name": "OpenAI",
    "external_user": "acme",
    "cancelled": False,
    "is_byok": False,
    "generation_time": 1200,
    "latency": 350,
    "tokens_prompt": 95,
    "tokens_completion": 48,
    "native_tokens_prompt": 100,
    "native_tokens_completion": 50,
    "native_tokens_reasoning": 20,
    "native_tokens_cached": 40,
    "native_tokens_completion_images": 0,
    "num_search_results": None,
    "service_tier": "priority",
    "total_cost": 0.0015,
    "usage": 0.0015,
    "cache_discount": 0.0002,
    "response_cache_source_id": None,
}
ACTIVITY: Mapping[str, Any] = {
    "date": "2026-11-20",
    "model": "openai/gpt-5-mini",
    "model_permaslug": "openai/gpt-5-mini-2025-08-07",
    "endpoint_id": "550e8400-e29b-41d4-a716-446655440000",
    "provider_name": "OpenAI",
    "usage": 0.015,
    "byok_usage_inference": 0,
    "requests": 5,
    "prompt_tokens": 500,
    "completion_tokens": 125,
    "reasoning_tokens": 25,
    "cached_tokens": 200,
}
EXPORT = """generation_id,created_at,cost_total,cost_web_search,cost_cache,cost_file_processing,byok_usage_inference,\
tokens_prompt,tokens_completion,tokens_reasoning,tokens_cached,model_permaslug,provider_name,variant,cancelled,\
streamed,user,finish_reason_raw,finish_reason_normalized,generation_time_ms,time_to_first_token_ms,app_name,api_key_name
gen-1,2026-11-20 02:37:51.271,0.0015,,-0.0002,,0,100,50,20,40,openai/gpt-5-mini-2025-08-07,OpenAI,,false,true,acme,\
stop,stop,1200,350,My App,prod
gen-2,2026-11-20 02:38:51.271,0.0100,,0.0020,,0,900,10,0,0,anthropic/claude-4.5-sonnet,Anthropic,,true,true,,,,900,,\
My App,prod
"""
VERCEL_GENERATION: Mapping[str, Any] = {
    "id": "gen_01KKHTQ85GD6CXP31EJTEPPJSR",
    "total_cost": 0.12,
    "upstream_inference_cost": 0,
    "usage": 0.12,
    "created_at": "2026-11-20T10:00:00.000Z",
    "model": "anthropic/claude-sonnet-4.5",
    "is_byok": False,
    "provider_name": "anthropic",
    "streamed": True,
    "finish_reason": "stop",
    "latency": 123,
    "generation_time": 456,
    "native_tokens_prompt": 100,
    "native_tokens_completion": 50,
    "native_tokens_reasoning": 7,
    "native_tokens_cached": 20,
    "native_tokens_cache_creation": 5,
    "billable_web_search_calls": 2,
}
REPORT: Mapping[str, Any] = {
    "day": "2026-11-20",
    "model": "anthropic/claude-sonnet-4.5",
    "total_cost": 10.5,
    "market_cost": 9.25,
    "input_tokens": 1000,
    "output_tokens": 500,
    "cached_input_tokens": 200,
    "cache_creation_input_tokens": 50,
    "reasoning_tokens": 70,
    "request_count": 25,
}
LOG: Mapping[str, Any] = {
    "id": "01K0LOG1",
    "cached": False,
    "created_at": "2026-11-20T10:00:00.123Z",
    "duration": 1500,
    "model": "gpt-4o-mini",
    "path": "chat/completions",
    "provider": "azure-openai",
    "success": True,
    "tokens_in": 70,
    "tokens_out": 30,
    "cost": 0.0001,
    "metadata": '{"tenant":"acme","team":7}',
    "status_code": 200,
}
PUSH: Mapping[str, Any] = {
    "Cached": False,
    "Endpoint": "chat/completions",
    "Gateway": "prod",
    "Metadata": {"tenant": "acme"},
    "Metrics": {"cost": 0.0042, "durationMs": 1234, "tokensIn": 70, "tokensOut": 30},
    "Model": "gpt-4o-mini",
    "RequestedModel": "cloudflare/auto",
    "Provider": "openai",
    "RateLimited": False,
    "StatusCode": 200,
    "Timestamp": 1795168800123456789,
    "RequestBody": {"type": "encrypted", "data": "AAAA"},
}


def varied(record: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy of a record with other fields; `metadata__usage_object` goes inside, None takes a field away."""
    made = copy.deepcopy(dict(record))
    for name, value in fields.items():
        inner = made
        *steps, last = name.split("__")
        for step in steps:
            inner = inner[step]
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    return made


def read(partner: str, record: Mapping[str, Any]) -> MeterEvent:
    """The event that a partner's table makes of a record."""
    return partner_named(partner).read(record)


@cache
def _empty_ledger() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.db"
        with Ledger(path) as ledger:
            ledger.events()  # the first look at a ledger makes it
        return path.read_bytes()


@contextmanager
def metering(folder: Path, **keywords: Any) -> Iterator[Meter]:
    """A meter with a ledger of its own, made from an empty one because making tables takes longer than most tests."""
    ledger = folder / "usage.db"
    if not ledger.exists():
        ledger.write_bytes(_empty_ledger())
    with Meter(ledger, **keywords) as meter:
        yield meter


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")
    return path


def log_of(
    count: int, *, every: timedelta = timedelta(minutes=1), start: datetime | None = None
) -> list[dict[str, Any]]:
    """Spend-log rows, one after the other."""
    began = start or datetime(2026, 11, 20, 10, tzinfo=UTC)
    return [
        varied(
            SPEND_LOG,
            request_id=f"chatcmpl-{number}",
            litellm_call_id=f"call-{number}",
            startTime=stamp(began + number * every),
            endTime=stamp(began + number * every + timedelta(seconds=2)),
        )
        for number in range(count)
    ]


def stamp(moment: datetime) -> str:
    """A time as LiteLLM's API writes it."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class FakeGateway(FakeBackend):
    """What the four APIs have in common: a bearer token, and what was asked for."""

    name = "gateway"

    def __init__(self, *, chaos: Chaos | None = None) -> None:
        super().__init__(chaos=chaos)
        self.rows: list[dict[str, Any]] = []
        self.asked: list[dict[str, str]] = []
        self.on_request: Callable[[], object] | None = None

    def answer(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Response.json(
                {"error": {"message": f"Invalid token: {request.headers.get('authorization')}"}}, status=401
            )
        query = {name: values[0] for name, values in request.query.items()}
        with self.lock:
            self.asked.append({"path": request.path, **query})
            response = self.listed(request.path, query)
        if self.on_request is not None:
            self.on_request()
        return response

    def listed(self, path: str, query: Mapping[str, str]) -> Response:
        """The answer of this gateway."""
        raise NotImplementedError


class FakeLiteLLM(FakeGateway):
    """`GET /spend/logs/v2` as LiteLLM 1.110 answers it. `descending`: as versions did that know no `sort_order`."""

    descending = False
    page_size_max = 1_000

    def listed(self, path: str, query: Mapping[str, str]) -> Response:
        if path != "/spend/logs/v2":
            return Response.json({"detail": "Not Found"}, status=404)
        start, end = (
            datetime.strptime(query[f"{name}_date"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            for name in ("start", "end")
        )
        found = [row for row in self.rows if start <= (instant(row["startTime"]) or start) <= end]
        found = [
            row
            for row in found
            if all(row.get(name) == query[name] for name in ("team_id", "end_user") if name in query)
        ]
        found.sort(key=lambda row: row["startTime"], reverse=self.descending)
        page, size = int(query["page"]), min(int(query["page_size"]), self.page_size_max)
        shown = found[(page - 1) * size : page * size]
        return Response.json(
            {
                "data": shown,
                "total": min(len(found), 10_000),
                "page": page,
                "page_size": size,
                "total_pages": -(-len(found) // size),
                "total_is_capped": len(found) > 10_000,
            }
        )


class FakeCloudflare(FakeGateway):
    """`GET /accounts/{account}/ai-gateway/gateways/{gateway}/logs`."""

    def listed(self, path: str, query: Mapping[str, str]) -> Response:
        if path != "/accounts/acc 1/ai-gateway/gateways/prod/logs":
            return Response.json(
                {"success": False, "errors": [{"code": 7003, "message": "no route"}], "result": None}, status=404
            )
        start, end = instant(query["start_date"]), instant(query["end_date"])
        assert start is not None and end is not None
        found = sorted(
            (row for row in self.rows if start <= (instant(row["created_at"]) or start) <= end),
            key=lambda row: (row["created_at"], row["id"]),
        )
        page, size = int(query["page"]), min(int(query["per_page"]), 50)
        shown = found[(page - 1) * size : page * size]
        info = {"page": page, "per_page": size, "count": len(shown), "total_count": len(found)}
        return Response.json({"success": True, "errors": [], "result": shown, "result_info": info})


class FakeOpenRouter(FakeGateway):
    """`GET /activity` and `GET /generation`."""

    def listed(self, path: str, query: Mapping[str, str]) -> Response:
        if path == "/generation":
            found = next((row for row in self.rows if row.get("id") == query["id"]), None)
            missing = Response.json({"error": {"code": 404, "message": "Generation not found"}}, status=404)
            return missing if found is None else Response.json({"data": found})
        return Response.json({"data": [row for row in self.rows if row.get("date") == query["date"]]})


class FakeVercel(FakeGateway):
    """`GET /v1/report` over calls that name a day, a user, a model and counts; `GET /v1/generation`."""

    def listed(self, path: str, query: Mapping[str, str]) -> Response:
        if path == "/v1/generation":
            return Response.json({"data": next(row for row in self.rows if row.get("id") == query["id"])})
        sums: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            if query["start_date"] <= row["day"] <= query["end_date"] and query.get("user_id") in (
                None,
                row.get("user"),
            ):
                key = str(row.get(query["group_by"]) or "")
                into = sums.setdefault(key, {query["group_by"]: key, "total_cost": 0.0, "request_count": 0})
                into["request_count"] += 1
                into["total_cost"] += row.get("total_cost", 0.0)
                for name in ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens"):
                    into[name] = into.get(name, 0) + row.get(name, 0)
        return Response.json({"results": list(sums.values())})
