"""Crossings of budgets' thresholds while processes are killed: each is in the outbox once, and reaches a webhook.

    python -m bench.notices                       3,400 customers, 10,200 crossings, 20 SIGKILLs
    python -m bench.notices --customers 200 --kills 4
    python -m bench.notices --ledger URL          (default: SQLite in a folder of its own)

Four processes make calls of every customer, whose soft budget of four calls crosses 50, 80 and 100 %. They are killed
at random and started again. Afterwards one process looks once, as any Meter does, and what is in the outbox is counted;
a postman then delivers to a receiver that verifies with the Standard Webhooks library and refuses one in ten at first.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from token_meter.bookkeeping.rater import LedgerRater
from token_meter.budgets.budget import Budget
from token_meter.budgets.desk import BudgetDesk
from token_meter.budgets.gate import Ended, Gate
from token_meter.budgets.rates import Caller
from token_meter.ledger import Ledger
from token_meter.notices.desk import NoticeDesk
from token_meter.notices.postman import Postman
from token_meter.providers.asking import Ask
from token_meter.schema import new_id
from token_meter.usage import Usage

PROCESSES = 4
THRESHOLDS = 3


def main() -> int:
    """Run; 1 if a crossing is missing, told twice, or not delivered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=3_400)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ledger")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return run(arguments.ledger or str(Path(folder) / "usage.db"), Path(folder), arguments)


def run(url: str, folder: Path, arguments: Any) -> int:
    """Make the crossings, kill, count, deliver."""
    with Ledger(url) as ledger:
        BudgetDesk(ledger).set(Budget.read({
            "scope": {"customer": "*"}, "limit": 4, "measure": "requests", "window": "lifetime", "enforce": "soft",
        }))  # fmt: skip
        notices = NoticeDesk(ledger)
        receiver = Receiver()
        _, receiver.secret = notices.add(receiver.url, private=True)
        began = time.monotonic()
        killed = crossings(url, folder, arguments.customers, arguments.kills)
        gate_of(ledger).tend()
        made = time.monotonic() - began
        told = Counter(
            (each["customer"], each["document"]["percent"]) for each in notices.list(kind="budget.threshold")
        )
        wanted = arguments.customers * THRESHOLDS
        twice = sum(1 for count in told.values() if count > 1)
        print(f"{wanted:,} crossings, {killed} SIGKILLs: {len(told):,} in the outbox, {wanted - len(told)} missing, "
              f"{twice} twice ({made:.0f} s)", flush=True)  # fmt: skip
        began = time.monotonic()
        clock = Later()
        postman = Postman(ledger, now=clock)
        while receiver.taken.keys() != told.keys():
            if not postman.turn():
                clock.ahead += 10
            if time.monotonic() - began > 900:
                break
        receiver.close()
        missing = told.keys() - receiver.taken.keys()
        ids = {key: len(set(ids)) for key, ids in receiver.taken.items()}
        again = sum(len(each) - 1 for each in receiver.taken.values())
        print(f"delivered {len(receiver.taken):,}, {len(missing)} missing, {again} more than once, "
              f"{sum(1 for count in ids.values() if count > 1)} with more than one id, {receiver.wrong} not verified "
              f"({time.monotonic() - began:.0f} s)")  # fmt: skip
    return (
        0 if not (wanted - len(told) or twice or missing or receiver.wrong or max(ids.values(), default=1) > 1) else 1
    )


def crossings(url: str, folder: Path, customers: int, kills: int) -> int:
    """Four processes call for every customer; they are killed and started again until each is through."""
    command = [sys.executable, "-m", "bench.notices", "--work", url, str(customers)]
    running: dict[int, subprocess.Popen[bytes]] = {}
    killed = 0
    while True:
        for number in range(PROCESSES):
            if number not in running or running[number].poll() not in (None, 0):
                running[number] = subprocess.Popen([*command, str(folder / f"done-{number}")])
        if all(each.poll() == 0 for each in running.values()):
            return killed
        if killed < kills:
            time.sleep(1.0 + random.random())
            victim = random.choice([each for each in running.values() if each.poll() is None] or [None])
            if victim is not None:
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                killed += 1
        else:
            time.sleep(0.2)


def work(url: str, customers: str, done: str) -> None:
    """One call of each customer that this process has not called for yet; begun again where it was killed."""
    file = Path(done)
    there = set(file.read_text().split()) if file.exists() else set()
    names = [f"customer-{number}" for number in range(int(customers))]
    random.shuffle(names)
    with Ledger(url) as ledger, file.open("a") as log:
        gate = gate_of(ledger)
        for name in names:
            if name in there:
                continue
            caller = Caller("live", name, "openai", "gpt-4o-mini", "openai", "chat", {})
            id = new_id()
            holding = gate.hold(id, caller, Ask(100, 10))
            assert holding is not None
            gate.settle(holding, [Ended(id, Usage(input=10), "gpt-4o-mini", "complete", {})])
            log.write(f"{name}\n")
            log.flush()
            if random.random() < 0.05:  # as the reporter's thread does five times a second
                gate.tend()
        gate.tend()


def gate_of(ledger: Ledger) -> Gate:
    """A gate as a Meter has one."""

    def problem(what: str, error: BaseException) -> None:
        print(f"{what}: {error}", file=sys.stderr)

    rater = LedgerRater()
    return Gate(ledger, lambda: rater, problem=problem, mode="live")


class Later:
    """The clock, run ahead so that nobody waits for a backoff."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Receiver:
    """Verifies with the Standard Webhooks library, and refuses one in ten the first time it comes."""

    def __init__(self) -> None:
        from standardwebhooks.webhooks import Webhook, WebhookVerificationError

        self.secret, self.wrong = "", 0
        self.taken: dict[tuple[str, int], list[str]] = {}
        refused: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                id, status = self.headers["webhook-id"], 200
                try:
                    found: Any = Webhook(receiver.secret).verify(body, dict(self.headers))
                except WebhookVerificationError as problem:
                    receiver.wrong += "timestamp" not in str(problem).lower()  # our clock runs ahead
                    import json

                    found = json.loads(body)
                if id not in refused and random.random() < 0.1:
                    refused.add(id)
                    status = 503
                elif found["type"] == "budget.threshold":
                    key = (found["data"]["customer"], found["data"]["percent"])
                    receiver.taken.setdefault(key, []).append(id)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Sequence[object]) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":
    sys.exit(main())
