"""A sink that writes events as JSON lines to a rotating file, or to standard output."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from token_meter.errors import Rejected, Retry
from token_meter.event import MeterEvent
from token_meter.sinks.lock import ForkLock

ROTATE_BYTES: Final = 64 * 1024 * 1024
_OURS: Final = b'{"schema":'
"""How every line begins."""
_TAIL_BYTES: Final = 64 * 1024


class JsonlSink:
    """One event per line, in the stable JSON form, at least once.

    A file does not deduplicate: after a crash or a retry a line can stand there twice, with the same `id`. Lines are
    always whole. When the disk is full, what was begun is taken back and the batch is sent again later.

    The file is made with mode 0600. When it would grow beyond `rotate_bytes` it is renamed to `<path>.000001` (then
    `.000002`, …) and a new one is begun; of the renamed ones the newest `keep` stay, all if it is None. Another
    program may rename or remove the file too. `fsync="always"` makes lines survive a crash of the machine, not only
    of the process. The path `-` is standard output, which does not rotate.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rotate_bytes: int = ROTATE_BYTES,
        keep: int | None = None,
        fsync: Literal["always", "never"] = "always",
        name: str = "jsonl",
    ) -> None:
        if rotate_bytes < 1:
            raise ValueError(f"rotate_bytes must be at least 1, not {rotate_bytes}")
        if keep is not None and keep < 0:
            raise ValueError(f"keep must be None or at least 0, not {keep}")
        if fsync not in ("always", "never"):
            raise ValueError(f"fsync must be 'always' or 'never', not {fsync!r}")
        self.name = name
        self._path = None if os.fspath(path) == "-" else Path(path)
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._fsync = fsync
        self._lock = ForkLock()
        self._file: int | None = None
        self._opened_by = 0

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Append the events; all of them are there when it returns, none when it raises.

        Raises Rejected for events that cannot be written as JSON, and Retry when the file cannot be written.
        """
        data = _lines(events)
        if not data:
            return
        try:
            with self._lock:
                if self._path is None:
                    _print(data)
                else:
                    self._append(self._path, data)
        except OSError as problem:
            raise Retry(f"cannot write {self._path or 'standard output'}: {problem}") from problem

    def close(self) -> None:
        """Close the file. May be called twice; sending again opens it again."""
        with self._lock:
            self._close_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            warnings.warn(f"unclosed JsonlSink {self._path}", ResourceWarning, source=self, stacklevel=2)
            self._close_file()

    def _append(self, path: Path, data: bytes) -> None:
        file = self._locked_file(path)
        try:
            size = _mend_tail(file)
            while size and size + len(data) > self._rotate_bytes:
                self._rotate(path)
                # Another process may have written to the new file before we had its lock.
                file = self._locked_file(path)
                size = _mend_tail(file)
            _write_whole(file, data, size)
            if self._fsync == "always":
                os.fsync(file)
        finally:
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _locked_file(self, path: Path) -> int:
        """The file at the path, which nobody else writes to now.

        It is opened again in a forked process, and when somebody renamed it, which may happen while we wait.
        """
        while True:
            if self._file is not None and self._opened_by != os.getpid():
                self._close_file()
            if self._file is None:
                self._file = self._open(path)
                self._opened_by = os.getpid()
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if _is_at(self._file, path):
                return self._file
            self._close_file()

    def _open(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self._fsync == "always":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return file

    def _rotate(self, path: Path) -> None:
        rotated = _rotated(path)
        number = int(rotated[-1].suffix[1:]) + 1 if rotated else 1
        path.rename(f"{path}.{number:06}")
        self._close_file()
        if self._keep is not None:
            for old in _rotated(path)[: -self._keep or None]:
                old.unlink(missing_ok=True)

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _lines(events: Sequence[MeterEvent]) -> bytes:
    """The events as lines. Raises Rejected before anything is written."""
    lines, refused, reason = [], [], ""
    for event in events:
        try:
            lines.append(json.dumps(event.to_json(), separators=(",", ":"), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as problem:
            refused.append(event)
            reason = f"not writable as JSON: {problem}"
    if refused:
        raise Rejected(refused, reason)
    return "".join(f"{line}\n" for line in lines).encode()


def _write_whole(file: int, data: bytes, size: int) -> None:
    """Write everything, or leave the file as long as it was."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(file, view) :]
    except BaseException:
        os.ftruncate(file, size)
        raise


def _mend_tail(file: int) -> int:
    """End the file with a whole line and return its size.

    A piece of one of our own lines is what a crash left of a batch that comes again, so it is cut off. Anything else
    belongs to somebody else and is ended with a line feed.
    """
    size = os.fstat(file).st_size
    if not size or os.pread(file, 1, size - 1) == b"\n":
        return size
    start = _last_line_start(file, size)
    piece = os.pread(file, len(_OURS), start)
    if _OURS.startswith(piece):
        os.ftruncate(file, start)
        return start
    _write_whole(file, b"\n", size)
    return size + 1


def _last_line_start(file: int, size: int) -> int:
    """Where the line that the file ends in begins."""
    end = size
    while end:
        begin = max(0, end - _TAIL_BYTES)
        if (place := os.pread(file, end - begin, begin).rfind(b"\n")) >= 0:
            return begin + place + 1
        end = begin
    return 0


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _rotated(path: Path) -> list[Path]:
    """The files this one was renamed to, oldest first."""
    prefix = f"{path.name}."
    found = [each for each in path.parent.iterdir() if each.name.startswith(prefix) and each.suffix[1:].isdigit()]
    return sorted((each for each in found if each.stem == path.name), key=lambda each: int(each.suffix[1:]))


def _print(data: bytes) -> None:
    """Whole lines to standard output, whatever it is at the moment."""
    binary: Any = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(data.decode())
    else:
        sys.stdout.flush()
        binary.write(data)
    sys.stdout.flush()
