"""Credit that pays for some usage only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Grants that are there pay for any usage."""
    op.add_column("token_meter_grants", sa.Column("scope", sa.Text, comment="JSON, what it pays for; NULL: any usage"))
