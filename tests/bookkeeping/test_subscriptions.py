"""Who is on which plan: switched, ended, taken back; and what that does to usage and invoices."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.bookkeeping.conftest import DECEMBER, LONG_AGO, NOVEMBER
from tests.bookkeeping.kit import call
from token_meter.billing.plans import PlansFile
from token_meter.errors import InvalidPlan

MIDDLE = datetime(2026, 11, 11, tzinfo=UTC)


@pytest.fixture
def plans(desk):
    """Three plans: a call costs 1, 2 or 3. acme is on the first."""
    file = {
        "plans": [
            {"name": name, "rates": [{"meter": "api_calls", "per_unit": price}]}
            for name, price in (("one", "1"), ("two", "2"), ("three", "3"))
        ]
    }
    desk.plans.keep(PlansFile.model_validate(file), effective_from=LONG_AGO)
    desk.plans.subscribe("acme", "one", start=LONG_AGO)
    return desk.plans


def states(plans):
    return [(each.plan, each.start, each.stop, each.cancelled is not None) for each in plans.subscriptions()]


def test_a_switch_that_is_taken_back_leaves_the_plan_before_as_it_was(plans):
    switched = plans.subscribe("acme", "two", start=DECEMBER.start)
    assert states(plans) == [
        ("one", LONG_AGO, DECEMBER.start, False),
        ("two", DECEMBER.start, None, False),
    ]

    assert plans.cancel(switched.id).plan == "one"

    assert states(plans) == [("one", LONG_AGO, None, False), ("two", DECEMBER.start, None, True)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_switches_are_taken_back_in_any_order(plans, order):
    both = [plans.subscribe("acme", "two", start=MIDDLE), plans.subscribe("acme", "three", start=DECEMBER.start)]

    plans.cancel(both[order[0]].id)
    standing = "three" if order[0] == 0 else "two"
    assert [(each.plan, each.stop) for each in plans.subscriptions() if each.cancelled is None] == [
        ("one", both[1 - order[0]].start),
        (standing, None),
    ]
    plans.cancel(both[order[1]].id)

    assert [(each.plan, each.stop) for each in plans.subscriptions() if each.cancelled is None] == [("one", None)]


def test_usage_since_then_is_rated_again(desk, plans):
    switched = plans.subscribe("acme", "two", start=MIDDLE)
    desk.ledger.record([call(1), call(2, time=datetime(2026, 11, 12, tzinfo=UTC))])
    assert desk.invoices.draft("acme", within=NOVEMBER)[0].total == 3

    plans.cancel(switched.id)

    assert desk.invoices.draft("acme", within=NOVEMBER)[0].total == 2


def test_a_final_invoice_is_corrected_on_the_next_one(desk, plans):
    switched = plans.subscribe("acme", "two", start=MIDDLE)
    desk.ledger.record([call(1), call(2, time=datetime(2026, 11, 12, tzinfo=UTC))])
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)
    desk.invoices.run(NOVEMBER)

    plans.cancel(switched.id)

    assert desk.invoices.draft("acme", within=DECEMBER)[0].total == -1


def test_what_was_ended_by_hand_stays_ended(plans):
    plans.unsubscribe("acme", at=MIDDLE)
    switched = plans.subscribe("acme", "two", start=MIDDLE)

    assert plans.cancel(switched.id) is None

    assert states(plans) == [("one", LONG_AGO, MIDDLE, False), ("two", MIDDLE, None, True)]


def test_what_was_taken_back_is_in_nobodys_way(plans):
    switched = plans.subscribe("acme", "two", start=MIDDLE, stop=DECEMBER.start)
    plans.cancel(switched.id)

    plans.subscribe("acme", "three", start=MIDDLE, stop=DECEMBER.start)

    with pytest.raises(InvalidPlan, match="was cancelled at 2026-11-20 00:00 already"):
        plans.cancel(switched.id)
    with pytest.raises(InvalidPlan, match="there is no subscription 'sub_x'"):
        plans.cancel("sub_x")


def test_one_that_ends_where_it_starts_is_one_to_cancel(plans):
    switched = plans.subscribe("acme", "two", start=MIDDLE)

    with pytest.raises(InvalidPlan, match=f"token-meter plans cancel {switched.id}"):
        plans.unsubscribe("acme", at=MIDDLE)


def test_only_one_customer_is_listed(plans):
    plans.subscribe("other", "two")

    assert [each.customer for each in plans.subscriptions(customer="other")] == ["other"]
    assert plans.subscriptions(mode="test") == []
