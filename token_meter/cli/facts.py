"""What `doctor` looks at, read once: the ledger, the journal, the packages, the environment."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.place import Place, reading
from token_meter.cli.version import version_of
from token_meter.errors import TokenMeterError
from token_meter.folder import JournalFolder
from token_meter.providers import SDKS

if TYPE_CHECKING:
    from token_meter.backlog import JournalStatus
    from token_meter.ledger import Conflict, Ledger, LedgerSummary

ANOMALIES_READ_MAX: Final = 10_000
CONFLICTS_SHOWN_MAX: Final = 3
OURS: Final = "TOKEN_METER_"
OVERLAY: Final = ("overlay", "aufs")
VOLATILE: Final = ("tmpfs", "ramfs")
NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs")


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """The ledger, and the events since `since`."""

    summary: LedgerSummary
    revision: str
    since: datetime
    by_status: Mapping[str, int]
    unattributed: int
    anomalies: Mapping[str, int]
    anomalies_read: int
    conflicts: tuple[Conflict, ...]
    pending: int = 0
    """Events without a price, or not rated yet."""
    prices_held: int = 0
    """Prices that wait for somebody to accept or reject them."""
    uncovered: Mapping[str, int] = field(default_factory=dict)
    """Values of meters that no rate is about, though there are plans."""
    lost_holds: int = 0
    """Holds on budgets of which nobody knows what became."""
    unreached: tuple[str, ...] = ()
    """Addresses that notices do not reach, or are not posted to any more."""
    unsigned: int = 0
    """Endpoints to which nothing is posted because the library that signs is not installed."""
    prices_of: datetime | None = None
    """When the prices were last compiled or synced."""

    @property
    def events(self) -> int:
        """How many events there are since then."""
        return sum(self.by_status.values())


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A folder's disk: its kind, what is free, whether we may write."""

    path: Path
    kind: str
    free_bytes: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `doctor` judges. `ledger` is None when it cannot be read; `ledger_trouble` says why."""

    place: Place
    ledger: LedgerFacts | None
    ledger_trouble: str | None
    journal: JournalStatus | None
    journal_trouble: str | None
    disk: DiskFacts | None
    sdks: Mapping[str, str | None]
    hooks: Mapping[str, str | None] = field(default_factory=dict)
    environment: tuple[str, ...] = ()
    disabled: bool = False


def read_facts(place: Place, *, since: datetime, deep: bool) -> Facts:
    """Read everything; what cannot be read becomes a fact too."""
    ledger, ledger_trouble = _read_ledger(place, since)
    journal, journal_trouble = _read_journal(place)
    return Facts(
        place=place,
        ledger=ledger,
        ledger_trouble=ledger_trouble,
        journal=journal,
        journal_trouble=journal_trouble,
        disk=_read_disk(place.journal),
        sdks={sdk.package: version_of(sdk.package) for sdk in SDKS},
        hooks=_read_hooks() if deep else {},
        environment=tuple(sorted(name for name in os.environ if name.startswith(OURS))),
        disabled=os.environ.get("TOKEN_METER_DISABLED", "") not in ("", "0", "false"),
    )


def _read_ledger(place: Place, since: datetime) -> tuple[LedgerFacts | None, str | None]:
    try:
        with reading(place) as ledger:
            return _ledger_facts(ledger, since), None
    except TokenMeterError as error:
        return None, str(error)


def _ledger_facts(ledger: Ledger, since: datetime) -> LedgerFacts:
    from token_meter.ledger import ANY
    from token_meter.ledger.migrate import HEAD

    statuses = ledger.usage(by=("status",), meter=ANY, since=since)
    unattributed = ledger.usage(by=("customer",), meter=ANY, customer=None, since=since)
    summary = ledger.summary()
    kinds, seen = _anomalies(ledger, since) if summary.with_anomalies else (Counter[str](), 0)
    conflicts = [each for each in ledger.conflicts(limit=100) if each.kind == "conflict"] if summary.conflicts else []
    return LedgerFacts(
        summary=summary,
        revision=HEAD,
        since=since,
        by_status={str(row.group["status"]): row.events for row in statuses},
        unattributed=sum(row.events for row in unattributed),
        anomalies=kinds,
        anomalies_read=seen,
        conflicts=tuple(conflicts[:CONFLICTS_SHOWN_MAX]),
        pending=ledger.pending(),
        prices_held=_prices_held(ledger),
        uncovered=_uncovered(ledger, since),
        prices_of=_prices_of(ledger),
        lost_holds=_lost_holds(ledger),
        unreached=_unreached(ledger),
        unsigned=_unsigned(ledger),
    )


def _lost_holds(ledger: Ledger) -> int:
    from token_meter.budgets.desk import BudgetDesk

    return sum(1 for each in BudgetDesk(ledger).holds() if each.state == "lost")


def _unsigned(ledger: Ledger) -> int:
    from token_meter.notices.desk import NoticeDesk
    from token_meter.notices.postman import can_sign

    return 0 if can_sign() else sum(1 for each in NoticeDesk(ledger).endpoints() if not each.disabled)


def _unreached(ledger: Ledger) -> tuple[str, ...]:
    from token_meter.notices.desk import NoticeDesk

    return tuple(
        f"{each.shown} ({'disabled' if each.disabled else 'failing'}: {each.reason})"
        for each in NoticeDesk(ledger).endpoints()
        if each.disabled or each.failing
    )


def _anomalies(ledger: Ledger, since: datetime) -> tuple[Counter[str], int]:
    """The kinds among the newest events; a kind is what stands before the colon."""
    kinds: Counter[str] = Counter()
    seen = 0
    for event in ledger.iter_events(since=since, order="desc"):
        if seen == ANOMALIES_READ_MAX:
            break
        seen += 1
        kinds.update({anomaly.partition(":")[0] for anomaly in event.anomalies})
    return kinds, seen


def _read_journal(place: Place) -> tuple[JournalStatus | None, str | None]:
    from token_meter.backlog import status

    try:
        if not JournalFolder(place.journal).exists():
            return None, None
        return status(place.journal), None
    except OSError as error:
        return None, f"{error.filename or place.journal} cannot be read: {error.strerror or error}"
    except TokenMeterError as error:
        return None, str(error)


def _read_disk(folder: Path) -> DiskFacts | None:
    """The disk of the folder, or of where it would be made."""
    path = folder.absolute()
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    try:
        room = os.statvfs(path)
    except OSError:
        return None
    parts = [path, *(path / name for name in ("segments", "cursors", "locks") if os.path.exists(path / name))]
    writable = all(os.access(part, os.W_OK | os.X_OK) for part in parts)
    return DiskFacts(path, file_system(path), room.f_bavail * room.f_frsize, writable)


def file_system(path: Path) -> str:
    """The kind of file system a path is on (`ext4`, `overlay`, `nfs`); empty where nobody tells."""
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
            _, mount, name, *_ = line.split(" ")
            mount = mount.replace("\\040", " ")
            if len(mount) >= len(best) and (path == Path(mount) or path.is_relative_to(mount)):
                best, kind = mount, name
    return kind


def _read_hooks() -> dict[str, str | None]:
    """By package: None when metering finds its hooks there, else why not. Imports the SDKs."""
    return {sdk.package: _hook_trouble(sdk) for sdk in SDKS if version_of(sdk.package) is not None}


def _hook_trouble(sdk: Any) -> str | None:
    import importlib

    try:
        importlib.import_module(sdk.root)
        patches = sdk.load().instrument(sdk.name, None)
    except (ImportError, TokenMeterError, AttributeError, KeyError) as error:
        return str(error) or type(error).__name__
    for patch in patches:
        patch.undo()
    return None


def _uncovered(ledger: Ledger, since: datetime) -> dict[str, int]:
    from token_meter.bookkeeping.plan_book import PlanBook
    from token_meter.ledger import ANY

    if not PlanBook(ledger).catalogue().plans:
        return {}
    rows = ledger.costs(by=("meter",), meter=ANY, since=since)
    return {str(row.group["meter"]): sum(row.uncovered.values()) for row in rows if row.uncovered}


def _prices_held(ledger: Ledger) -> int:
    from token_meter.bookkeeping.price_rows import read_rows

    with ledger.reading() as (_, connection):
        return sum(1 for row in read_rows(connection) if row.status == "held")


def _prices_of(ledger: Ledger) -> datetime | None:
    """When the prices by which this ledger's events are rated were made, or looked at last."""
    from token_meter.bookkeeping.price_desk import PriceDesk
    from token_meter.bookkeeping.rater import LedgerRater

    desk = PriceDesk(ledger, LedgerRater())
    checked = desk.checked()
    return max(desk.book.made, checked) if checked is not None else desk.book.made
