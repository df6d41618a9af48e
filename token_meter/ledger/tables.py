"""The tables of a ledger, the same on SQLite and PostgreSQL.

`events` is the truth and only grows. `series` numbers the distinct combinations of what rollups are keyed by;
`hours` and `days` hold integer quantities per period (counted from 1970 in UTC), series, token type and rating. A sum
is stored as two numbers, total = high * 2**32 + low, because it may pass 63 bits and no database adds wider
integers in the same way; `low` is never carried over, so adding is one plain update.
`dimensions` are the declared ones; `customers` is the book that `token_meter.accounts` keeps. The names carry a
prefix because a PostgreSQL schema may be shared.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql

PREFIX: Final = "token_meter_"

VERSION_TABLE: Final = PREFIX + "version"
"""Where Alembic keeps the revision; not its default name, which belongs to the application."""

TEXT_BYTES_MAX: Final = 1024
"""The longest name (customer, model, host, dimension value, ...) in UTF-8 bytes; longer ones are refused."""

ID_BYTES_MAX: Final = 512
"""The longest event id in UTF-8 bytes; with a customer and a time it must fit an index entry of PostgreSQL."""

JSON_BYTES_MAX: Final = 65_536
"""The largest JSON column of one event (dimensions, price context, the rest) in bytes."""

DIMENSIONS_DECLARED_MAX: Final = 16
"""So many dimensions may be declared in one ledger."""

DIMENSION_VALUES_MAX: Final = 10_000
"""So many distinct values of a declared dimension enter rollups; concurrent writers may pass it by a few."""

OTHER: Final = "(other)"
"""Stands in rollups for the values beyond `DIMENSION_VALUES_MAX`. Events keep the true value, and usage by
such a dimension is read from them, so that it stays exact."""

UNITS: Final = "units"
"""The token type under which a meter of the operator's own counts."""

EVENTS: Final = "events"
"""The quantity under which rollups count events; no token type has this name."""

SERIES_COLUMNS: Final = (
    "customer", "provider", "publisher", "model", "operation", "status", "meter", "mode", "host",
    "correction", "price_context", "dimensions",
)  # fmt: skip

metadata: Final = MetaData()

# Ids are compared byte by byte on both engines, whatever the database's language is.
_Id = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_Serial = BigInteger().with_variant(Integer(), "sqlite")

