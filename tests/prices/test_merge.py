"""Merging a feed: what changes, from when, what waits, what is refused, and that nothing is deleted or proposed twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.prices.kit import (
    HOUR,
    MADE,
    NOW,
    always,
    batch,
    book_of,
    feed_of,
    from_day,
    model,
    provider,
    shipped_as_feed,
    tiers,
)
from token_meter.errors import InvalidPrices
from token_meter.prices import Price, PriceBook
from token_meter.prices.change import Change, change_of, is_first_seen, was_refused
from token_meter.prices.genai import Feed
from token_meter.prices.merge import Merge, merge
from token_meter.prices.stated import SecondSource

BEFORE = provider("openai", model("gpt-5", {"input_mtok": "2", "cache_read_mtok": "1", "output_mtok": "8"}))
BOOK = book_of(BEFORE)


def gpt5(*variants: Any, **prices: Any) -> Feed:
    """A feed that states other prices of the one model."""
    return feed_of(
        provider(
            "openai",
            model("gpt-5", {"input_mtok": "2", "cache_read_mtok": "1", "output_mtok": "8"} | prices, *variants),
        )
    )


def second(**prices: Any) -> SecondSource:
    """Somebody else's prices of the one model."""
    return SecondSource.of_feed(feed_of(provider("openai", model("gpt-5", prices))), name="the other", at=NOW)


def told(change: Change) -> tuple[Any, ...]:
    """A change on one line."""
    return (
        change.kind, change.verdict, f"{change.price.model} {change.price.token_type}", change.old_amount,
        change.new_amount, change.effective_from, change.why,
    )  # fmt: skip


def taken(book: PriceBook, merged: Merge) -> PriceBook:
    """The book with the rows of a merge, as the ledger would give it back."""
    return book.with_rows([*book.rows, *merged.rows])


def cost(book: PriceBook, at: datetime, **usage: int) -> Decimal | None:
    """What the model costs by a book."""
    return book.cost(provider="openai", model="gpt-5", usage=usage, at=at).amount


def test_a_feed_that_says_what_the_shipped_book_says_changes_nothing() -> None:
    book = PriceBook.load()
    prices = sum(len(each.prices) for each in feed_of(*shipped_as_feed()).models)

    merged = merge(book, feed_of(*shipped_as_feed()), now=book.made)

    assert prices > 7_000
    assert (merged.changes, merged.rows, merged.agreed > 7_000) == ((), [], True)


def test_a_fall_within_a_factor_of_two_holds_from_the_hour_it_is_seen() -> None:
    merged = merge(BOOK, gpt5(output_mtok="5"), now=NOW)

    assert [each.to_json() for each in merged.changes] == [
        {
            "id": merged.rows[0].id, "kind": "changed", "verdict": "active", "why": "", "standing": False,
            "provider": "openai", "model": "gpt-5", "token_type": "output", "context": {},
            "above_context_tokens": None, "old": "8", "new": "5", "per": 1_000_000, "unit": "token", "ratio": "0.625",
            "effective_from": "2026-11-20T10:00:00Z", "first_seen": True, "source": "genai-prices 2",
        }
    ]  # fmt: skip
    assert merged.rows == [
        Price(
            provider="openai", model="gpt-5", token_type="output", amount=Decimal(5), per=1_000_000,
            effective_from=HOUR, recorded_at=NOW, publisher="openai", display_name="GPT-5", source="genai-prices 2",
            evidence="first seen", status="active",
        )
    ]  # fmt: skip
    assert merged.agreed == 2
    book = taken(BOOK, merged)
    assert [cost(book, at, output=1_000_000) for at in (HOUR - timedelta(seconds=1), HOUR)] == [8, 5]


