"""A fresh ledger for each test, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
from urllib.parse import quote
from uuid import uuid4

import pytest

from token_meter.ledger import Ledger

SERVER = os.environ.get("TOKEN_METER_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")


@pytest.fixture(scope="session")
def postgresql():
    """A connection to the test server; without one the test is skipped, or fails if services are required."""
    import psycopg

    try:
        connection = psycopg.connect(SERVER, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as problem:
        reason = f"no PostgreSQL for tests (set TOKEN_METER_TEST_POSTGRES): {problem}"
        if os.environ.get("TOKEN_METER_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    yield connection
    connection.close()


@pytest.fixture
def schema_url(postgresql):
    """The URL of a schema of its own."""
    schema = f"tm_{uuid4().hex}"
    postgresql.execute(f"CREATE SCHEMA {schema}")
    yield f"{SERVER}{'&' if '?' in SERVER else '?'}options={quote(f'-csearch_path={schema}')}"
    postgresql.execute("SET client_min_messages = warning")
    postgresql.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Where a ledger can be made, on each engine."""
    return str(tmp_path / "usage.db") if request.param == "sqlite" else request.getfixturevalue("schema_url")


@pytest.fixture
def ledger(url):
    """An empty ledger with one declared dimension."""
    with Ledger(url, dimensions=["feature"]) as ledger:
        yield ledger
