"""What a billing backend counted is what the ledger has, however the deliverer and the backend misbehave.

    python -m bench.sinks [--events 20000] [--kills 20] [--sink lago,webhook,...] [--seed N]

A worker records events through a Meter with a ledger and a sink, and is killed with SIGKILL again and again while the
backend fails in every way there is: before it has counted, after it has counted and did not say so, by hanging, by
hanging up, by asking for patience. Each sink alone; three at once, of which one backend is dead at first, which may not
delay the others; eight workers with one journal. In the end the backend's sums per customer, meter and what usage is
split by are compared with the plan of what was recorded, and with what the sink makes of the ledger's events.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from bench.billing import KINDS, Key, Kind, external_ids
from bench.plan import CUSTOMERS, Plan
from bench.sinks_worker import FINISH, LIMIT, WHOLE, Board, board_in
from token_meter.accounts.book import CustomerBook
from token_meter.accounts.directory import LedgerAccounts
from token_meter.deliver import quarantined
from token_meter.ledger import Ledger
from token_meter.testing.backends import Chaos, FakeBackend

POLL_SECONDS: Final = 0.002
AHEAD: Final = 0.05
"""So much more of the plan than is counted may be recorded: so kills hit a worker that records and delivers."""

HURRY_SECONDS_MAX: Final = 0.05
"""A kill comes at most so long after the backend has counted what was chosen for it."""


@dataclass(slots=True)
class Weather(Chaos):
    """Counts what befalls. One in eight who are throttled is told when to come again; the others are told nothing."""

    befell: Counter[str] = field(default_factory=Counter)

    def next(self) -> Any:
        fault = Chaos.next(self)
        self.befell[fault or "fine"] += 1
        self.retry_after = 1.0 if self.befell["throttled"] % 8 == 1 else None
        return fault


TAKEN_IN_SILENCE: Final = ("error_after", "hang_after", "reset_after")
"""Faults after which the backend has counted, and who asked does not know."""
FAULTS: Final = (*TAKEN_IN_SILENCE, "error_before", "reset_before", "unavailable", "throttled", "slow")


def bad_weather(seed: int, *, share: float = 1 / 8, first: int = len(FAULTS)) -> Weather:
    """First so many kinds of faults, each after a request that goes well; then this share of requests goes wrong."""
    chance = random.Random(seed)
    chosen = [chance.choice(TAKEN_IN_SILENCE)]
    chosen += chance.sample([each for each in FAULTS if each not in chosen], first - 1)
    script: list[Any] = [each for fault in chosen for each in (None, fault)]
    chances = dict.fromkeys(FAULTS, share / len(FAULTS))
    return Weather(**chances, hang_seconds=0.2, slow_seconds=0.05, seed=seed, script=script)


class Launcher:
    """The workers' parent: imports everything once and forks for each job."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.sinks_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        self._said = b""
        self._ended: dict[int, int] = {}

    def start(self, job: Mapping[str, Any], *, seconds_max: float = 60.0) -> int:
        """Begin a job; returns the pid of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + seconds_max
        while (pid := self._listen(deadline)) is None:
            continue
        return pid

    def status(self, pid: int, *, seconds_max: float) -> int:
        """How a process ended; negative for a signal."""
        deadline = time.monotonic() + seconds_max
        while pid not in self._ended:
            self._listen(deadline)
        return self._ended[pid]

    def _listen(self, deadline: float) -> int | None:
        """Take one line: that somebody ended, or the pid of a new process."""
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the launcher says nothing")
            piece = os.read(self._process.stdout.fileno(), 65_536)
            if not piece:
                raise RuntimeError("the launcher died")
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        word, *numbers = line.split()
        if word == b"pid":
            return int(numbers[0])
        self._ended[int(numbers[0])] = int(numbers[1])
        return None

    def close(self) -> None:
        """End it, and whatever it has begun."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who delivers to whom. The backend of `dead` takes connections and never answers until the others have all."""

    name: str
    kinds: tuple[str, ...]
    workers: int = 1
    dead: str | None = None


@dataclass(slots=True)
class Outcome:
    """What a scenario came to."""

    events: int
    kills: int = 0
    records: int = 0
    requests: int = 0
    faults: int = 0
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0
    alone_seconds: float | None = None
    complaints: list[str] = field(default_factory=list)