@pytest.mark.parametrize(
    ("amount", "other", "verdict", "why"),
    [
        ("4", None, "active", ""),
        ("3.99", None, "held", "it falls by a factor of 2.01"),
        ("9", None, "held", "it rises by a factor of 1.12, and only one source says so"),
        ("9", "9", "active", ""),
        ("9", "8", "held", "the other says 8"),
        ("16", "16", "active", ""),
        ("16.01", "16.01", "held", "it rises by a factor of 2"),
        ("7", "7", "active", ""),
        ("7", "8", "held", "the other says 8"),
        ("80", "80", "held", "it rises by a factor of 10"),
        ("80.1", "80.1", "refused", "it rises by a factor of 10.01"),
        ("0.5", None, "refused", "it falls by a factor of 16"),
        ("0", "0", "held", "it would be free"),
    ],
)
def test_bounds(amount: str, other: str | None, verdict: str, why: str) -> None:
    says = second(output_mtok=other) if other is not None else None

    merged = merge(BOOK, gpt5(output_mtok=amount), now=NOW, second=says)

    status = {"active": "active", "held": "held", "refused": "rejected"}[verdict]
    assert [told(each) for each in merged.changes] == [
        ("changed", verdict, "gpt-5 output", Decimal(8), Decimal(amount), HOUR, why)
    ]
    assert [row.status for row in merged.rows] == [status]
    assert cost(taken(BOOK, merged), NOW, output=1_000_000) == (Decimal(amount) if status == "active" else 8)


def test_a_rise_that_a_second_source_says_nothing_about_waits() -> None:
    merged = merge(BOOK, gpt5(output_mtok="9"), now=NOW, second=second(input_mtok="2"))

    assert [(each.verdict, each.why) for each in merged.changes] == [
        ("held", "it rises by a factor of 1.12, and only one source says so")
    ]


def test_a_second_source_is_not_believed_about_what_others_sell() -> None:
    """Resellers and clouds charge what they like: only a maker's own price is compared."""
    before, after = (provider("aws", model("claude-x", {"output_mtok": amount})) for amount in ("8", "9"))
    says = SecondSource.of_feed(feed_of(after), name="the other", at=NOW)

    merged = merge(book_of(before), feed_of(after), now=NOW, second=says)

    assert [each.verdict for each in merged.changes] == ["held"]


@pytest.mark.parametrize(
    ("feed", "odd"),
    [
        (gpt5(cache_read_mtok="1.9", input_mtok="1.8"), "cache_read costs more than input"),
        (gpt5(batch(output_mtok="9")), "a batch costs more than the standard"),
        (gpt5(cache_write_1h_mtok="1001"), "it is above 1000 per million"),
    ],
)
def test_what_is_odd_waits(feed: Feed, odd: str) -> None:
    merged = merge(BOOK, feed, now=NOW, second=second(cache_read_mtok="1.9", input_mtok="1.8"))

    assert {(each.verdict, each.why) for each in merged.changes} == {("held", odd)}


def test_calls_are_not_judged_by_the_bound_for_tokens() -> None:
    merged = merge(BOOK, gpt5(web_searches_kcount="1001"), now=NOW)

    assert [told(each) for each in merged.changes] == [
        ("added", "active", "gpt-5 web_search", None, Decimal(1001), None, "")
    ]


def test_the_date_that_a_feed_states_counts() -> None:
    dated = [always(input_mtok="2", cache_read_mtok="1", output_mtok="8"), from_day("2026-11-15", input_mtok="1.5", cache_read_mtok="1", output_mtok="8")]  # fmt: skip

    merged = merge(BOOK, feed_of(provider("openai", model("gpt-5", dated))), now=NOW)

    start = datetime(2026, 11, 15, tzinfo=UTC)
    assert [told(each) for each in merged.changes] == [
        ("changed", "active", "gpt-5 input", Decimal(2), Decimal("1.5"), start, "")
    ]
    assert not merged.changes[0].first_seen
    book = taken(BOOK, merged)
    assert [cost(book, at, input=1_000_000) for at in (start - timedelta(seconds=1), start)] == [2, Decimal("1.5")]


def test_a_scheduled_rise_needs_no_second_source() -> None:
    dated = [always(input_mtok="2", cache_read_mtok="1", output_mtok="8"), from_day("2027-01-01", input_mtok="3", cache_read_mtok="1", output_mtok="90")]  # fmt: skip

    merged = merge(BOOK, feed_of(provider("openai", model("gpt-5", dated))), now=NOW)

    day = datetime(2027, 1, 1, tzinfo=UTC)
    assert [told(each) for each in merged.changes] == [
        ("scheduled", "active", "gpt-5 input", Decimal(2), Decimal(3), day, ""),
        ("scheduled", "refused", "gpt-5 output", Decimal(8), Decimal(90), day, "it rises by a factor of 11.25"),
    ]
    assert [cost(taken(BOOK, merged), at, input=1_000_000) for at in (NOW, day)] == [2, 3]


