"""A store of holds for each test: in memory, in SQLite and in PostgreSQL; and ledgers with prices."""

from __future__ import annotations

import pytest

from tests.budgets.kit import Kit
from tests.ledger.conftest import postgresql, schema_url, url  # noqa: F401 - fixtures
from token_meter.bookkeeping.lazy import LazyRater
from token_meter.budgets.memory_store import MemoryHolds
from token_meter.budgets.stores import holds_of
from token_meter.ledger import Ledger


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def kit(request, tmp_path):
    """A store and how to look into it."""
    if request.param == "memory":
        yield Kit(MemoryHolds(), None)
        return
    place = str(tmp_path / "usage.db") if request.param == "sqlite" else request.getfixturevalue("schema_url")
    with Ledger(place) as ledger:
        yield Kit(holds_of(ledger), ledger)


@pytest.fixture
def ledger(url):  # noqa: F811 - a fixture
    """An empty ledger that rates, on each engine."""
    with Ledger(url, dimensions=["feature"], rater=LazyRater()) as ledger:
        yield ledger