class Run:
    """One scenario on one journal, from the first event to the comparison."""

    def __init__(
        self,
        scenario: Scenario,
        launcher: Launcher,
        folder: Path,
        *,
        events: int,
        kills: int,
        seed: int,
        ahead: float = AHEAD,
        weather: Callable[[int], Weather] = bad_weather,
    ) -> None:
        self.scenario = scenario
        self.outcome = Outcome(events)
        self._ahead = ahead
        self._weather = weather
        self._launcher = launcher
        self._folder = folder
        self._chance = random.Random(seed)
        self._kills = kills
        span = timedelta(hours=1)
        self._plan = Plan(seed, events, datetime.now(UTC) - span - timedelta(minutes=1), span)
        self._expected = {name: expected_of(KINDS[name], self._plan) for name in scenario.kinds}
        self._records = {name: sum(times for times, _ in keys.values()) for name, keys in self._expected.items()}
        self._fakes: dict[str, FakeBackend] = {}

    def play(self, *, seconds_max: float) -> Outcome:
        """Everything. Raises TimeoutError when it takes longer."""
        began = time.monotonic()
        deadline = began + seconds_max
        register_customers(self._folder / "usage.db")
        with ExitStack() as stack:
            for place, name in enumerate(self.scenario.kinds):
                fake = KINDS[name].fake(free_port())
                fake.chaos = self._weather(self._plan.seed + place)
                self._fakes[name] = fake
            dead = self.scenario.dead
            hole = stack.enter_context(BlackHole(self._fakes[dead].port)) if dead is not None else None
            for name, fake in self._fakes.items():
                if name != dead:
                    stack.enter_context(fake)
            board = stack.enter_context(board_in(self._folder))
            workers = [self._begin(worker, deadline) for worker in range(self.scenario.workers)]
            self._torment(workers, board, deadline)
            if dead is not None and hole is not None:
                self._await_share(1.0, board, deadline)
                self._check_not_delayed(dead, hole, began)
                hole.close()
                stack.enter_context(self._fakes[dead])
            board[FINISH] = 1
            for worker, pid in enumerate(workers):
                self._await_end(worker, pid, deadline)
            self._count()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # ---- while it runs ----

    def _begin(self, worker: int, deadline: float) -> int:
        return self._launcher.start(
            {
                "folder": str(self._folder),
                "backends": [[name, fake.url] for name, fake in self._fakes.items()],
                "plan": self._plan.to_json(),
                "worker": worker,
                "workers": self.scenario.workers,
                "seconds_max": max(1.0, deadline - time.monotonic()),
            }
        )

    def _torment(self, workers: list[int], board: Board, deadline: float) -> None:
        """Kill somebody whenever the backends have counted as much as was drawn, and start them again at once."""
        for share in sorted(self._chance.uniform(0.0, 0.97) for _ in range(self._kills)):
            self._await_share(share, board, deadline)
            time.sleep(self._chance.uniform(0.0, HURRY_SECONDS_MAX))
            victim = self._chance.randrange(len(workers))
            os.kill(workers[victim], signal.SIGKILL)
            if self._launcher.status(workers[victim], seconds_max=60) == -signal.SIGKILL:
                self.outcome.kills += 1
            workers[victim] = self._begin(victim, deadline)
        board[LIMIT] = WHOLE

    def _await_share(self, share: float, board: Board, deadline: float) -> None:
        """Until every living backend has counted this share; more may be recorded as they do."""
        while (done := self._share_counted()) < share:
            board[LIMIT] = min(WHOLE, int((done + self._ahead) * WHOLE))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.scenario.name}: {done:.1%} counted, {self._told()}")
            time.sleep(POLL_SECONDS)

    def _share_counted(self) -> float:
        alive = [name for name in self._fakes if name != self.scenario.dead]
        return min(len(self._fakes[name].counted) / self._records[name] for name in alive)

    def _check_not_delayed(self, dead: str, hole: BlackHole, began: float) -> None:
        """The others have everything while the dead one has nothing."""
        self.outcome.alone_seconds = time.monotonic() - began
        if not hole.tried:
            self.outcome.complaints.append(f"nobody tried to reach {dead}, so it could delay nobody")
        if self._fakes[dead].counted:
            self.outcome.complaints.append(f"{dead} was not dead")

    def _await_end(self, worker: int, pid: int, deadline: float) -> None:
        try:
            status = self._launcher.status(pid, seconds_max=max(1.0, deadline - time.monotonic()))
        except TimeoutError:
            raise TimeoutError(f"{self.scenario.name}: worker {worker} does not end, {self._told()}") from None
        if status:
            self.outcome.complaints.append(f"worker {worker} ended with status {status}, {self._told()}")

    def _told(self) -> str:
        from token_meter.backlog import status

        told = [f"{each.name}: {each.last_error}" for each in status(self._folder / "journal").deliveries]
        return f"last errors: {'; '.join(told)}"

    # ---- afterwards ----

    def _count(self) -> None:
        outcome = self.outcome
        with Ledger(self._folder / "usage.db") as ledger:
            events = ledger.events()
            outcome.complaints += compare_ledger(self._plan, events)
            for name, fake in self._fakes.items():
                lost, twice, complaints = compare_backend(name, fake, self._expected[name])
                outcome.lost, outcome.twice = outcome.lost + lost, outcome.twice + twice
                outcome.complaints += complaints
                outcome.complaints += compare_mapping(name, fake, ledger, events)
                outcome.complaints += [f"{name}: the fake failed: {error!r}" for error in fake.errors]
        for name, fake in self._fakes.items():
            assert isinstance(fake.chaos, Weather)
            outcome.records += self._records[name]
            outcome.requests += fake.chaos.befell.total()
            outcome.faults += fake.chaos.befell.total() - fake.chaos.befell["fine"]
        for name in (*self._fakes, "ledger"):
            refused = [entry for entry in quarantined(self._folder / "journal", name) if entry.state != "delivered"]
            outcome.complaints += [f"{name}: {len(refused)} in quarantine: {refused[0].reason}"] if refused else []
        if outcome.kills < self._kills:
            outcome.complaints.append(f"only {outcome.kills} of {self._kills} kills hit a living process")