def test_a_scheduled_rise_that_the_feed_no_longer_announces_is_taken_back() -> None:
    dated = [always(output_mtok="8"), from_day("2026-12-01", output_mtok="12")]
    book = book_of(provider("openai", model("gpt-5", dated)))

    merged = merge(book, feed_of(provider("openai", model("gpt-5", {"output_mtok": "8"}))), now=NOW)

    day = datetime(2026, 12, 1, tzinfo=UTC)
    assert [told(each) for each in merged.changes] == [
        ("scheduled", "active", "gpt-5 output", Decimal(12), Decimal(8), day, "")
    ]
    assert [cost(each, day, output=1_000_000) for each in (book, taken(book, merged))] == [12, 8]


def test_a_new_model_comes_with_the_dates_of_the_feed() -> None:
    """Its usage waits for a price from the first call on, so the price must not begin when we hear of it."""
    new = model(
        "gpt-9",
        [always(input_mtok="3"), from_day("2026-11-10", input_mtok="2"), from_day("2026-12-01", input_mtok="1")],
    )

    merged = merge(BOOK, feed_of({**BEFORE, "models": [*BEFORE["models"], new]}), now=NOW)

    days = [datetime(2026, 11, 10, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)]
    assert [told(each) for each in merged.changes] == [
        ("added", "active", "gpt-9 input", None, Decimal(3), None, ""),
        ("added", "active", "gpt-9 input", None, Decimal(2), days[0], ""),
        ("scheduled", "active", "gpt-9 input", None, Decimal(1), days[1], ""),
    ]
    book = taken(BOOK, merged)
    rates = [
        book.cost(provider="openai", model="gpt-9", usage={"input": 1_000_000}, at=at).amount
        for at in (MADE, days[0], days[1])
    ]
    assert rates == [3, 2, 1]


def test_a_new_model_that_is_free_waits() -> None:
    new = model("gpt-9", {"input_mtok": "0"})

    merged = merge(BOOK, feed_of({**BEFORE, "models": [*BEFORE["models"], new]}), now=NOW)

    assert [told(each) for each in merged.changes] == [
        ("added", "held", "gpt-9 input", None, Decimal(0), None, "it would be free")
    ]


def test_a_price_of_its_own_for_what_was_billed_by_another_is_a_change_and_not_back_dated() -> None:
    merged = merge(BOOK, gpt5(output_reasoning_mtok="6"), now=NOW)

    assert [told(each) for each in merged.changes] == [
        ("changed", "active", "gpt-5 reasoning", Decimal(8), Decimal(6), HOUR, "")
    ]


def test_a_model_that_loses_its_steps_has_none_from_then_on() -> None:
    book = book_of(provider("openai", model("gpt-5", {"input_mtok": tiers("2", 200_000, "3"), "output_mtok": "8"})))
    flat = [always(input_mtok=tiers("2", 200_000, "3"), output_mtok="8"), from_day("2026-11-15", input_mtok="2", output_mtok="8")]  # fmt: skip

    merged = merge(book, feed_of(provider("openai", model("gpt-5", flat))), now=NOW)

    start = datetime(2026, 11, 15, tzinfo=UTC)
    assert [told(each) for each in merged.changes] == [
        ("changed", "active", "gpt-5 input", Decimal(3), Decimal(2), start, "")
    ]
    assert [(row.amount, row.above, row.effective_from) for row in merged.rows] == [(None, 200_000, start)]
    after = taken(book, merged)
    assert [cost(after, at, input=300_000) for at in (start - timedelta(seconds=1), start)] == [
        Decimal("0.9"),
        Decimal("0.6"),
    ]


