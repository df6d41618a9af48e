"""A job queue with worker processes, one of which is killed in the middle of a call.

    python examples/worker.py

Each worker makes a `Meter` of its own on the same ledger: they share the journal folder, each writes its own segment,
and whichever holds the lock delivers for all. Nothing has to be closed for the count to be right. The call that was
killed has no answer, so nobody knows what it cost; it is kept as `unmetered`, for a human to look at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import openai

from token_meter import Meter
from token_meter.testing import LoopbackProvider


@dataclass(frozen=True, slots=True)
class Job:
    """What a queue would carry: whom it is for, what to do."""

    customer: str
    text: str


def work(jobs: list[Job], base_url: str) -> None:
    """One worker process: ordinary code, and three lines that meter it."""
    meter = Meter("worker.db")
    client = meter.wrap(openai.OpenAI(base_url=base_url, api_key="none", max_retries=0))

    @meter.customer(from_=lambda job: job.customer, feature="jobs")
    def run(job: Job) -> None:
        client.responses.create(model="gpt-5-mini", input=job.text)

    for job in jobs:
        run(job)
    meter.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    with LoopbackProvider() as provider:
        quick, slow = provider.openai_url, provider.url_with(delay=5.0) + "/v1"
        healthy = spawn.Process(target=work, args=([Job("acme", "one"), Job("globex", "two")], quick))
        doomed = spawn.Process(target=work, args=([Job("initech", "three")], slow))
        healthy.start()
        doomed.start()

        wait_for(lambda: any("delay" in seen.options for seen in provider.requests))
        os.kill(doomed.pid or 0, signal.SIGKILL)
        doomed.join()
        healthy.join()
        print(f"workers left with {healthy.exitcode} and {doomed.exitcode}")

    with Meter("worker.db") as meter:  # the next start, whoever it is
        for event in sorted(meter.events(), key=lambda each: each.customer or ""):
            print(f"{event.customer:8} {event.status:10} {event.usage!r:28} {', '.join(event.anomalies)}")


if __name__ == "__main__":
    main()
