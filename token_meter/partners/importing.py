"""Bringing in what a partner wrote down: from files, and from records that one has already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from token_meter.errors import TokenMeterError
from token_meter.event import MeterEvent
from token_meter.partners.base import Partner, Row
from token_meter.partners.fields import Field, attributing
from token_meter.partners.files import rows
from token_meter.partners.intake import Imported, Intake, Recording, UnreadableRows, Writing
from token_meter.partners.known import partner_named

if TYPE_CHECKING:
    from token_meter.meter import Meter


def import_file(
    meter: Meter | Recording,
    partner: str,
    *files: str | os.PathLike[str],
    customer_field: Field | None = None,
    dimensions: Mapping[str, Field] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    watch: Callable[[MeterEvent], object] | None = None,
    moved: Callable[[int], object] | None = None,
) -> Imported:
    """Record what a partner's files say was used: JSON, JSON lines or CSV, plain or gzipped.

    Ids are derived from the partner's, so importing again, or pulling the same records, counts nothing twice.
    `customer_field` names the field with the customer, as a path (`metadata.tenant`) or a function of the record;
    `dimensions` maps names to such fields. Only what happened in [since, until) is taken. Files are read twice: once to
    see that every row is a record. Where one is not, nothing is recorded and UnreadableRows is raised, unless
    `skip_bad`. `watch` is called with each event, `moved` with numbers of bytes as they are read.

    Raises ValueError for an unknown partner, OSError for a file that cannot be read, PartnerError otherwise.
    """
    found = partner_named(partner)
    chosen = attributing(customer_field, dimensions, default=found.customer_fields)
    paths = [Path(each) for each in files]

    def intake(watching: Callable[[MeterEvent], object] | None) -> Intake:
        return Intake(found, chosen, in_utc(since), in_utc(until), watching)

    if dry_run or not skip_bad:
        checked = intake(watch if dry_run else None)
        _read(checked, found, paths, moved, write=None)
        if checked.bad_rows and not skip_bad:
            raise UnreadableRows(checked.report(recorded=False))
        if dry_run:
            return checked.report(recorded=False)
    able(meter)
    taken, writing = intake(watch), Writing(meter)
    _read(taken, found, paths, moved, write=writing.write)
    writing.settle()
    return taken.report(recorded=True)


def import_records(
    meter: Meter | Recording,
    partner: str,
    records: Iterable[Row],
    *,
    customer_field: Field | None = None,
    dimensions: Mapping[str, Field] | None = None,
    skip_bad: bool = False,
) -> Imported:
    """Record what a partner has sent: records in the form of its API, such as the body of a webhook.

    As `import_file`, but for records in memory.
    """
    found = partner_named(partner)
    able(meter)
    intake = Intake(found, attributing(customer_field, dimensions, default=found.customer_fields))
    events = [intake.take(row, "records", number) for number, row in enumerate(records, 1)]
    if intake.bad_rows and not skip_bad:
        raise UnreadableRows(intake.report(recorded=False))
    writing = Writing(meter)
    for event in events:
        if event is not None:
            writing.write(event)
    writing.settle()
    return intake.report(recorded=True)


def in_utc(moment: datetime | None) -> datetime | None:
    """A moment without a zone is one in UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def able(meter: Meter | Recording) -> None:
    """Raises TokenMeterError for a meter that is switched off: what is brought in once would be lost."""
    if getattr(meter, "disabled", False):
        raise TokenMeterError(
            "this meter is switched off (TOKEN_METER_DISABLED), so what is brought in would be lost: switch it on"
        )


def _read(
    intake: Intake,
    partner: Partner,
    paths: Iterable[Path],
    moved: Callable[[int], object] | None,
    *,
    write: Callable[[MeterEvent], object] | None,
) -> None:
    for path in paths:
        for found in rows(path, lists=partner.lists, moved=moved):
            if found.record is None:
                intake.refuse(str(path), found.number, found.problem or "is no record")
                continue
            event = intake.take(found.record, str(path), found.number)
            if event is not None and write is not None:
                write(event)