def test_steps_that_a_feed_drops_without_a_date_end_when_that_is_seen() -> None:
    book = book_of(provider("openai", model("gpt-5", {"input_mtok": tiers("2", 200_000, "3")})))

    merged = merge(book, feed_of(provider("openai", model("gpt-5", {"input_mtok": "2"}))), now=NOW)

    assert [(row.amount, row.above, row.effective_from) for row in merged.rows] == [(None, 200_000, HOUR)]
    assert cost(taken(book, merged), NOW, input=300_000) == Decimal("0.6")


def test_steps_end_on_the_day_from_which_another_price_stands_for_them() -> None:
    book = book_of(provider("openai", model("gpt-5", {"input_mtok": tiers("2", 200_000, "3")})))
    dated = [always(output_mtok="8"), from_day("2026-11-15", input_mtok="1.8", output_mtok="8")]

    merged = merge(book, feed_of(provider("openai", model("gpt-5", dated))), now=NOW)

    start = datetime(2026, 11, 15, tzinfo=UTC)
    assert [(row.token_type, row.amount, row.above, row.effective_from) for row in merged.rows] == [
        ("output", Decimal(8), None, None),
        ("input", Decimal("1.8"), None, start),
        ("input", None, 200_000, start),
    ]


def test_an_old_date_of_the_price_that_stands_in_does_not_end_steps_in_the_past() -> None:
    dated = [from_day("2025-01-01", input_mtok=tiers("2", 200_000, "3"))]
    flat = [from_day("2025-01-01", input_mtok="2")]
    book = book_of(provider("openai", model("gpt-5", dated)))

    merged = merge(book, feed_of(provider("openai", model("gpt-5", flat))), now=NOW)

    assert [(row.amount, row.above, row.effective_from) for row in merged.rows] == [(None, 200_000, HOUR)]


def test_a_step_that_ends_with_a_rise_waits() -> None:
    book = book_of(provider("openai", model("gpt-5", {"input_mtok": tiers("2", 200_000, "3")})))

    merged = merge(book, feed_of(provider("openai", model("gpt-5", {"input_mtok": "4"}))), now=NOW)

    assert [told(each) for each in merged.changes] == [
        ("changed", "held", "gpt-5 input", Decimal(2), Decimal(4), HOUR, "it rises by a factor of 2, and only one source says so"),
        ("changed", "held", "gpt-5 input", Decimal(3), Decimal(4), HOUR, "it rises by a factor of 1.33, and only one source says so"),
    ]  # fmt: skip
    assert cost(taken(book, merged), NOW, input=300_000) == Decimal("0.9")


def test_a_new_step_is_a_change_of_what_was_billed_there() -> None:
    merged = merge(BOOK, gpt5(output_mtok=tiers("8", 200_000, "10")), now=NOW, second=None)

    assert [(told(each)[:6], each.price.above) for each in merged.changes] == [
        (("changed", "held", "gpt-5 output", Decimal(8), Decimal(10), HOUR), 200_000)
    ]


def test_a_daily_window_that_ends_costs_what_the_rest_of_the_day_costs() -> None:
    night = {"constraint": {"start_time": "16:30", "end_time": "00:30"}, "prices": {"input_mtok": "1"}}
    book = book_of(provider("openai", model("gpt-5", [always(input_mtok="2"), night])))
    evening = NOW.replace(hour=20)

    merged = merge(
        book, feed_of(provider("openai", model("gpt-5", {"input_mtok": "2"}))), now=NOW, second=second(input_mtok="2")
    )

    assert [(told(each)[:5], each.price.daily) for each in merged.changes] == [
        (("changed", "active", "gpt-5 input", Decimal(1), Decimal(2)), (990, 30))
    ]
    assert [cost(each, evening, input=1_000_000) for each in (book, taken(book, merged))] == [1, 2]


def test_what_a_feed_no_longer_states_is_told_and_stays() -> None:
    book = book_of(
        provider(
            "openai", model("gpt-5", {"input_mtok": "2", "cache_read_mtok": "1"}), model("gpt-4", {"input_mtok": "30"})
        )
    )

    merged = merge(book, feed_of(provider("openai", model("gpt-5", {"input_mtok": "2"}))), now=NOW)

    assert [told(each) for each in merged.changes] == [
        ("withdrawn", None, "gpt-5 cache_read", Decimal(1), None, None, "the feed no longer states it"),
        ("withdrawn", None, "gpt-4 input", Decimal(30), None, None, "the feed no longer has the model"),
    ]
    assert merged.rows == []


