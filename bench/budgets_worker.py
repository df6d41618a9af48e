"""A process of `bench.budgets`: threads or tasks that race for a budget, or workers that are killed while they hold."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from token_meter.budgets.hold import HoldStore, Part, Request
from token_meter.budgets.stores import holds_of
from token_meter.ledger import Ledger

FAR = 3_600_000_000


def part(budget: str, limit: int) -> Part:
    """One of `limit`."""
    return Part(budget, '["racers"]', 0, 1, limit=limit)


def race_once(store: HoldStore, id: str, wanted: Part) -> bool:
    """Hold, and settle with as much; whether it was let through."""
    now = time.time_ns() // 1000
    if store.hold(Request(id, (wanted,), now, now + FAR)).kind != "held":
        return False
    store.settle(id, "settled", [1])
    return True


def threads(store: HoldStore, names: Sequence[str], wanted: Part) -> int:
    """Race with a thread for each name; how many were let through."""
    start = threading.Barrier(len(names))
    passed: list[bool] = []

    def run(name: str) -> None:
        start.wait()
        passed.append(race_once(store, name, wanted))

    racers = [threading.Thread(target=run, args=(name,)) for name in names]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    return sum(passed)


def tasks(store: HoldStore, names: Sequence[str], wanted: Part) -> int:
    """Race with a task for each name, as the wrapper does: in worker threads."""

    async def run() -> int:
        return sum(await asyncio.gather(*(asyncio.to_thread(race_once, store, name, wanted) for name in names)))

    return asyncio.run(run())


def hold_until_killed(store: HoldStore, folder: Path, wanted: Part) -> None:
    """Hold, say that it is sent, write that down as the provider would, settle; on and on, until somebody kills it."""
    log = os.open(folder / f"{os.getpid()}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    number = 0
    while True:
        id = f"kill-{os.getpid()}-{threading.get_ident()}-{number}"
        number += 1
        now = time.time_ns() // 1000
        if store.hold(Request(id, (wanted,), now, now + 1_000_000, sent=False)).kind != "held":
            time.sleep(0.01)
            continue
        store.mark_sent([id])
        os.write(log, f"sent {id}\n".encode())
        time.sleep(random.random() * 0.004)
        store.settle(id, "settled", [1])
        os.write(log, f"settled {id}\n".encode())


def main(arguments: Sequence[str]) -> None:
    """`race URL LIMIT COUNT`, told a budget and a moment line by line, or `hold URL BUDGET LIMIT COUNT FOLDER`."""
    kind, url, *rest = arguments
    with Ledger(url) as ledger:
        store = holds_of(ledger)
        if kind == "race":
            limit, count = map(int, rest)
            store.sweep(0)  # everything is open
            print("ready", flush=True)
            for line in sys.stdin:
                budget, moment = line.split()
                time.sleep(max(0.0, float(moment) - time.time()))
                names = [f"{budget}-{os.getpid()}-{number}" for number in range(count)]
                print(threads(store, names, part(budget, limit)), flush=True)
            return
        budget, most, many, last = rest
        wanted, count = part(budget, int(most)), int(many)
        run: Callable[[], None] = lambda: hold_until_killed(store, Path(last), wanted)  # noqa: E731
        workers = [threading.Thread(target=run, daemon=True) for _ in range(count)]
        for worker in workers:
            worker.start()
        print("ready", flush=True)
        workers[0].join()


if __name__ == "__main__":
    main(sys.argv[1:])
