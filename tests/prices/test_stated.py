"""What is stated and what stands in for it: the same as what the book bills by."""

from __future__ import annotations

from tests.prices.kit import NOW
from token_meter.prices import PriceBook
from token_meter.prices.model import BILLED_AS
from token_meter.prices.stated import PriceKey, billed, in_force


def test_what_stands_in_for_a_price_is_what_the_book_bills_by() -> None:
    compared = 0
    for model in PriceBook.load().models():
        if any(price.daily for price in model.prices):
            continue
        found = in_force(model.prices, NOW)
        steps = {0, *((key.above or 0) + 1 for key in found)}
        keys = {(key.token_type, key.context) for key in found} | {
            (token_type, key.context) for token_type in BILLED_AS for key in found
        }
        for token_type, context in keys:
            ladder = model.ladder(token_type, context, NOW)
            for tokens in steps:
                expected = ladder.price(tokens) if ladder is not None else None
                mine = billed(found, PriceKey(token_type, context, tokens, False, None))
                assert mine == expected, (model.provider, model.id, token_type, context, tokens)
                compared += 1

    assert compared > 10_000