class BlackHole:
    """A server that takes connections and never answers: the worst way of being down. `tried`: somebody has come."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", port), backlog=64)

    @property
    def tried(self) -> bool:
        """Whether a connection waits."""
        return bool(select.select([self._server], [], [], 0)[0])

    def close(self) -> None:
        """Hang up on everybody."""
        self._server.close()

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    """A port that nobody uses now: a backend that is dead at first has an address all the same."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def register_customers(path: Path) -> None:
    """Enter in the ledger what the backends know the customers by."""
    with Ledger(path) as ledger:
        CustomerBook(ledger).edit_many({each: {"external_ids": external_ids(each)} for each in CUSTOMERS})


# ---- the comparison ----

Tally = dict[Key, tuple[int, int]]
"""How many records of each kind there are, and their sum."""


def expected_of(kind: Kind, plan: Plan) -> Tally:
    """What a backend should have counted in the end."""
    return tallied(
        (each.key, each.value) for number in range(plan.events) for each in kind.expected(plan.event(number))
    )


def tallied(records: Iterator[tuple[Key, int]]) -> Tally:
    """Number and sum by key."""
    times: Counter[Key] = Counter()
    sums: Counter[Key] = Counter()
    for key, value in records:
        times[key] += 1
        sums[key] += value
    return {key: (times[key], sums[key]) for key in times}


def compare_backend(name: str, fake: FakeBackend, expected: Tally) -> tuple[int, int, list[str]]:
    """How many records are not there, how many are there twice, and what else is wrong."""
    there = tallied(((each.customer, each.meter, *each.group), each.value) for each in fake.counted)
    repeated = fake.counted_twice()
    lost = twice = 0
    complaints = [f"{name} counted {identifier} twice" for identifier in repeated]
    for key in sorted(expected.keys() | there.keys()):
        (times, total), (times_there, total_there) = expected.get(key, (0, 0)), there.get(key, (0, 0))
        lost += max(0, times - times_there)
        twice += max(0, times_there - times)
        if (times, total) != (times_there, total_there):
            complaints.append(f"{name} {key}: {times_there} records of {total_there}, not {times} of {total}")
    dropped = getattr(fake, "dropped", ())
    complaints += [f"{name} took {len(dropped)} records that it does not count: {dropped[0]}"] if dropped else []
    return lost, max(twice, len(repeated)), complaints


