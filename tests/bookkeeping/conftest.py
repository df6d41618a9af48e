"""A ledger with prices and plans, on SQLite and on PostgreSQL, and a clock that the test sets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from tests.ledger.conftest import postgresql, schema_url, url  # noqa: F401 (fixtures)
from token_meter.billing.plans import Period, PlansFile
from token_meter.bookkeeping.credit_book import CreditBook
from token_meter.bookkeeping.invoice_book import InvoiceBook
from token_meter.bookkeeping.plan_book import PlanBook
from token_meter.bookkeeping.rater import LedgerRater
from token_meter.ledger import Ledger

NOVEMBER = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
DECEMBER = Period(datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
OCTOBER = Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Desk:
    """A ledger and its books at a time of the test's choosing."""

    ledger: Ledger
    at: datetime = datetime(2026, 11, 20, tzinfo=UTC)

    def now(self) -> float:
        return self.at.timestamp()

    @property
    def plans(self) -> PlanBook:
        return PlanBook(self.ledger, now=self.now)

    @property
    def invoices(self) -> InvoiceBook:
        return InvoiceBook(self.ledger, now=self.now)

    @property
    def credits(self) -> CreditBook:
        return CreditBook(self.ledger, now=self.now)

    def sell(self, *, since=LONG_AGO, rates=None, **plan):
        """Everybody is on a plan with these rates (30 % on cost), fees and so on, since long ago."""
        rates = rates if rates is not None else [{"cost_plus": {"markup": "30%"}}]
        file = {"plans": [{"name": "standard", "rates": rates, **plan}]}
        self.plans.keep(PlansFile.model_validate(file), effective_from=since)
        self.plans.set_default("standard", effective_from=since)


@pytest.fixture
def desk(url):  # noqa: F811
    with Ledger(url, rater=LedgerRater()) as ledger:
        yield Desk(ledger)


@pytest.fixture
def small_desk(tmp_path):
    """On SQLite only, for properties."""
    with Ledger(tmp_path / "usage.db", rater=LedgerRater()) as ledger:
        yield Desk(ledger)
