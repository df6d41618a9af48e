"""The process that is killed: makes real SDK calls through a Meter, forked from a launcher that imported the SDK once.

Reads jobs as JSON lines from stdin, forks for each, and says `ready`, `called N`, `done` and `ended STATUS` on stdout.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai

from token_meter import Meter, MeterEvent, Retry
from token_meter.sinks import JsonlSink

MESSAGES: Any = [{"role": "user", "content": "Say something."}]


class Backend(JsonlSink):
    """A backend that is down while a file says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "backend.jsonl", name="backend")
        self._down = folder / "down"

    def send(self, events: Sequence[MeterEvent]) -> None:
        if self._down.exists():
            raise Retry("503", after=0.1)
        super().send(events)


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def meter_of(job: dict[str, Any]) -> Meter:
    folder = Path(job["folder"])
    return Meter(folder / "usage.db", Backend(folder), journal=folder / "journal", dimensions=["call"])


def make_calls(meter: Meter, job: dict[str, Any]) -> None:
    meter.allow_include_usage("127.0.0.1:*")
    client = meter.wrap(openai.OpenAI(base_url=job["url"], api_key="none", max_retries=0))
    for number in range(job["calls"]):
        with meter.customer("acme", call=number):
            if job.get("stream"):
                for _ in client.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True):
                    pass
            else:
                client.chat.completions.create(model="gpt-5", messages=MESSAGES)
        say(f"called {number + 1}")


def run(job: dict[str, Any]) -> None:
    """Make the calls and end as the job says; a job without calls is the next start, which delivers what is left."""
    meter = meter_of(job)
    say("ready")
    if job["ending"] == "restart":
        say("delivered" if meter.flush(60) else "late")
        meter.close()
        return
    if job["ending"] == "fork":
        _in_a_child(meter, job)
    else:
        make_calls(meter, job)
    say("done")
    if job["ending"] == "os._exit":
        os._exit(0)
    if job["ending"] == "wait":
        time.sleep(60)
    meter.close(2)


def _in_a_child(meter: Meter, job: dict[str, Any]) -> None:
    """A preloading server: one call in the parent, the others in a child that leaves without any clean-up."""
    make_calls(meter, {**job, "calls": 1})
    child = os.fork()
    if not child:
        make_calls(meter, {**job, "calls": job["calls"] - 1})
        os._exit(0)
    os.waitpid(child, 0)


def main() -> None:
    """Fork for each job and report how it ended."""
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                run(json.loads(line))
                sys.stdout.flush()
            except BaseException as error:
                say(f"failed {error!r}")
            os._exit(0)
        say(f"pid {child}")
        _, status = os.waitpid(child, 0)
        say(f"ended {status}")


if __name__ == "__main__":
    main()
