"""Events that come again with another time, as the ledger tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from token_meter import MeterEvent, Usage
from token_meter.accounts.directory import IDS_MAX, LedgerAccounts
from token_meter.ledger import Ledger
from token_meter.sinks.repeats import without_repeats

NOON = datetime(2026, 8, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "usage.db") as ledger:
        yield ledger


def made(id: str, *, time: datetime = NOON) -> MeterEvent:
    return MeterEvent(id=id, time=time, usage=Usage(input=3), customer="acme")


def minted(moment: datetime) -> str:
    text = f"{int(moment.timestamp() * 1000):012x}"
    return f"{text[:8]}-{text[8:]}-7abc-8abc-0123456789ab"


def test_the_ledger_gives_many_events_by_their_ids(ledger: Ledger) -> None:
    recorded = [made(f"job {number}'s ü") for number in range(IDS_MAX + 2)]
    ledger.record(recorded)

    known = LedgerAccounts(ledger).events_with([*(event.id for event in recorded), "nobody's"])

    assert known == {event.id: event for event in recorded}


def test_what_the_ledger_has_with_another_time_is_left_out(ledger: Ledger) -> None:
    ledger.record([made("job 1"), made("job 2")])
    again, same, new = made("job 1", time=LATER), made("job 2"), made("job 3", time=LATER)

    left = without_repeats([again, same, new], LedgerAccounts(ledger))

    assert left == [same, new]


def test_a_placeholder_in_the_ledger_holds_up_no_real_event(ledger: Ledger) -> None:
    ledger.record([replace(made("job 1"), usage=Usage(), status="unmetered")])
    real = made("job 1", time=LATER)

    assert without_repeats([real], LedgerAccounts(ledger)) == [real]


def test_an_id_that_was_minted_for_its_event_is_not_asked_for(ledger: Ledger) -> None:
    event = made(minted(NOON), time=NOON + timedelta(minutes=5))
    ledger.record([replace(event, time=LATER)])

    assert without_repeats([event], LedgerAccounts(ledger)) == [event]


def test_without_a_ledger_nothing_is_left_out() -> None:
    assert without_repeats([made("job 1"), made("job 1", time=LATER)], None) == [
        made("job 1"),
        made("job 1", time=LATER),
    ]
