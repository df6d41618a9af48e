"""Nothing is lost, nothing is counted twice, however the process ends.

    python -m bench.durability [--repeat 50] [--calls 20]

A worker makes real SDK calls against the loopback provider and ends: cleanly, by SIGTERM, by SIGKILL after or in the
middle of its calls, in the middle of a stream, by os._exit, in a forked child, or while a backend is down. Then the
application starts again. Afterwards the ledger and a second backend are compared with the provider's own account.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from token_meter import MeterEvent
from token_meter.ledger import Ledger
from token_meter.testing import LoopbackProvider

SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Scenario:
    """How the worker ends. `signal` is sent when all calls are done, or at a random moment if `midway`."""

    name: str
    ending: str = "close"
    signal: int | None = None
    midway: bool = False
    stream: bool = False
    down: bool = False


SCENARIOS = (
    Scenario("clean exit"),
    Scenario("SIGTERM", "wait", signal.SIGTERM),
    Scenario("SIGKILL", "wait", signal.SIGKILL),
    Scenario("SIGKILL midway", "wait", signal.SIGKILL, midway=True),
    Scenario("SIGKILL mid-stream", "wait", signal.SIGKILL, midway=True, stream=True),
    Scenario("os._exit", "os._exit"),
    Scenario("fork", "fork"),
    Scenario("backend down", "os._exit", down=True),
)


@dataclass
class Outcome:
    """What one repetition left behind: the calls that were begun, and where they are now."""

    requests: int
    events: list[MeterEvent]
    complaints: list[str] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[str]:
        return Counter(event.status for event in self.events)


class Launcher:
    """The worker's parent: imports the SDK once and forks for each job."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.durability_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    def start(self, job: dict[str, Any]) -> int:
        """Begin a job; returns the pid of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self.until("pid").split()[1])

    def until(self, word: str) -> str:
        """Read what the job says until it says `word`."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            line = self._process.stdout.readline().strip()
            if line.startswith("failed") or not line:
                raise RuntimeError(f"the worker {line or 'died'}")
            if line.startswith(word):
                return line
        raise TimeoutError(word)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(SECONDS_MAX)


@contextmanager
def stage() -> Iterator[tuple[LoopbackProvider, Launcher]]:
    """A provider and a launcher for as many repetitions as wanted."""
    launcher = Launcher()
    try:
        with LoopbackProvider() as provider:
            yield provider, launcher
    finally:
        launcher.close()


def play(scenario: Scenario, provider: LoopbackProvider, launcher: Launcher, *, calls: int, moment: float) -> Outcome:
    """One repetition: the calls, the end, the next start, the comparison. `moment` in 0..1 times a midway signal."""
    provider.reset()
    with tempfile.TemporaryDirectory(prefix="token_meter-durability-") as name:
        folder = Path(name)
        if scenario.down:
            (folder / "down").touch()
        base = provider.url_with(slow=0.001, delay=0.002) if scenario.midway else provider.url
        job = {
            "folder": name, "url": f"{base}/v1", "calls": calls, "ending": scenario.ending, "stream": scenario.stream,
        }  # fmt: skip
        pid = launcher.start(job)
        launcher.until("ready")
        _end(scenario, launcher, pid, calls=calls, moment=moment)
        launcher.until("ended")
        (folder / "down").unlink(missing_ok=True)
        launcher.start({**job, "ending": "restart"})
        launcher.until("ended")
        return _compare(scenario, provider, folder, calls)


def _end(scenario: Scenario, launcher: Launcher, pid: int, *, calls: int, moment: float) -> None:
    if scenario.signal is None:
        return
    if scenario.midway:
        launcher.until(f"called {1 + int(moment * (calls - 2))}")
        time.sleep(random.Random(moment).random() * (0.03 if scenario.stream else 0.006))
    else:
        launcher.until("done")
    os.kill(pid, scenario.signal)


def _compare(scenario: Scenario, provider: LoopbackProvider, folder: Path, calls: int) -> Outcome:
    with Ledger(folder / "usage.db") as ledger:
        events = ledger.events()
    outcome = Outcome(len(provider.requests), events)
    backend = Counter(json.loads(line)["id"] for line in (folder / "backend.jsonl").read_text().splitlines())
    wrong = outcome.complaints
    if set(backend) != {event.id for event in events}:
        wrong.append(f"the backend has {len(backend)} events, the ledger {len(events)}")
    served = {line.response_id: line for line in provider.billed}
    answered = [event for event in events if event.status == "complete"]
    if len({event.response_id for event in answered}) != len(answered):
        wrong.append("an answer was counted twice")
    for event in answered:
        line = served.pop(event.response_id, None)
        if line is None or line.usage != event.usage:
            wrong.append(f"event {event.id} is not what the provider billed")
    open_ended = len(events) - len(answered)
    if len(served) > open_ended:
        wrong.append(f"{len(served)} billed answers are unaccounted for, {open_ended} events are flagged")
    if len(events) < outcome.requests:
        wrong.append(f"{outcome.requests} requests, {len(events)} events")
    if not scenario.midway and (len(answered), len(events)) != (calls, calls):
        wrong.append(f"{len(answered)} of {calls} calls are complete, {len(events)} events")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    print(f"{chosen.repeat} repetitions of {chosen.calls} calls each, seed {chosen.seed}")
    print("calls: requests that reached the provider; flagged: no whole answer was seen, or killed just before sending")
    print(f"{'how it ended':20} {'calls':>6} {'complete':>9} {'flagged':>8} {'lost':>5} {'twice':>6} {'seconds':>8}")
    failures = 0
    with stage() as (provider, launcher):
        for scenario in SCENARIOS:
            began = time.monotonic()
            outcomes = [
                play(scenario, provider, launcher, calls=chosen.calls, moment=chance.random())
                for _ in range(chosen.repeat)
            ]
            failures += _report(scenario, outcomes, time.monotonic() - began)
    return 1 if failures else 0


def _report(scenario: Scenario, outcomes: list[Outcome], seconds: float) -> int:
    complaints = [text for outcome in outcomes for text in outcome.complaints]
    statuses = sum((outcome.statuses for outcome in outcomes), Counter())
    requests = sum(outcome.requests for outcome in outcomes)
    lost = sum(max(0, outcome.requests - len(outcome.events)) for outcome in outcomes)
    twice = sum("twice" in text for text in complaints)
    flagged = statuses.total() - statuses["complete"]
    print(
        f"{scenario.name:20} {requests:6} {statuses['complete']:9} {flagged:8} {lost:5} {twice:6} {seconds:8.1f}",
        flush=True,
    )
    for text in complaints[:5]:
        print(f"    WRONG: {text}")
    return len(complaints)


if __name__ == "__main__":
    sys.exit(main())
