"""Through a span of time of somebody else's log, page by page, while rows are still being added to it.

Numbered pages shift when a row comes in. So only the first page of a span is taken, as far as that is possible, and
the span then begins anew at the last row: a row is met twice rather than never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NamedTuple

from token_meter.partners.base import PartnerError, Row

PAGES_MAX: Final = 1_000_000
"""So many pages one walk takes; a log that never ends is a fault of the server."""


class Page(NamedTuple):
    """Some rows. `reached`: everything up to then has been given, this page included; None where that is not sure."""

    rows: Sequence[Row]
    reached: datetime | None = None


Pages = Iterator[Page]


class Batch(NamedTuple):
    """What one request gave, and whether the server has more of the same span."""

    rows: Sequence[Row]
    more: bool


def walk(
    fetch: Callable[[datetime, datetime, int], Batch],
    since: datetime,
    until: datetime,
    *,
    time_of: Callable[[Row], datetime | None],
) -> Pages:
    """Every row between two times. `fetch(start, end, number)` gives a page of a span, in either order of time.

    Raises PartnerError when the server gives the same page again and again, or none although there are more.
    """
    start, end, number = since, until, 1
    before: Sequence[Row] = ()
    for _ in range(PAGES_MAX):
        batch = fetch(start, end, number)
        if not batch.more:
            yield Page(batch.rows, until)
            return
        if not batch.rows or (number > 1 and batch.rows == before):
            raise PartnerError(
                "the server says that there are more records and does not give them: does it know pages?"
            )
        before = batch.rows
        times = [found for row in batch.rows if (found := time_of(row)) is not None]
        ascending = not times or times[0] <= times[-1]
        yield Page(batch.rows, max(times) if times and ascending else None)
        narrowed = _narrowed(start, end, times, ascending=ascending)
        number = number + 1 if narrowed == (start, end) else 1
        start, end = narrowed
    raise PartnerError(f"more than {PAGES_MAX:,} pages: ask for a shorter time")


def _narrowed(
    start: datetime, end: datetime, times: Sequence[datetime], *, ascending: bool
) -> tuple[datetime, datetime]:
    """What is left of a span after a page of it; the same span when all of the page is of one moment.

    Whole seconds, because that is how some APIs are asked.
    """
    if not times:
        return start, end
    if ascending:
        return max(start, min(max(times).replace(microsecond=0), end)), end
    return start, min(end, max(min(times).replace(microsecond=0) + timedelta(seconds=1), start))


def finished_days(since: datetime, until: datetime, *, settle: timedelta) -> Iterator[date]:
    """The days in UTC from the one of `since` that were over `settle` before `until`: sums of others still grow."""
    day = since.astimezone(UTC).date()
    last = (until - settle).astimezone(UTC).date()
    while day < last:
        yield day
        day += timedelta(days=1)


def end_of(day: date) -> datetime:
    """The midnight that ends a day in UTC."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def noon_of(day: date) -> datetime:
    """When usage of a whole day is said to have happened: at noon in UTC it is that day nearly everywhere."""
    return datetime.combine(day, time(12), UTC)
