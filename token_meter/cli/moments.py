"""Times as people type them: `2026-11-01`, `2026-11`, `7d`, `yesterday`, each at a place with a time zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from token_meter.cli.exits import WRONG_USAGE, Failure

_AGO: Final = re.compile(r"(\d{1,6})\s*(s|m|min|h|d|w)", re.IGNORECASE)
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_MONTH: Final = re.compile(r"(\d{4})-(\d{2})")
_DAYS_BACK: Final = {"today": 0, "yesterday": 1, "tomorrow": -1}

FORMS: Final = "2026-11-01, 2026-11, 2026-11-01T09:30, 7d, 12h, 30min, today, yesterday, now"


def read_zone(name: str) -> tzinfo:
    """The time zone of an IANA name. Wrong usage for one that does not exist."""
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise Failure(
            f"no time zone is called {name!r}: use a name such as Europe/Berlin or UTC", code=WRONG_USAGE
        ) from None


def read_moment(text: str | None, *, zone: tzinfo, now: datetime) -> datetime | None:
    """The moment that was typed, in the zone; None for none. Wrong usage for what is no time."""
    if text is None:
        return None
    try:
        return _read(text.strip().lower(), zone, now.astimezone(zone))
    except (ValueError, OverflowError):
        raise Failure(f"{text!r} is no time: use one of {FORMS}", code=WRONG_USAGE) from None


def _read(text: str, zone: tzinfo, now: datetime) -> datetime:
    if text == "now":
        return now
    if text in _DAYS_BACK:
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        return midnight - timedelta(days=_DAYS_BACK[text])
    if match := _AGO.fullmatch(text):
        # Counted in UTC: 24 hours are 24 hours also when the clocks change in between.
        return (now.astimezone(UTC) - timedelta(seconds=int(match[1]) * _SECONDS[match[2]])).astimezone(zone)
    if match := _MONTH.fullmatch(text):
        return datetime(int(match[1]), int(match[2]), 1, tzinfo=zone)
    moment = datetime.fromisoformat(text.upper())
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)
