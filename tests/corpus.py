"""The recorded provider traffic beside the project: where it lies, and what each entry must yield.

The recordings are not part of the project; where they are absent the tests that need them skip, but never in CI.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from token_meter import MeterEvent

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "corpus"
HARNESS = FOLDER / "replay.py"

# The SDK's own stream helper gives up inside these recordings and closes the response, so the counts at the end are
# never received; the call is metered as estimated. The plain stream of the same entry is metered exactly.
HELPER_RAISES = frozenset({
    "bedrock-resp-b0c8c9f3", "mistral-chat-13359ec2", "openai-resp-22b65bad", "openai-resp-bb59159f",
    "openrouter-chat-242957ff", "openrouter-chat-f95371ac",
})  # fmt: skip


def replay() -> ModuleType:
    """The replay harness that lies beside the recordings."""
    path = HARNESS
    if not path.exists():
        if os.environ.get("TOKEN_METER_REQUIRE_SERVICES") == "1":
            pytest.fail(f"the recorded traffic is missing ({path.name})")
        pytest.skip("the recorded provider traffic is not beside this checkout")
    if "token_meter_replay" not in sys.modules:
        spec = importlib.util.spec_from_file_location("token_meter_replay", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["token_meter_replay"] = module
        spec.loader.exec_module(module)
    return sys.modules["token_meter_replay"]


def total(events: Iterable[MeterEvent], *names: str) -> int:
    return sum(getattr(event.usage, name) for event in events for name in names)


# Vertex calls its tiers traffic types.
TIERS = {"ON_DEMAND": "standard", "ON_DEMAND_FLEX": "flex", "PROVISIONED_THROUGHPUT": "provisioned"}

INPUT = ("input", "input_audio", "input_image", "input_video", "input_document", "tool_input")
CACHE_READ = ("cache_read", "cache_read_audio", "cache_read_image", "cache_read_video")
CACHE_WRITE = ("cache_write_5m", "cache_write_30m", "cache_write_1h", "cache_write_12h")
OUTPUT = ("output", "output_audio", "output_image", "output_video", "reasoning", "cached_output")


def buckets(events: list[MeterEvent]) -> dict[str, int]:
    """Our disjoint types as the four sums the corpus states."""
    return {
        "input_uncached": total(events, *INPUT),
        "cache_read": total(events, *CACHE_READ),
        "cache_write": total(events, *CACHE_WRITE),
        "output": total(events, *OUTPUT),
    }


def wanted(expected: Mapping[str, Any]) -> dict[str, int]:
    """What the corpus states, extra lines included."""
    return {
        name: expected[name] + sum(int(line.get(name) or 0) for line in expected["extra"])
        for name in ("input_uncached", "cache_read", "cache_write", "output")
    }


def complaints(expected: Mapping[str, Any], events: list[MeterEvent]) -> list[str]:
    """Everything that differs from what an entry must yield, as text; nothing if it is right."""
    if expected["expect"] == "none":
        return [f"{len(events)} events for what bills nothing"] if events else []
    if expected["expect"] == "unmetered":
        return _unmetered(events)
    found = [] if events else ["no event"]
    found += [
        f"{name}: want {value}, got {got}"
        for (name, value), got in zip(wanted(expected).items(), buckets(events).values(), strict=True)
        if value != got
    ]
    if found:
        return found
    return [*_details(expected, events[0]), *_identity(expected, events)]


def _unmetered(events: list[MeterEvent]) -> list[str]:
    if not events:
        return ["nothing reported for a billable answer without counts"]
    silent = [event for event in events if event.status not in ("estimated", "unmetered")]
    return [f"status {event.status} without counts" for event in silent]


def _details(expected: Mapping[str, Any], main: MeterEvent) -> list[str]:
    usage = main.usage
    pairs = [
        ("reasoning", expected["reasoning"] or 0, usage.reasoning),
        ("audio_in", expected["audio_in"], usage.input_audio + usage.cache_read_audio),
        ("audio_out", expected["audio_out"], usage.output_audio),
        ("image_out", expected["image_out"], usage.output_image),
        ("cache_write_1h", expected["cache_write_1h"], usage.cache_write_1h),
        ("web_search", _searches(expected), usage.web_search),
        ("file_search", expected["tools"].get("file_search", 0), usage.file_search),
        ("code_interpreter", min(1, expected["tools"].get("code_interpreter", 0)), usage.code_interpreter),
    ]
    if not usage.tokens:
        pairs.append(("audio_ms", round(1000 * (expected["units"].get("audio_seconds") or 0)), usage.audio_ms))
    return [f"{name}: want {want}, got {got}" for name, want, got in pairs if want != got]


def _searches(expected: Mapping[str, Any]) -> int:
    tools = expected["tools"]
    return int(tools.get("web_search", 0) + tools.get("x_search", 0) + tools.get("web_search_queries", 0))


def _identity(expected: Mapping[str, Any], events: list[MeterEvent]) -> list[str]:
    main = events[0]
    found = []
    if expected["model"] and main.model != expected["model"]:
        found.append(f"model: want {expected['model']}, got {main.model}")
    if expected["id"] != main.response_id:
        found.append(f"id: want {expected['id']}, got {main.response_id}")
    tier = main.price_context.get("service_tier")
    if expected["tier"] and TIERS.get(expected["tier"], str(expected["tier"]).lower()) != tier:
        found.append(f"tier: want {expected['tier']}, got {tier}")
    return found


def entries(module: ModuleType) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every entry that one of the SDKs can call, with what it must yield."""
    return [(entry, expected) for entry, expected in module.load("public") if module.callable_by(entry)]


def attributes(entry: Mapping[str, Any]) -> str:
    return json.dumps({name: entry[name] for name in ("id", "provider", "api", "stream", "status")})
