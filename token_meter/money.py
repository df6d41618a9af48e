"""Exact money: decimals without a rounding in sight, and the one place where an amount is rounded.

Quantities are integers up to 2**63, prices have up to a dozen decimals: Python's default of 28 digits would round
their products in silence. `EXACT` carries so many digits that products and sums of them are exact; what does not end
(a price per hour, taken per millisecond) has more of them than an amount keeps, so that the amount is right again
(`settled`). Decision D7.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_DOWN, ROUND_HALF_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_UP, Context, Decimal
from decimal import InvalidOperation as _InvalidOperation
from typing import Final

DIGITS: Final = 120
"""So many digits are carried."""

DECIMALS: Final = 50
"""So many decimals an amount has at the most. Sums of amounts are exact then, in any order."""

_LAST: Final = Decimal(1).scaleb(-DECIMALS)

EXACT: Final = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN)
"""The context of all arithmetic with money: `EXACT.multiply(quantity, rate)`."""

ZERO: Final = Decimal(0)
ONE: Final = Decimal(1)

EXPONENTS: Final = {
    "BIF": 0, "CLP": 0, "DJF": 0, "GNF": 0, "ISK": 0, "JPY": 0, "KMF": 0, "KRW": 0, "PYG": 0, "RWF": 0, "UGX": 0,
    "UYI": 0, "VND": 0, "VUV": 0, "XAF": 0, "XOF": 0, "XPF": 0,
    "BHD": 3, "IQD": 3, "JOD": 3, "KWD": 3, "LYD": 3, "OMR": 3, "TND": 3,
}  # fmt: skip
"""Decimals of the currencies that do not have two (ISO 4217)."""

ROUNDINGS: Final = {
    "half_even": ROUND_HALF_EVEN,
    "half_up": ROUND_HALF_UP,
    "half_down": ROUND_HALF_DOWN,
    "up": ROUND_UP,
    "down": ROUND_DOWN,
}
"""How an amount may be rounded; "half_even" unless the operator says otherwise."""

AMOUNT_DIGITS_MAX: Final = 40
"""An amount that somebody types or sends may have so many digits."""


def settled(amount: Decimal) -> Decimal:
    """An amount with no more than 50 decimals: a third of thirty is ten again, and not 9.99...9.

    A quotient that does not end is cut at the 120th digit; whatever it is multiplied with, that shows far behind the
    50th decimal.
    """
    if int(amount.as_tuple().exponent) >= -DECIMALS:
        return amount
    return amount.quantize(_LAST, context=EXACT)


def product(rate: Decimal, quantity: int | Decimal) -> Decimal:
    """An amount: so many units at this rate."""
    return settled(EXACT.multiply(rate, Decimal(quantity)))


def decimal_of(value: object, what: str) -> Decimal:
    """The exact decimal that was given as text, an integer or a Decimal.

    Raises ValueError for a float (it has been rounded already), for NaN and infinities, and for what is no number.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        kind = "a float, which is rounded already: write it as text" if isinstance(value, float) else "no number"
        raise ValueError(f"{what} is {kind} ({value!r})")
    try:
        number = Decimal(value.strip() if isinstance(value, str) else value)
    except (_InvalidOperation, ValueError):
        raise ValueError(f"{what} is no number ({value!r})") from None
    if not number.is_finite():
        raise ValueError(f"{what} must be a finite number, not {value!r}")
    exponent = number.as_tuple().exponent
    if len(number.as_tuple().digits) > AMOUNT_DIGITS_MAX or abs(int(exponent)) > AMOUNT_DIGITS_MAX:
        raise ValueError(f"{what} has more than {AMOUNT_DIGITS_MAX} digits")
    return number


def currency_of(value: object, what: str = "currency") -> str:
    """A currency's three letters, in capitals. Raises ValueError for anything else."""
    letters = value.strip() if isinstance(value, str) else ""
    if len(letters) != 3 or not letters.isascii() or not letters.isalpha():
        raise ValueError(f"{what} is no currency: write its three letters, like USD, not {value!r}")
    return letters.upper()


def plain(amount: Decimal) -> str:
    """A decimal as text a person reads and a program takes back: no exponent, no idle zeros (`0.0000025`, `12`)."""
    if not amount:
        return "0"
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    sum_ = ZERO
    for amount in amounts:
        sum_ = EXACT.add(sum_, amount)
    return sum_


def unit_of(currency: str) -> Decimal:
    """The smallest amount of a currency that can be paid: 0.01 USD, 1 JPY."""
    return Decimal(1).scaleb(-EXPONENTS.get(currency, 2))


def rounded(amount: Decimal, currency: str, rounding: str = "half_even") -> Decimal:
    """The amount in whole smallest units of the currency. Nothing else in this package rounds money."""
    return amount.quantize(unit_of(currency), rounding=ROUNDINGS[rounding], context=EXACT)


def shares(amounts: Sequence[Decimal], currency: str, rounding: str = "half_even") -> list[Decimal]:
    """Round each amount so that the rounded ones sum to the rounded total (largest remainder).

    Each is first rounded towards minus infinity; the units that are then missing go to those that lost most, the
    earlier one first among equals. So no amount is off by a whole unit.
    """
    unit = unit_of(currency)
    goal = rounded(total(amounts), currency, rounding)
    floors = [EXACT.multiply(EXACT.divide_int(amount, unit), unit) for amount in amounts]
    floors = [
        EXACT.subtract(floor, unit) if floor > amount else floor for floor, amount in zip(floors, amounts, strict=True)
    ]
    missing = int(EXACT.divide_int(EXACT.subtract(goal, total(floors)), unit))
    lost = sorted(range(len(amounts)), key=lambda place: (EXACT.subtract(floors[place], amounts[place]), place))
    for place in lost[: max(0, missing)]:
        floors[place] = EXACT.add(floors[place], unit)
    return [floor.quantize(unit, context=EXACT) for floor in floors]
