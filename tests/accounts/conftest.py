"""A ledger on each engine, as the tests of the ledger have it, and its book of customers."""

from __future__ import annotations

import pytest

from tests.ledger.conftest import ledger, postgresql, schema_url, url  # noqa: F401
from token_meter.accounts import CustomerBook
from token_meter.ledger import Ledger


@pytest.fixture
def book(ledger: Ledger) -> CustomerBook:  # noqa: F811
    """The customers of an empty ledger, on each engine."""
    return CustomerBook(ledger)
