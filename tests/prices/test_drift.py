"""Drift: where the book and a second source disagree, what is only coverage, and what a human has looked at."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from tests.prices.kit import NOW, always, batch, book_of, feed_of, from_day, model, provider, shipped_as_feed, tiers
from token_meter.errors import InvalidPrices
from token_meter.prices import PriceBook
from token_meter.prices.drift import Comparison, Disagreement, compare, drift
from token_meter.prices.stated import SecondKey, SecondSource

BOOK = book_of(
    provider(
        "openai",
        model("gpt-5", {"input_mtok": tiers("2", 200_000, "3"), "cache_read_mtok": "1", "output_mtok": "8"}, batch(output_mtok="4")),
        model("gpt-4", {"input_mtok": "30"}),
    ),
    provider("aws", model("claude-x", {"input_mtok": "5"})),
)  # fmt: skip


def litellm(**entries: Any) -> SecondSource:
    """A map of litellm, parsed as it is when it is fetched."""
    document = json.loads(json.dumps(entries), parse_float=Decimal)
    return SecondSource.of_litellm(document, name="litellm")


def gpt5(**costs: float) -> SecondSource:
    """A map with the one model."""
    return litellm(**{"gpt-5": {"litellm_provider": "openai", **costs}})


def disagreement(token_type: str, ours: str, theirs: str, **more: Any) -> Disagreement:
    return Disagreement(
        **{"provider": "openai", "model": "gpt-5", "token_type": token_type, "context": (), "above": None}
        | {"ours": Decimal(ours), "theirs": Decimal(theirs), "source": "genai-prices 1", "second": "litellm"} | more
    )  # fmt: skip


def test_what_both_state_the_same_is_no_drift() -> None:
    second = gpt5(
        input_cost_per_token=2e-06, input_cost_per_token_above_200k_tokens=3e-06, output_cost_per_token=8e-06,
        output_cost_per_token_batches=4e-06, cache_read_input_token_cost=1e-06,
    )  # fmt: skip

    found = compare(BOOK, second, at=NOW)

    assert found == Comparison((), (), agreed=5, only_book=1, only_second=0)


def test_different_amounts_disagree() -> None:
    second = gpt5(
        input_cost_per_token=1.5e-06, output_cost_per_token_batches=5e-06, input_cost_per_token_above_200k_tokens=4e-06
    )

    found = drift(BOOK, second, at=NOW)

    assert found == [
        disagreement("input", "2", "1.5"),
        disagreement("input", "3", "4", above=200_000),
        disagreement("output", "4", "5", context=(("batch", "yes"),)),
    ]
    assert [round(each.ratio, 4) for each in found] == [Decimal("0.75"), Decimal("1.3333"), Decimal("1.25")]


def test_what_only_one_has_is_counted_as_coverage() -> None:
    second = litellm(
        **{
            "gpt-5": {"litellm_provider": "openai", "output_cost_per_token": 8e-06},
            "gpt-99": {"litellm_provider": "openai", "input_cost_per_token": 1e-06},
        }
    )

    found = compare(BOOK, second, at=NOW)

    assert found == Comparison((), (), agreed=1, only_book=5, only_second=1)


def test_what_resellers_and_clouds_charge_is_not_compared() -> None:
    second = litellm(**{"claude-x": {"litellm_provider": "bedrock", "input_cost_per_token": 4e-06}})

    found = compare(BOOK, second, at=NOW)

    assert second.amounts == {SecondKey("aws", "claude-x", "input", (), None): 4}
    assert found == Comparison((), (), agreed=0, only_book=6, only_second=0)


def test_an_adjudicated_disagreement_comes_back_when_an_amount_changes() -> None:
    seen = drift(BOOK, gpt5(input_cost_per_token=1.5e-06), at=NOW)
    marks = {each.id for each in seen}

    same = compare(BOOK, gpt5(input_cost_per_token=1.50e-06), at=NOW, adjudicated=marks)
    other = compare(BOOK, gpt5(input_cost_per_token=1.6e-06), at=NOW, adjudicated=marks)

    assert (list(same.adjudicated), same.disagreements) == (seen, ())
    assert other.disagreements == (disagreement("input", "2", "1.6"),)
    assert replace(seen[0], ours=Decimal("2.5")).id not in marks


def test_the_price_in_force_then_is_compared() -> None:
    book = book_of(provider("openai", model("gpt-5", [always(input_mtok="2"), from_day("2027-01-01", input_mtok="3")])))
    second = gpt5(input_cost_per_token=3e-06)

    assert drift(book, second, at=NOW) == [disagreement("input", "2", "3")]
    assert drift(book, second, at=NOW.replace(year=2027)) == []


def test_an_operators_own_price_is_no_claim_about_the_provider() -> None:
    overrides = PriceBook.load(
        {"models": [{"provider": "openai", "model": "gpt-5", "prices": {"output": 1}}]}
    ).overrides

    found = compare(BOOK.with_overrides(overrides), gpt5(output_cost_per_token=8e-06), at=NOW)

    assert (found.disagreements, found.agreed) == ((), 1)


def test_the_map_of_litellm_is_read_exactly() -> None:
    second = litellm(
        **{
            "sample_spec": {"litellm_provider": "one of the providers", "input_cost_per_token": 0.0},
            "gemini/gemini-9": {
                "litellm_provider": "gemini", "input_cost_per_token": 7.5e-08, "output_cost_per_token": 0.0,
                "input_cost_per_token_flex": 1e-08, "max_tokens": 8192, "mode": "chat",
            },
            "claude-9": {
                "litellm_provider": "anthropic", "cache_creation_input_token_cost": 3.75e-06,
                "cache_creation_input_token_cost_above_1hr": 6e-06, "cache_read_input_token_cost": 3e-07,
                "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 1.2e-05,
            },
            "gpt-9": {"litellm_provider": "openai", "cache_creation_input_token_cost": 1e-06, "input_cost_per_token": None},
            "no provider": {"input_cost_per_token": 1.0},
        }
    )  # fmt: skip

    assert second.amounts == {
        SecondKey("google", "gemini-9", "input", (), None): Decimal("0.075"),
        SecondKey("google", "gemini-9", "input", (("service_tier", "flex"),), None): Decimal("0.01"),
        SecondKey("anthropic", "claude-9", "cache_write_5m", (), None): Decimal("3.75"),
        SecondKey("anthropic", "claude-9", "cache_write_1h", (), None): Decimal(6),
        SecondKey("anthropic", "claude-9", "cache_write_1h", (), 200_000): Decimal(12),
        SecondKey("anthropic", "claude-9", "cache_read", (), None): Decimal("0.3"),
        SecondKey("openai", "gpt-9", "cache_write_30m", (), None): Decimal(1),
    }


def test_a_float_does_not_get_in() -> None:
    document = {"gpt-5": {"litellm_provider": "openai", "input_cost_per_token": 1.5e-06}}

    with pytest.raises(InvalidPrices, match="a float, which is rounded already"):
        SecondSource.of_litellm(document, name="litellm")


@pytest.mark.parametrize("document", [{}, {"a": 1}, {"gpt-5": {"litellm_provider": "openai"}}])
def test_what_is_no_map_says_so(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidPrices) as refused:
        SecondSource.of_litellm(document, name="map.json")

    assert str(refused.value) == "map.json is no map of litellm: no entry states a provider and a price"


def test_the_feed_that_the_shipped_book_was_made_of_agrees_with_it() -> None:
    book = PriceBook.load()
    second = SecondSource.of_feed(feed_of(*shipped_as_feed()), name="the feed", at=book.made)

    found = compare(book, second, at=book.made)

    assert found.agreed > 1_500
    assert {each.model for each in found.disagreements} <= {"deepseek-chat"}
