"""Small versions of `bench.budgets` and `bench.notices`: processes that race, and processes that are killed."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.budgets import SEVEN, _make, kills, racing, together
from bench.notices import crossings, gate_of
from tests.ledger.conftest import postgresql, schema_url, url  # noqa: F401 - fixtures
from token_meter.budgets.budget import Budget
from token_meter.budgets.desk import BudgetDesk
from token_meter.ledger import Ledger
from token_meter.notices.desk import NoticeDesk


@pytest.fixture
def ledger(url):  # noqa: F811 - a fixture
    with Ledger(url) as ledger:
        yield ledger


def test_four_processes_that_race_for_seven_get_seven(ledger):
    with ledger, racing(ledger.url) as runners:
        for number in range(3):
            _make(ledger, f"race-{number}")

            assert together(runners, f"race-{number}") == SEVEN


def test_workers_that_are_killed_while_they_hold_lose_nothing_and_block_nothing(ledger):
    assert kills("", ledger, 4)


def test_crossings_while_processes_are_killed_are_each_in_the_outbox_once(ledger, tmp_path):
    BudgetDesk(ledger).set(Budget.read({
        "scope": {"customer": "*"}, "limit": 4, "measure": "requests", "window": "lifetime", "enforce": "soft",
    }))  # fmt: skip

    crossings(ledger.url, tmp_path, 30, 2)
    gate_of(ledger).tend()

    told = Counter(
        (each["customer"], each["document"]["percent"]) for each in NoticeDesk(ledger).list(kind="budget.threshold")
    )
    assert len(told) == 90 and set(told.values()) == {1}
