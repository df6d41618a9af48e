"""Whatever a feed says: taken, it is what the book says, and its own words are news only once."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.prices.kit import NOW, book_of, feed_of, model, provider, tiers
from token_meter.errors import InvalidPrices
from token_meter.prices import PriceBook
from token_meter.prices.genai import Feed
from token_meter.prices.merge import merge
from token_meter.prices.stated import billed, in_force

AMOUNTS = st.sampled_from(["0.5", "1", "2", "3", "8", "40"])
DAYS = st.sampled_from(["2026-10-01", "2026-11-10", "2026-12-01", "2027-01-01"])
LATER = datetime(2027, 6, 1, tzinfo=NOW.tzinfo)


@st.composite
def amounts(draw: st.DrawFn) -> Any:
    """One price, perhaps with steps for long contexts."""
    base = draw(AMOUNTS)
    return tiers(base, draw(st.sampled_from([100_000, 200_000])), draw(AMOUNTS)) if draw(st.booleans()) else base


@st.composite
def price_sets(draw: st.DrawFn) -> dict[str, Any]:
    """Prices that hold together."""
    units = draw(st.sets(st.sampled_from(["cache_read_mtok", "output_mtok", "output_reasoning_mtok"])))
    return {"input_mtok": draw(amounts()), **{unit: draw(amounts()) for unit in sorted(units)}}


@st.composite
def feeds(draw: st.DrawFn) -> list[Any]:
    """One model with dates, batches and a daily window."""
    dated = [{"prices": draw(price_sets())}] + [
        {"constraint": {"start_date": day}, "prices": draw(price_sets())} for day in sorted(draw(st.sets(DAYS)))
    ]
    if draw(st.booleans()):
        window = {"start_time": "16:30", "end_time": "00:30"}
        dated.append({"constraint": window, "prices": {"input_mtok": draw(AMOUNTS)}})
    batches = [{"when": {"processing": "batch"}, "prices": draw(price_sets())}] if draw(st.booleans()) else []
    return [provider("openai", model("gpt-5", dated, *batches))]


def merged_rows(book: PriceBook, feed: Feed, at: datetime) -> PriceBook:
    """The book with everything that a feed proposes taken."""
    try:
        rows = [replace(row, status="active") for row in merge(book, feed, now=at).rows]
    except InvalidPrices:
        assume(False)
    return book.with_rows([*book.rows, *rows])


@settings(max_examples=150, deadline=None)
@given(feeds(), feeds())
def test_a_feed_that_was_taken_has_nothing_new(before: list[Any], after: list[Any]) -> None:
    feed = feed_of(*after)
    book = merged_rows(book_of(*before), feed, NOW)

    for later in (NOW, NOW + timedelta(minutes=45), NOW + timedelta(days=20), LATER):
        merged = merge(book, feed, now=later)
        assert [each for each in merged.changes if each.kind != "withdrawn"] == []


@settings(max_examples=150, deadline=None)
@given(feeds(), feeds(), st.sampled_from([NOW, datetime(2026, 12, 15, tzinfo=NOW.tzinfo), LATER]))
def test_what_a_feed_states_is_billed_once_it_was_taken(before: list[Any], after: list[Any], at: datetime) -> None:
    feed = feed_of(*after)
    book = merged_rows(book_of(*before), feed, NOW)

    stated = in_force(feed.models[0].prices, at)
    taken = in_force(book.model("openai", "gpt-5").prices, at)
    assert stated
    for key, price in stated.items():
        mine = billed(taken, key)
        assert mine is not None and mine.rate == price.rate, (key, mine)


@settings(max_examples=100, deadline=None)
@given(feeds(), feeds())
def test_nothing_that_was_stated_is_lost(before: list[Any], after: list[Any]) -> None:
    book = book_of(*before)

    taken = merged_rows(book, feed_of(*after), NOW)

    assert set(book.model("openai", "gpt-5").prices) <= set(taken.model("openai", "gpt-5").prices)
