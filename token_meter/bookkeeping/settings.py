"""Settings of a ledger: small JSON documents with all their earlier versions, in the catalogue."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import Connection, func, select

from token_meter.ledger.tables import catalogue

SETTING: Final = "setting"


def read_setting(connection: Connection, name: str) -> Any:
    """What a setting says now; None if it was never set."""
    mine = (catalogue.c.kind == SETTING) & (catalogue.c.name == name)
    row = connection.execute(select(catalogue.c.document).where(mine).order_by(catalogue.c.number.desc())).first()
    return None if row is None else json.loads(row.document)


def write_setting(
    connection: Connection, name: str, content: Any, *, moment: int, effective: int | None = None
) -> None:
    """Another version of a setting, recorded at this moment; it holds from then on, or from another one."""
    mine = (catalogue.c.kind == SETTING) & (catalogue.c.name == name)
    number = connection.execute(select(func.max(catalogue.c.number)).where(mine)).scalar() or 0
    row = {
        "kind": SETTING, "name": name, "number": number + 1, "recorded": moment,
        "effective": moment if effective is None else effective, "document": json.dumps(content, sort_keys=True),
    }  # fmt: skip
    connection.execute(catalogue.insert(), row)
