"""Budgets as people set and read them: changed field by field, with what was used before, told when they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from token_meter.budgets.budget import Budget
from token_meter.budgets.desk import BudgetDesk
from token_meter.budgets.policy import CreditPolicy
from token_meter.errors import InvalidBudget
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

TODAY = datetime.now(UTC)
MONTH = {"scope": {"customer": "acme"}, "limit": 10, "measure": "tokens"}


def test_what_is_not_given_stays_as_it_was(ledger):
    desk = BudgetDesk(ledger)
    first = {
        **MONTH,
        "enforce": "strict",
        "time_zone": "Europe/Berlin",
        "cut_off": True,
        "thresholds": [90],
        "name": "A",
    }
    desk.change(first)

    before, after = desk.change({**MONTH, "limit": 20})

    assert before == Budget.read(first)
    assert after == Budget.read({**first, "limit": 20})
    assert desk.list() == [after]
    assert desk.change({**MONTH, "limit": 5}, if_missing=True) == (after, after)
    assert desk.change({**MONTH, "cut_off": False})[1].cut_off is False


def test_one_that_only_warns_is_a_budget_of_its_own(ledger):
    desk = BudgetDesk(ledger)
    desk.change({**MONTH, "enforce": "soft"})
    hard = desk.change({**MONTH, "enforce": "strict", "limit": 20})[1]

    assert len(desk.list()) == 2
    assert desk.change({**MONTH, "limit": 30})[0] == hard, "the one that limits is meant"


def test_what_was_used_before_counts_before_the_first_call(ledger):
    ledger.record(
        [
            make_event(id="1", customer="acme", usage=Usage(input=3), time=TODAY),
            make_event(id="2", customer="globex", usage=Usage(input=4), time=TODAY),
            make_event(id="3", customer="acme", usage=Usage(input=5), time=TODAY - timedelta(days=40)),
        ]
    )
    desk = BudgetDesk(ledger)
    mine = desk.set(Budget.read(MONTH))
    each = desk.set(Budget.read({**MONTH, "scope": {"customer": "*"}, "window": "day"}))
    life = desk.set(Budget.read({**MONTH, "window": "lifetime"}))

    def spent(budget):
        return {standing.subject: standing.spent for standing in desk.standings(budget.id)}

    assert spent(mine) == {'["acme"]': 3}
    assert spent(each) == {'["acme"]': 3, '["globex"]': 4}
    assert spent(life) == {'["acme"]': 8}
    assert desk.reset(life.id) == 1
    assert spent(life) == {'["acme"]': 0}


def test_one_that_is_named_stands_in_the_place_of_the_others(ledger):
    ledger.record([make_event(id=name, customer=name, usage=Usage(input=3), time=TODAY) for name in ("acme", "globex")])
    desk = BudgetDesk(ledger)
    each = desk.set(Budget.read({**MONTH, "scope": {"customer": "*"}}))
    desk.set(Budget.read({**MONTH, "limit": 50}))

    assert [standing.subject for standing in desk.standings(each.id)] == ['["globex"]']


def test_a_field_that_is_none_is_refused():
    with pytest.raises(InvalidBudget, match="a budget has no thresold: it has currency, cut_off"):
        Budget.read({**MONTH, "thresold": [80]})
    with pytest.raises(InvalidBudget, match="a credit policy has no plicy"):
        CreditPolicy.read({"plicy": "block"})