def test_what_the_operator_says_does_not_hide_what_changed() -> None:
    own = PriceBook(BOOK._shipped).with_overrides(None)
    overridden = PriceBook.load(
        {"models": [{"provider": "openai", "model": "gpt-5", "prices": {"output": 5}}]}
    ).overrides

    merged = merge(own.with_overrides(overridden), gpt5(output_mtok="5"), now=NOW)

    assert [told(each)[:5] for each in merged.changes] == [
        ("changed", "active", "gpt-5 output", Decimal(8), Decimal(5))
    ]


# What is proposed again and again


FEEDS = {
    "free model": feed_of({**BEFORE, "models": [*BEFORE["models"], model("gpt-9", [always(input_mtok="0"), from_day("2026-11-10", input_mtok="1001")])]}),
    "fall": gpt5(output_mtok="5"),
    "rise": gpt5(output_mtok="9"),
    "refused": gpt5(output_mtok="100"),
    "new context": gpt5(batch(output_mtok="4")),
    "new step": gpt5(output_mtok=tiers("8", 200_000, "10")),
    "new type": gpt5(web_searches_kcount="10"),
    "scheduled": feed_of(provider("openai", model("gpt-5", [always(output_mtok="8"), from_day("2027-01-01", output_mtok="12"), from_day("2027-02-01", output_mtok="30")]))),
}  # fmt: skip


@pytest.mark.parametrize("name", FEEDS)
def test_a_feed_that_comes_again_proposes_nothing_again(name: str) -> None:
    first = merge(BOOK, FEEDS[name], now=NOW)
    assert first.rows

    again = merge(taken(BOOK, first), FEEDS[name], now=NOW + timedelta(days=1))

    waiting = [each for each in first.changes if each.verdict in ("held", "refused")]
    assert again.rows == []
    assert [(each.price, each.standing, each.verdict) for each in again.changes if each.verdict] == [
        (each.price, True, each.verdict) for each in waiting
    ]


@pytest.mark.parametrize("name", FEEDS)
def test_what_was_accepted_is_what_the_feed_says(name: str) -> None:
    first = merge(BOOK, FEEDS[name], now=NOW)
    rows = [replace(row, status="active") for row in first.rows]

    again = merge(BOOK.with_rows(rows), FEEDS[name], now=NOW + timedelta(days=1))

    assert [each for each in again.changes if each.kind != "withdrawn"] == []


def test_a_price_that_a_human_rejected_is_not_proposed_again_until_it_is_another() -> None:
    rejected = [replace(row, status="rejected", evidence="first seen; rejected by hand") for row in merge(BOOK, gpt5(output_mtok="9"), now=NOW).rows]  # fmt: skip
    book = BOOK.with_rows(rejected)

    same = merge(book, gpt5(output_mtok="9"), now=NOW + timedelta(days=1))
    other = merge(book, gpt5(output_mtok="10"), now=NOW + timedelta(days=1))

    assert [(each.standing, each.verdict, each.why) for each in same.changes] == [(True, "refused", "rejected by hand")]
    assert [(each.standing, each.verdict) for each in other.changes] == [(False, "held")]
    assert not was_refused(rejected[0])


def test_what_was_refused_for_its_size_is_known_by_its_row() -> None:
    rows = merge(BOOK, gpt5(output_mtok="100"), now=NOW).rows

    assert [(was_refused(row), is_first_seen(row), row.evidence) for row in rows] == [
        (True, True, "first seen; refused: it rises by a factor of 12.5")
    ]


def test_a_correction_from_a_better_source_is_not_undone_by_the_feed_that_lags() -> None:
    corrected = Price(
        provider="openai", model="gpt-5", token_type="output", amount=Decimal(6), per=1_000_000,
        effective_from=MADE, recorded_at=MADE, publisher="openai", source="openai.com on 2026-11-01",
    )  # fmt: skip
    book = BOOK.with_rows([corrected])

    same, newer = (merge(book, gpt5(output_mtok=amount), now=NOW) for amount in ("8", "5"))

    assert (same.changes, same.lagging, same.agreed) == ((), 1, 2)
    assert [told(each)[:5] for each in newer.changes] == [("changed", "active", "gpt-5 output", Decimal(6), Decimal(5))]


