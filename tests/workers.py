"""Processes of a test that run a module of it, and are told when to go."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Worker:
    """One process running a module with these arguments."""

    def __init__(self, module, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", module, *map(str, arguments)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for(self, line):
        for said in self.process.stdout:
            if said.startswith(line):
                return
        raise AssertionError(f"the process ended without saying {line!r}")

    def go(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self):
        said, _ = self.process.communicate()
        assert self.process.returncode == 0
        return json.loads(said.splitlines()[-1])

    def kill(self):
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(module, *commands):
    """A process for each of the commands; those that still run at the end are killed."""
    started = [Worker(module, *command) for command in commands]
    try:
        yield started
    finally:
        for worker in started:
            if worker.process.poll() is None:
                worker.kill()


def together(started):
    """Let all go at once; what they say at their end."""
    for worker in started:
        worker.wait_for("ready")
    for worker in started:
        worker.go()
    return [worker.result() for worker in started]
