"""Whose usage a record is: the customer and the dimensions, looked up in it by name, by path or by a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from token_meter.context import DIMENSIONS_MAX, clean_dimensions, clean_name
from token_meter.event import MeterEvent
from token_meter.partners.base import Row, Unreadable, shown

Field = str | Callable[[Row], object]
"""The name of a field, a path into the record (`metadata.tenant`, `request_tags.0`), or a function of the record."""

PATH_STEPS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Attributing:
    """Which fields say whose usage a record is: the first of `customer_fields` that is there names the customer."""

    customer_fields: tuple[Field, ...] = ()
    dimensions: Mapping[str, Field] | None = None

    def attributed(self, event: MeterEvent, row: Row) -> MeterEvent:
        """The event with its customer and dimensions. Raises Unreadable where a field holds no name."""
        customer = next((name for each in self.customer_fields if (name := named(row, each))), None)
        found = {name: named(row, each) for name, each in (self.dimensions or {}).items()}
        dimensions = {**event.dimensions, **clean_dimensions({name: each for name, each in found.items() if each})}
        return replace(event, customer=clean_name(customer), dimensions=dimensions)


def attributing(
    customer_field: Field | None, dimensions: Mapping[str, Field] | None, *, default: tuple[str, ...]
) -> Attributing:
    """What was asked for, or what the partner names the customer by. Raises ValueError for what is no field."""
    chosen = default if customer_field is None else (customer_field,)
    for name, each in (("customer_field", chosen), ("dimensions", tuple((dimensions or {}).values()))):
        for given in each:
            if not callable(given) and not (isinstance(given, str) and given.strip()):
                raise ValueError(
                    f"{name} wants a field's name, a path such as metadata.tenant, or a function, not {given!r}"
                )
    if dimensions and len(dimensions) > DIMENSIONS_MAX:
        raise ValueError(f"an event carries at most {DIMENSIONS_MAX} dimensions, not {len(dimensions)}")
    return Attributing(tuple(chosen), dict(dimensions or {}))


def named(row: Row, wanted: Field) -> str | None:
    """The name that a field holds, None where it holds none. Raises Unreadable for what is no name."""
    if callable(wanted):
        place = "the function that names a customer or dimension"
        try:
            value = wanted(row)
        except Exception as error:
            raise Unreadable(f"{place} failed: {type(error).__name__}") from error
    else:
        value, place = looked_up(row, wanted), wanted
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value).strip() or None
    raise Unreadable(f"{place} gives {shown(value)}, which is no name")


def looked_up(row: Row, path: str) -> Any:
    """The value at a path, None where there is none. Objects and lists may be there as JSON text (exports, CSV)."""
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split(".", PATH_STEPS_MAX):
        value = _opened(value)
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _opened(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
