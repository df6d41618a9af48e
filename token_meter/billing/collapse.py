"""The lines of an invoice as the customer is to see them: usage summed up by model, by meter, or in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from token_meter.billing.line import Line
from token_meter.billing.meters import BUILT_IN
from token_meter.money import EXACT, ZERO


def collapsed(lines: Sequence[Line], level: str) -> list[Line]:
    """These lines with usage summed up to `level` (token_type, model, meter, total); amounts stay what they are."""
    if level == "token_type":
        return list(lines)
    merged: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        key = _collapse_key(line, level)
        merged[key] = _together(merged[key], line) if key in merged else _first(line, level)
    return list(merged.values())


def _collapse_key(line: Line, level: str) -> tuple[Any, ...]:
    if line.kind not in _COLLAPSIBLE:
        return (line.kind, line.key, line.service)
    if level == "total":
        return (line.kind,)
    if level == "meter" or line.model is None:
        return (line.kind, line.meter or line.key, line.service)
    return (line.kind, line.meter, line.model, line.service)


_COLLAPSIBLE: Final = {"usage": "Usage", "included": "Included usage", "correction": "Corrections"}


def _first(line: Line, level: str) -> Line:
    if line.kind not in _COLLAPSIBLE:
        return line
    if level == "total" or line.meter is None:
        title = _COLLAPSIBLE[line.kind] if level == "total" else line.title
    else:
        title = line.model if level == "model" and line.model else _meter_title(line, line.meter)
        title += {"included": ", included", "correction": f", correction of {line.corrects}"}.get(line.kind, "")
    # Tokens, calls and documents have no sum.
    quantity = None if level == "total" else line.quantity
    return replace(
        line, title=title, token_type=None, rate=None, math=None, quantity=quantity,
        model=line.model if level == "model" else None,
    )  # fmt: skip


def _meter_title(line: Line, meter: str) -> str:
    if meter in BUILT_IN:
        return BUILT_IN[meter].title
    # What stands in brackets behind it is of one step of a scale.
    return line.title.partition(" (")[0] if line.kind == "usage" and not line.model else meter.replace("_", " ")


def _together(one: Line, other: Line) -> Line:
    quantity = None if one.quantity is None or other.quantity is None else one.quantity + other.quantity
    return replace(
        one,
        exact=EXACT.add(one.exact, other.exact),
        amount=EXACT.add(*(ZERO if each.amount is None else each.amount for each in (one, other))),
        quantity=quantity,
    )
