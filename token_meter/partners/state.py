"""How far a pull has come, in a small file that only moves once the events are on disk.

Beside the position it keeps the ids of what was recorded lately: the time before the position is read again, because
rows come late, and what comes again need not be recorded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from token_meter.event import format_time, parse_time
from token_meter.folder import read_document, replace
from token_meter.locks import FileLock
from token_meter.partners.base import PartnerError

RECENT_MAX: Final = 20_000
"""So many ids are kept; where more come again, the ledger and the sinks know them by their ids."""

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Position:
    """Everything between `began` and `reached` was pulled; `recent` are ids with their times."""

    began: datetime
    reached: datetime
    recent: Mapping[str, str] = field(default_factory=dict)


class Cursor:
    """The file of one pull, and the lock of the process that pulls."""

    def __init__(self, path: Path, *, about: Mapping[str, Any]) -> None:
        self.path = path
        self._about = dict(about)

    def load(self) -> Position | None:
        """Where the last pull came to; None before the first. Raises PartnerError for a file that is none of ours."""
        if not self.path.exists():
            return None
        document = read_document(self.path)
        try:
            if document is None or document["about"] != self._about:
                raise PartnerError(
                    f"{self.path} is not the position of this pull, but of {_shown(document)}. Name another file "
                    "(cursor=, --cursor), or move it away to begin anew"
                )
            recent = {str(id): str(at) for id, at in document["recent"].items()}
            return Position(parse_time(document["began"]), parse_time(document["reached"]), recent)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise PartnerError(
                f"{self.path} cannot be read as the position of a pull: move it away, and say from when on to pull"
            ) from None

    def save(self, position: Position) -> None:
        """Replace the file, in one step and durably. Raises OSError."""
        document = {
            "schema": SCHEMA,
            "about": self._about,
            "began": format_time(position.began),
            "reached": format_time(position.reached),
            "recent": dict(position.recent),
        }
        replace(self.path, document, durable=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process pulls with a cursor. Raises PartnerError when another does."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f"{self.path.name}.lock"))
        if not lock.acquire():
            raise PartnerError(f"another process is pulling with {self.path}: wait until it is done")
        try:
            yield
        finally:
            lock.release()


def default_path(journal: Path, about: Mapping[str, Any]) -> Path:
    """`<journal>/partners/<name>-<digest>.json`: another place, or other parameters, is another pull."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    return journal / "partners" / f"{about['partner']}-{digest}.json"


def _shown(document: Mapping[str, Any] | None) -> str:
    about = (document or {}).get("about")
    return json.dumps(about, sort_keys=True) if isinstance(about, dict) else "something else"
