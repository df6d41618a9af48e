"""Recorded provider traffic, replayed through the real SDKs over loopback: exactly the usage it must yield.

`bench/corpus.py` runs every combination; here every entry runs once plain, and every stream once under each fault.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import HELPER_RAISES, complaints, entries, replay
from token_meter import Meter, MeterEvent
from token_meter.sinks import MemorySink

ROOT = Path(__file__).parent.parent

# The harness leaves its clients and the sockets of cut streams open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What no documentation settles, or what the recording itself makes impossible, with the reason.
EXCEPTIONS = {
    "google-gen-f4b559b2": "flagged ambiguous: counts of two model turns under one response id",
    "openai-chat-a10f5c4c": "made-up counts: reasoning and audio exceed the completion; the total is kept",
    "openai-resp-22b65bad": "the recording replaced the response id by a different one in every event",
}
# The same background response is created and read, or read by both variants: one event (decision D5).
READ_ONCE = frozenset({"openai-resp-2ce0784a/helper", "openai-resp-204c6a3d/create"})
HELPERS = ("openai.chat", "openai.responses", "anthropic.messages")


class Replayed:
    """One run over the corpus: the events of each call, by `<entry id>/<variant>`."""

    def __init__(self, calls: list[tuple[str, dict[str, Any], dict[str, Any]]], events: dict[str, list[MeterEvent]]):
        self.calls = calls
        self.events = events


def run(folder: Path, *, mode: str, streams_only: bool = False, **faults: Any) -> Replayed:
    """Call every entry through its SDK; each call is its own customer, so that its events are found again."""
    harness = replay()
    harness.OPT.chop = faults.get("chop", 0)
    harness.OPT.gzip = faults.get("gzip", False)
    harness.OPT.cut = faults.get("cut", 0.0)
    harness.OPT.cut_clean = faults.get("cut_clean", False)
    server, port = harness.serve()
    sink = MemorySink()
    calls = [
        (f"{entry['id']}/{variant}", entry, expected)
        for entry, expected in entries(harness)
        if not streams_only or is_stream(entry)
        for variant in ("create", "helper")
        if variant == "create" or (is_stream(entry) and entry["api"] in HELPERS)
    ]
    try:
        with Meter(sink, journal=folder) as meter, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the SDKs warn about retired models and unclosed sockets of cut streams
            harness.meter_call = meter.wrap
            asyncio.run(call_all(harness, meter, harness.Clients(port, mode == "async"), calls))
            gc.collect()
            assert meter.flush(60)
            assert meter.health().problems == {}
    finally:
        server.shutdown()
        server.server_close()
        gc.collect()
    by_call: dict[str, list[MeterEvent]] = defaultdict(list)
    for event in sink.events:
        by_call[str(event.customer)].append(event)
    return Replayed(calls, by_call)


async def call_all(harness: Any, meter: Meter, clients: Any, calls: list[tuple[str, Any, Any]]) -> None:
    for name, entry, expected in calls:
        with meter.customer(name):
            try:
                await asyncio.wait_for(harness.call(entry, expected, clients, name.rpartition("/")[2]), 60)
            except Exception as error:
                assert "token_meter" not in str(error.__traceback__), error  # the SDK's own errors pass unchanged


def is_stream(entry: dict[str, Any]) -> bool:
    return bool(entry["stream"]) and entry["status"] < 400


def excused(name: str) -> bool:
    entry, _, variant = name.partition("/")
    return entry in EXCEPTIONS or name in READ_ONCE or (variant == "helper" and entry in HELPER_RAISES)


def differences(replayed: Replayed) -> dict[str, list[str]]:
    return {
        name: found
        for name, _, expected in replayed.calls
        if not excused(name) and (found := complaints(expected, replayed.events[name]))
    }


def silences(replayed: Replayed) -> dict[str, list[str]]:
    """Cut streams that left no event, or one that claims to be complete with counts that are not."""
    found = {}
    for name, _, expected in replayed.calls:
        events = replayed.events[name]
        if not events and expected["expect"] != "none" and name not in READ_ONCE:
            found[name] = ["no event"]
        elif events and events[0].status == "complete" and not events[0].anomalies and not excused(name):
            found[name] = complaints(expected, events)
    return {name: each for name, each in found.items() if each}


@pytest.mark.timeout(240)
def test_every_entry_yields_exactly_its_usage(tmp_path: Path) -> None:
    replayed = run(tmp_path, mode="sync")

    assert len(replayed.calls) > 1000
    assert differences(replayed) == {}


@pytest.mark.timeout(240)
def test_async_streams_yield_exactly_their_usage(tmp_path: Path) -> None:
    assert differences(run(tmp_path, mode="async", streams_only=True)) == {}


@pytest.mark.timeout(240)
def test_bytes_in_pieces_of_seven_and_gzip_change_nothing(tmp_path: Path) -> None:
    assert differences(run(tmp_path, mode="sync", streams_only=True, chop=7, gzip=True)) == {}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("cut_clean", [False, True], ids=["dropped", "cut cleanly"])
def test_a_stream_cut_half_way_is_flagged_and_never_silent(tmp_path: Path, cut_clean: bool) -> None:
    replayed = run(tmp_path, mode="async" if cut_clean else "sync", streams_only=True, cut=0.5, cut_clean=cut_clean)

    assert silences(replayed) == {}
    statuses = {event.status for events in replayed.events.values() for event in events}
    assert {"partial", "estimated"} <= statuses


def test_the_bench_says_in_one_line_that_the_recordings_are_absent(tmp_path: Path) -> None:
    """As in a plain clone: the project without the folder beside it."""
    clone = tmp_path / "clone"
    for name in ("bench", "tests", "token_meter"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))

    ran = subprocess.run(
        [sys.executable, "-m", "bench.corpus"], cwd=clone, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(clone)},
    )  # fmt: skip

    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr
    assert "expected in ../shared/corpus" in ran.stderr