events: Final = Table(
    PREFIX + "events",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("time", BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
    Column("customer", Text),
    Column("provider", Text),
    Column("publisher", Text),
    Column("model", Text),
    Column("model_requested", Text),
    Column("operation", Text),
    Column("status", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("host", Text),
    Column("response_id", Text),
    Column("corrects", Text),
    Column("estimator", Text),
    Column("duration_ms", BigInteger),
    Column("usage", Text, nullable=False, comment="JSON, token type to quantity"),
    Column("price_context", Text, comment="JSON"),
    Column("dimensions", Text, comment="JSON"),
    Column("anomalies", Text, comment="JSON"),
    Column("more", Text, comment="JSON: raw_usage, and schema if not 1"),
    Column("digest", LargeBinary, nullable=False, comment="of the billing fields"),
    Column("recorded", BigInteger, nullable=False, comment="when it came, microseconds since 1970 in UTC"),
    Column("rating", Text, comment="JSON, token type to rating"),
    Column("pending", Integer, nullable=False, comment="1: not rated, or no price"),
)
Index(PREFIX + "events_time", events.c.time, events.c.id)
Index(PREFIX + "events_customer", events.c.customer, events.c.time, events.c.id)
Index(
    PREFIX + "events_anomalies",
    events.c.time,
    sqlite_where=text("anomalies IS NOT NULL"),
    postgresql_where=text("anomalies IS NOT NULL"),
)

Index(PREFIX + "events_pending", events.c.time, sqlite_where=text("pending = 1"), postgresql_where=text("pending = 1"))
Index(
    PREFIX + "events_corrects",
    events.c.corrects,
    sqlite_where=text("corrects IS NOT NULL"),
    postgresql_where=text("corrects IS NOT NULL"),
)

conflicts: Final = Table(
    PREFIX + "conflicts",
    metadata,
    Column("event_id", _Id, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("recorded", BigInteger, nullable=False),
    Column("document", Text, nullable=False, comment="the JSON form of the event that is not counted"),
)

series: Final = Table(
    PREFIX + "series",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("digest", LargeBinary, nullable=False, comment="of the other columns"),
    Column("customer", Text),
    Column("provider", Text),
    Column("publisher", Text),
    Column("model", Text),
    Column("operation", Text),
    Column("status", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("host", Text),
    Column("correction", Boolean(create_constraint=False), nullable=False),
    Column("price_context", Text, comment="JSON; context_tokens is the least number of its step"),
    Column("dimensions", Text, comment="JSON, declared dimensions only"),
    UniqueConstraint("digest", name=PREFIX + "series_digest"),
)
Index(PREFIX + "series_customer", series.c.customer)


def _rollup(name: str) -> Table:
    # No foreign key to series: both are written by one transaction, and the check would cost every row.
    return Table(
        PREFIX + name,
        metadata,
        Column("period", Integer, primary_key=True, autoincrement=False),
        Column("series", BigInteger, primary_key=True, autoincrement=False),
        Column("quantity", Text, primary_key=True),
        Column("rating", BigInteger, primary_key=True, autoincrement=False),
        Column("high", BigInteger, nullable=False),
        Column("low", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


hours: Final = _rollup("hours")
days: Final = _rollup("days")

dimensions: Final = Table(
    PREFIX + "dimensions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("overflowed", Boolean(create_constraint=False), nullable=False),
)

dimension_values: Final = Table(
    PREFIX + "dimension_values",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, primary_key=True),
)

state: Final = Table(
    PREFIX + "state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False, comment="grows when series are renumbered"),
    Column("created", BigInteger, nullable=False),
    Column("catalogue", BigInteger, nullable=False, comment="grows when prices, plans or subscriptions change"),
    Column("closed", BigInteger, nullable=False, comment="until when invoices are final"),
    Column("budgets", BigInteger, nullable=False, server_default="0", comment="grows when who may spend what changes"),
)

ratings: Final = Table(
    PREFIX + "ratings",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("digest", LargeBinary, nullable=False, comment="of the document"),
    Column("cost", Text, comment="USD for one unit; NULL: unpriced"),
    Column("charge", Text, comment="for one unit, in the card's currency; NULL: unpriced, or by the period"),
    Column("document", Text, nullable=False, comment="JSON, every factor"),
    UniqueConstraint("digest", name=PREFIX + "ratings_digest"),
)

reratings: Final = Table(
    PREFIX + "reratings",
    metadata,
    Column("number", _Serial, primary_key=True),
    Column("event_id", _Id, nullable=False),
    Column("before", Text, comment="JSON, as events.rating"),
    Column("after", Text, nullable=False, comment="JSON, as events.rating"),
    Column("recorded", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)
Index(PREFIX + "reratings_event", reratings.c.event_id, reratings.c.number)

late: Final = Table(
    PREFIX + "late",
    metadata,
    Column("number", _Serial, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("customer", Text),
    Column("event_id", _Id, nullable=False),
    Column("time", BigInteger, nullable=False, comment="when it counts; an invoice may be final for that"),
)
Index(PREFIX + "late_customer", late.c.mode, late.c.customer, late.c.number)

invoices: Final = Table(
    PREFIX + "invoices",
    metadata,
    Column("mode", Text, primary_key=True),
    Column("number", Text, primary_key=True),
    Column("kind", Text, nullable=False, comment="invoice, or credit_note"),
    Column("customer", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("stop", BigInteger, nullable=False),
    Column("state", Text, nullable=False, comment="final or void"),
    Column("currency", Text, nullable=False),
    Column("due_amount", Text, nullable=False),
    Column("issued", BigInteger, nullable=False),
    Column("paid", BigInteger),
    Column("changed", Text, comment="JSON: why it is void, how it was paid"),
    Column("concerns", Text, comment="the invoice that a credit note is about"),
    Column("document", Text, nullable=False, comment="the invoice itself, JSON"),
    Column("inputs", Text, nullable=False, comment="JSON: what it was drawn up from"),
    Column("digest", LargeBinary, nullable=False, comment="of document and inputs"),
)
_FINAL: Final = text("state = 'final' AND kind = 'invoice'")
Index(
    PREFIX + "invoices_period",
    invoices.c.mode,
    invoices.c.customer,
    invoices.c.start,
    invoices.c.stop,
    unique=True,
    sqlite_where=_FINAL,
    postgresql_where=_FINAL,
)

grants: Final = Table(
    PREFIX + "grants",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("customer", Text, nullable=False),
    Column("kind", Text, nullable=False, comment="paid or promotional"),
    Column("currency", Text, nullable=False),
    Column("amount", Text, nullable=False, comment="granted, exact"),
    Column("price", Text, nullable=False, comment="what the customer pays for it"),
    Column("priority", Integer, nullable=False, comment="lower burns first"),
    Column("effective", BigInteger, nullable=False),
    Column("expires", BigInteger, comment="not included; NULL: never"),
    Column("recorded", BigInteger, nullable=False),
    Column("title", Text, nullable=False),
    Column("remaining", Text, nullable=False, comment="what the journal makes of it"),
    Column("drawn", Text, nullable=False, comment="by usage, what the journal makes of it"),
    Column("scope", Text, comment="JSON, what it pays for; NULL: any usage"),
)
Index(PREFIX + "grants_customer", grants.c.mode, grants.c.customer)

entries: Final = Table(
    PREFIX + "entries",
    metadata,
    Column("number", _Serial, primary_key=True),
    Column("posting", Text, nullable=False, comment="the entries of one posting sum to zero"),
    Column("kind", Text, nullable=False, comment="grant, draw, settle, expire, refund, void"),
    Column("mode", Text, nullable=False),
    Column("customer", Text, nullable=False),
    Column("grant_id", _Id, nullable=False),
    Column("account", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("amount", Text, nullable=False, comment="exact; debit positive, credit negative"),
    Column("service", BigInteger, comment="the day of the usage that was paid with it"),
    Column("recorded", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)
Index(PREFIX + "entries_customer", entries.c.mode, entries.c.customer, entries.c.service)
Index(PREFIX + "entries_grant", entries.c.grant_id)

notices: Final = Table(
    PREFIX + "notices",
    metadata,
    Column("number", _Serial, primary_key=True),
    Column("kind", Text, nullable=False, comment="price.changed, price.added, credit.recharge, ..."),
    Column("key", Text, nullable=False, comment="the same notice is written once"),
    Column("mode", Text, nullable=False),
    Column("customer", Text),
    Column("recorded", BigInteger, nullable=False),
    Column("document", Text, nullable=False, comment="JSON"),
    UniqueConstraint("key", name=PREFIX + "notices_key"),
)

counters: Final = Table(
    PREFIX + "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

catalogue: Final = Table(
    PREFIX + "catalogue",
    metadata,
    Column("kind", Text, primary_key=True, comment="card, plan, meter, setting"),
    Column("name", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False, comment="its version"),
    Column("effective", BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
    Column("recorded", BigInteger, nullable=False),
    Column("document", Text, nullable=False, comment="JSON"),
)

subscriptions: Final = Table(
    PREFIX + "subscriptions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("customer", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("stop", BigInteger, comment="not included; NULL: until further notice"),
    Column("recorded", BigInteger, nullable=False),
    Column("ended_by", _Id, comment="the one that ended it"),
    Column("cancelled", BigInteger, comment="when it was taken back"),
)
Index(PREFIX + "subscriptions_customer", subscriptions.c.mode, subscriptions.c.customer, subscriptions.c.start)

prices: Final = Table(
    PREFIX + "prices",
    metadata,
    Column("number", _Serial, primary_key=True),
    Column("price", Text, nullable=False, comment="the row's own id, a hash of what it says"),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("status", Text, nullable=False, comment="active, held or rejected; the last row of an id counts"),
    Column("recorded", BigInteger, nullable=False),
    Column("document", Text, nullable=False, comment="JSON"),
)
Index(PREFIX + "prices_price", prices.c.price, prices.c.number)

budgets: Final = Table(
    PREFIX + "budgets",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("ended", BigInteger, comment="when it was taken away"),
    Column("document", Text, nullable=False, comment="JSON"),
)

spend: Final = Table(
    PREFIX + "spend",
    metadata,
    Column("budget", _Id, primary_key=True, comment="a budget, or `credit`"),
    Column("subject", _Id, primary_key=True, comment="JSON: whose"),
    Column("start", BigInteger, primary_key=True, autoincrement=False, comment="of its window; -1: of a rolling one"),
    Column("spent", BigInteger, nullable=False, comment="in the smallest parts that the budget counts"),
    Column("held", BigInteger, nullable=False, comment="reserved by calls under way"),
    Column("lost", BigInteger, nullable=False, comment="reserved by calls of which nobody knows what became"),
    Column("noted", Integer, nullable=False, comment="the highest percentage that was told"),
    Column("epoch", Integer, nullable=False, comment="how often it was reset"),
    sqlite_with_rowid=False,
)

holds: Final = Table(
    PREFIX + "holds",
    metadata,
    Column("id", _Id, primary_key=True, comment="the event it waits for"),
    Column("state", Text, nullable=False, comment="held, lost or settled"),
    Column("sent", Integer, nullable=False, comment="1: the provider may have got the request"),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("parts", Text, nullable=False, comment="JSON: budget, subject, start, amount, bucket of each"),
    Column("who", Text, nullable=False, comment="JSON, for people"),
    sqlite_with_rowid=False,
)
# No index: the rows are those of calls under way and of the last moments, and an index would cost every hold.

endpoints: Final = Table(
    PREFIX + "endpoints",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secrets", Text, nullable=False, comment="JSON: each with until when it still signs"),
    Column("kinds", Text, nullable=False, comment="JSON: patterns; empty: every kind"),
    Column("private", Integer, nullable=False, comment="1: private addresses are allowed"),
    Column("began", BigInteger, nullable=False, comment="the number of the last notice before it"),
    Column("created", BigInteger, nullable=False),
    Column("failing", BigInteger, comment="since when nothing has reached it"),
    Column("disabled", BigInteger, comment="since when nothing is sent to it any more"),
    Column("reason", Text, comment="why, or what it answered last"),
)

deliveries: Final = Table(
    PREFIX + "deliveries",
    metadata,
    Column("endpoint", _Id, primary_key=True),
    Column("notice", BigInteger, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False, comment="waiting, done or failed"),
    Column("attempts", Integer, nullable=False),
    Column("next", BigInteger, nullable=False, comment="when it is tried, or when whoever tries it has to be done"),
    Column("answer", Text, comment="what the endpoint said last"),
    Column("changed", BigInteger, nullable=False),
)
Index(PREFIX + "deliveries_next", deliveries.c.state, deliveries.c.next)

customers: Final = Table(
    PREFIX + "customers",
    metadata,
    Column("mode", Text, primary_key=True),
    Column("id", _Id, primary_key=True),
    Column("name", Text),
    Column("email", Text),
    Column("currency", Text),
    Column("time_zone", Text),
    Column("external_ids", Text, comment="JSON, billing backend to the id it knows the customer by"),
    Column("details", Text, comment="JSON, what an invoice says besides"),
    Column("status", Text, nullable=False),
    Column("created", BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
    Column("updated", BigInteger, nullable=False, comment="microseconds since 1970 in UTC"),
)
