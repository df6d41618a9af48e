"""What a budget is: windows in time zones, scopes, amounts, and what cannot be one."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_meter.budgets.budget import Budget, concerning
from token_meter.budgets.window import Window
from token_meter.errors import InvalidBudget


def micros(text):
    return int(datetime.fromisoformat(text).timestamp() * 1_000_000)


def shown(moment):
    return datetime.fromtimestamp(moment / 1e6, UTC).isoformat()


@pytest.mark.parametrize(
    ("kind", "zone", "moment", "start", "stop"),
    [
        ("month", "UTC", "2026-11-30T23:59:59+00:00", "2026-11-01T00:00:00+00:00", "2026-12-01T00:00:00+00:00"),
        ("month", "Europe/Berlin", "2026-11-30T23:30:00+00:00", "2026-11-30T23:00:00+00:00", "2026-12-31T23:00:00+00:00"),
        # The clocks change: a day of 25 hours, one of 23, and a zone whose days begin at half past.
        ("day", "Europe/Berlin", "2026-10-25T12:00:00+00:00", "2026-10-24T22:00:00+00:00", "2026-10-25T23:00:00+00:00"),
        ("day", "Europe/Berlin", "2026-03-29T12:00:00+00:00", "2026-03-28T23:00:00+00:00", "2026-03-29T22:00:00+00:00"),
        ("day", "Asia/Kolkata", "2026-11-20T18:30:00+00:00", "2026-11-20T18:30:00+00:00", "2026-11-21T18:30:00+00:00"),
        # A midnight that does not exist, and an hour that comes twice.
        ("day", "America/Asuncion", "2024-10-06T12:00:00+00:00", "2024-10-06T04:00:00+00:00", "2024-10-07T03:00:00+00:00"),
        ("hour", "Europe/Berlin", "2026-10-25T00:30:00+00:00", "2026-10-25T00:00:00+00:00", "2026-10-25T01:00:00+00:00"),
        ("hour", "Europe/Berlin", "2026-10-25T01:30:00+00:00", "2026-10-25T01:00:00+00:00", "2026-10-25T02:00:00+00:00"),
        ("week", "UTC", "2026-11-22T12:00:00+00:00", "2026-11-16T00:00:00+00:00", "2026-11-23T00:00:00+00:00"),
    ],
)  # fmt: skip
def test_windows_follow_the_wall_clock(kind, zone, moment, start, stop):
    span = Window(kind).span(micros(moment), ZoneInfo(zone))

    assert (shown(span.start), shown(span.stop)) == (start, stop)


@given(
    st.sampled_from(["hour", "day", "week", "month"]),
    st.sampled_from(
        ["UTC", "Europe/Berlin", "America/Asuncion", "Asia/Kolkata", "Australia/Lord_Howe", "Africa/Cairo"]
    ),
    st.integers(micros("2020-01-01T00:00:00+00:00"), micros("2030-01-01T00:00:00+00:00")),
)
def test_windows_follow_each_other_without_a_gap(kind, zone, moment):
    window, place = Window(kind), ZoneInfo(zone)

    span = window.span(moment, place)

    assert span.start <= moment < span.stop
    assert window.span(span.start, place) == span
    assert window.span(span.stop - 1, place) == span
    assert window.span(span.stop, place).start == span.stop


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Month", "month"),
        ("60s", "1m"),
        ("minute", "1m"),
        ("rolling 24h", "24h"),
        ("rolling:90s", "90s"),
        ("30d", "30d"),
    ],
)
def test_a_window_is_read_as_people_write_it(text, read):
    assert str(Window.read(text)) == read
    assert Window.read(read) == Window.read(text)


def test_a_budget_survives_its_document():
    budget = Budget.read({
        "scope": {"key": "*", "customer": "acme"}, "limit": "12.50", "measure": "charge", "currency": "eur",
        "window": "24h", "time_zone": "Europe/Berlin", "enforce": "strict", "unpriced": "dearest", "cut_off": True,
        "thresholds": [90], "name": "a name",
    })  # fmt: skip

    assert Budget.read(budget.document()) == budget
    assert (budget.currency, budget.scope) == ("EUR", (("customer", "acme"), ("key", "*")))


def test_the_same_budget_with_another_limit_has_the_same_id():
    first, second = (Budget.read({"limit": limit, "scope": {"customer": "acme"}}) for limit in ("10", "20"))
    others = [{"window": "day"}, {"measure": "tokens"}, {"mode": "test"}, {"enforce": "soft"}, {"scope": {}}]

    assert first.id == second.id
    assert all(Budget.read({"limit": 10, "scope": {"customer": "acme"}, **other}).id != first.id for other in others)


@given(st.decimals(0, 10**11, places=12, allow_nan=False), st.decimals(0, 1000, places=15, allow_nan=False))
def test_amounts_round_up_and_limits_round_down(limit, amount):
    budget = Budget.read({"limit": limit})

    assert budget.amount(budget.parts_max) <= limit
    assert 0 <= budget.amount(budget.parts(amount)) - amount < Decimal(1).scaleb(-budget.decimals)
    assert 100 * budget.parts_max < 2**63 * 100 and budget.parts_max < 2**62


def test_only_calls_that_have_every_key_are_concerned():
    facts = {"customer": "acme", "model": "gpt-5", "key": None}
    each = Budget.read({"limit": 1, "scope": {"customer": "*"}})
    acme = Budget.read({"limit": 2, "scope": {"customer": "acme"}})
    keyed = Budget.read({"limit": 3, "scope": {"key": "*"}})
    model = Budget.read({"limit": 4, "scope": {"customer": "*", "model": "gpt-5"}})
    everybody = Budget.read({"limit": 5, "scope": {}})

    found = concerning([each, acme, keyed, model, everybody], facts)

    assert {budget.limit: subject for budget, subject in found} == {
        Decimal(2): '["acme"]', Decimal(4): '["acme","gpt-5"]', Decimal(5): "[]",
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [
    {"limit": 1.5}, {"limit": "NaN"}, {"limit": "-1"}, {"limit": 10**12}, {"limit": 1, "scope": {"": "acme"}},
    {"limit": 1, "scope": {"customer": 5}}, {"limit": 1, "thresholds": [0]}, {"limit": 1, "currency": "euro"},
    {"limit": 1, "scope": {str(number): "x" for number in range(9)}}, {"limit": 1, "window": "0s"},
    {"limit": 1, "window": None}, {},
])  # fmt: skip
def test_what_is_no_budget_is_refused(wrong):
    with pytest.raises(InvalidBudget):
        Budget.read(wrong)


def test_a_budget_stands_in_the_place_of_one_that_is_wider_in_every_name():
    def of(**scope):
        return Budget.read({"scope": scope, "limit": 1})

    def left(*budgets, **facts):
        return {tuple(dict(budget.scope).values()) for budget, _ in concerning(budgets, facts)}

    each, named, other = of(customer="*", key="*"), of(customer="acme", key="*"), of(customer="*", key="k1")
    assert left(each, named, customer="acme", key="k1") == {("acme", "*")}
    assert left(each, named, other, customer="acme", key="k1") == {("acme", "*"), ("*", "k1")}
    both = of(customer="acme", key="k1")
    assert left(each, named, other, both, customer="acme", key="k1") == {("acme", "k1")}
    # Of two patterns neither is wider: both count, in whatever order they were set.
    wide, narrow = of(model="gpt-4*"), of(model="gpt-4o*")
    assert (
        left(wide, narrow, model="gpt-4o-mini")
        == left(narrow, wide, model="gpt-4o-mini")
        == {("gpt-4*",), ("gpt-4o*",)}
    )
