"""What the tests of several processes run: `python -m tests.ledger.worker <what> <url> ...`, one line in to start."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import traceback
from datetime import timedelta

from token_meter.errors import Retry
from token_meter.ledger import Ledger
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

BATCH = 50


def numbered(number):
    """Event `number` of a fixed series of events, the same in every process."""
    return make_event(
        number,
        time=make_event(0).time + timedelta(minutes=number % 300),
        customer=f"customer-{number % 7}",
        model=f"model-{number % 3}",
        usage=Usage(input=number, output=2**62 + number),
        dimensions={"feature": f"f{number % 5}"},
    )


def record(url, first, count, seed):
    """Record a range of events in an order of its own; how many were new, and how often the ledger was busy."""
    numbers = list(range(int(first), int(first) + int(count)))
    random.Random(int(seed)).shuffle(numbers)
    inserted = busy = 0
    with Ledger(url, dimensions=["feature"]) as ledger:
        say("ready")
        sys.stdin.readline()
        for start in range(0, len(numbers), BATCH):
            batch = [numbered(number) for number in numbers[start : start + BATCH]]
            while True:
                try:
                    inserted += ledger.record(batch).inserted
                    break
                except Retry:
                    busy += 1
            say(f"recorded {start + len(batch)}")
    say(json.dumps({"inserted": inserted, "busy": busy}))


def first_use(url, number):
    """Open a ledger that nobody has made yet, together with others."""
    say("ready")
    sys.stdin.readline()
    with Ledger(url, dimensions=["feature"]) as ledger:
        recorded = ledger.record([numbered(int(number))])
    say(json.dumps({"inserted": recorded.inserted}))


def fork(url, children, count):
    """Fork while another thread records; each child records and reads on its own."""
    ledger = Ledger(url, dimensions=["feature"])
    ledger.record([numbered(0)])
    thread = threading.Thread(target=lambda: [ledger.record([numbered(n)]) for n in range(1, int(count))])
    thread.start()
    pids = []
    for child in range(1, int(children) + 1):
        pid = os.fork()
        if pid == 0:
            in_child(ledger, child * int(count), int(count))
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    thread.join()
    events = len(ledger.events())
    ledger.close()
    say(json.dumps({"codes": codes, "events": events}))


def in_child(ledger, first, count):
    code = 1
    try:
        assert not open_here(ledger.file), "a connection to SQLite was inherited"
        seen = len(ledger.events())
        for number in range(first, first + count):
            ledger.record([numbered(number)])
        code = 0 if len(ledger.events()) >= seen + count else 2
        ledger.close()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def open_here(file):
    """Whether this process has the file open (as far as the system tells)."""
    try:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return str(file) in {os.readlink(link) for link in links if os.path.islink(link)}
    except FileNotFoundError:
        return False


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"record": record, "first_use": first_use, "fork": fork}[sys.argv[1]](*sys.argv[2:])