def compare_ledger(plan: Plan, events: Sequence[Any]) -> list[str]:
    """The ledger has each planned event once, as it was planned."""
    known = {event.id: event for event in events}
    complaints = [f"the ledger has {len(events)} events with {len(known)} ids"] if len(known) < len(events) else []
    for number in range(plan.events):
        planned = plan.event(number)
        event = known.pop(planned.id, None)
        if event is None or (event.customer, event.meter, dict(event.usage)) != (
            planned.customer, planned.meter, dict(planned.usage),
        ):  # fmt: skip
            complaints.append(f"the ledger has {event} for {planned}")
    return complaints + [f"the ledger has {len(known)} events that nobody recorded"] * bool(known)


def compare_mapping(name: str, fake: FakeBackend, ledger: Ledger, events: Sequence[Any]) -> list[str]:
    """The backend's sums by customer and meter are what the sink itself makes of the ledger's events."""
    sink = KINDS[name].sink(fake.url, name=name)
    if not hasattr(sink, "reported"):
        sums: Counter[tuple[str, ...]] = Counter()
        for event in events:
            for type_, value in event.usage.items():
                sums[(event.customer, type_)] += value
        there = Counter[tuple[str, ...]]()
        for each in fake.counted:
            there[(each.customer, each.group[-1])] += each.value
    else:
        sink.bind(LedgerAccounts(ledger))
        reported, refusals = sink.reported(events)
        if refusals:
            return [f"{name}: the sink refuses {len(refusals)} of the ledger's events: {refusals[0].reason}"]
        sums, there = Counter(), Counter()
        for _, what in reported:
            sums[(what.customer, what.meter)] += what.value
        for each in fake.counted:
            there[(each.customer, each.meter)] += each.value
    sink.close()
    wrong = [key for key in sorted(sums.keys() | there.keys()) if sums[key] != there[key]]
    return [f"{name} {key}: {there[key]}, by the ledger {sums[key]}" for key in wrong]


# ---- the programme ----


def scenarios(kinds: Sequence[str]) -> list[Scenario]:
    """Each sink alone; three at once with a dead one among them, and eight workers, if enough are chosen."""
    every = [Scenario(kind, (kind,)) for kind in kinds]
    if len(kinds) >= 3:
        three = tuple(each for each in ("lago", "amberflo", "webhook") if each in kinds)
        three = three if len(three) == 3 else tuple(kinds[:3])
        every.append(Scenario("three, one of them dead", three, dead=three[0]))
    every.append(Scenario("eight workers", tuple(kinds[:1]), workers=8))
    return every


def play(scenario: Scenario, launcher: Launcher, *, events: int, kills: int, seed: int, seconds_max: float) -> Outcome:
    """One scenario in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="token_meter-sinks-") as name:
        run = Run(scenario, launcher, Path(name), events=events, kills=kills, seed=seed)
        return run.play(seconds_max=seconds_max)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--sink", default=",".join(KINDS), help=f"any of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--seconds-max", type=float, default=3600.0, help="for each scenario (default: an hour)")
    chosen = parser.parse_args()
    kinds = [name.strip() for name in chosen.sink.split(",")]
    if unknown := [name for name in kinds if name not in KINDS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    print(f"{chosen.events} events, {chosen.kills} kills in each scenario, seed {chosen.seed}")
    print("records: what the events make for the backends; requests and faults: as the backends saw them")
    print(
        f"{'scenario':24} {'events':>7} {'records':>8} {'kills':>6} {'requests':>9} {'faults':>7} {'lost':>5} "
        f"{'twice':>6} {'seconds':>8}"
    )
    failures = 0
    with Launcher() as launcher:
        for scenario in scenarios(kinds):
            outcome = play(
                scenario, launcher, events=chosen.events, kills=chosen.kills, seed=chosen.seed,
                seconds_max=chosen.seconds_max,
            )  # fmt: skip
            failures += _report(scenario, outcome)
    return 1 if failures else 0


def _report(scenario: Scenario, outcome: Outcome) -> int:
    print(
        f"{scenario.name:24} {outcome.events:7} {outcome.records:8} {outcome.kills:6} {outcome.requests:9} "
        f"{outcome.faults:7} {outcome.lost:5} {outcome.twice:6} {outcome.seconds:8.1f}",
        flush=True,
    )
    if outcome.alone_seconds is not None:
        print(f"    while {scenario.dead} was dead, the others had everything after {outcome.alone_seconds:.1f} s")
    for text in outcome.complaints[:5]:
        print(f"    WRONG: {text}")
    return len(outcome.complaints) + outcome.lost + outcome.twice


if __name__ == "__main__":
    sys.exit(main())
