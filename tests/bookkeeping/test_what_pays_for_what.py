"""Included usage, minimums, discounts and credit beside each other: each unit is paid for once, by what is for it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tests.bookkeeping.conftest import LONG_AGO, NOVEMBER, OCTOBER
from tests.bookkeeping.kit import call, counted
from token_meter.billing.plans import PlansFile
from token_meter.bookkeeping.event_corrections import record_all, voiding
from token_meter.bookkeeping.verification import verify
from token_meter.usage import Usage

DOCS = [{"meter": "docs", "per_unit": "1"}]
EACH = [{"per_unit": "1"}]


def day(number, hour=0):
    return datetime(2026, 11, number, hour, tzinfo=UTC)


def plan(desk, rates=None, *, cards=(), since=LONG_AGO, **more):
    """acme is on a plan with these rates; there is a meter of documents."""
    content = {"name": "p", **({"rates": rates} if rates else {}), **more}
    file = {"meters": [{"name": "docs"}], "plans": [content], "rate_cards": list(cards)}
    desk.plans.keep(PlansFile.model_validate(file), effective_from=LONG_AGO)
    desk.plans.subscribe("acme", "p", start=since)


def used(desk, number, quantity, model, **more):
    """So many input tokens of a model, entered by hand."""
    more = {"time": day(5), "operation": None, "usage": Usage(input=quantity)} | more
    desk.ledger.record([call(number, model=model, provider="house", **more)])


def docs(desk, number, quantity, **more):
    desk.ledger.record([counted(number, quantity, meter="docs", **{"time": day(5)} | more)])


def draft(desk):
    return desk.invoices.draft("acme", within=NOVEMBER)[0]


def test_a_unit_is_included_once(desk):
    plan(desk, [*EACH, *DOCS], included=[{"quantity": 100}, {"quantity": 100, "where": {"model": "a"}}])
    used(desk, 1, 100, "a")
    docs(desk, 2, 70)

    assert draft(desk).total == 70


def test_a_unit_of_a_scale_is_included_once_and_by_what_is_for_it(desk):
    included = [
        {"quantity": 100, "where": {"model": "a"}}, {"quantity": 100, "where": {"model": "a", "token_type": "input"}},
    ]  # fmt: skip
    plan(desk, [{"graduated": [{"price": "1"}]}], included=included)
    used(desk, 1, 50, "a")
    used(desk, 2, 50, "b")

    assert draft(desk).total == 50


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_what_is_included_does_not_depend_on_what_came_first(desk, order):
    plan(desk, [{"cost_plus": {"multiplier": 10}}], included=[{"quantity": 1_000_000}])
    contexts = {1: {}, 2: {"batch": True}}
    for number in order:
        desk.ledger.record([call(number, usage=Usage(input=1_000_000), price_context=contexts[number])])

    # The cheaper ones are included.
    assert draft(desk).total == Decimal("12.50")


def test_minimums_of_several_cards_can_be_worked_out_again(desk):
    cards = [
        {"name": name, "rates": [{"meter": "docs", "where": {"size": name}, "per_unit": "1", "minimum": least}]}
        for name, least in (("z", "5"), ("a", "7"))
    ]
    plan(desk, cards=cards, rate_cards=["z", "a"], since=NOVEMBER.start)
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)

    (invoice,) = desk.invoices.run(NOVEMBER).written

    assert invoice.total == 12
    verify(desk.ledger, invoice.number)


@pytest.mark.parametrize("days", [(5,), (20,), (5, 20)])
def test_a_minimum_is_of_the_period_whatever_versions_its_card_has(desk, days):
    def card(price):
        return {"name": "c", "rates": [{"meter": "docs", "per_unit": price, "minimum": "30"}]}

    plan(desk, cards=[card("1")], rate_cards=["c"])
    desk.plans.keep(PlansFile.model_validate({"rate_cards": [card("2")]}), effective_from=day(16))
    for number in days:
        docs(desk, number, 5, time=day(number))

    assert draft(desk).total == 30


@pytest.mark.parametrize(
    ("on", "fee", "count", "percent", "due"), [("fees", "20", 10, 50, "10.00"), ("all", "100", 20, 10, "90.00")]
)
def test_a_discount_on_fees_leaves_credit_what_it_is_for(desk, on, fee, count, percent, due):
    plan(desk, DOCS, fees=[{"title": "Base", "amount": fee}], discounts=[{"percent": percent, "on": on}])
    desk.credits.grant("acme", "100", effective=OCTOBER.start)
    docs(desk, 1, count)

    assert str(draft(desk).due_amount) == due


@pytest.mark.parametrize("more", [{"discounts": [{"percent": 50}]}, {"included": [{"amount": "10"}]}])
def test_credit_for_one_model_does_not_pay_for_another_through_a_discount(desk, more):
    plan(desk, EACH, **more)
    desk.credits.grant("acme", "100", effective=OCTOBER.start, scope={"model": "a"})
    used(desk, 1, 10, "a")
    used(desk, 2, 10, "b")

    assert str(draft(desk).due_amount) == "5.00"


def test_a_late_discount_on_fees_is_no_usage_either(desk):
    plan(desk, DOCS, fees=[{"title": "Base", "amount": "20"}], discounts=[{"percent": 50, "on": "all"}])
    desk.credits.grant("acme", "100", effective=OCTOBER.start)
    docs(desk, 1, 10)
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)
    (november,) = desk.invoices.run(NOVEMBER).written
    docs(desk, 2, 4)

    december = desk.invoices.draft("acme")[0]

    assert (str(november.due_amount), desk.credits.balance("acme")) == ("10.00", Decimal(91))
    assert str(december.due_amount) == "10.00"  # its own fee, less half
    assert desk.credits.check() == []


def test_of_two_versions_of_one_date_the_later_counts(desk):
    def card(price):
        return PlansFile.model_validate(
            {"rate_cards": [{"name": "c", "rates": [{"meter": "docs", "per_unit": price}]}]}
        )

    desk.at = OCTOBER.start
    plan(desk, cards=[{"name": "c", "rates": DOCS}], rate_cards=["c"])
    kept = []
    for number, price in ((1, "3"), (2, "2"), (5, "3")):
        desk.at = day(number)
        kept += desk.plans.keep(card(price), effective_from=day(3))
    docs(desk, 1, 1, time=day(6))

    assert kept == ["rate card c@2", "rate card c@3", "rate card c@4"]
    assert draft(desk).total == 3


def test_amounts_that_do_not_end_are_what_they_are(desk):
    desk.invoices.set_seller({"rounding": "down"})
    plan(desk, [{"meter": "docs", "per_unit": "1", "per": 3}], since=day(21), fees=[{"title": "Base", "amount": "30"}])
    docs(desk, 1, 3, time=day(22))

    # Ten of thirty days of thirty, and three thirds.
    assert [str(line.exact.normalize()) for line in draft(desk).lines] == ["1", "1E+1"]
    assert str(draft(desk).total) == "11.00"


def test_the_journal_balances_where_charges_do_not_end(desk):
    plan(desk, [{"meter": "docs", "per_unit": "1", "per": 7}])
    desk.credits.grant("acme", "25", effective=OCTOBER.start)
    for number, quantity in enumerate((700, 1, 33, 5)):
        docs(desk, number, quantity)

    assert desk.credits.check() == []


def test_usage_that_no_credit_paid_for_gives_none_when_it_is_taken_back(desk):
    plan(desk, DOCS)
    docs(desk, 1, 5, time=datetime(2026, 9, 5, tzinfo=UTC))  # there was no credit
    desk.at = OCTOBER.start
    desk.credits.grant("acme", "10", effective=OCTOBER.start)
    docs(desk, 2, 10, time=datetime(2026, 10, 5, tzinfo=UTC))

    record_all([voiding(desk.ledger, "evt_1", reason="a test", now=desk.at)], lambda each: desk.ledger.record([each]))

    assert desk.credits.balance("acme") == 0


def test_credit_goes_back_to_where_it_came_from(desk):
    plan(desk, DOCS)
    desk.at = OCTOBER.start
    desk.credits.grant("acme", "10", expires=NOVEMBER.start, priority=50, id="old")
    docs(desk, 1, 10, time=datetime(2026, 10, 5, tzinfo=UTC))
    desk.at = NOVEMBER.start
    desk.credits.grant("acme", "10", priority=10, id="new")
    docs(desk, 2, 10)

    record_all([voiding(desk.ledger, "evt_2", reason="a test", now=desk.at)], lambda each: desk.ledger.record([each]))

    assert {each.id: each.remaining for each in desk.credits.grants("acme")} == {"old": 0, "new": 10}


def test_credit_that_rolls_over_is_granted_for_periods_without_usage(desk):
    plan(desk, DOCS, since=OCTOBER.start, credits=[{"amount": "10", "rolls_over": True}])
    docs(desk, 1, 15)

    assert (str(draft(desk).due_amount), desk.credits.balance("acme")) == ("0.00", 5)


@pytest.mark.parametrize("batches", [[[10], [20]], [[20], [10]], [[20, 10]], [[10, 20]]])
def test_credit_pays_by_the_time_of_usage_whatever_came_first(desk, batches):
    plan(desk, DOCS)
    desk.credits.grant("acme", "10", effective=OCTOBER.start, expires=day(15), priority=50)
    desk.credits.grant("acme", "10", effective=OCTOBER.start, priority=10)
    for numbers in batches:
        desk.ledger.record([counted(number, 10, meter="docs", time=day(number)) for number in numbers])

    assert str(draft(desk).due_amount) == "10.00"
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)
    (invoice,) = desk.invoices.run(NOVEMBER).written
    assert (str(invoice.due_amount), desk.credits.balance("acme")) == ("10.00", 0)
    verify(desk.ledger, invoice.number)
    assert desk.credits.check() == []


def test_what_paid_and_has_expired_since_has_paid(desk):
    plan(desk, DOCS)
    desk.at = day(10)
    desk.credits.grant("acme", "10", effective=OCTOBER.start, expires=day(15), priority=50, id="a")
    docs(desk, 1, 10, time=day(10))
    desk.at = day(20)
    desk.credits.grant("acme", "10", effective=day(12), priority=10, id="b")
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)

    (invoice,) = desk.invoices.run(NOVEMBER).written

    assert str(invoice.due_amount) == "0.00"
    assert {each.id: each.remaining for each in desk.credits.grants("acme")} == {"a": 0, "b": 10}
    verify(desk.ledger, invoice.number)
