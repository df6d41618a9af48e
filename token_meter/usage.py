"""What one call consumed: integer quantities by token type, disjoint, so that they sum.

The table `TOKEN_TYPES` is the one place that says which types exist, which headline a table or an
invoice shows them under, and in what unit they count. Extend it by adding a row; never overload one.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Final, NamedTuple


class TokenType(NamedTuple):
    """One row of the table: what a quantity is called, where it is shown, what it counts."""

    name: str
    headline: str
    unit: str


HEADLINES: Final = ("input", "cached input", "cache write", "output", "cached output", "other")

_ROWS: Final = (
    ("input", "token", "input input_audio input_image input_video input_document tool_input"),
    ("cached input", "token", "cache_read cache_read_audio cache_read_image cache_read_video"),
    ("cache write", "token", "cache_write_5m cache_write_30m cache_write_1h cache_write_12h"),
    ("output", "token", "output output_audio output_image output_video reasoning"),
    ("cached output", "token", "cached_output"),
    ("other", "call", "web_search file_search code_interpreter image_generation"),
    ("other", "millisecond", "audio_ms video_ms"),
    ("other", "character", "characters"),
    ("other", "image", "images"),
    ("other", "unit", "units"),
)

TOKEN_TYPES: Final[Mapping[str, TokenType]] = {
    name: TokenType(name, headline, unit) for headline, unit, names in _ROWS for name in names.split()
}

QUANTITY_MAX: Final = 2**63 - 1
"""The largest quantity of one type in one event: what every database stores exactly."""


class Usage(Mapping[str, int]):
    """A sparse, frozen mapping of token type to quantity: `Usage(input=3, output=1)`.

    Types that are not present count zero: `usage.cache_read` is 0, `usage["cache_read"]` a KeyError.
    Zero quantities are not kept. Usages add. The types are disjoint (decision D1): no type contains
    another, so `tokens` is their plain sum.

    Raises ValueError for a type that is not in `TOKEN_TYPES` or a quantity outside 0..2**63-1, and
    TypeError for one that is no integer.
    """

    __slots__ = ("_quantities",)

    def __init__(self, quantities: Mapping[str, int] | None = None, /, **more: int) -> None:
        given = {**(quantities or {}), **more}
        for name, quantity in given.items():
            if type(quantity) is not int or not 0 <= quantity <= QUANTITY_MAX or name not in TOKEN_TYPES:
                _check(name, quantity)
        if 0 in given.values():
            given = {name: quantity for name, quantity in given.items() if quantity}
        self._quantities = given

    @classmethod
    def of(cls, quantities: dict[str, int]) -> Usage:
        """Take over a dictionary that is known to be valid (the hot path); the caller must not keep it."""
        usage = cls.__new__(cls)
        usage._quantities = quantities
        return usage

    def __getitem__(self, name: str) -> int:
        return self._quantities[name]

    def __getattr__(self, name: str) -> int:
        if name in TOKEN_TYPES:
            return self._quantities.get(name, 0)
        raise AttributeError(f"Usage has no token type {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._quantities)

    def __len__(self) -> int:
        return len(self._quantities)

    def items(self) -> ItemsView[str, int]:
        return self._quantities.items()

    def keys(self) -> KeysView[str]:
        return self._quantities.keys()

    def values(self) -> ValuesView[int]:
        return self._quantities.values()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Usage):
            return self._quantities == other._quantities
        return isinstance(other, Mapping) and self._quantities == dict(other)

    def __hash__(self) -> int:
        return hash(frozenset(self._quantities.items()))

    def __add__(self, other: Usage) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        total = dict(self._quantities)
        for name, quantity in other._quantities.items():
            total[name] = total.get(name, 0) + quantity
        return Usage.of(total)

    def __radd__(self, other: object) -> Usage:
        """So that `sum(usages)` works: sum() starts from 0."""
        return self if other == 0 else NotImplemented

    def __repr__(self) -> str:
        return f"Usage({', '.join(f'{name}={quantity}' for name, quantity in self._quantities.items())})"

    def __reduce__(self) -> tuple[type[Usage], tuple[dict[str, int]]]:
        return (Usage, (dict(self._quantities),))

    @property
    def tokens(self) -> int:
        """The number of tokens of every kind (calls, milliseconds, characters, images are no tokens)."""
        return sum(quantity for name, quantity in self._quantities.items() if TOKEN_TYPES[name].unit == "token")

    def by_headline(self) -> dict[str, int]:
        """Token quantities by headline, in table order; a headline with nothing is left out.

        Under `other` stand things of different units (calls, milliseconds): it is their plain count, shown,
        never priced.
        """
        totals = dict.fromkeys(HEADLINES, 0)
        for name, quantity in self._quantities.items():
            totals[TOKEN_TYPES[name].headline] += quantity
        return {headline: total for headline, total in totals.items() if total}


def _check(name: str, quantity: object) -> None:
    if name not in TOKEN_TYPES:
        raise ValueError(f"{name!r} is no token type. Known: {', '.join(TOKEN_TYPES)}.")
    if not isinstance(quantity, int) or isinstance(quantity, bool):
        raise TypeError(f"the quantity of {name} must be an integer, not {quantity!r}")
    if not 0 <= quantity <= QUANTITY_MAX:
        raise ValueError(f"the quantity of {name} must be between 0 and 2**63-1, not {quantity}")
