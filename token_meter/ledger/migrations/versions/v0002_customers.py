"""The book of customers, with everybody in it whom an event names."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_ID = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the table, and enter the customers of the events that are there."""
    op.create_table(
        "token_meter_customers",
        sa.Column("mode", sa.Text, primary_key=True),
        sa.Column("id", _ID, primary_key=True),
        *(sa.Column(name, sa.Text) for name in ("name", "email", "currency", "time_zone")),
        sa.Column("external_ids", sa.Text, comment="JSON, billing backend to the id it knows the customer by"),
        sa.Column("details", sa.Text, comment="JSON, what an invoice says besides"),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
        sa.Column("updated", sa.BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
    )
    # Every event belongs to a series, and there are few of those: the events themselves need not be read.
    op.get_bind().execute(
        sa.text(
            "INSERT INTO token_meter_customers (mode, id, status, created, updated) "
            "SELECT DISTINCT mode, customer, 'active', CAST(:now AS BIGINT), CAST(:now AS BIGINT) "
            "FROM token_meter_series WHERE customer <> '' AND mode IN ('live', 'test')"
        ),
        {"now": time.time_ns() // 1000},
    )
