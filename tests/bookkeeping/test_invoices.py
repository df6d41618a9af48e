"""Invoices: every line, every rounding, corrections, verification."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from tests.bookkeeping.conftest import DECEMBER, NOVEMBER, Desk
from tests.bookkeeping.kit import START, call, counted, told
from token_meter.billing.plans import Period, PlansFile
from token_meter.bookkeeping.rater import LedgerRater, rate_pending
from token_meter.bookkeeping.verification import verify
from token_meter.errors import InvalidInvoice, InvalidPlan, NotVerified
from token_meter.ledger import Ledger
from token_meter.ledger.tables import invoices, late
from token_meter.money import total
from token_meter.usage import Usage

AFTER_NOVEMBER = datetime(2026, 12, 2, tzinfo=UTC)
AFTER_DECEMBER = datetime(2027, 1, 2, tzinfo=UTC)


def draft(desk, customer="acme", within=NOVEMBER):
    (found,) = desk.invoices.draft(customer, within=within)
    return found


def test_the_newcomers_tutorial(desk):
    rates = [
        {
            "meter": "llm tokens",
            "matrix": [
                {"model": "model a", "token_type": "input", "price": "0.00001"},
                {"model": "model a", "token_type": "output", "price": "0.00002"},
                {"model": "model b", "token_type": "input", "price": "0.000005"},
                {"model": "model b", "token_type": "output", "price": "0.00001"},
            ],
        },
        {"meter": "api calls", "per_unit": "0.01"},
    ]
    file = {"rate_cards": [{"name": "chatbot", "rates": rates}]}
    file["plans"] = [{"name": "Chatbot usage plan", "rate_cards": ["chatbot"]}]
    desk.plans.keep(PlansFile.model_validate(file))
    desk.plans.subscribe("test-customer", "Chatbot usage plan", start=NOVEMBER.start)
    mine = {"customer": "test-customer", "provider": None, "publisher": None, "operation": None}

    desk.ledger.record(
        [
            call(1, model="model a", usage=Usage(input=1000), **mine),
            call(2, model="model a", usage=Usage(output=2000), **mine),
            call(3, model="model b", usage=Usage(input=4000), **mine),
            counted(4, 10, meter="api_calls", customer="test-customer"),
        ]
    )

    invoice = draft(desk, "test-customer")
    assert told(invoice) == [
        ("usage", "model a input", 1000, "0.01", "0.01"),
        ("usage", "model a output", 2000, "0.04", "0.04"),
        ("usage", "model b input", 4000, "0.02", "0.02"),
        ("usage", "API calls", 10, "0.1", "0.10"),
    ]
    assert (str(invoice.total), invoice.currency, invoice.plan) == ("0.17", "USD", "Chatbot usage plan@1")


def test_without_a_plan_usage_is_at_cost_and_says_so(desk):
    desk.ledger.record([call(1, usage=Usage(input=1_000_000, output=100_000))])

    invoice = draft(desk)

    assert told(invoice) == [
        ("usage", "gpt-5 input", 1_000_000, "1.25", "1.25"),
        ("usage", "gpt-5 output", 100_000, "1", "1.00"),
    ]
    assert invoice.plan == "no plan: at cost"


def test_a_markup_holds_from_then_on_and_never_rewrites_the_past(desk):
    desk.ledger.record([call(1, usage=Usage(input=1_000_000))])
    desk.at = START + timedelta(hours=1)
    desk.sell(since=None)
    desk.ledger.record([call(90, usage=Usage(input=1_000_000)), call(2, usage=Usage(input=1_000_000))])

    invoice = draft(desk)

    assert told(invoice) == [
        ("usage", "gpt-5 input", 2_000_000, "2.5", "2.50"),
        ("usage", "gpt-5 input", 1_000_000, "1.625", "1.62"),
    ]
    assert str(invoice.total) == "4.12"


@pytest.mark.parametrize(
    ("rate", "quantity", "lines"),
    [
        ({"per_unit": "0.25"}, 7, [("Documents", 7, "1.75")]),
        ({"per_unit": "3", "per": 1000}, 7, [("Documents", 7, "0.021")]),
        ({"flat": "12"}, 7, [("Documents", 7, "12")]),
        ({"package": {"size": 5, "price": "2"}}, 7, [("Documents (2 x 5)", 7, "4")]),
        ({"package": {"size": 5, "price": "2"}}, 5, [("Documents (1 x 5)", 5, "2")]),
        (
            {"graduated": [{"up_to": 5, "price": "1"}, {"up_to": None, "price": "0.5", "flat": "3"}]}, 7,
            [("Documents (up to 5)", 5, "5"), ("Documents (beyond)", 2, "4")],
        ),
        ({"graduated": [{"up_to": 5, "price": "1"}, {"price": "0.5"}]}, 5, [("Documents (up to 5)", 5, "5")]),
        ({"volume": [{"up_to": 5, "price": "1"}, {"price": "0.5"}]}, 5, [("Documents (up to 5)", 5, "5")]),
        ({"volume": [{"up_to": 5, "price": "1"}, {"price": "0.5", "flat": "1"}]}, 6, [("Documents (beyond)", 6, "4")]),
    ],
)  # fmt: skip
def test_every_way_to_charge(desk, rate, quantity, lines):
    meter = {"name": "documents", "title": "Documents"}
    plan = {"name": "standard", "rates": [{"meter": "documents", **rate}]}
    desk.plans.keep(PlansFile.model_validate({"meters": [meter], "plans": [plan]}))
    desk.plans.set_default("standard", effective_from=NOVEMBER.start)

    desk.ledger.record([counted(1, quantity - 1, meter="documents"), counted(2, 1, meter="documents")])

    assert [(title, counted_, exact) for _, title, counted_, exact, _ in told(draft(desk))] == lines


def test_the_largest_value_and_the_number_of_distinct_ones(desk):
    meters = [{"name": "seats", "aggregation": "max"}, {"name": "users", "aggregation": "unique", "of": "user"}]
    rates = [
        {"meter": "seats", "per_unit": "10"},
        {"meter": "users", "graduated": [{"up_to": 1, "price": "0"}, {"price": "3"}]},
    ]
    desk.plans.keep(PlansFile.model_validate({"meters": meters, "plans": [{"name": "standard", "rates": rates}]}))
    desk.plans.set_default("standard", effective_from=NOVEMBER.start)
    desk.ledger.record(
        [counted(number, value, meter="seats") for number, value in enumerate([3, 9, 5])]
        + [counted(10 + number, 1, meter="users", dimensions={"user": name}) for number, name in enumerate("abcab")]
    )
    desk.ledger.record([replace(counted(1, 9, meter="seats"), id="void", corrects="evt_1")])
    desk.at = AFTER_NOVEMBER

    invoice = desk.invoices.finalise("acme", NOVEMBER)

    assert [(title, quantity, exact) for _, title, quantity, exact, _ in told(invoice)] == [
        ("seats", 5, "5E+1"), ("users (up to 1)", 1, "0"), ("users (beyond)", 2, "6"),
    ]  # fmt: skip
    verify(desk.ledger, invoice.number)
    desk.ledger.record([counted(30, 50, meter="seats")])
    verify(desk.ledger, invoice.number)
    desk.at = AFTER_DECEMBER
    assert told(desk.invoices.finalise("acme", DECEMBER)) == [
        ("correction", "Correction of INV-000001: seats", 45, "4.5E+2", "450.00")
    ]


def test_fees_inclusions_discounts_and_minimums(desk):
    desk.sell(
        rates=[{"cost_plus": {"multiplier": "2"}, "minimum": "4"}],
        fees=[{"title": "Base fee", "amount": "20"}],
        included=[{"quantity": 500_000, "where": {"token_type": "input"}}, {"amount": "0.50"}],
        discounts=[{"title": "Friends", "percent": "10", "on": "all"}],
        minimum="25",
    )
    desk.ledger.record([call(1, usage=Usage(input=1_000_000, output=10_000))])

    invoice = draft(desk)

    assert told(invoice) == [
        ("usage", "gpt-5 input", 1_000_000, "2.5", "2.50"),
        ("usage", "gpt-5 output", 10_000, "0.2", "0.20"),
        ("included", "gpt-5 input, included", -500_000, "-1.25", "-1.25"),
        ("minimum", "Minimum for llm_tokens", None, "2.55", "2.55"),
        ("fee", "Base fee", None, "2E+1", "20.00"),
        ("included", "Included usage", None, "-0.5", "-0.50"),
        ("discount", "Friends 10 %", None, "-2.35", "-2.35"),
        ("minimum", "Minimum charge", None, "3.85", "3.85"),
    ]
    assert str(invoice.total) == "25.00"


def test_a_subscription_that_begins_within_the_month_pays_its_share(desk):
    file = {"plans": [{"name": "pro", "rates": [{"meter": "api_calls", "per_unit": "1"}],
                       "fees": [{"title": "Fee", "amount": "30"}]}]}  # fmt: skip
    desk.plans.keep(PlansFile.model_validate(file))
    desk.plans.subscribe("acme", "pro", start=datetime(2026, 11, 16, tzinfo=UTC))
    desk.ledger.record([call(1), call(2, time=datetime(2026, 11, 17, tzinfo=UTC))])

    invoice = draft(desk)

    assert invoice.plan == "no plan: at cost, pro@1"
    assert told(invoice)[-2:] == [("usage", "API calls", 1, "1", "1.00"), ("fee", "Fee", None, "15", "15.00")]


def test_periods_that_begin_with_the_subscription(desk):
    file = {"plans": [{"name": "pro", "anchor": "subscription", "rates": [{"meter": "api_calls", "per_unit": "1"}]}]}
    desk.plans.keep(PlansFile.model_validate(file))
    desk.plans.subscribe("acme", "pro", start=datetime(2026, 11, 10, tzinfo=UTC))
    desk.ledger.record([call(1), call(2, time=datetime(2026, 12, 9, 23, tzinfo=UTC)),
                        call(3, time=datetime(2026, 12, 10, tzinfo=UTC))])  # fmt: skip

    found = desk.invoices.draft("acme", within=Period(NOVEMBER.start, datetime(2027, 1, 31, tzinfo=UTC)))

    own = [(str(each.period), each.lines[0].quantity) for each in found if each.plan == "pro@1"]
    assert own == [("2026-11-10 .. 2026-12-10", 2), ("2026-12-10 .. 2027-01-10", 1)]


def test_usage_without_a_price_is_held_and_comes_on_the_next_invoice(desk):
    desk.sell()
    desk.ledger.record([call(1, model="gpt-9"), call(2)])
    desk.at = AFTER_NOVEMBER
    first = desk.invoices.finalise("acme", NOVEMBER)

    desk.ledger.rater = LedgerRater(
        {"models": [{"provider": "openai", "model": "gpt-9", "prices": {"input": 1000, "output": 0}}]}
    )
    desk.ledger._opened.memory.catalogue = -1
    rate_pending(desk.ledger)
    desk.at = AFTER_DECEMBER
    second = desk.invoices.finalise("acme", DECEMBER)

    assert [(each.token_type, each.quantity) for each in first.held] == [("input", 1000), ("output", 100)]
    assert told(second) == [("correction", "Correction of INV-000001: gpt-9 input", 1000, "1.3", "1.30"),
                            ]  # fmt: skip
    assert second.lines[0].service == NOVEMBER
    for invoice in (first, second):
        verify(desk.ledger, invoice.number)


def test_late_and_voided_events_of_a_final_month_are_corrected_on_the_next(desk):
    desk.sell()
    desk.ledger.record([call(1, usage=Usage(input=1_000_000)), call(2, usage=Usage(output=100_000))])
    desk.at = AFTER_NOVEMBER
    first = desk.invoices.finalise("acme", NOVEMBER)
    void = replace(call(2, usage=Usage(output=100_000)), id="void", time=AFTER_NOVEMBER, corrects="evt_2")

    desk.ledger.record([call(3, usage=Usage(input=2_000_000)), void])
    desk.at = AFTER_DECEMBER
    second = desk.invoices.finalise("acme", DECEMBER)

    assert (str(first.total), str(second.total)) == ("2.92", "1.95")
    assert told(second) == [
        ("correction", "Correction of INV-000001: gpt-5 input", 2_000_000, "3.25", "3.25"),
        ("correction", "Correction of INV-000001: gpt-5 output", -100_000, "-1.3", "-1.30"),
    ]
    assert [verify(desk.ledger, each.number).state for each in (first, second)] == ["final", "final"]
    third = desk.invoices.draft("acme", within=Period(DECEMBER.stop, datetime(2027, 2, 1, tzinfo=UTC)))
    assert third[0].lines == ()


def test_a_correction_that_comes_before_its_event_takes_away_where_that_counts(desk):
    desk.sell()
    void = replace(call(1), id="void", time=START + timedelta(days=30), corrects="evt_1")

    desk.ledger.record([void])
    desk.ledger.record([call(1), call(2)])

    assert [(line.title, line.quantity) for line in draft(desk).lines] == [("gpt-5 input", 1000), ("gpt-5 output", 100)]
    assert desk.ledger.usage(by=("customer",), since=DECEMBER.start) == []


def test_a_run_is_for_everybody_and_goes_on_where_it_was(desk):
    desk.sell()
    desk.ledger.record(
        [call(number, customer=f"customer-{number}", usage=Usage(input=1_000_000)) for number in range(5)]
    )
    desk.at = AFTER_NOVEMBER
    one = desk.invoices.finalise("customer-3", NOVEMBER)
    seen = []

    ran = desk.invoices.run(NOVEMBER, progress=lambda done, total_: seen.append((done, total_)))
    again = desk.invoices.run(NOVEMBER)

    assert one.number == "INV-000001"
    assert [each.number for each in ran.written] == [f"INV-{number:06d}" for number in range(2, 6)]
    assert (ran.there, len(again.written), again.there, seen) == (1, 0, 5, [(5, 5)])


def test_a_period_that_has_not_ended_cannot_be_final(desk):
    desk.ledger.record([call(1)])

    with pytest.raises(InvalidInvoice, match="has not ended: it can be final from 2026-12-01 00:00 UTC"):
        desk.invoices.finalise("acme", NOVEMBER)
    with pytest.raises(InvalidInvoice, match="has not ended"):
        desk.invoices.run(NOVEMBER)


def test_a_void_invoice_frees_its_period_and_keeps_its_number(desk):
    desk.sell()
    desk.ledger.record([call(1, usage=Usage(input=1_000_000))])
    desk.at = AFTER_NOVEMBER
    first = desk.invoices.finalise("acme", NOVEMBER)
    desk.ledger.record([call(2, usage=Usage(input=1_000_000))])

    desk.invoices.void(first.number, reason="typing mistake")
    second = desk.invoices.finalise("acme", NOVEMBER)

    assert (first.number, second.number, str(second.total)) == ("INV-000001", "INV-000002", "3.25")
    assert [(each.invoice.number, each.state) for each in desk.invoices.list()] == [
        ("INV-000001", "void"), ("INV-000002", "final"),
    ]  # fmt: skip
    verify(desk.ledger, second.number)


def test_a_paid_invoice_is_taken_back_by_credit_notes(desk):
    desk.sell()
    desk.ledger.record([call(1, usage=Usage(input=1_000_000))])
    desk.at = AFTER_NOVEMBER
    number = desk.invoices.finalise("acme", NOVEMBER).number
    desk.invoices.pay(number, reference="bank")

    with pytest.raises(InvalidInvoice, match="is paid: write a credit note"):
        desk.invoices.void(number, reason="x")
    some = desk.invoices.credit_note(number, reason="outage", amount=Decimal("0.62"))
    rest = desk.invoices.credit_note(number, reason="the rest")
    with pytest.raises(InvalidInvoice, match=r"0\.00 USD is left"):
        desk.invoices.credit_note(number, reason="more")

    assert [(each.number, str(each.total)) for each in (some, rest)] == [("CN-000001", "-0.62"), ("CN-000002", "-1.00")]


def test_currencies_do_not_mix(desk):
    desk.sell(currency="EUR", rates=[{"meter": "api_calls", "per_unit": "1"}])
    desk.ledger.record([call(1)])
    from token_meter.accounts import CustomerBook

    CustomerBook(desk.ledger).edit("acme", currency="CHF")

    with pytest.raises(InvalidInvoice, match="acme pays in CHF, and plan standard is in EUR"):
        draft(desk)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"name": "docs", "aggregation": "max"}, "meter docs is a sum, and stays one"),
        ({"name": "users", "aggregation": "unique", "of": "seat"}, "meter users is a unique of user, and stays one"),
        ({"name": "api_calls", "aggregation": "count"}, "meter api_calls is a sum, and stays one"),
    ],
)
def test_how_a_meter_counts_is_for_good(desk, other, told):
    first = [{"name": "docs"}, {"name": "users", "aggregation": "unique", "of": "user"}]
    desk.plans.keep(PlansFile.model_validate({"meters": first}))

    with pytest.raises(InvalidPlan, match=told):
        desk.plans.keep(PlansFile.model_validate({"meters": [other]}))
    assert desk.plans.keep(PlansFile.model_validate({"meters": [{"name": "docs", "title": "Pages"}]})) == [
        "meter docs@2"
    ]


def test_overlapping_subscriptions_are_refused(desk):
    desk.sell(fees=[{"title": "Fee", "amount": "1"}])
    desk.plans.subscribe("acme", "standard", start=NOVEMBER.start, stop=DECEMBER.start)

    with pytest.raises(InvalidPlan, match="acme has standard@1 from 2026-11-01 00:00 until 2026-12-01 00:00: end that"):
        desk.plans.subscribe("acme", "standard", start=START)
    desk.plans.subscribe("acme", "standard", start=DECEMBER.start)


def test_tax_is_on_what_is_left(desk):
    desk.sell(rates=[{"meter": "api_calls", "per_unit": "0.015"}], discounts=[{"percent": "50"}])
    desk.ledger.record([call(1)])
    from token_meter.accounts import CustomerBook

    CustomerBook(desk.ledger).edit("acme", details={"tax_percent": "19", "tax_id": "DE1"})
    desk.at = AFTER_NOVEMBER

    invoice = desk.invoices.finalise("acme", NOVEMBER)

    assert [(kind, amount) for kind, _, _, _, amount in told(invoice)] == [
        ("usage", "0.02"), ("discount", "-0.01"), ("tax", "0.00"),
    ]  # fmt: skip
    assert invoice.buyer == {"name": "acme", "tax_id": "DE1"}
    verify(desk.ledger, invoice.number)


# Properties

models = st.sampled_from(
    [("openai", "gpt-5"), ("anthropic", "claude-opus-5"), ("google", "gemini-2.5-flash"), ("openai", "nope")]
)
some_calls = st.lists(
    st.tuples(models, st.integers(0, 9_999_999), st.integers(0, 9_999_999), st.integers(0, 40_000)),
    min_size=1,
    max_size=12,
)


def made(drawn):
    return [
        call(
            number,
            provider=provider,
            model=model,
            usage=Usage(input=put, output=out),
            time=START + timedelta(minutes=when),
        )
        for number, ((provider, model), put, out, when) in enumerate(drawn)
    ]


@contextmanager
def fresh(folder):
    with Ledger(folder / f"{random.random()}.db", rater=LedgerRater()) as ledger:
        yield selling(Desk(ledger))


def selling(desk):
    desk.sell(
        rates=[{"cost_plus": {"markup": "33.3%"}}, {"meter": "api_calls", "graduated": [{"up_to": 3, "price": "0.011"}, {"price": "0.007"}]}],
        fees=[{"title": "Fee", "amount": "9.99"}], discounts=[{"percent": "7"}], included=[{"quantity": 1_000_000}],
    )  # fmt: skip
    return desk


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=some_calls, seed=st.randoms(use_true_random=False))
def test_order_batches_and_repetitions_do_not_change_an_invoice(tmp_path, drawn, seed):
    events = made(drawn)
    shuffled = seed.sample(events, k=len(events)) + events[: seed.randrange(len(events) + 1)]
    size = seed.randrange(1, 5)

    with fresh(tmp_path) as one, fresh(tmp_path) as other:
        one.ledger.record(events)
        for start in range(0, len(shuffled), size):
            other.ledger.record(shuffled[start : start + size])

        mine, theirs = one.invoices.draft("acme", within=NOVEMBER), other.invoices.draft("acme", within=NOVEMBER)
        assert [told(each) for each in mine] == [told(each) for each in theirs]
        for each in mine:
            assert total(line.amount for line in each.lines) == each.total
            assert abs(each.total - total(line.exact for line in each.lines)) <= Decimal("0.005")
            assert all(abs(line.amount - line.exact) < Decimal("0.01") for line in each.lines)
        for desk in (one, other):
            assert desk.ledger.rate_again(reason="the same book") == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=some_calls, seed=st.randoms(use_true_random=False))
def test_voids_and_records_anew_net_to_what_was_recorded_anew(tmp_path, drawn, seed):
    wrong = made(drawn)
    right = [replace(each, id=f"{each.id}/again", usage=Usage(input=5, output=7)) for each in wrong]
    voids = [
        replace(each, id=f"{each.id}/void", corrects=each.id, time=each.time + timedelta(days=9)) for each in wrong
    ]
    mixed = seed.sample([*wrong, *voids, *right], k=3 * len(wrong))

    with fresh(tmp_path) as one, fresh(tmp_path) as other:
        one.ledger.record(right)
        for each in mixed:
            other.ledger.record([each])

        assert told(draft(one)) == told(draft(other))


def test_verify_catches_every_single_changed_digit(small_desk):
    desk = small_desk
    desk.sell(rates=[{"cost_plus": {"markup": "30%"}}, {"meter": "api_calls", "per_unit": "0.01"}])
    desk.ledger.record([call(1), call(2, model="claude-opus-5", provider="anthropic", price_context={"geo": "us"})])
    desk.at = AFTER_NOVEMBER
    number = desk.invoices.finalise("acme", NOVEMBER).number
    verify(desk.ledger, number)
    places = [("invoices", "document", None), ("invoices", "inputs", None), ("ratings", "cost", None),
              ("ratings", "charge", None), ("ratings", "document", None), ("events", "usage", None),
              ("events", "rating", None), ("invoices", "due_amount", None)]  # fmt: skip
    missed = []

    for table, column, _ in places:
        for change, undo in changed_digits(desk.ledger, f"token_meter_{table}", column):
            change()
            try:
                verify(desk.ledger, number)
            except (NotVerified, InvalidInvoice, ValueError, KeyError):
                pass
            else:
                missed.append((table, column, change))
            undo()

    verify(desk.ledger, number)
    assert not missed


def changed_digits(ledger, table, column):
    """Functions that change one digit in a row's column, each, and put it back; a sample of the digits."""
    with ledger.reading() as (_, connection):
        rows = connection.execute(text(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL")).all()
    chosen = random.Random(7)
    for rowid, value in rows:
        digits = [place for place, letter in enumerate(value) if letter.isdigit()]
        for place in chosen.sample(digits, k=min(len(digits), 12)):
            wrong = f"{value[:place]}{(int(value[place]) + 1 + chosen.randrange(8)) % 10}{value[place + 1 :]}"

            def write(content, rowid=rowid):
                with ledger.writing() as (_, connection):
                    connection.execute(
                        text(f"UPDATE {table} SET {column} = :content WHERE rowid = :rowid"),
                        {"content": content, "rowid": rowid},
                    )

            yield (lambda wrong=wrong, write=write: write(wrong)), (lambda value=value, write=write: write(value))


def test_what_comes_too_late_is_written_down_even_if_nobody_looks(desk):
    desk.ledger.record([call(1)])
    desk.at = AFTER_NOVEMBER
    desk.invoices.run(NOVEMBER)

    desk.ledger.record([call(2), call(3, time=AFTER_NOVEMBER)])

    with desk.ledger.reading() as (_, connection):
        assert connection.execute(select(late.c.event_id)).scalars().all() == ["evt_2"]
        assert json.loads(connection.execute(select(invoices.c.document)).scalar_one())["number"] == "INV-000001"


def test_lines_are_summed_up_to_the_level_that_the_customer_should_see(desk):
    rates = [{"cost_plus": {"markup": "30%"}}, {"meter": "api_calls", "per_unit": "0.01"}]
    desk.sell(rates=rates, fees=[{"title": "Fee", "amount": "3"}], included=[{"quantity": 400}])
    desk.plans.subscribe("acme", "standard", start=datetime(2026, 11, 16, tzinfo=UTC))
    desk.ledger.record([call(1), call(2, model="gpt-5-mini")])
    invoice = draft(desk)

    def shown(level):
        return [(line.title, line.quantity, str(line.amount)) for line in invoice.collapsed(level)]

    fees = [("Fee", None, "1.50"), ("Fee", None, "1.50")]
    assert shown("model") == [
        ("gpt-5", 1100, "0.00"), ("gpt-5-mini", 1100, "0.00"), ("gpt-5, included", -200, "0.00"),
        ("API calls", 2, "0.02"), *fees,
    ]  # fmt: skip
    assert shown("meter") == [
        ("LLM tokens", 2200, "0.00"), ("LLM tokens, included", -200, "0.00"), ("API calls", 2, "0.02"), *fees
    ]  # fmt: skip
    assert shown("total") == [("Usage", None, "0.02"), ("Included usage", None, "0.00"), *fees]
    assert sum(line.amount for line in invoice.collapsed("total")) == invoice.total
