"""`python -m token_meter.testing.backends`: one fake backend for any program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx2
import pytest

from token_meter.testing.backends.__main__ import NAMES, make
from token_meter.testing.backends.base import VirtualClock

Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a backend as a process of its own, and reads the URL that it tells."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "token_meter.testing.backends", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_it_serves_until_it_is_terminated(start):
    process, url = start("lago", "--key", "secret", "--clock-offset", "86400")
    headers = {"authorization": "Bearer secret"}

    refused = httpx2.get(f"{url}/api/v1/events", verify=False)
    answered = httpx2.get(f"{url}/api/v1/events", headers=headers, verify=False)
    state = httpx2.get(f"{url}/_/state", verify=False).json()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)

    assert (refused.status_code, answered.status_code, state["counted"]) == (401, 200, 0)
    ahead = datetime.fromtimestamp(state["now"], UTC) - datetime.now(UTC)
    assert 80_000 < ahead.total_seconds() < 90_000
    assert (process.returncode, output, errors) == (0, "", "")


@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
def test_it_ends_quietly_when_interrupted(start):
    process, url = start("openmeter")

    meters = httpx2.get(f"{url}/api/v1/meters", verify=False).json()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)

    assert [meter["slug"] for meter in meters] == ["tokens_total"]
    assert (process.returncode, output, errors) == (0, "", "")


def test_an_unknown_name_is_refused(start):
    process, url = start("paypal")

    _, errors = process.communicate(timeout=20)

    assert (process.returncode, url) == (2, "")
    assert all(name in errors for name in NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_backend_is_made_by_its_name(name):
    clock = VirtualClock(offset_seconds=5)

    backend = make(name, clock=clock)

    assert (type(backend).__name__, backend.clock) == (NAMES[name], clock)
    assert backend.name == name
