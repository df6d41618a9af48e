"""The process that is killed: records a plan's events through a Meter that delivers them, forked from a launcher.

Reads jobs as JSON lines from stdin, forks for each, and says `ended PID STATUS` on stdout when one is over. How far a
job is, and how far it may go, stands in a file that both sides map into memory: what is written there survives the
process, as what an application knows of its own work does.
"""

from __future__ import annotations

import gc
import json
import logging
import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import requests  # noqa: F401 - so that no job has to load it

import token_meter.sinks.stripe  # noqa: F401
from bench.billing import KINDS
from bench.plan import Plan
from token_meter import Meter

WORKERS_MAX: Final = 16
POLL_SECONDS: Final = 0.005
RECORDED_AGAIN: Final = 3
"""An application that was killed does not know whether its last events were recorded, so it records them again."""

LIMIT, FINISH, PROGRESS = 0, 1, 2
"""Places in the board: to which share (of 2**32) events may be recorded; to deliver the rest and end; who is where."""

WHOLE: Final = 2**32


class Board:
    """Whole numbers that several processes see."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * (PROGRESS + WORKERS_MAX)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._numbers = memoryview(self._map).cast("q")

    def __getitem__(self, place: int) -> int:
        return self._numbers[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._numbers[place] = value

    def close(self) -> None:
        """Let go of the file."""
        self._numbers.release()
        self._map.close()


@contextmanager
def board_in(folder: Path) -> Iterator[Board]:
    """The board of a run."""
    board = Board(folder / "board")
    try:
        yield board
    finally:
        board.close()


def meter_of(job: dict[str, Any]) -> Meter:
    """A ledger, and a sink for each backend of the run."""
    folder = Path(job["folder"])
    sinks = [KINDS[name].sink(url, name=name) for name, url in job["backends"]]
    return Meter(folder / "usage.db", *sinks, journal=folder / "journal")


def record_all(meter: Meter, job: dict[str, Any], board: Board) -> None:
    """Record this worker's share of the plan, from where the one before it was; a number is noted once it is over."""
    plan, worker, workers = Plan.of(*job["plan"]), int(job["worker"]), int(job["workers"])
    mine = range(worker, plan.events, workers)
    done = board[PROGRESS + worker]
    for place in range(max(0, done - RECORDED_AGAIN), len(mine)):
        while place * WHOLE > board[LIMIT] * len(mine):
            pause()
        event = plan.event(mine[place])
        meter.record(
            event.usage,
            id=event.id,
            time=event.time,
            customer=event.customer,
            provider=event.provider,
            model=event.model,
            meter=event.meter,
        )
        board[PROGRESS + worker] = max(done, place + 1)


def pause() -> None:
    """Wait a little. Without its launcher a worker has no business any more."""
    time.sleep(POLL_SECONDS)
    if os.getppid() == 1:
        os._exit(4)


def run(job: dict[str, Any]) -> int:
    """Record, deliver, and go on delivering until told that it is the end."""
    with board_in(Path(job["folder"])) as board:
        meter = meter_of(job)
        record_all(meter, job, board)
        while not board[FINISH]:
            pause()
        delivered = meter.flush(job["seconds_max"])
        meter.close(5)
        return 0 if delivered else 3


def _in_child(job: dict[str, Any]) -> None:
    status = 1
    try:
        status = run(job)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    """Fork for each job and report how it ended."""
    logging.getLogger("token_meter").setLevel(logging.CRITICAL)  # what fails on purpose is no news
    gc.freeze()
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if readable:
            line = sys.stdin.readline()
            if not line:
                for child in children:
                    os.kill(child, signal.SIGKILL)
                return
            child = os.fork()
            if not child:
                _in_child(json.loads(line))
            children.add(child)
            os.write(1, f"pid {child}\n".encode())
        while children:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                break
            children.discard(ended)
            os.write(1, f"ended {ended} {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
