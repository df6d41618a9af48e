"""Months that are closed in odd orders, changed afterwards, voided and corrected: nothing is paid twice or lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text

from tests.bookkeeping.conftest import DECEMBER, LONG_AGO, NOVEMBER, OCTOBER
from tests.bookkeeping.kit import call, counted, told
from token_meter.accounts import CustomerBook
from token_meter.billing.plans import Period, PlansFile
from token_meter.bookkeeping.accrual import accruals
from token_meter.bookkeeping.event_corrections import reassigning
from token_meter.bookkeeping.notice_rows import read_notices
from token_meter.bookkeeping.verification import verify
from token_meter.errors import InvalidCredit, InvalidEvent, InvalidInvoice, InvalidPlan, NotVerified
from token_meter.ledger.tables import invoices
from token_meter.usage import Usage

TEN_DOLLARS = Usage(output=1_000_000)
AT_COST = [{"cost_plus": {"multiplier": "1"}}]
JANUARY = Period(datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC))
IN_DECEMBER = datetime(2026, 12, 10, tzinfo=UTC)


def ten(number, **more):
    """A call of gpt-5 for ten dollars."""
    return call(number, usage=TEN_DOLLARS, **more)


def void(desk, number, **more):
    desk.ledger.record([replace(ten(number, **more), id=f"void {number}", corrects=f"evt_{number}", time=desk.at)])


def close(desk, *months, customer="acme"):
    """Make these months final, in this order, early in February."""
    desk.at = datetime(2027, 2, 3, tzinfo=UTC)
    return [desk.invoices.finalise(customer, month) for month in months]


def right(desk):
    """The journal balances and every invoice can be worked out again."""
    assert desk.credits.check() == []
    for each in desk.invoices.list():
        if each.kind == "invoice" and each.state == "final":
            verify(desk.ledger, each.invoice.number)


def due(invoice):
    return str(invoice.due_amount)


def test_a_later_month_that_is_closed_first_leaves_the_earlier_one_its_credit(desk):
    desk.sell(rates=AT_COST)
    desk.at = OCTOBER.start
    desk.credits.grant("acme", "60")
    desk.ledger.record([ten(number) for number in range(5)])
    desk.ledger.record([ten(number, time=IN_DECEMBER) for number in range(5, 10)])

    december, november = close(desk, DECEMBER, NOVEMBER)

    assert (due(november), due(december)) == ("0.00", "40.00")
    assert desk.credits.balance("acme") == 0
    right(desk)


def test_what_was_paid_with_credit_and_is_taken_back_is_credit_again(desk):
    desk.sell(rates=AT_COST)
    desk.at = OCTOBER.start
    desk.credits.grant("acme", "100")
    desk.ledger.record([ten(number) for number in range(10)])
    (november,) = close(desk, NOVEMBER)
    for number in range(10):
        void(desk, number)
    desk.ledger.record([ten(number, time=IN_DECEMBER) for number in range(20, 23)])

    (december,) = close(desk, DECEMBER)

    assert (due(november), due(december)) == ("0.00", "0.00")
    assert told(december)[-1][:1] + told(december)[-1][1:2] == ("credit", "Credit given back")
    assert desk.credits.balance("acme") == 70
    right(desk)


def test_what_expired_meanwhile_does_not_pay_again_and_stops_nobody(desk):
    desk.sell(rates=AT_COST)
    desk.at = OCTOBER.start
    desk.credits.grant("acme", "100", expires=DECEMBER.start)
    desk.ledger.record([ten(number) for number in range(10)])
    close(desk, NOVEMBER)
    desk.credits.expire()
    void(desk, 1)
    desk.credits.expire()
    desk.ledger.record([ten(20, time=IN_DECEMBER), ten(21, time=IN_DECEMBER, customer="other")])

    desk.at = datetime(2027, 2, 3, tzinfo=UTC)
    ran = desk.invoices.run(DECEMBER)

    assert ran.failed == {}
    assert {each.customer: due(each) for each in ran.written} == {"acme": "10.00", "other": "10.00"}
    right(desk)


@pytest.mark.parametrize("period", ["month", "quarter"])
def test_a_pack_is_invoiced_once_and_taken_back_once(desk, period):
    desk.sell(rates=AT_COST, fees=[{"title": "Fee", "amount": "3"}])
    desk.plans.keep(PlansFile.model_validate({"packs": [{"name": "ten", "price": "9", "amount": "10"}]}))
    desk.at = datetime(2026, 11, 5, tzinfo=UTC)
    sold = desk.credits.buy("acme", "ten")
    (november,) = close(desk, NOVEMBER)
    plan = {"name": "longer", "period": period, "rates": AT_COST, "fees": [{"title": "Fee", "amount": "1"}]}
    desk.plans.keep(PlansFile.model_validate({"plans": [plan]}), effective_from=LONG_AGO)
    desk.plans.subscribe("acme", "longer", start=DECEMBER.start)
    desk.credits.void(sold.id, reason="not wanted")

    quarter = Period(OCTOBER.start, JANUARY.start) if period == "quarter" else DECEMBER
    (later,) = close(desk, quarter)

    assert [line for line in told(november) if line[0] == "pack"] == [("pack", "ten", None, "9", "9.00")]
    assert [line for line in told(later) if line[0] == "pack"] == [("pack", "ten, taken back", None, "-9", "-9.00")]
    right(desk)


def test_a_month_that_belongs_to_a_quarter_after_all_is_taken_back_there(desk):
    desk.sell(rates=AT_COST)
    desk.ledger.record([ten(1)])
    close(desk, NOVEMBER)
    desk.plans.keep(
        PlansFile.model_validate({"plans": [{"name": "q", "period": "quarter", "rates": AT_COST}]}),
        effective_from=LONG_AGO,
    )
    desk.plans.subscribe("acme", "q", start=OCTOBER.start)

    (quarter,) = close(desk, Period(OCTOBER.start, JANUARY.start))

    assert [(kind, amount) for kind, _, _, _, amount in told(quarter)] == [("usage", "10.00"), ("correction", "-10.00")]
    right(desk)


def test_an_invoice_that_is_done_again_has_its_corrections_again(desk):
    desk.sell(rates=AT_COST)
    desk.ledger.record([ten(1), ten(2, time=IN_DECEMBER), ten(3, time=JANUARY.start)])
    close(desk, NOVEMBER)
    desk.ledger.record([ten(4)])
    (december,) = close(desk, DECEMBER)
    close(desk, JANUARY)
    january = desk.invoices.list()[-1].invoice.number
    desk.invoices.void(str(january), reason="again")
    desk.invoices.void(str(december.number), reason="again")

    again, last = close(desk, DECEMBER, JANUARY)

    assert (due(december), due(again), due(last)) == ("20.00", "20.00", "10.00")
    right(desk)


def test_a_fee_that_was_changed_for_the_past_is_corrected_and_not_paid_with_credit(desk):
    desk.sell(rates=AT_COST, fees=[{"title": "Fee", "amount": "30"}])
    desk.at = OCTOBER.start
    desk.credits.grant("acme", "500")
    close(desk, NOVEMBER)
    desk.sell(rates=AT_COST, fees=[{"title": "Fee", "amount": "300"}])

    (december,) = close(desk, DECEMBER)

    assert [(kind, amount) for kind, _, _, _, amount in told(december)] == [
        ("fee", "300.00"), ("correction", "-30.00"), ("correction", "300.00"),
    ]  # fmt: skip
    assert due(december) == "570.00"
    right(desk)


def test_tax_goes_back_with_what_it_was_on(desk):
    desk.sell(rates=AT_COST)
    CustomerBook(desk.ledger).edit("acme", details={"tax_percent": "19"})
    desk.ledger.record([ten(number) for number in range(10)])
    (november,) = close(desk, NOVEMBER)
    for number in range(10):
        void(desk, number)
    desk.ledger.record([ten(number, time=IN_DECEMBER) for number in range(20, 23)])

    (december,) = close(desk, DECEMBER)

    assert (due(november), due(december)) == ("119.00", "-83.30")
    right(desk)


def test_periods_that_begin_within_an_hour_lose_nothing(desk):
    plan = {"name": "own", "anchor": "subscription", "rates": AT_COST, "credits": [{"amount": "4"}]}
    desk.plans.keep(PlansFile.model_validate({"plans": [plan]}), effective_from=LONG_AGO)
    start = datetime(2026, 11, 10, 9, 30, tzinfo=UTC)
    desk.plans.subscribe("acme", "own", start=start)
    period = Period(start, datetime(2026, 12, 10, 9, 30, tzinfo=UTC))
    desk.ledger.record([ten(1, time=start + timedelta(minutes=10))])
    (first,) = close(desk, period)
    desk.ledger.record([ten(2, time=start + timedelta(minutes=20))])

    (second,) = close(desk, Period(period.stop, datetime(2027, 1, 10, 9, 30, tzinfo=UTC)))

    assert [due(each) for each in (first, second)] == ["6.00", "10.00"]
    right(desk)


def test_included_usage_and_amounts_are_of_the_period_and_not_of_each_version_of_a_card(desk):
    rates = [
        {"where": {"token_type": "input"}, "per_unit": "0.01"},
        {"where": {"token_type": "output"}, "per_unit": "0.01"},
        {"meter": "docs", "graduated": [{"up_to": 10, "price": "1"}, {"up_to": "inf", "price": "0.1"}]},
        {"meter": "seats", "flat": "5"},
    ]
    file = {
        "meters": [{"name": "docs"}, {"name": "seats"}],
        "rate_cards": [{"name": "c", "rates": rates}],
        "plans": [{"name": "p", "rate_cards": ["c"], "included": [{"quantity": 1000}],
                   "fees": [{"title": "Once", "amount": "7", "prorate": False}]}],
    }  # fmt: skip
    desk.plans.keep(PlansFile.model_validate(file), effective_from=LONG_AGO)
    desk.plans.subscribe("acme", "p", start=NOVEMBER.start)
    file["rate_cards"][0]["title"] = "the same rates"
    desk.plans.keep(PlansFile.model_validate({**file, "plans": []}), effective_from=datetime(2026, 11, 15, tzinfo=UTC))
    desk.plans.subscribe("acme", "p@1", start=datetime(2026, 11, 20, tzinfo=UTC))
    late = datetime(2026, 11, 16, tzinfo=UTC)
    desk.ledger.record(
        [
            call(1, usage=Usage(input=800, output=800)), call(2, usage=Usage(input=800), time=late),
            counted(3, 10, meter="docs"), counted(4, 10, meter="docs", time=late),
            counted(5, 1, meter="seats"), counted(6, 1, meter="seats", time=late),
        ]
    )  # fmt: skip

    (november,) = close(desk, NOVEMBER)

    included = sum(line.quantity for line in november.lines if line.kind == "included")
    amounts = {line.title: str(line.amount) for line in november.lines if line.kind != "included"}
    assert included == -1000
    assert (amounts["docs (up to 10)"], amounts["docs (beyond)"]) == ("10.00", "1.00")
    assert [line.exact for line in november.lines if line.meter == "seats"] == [5]
    assert [line.exact for line in november.lines if line.title == "Once"] == [7]
    right(desk)


def test_a_plan_and_a_card_of_one_name_are_two_things(desk):
    file = {
        "rate_cards": [{"name": "std", "rates": [{"meter": "api_calls", "per_unit": "1000"}]}],
        "plans": [{"name": "std", "rates": [{"meter": "api_calls", "per_unit": "10"}], "rate_cards": ["std"]}],
    }
    desk.plans.keep(PlansFile.model_validate(file), effective_from=LONG_AGO)
    desk.plans.set_default("std", effective_from=LONG_AGO)
    desk.ledger.record([call(1)])

    assert due(close(desk, NOVEMBER)[0]) == "10.00"
    right(desk)


def test_currencies_are_never_summed(desk):
    desk.ledger.record([ten(1)])
    desk.plans.keep(
        PlansFile.model_validate(
            {"plans": [{"name": "eu", "currency": "EUR", "fees": [{"title": "f", "amount": "9"}]}]}
        ),
        effective_from=LONG_AGO,
    )
    desk.plans.subscribe("acme", "eu", start=datetime(2026, 11, 20, tzinfo=UTC))

    with pytest.raises(InvalidInvoice, match=r"is charged in USD in .* and the invoice is in EUR"):
        close(desk, NOVEMBER)
    with pytest.raises(InvalidCredit, match="is invoiced in EUR"):
        desk.credits.grant("acme", "5", kind="paid")
    usd = {"rate_cards": [{"name": "c", "rates": AT_COST}], "plans": [{"name": "us", "rate_cards": ["c"]}]}
    desk.plans.keep(PlansFile.model_validate(usd))
    with pytest.raises(InvalidPlan, match="plan us, which uses it, is in USD"):
        desk.plans.keep(PlansFile.model_validate({"rate_cards": [{"name": "c", "currency": "JPY", "rates": AT_COST}]}))


@pytest.mark.parametrize("label", ["c@9", "c@x"])
def test_a_card_is_pinned_to_a_version_that_there_is(small_desk, label):
    file = {"rate_cards": [{"name": "c", "rates": AT_COST}], "plans": [{"name": "p", "rate_cards": [label]}]}

    with pytest.raises(InvalidPlan, match="rate card c has no version"):
        small_desk.plans.keep(PlansFile.model_validate(file))


def test_usage_that_no_rate_is_about_is_sold_below_cost(small_desk):
    small_desk.sell(rates=[{"where": {"model": "gpt-4*"}, "cost_plus": {"markup": "30%"}}])
    small_desk.ledger.record([call(1)])

    (row,) = small_desk.ledger.costs(by=())

    assert (row.charge, row.below_cost) == (Decimal(0), True)


def test_late_events_and_later_prices_do_not_shake_what_is_final(desk):
    desk.sell(rates=AT_COST)
    desk.ledger.record([ten(1), call(9, usage=Usage(), status="unmetered", model=None)])
    close(desk, NOVEMBER)
    desk.ledger.record([ten(2)])
    desk.ledger.record([ten(9)])  # the placeholder's real event
    desk.sell(since=NOVEMBER.start, rates=[{"cost_plus": {"markup": "100%"}}])
    right(desk)

    (december,) = close(desk, DECEMBER)

    assert due(december) == "50.00"
    right(desk)


def test_a_clock_that_steps_back_does_not_shake_it_either(desk):
    desk.sell(rates=AT_COST)
    desk.ledger.record([ten(1)])
    close(desk, NOVEMBER)
    desk.ledger.record([ten(2)])
    desk.at = datetime(2027, 1, 20, tzinfo=UTC)
    desk.invoices.finalise("acme", DECEMBER)

    right(desk)


@pytest.mark.parametrize(
    "change",
    [
        "kind = 'credit_note'", "concerns = 'INV-1'", "document = replace(document, '2026-11-01', '2026-1x-01')",
        "document = replace(document, 'INV-000001', 'INV-000002')",
    ],
)  # fmt: skip
def test_what_is_changed_around_the_text_is_noticed(small_desk, change):
    desk = small_desk
    desk.sell(rates=AT_COST)
    desk.ledger.record([ten(1)])
    (november,) = close(desk, NOVEMBER)
    with desk.ledger.writing() as (_, connection):
        connection.execute(text(f"UPDATE {invoices.name} SET {change}"))

    with pytest.raises(NotVerified):
        verify(desk.ledger, november.number)


def test_nobody_pays_fees_for_months_before_they_were_there(desk):
    desk.sell(rates=AT_COST, fees=[{"title": "Fee", "amount": "3"}])
    desk.ledger.record([ten(1)])
    with desk.ledger.writing() as (_, connection):
        created = int(NOVEMBER.start.timestamp() * 1_000_000)
        connection.execute(text(f"UPDATE token_meter_customers SET created = {created}"))
    desk.at = datetime(2027, 2, 3, tzinfo=UTC)

    assert desk.invoices.run(OCTOBER).written == []
    assert [due(each) for each in desk.invoices.run(NOVEMBER).written] == ["13.00"]


def test_who_is_given_usage_of_a_closed_month_is_named(desk):
    desk.sell(rates=AT_COST)
    desk.ledger.record([ten(1), ten(2, time=IN_DECEMBER, customer="other")])
    close(desk, NOVEMBER)
    now = datetime(2026, 12, 5, tzinfo=UTC)
    given, taken = reassigning(desk.ledger, "evt_1", "other", reason="theirs", now=now)
    desk.ledger.record([given])  # and then the process died
    desk.ledger.record(reassigning(desk.ledger, "evt_1", "other", reason="theirs", now=now))

    desk.at = datetime(2027, 2, 3, tzinfo=UTC)
    ran = desk.invoices.run(DECEMBER)

    assert taken.corrects == "evt_1"
    assert ran.behind == {"other": "2026-11"}
    assert {each.customer: due(each) for each in ran.written} == {"acme": "-10.00", "other": "10.00"}
    assert [due(each) for each in desk.invoices.run(NOVEMBER).written] == ["10.00"]
    assert desk.invoices.run(JANUARY).behind == {}
    with pytest.raises(InvalidEvent, match="say whose it is"):
        reassigning(desk.ledger, "evt_2", "", reason="x", now=now)
    right(desk)


def test_accruals_use_credit_once_and_correct_once(desk):
    desk.sell(rates=AT_COST)
    desk.plans.keep(
        PlansFile.model_validate({"plans": [{"name": "weekly", "period": "week", "rates": AT_COST}]}),
        effective_from=LONG_AGO,
    )
    desk.plans.subscribe("weeks", "weekly", start=OCTOBER.start)
    desk.plans.keep(PlansFile.model_validate({"plans": [{"name": "fee", "fees": [{"title": "Fee", "amount": "8"}]}]}))
    desk.plans.subscribe("quiet", "fee", start=NOVEMBER.start)
    desk.ledger.record([ten(1), ten(2, customer="weeks")])
    close(desk, NOVEMBER)
    desk.ledger.record(
        [ten(3), *(ten(n, time=IN_DECEMBER) for n in (4, 5)), *(ten(n, time=JANUARY.start) for n in (6, 7))]
    )
    desk.at = datetime(2027, 1, 20, tzinfo=UTC)
    desk.credits.grant("acme", "15", effective=OCTOBER.start)

    found = {}
    for each in accruals(desk.ledger, now=desk.now):
        found[each.customer] = found.get(each.customer, Decimal(0)) + each.amount

    # Acme: 20 + 20, and 10 that came late, less 15 of credit; 8 a month for three months.
    assert found == {"acme": 35, "weeks": 10, "quiet": 24}


def test_credit_holds_to_the_hour(desk):
    desk.sell(rates=AT_COST)
    desk.at = OCTOBER.start
    noon = datetime(2026, 11, 10, 12, tzinfo=UTC)
    desk.credits.grant("acme", "10", title="morning", expires=noon)
    desk.credits.grant("acme", "10", title="evening", effective=noon + timedelta(hours=6))

    desk.ledger.record([ten(1, time=noon + timedelta(hours=1)), ten(2, time=noon + timedelta(hours=7))])

    assert {grant.title: grant.remaining for grant in desk.credits.grants("acme")} == {"morning": 10, "evening": 0}


def test_a_balance_that_is_gone_is_noticed_too(desk):
    desk.sell(rates=AT_COST)
    desk.plans.keep(PlansFile.model_validate({"packs": [{"name": "ten", "price": "9", "amount": "10"}]}))
    desk.at = OCTOBER.start
    desk.credits.grant("acme", "10", expires=NOVEMBER.start)
    desk.credits.recharge_at("acme", "5", "ten")

    desk.ledger.record([ten(1)])

    with desk.ledger.reading() as (_, connection):
        assert [each["kind"] for each in read_notices(connection)] == ["credit.recharge_due", "credit.depleted"]
    with pytest.raises(InvalidCredit, match="above 0"):
        desk.credits.recharge_at("acme", "-5", "ten")


def test_a_plan_to_come_is_for_those_who_come_then(desk):
    desk.sell(rates=AT_COST)
    later = {"plans": [{"name": "standard", "rates": [{"cost_plus": {"markup": "100%"}}]}]}
    desk.plans.keep(PlansFile.model_validate(later), effective_from=DECEMBER.start)

    assert desk.plans.subscribe("acme", "standard", start=NOVEMBER.start).version == 1
    assert desk.plans.subscribe("other", "standard", start=DECEMBER.start).version == 2


def test_a_seller_keeps_what_is_not_named_again(desk):
    desk.sell(rates=AT_COST)
    desk.invoices.set_seller({"name": "Us", "prefix": "EX", "rounding": "half_up"})
    desk.invoices.set_seller({"address": "Here", "name": ""})
    desk.ledger.record([ten(1)])

    (november,) = close(desk, NOVEMBER)

    assert (november.number, november.seller, november.rounding) == (
        "EX-000001", {"prefix": "EX", "rounding": "half_up", "address": "Here"}, "half_up",
    )  # fmt: skip
    with pytest.raises(InvalidInvoice, match="a prefix is"):
        desk.invoices.set_seller({"prefix": "A B/C"})


def test_discounts_never_go_below_nothing(desk):
    desk.sell(rates=AT_COST, discounts=[{"percent": "60"}, {"percent": "60"}])
    desk.ledger.record([ten(1)])

    assert due(close(desk, NOVEMBER)[0]) == "0.00"


def test_a_minimum_is_due_also_where_nothing_was_used(desk):
    desk.sell(rates=[*AT_COST, {"meter": "api_calls", "per_unit": "1", "minimum": "5"}])
    desk.plans.subscribe("acme", "standard", start=NOVEMBER.start)

    assert due(close(desk, NOVEMBER)[0]) == "5.00"


def day(number):
    return datetime(2026, 11, number, tzinfo=UTC)


def charge_on(desk, *days):
    """What a call of ten dollars is charged on these days of November."""
    desk.ledger.record([ten(100 + number, time=day(number)) for number in days])
    rows = desk.ledger.costs(by=(), bucket="day", since=NOVEMBER.start, until=NOVEMBER.stop)
    return [f"{row.charge.normalize():f}" for row in rows]


@pytest.mark.parametrize("recorded_first", [True, False])
def test_what_is_dated_back_holds_in_place_of_what_began_since(desk, recorded_first):
    if recorded_first:
        desk.ledger.record([ten(100 + number, time=day(number)) for number in (5, 15, 25)])
    desk.at = day(10)
    desk.sell(since=day(10), rates=[{"cost_plus": {"multiplier": "2"}}])
    desk.at = day(20)
    desk.sell(since=day(1), rates=[{"cost_plus": {"multiplier": "3"}}])

    assert charge_on(desk, 5, 15, 25) == ["30", "30", "30"]


def test_what_is_still_to_come_comes(desk):
    desk.at = day(10)
    desk.sell(since=day(24), rates=[{"cost_plus": {"multiplier": "2"}}])
    desk.at = day(20)
    desk.sell(since=day(1), rates=[{"cost_plus": {"multiplier": "3"}}])

    assert charge_on(desk, 5, 15, 25) == ["30", "30", "20"]
    assert desk.plans.keep(PlansFile.model_validate({"plans": [standard("3")]}), effective_from=day(2)) == []


def test_what_is_outlived_is_kept_for_those_who_are_pinned_to_it(desk):
    desk.at = day(10)
    desk.sell(since=day(10), rates=[{"cost_plus": {"multiplier": "2"}}])
    desk.plans.subscribe("acme", "standard@1", start=day(1))
    desk.at = day(20)
    desk.sell(since=day(1), rates=[{"cost_plus": {"multiplier": "3"}}])

    assert charge_on(desk, 5, 15) == ["20", "20"]


@pytest.mark.parametrize(("said", "waived"), [((True, 20), []), ((False, 8), [15, 25])])
def test_whether_estimates_are_billed_is_dated_back_too(desk, said, waived):
    desk.sell(rates=AT_COST)
    desk.at = day(12)
    desk.plans.set_bill_estimated(False, effective_from=day(12))
    desk.at = day(26)
    desk.plans.set_bill_estimated(True, effective_from=day(10))
    desk.plans.set_bill_estimated(said[0], effective_from=day(said[1]))

    desk.ledger.record([ten(number, time=day(number), status="estimated") for number in (5, 15, 25)])
    rows = desk.ledger.costs(by=(), bucket="day", since=NOVEMBER.start, until=NOVEMBER.stop)
    assert [number for number, row in zip((5, 15, 25), rows, strict=True) if not row.charge] == waived


def standard(multiplier):
    return {"name": "standard", "rates": [{"cost_plus": {"multiplier": multiplier}}]}


@pytest.mark.parametrize("there_before", [True, False])
def test_a_month_that_nobody_ran_is_named_until_somebody_does(desk, there_before):
    desk.sell(rates=AT_COST)
    desk.ledger.record([ten(1, time=OCTOBER.start)] if there_before else [])
    desk.at = datetime(2027, 1, 2, tzinfo=UTC)
    desk.invoices.run(OCTOBER)
    desk.ledger.record([ten(2), ten(3, time=IN_DECEMBER)])

    assert desk.invoices.run(DECEMBER).behind == {"acme": "2026-11"}
    assert [due(each) for each in desk.invoices.run(NOVEMBER).written] == ["10.00"]
    assert desk.invoices.run(DECEMBER).behind == {}


def test_a_fee_that_was_never_invoiced_is_named_and_a_month_that_comes_to_nothing_is_not(desk):
    desk.sell(rates=AT_COST)
    desk.plans.keep(PlansFile.model_validate({"plans": [{"name": "fee", "fees": [{"title": "Fee", "amount": "8"}]}]}))
    desk.plans.subscribe("acme", "fee", start=NOVEMBER.start)
    desk.ledger.record([call(1, customer="free", usage=Usage())])
    desk.at = datetime(2027, 1, 2, tzinfo=UTC)

    assert desk.invoices.run(DECEMBER).behind == {"acme": "2026-11"}


def test_a_quarter_that_goes_on_is_not_behind(desk):
    desk.plans.keep(PlansFile.model_validate({"plans": [{"name": "q", "period": "quarter", "rates": AT_COST}]}))
    desk.plans.subscribe("acme", "q", start=OCTOBER.start)
    desk.ledger.record([ten(1, customer="other")])
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)
    assert len(desk.invoices.run(NOVEMBER).written) == 1
    desk.ledger.record([ten(2)])

    desk.at = datetime(2027, 2, 2, tzinfo=UTC)
    ran = desk.invoices.run(DECEMBER)
    assert ({each.customer: due(each) for each in ran.written}, ran.behind) == ({"acme": "10.00"}, {})
    assert desk.invoices.run(JANUARY).behind == {}


def test_nobody_owes_a_minimum_for_months_before_they_were_there(desk):
    desk.sell(
        rates=AT_COST, fees=[{"title": "Fee", "amount": "3"}], minimum="50", discounts=[{"percent": "10", "on": "all"}]
    )
    desk.ledger.record([ten(1)])
    with desk.ledger.writing() as (_, connection):
        created = int(NOVEMBER.start.timestamp() * 1_000_000)
        connection.execute(text(f"UPDATE token_meter_customers SET created = {created}"))
    desk.at = datetime(2027, 2, 3, tzinfo=UTC)

    assert desk.invoices.run(OCTOBER).written == []
    assert [due(each) for each in desk.invoices.run(NOVEMBER).written] == ["50.00"]
