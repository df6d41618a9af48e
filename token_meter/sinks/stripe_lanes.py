"""Several requests at a time, but of one lane one after the other: Stripe takes one for each customer and meter.

A failure stops what has not begun, so that an outage is not met once for every customer; and no batch is sent for
longer than Stripe is sure to know its identifiers (see `attempts.MARGIN_SECONDS`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from token_meter.errors import Retry
from token_meter.sinks.records import Call, Refused

NAME: Final = "token-meter-stripe"
BATCH_SECONDS_MAX: Final = 240.0
"""No call begins later than this after the first one. What is left of a batch is sent by the next attempt."""


def in_lanes(
    work: Callable[[Call], list[Refused]], lanes: Sequence[Sequence[Call]], *, in_flight: int, until: float
) -> list[Refused]:
    """Work off each lane in order, at most `in_flight` lanes at a time; what was refused.

    When one fails, the others stop before their next call; the first failure is raised when all of them stand still.
    No call begins after `until`, by the monotonic clock: Retry.
    """
    waiting = deque(lanes)
    refused: list[Refused] = []
    failures: list[BaseException] = []

    def run() -> None:
        while not failures:
            try:
                lane = waiting.popleft()
            except IndexError:
                return
            for call in lane:
                if failures:
                    return
                try:
                    _in_time(until)
                    refused.extend(work(call))
                except BaseException as failure:  # noqa: BLE001 - raised again below, in the thread that waits
                    failures.append(failure)

    # The caller is one of the workers: where no thread can be started any more, it does all of the work.
    workers = min(in_flight, len(lanes))
    helpers = _started([threading.Thread(target=run, name=NAME, daemon=True) for _ in range(workers - 1)])
    run()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]
    return refused


def _in_time(until: float) -> None:
    if time.monotonic() > until:
        raise Retry(f"Stripe is slow: the batch is not through after {BATCH_SECONDS_MAX:.0f} s. The rest follows")


def _started(threads: Sequence[threading.Thread]) -> list[threading.Thread]:
    running: list[threading.Thread] = []
    for thread in threads:
        try:
            thread.start()
        except RuntimeError:  # the interpreter is going down, or there are too many
            break
        running.append(thread)
    return running
