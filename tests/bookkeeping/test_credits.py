"""Prepaid credit: the burn order, drawing as usage is recorded, the journal, and what the invoice says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bookkeeping.conftest import DECEMBER, NOVEMBER
from tests.bookkeeping.kit import START, call, counted, told
from token_meter.billing.plans import PlansFile
from token_meter.bookkeeping.notice_rows import read_notices
from token_meter.bookkeeping.verification import verify
from token_meter.errors import InvalidCredit, Retry
from token_meter.ledger.tables import conflicts
from token_meter.usage import Usage

ONE_DOLLAR = Usage(output=100_000)
PACK = {"name": "ten", "price": "9", "amount": "10", "expires_days": 365}


def left(desk, customer="acme"):
    return {grant.title: str(grant.remaining.normalize()) for grant in desk.credits.grants(customer)}


def test_usage_draws_at_once_in_burn_order(desk):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}])
    desk.at = NOVEMBER.start
    for title, priority, expires in [
        ("never", 50, None),
        ("later", 50, DECEMBER.stop),
        ("first", 10, None),
        ("soon", 50, DECEMBER.start),
    ]:
        desk.credits.grant("acme", "1", priority=priority, expires=expires, title=title)

    desk.ledger.record([call(1, usage=Usage(output=250_000))])

    assert left(desk) == {"first": "0", "soon": "0", "later": "0.5", "never": "1"}
    assert desk.credits.check() == []


def test_a_void_gives_back_what_burned_last(desk):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}])
    desk.at = NOVEMBER.start
    desk.credits.grant("acme", "1", priority=1, title="one")
    desk.credits.grant("acme", "5", title="two")
    desk.ledger.record([call(1, usage=ONE_DOLLAR), call(2, usage=ONE_DOLLAR)])

    desk.ledger.record([replace(call(2, usage=ONE_DOLLAR), id="void", corrects="evt_2")])

    assert left(desk) == {"one": "0", "two": "5"}
    assert desk.credits.check() == []


def test_what_credit_does_not_cover_is_invoiced(desk):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}], fees=[{"title": "Fee", "amount": "3"}])
    desk.at = NOVEMBER.start
    desk.credits.grant("acme", "1.50")
    desk.ledger.record([call(number, usage=ONE_DOLLAR) for number in range(4)])
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)

    invoice = desk.invoices.finalise("acme", NOVEMBER)

    assert told(invoice) == [
        ("usage", "gpt-5 output", 400_000, "4", "4.00"),
        ("fee", "Fee", None, "3", "3.00"),
        ("credit", "Credit used", None, "-1.5", "-1.50"),
    ]
    assert (str(invoice.total), str(invoice.due_amount)) == ("7.00", "5.50")
    verify(desk.ledger, invoice.number)


def test_a_pack_and_its_invoice_line_are_one_thing(desk):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}])
    desk.plans.keep(PlansFile.model_validate({"packs": [PACK]}))

    first = desk.credits.buy("acme", "ten", id="payment-1")
    again = desk.credits.buy("acme", "ten", id="payment-1")

    assert first == again
    assert told(desk.invoices.draft("acme", within=NOVEMBER)[0]) == [("pack", "ten", None, "9", "9.00")]
    assert [(each.account, str(each.amount)) for each in desk.credits.journal("acme")] == [
        ("deferred_revenue", "-10"), ("receivable", "9"), ("promotion", "1"),
    ]  # fmt: skip


def test_discounts_are_settled_when_the_invoice_is_final(desk):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}], discounts=[{"percent": "10"}])
    desk.at = NOVEMBER.start
    desk.credits.grant("acme", "5")
    desk.ledger.record([call(1, usage=ONE_DOLLAR), call(2, usage=ONE_DOLLAR)])
    assert left(desk) == {"Credit": "3"}
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)

    invoice = desk.invoices.finalise("acme", NOVEMBER)

    assert (str(invoice.total), str(invoice.due_amount), left(desk)) == ("1.80", "0.00", {"Credit": "3.2"})
    desk.ledger.record([call(3, usage=ONE_DOLLAR)])
    desk.at = datetime(2027, 1, 2, tzinfo=UTC)
    second = desk.invoices.finalise("acme", DECEMBER)
    assert (str(second.total), str(second.due_amount), left(desk)) == ("0.90", "0.00", {"Credit": "2.3"})
    assert desk.credits.check() == []


def test_expiry_refund_and_void_are_entries(desk):
    desk.at = NOVEMBER.start
    over = desk.credits.grant("acme", "4", kind="paid", expires=START, title="over")
    back = desk.credits.grant("acme", "6", kind="paid", title="back")
    gone = desk.credits.grant("acme", "10", kind="paid", price="5", title="gone")
    desk.at = START + timedelta(days=1)

    desk.credits.refund(back.id, "2", reason="asked for it")
    desk.credits.void(gone.id, reason="mistake")
    expired = desk.credits.expire()

    assert [each.id for each in expired] == [over.id] and desk.credits.expire() == []
    assert left(desk) == {"over": "0", "back": "4", "gone": "0"}
    assert (str(desk.credits.balance("acme")), desk.credits.check()) == ("4", [])
    sums = {}
    for each in desk.credits.journal("acme"):
        sums[each.account] = sums.get(each.account, Decimal(0)) + each.amount
    assert {name: str(amount) for name, amount in sums.items()} == {
        "deferred_revenue": "-4", "receivable": "10", "promotion": "0", "refunded": "-2", "breakage": "-4",
    }  # fmt: skip


def test_a_plan_grants_credit_with_each_period(desk):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}], credits=[{"amount": "0.40"}])

    desk.ledger.record([call(1, usage=ONE_DOLLAR), call(2, usage=ONE_DOLLAR, time=DECEMBER.start)])
    desk.ledger.record([call(3, usage=ONE_DOLLAR)])

    assert [(str(each.amount), str(each.remaining)) for each in desk.credits.grants("acme")] == [
        ("0.4", "0"),
        ("0.4", "0"),
    ]
    assert desk.credits.check() == []


def test_credit_of_a_scope_pays_for_its_usage_only(desk):
    desk.sell(
        rates=[{"cost_plus": {"multiplier": "1"}}, {"meter": "api_calls", "per_unit": "0.01"}],
        included=[{"meter": "llm_tokens", "quantity": 10_000, "where": {"model": "gpt-5"}}],
    )
    desk.at = NOVEMBER.start
    desk.credits.grant("acme", "5", title="mini", priority=1, scope={"model": "gpt-5-mini"})
    desk.credits.grant("acme", "0.02", title="calls", priority=2, scope={"meter": "api_calls"})
    desk.credits.grant("acme", "1.50", title="any")

    desk.ledger.record(
        [
            *(call(number, usage=ONE_DOLLAR) for number in (1, 2)),
            call(3, model="gpt-5-mini", usage=Usage(output=100_000)),
            counted(4, 3, meter="api_calls"),
        ]
    )
    drawn = left(desk)
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)
    invoice = desk.invoices.finalise("acme", NOVEMBER)

    # Six calls of a cent: three that were made, three that were reported. Two of them have credit of their own.
    assert drawn == {"mini": "4.8", "calls": "0", "any": "0"}
    (used,) = [line for line in invoice.lines if line.kind == "credit"]
    grants = {grant.id: grant.title for grant in desk.credits.grants("acme")}
    assert {grants[id]: amount for id, amount in used.math["grants"].items()} == {
        "mini": "0.2", "calls": "0.02", "any": "1.5",
    }  # fmt: skip
    assert left(desk) == drawn
    assert desk.credits.check() == []
    verify(desk.ledger, invoice.number)
    desk.ledger.record([replace(call(3, model="gpt-5-mini", usage=Usage(output=100_000)), id="void", corrects="evt_3")])
    assert left(desk) == {"mini": "4.8", "calls": "0", "any": "0.21"}, "what burned last comes back first"


@pytest.mark.parametrize(
    ("scope", "said"),
    [({"customer": "acme"}, "cannot be the scope of credit"), ({"model": ""}, "is text such as gpt-5")],
)
def test_scopes_that_cannot_be_are_refused(small_desk, scope, said):
    with pytest.raises(InvalidCredit, match=said):
        small_desk.credits.grant("acme", "5", scope=scope)


def test_what_a_transaction_granted_in_vain_is_granted_by_the_next(small_desk):
    desk = small_desk
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}], credits=[{"amount": "5"}])
    desk.ledger.record([call(1, customer=None)])
    with desk.ledger.writing() as (_, connection):
        connection.exec_driver_sql(
            f"CREATE TRIGGER full BEFORE INSERT ON {conflicts.name} BEGIN SELECT RAISE(ABORT, 'not here'); END"
        )

    # The conflict is written last: all that went before it in its transaction is undone.
    with pytest.raises(Retry, match="not here"):
        desk.ledger.record([call(2, usage=ONE_DOLLAR), call(1, customer=None, model="other")])
    desk.ledger.record([call(2, usage=ONE_DOLLAR)])

    assert left(desk) == {"Included with standard": "4"}
    assert desk.credits.check() == []


def test_a_low_balance_is_noticed_once_until_the_next_grant(desk):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}])
    desk.plans.keep(PlansFile.model_validate({"packs": [PACK]}))
    desk.at = NOVEMBER.start
    desk.credits.buy("acme", "ten")
    desk.credits.recharge_at("acme", "9.50", "ten")

    desk.ledger.record([call(1, usage=ONE_DOLLAR)])
    desk.ledger.record([call(2, usage=ONE_DOLLAR)])

    with desk.ledger.reading() as (_, connection):
        found = read_notices(connection)
    assert [(each["kind"], each["customer"], each["document"]["pack"]) for each in found] == [
        ("credit.recharge_due", "acme", "ten")
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"amount": "0"}, "must be above 0"),
        ({"amount": "-3"}, "must be above 0"),
        ({"amount": 1.5}, "is a float, which is rounded already"),
        ({"amount": "NaN"}, "must be a finite number"),
        ({"amount": "5", "currency": "dollars"}, "is no currency"),
        ({"amount": "5", "expires": NOVEMBER.start}, "before it starts"),
        ({"amount": "5", "priority": -1}, "a priority is between 0"),
    ],
)
def test_what_is_no_grant_is_refused(desk, wrong, said):
    with pytest.raises(InvalidCredit, match=said):
        desk.credits.grant("acme", **wrong)
    assert desk.credits.grants("acme") == []


amounts = st.integers(0, 3_000_000)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    granted=st.lists(st.tuples(st.integers(1, 500), st.integers(0, 3)), max_size=4),
    used=st.lists(st.tuples(amounts, st.booleans()), min_size=1, max_size=8),
)
def test_the_journal_always_balances_and_no_grant_goes_below_zero(tmp_path_factory, granted, used):
    from tests.bookkeeping.conftest import Desk
    from token_meter.bookkeeping.rater import LedgerRater
    from token_meter.ledger import Ledger

    with Ledger(tmp_path_factory.mktemp("credit") / "usage.db", rater=LedgerRater()) as ledger:
        desk = Desk(ledger, at=NOVEMBER.start)
        desk.sell(
            rates=[{"cost_plus": {"markup": "7%"}}], discounts=[{"percent": "3"}], included=[{"quantity": 100_000}]
        )
        for cents, priority in granted:
            scope = {"token_type": "output"} if priority % 2 else None
            desk.credits.grant("acme", Decimal(cents) / 100, priority=priority, scope=scope)
        for number, (tokens, voided) in enumerate(used):
            event = call(number, usage=Usage(output=tokens))
            desk.ledger.record([event])
            if voided:
                desk.ledger.record([replace(event, id=f"void {number}", corrects=event.id)])
        charge = sum((row.charge for row in ledger.costs(by=("customer",))), Decimal(0))
        start = sum((Decimal(cents) for cents, _ in granted), Decimal(0)) / 100
        balance = desk.credits.balance("acme")

        assert desk.credits.check() == []
        assert balance >= max(Decimal(0), start - charge) and balance <= start
        desk.at = datetime(2026, 12, 2, tzinfo=UTC)
        ran = desk.invoices.run(NOVEMBER)
        assert desk.credits.check() == []
        for invoice in ran.written:
            verify(ledger, invoice.number)
            paid = -sum((line.exact for line in invoice.lines if line.kind == "credit"), Decimal(0))
            assert desk.credits.balance("acme") == start - paid
