"""Holds on budgets: racers for a budget of seven, workers that are killed while they hold, and what a hold costs.

    python -m bench.budgets                      everything, 100 repetitions of each race
    python -m bench.budgets --repetitions 5 --kills 4
    python -m bench.budgets --postgres URL       (default: $TOKEN_METER_TEST_POSTGRES, else the local test server)

Races: 256 threads, 256 tasks, and 4 processes of 64 threads, whose cost equals what they hold, on each store. Exactly
seven pass. Kills: workers hold, send and settle and are killed with SIGKILL at random; afterwards nothing that was sent
has been given back, nothing that was not sent is charged, and what is spent is the number of settled holds. Overhead: a
hold with its settlement, interleaved with a bare transaction of one row and a bare query on the same store.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from sqlalchemy import select

from bench.budgets_worker import part, race_once, tasks, threads
from token_meter.budgets.desk import BudgetDesk
from token_meter.budgets.hold import HoldStore
from token_meter.budgets.memory_store import MemoryHolds
from token_meter.budgets.rows import make_counters
from token_meter.budgets.stores import holds_of
from token_meter.ledger import Ledger
from token_meter.ledger.tables import holds, spend

SERVER = os.environ.get("TOKEN_METER_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
SEVEN = 7


def main() -> int:
    """Run everything; 1 if any promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--kills", type=int, default=40, help="of each store")
    parser.add_argument("--rounds", type=int, default=2_000, help="of the overhead")
    parser.add_argument("--postgres", default=SERVER)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    print(f"seed {arguments.seed}")
    fine = races("memory", MemoryHolds(), None, arguments.repetitions)
    for name, made in (("sqlite", sqlite_place), ("postgresql", lambda: postgresql_place(arguments.postgres))):
        with made() as url, Ledger(url) as ledger:
            fine &= races(name, holds_of(ledger), ledger, arguments.repetitions)
            fine &= kills(name, ledger, arguments.kills)
            fine &= overhead(name, ledger, arguments.rounds)
    return 0 if fine else 1


@contextmanager
def sqlite_place() -> Iterator[str]:
    """A ledger in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "usage.db")


@contextmanager
def postgresql_place(server: str) -> Iterator[str]:
    """A ledger in a schema of its own."""
    import psycopg

    schema = f"bench_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{server}{'&' if '?' in server else '?'}options={quote(f'-csearch_path={schema}')}"
        finally:
            connection.execute("SET client_min_messages = warning")
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


# ---- races ----


def races(name: str, store: HoldStore, ledger: Ledger | None, repetitions: int) -> bool:
    """Race on one store; whether exactly seven passed each time."""
    kinds: dict[str, Callable[[str], int]] = {
        "256-threads": lambda budget: threads(store, _names(256), part(budget, SEVEN)),
        "256-tasks": lambda budget: tasks(store, _names(256), part(budget, SEVEN)),
    }
    fine = True
    with ExitStack() as stack:
        if ledger is not None:
            runners = stack.enter_context(racing(ledger.url))
            kinds["4-processes-of-64"] = lambda budget: together(runners, budget)
        for kind, race in kinds.items():
            results, began = [], time.monotonic()
            for number in range(repetitions):
                budget = f"{kind}-{number}"
                if ledger is not None:
                    _make(ledger, budget)
                results.append(race(budget))
            wrong = [each for each in results if each != SEVEN]
            fine &= not wrong
            seconds = (time.monotonic() - began) / max(1, repetitions)
            print(f"{name:<11} {kind:<17} {repetitions} races: passed {min(results)}..{max(results)} (want 7), "
                  f"{len(wrong)} wrong, {seconds * 1000:.0f} ms each", flush=True)  # fmt: skip
    return fine


@contextmanager
def racing(url: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Four processes of 64 threads, ready to race."""
    command = [sys.executable, "-m", "bench.budgets_worker", "race", url, str(SEVEN), "64"]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for each in running:
            each.stdout.readline()  # type: ignore[union-attr]
        yield running
    finally:
        for each in running:
            each.communicate()


def together(running: list[subprocess.Popen[str]], budget: str) -> int:
    """Let them race for a budget from one moment on; how many were let through."""
    moment = time.time() + 0.02
    for each in running:
        each.stdin.write(f"{budget} {moment}\n")  # type: ignore[union-attr]
        each.stdin.flush()  # type: ignore[union-attr]
    return sum(int(each.stdout.readline()) for each in running)  # type: ignore[union-attr]


