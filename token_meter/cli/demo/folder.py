"""The folder the demo leaves behind: its own, made by it, and never anything else."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from token_meter.cli.exits import WRONG_USAGE, Failure

DEFAULT: Final = Path("token-meter-demo")
MARKER: Final = ".token-meter-demo"
LEDGER: Final = "usage.db"


@contextmanager
def prepared(folder: Path) -> Iterator[Path]:
    """The path of a fresh ledger in the folder, which is made if need be; what an earlier demo left is removed.

    Wrong usage for a folder that has something in it and is not the demo's; Failure while another demo runs there.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).exists())):
        raise Failure(
            f"{folder} exists and is not from the demo, so it stays as it is; name another with --keep DIR",
            code=WRONG_USAGE,
        )
    folder.mkdir(parents=True, exist_ok=True)
    marker = os.open(folder / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(marker, folder)
        _clean(folder)
        yield folder / LEDGER
    finally:
        os.close(marker)


def _lock(marker: int, folder: Path) -> None:
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(f"another demo is running in {folder}; wait for it, or name another with --keep DIR") from None


def _clean(folder: Path) -> None:
    for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / f"{LEDGER}.journal", ignore_errors=True)
