"""Plans and periods as people write them: YAML files with rate cards and plans, `2026-11`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from token_meter.billing.plans import Period, PlansFile, period_of
from token_meter.documents import checked, document_of, read_document
from token_meter.errors import InvalidDocument, InvalidPlan

_MONTH: Final = re.compile(r"(\d{4})-(\d{2})")
_QUARTER: Final = re.compile(r"(\d{4})-?[qQ]([1-4])")
_YEAR: Final = re.compile(r"\d{4}")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_SPAN: Final = re.compile(r"(\d{4}-\d{2}-\d{2})\.\.(\d{4}-\d{2}-\d{2})")

EARLIEST_YEAR: Final = 1970
FORMS: Final = "2026-11, 2026-Q4, 2026, 2026-11-05, 2026-11-01..2026-12-01"


def read_plans(given: str | os.PathLike[str] | Mapping[str, Any]) -> PlansFile:
    """A file of meters, rate cards and plans. Raises InvalidPlan naming file, line and field of what is wrong."""
    try:
        if isinstance(given, Mapping):
            return checked(PlansFile, document_of(given, name="plans"))
        path = Path(given)
        try:
            text = path.read_bytes()
        except OSError as problem:
            raise InvalidPlan(f"cannot read {path}: {problem.strerror}") from None
        return checked(PlansFile, read_document(text, name=path.name))
    except InvalidPlan:
        raise
    except InvalidDocument as problem:
        raise InvalidPlan(str(problem)) from None


def read_period(text: str) -> Period:
    """A span of whole days in UTC, since 1970. Raises ValueError for what is none."""
    found = _read_period(text)
    if found.start.year < EARLIEST_YEAR:
        raise ValueError(f"{text!r} is long ago: periods begin in {EARLIEST_YEAR}")
    return found


def _read_period(text: str) -> Period:
    given = text.strip()
    try:
        if found := _SPAN.fullmatch(given):
            return Period(_day(found[1]), _day(found[2]))
        if _DAY.fullmatch(given):
            return Period(_day(given), _day(given) + timedelta(days=1))
        if found := _MONTH.fullmatch(given):
            return period_of(datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC), "month")
        if found := _QUARTER.fullmatch(given):
            return period_of(datetime(int(found[1]), 3 * int(found[2]) - 2, 1, tzinfo=UTC), "quarter")
        if _YEAR.fullmatch(given):
            return period_of(datetime(int(given), 1, 1, tzinfo=UTC), "year")
    except ValueError as problem:
        raise ValueError(f"{text!r} is no period ({problem}): write one like {FORMS}") from None
    raise ValueError(f"{text!r} is no period: write one like {FORMS}")


def _day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
