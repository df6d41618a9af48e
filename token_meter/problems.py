"""Failures inside metering: counted, written down once per kind, never raised into anyone's call.

No prompt and no key may end up in a file. Messages of the operating system and of this package are ours; of
any other exception only its type and where it was raised are kept (its text may quote what it could not parse).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from token_meter.errors import TokenMeterError
from token_meter.event import format_time
from token_meter.folder import JournalFolder
from token_meter.patience import PatientLock
from token_meter.segments import read_lines

KINDS_MAX: Final = 200
MESSAGE_CHARACTERS_MAX: Final = 500
FILE_BYTES_MAX: Final = 1 << 20
Problem = Callable[[str, BaseException | str], None]
log: Final = logging.getLogger("token_meter")


class Problems:
    """Counts problems by kind. The 1st, 10th, 100th ... of a kind is logged and written to problems.jsonl."""

    def __init__(self, path: Path) -> None:
        self.counts: dict[str, int] = {}
        self._path = path
        self._lock = PatientLock()
        self._process = os.urandom(4).hex()

    def record(self, what: str, error: BaseException | str) -> None:
        """Count one problem of the kind `what`. Never raises."""
        try:
            with self._lock:
                kind = what if what in self.counts or len(self.counts) < KINDS_MAX else "other"
                count = self.counts[kind] = self.counts.get(kind, 0) + 1
            if _worth_telling(count):
                self._tell(kind, describe(error), count)
        except Exception as failure:  # noqa: BLE001 - the last line of defence: only the log is left to tell
            log.error("token_meter could not record a problem: %s", type(failure).__name__)

    def _tell(self, kind: str, message: str, count: int) -> None:
        log.error("token_meter: %s: %s (%d so far)", kind, message, count)
        entry = {"time": format_time(datetime.now(UTC)), "pid": os.getpid(), "process": self._process}
        entry |= {"what": kind, "error": message, "count": count}
        try:
            _append(self._path, json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            log.error("token_meter: cannot write %s: %s", self._path, error.strerror)

    def after_fork(self) -> None:
        """A child counts its own."""
        self._lock = PatientLock()
        self._process = os.urandom(4).hex()
        self.counts = {}


def describe(error: BaseException | str) -> str:
    """What may be kept of an error."""
    if isinstance(error, str):
        text = error
    elif isinstance(error, TokenMeterError):
        text = f"{type(error).__name__}: {error}"
    elif isinstance(error, OSError) and error.errno is not None:
        text = f"{type(error).__name__}: {os.strerror(error.errno)}"
    else:
        text = f"{type(error).__name__}{_where(error)}"
    return text[:MESSAGE_CHARACTERS_MAX]


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f" at {os.path.basename(code.co_filename)}:{trace.tb_lineno} ({code.co_name})"


def _worth_telling(count: int) -> bool:
    return str(count).strip("0") == "1"


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        full = os.fstat(descriptor).st_size + len(line) > FILE_BYTES_MAX
        if full:
            os.replace(path, path.with_suffix(".old.jsonl"))
        else:
            os.write(descriptor, line)
    finally:
        os.close(descriptor)
    if full:
        _append(path, line)


def read_problems(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Problems by kind over all processes: what, error (the latest), count, first, last."""
    path = JournalFolder(folder).problems
    kinds: dict[str, dict[str, Any]] = {}
    counts: dict[tuple[str, str], int] = {}
    for entry in (*_read(path.with_suffix(".old.jsonl")), *_read(path)):
        what, count = str(entry.get("what")), int(entry.get("count") or 1)
        process = (what, str(entry.get("process")))
        counts[process] = max(count, counts.get(process, 0))
        kind = kinds.setdefault(what, {"what": what, "first": entry.get("time")})
        kind |= {"error": entry.get("error"), "last": entry.get("time")}
    for what, kind in kinds.items():
        kind["count"] = sum(count for (name, _), count in counts.items() if name == what)
    return list(kinds.values())


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        lines = [line.raw for line in read_lines(descriptor, 0) if line.raw]
    finally:
        os.close(descriptor)
    return [entry for entry in map(_entry, lines) if entry is not None]


def _entry(raw: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(raw)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
