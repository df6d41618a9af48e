"""Rate cards, plans and periods: what may be written, and when what holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from token_meter.billing.cards import Markup, Rate, RateCard
from token_meter.billing.catalogue import Catalogue, Chosen, Version
from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plans import Period, Plan, Subscription, overlapping, period_of, periods_between
from token_meter.billing.rating import EventRater
from token_meter.bookkeeping.plan_files import read_period, read_plans
from token_meter.errors import InvalidPlan
from token_meter.prices import PriceBook
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

moments = st.integers(0, 60 * 366 * 86_400).map(
    lambda seconds: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)
PERIODS = st.sampled_from(["day", "week", "month", "quarter", "year"])


@given(moments, PERIODS, st.none() | moments)
def test_periods_tile_the_time(moment, every, anchor):
    period = period_of(moment, every, anchor)
    after = period_of(period.stop, every, anchor)

    assert period.start <= moment < period.stop
    assert after.start == period.stop
    assert (
        period_of(period.start, every, anchor)
        == period_of(period.stop - timedelta(microseconds=1), every, anchor)
        == period
    )


def test_months_from_the_31st_end_with_the_month():
    start = datetime(2027, 1, 31, tzinfo=UTC)

    found = [
        each.start.strftime("%m-%d")
        for each in periods_between(start, datetime(2027, 6, 1, tzinfo=UTC), "month", start)
    ]

    assert found == ["01-31", "02-28", "03-31", "04-30", "05-31"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("2026-11", "2026-11-01 .. 2026-12-01"), ("2026-Q4", "2026-10-01 .. 2027-01-01"), ("2026", "2026-01-01 .. 2027-01-01"),
     ("2026-11-05", "2026-11-05 .. 2026-11-06"), ("2026-11-01..2026-11-15", "2026-11-01 .. 2026-11-15")],
)  # fmt: skip
def test_periods_as_people_write_them(text, found):
    assert str(read_period(text)) == found


@pytest.mark.parametrize("text", ["", "November", "2026-13", "2026-11-31", "2026-11-15..2026-11-01", "2026-Q5"])
def test_what_is_no_period_is_refused(text):
    with pytest.raises(ValueError, match="is no period"):
        read_period(text)


@pytest.mark.parametrize("markup", [{"markup": 30}, {"markup": "30%"}, {"markup": " 30 % "}, {"multiplier": "1.30"}])
def test_thirty_percent_is_a_multiplier_of_one_point_three(markup):
    assert Markup.model_validate(markup).factor == Decimal("1.3")


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ({}, "give exactly one of"),
        ({"per_unit": 1, "flat": 2}, "give exactly one of"),
        ({"cost_plus": {}}, "give either a markup"),
        ({"cost_plus": {"markup": 1}, "meter": "api_calls"}, "has a cost to add to"),
        ({"per_unit": -1}, "an amount must be between 0"),
        ({"per_unit": 0.1}, "is a float"),
        ({"per_unit": "NaN"}, "finite"),
        ({"graduated": [{"up_to": 5, "price": 1}]}, "the last tier must be without an end"),
        ({"graduated": [{"up_to": 5}, {"up_to": 5}, {}]}, "must rise"),
        ({"volume": [{}, {"up_to": 5}]}, "only the last tier"),
        ({"package": {"size": 0, "price": 1}}, "a quantity must be a whole number above 0"),
        ({"per_unit": 1, "overrides": [{"markup": 1}]}, "overrides belong to cost_plus"),
        ({"matrix": []}, "at least one row"),
    ],
)
def test_a_rate_that_cannot_be_is_refused(rate, said):
    with pytest.raises(ValidationError, match=said):
        Rate.model_validate(rate)


def test_a_typo_in_a_plans_file_is_told_with_line_and_field(tmp_path):
    file = tmp_path / "plans.yaml"
    file.write_text("plans:\n  - name: pro\n    fees:\n      - {title: Fee, amout: 20}\n", "utf-8")

    with pytest.raises(InvalidPlan) as told:
        read_plans(file)

    assert "plans.yaml:4: plans.0.fees.0.amout: is no field here; did you mean 'amount'?" in str(told.value)


def test_a_unique_meter_says_of_what():
    with pytest.raises(ValidationError, match="`of` names the dimension"):
        MeterDefinition(name="users", aggregation="unique")


def at(day):
    return datetime(2026, 11, day, tzinfo=UTC)


def test_subscriptions_overlap_only_where_both_hold():
    one = Subscription("a", "acme", "pro", 1, at(5), at(10))

    assert overlapping(one, [Subscription("b", "acme", "pro", 1, at(9))])
    assert not overlapping(one, [Subscription("b", "acme", "pro", 1, at(10)), Subscription("c", "globex", "pro", 1, at(5)),
                                 Subscription("d", "acme", "pro", 1, at(1), at(5))])  # fmt: skip


def catalogue(**more):
    card = RateCard.model_validate(
        {"name": "c", "rates": [{"cost_plus": {"markup": 30}}, {"meter": "api_calls", "per_unit": "0.01"}]}
    )
    dearer = RateCard.model_validate({"name": "c", "rates": [{"cost_plus": {"markup": 50}}]})
    plan = Plan(name="pro", rate_cards=["c"])
    return Catalogue(
        cards={"c": [Version(1, at(1), card), Version(2, at(20), dearer)]},
        plans={"pro": [Version(1, at(1), plan)]},
        subscriptions={("live", "acme"): [Subscription("s", "acme", "pro", 1, at(5), at(25))]},
        **more,
    )


def charges(rater, day, **fields):
    event = make_event(1, time=at(day), model="gpt-5", price_context={}, **{"usage": Usage(input=1_000_000), **fields})
    return {name: (rating.cost, rating.charge) for name, rating in rater.rate(event).items()}


def test_what_holds_when():
    rater = EventRater(PriceBook.load(), catalogue(defaults=[Chosen(at(28), "pro")]))

    assert [charges(rater, day) for day in (4, 6, 21, 26, 29)] == [
        {"input": ("0.00000125", "0.00000125"), "events": ("0", "0")},
        {"input": ("0.00000125", "0.000001625"), "events": ("0", "0.01")},
        {"input": ("0.00000125", "0.000001875"), "events": ("0", "0")},
        {"input": ("0.00000125", "0.00000125"), "events": ("0", "0")},
        {"input": ("0.00000125", "0.000001875"), "events": ("0", "0")},
    ]


def test_events_that_are_alike_are_rated_by_one_object():
    rater = EventRater(PriceBook.load(), catalogue())
    one, other = (make_event(number, time=at(6), usage=Usage(input=number)) for number in (1, 2))

    assert rater.rate(one) is rater.rate(other)


def test_what_was_entered_by_hand_is_no_call():
    assert charges(EventRater(PriceBook.load(), catalogue()), 6, operation=None)["events"] == ("0", "0")


def test_a_missing_price_is_pending_and_never_zero():
    rater = EventRater(PriceBook.load(), catalogue())
    rating = rater.rate(make_event(1, time=at(6), model="gpt-9", model_requested=None))["input"]

    assert (rating.cost, rating.charge, rating.pending) == (None, None, True)


def test_estimates_are_waived_if_the_operator_wants():
    rater = EventRater(PriceBook.load(), catalogue(estimated=[(at(1), False)]))

    assert charges(rater, 6, status="estimated")["input"] == ("0.00000125", "0")
    assert charges(rater, 6)["input"] == ("0.00000125", "0.000001625")


def test_the_same_price_in_a_later_book_is_the_same_rating():
    event = make_event(1, time=at(6), model="gpt-5")
    book = PriceBook.load()
    model = book.model("openai", "gpt-5-pro")
    later = book.with_rows(model.prices[:1])

    one, other = (EventRater(each, catalogue()).rate(event)["input"] for each in (book, later))

    assert book.version != later.version
    assert (one.digest, one.book) == (other.digest, book.version) and other.book == later.version


def test_a_period_must_end_after_it_starts():
    with pytest.raises(ValueError, match="must end after it starts"):
        Period(at(2), at(2))


BOOK = PriceBook.load()
CARD = {
    "name": "by everything",
    "rates": [
        {"where": {"operation": "embeddings"}, "per_unit": "0.01"},
        {"where": {"status": "partial"}, "per_unit": "0.02"},
        {"where": {"team": "a*"}, "cost_plus": {"markup": "10%"},
         "overrides": [{"model": "gpt-5-mini", "multiplier": "3"}]},
        {"where": {"publisher": "anthropic"}, "matrix": [
            {"headline": "output", "price": "0.5"}, {"operation": "chat", "price": "0.25"}, {"price": "0.125"}]},
        {"cost_plus": {"multiplier": "2"}},
        {"meter": "api_calls", "where": {"operation": "chat", "team": "b"}, "per_unit": "7"},
    ],
}  # fmt: skip
CALLS = st.builds(
    lambda model, operation, status, team, usage, tier: make_event(
        1, time=at(6), model=model[1], model_requested=None, provider=model[0], publisher=model[0], status=status,
        operation=operation, usage=Usage(usage), price_context={"service_tier": tier} if tier else {},
        dimensions={"team": team} if team else {},
    ),
    st.sampled_from([("openai", "gpt-5"), ("openai", "gpt-5-mini"), ("anthropic", "claude-opus-5"), ("openai", "?")]),
    st.sampled_from(["chat", "embeddings", None]),
    st.sampled_from(["complete", "partial", "estimated"]),
    st.sampled_from(["a", "a2", "b", None]),
    st.sampled_from([{"input": 1}, {"output": 2}, {"input": 300_000, "output": 1}]),
    st.sampled_from([None, "flex", "nobody's"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(CALLS, max_size=12))
def test_what_was_rated_before_does_not_change_how_an_event_is_rated(events):
    def rater():
        cards = {"everything": [Version(1, at(1), RateCard.model_validate({**CARD, "name": "everything"}))]}
        plans = {"pro": [Version(1, at(1), Plan.model_validate({"name": "pro", "rate_cards": ["everything"]}))]}
        defaults = [Chosen(at(1), "pro")]
        return EventRater(BOOK, Catalogue(cards=cards, plans=plans, defaults=defaults, estimated=[(at(1), False)]))

    warm = rater()
    for event in events:
        assert warm.rate(event) == rater().rate(event)
