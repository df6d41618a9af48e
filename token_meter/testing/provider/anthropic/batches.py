"""Message batches: every request of one runs when it is created; the results are JSON lines. And the list of models."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.models import ANTHROPIC
from token_meter.testing.provider.reply import Chunk, Reply, encode

_NONE_YET: Final = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}


def create(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /messages/batches."""
    requests = exchange.document.get("requests") or []
    id = exchange.new_id("msgbatch_01")
    exchange.state.store(f"{id}/results", [_run(exchange, each) for each in requests])
    now = datetime.now(UTC)
    batch = {
        "id": id,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {**_NONE_YET, "processing": len(requests)},
        "created_at": now.isoformat(),
        "expires_at": (now + timedelta(days=1)).isoformat(),
        "ended_at": None,
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    exchange.state.store(id, batch)
    return exchange.json(batch)


def retrieve(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET /messages/batches/{id} and POST …/cancel: it has ended by now."""
    batch = exchange.state.stored(names["id"])
    if not isinstance(batch, dict):
        return _not_found(exchange, names["id"])
    return exchange.json(_ended(exchange, batch))


def list_batches(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """GET /messages/batches: an empty page."""
    return exchange.json({"data": [], "has_more": False, "first_id": None, "last_id": None})


def results(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET /messages/batches/{id}/results: reading them again costs nothing."""
    chunks: list[Chunk] | None = exchange.state.stored(f"{names['id']}/results")
    if chunks is None:
        return _not_found(exchange, names["id"])
    billed: tuple[Billed, ...] = tuple(line for chunk in chunks for line in chunk.tells)
    return Reply(200, {"content-type": "application/x-jsonl"}, list(chunks), streamed=True, billed=billed)


def models(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """GET /models."""
    data = [
        {
            "type": "model",
            "id": dated,
            "display_name": alias,
            "created_at": "2025-09-29T00:00:00Z",
            "lifecycle": "active",
        }
        for alias, dated in ANTHROPIC.items()
    ]
    return exchange.json({"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})


def _run(exchange: Exchange, request: Mapping[str, Any]) -> Chunk:
    reply = exchange.serve(exchange.within(request["params"], "/v1/messages"))
    row = {"custom_id": request["custom_id"], "result": {"type": "succeeded", "message": reply.document}}
    chunk = Chunk(encode(row) + b"\n")
    chunk.tells = reply.billed
    return chunk


def _ended(exchange: Exchange, batch: Mapping[str, Any]) -> dict[str, Any]:
    done = len(exchange.state.stored(f"{batch['id']}/results") or ())
    host = exchange.request.headers.get("host", "loopback")
    return {
        **batch,
        "processing_status": "ended",
        "request_counts": {**_NONE_YET, "succeeded": done},
        "ended_at": batch["created_at"],
        "results_url": f"http://{host}/v1/messages/batches/{batch['id']}/results",
    }


def _not_found(exchange: Exchange, id: str) -> Reply:
    error = {"type": "not_found_error", "message": f"Batch {id} not found"}
    return exchange.json({"type": "error", "error": error, "request_id": None}, status=404)
