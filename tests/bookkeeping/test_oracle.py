"""Invoices and their corrections against a second, plain way of working them out (oracle.py)."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, Inexact, localcontext
from fractions import Fraction

import pytest

from tests.bookkeeping.conftest import DECEMBER, LONG_AGO, NOVEMBER, OCTOBER, Desk
from tests.bookkeeping.oracle import MODELS, TYPES, Used, World, fractions
from token_meter.billing.plans import Period, PlansFile
from token_meter.bookkeeping.event_corrections import reassigning, record_all, voiding
from token_meter.bookkeeping.plan_files import read_period
from token_meter.bookkeeping.rater import LedgerRater
from token_meter.bookkeeping.verification import verify
from token_meter.event import MeterEvent
from token_meter.ledger import Ledger
from token_meter.money import EXACT, ZERO, total
from token_meter.usage import Usage

SEEDS = int(os.environ.get("TOKEN_METER_ORACLE_SEEDS", "12"))
FIRST = int(os.environ.get("TOKEN_METER_ORACLE_FIRST", "0"))
MONTHS = (OCTOBER, NOVEMBER, DECEMBER)
CHANGE = datetime(2026, 11, 11, 7, tzinfo=UTC)


def some_amount(chosen, most=50):
    return Decimal(chosen.randrange(1, most * 1000)) / 1000


def some_tiers(chosen):
    ends = sorted(chosen.sample(range(1, 40), k=chosen.randrange(0, 3)))
    return [
        *({"up_to": end, "price": some_amount(chosen, 2), "flat": some_amount(chosen, 2)} for end in ends),
        {"price": some_amount(chosen, 2)},
    ]


def some_token_rates(chosen, steady):
    """Rates that are about all tokens."""
    way = chosen.choice(["cost_plus", "matrix", "per_unit", "where", "package"])
    if way == "cost_plus" and not steady:
        overrides = [
            {name: value for name, value in (("model", chosen.choice(MODELS)), ("token_type", chosen.choice(TYPES)))
             if chosen.random() < 0.7} | {"multiplier": some_amount(chosen, 3)}
            for _ in range(chosen.randrange(0, 3))
        ]  # fmt: skip
        return [{"cost_plus": {"multiplier": some_amount(chosen, 3)}, "overrides": overrides}]
    if way == "matrix":
        rows = [
            {"model": model, "token_type": kind, "price": some_amount(chosen)} for model in MODELS for kind in TYPES
        ]
        return [{"matrix": rows, "per": 1000}]
    if way == "where":
        return [
            {"where": {"model": "model-a", "token_type": "output"}, "per_unit": some_amount(chosen), "per": 1_000_000},
            {"where": {"model": "model-a"}, "volume": some_tiers(chosen)},
            {"per_unit": some_amount(chosen), "per": 1000, "minimum": some_amount(chosen)},
        ]
    if way == "package":
        return [{"package": {"size": chosen.randrange(1, 5000), "price": some_amount(chosen)}}]
    return [{"per_unit": some_amount(chosen), "per": 1000}]


def some_plan(chosen, name, steady):
    """A plan; where nothing is steady its rates of tokens may be in a card that changes."""
    rates = [] if not steady and chosen.random() < 0.6 else some_token_rates(chosen, steady)
    if chosen.random() < 0.7:
        way = chosen.choice(["per_unit", "graduated", "volume", "package", "flat"])
        rates.append({"meter": "api_calls"} | some_way(chosen, way))
    if chosen.random() < 0.7:
        way = chosen.choice(["per_unit", "graduated", "volume", "package", "flat"])
        rates.append({"meter": "docs"} | some_way(chosen, way))
    plan = {"name": name, "rate_cards": ["tokens"]} | ({"rates": rates} if rates else {})
    if chosen.random() < 0.6:
        plan["fees"] = [
            {"title": f"Fee {number}", "amount": some_amount(chosen), "prorate": chosen.random() < 0.6}
            for number in range(chosen.randrange(1, 3))
        ]
    if chosen.random() < 0.5:
        plan["discounts"] = [
            {"percent": Decimal(chosen.randrange(1, 80)), "on": chosen.choice(["usage", "fees", "all"])}
            for _ in range(chosen.randrange(1, 3))
        ]
    if chosen.random() < 0.3:
        plan["minimum"] = some_amount(chosen)
    if chosen.random() < 0.5:
        plan["included"] = some_included(chosen, steady)
    return plan


def some_card(chosen):
    """Rates that charge each unit by itself, so that it does not matter how a period is cut."""
    while True:
        rates = some_token_rates(chosen, steady=False)
        if not any({"package", "volume", "minimum"} & rate.keys() for rate in rates):
            return rates


def some_included(chosen, steady):
    found = []
    if steady and chosen.random() < 0.7:
        where = {"token_type": chosen.choice(TYPES)} if chosen.random() < 0.3 else {}
        found.append({"quantity": chosen.randrange(1, 20_000)} | ({"where": where} if where else {}))
    if chosen.random() < 0.5:
        found.append({"meter": chosen.choice(["docs", "api_calls"]), "quantity": chosen.randrange(1, 30)})
    if chosen.random() < 0.5:
        found.append({"amount": some_amount(chosen)})
    return found


def some_way(chosen, way):
    minimum = {"minimum": some_amount(chosen)} if chosen.random() < 0.3 else {}
    return (
        minimum
        | {
            "per_unit": {"per_unit": some_amount(chosen, 2)},
            "graduated": {"graduated": some_tiers(chosen)},
            "volume": {"volume": some_tiers(chosen)},
            "package": {"package": {"size": chosen.randrange(1, 9), "price": some_amount(chosen)}},
            "flat": {"flat": some_amount(chosen)},
        }[way]
    )


def some_prices(chosen):
    return {(model, kind): some_amount(chosen) / 1_000_000 for model in MODELS for kind in TYPES}


def some_moment(chosen, period):
    """Anywhere in a period; now and then just at its edges."""
    edges = (period.start, period.stop - timedelta(microseconds=1), CHANGE)
    inside = [each for each in edges if period.start <= each < period.stop]
    if chosen.random() < 0.2:
        return chosen.choice(inside)
    return period.start + timedelta(microseconds=chosen.randrange((period.stop - period.start) // timedelta.resolution))


def some_event(chosen, number, period):
    """An event of a period, for the ledger and for the oracle."""
    at = some_moment(chosen, period)
    kind = chosen.choice(["call", "call", "call", "by hand", "docs", "api_calls"])
    model = chosen.choice(MODELS)
    if kind in ("docs", "api_calls"):
        value = chosen.randrange(0, 20)
        used = Used(at, kind, None, {"units": value})
        made = {"meter": kind, "usage": Usage(units=value)}
    else:
        quantities = {each: chosen.randrange(1, 5000) for each in TYPES if chosen.random() < 0.8}
        used = Used(at, "llm_tokens", model, quantities, call=kind == "call")
        made = {"usage": Usage(**quantities), "provider": "house", "publisher": "house", "model": model}
        made |= {"operation": "chat"} if kind == "call" else {}
    return used, MeterEvent(id=f"evt_{number}", time=at, customer="acme", **made)


def overrides_of(prices):
    rows = [
        {"provider": "house", "model": model, "effective_from": f"{since:%Y-%m-%dT%H:%M:%SZ}",
         "prices": {kind: str(table[model, kind] * 1_000_000) for kind in TYPES}}
        for since, table in prices for model in MODELS
    ]  # fmt: skip
    return {"models": rows}


class Scene:
    """A random world, played month by month: usage, invoices, then what comes late, is voided or given away."""

    def __init__(self, seed, url):
        self.chosen = random.Random(seed)
        steady = self.chosen.random() < 0.5
        self.prices = [(LONG_AGO, some_prices(self.chosen))]
        if not steady:
            self.prices.append((CHANGE, some_prices(self.chosen)))
        self.plans = {name: some_plan(self.chosen, name, steady) for name in ("one", "two")}
        self.steady = steady
        self.card = [(LONG_AGO, some_card(self.chosen))]
        self.on = [(LONG_AGO, "one")]
        if self.chosen.random() < 0.5:
            self.on.append((some_moment(self.chosen, NOVEMBER), "two"))
        self.used: dict[str, Used] = {}
        self.ledger = Ledger(url, rater=LedgerRater(overrides_of(self.prices)))
        self.desk = Desk(self.ledger)
        card = {"name": "tokens", "rates": self.card[0][1]}
        file = {"meters": [{"name": "docs"}], "rate_cards": [card], "plans": list(self.plans.values())}
        self.desk.plans.keep(PlansFile.model_validate(file), effective_from=LONG_AGO)
        for start, plan in self.on:
            self.desk.plans.subscribe("acme", plan, start=start)

    def play(self):
        number = 0
        for month in MONTHS:
            batch = []
            for _ in range(self.chosen.randrange(0, 12)):
                number += 1
                # Some of it belongs to a month that is closed already.
                period = self.chosen.choice([each for each in MONTHS if each.start <= month.start])
                used, event = some_event(self.chosen, number, period)
                self.used[event.id] = used
                batch.append(event)
            self._record(batch)
            self._correct()
            self.desk.at = some_moment(self.chosen, month)
            self._change(month)
            self._grant(month)
            self.desk.at = month.stop + timedelta(hours=1)
            self.run(month)

    def run(self, month):
        """Run a month, and first those that it says are behind."""
        while behind := self.desk.invoices.run(month).behind:
            for each in behind.values():
                self.desk.invoices.run(read_period(each))

    def _record(self, batch):
        """In any order, in pieces, some of it twice."""
        events = batch + self.chosen.sample(batch, k=len(batch) // 3)
        self.chosen.shuffle(events)
        while events:
            size = self.chosen.randrange(1, 6)
            self.ledger.record(events[:size])
            events = events[size:]

    def _grant(self, month):
        """Credit, for any usage or for some of it, for good or until some moment."""
        if self.chosen.random() < 0.4:
            expires = some_moment(
                self.chosen, self.chosen.choice([each for each in MONTHS if each.start >= month.start])
            )
            scope = self.chosen.choice([{}, {"model": "model-a"}, {"token_type": "out*"}, {"meter": "docs"}])
            self.desk.credits.grant(
                "acme", some_amount(self.chosen, 100), priority=self.chosen.randrange(0, 3), scope=scope,
                expires=expires if self.chosen.random() < 0.5 and expires > self.desk.at else None,
            )  # fmt: skip

    def _change(self, month):
        """Other prices, another plan or the one before, from now on or dated back, also into months that are closed."""
        now, since = (
            self.desk.at,
            some_moment(self.chosen, self.chosen.choice([each for each in MONTHS if each.start <= month.start])),
        )
        if not self.steady and self.chosen.random() < 0.5:
            rates = some_card(self.chosen)
            self.desk.plans.keep(
                PlansFile.model_validate({"rate_cards": [{"name": "tokens", "rates": rates}]}), effective_from=since
            )
            self.card = sorted(
                [*(each for each in self.card if not since <= each[0] <= now), (since, rates)], key=lambda each: each[0]
            )
        if self.chosen.random() < 0.3 and since > self.on[-1][0]:
            self.desk.plans.subscribe("acme", self.chosen.choice(["one", "two"]), start=since)
            self.on = self._subscribed()
        elif self.chosen.random() < 0.3 and len(self.on) > 1:
            last = [each for each in self.desk.plans.subscriptions(customer="acme") if each.cancelled is None][-1]
            self.desk.plans.cancel(last.id)
            self.on = self._subscribed()

    def _subscribed(self):
        kept = self.desk.plans.subscriptions(customer="acme")
        return [(each.start, each.plan) for each in kept if each.cancelled is None]

    def _correct(self):
        for id in self.chosen.sample(sorted(self.used), k=min(len(self.used), self.chosen.randrange(0, 3))):
            del self.used[id]
            now = self.desk.at
            if self.chosen.random() < 0.5:
                made = [voiding(self.ledger, id, reason="a test", now=now)]
            else:
                made = reassigning(self.ledger, id, "globex", reason="a test", now=now)
            record_all(made, lambda event: self.ledger.record([event]))

    def world(self):
        return World(self.prices, fractions(self.plans), self.on, list(self.used.values()), fractions(self.card))


def exact_of(kept, month):
    """What all invoices together say about a month: its own lines, and corrections of them."""
    lines = [line for each in kept for line in each.invoice.lines]
    mine = [
        line
        for line in lines
        if line.kind != "credit" and month.start <= line.service.start and line.service.stop <= month.stop
    ]
    return sum((Fraction(line.exact) for line in mine), Fraction(0))


def assert_credit_is_accounted_for(desk, kept):
    """The journal balances, and what was drawn of each grant stands on invoices, to the last digit."""
    desk.credits.expire()
    assert desk.credits.check() == []
    told = {}
    for each in kept:
        for line in each.invoice.lines:
            for grant, amount in (line.math["grants"] if line.kind == "credit" else {}).items():
                told[grant] = EXACT.add(told.get(grant, ZERO), Decimal(amount))
    for grant in desk.credits.grants("acme"):
        assert 0 <= grant.remaining <= grant.amount
        assert grant.drawn == told.get(grant.id, 0), (grant, told.get(grant.id, 0))


@pytest.fixture
def scene(seed, url):
    made = Scene(seed, url)
    # Arithmetic that is not done by `EXACT` and loses a digit is an error here.
    with made.ledger, localcontext() as plain_operators:
        plain_operators.traps[Inexact] = True
        yield made


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_invoices_come_to_what_the_oracle_says(scene):
    scene.play()
    # A last run brings what came late in December.
    after = Period(DECEMBER.stop, datetime(2027, 2, 1, tzinfo=UTC))
    scene.desk.at = after.stop + timedelta(hours=1)
    scene.run(after)

    kept = scene.desk.invoices.list(customer="acme")
    world = scene.world()
    for month in MONTHS:
        want, got = world.month(month.start, month.stop), exact_of(kept, month)
        assert abs(want - got) < Fraction(1, 10**20), (month, float(want), float(got))
    assert_credit_is_accounted_for(scene.desk, kept)
    for each in kept:
        invoice = each.invoice
        exact = total(line.exact for line in invoice.lines)
        assert invoice.due_amount == exact.quantize(Decimal("0.01"), ROUND_HALF_EVEN, context=EXACT)
        assert total(line.amount for line in invoice.lines) == invoice.due_amount
        verify(scene.ledger, str(invoice.number))


def november_of(folder, name, seed, order):
    """A month of usage with credit that begins and ends within it, recorded in an order of its own: what is due, what
    each grant paid, what is left of it."""
    chosen = random.Random(seed)
    plan, events = some_plan(chosen, "one", steady=True), []
    for number in range(chosen.randrange(2, 14)):
        events.append(some_event(chosen, number, NOVEMBER)[1])
    grants = []
    for number in range(chosen.randrange(1, 4)):
        effective = chosen.choice([OCTOBER.start, some_moment(chosen, NOVEMBER)])
        expires = chosen.choice([None, DECEMBER.start, some_moment(chosen, NOVEMBER)])
        scope = chosen.choice([{}, {}, {"model": "model-a"}, {"meter": "docs"}])
        if expires is None or expires > effective:
            more = {"priority": chosen.randrange(0, 3), "scope": scope, "id": f"grant {number}"}
            grants.append({"amount": some_amount(chosen, 60), "effective": effective, "expires": expires} | more)
    random.Random(f"{seed} {order}").shuffle(events)
    with Ledger(folder / f"{name}.db", rater=LedgerRater(overrides_of([(LONG_AGO, some_prices(chosen))]))) as ledger:
        desk = Desk(ledger, at=OCTOBER.start)
        card = {"name": "tokens", "rates": [{"per_unit": "0.001"}]}
        file = {"meters": [{"name": "docs"}], "rate_cards": [card], "plans": [plan]}
        desk.plans.keep(PlansFile.model_validate(file), effective_from=LONG_AGO)
        desk.plans.subscribe("acme", "one", start=LONG_AGO)
        for grant in grants:
            desk.credits.grant("acme", **grant)
        size = 1 + order
        for start in range(0, len(events), size):
            ledger.record(events[start : start + size])
        desk.at = DECEMBER.start + timedelta(hours=1)
        written = desk.invoices.run(NOVEMBER).written
        assert desk.credits.check() == []
        for each in written:
            verify(ledger, each.number)
        paid = [line.math for each in written for line in each.lines if line.kind == "credit"]
        left = {each.id: each.remaining for each in desk.credits.grants("acme")}
        return [each.due_amount for each in written], paid, left


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS // 2))
def test_what_credit_pays_does_not_depend_on_the_order_of_recording(seed, tmp_path):
    first, *others = (november_of(tmp_path, str(order), seed, order) for order in range(4))

    assert others == [first] * 3
