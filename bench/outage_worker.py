"""The process that delivers, before and after an outage. `python -m bench.outage_worker JOB` with a JSON object.

It says in one line of JSON what it did, and how much memory it took at most.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from bench.billing import KINDS
from token_meter.accounts.directory import LedgerAccounts
from token_meter.deliver import deliver_once
from token_meter.ledger import Ledger
from token_meter.sinks import LedgerSink


def to_stripe(job: dict[str, Any]) -> dict[str, Any]:
    """Deliver to Stripe, at the time that it is there."""
    offset = float(job["clock_offset"])
    sink = KINDS["stripe-stream"].sink(job["url"], name="stripe", now=lambda: time.time() + offset)
    with Ledger(Path(job["folder"]) / "usage.db") as ledger:
        sink.bind(LedgerAccounts(ledger))
        try:
            return _delivered(job, sink)
        finally:
            sink.close()


def to_ledger(job: dict[str, Any]) -> dict[str, Any]:
    """Deliver to the ledger, which is never down."""
    sink = LedgerSink(Path(job["folder"]) / "usage.db")
    try:
        return _delivered(job, sink)
    finally:
        sink.close()


def _delivered(job: dict[str, Any], sink: Any) -> dict[str, Any]:
    began, cpu_began = time.monotonic(), time.process_time()
    done = deliver_once(Path(job["folder"]) / "journal", sink, timeout=job["seconds_max"], replay=True)
    return {
        "sent": done.sent,
        "quarantined": done.quarantined,
        "complete": done.complete,
        "error": done.error,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """The most memory this process ever had resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def main() -> None:
    logging.getLogger("token_meter").setLevel(logging.CRITICAL)
    job = json.loads(sys.argv[1])
    print(json.dumps(to_ledger(job) if job["to"] == "ledger" else to_stripe(job)))


if __name__ == "__main__":
    main()
