"""The worker processes of the demo: started, heard, killed, started again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Final

from token_meter.cli.demo.customers import CUSTOMERS, Customer
from token_meter.cli.place import JOURNAL_VARIABLE, LEDGER_VARIABLE

OURS: Final = "TOKEN_METER_"
UNWANTED: Final = ("http_proxy", "https_proxy", "all_proxy", "pythonwarnings")
STOP_SECONDS: Final = 5.0
LEAVE_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A worker finished a task: so many calls, so many tokens."""

    customer: str
    what: str
    calls: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Left:
    """A worker's process ended; `code` is negative for the signal that ended it."""

    customer: str
    code: int
    complaint: str


News = TaskDone | Left


class Worker:
    """One customer's service in a process of its own. What it has to tell goes into the queue."""

    def __init__(self, customer: Customer, url: str, ledger: Path, news: SimpleQueue[News], *, pause: float) -> None:
        self.customer = customer
        self.done = 0
        self.starts = 0
        self._url = url
        self._ledger = ledger
        self._news = news
        self._pause = pause
        self._process: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker; `stop` closes

    @property
    def finished(self) -> bool:
        """Whether every task is done."""
        return self.done == len(self.customer.tasks)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it for the tasks that are not done yet."""
        command = [sys.executable, "-m", "token_meter.cli.demo.worker", self.customer.name, self._url]
        self.starts += 1
        self._process = subprocess.Popen(
            [*command, "--done", str(self.done), "--pause", str(self._pause)],
            env=_environment(self._ledger),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed, nobody says goodbye."""
        if self._process is not None:
            self._process.kill()
            self._await_listener()

    def wait(self) -> None:
        """Until it has left; a finished one closes its meter first, which delivers."""
        if self._process is not None:
            self._process.wait(LEAVE_SECONDS)
            self._await_listener()

    def stop(self) -> None:
        """End it if it still runs, and release what belongs to it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._await_listener()
        self._complaints.close()

    def _await_listener(self) -> None:
        if self._listener is not None:
            self._listener.join(STOP_SECONDS)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                _, calls, tokens, what = line.rstrip("\n").split("\t", 3)
                self.done += 1
                self._news.put(TaskDone(self.customer.name, what, int(calls), int(tokens)))
        self._news.put(Left(self.customer.name, process.wait(), self._last_complaint()))

    def _last_complaint(self) -> str:
        self._complaints.seek(0)
        return "".join(self._complaints.read().decode(errors="replace").strip().splitlines()[-1:])


def _environment(ledger: Path) -> dict[str, str]:
    """Ours without what would send the SDKs elsewhere, make their own warnings fatal, or switch metering off."""
    foreign = (OURS, *(prefix for customer in CUSTOMERS for prefix in customer.environment))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    kept = {name: value for name, value in kept.items() if name.lower() not in UNWANTED}
    here = {LEDGER_VARIABLE: str(ledger), JOURNAL_VARIABLE: f"{ledger}.journal", "TOKEN_METER_DIMENSIONS": "feature"}
    return kept | here
