"""The first tables: events, conflicts, series, rollups, dimensions, state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_ID = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create every table."""
    _events()
    _conflicts()
    _series()
    for name in ("token_meter_hours", "token_meter_days"):
        _rollup(name)
    _dimensions()
    op.create_table(
        "token_meter_state",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.BigInteger, nullable=False, comment="grows when series are renumbered"),
        sa.Column("created", sa.BigInteger, nullable=False),
    )


def _events() -> None:
    op.create_table(
        "token_meter_events",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
        *(sa.Column(name, sa.Text) for name in ("customer", "provider", "publisher", "model", "model_requested")),
        sa.Column("operation", sa.Text),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("status", "meter", "mode")),
        *(sa.Column(name, sa.Text) for name in ("host", "response_id", "corrects", "estimator")),
        sa.Column("duration_ms", sa.BigInteger),
        sa.Column("usage", sa.Text, nullable=False, comment="JSON, token type to quantity"),
        *(sa.Column(name, sa.Text, comment="JSON") for name in ("price_context", "dimensions", "anomalies")),
        sa.Column("more", sa.Text, comment="JSON: raw_usage, and schema if not 1"),
        sa.Column("digest", sa.LargeBinary, nullable=False, comment="of the billing fields"),
        sa.Column("recorded", sa.BigInteger, nullable=False, comment="when it came, microseconds since 1970 in UTC"),
    )
    op.create_index("token_meter_events_time", "token_meter_events", ["time", "id"])
    op.create_index("token_meter_events_customer", "token_meter_events", ["customer", "time", "id"])
    op.create_index(
        "token_meter_events_anomalies",
        "token_meter_events",
        ["time"],
        sqlite_where=sa.text("anomalies IS NOT NULL"),
        postgresql_where=sa.text("anomalies IS NOT NULL"),
    )


def _conflicts() -> None:
    op.create_table(
        "token_meter_conflicts",
        sa.Column("event_id", _ID, primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False, comment="the JSON form of the event that is not counted"),
    )


def _series() -> None:
    op.create_table(
        "token_meter_series",
        sa.Column("id", _SERIAL, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False, comment="of the other columns"),
        *(sa.Column(name, sa.Text) for name in ("customer", "provider", "publisher", "model", "operation")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("status", "meter", "mode")),
        sa.Column("host", sa.Text),
        sa.Column("correction", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("price_context", sa.Text, comment="JSON; context_tokens is the least number of its step"),
        sa.Column("dimensions", sa.Text, comment="JSON, declared dimensions only"),
        sa.UniqueConstraint("digest", name="token_meter_series_digest"),
    )
    op.create_index("token_meter_series_customer", "token_meter_series", ["customer"])


def _rollup(name: str) -> None:
    op.create_table(
        name,
        sa.Column("period", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("series", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("quantity", sa.Text, primary_key=True),
        sa.Column("high", sa.BigInteger, nullable=False),
        sa.Column("low", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":
        # Room in each page, so that adding to a row stays in its page and touches no index.
        op.execute(f"ALTER TABLE {name} SET (fillfactor = 70)")


def _dimensions() -> None:
    op.create_table(
        "token_meter_dimensions",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("overflowed", sa.Boolean(create_constraint=False), nullable=False),
    )
    op.create_table(
        "token_meter_dimension_values",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
    )
