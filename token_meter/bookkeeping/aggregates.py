"""What `max` and `unique` meters come to in a span: read from the events, because no sum tells it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Row, select

from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plans import Period
from token_meter.bookkeeping.credit_rows import micros
from token_meter.ledger.tables import events
from token_meter.ledger.text import mapping_from_stored, to_stored


def is_aggregated(meter: MeterDefinition) -> bool:
    """Whether a meter is charged by something else than a sum or a count."""
    return meter.aggregation in ("max", "unique")


def read_aggregates(
    connection: Connection, meters: Iterable[MeterDefinition], *, mode: str, customer: str, span: Period
) -> dict[str, int]:
    """By meter: the largest quantity of an event, or how many distinct values its dimension has. Voided events do not
    count."""
    found = {}
    for meter in meters:
        mine = (events.c.mode == mode) & (events.c.customer == to_stored(customer)) & (events.c.meter == meter.name)
        inside = (events.c.time >= micros(span.start)) & (events.c.time < micros(span.stop))
        taken = select(events.c.corrects).where(events.c.corrects.is_not(None))
        query = select(events).where(mine, inside, events.c.corrects.is_(None), events.c.id.not_in(taken))
        found[meter.name] = aggregate(meter, connection.execute(query))
    return found


def aggregate(meter: MeterDefinition, rows: Iterable[Row[Any]]) -> int:
    """What a meter comes to over these events."""
    if meter.aggregation == "max":
        return max((_quantity(json.loads(row.usage)) for row in rows), default=0)
    values = {mapping_from_stored(row.dimensions).get(meter.of or "") for row in rows}
    return len(values - {None})


def _quantity(usage: Mapping[str, int]) -> int:
    return sum(usage.values())
