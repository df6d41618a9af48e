"""A subscription can be cancelled, and the one that it ended goes on then."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

_ID = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Nothing is cancelled yet; what ended the subscriptions that are there is not known."""
    op.add_column("token_meter_subscriptions", sa.Column("ended_by", _ID, comment="the one that ended it"))
    op.add_column("token_meter_subscriptions", sa.Column("cancelled", sa.BigInteger, comment="when it was taken back"))
