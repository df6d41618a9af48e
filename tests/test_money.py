"""Money: exact until it is rounded, and rounded so that the parts sum to the whole."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_meter.money import EXACT, currency_of, decimal_of, plain, rounded, shares, total, unit_of

amounts = st.lists(st.decimals(min_value=-(10**9), max_value=10**9, places=9), max_size=30)


@given(
    amounts,
    st.sampled_from(["USD", "JPY", "KWD"]),
    st.sampled_from(["half_even", "half_up", "half_down", "up", "down"]),
)
def test_shares_sum_to_the_rounded_total_and_none_is_off_by_a_unit(exact, currency, rounding):
    found = shares(exact, currency, rounding)

    assert total(found) == rounded(total(exact), currency, rounding)
    if rounding.startswith("half"):
        assert all(abs(part - whole) < unit_of(currency) for part, whole in zip(found, exact, strict=True))


def test_the_unit_goes_to_whoever_lost_most_the_earlier_first():
    third = EXACT.divide(Decimal(1), Decimal(3))

    assert shares([third, third, third], "USD") == [Decimal("0.34"), Decimal("0.33"), Decimal("0.33")]


@given(st.integers(0, 2**63 - 1), st.decimals(min_value=0, max_value=1000, places=12))
def test_products_are_exact(quantity, price):
    assert Fraction(EXACT.multiply(price, Decimal(quantity))) == Fraction(price) * quantity


@pytest.mark.parametrize("value", [1.5, float("nan"), True, None, "abc", "NaN", "Infinity", "1" * 60, "1e99", b"1"])
def test_what_is_no_exact_number_is_refused(value):
    with pytest.raises(ValueError):
        decimal_of(value, "it")


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0", "0"), ("12", "12"), ("2.50", "2.5"), ("0.00000250", "0.0000025"), ("1E+3", "1000"), ("-0.10", "-0.1")],
)
def test_plain_has_no_exponent_and_no_idle_zeros(amount, text):
    assert plain(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("amount", "currency", "rounding", "expected"),
    [("0.005", "USD", "half_even", "0.00"), ("0.015", "USD", "half_even", "0.02"), ("0.005", "USD", "half_up", "0.01"),
     ("1.5", "JPY", "half_even", "2"), ("1.0005", "KWD", "half_up", "1.001"), ("1.009", "USD", "down", "1.00")],
)  # fmt: skip
def test_rounding(amount, currency, rounding, expected):
    assert str(rounded(Decimal(amount), currency, rounding)) == expected


def test_currencies_are_three_letters():
    assert currency_of(" eur ") == "EUR"
    for wrong in ("EURO", "E1R", 12, None):
        with pytest.raises(ValueError):
            currency_of(wrong)
