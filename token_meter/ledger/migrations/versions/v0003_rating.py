"""Ratings: which price and which of our rates count for each token type of each event, and rollups keyed by them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

_ID = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables, and key the rollups by rating: what is there is not rated yet."""
    op.add_column("token_meter_events", sa.Column("rating", sa.Text, comment="JSON, token type to rating"))
    op.add_column(
        "token_meter_events",
        sa.Column("pending", sa.Integer, nullable=False, server_default="1", comment="1: not rated, or no price"),
    )
    pending = sa.text("pending = 1")
    op.create_index(
        "token_meter_events_pending", "token_meter_events", ["time"], sqlite_where=pending, postgresql_where=pending
    )
    corrects = sa.text("corrects IS NOT NULL")
    op.create_index(
        "token_meter_events_corrects", "token_meter_events", ["corrects"], sqlite_where=corrects,
        postgresql_where=corrects,
    )  # fmt: skip
    op.add_column(
        "token_meter_state",
        sa.Column("catalogue", sa.BigInteger, nullable=False, server_default="0", comment="grows when prices, plans or "
                  "subscriptions change"),
    )  # fmt: skip
    for name in ("token_meter_hours", "token_meter_days"):
        _rekey(name)
    op.create_table(
        "token_meter_ratings",
        sa.Column("id", _SERIAL, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False, comment="of the document"),
        sa.Column("cost", sa.Text, comment="USD for one unit; NULL: unpriced"),
        sa.Column("charge", sa.Text, comment="for one unit, in the card's currency; NULL: unpriced, or by the period"),
        sa.Column("document", sa.Text, nullable=False, comment="JSON, every factor"),
        sa.UniqueConstraint("digest", name="token_meter_ratings_digest"),
    )
    op.create_table(
        "token_meter_reratings",
        sa.Column("number", _SERIAL, primary_key=True),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("before", sa.Text, comment="JSON, as events.rating"),
        sa.Column("after", sa.Text, nullable=False, comment="JSON, as events.rating"),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )

    op.create_index("token_meter_reratings_event", "token_meter_reratings", ["event_id", "number"])
    _catalogue()
    _invoices()
    _credits()


def _credits() -> None:
    op.create_table(
        "token_meter_grants",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False, comment="paid or promotional"),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("amount", sa.Text, nullable=False, comment="granted, exact"),
        sa.Column("price", sa.Text, nullable=False, comment="what the customer pays for it"),
        sa.Column("priority", sa.Integer, nullable=False, comment="lower burns first"),
        sa.Column("effective", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, comment="not included; NULL: never"),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("remaining", sa.Text, nullable=False, comment="what the journal makes of it"),
        sa.Column("drawn", sa.Text, nullable=False, comment="by usage, what the journal makes of it"),
    )
    op.create_index("token_meter_grants_customer", "token_meter_grants", ["mode", "customer"])
    op.create_table(
        "token_meter_entries",
        sa.Column("number", _SERIAL, primary_key=True),
        sa.Column("posting", sa.Text, nullable=False, comment="the entries of one posting sum to zero"),
        sa.Column("kind", sa.Text, nullable=False, comment="grant, draw, settle, expire, refund, void"),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("grant_id", _ID, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("amount", sa.Text, nullable=False, comment="exact; debit positive, credit negative"),
        sa.Column("service", sa.BigInteger, comment="the day of the usage that was paid with it"),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("token_meter_entries_customer", "token_meter_entries", ["mode", "customer", "service"])
    op.create_index("token_meter_entries_grant", "token_meter_entries", ["grant_id"])
    op.create_table(
        "token_meter_notices",
        sa.Column("number", _SERIAL, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False, comment="price.changed, price.added, credit.recharge, ..."),
        sa.Column("key", sa.Text, nullable=False, comment="the same notice is written once"),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("customer", sa.Text),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False, comment="JSON"),
        sa.UniqueConstraint("key", name="token_meter_notices_key"),
    )


def _invoices() -> None:
    op.add_column(
        "token_meter_state",
        sa.Column("closed", sa.BigInteger, nullable=False, server_default="0", comment="until when invoices are final"),
    )
    op.create_table(
        "token_meter_late",
        sa.Column("number", _SERIAL, primary_key=True),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("customer", sa.Text),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False, comment="when it counts; an invoice may be final for that"),
    )
    op.create_index("token_meter_late_customer", "token_meter_late", ["mode", "customer", "number"])
    op.create_table(
        "token_meter_invoices",
        sa.Column("mode", sa.Text, primary_key=True),
        sa.Column("number", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False, comment="invoice, or credit_note"),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("stop", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False, comment="final or void"),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("due_amount", sa.Text, nullable=False),
        sa.Column("issued", sa.BigInteger, nullable=False),
        sa.Column("paid", sa.BigInteger),
        sa.Column("changed", sa.Text, comment="JSON: why it is void, how it was paid"),
        sa.Column("concerns", sa.Text, comment="the invoice that a credit note is about"),
        sa.Column("document", sa.Text, nullable=False, comment="the invoice itself, JSON"),
        sa.Column("inputs", sa.Text, nullable=False, comment="JSON: what it was drawn up from"),
        sa.Column("digest", sa.LargeBinary, nullable=False, comment="of document and inputs"),
    )
    final = sa.text("state = 'final' AND kind = 'invoice'")
    op.create_index(
        "token_meter_invoices_period", "token_meter_invoices", ["mode", "customer", "start", "stop"], unique=True,
        sqlite_where=final, postgresql_where=final,
    )  # fmt: skip
    op.create_table(
        "token_meter_counters",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )


def _catalogue() -> None:
    op.create_table(
        "token_meter_catalogue",
        sa.Column("kind", sa.Text, primary_key=True, comment="card, plan, meter, setting"),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False, comment="its version"),
        sa.Column("effective", sa.BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False, comment="JSON"),
    )
    op.create_table(
        "token_meter_subscriptions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("stop", sa.BigInteger, comment="not included; NULL: until further notice"),
        sa.Column("recorded", sa.BigInteger, nullable=False),
    )
    op.create_index("token_meter_subscriptions_customer", "token_meter_subscriptions", ["mode", "customer", "start"])
    op.create_table(
        "token_meter_prices",
        sa.Column("number", _SERIAL, primary_key=True),
        sa.Column("price", sa.Text, nullable=False, comment="the row's own id, a hash of what it says"),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, comment="active, held or rejected; the last row of an id counts"),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False, comment="JSON"),
    )
    op.create_index("token_meter_prices_price", "token_meter_prices", ["price", "number"])


def _rekey(name: str) -> None:
    # The same table with one more column in its key: SQLite cannot change a key in place.
    old = f"{name}_before_rating"
    op.rename_table(name, old)
    op.create_table(
        name,
        sa.Column("period", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("series", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("quantity", sa.Text, primary_key=True),
        sa.Column("rating", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("high", sa.BigInteger, nullable=False),
        sa.Column("low", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("period", "series", "quantity", "rating", name=f"{name}_rated_pkey"),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {name} SET (fillfactor = 70)")
    op.execute(
        f"INSERT INTO {name} (period, series, quantity, rating, high, low) "
        f"SELECT period, series, quantity, 0, high, low FROM {old}"
    )
    op.drop_table(old)
