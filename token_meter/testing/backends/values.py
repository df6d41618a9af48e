"""What the fake backends read alike: JSON without rounding, numbers, what usage is split by, and what is not billed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple, NoReturn

GROUPED: Final = ("model", "provider", "token_type", "type")
"""The properties whose values make `Counted.group`, in this order, as far as they are there."""

EXPONENT_MAX: Final = 308
"""Powers of ten of a number: what a double can hold, and what keeps `1e999999999` from filling the memory."""

NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


class Dropped(NamedTuple):
    """A record that was accepted and will not be billed, and why. The real backend tells its sender nothing."""

    identifier: str
    customer: str
    meter: str
    reason: str


class Texts:
    """Every text and tuple of texts once, so that a million records of ten models do not hold a million names."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._groups: dict[tuple[str, ...], tuple[str, ...]] = {}

    def one(self, text: str) -> str:
        """The same text, as the object that is already known."""
        return self._texts.setdefault(text, text)

    def many(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """The same tuple, as the object that is already known."""
        return self._groups.setdefault(texts, texts)

    def group(self, properties: Mapping[str, Any]) -> tuple[str, ...]:
        """What `Counted.group` is for these properties."""
        return self.many(tuple(str(properties[name]) for name in GROUPED if properties.get(name) is not None))


def read_json(body: bytes | str) -> Any:
    """The document, fractions as `Decimal`. Raises ValueError for what is no JSON; NaN and Infinity are none."""
    try:
        text = body.decode() if isinstance(body, bytes) else body
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_json(document: Any) -> str:
    """Compact JSON of what `read_json` read."""
    return _ENCODER.encode(document)


def number(value: object) -> Decimal | None:
    """The exact number that a JSON number, or a text that is one, stands for; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal, str)):
        return None
    if isinstance(value, str) and not NUMBER.fullmatch(value):
        return None
    found = Decimal(value)
    return found if found.is_zero() or abs(found.adjusted()) <= EXPONENT_MAX else None


def whole(value: Decimal) -> int | None:
    """The same number as an integer; None if it has a fraction."""
    return int(value) if value == value.to_integral_value() else None


def _fraction(value: Decimal) -> float | str:
    """What a JSON number with a fraction is written as; beyond a double it becomes a text."""
    return float(value) if abs(value.adjusted()) <= EXPONENT_MAX else str(value)


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), default=_fraction)
