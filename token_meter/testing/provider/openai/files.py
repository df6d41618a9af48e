"""Files and batches, as far as a batch needs them, and the free endpoints: moderations and the list of
models.

A batch runs when it is created and says so at the first GET. Its lines are billed like the calls they stand
for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.models import OPENAI
from token_meter.testing.provider.openai.chat import not_found
from token_meter.testing.provider.openai.usage import responses_block
from token_meter.testing.provider.reply import Chunk, Reply, encode
from token_meter.usage import Usage

EMPTY: Final = Usage()
_CATEGORIES: Final = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic"),
)


@dataclass(slots=True)
class File:
    """An uploaded file, or what a batch wrote: then each line of it tells a charge."""

    id: str
    filename: str
    purpose: str
    created: int
    chunks: list[bytes] = field(default_factory=list)
    billed: tuple[Billed, ...] = ()

    def body(self) -> dict[str, Any]:
        """The file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": sum(map(len, self.chunks)),
            "created_at": self.created,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


def upload(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /files."""
    sent = next(iter(exchange.request.uploads), None)
    if sent is None:
        return not_found(exchange, "No file was sent.")
    purpose = str(exchange.document.get("purpose", "batch"))
    file = File(exchange.new_id("file-"), sent.filename, purpose, exchange.now, [sent.data])
    exchange.state.store(file.id, file)
    return exchange.json(file.body())


def retrieve_file(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET and DELETE /files/{id}."""
    file = exchange.state.stored(names["id"])
    if not isinstance(file, File):
        return not_found(exchange, f"No such File object: {names['id']}")
    if exchange.request.method == "DELETE":
        exchange.state.forget(file.id)
        return exchange.json({"id": file.id, "object": "file", "deleted": True})
    return exchange.json(file.body())


def file_content(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET /files/{id}/content: downloading it again costs nothing."""
    file = exchange.state.stored(names["id"])
    if not isinstance(file, File):
        return not_found(exchange, f"No such File object: {names['id']}")
    return Reply(200, {"content-type": "application/octet-stream"}, list(file.chunks), billed=file.billed)


def create_batch(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /batches."""
    document = exchange.document
    source = exchange.state.stored(str(document.get("input_file_id")))
    lines = b"".join(source.chunks).splitlines() if isinstance(source, File) else []
    output = File(exchange.new_id("file-"), "batch_output.jsonl", "batch_output", exchange.now)
    model = None
    for line in filter(None, lines):
        chunk, model = _run_line(exchange, json.loads(line))
        output.chunks.append(chunk)
    output.billed = tuple(line for chunk in output.chunks for line in getattr(chunk, "tells", ()))
    exchange.state.store(output.id, output)
    batch = _batch(exchange, output, model)
    exchange.state.store(batch["id"], batch)
    waiting = {"status": "validating", "output_file_id": None, "completed_at": None, "usage": responses_block(EMPTY)}
    counts = {"total": 0, "completed": 0, "failed": 0}
    return exchange.json({**batch, **waiting, "request_counts": counts})


def retrieve_batch(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET /batches/{id} and POST /batches/{id}/cancel, which comes too late."""
    batch = exchange.state.stored(names["id"])
    if not isinstance(batch, dict):
        return not_found(exchange, f"No batch found with id {names['id']!r}.")
    return exchange.json(batch)


def _run_line(exchange: Exchange, line: Mapping[str, Any]) -> tuple[Chunk, str | None]:
    """Serve one line as the request it stands for; the chunk tells what it cost."""
    reply = exchange.serve(exchange.within(line["body"], line["url"]))
    response = {"status_code": reply.status, "request_id": exchange.new_id("req_"), "body": reply.document}
    row = {"id": exchange.new_id("batch_req_"), "custom_id": line["custom_id"], "response": response, "error": None}
    chunk = Chunk(encode(row) + b"\n")
    chunk.tells = reply.billed
    return chunk, reply.document.get("model")


def _batch(exchange: Exchange, output: File, model: str | None) -> dict[str, Any]:
    document, now = exchange.document, exchange.now
    return {
        "id": exchange.new_id("batch_"),
        "object": "batch",
        "endpoint": document.get("endpoint"),
        "model": model,
        "errors": None,
        "input_file_id": document.get("input_file_id"),
        "completion_window": document.get("completion_window", "24h"),
        "status": "completed",
        "output_file_id": output.id,
        "error_file_id": None,
        "created_at": now,
        "in_progress_at": now,
        "expires_at": now + 86_400,
        "completed_at": now,
        "request_counts": {"total": len(output.chunks), "completed": len(output.chunks), "failed": 0},
        "usage": responses_block(sum((line.usage for line in output.billed), Usage())),
        "metadata": document.get("metadata"),
    }


def moderations(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /moderations: free, finds nothing."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    return exchange.json({"id": exchange.new_id("modr-"), "model": "omni-moderation-latest", "results": [result]})


def models(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """GET /models."""
    data = [{"id": model, "object": "model", "created": 1_754_000_000, "owned_by": "openai"} for model in OPENAI]
    return exchange.json({"object": "list", "data": data})