def _names(count: int) -> list[str]:
    return [uuid4().hex for _ in range(count)]


def _make(ledger: Ledger, budget: str) -> None:
    with ledger.writing() as (store, connection):
        make_counters(store, connection, [(part(budget, 0).key, 0)])


# ---- kills ----


def kills(name: str, ledger: Ledger, wanted: int) -> bool:
    """Kill workers while they hold; whether everything adds up afterwards."""
    budget = "killed"
    _make(ledger, budget)
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.budgets_worker", "hold", ledger.url, budget, str(10**9), "16", folder]
        while done < wanted:
            many = min(4, wanted - done)
            running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(many)]
            for each in running:
                each.stdout.readline()  # type: ignore[union-attr]
            for each in running:
                time.sleep(random.random() * 0.3)
                each.send_signal(signal.SIGKILL)
                each.communicate()
            done += len(running)
        lines = [line for file in Path(folder).glob("*.log") for line in file.read_text().splitlines()]
    sent = {line.partition(" ")[2] for line in lines if line.startswith("sent ")}
    told_settled = {line.partition(" ")[2] for line in lines if line.startswith("settled ")}
    BudgetDesk(ledger, now=lambda: time.time() + 3600).sweep()
    with ledger.reading() as (_, connection):
        states = {row.id: row.state for row in connection.execute(select(holds.c.id, holds.c.state))
                  if row.id.startswith("kill-")}  # fmt: skip
        counter = connection.execute(select(spend).where(spend.c.budget == budget)).one()
    settled = {id for id, state in states.items() if state == "settled"}
    lost = {id for id, state in states.items() if state == "lost"}
    given_back = sent - settled - lost
    # Between marking and writing it down a worker may die: that hold counts as sent, which is the safe side.
    unsure = lost - sent
    stuck = {id for id, state in states.items() if state == "held"}
    fine = (
        not given_back and not stuck and not told_settled - settled
        and (counter.spent, counter.held, counter.lost) == (len(settled), 0, len(lost))
    )  # fmt: skip
    print(
        f"{name:<11} {done} SIGKILLs, {len(sent)} sent: {len(settled)} settled, {len(lost)} lost "
        f"({len(unsure)} of them marked as sent and not seen to be), given back although sent {len(given_back)}, "
        f"stuck {len(stuck)}, spent {counter.spent} = settled {len(settled)}: {'fine' if fine else 'WRONG'}"
    )
    return fine


# ---- overhead ----


def overhead(name: str, ledger: Ledger, rounds: int) -> bool:
    """What a hold with its settlement costs, beside a bare transaction and a bare query on the same connection."""
    store, wanted = holds_of(ledger), part("overhead", 10**12)
    _make(ledger, "overhead")
    placeholder = "?" if ledger.file is not None else "%s"
    ledger.quickly(lambda connection: connection.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, value BIGINT)"))
    ledger.quickly(lambda connection: connection.execute("INSERT INTO bare VALUES (1, 0)"))
    write = f"UPDATE bare SET value = value + 1 WHERE id = {placeholder}"

    def bare_write() -> None:
        ledger.quickly(lambda connection: connection.execute(write, (1,)))

    def bare_query() -> None:
        ledger.quickly(lambda connection: connection.execute("SELECT 1").fetchone())

    measured: dict[str, list[float]] = {"pair": [], "write": [], "query": []}
    steps = {"pair": lambda: race_once(store, uuid4().hex, wanted), "write": bare_write, "query": bare_query}
    for number in range(rounds + 50):
        for kind, step in steps.items():
            began = time.perf_counter()
            step()
            if number >= 50:
                measured[kind].append((time.perf_counter() - began) * 1e6)
    pair, single, query = (statistics.median(measured[kind]) for kind in ("pair", "write", "query"))
    goal = "<= 120 us" if ledger.file is not None else "<= 3 bare round trips"
    fine = pair <= 120 if ledger.file is not None else pair <= 3 * single
    print(f"{name:<11} hold + settle {pair:.0f} us (want {goal}); bare transaction of one row {single:.0f} us "
          f"(ratio {pair / single:.2f}), bare query {query:.0f} us (ratio {pair / query:.2f}): "
          f"{'fine' if fine else 'missed'}")  # fmt: skip
    return True


if __name__ == "__main__":
    sys.exit(main())