def test_a_row_of_the_book_is_told_as_the_change_it_made() -> None:
    merged = merge(BOOK, gpt5(output_mtok="5"), now=NOW)
    book = taken(BOOK, merged)

    found = change_of(book, book.rows[0], now=NOW + timedelta(days=1))

    assert told(found) == told(merged.changes[0])
    assert found.ratio == Decimal("0.625")


# Feeds that are refused as a whole


MANY = [model(f"gpt-{number}", {"input_mtok": "2"}) for number in range(100)]


def test_a_feed_that_lacks_models_is_refused() -> None:
    book = book_of(provider("openai", *MANY))

    merged = merge(book, feed_of(provider("openai", *MANY[2:])), now=NOW)
    with pytest.raises(InvalidPrices) as refused:
        merge(book, feed_of(provider("openai", *MANY[3:])), now=NOW)

    assert [each.kind for each in merged.changes] == ["withdrawn", "withdrawn"]
    assert str(refused.value) == (
        "this feed lacks 3 of the 100 models of openai that the book has (gpt-0, gpt-1, gpt-2): it is older than the "
        "book, or only a part of a feed. Prices of your own go into the overrides file"
    )


def test_a_provider_with_few_models_tells_nothing_about_a_feed() -> None:
    book = book_of(provider("openai", *MANY[:19]), provider("x-ai", model("grok", {"input_mtok": "1"})))

    merged = merge(book, feed_of(provider("x-ai", model("grok", {"input_mtok": "1"}))), now=NOW)

    assert {each.kind for each in merged.changes} == {"withdrawn"}
    assert len(merged.changes) == 19


def test_models_that_another_source_knows_are_not_missing() -> None:
    others = [
        Price(provider="deepinfra", model=f"llama-{number}", token_type="input", amount=Decimal(1), per=1_000_000, source="litellm 1")
        for number in range(30)
    ]  # fmt: skip

    merged = merge(BOOK.with_rows(others), gpt5(), now=NOW)

    assert merged.changes == ()


def test_a_feed_whose_last_change_is_before_the_books_is_refused() -> None:
    def dated(day: str, amount: str) -> dict[str, Any]:
        return provider("openai", model("gpt-5", [always(input_mtok="2"), from_day(day, input_mtok=amount)]))

    book = book_of(dated("2026-11-12", "1.8"))

    with pytest.raises(InvalidPrices) as older:
        merge(book, feed_of(dated("2026-11-11", "1.9")), now=NOW)
    with pytest.raises(InvalidPrices) as undated:
        merge(book, gpt5(), now=NOW)

    assert str(older.value) == (
        "this feed ends with a change of 2026-11-11, and the book has a change of 2026-11-12 that it does not know: it is "
        "older than the book"
    )
    assert str(undated.value).startswith("this feed states no date, and the book has a change of 2026-11-12 that it ")


def test_a_feed_that_states_the_same_without_the_date_is_not_old() -> None:
    book = book_of(
        provider("openai", model("gpt-5", [always(input_mtok="2"), from_day("2026-11-12", input_mtok="1.8")]))
    )

    merged = merge(book, feed_of(provider("openai", model("gpt-5", {"input_mtok": "1.8"}))), now=NOW)

    assert (merged.changes, merged.agreed) == ((), 1)


def test_a_date_that_is_ours_does_not_make_a_feed_old() -> None:
    book = taken(BOOK, merge(BOOK, gpt5(output_mtok="5"), now=NOW))

    merged = merge(book, gpt5(output_mtok="4.5"), now=NOW + timedelta(days=1))

    assert [told(each)[:5] for each in merged.changes] == [
        ("changed", "active", "gpt-5 output", Decimal(5), Decimal("4.5"))
    ]


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        (feed_of(), "this feed states no prices"),
        (feed_of(provider("openai")), "this feed states no prices"),
        (gpt5(output_mtok="-1"), "this feed says -1 for output of openai/gpt-5: that is no price"),
    ],
)
def test_what_is_no_feed_of_prices_is_refused(feed: Feed, said: str) -> None:
    with pytest.raises(InvalidPrices) as refused:
        merge(BOOK, feed, now=NOW)

    assert str(refused.value) == said


