"""Measures with the amount that is charged for them, for backends that take prices from whoever reports (Lago)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Final

from token_meter.event import MeterEvent
from token_meter.money import EXACT, plain
from token_meter.sinks.mapping import Mapped, Measure

Price = Callable[[MeterEvent, tuple[str, ...]], Decimal | None]
"""What is charged for these token types of an event; None: there is no price yet."""

AMOUNT: Final = "\0amount"
"""The property under which a measure carries its amount until its request is made."""

CENTS: Final = Decimal(100)


def priced(mapping: Mapped, price: Price) -> Mapped:
    """The same measures, each with its amount. An event without a price is refused: it would be billed at zero."""

    def mapped(event: MeterEvent) -> Iterable[Measure]:
        return [_with_amount(measure, price, event) for measure in mapping(event) or ()]

    return mapped


def _with_amount(measure: Measure, price: Price, event: MeterEvent) -> Measure:
    types = tuple(name for name in measure.types if name in event.usage)
    amount = price(event, types)
    if amount is None:
        what = ", ".join(types) or measure.meter
        raise ValueError(f"there is no price for {what} of {event.model or event.meter} yet: release it when there is")
    return replace(measure, properties={**measure.properties, AMOUNT: plain(EXACT.multiply(amount, CENTS))})


def without_amount(measure: Measure, *, taken_back: bool) -> tuple[dict[str, str], str | None]:
    """The measure's own properties, and its amount in cents; below zero where it is taken back."""
    properties = dict(measure.properties)
    amount = properties.pop(AMOUNT, None)
    return properties, f"-{amount}" if amount is not None and taken_back and amount != "0" else amount