PRICES = {"input_mtok": "2", "output_mtok": "8"}


def test_what_waits_and_is_no_longer_stated_waits_no_more() -> None:
    book = book_of(provider("openai", model("gpt-5", PRICES)))
    first = merge(book, feed_of(provider("openai", model("gpt-5", PRICES | {"output_mtok": "40"}))), now=NOW)
    waiting = book.with_rows(first.rows)

    later = merge(waiting, feed_of(provider("openai", model("gpt-5", PRICES))), now=NOW + timedelta(days=1))
    again = merge(
        waiting.with_rows([*waiting.history, *later.superseded]),
        feed_of(provider("openai", model("gpt-5", PRICES | {"output_mtok": "40"}))),
        now=NOW + timedelta(days=2),
    )

    assert [row.status for row in first.rows] == ["held"]
    assert [(row.id, row.status) for row in later.superseded] == [(first.rows[0].id, "rejected")]
    assert [(each.verdict, each.standing) for each in again.changes] == [("held", False)]


def test_a_new_model_keeps_its_other_names() -> None:
    new = model("gpt-9", PRICES) | {"match": {"or": [{"equals": "gpt-9"}, {"equals": "gpt-nine"}]}}
    merged = merge(book_of(provider("openai", model("gpt-5", PRICES))),
                   feed_of(provider("openai", model("gpt-5", PRICES), new)), now=NOW)  # fmt: skip

    assert {row.aliases for row in merged.rows} == {("gpt-nine",)}


def test_a_few_models_may_go_and_rejected_ones_are_not_missed() -> None:
    names = [f"gpt-{number}" for number in range(25)]
    book = book_of(provider("openai", *(model(name, PRICES) for name in names)))
    junk = feed_of(provider("openai", *(model(name, PRICES) for name in [*names, "junk-1", "junk-2", "junk-3"])))
    rejected = book.with_rows([replace(row, status="rejected") for row in merge(book, junk, now=NOW).rows])

    merge(rejected, feed_of(provider("openai", *(model(name, PRICES) for name in names[2:]))), now=NOW)
    with pytest.raises(InvalidPrices, match="lacks 3 of the 25 models"):
        merge(rejected, feed_of(provider("openai", *(model(name, PRICES) for name in names[3:]))), now=NOW)


def test_what_is_charged_by_the_request_too_is_not_taken() -> None:
    feed = feed_of(provider("perplexity", model("sonar", PRICES | {"requests_kcount": "12"})))

    assert [each.prices for each in feed.models] == [[]]


@pytest.mark.parametrize("name", ["gpt\x1b[2J", "\ud800", "", "x" * 300, 7, None])
def test_names_that_are_none_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"is no name|no price feed"):
        feed_of(provider("openai", model("gpt-5", PRICES) | {"id": name}))


@pytest.mark.parametrize("start", [Decimal("1e39"), 10**13, 0, -5, Decimal("0.5"), Decimal("1e9999999")])
def test_thresholds_that_are_none_are_refused(start: Any) -> None:
    with pytest.raises(ValueError, match="threshold of the feed"):
        feed_of(provider("openai", model("gpt-5", {"input_mtok": tiers("1", start, "2")})))


def test_a_new_name_of_a_known_model_is_told_and_not_taken() -> None:
    prices = {"input_mtok": "2", "cache_read_mtok": "1", "output_mtok": "8"}
    names = {"or": [{"equals": each} for each in ("gpt-5", "gpt-5-2026-01-01", "gpt5-preview")]}
    renamed = {**model("gpt-5", prices), "match": names}
    feed = feed_of(provider("openai", renamed, {**model("gpt-6", prices), "match": {"equals": "gpt-6"}}))

    merged = merge(BOOK, feed, now=NOW)

    # The dated one means the model already, and those of a new model come with it.
    assert [tuple(each) for each in merged.names] == [("openai", "gpt5-preview", "gpt-5")]
    assert taken(BOOK, merged).find("openai", "gpt5-preview") is None
