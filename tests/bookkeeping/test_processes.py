"""Several processes and one ledger's books: credit is drawn once, numbers have no gaps, months are billed whole."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from tests.bookkeeping.conftest import DECEMBER, LONG_AGO, NOVEMBER
from tests.bookkeeping.worker import CUSTOMERS, numbered
from tests.workers import together, workers
from token_meter.billing.plans import PlansFile
from token_meter.bookkeeping.notice_rows import read_notices
from token_meter.bookkeeping.rater import LedgerRater
from token_meter.bookkeeping.verification import verify
from token_meter.ledger import Ledger
from token_meter.money import total

WORKER = "tests.bookkeeping.worker"
EVERYBODY = [f"customer-{number}" for number in range(CUSTOMERS)]
PRICE = Decimal("0.011")


def cost_of(numbers, customer):
    """What the calls of a customer come to, those without a price aside."""
    mine = [number for number in numbers if numbered(number).customer == customer and number % 50]
    return PRICE * len(mine)


def ready(desk, **plan):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}], **plan)
    desk.at = NOVEMBER.start
    for customer in EVERYBODY:
        desk.credits.grant(customer, "0.50", title="small", expires=DECEMBER.start)
        desk.credits.grant(customer, "5", title="large")


def test_processes_that_record_the_same_calls_draw_credit_once(desk, url):
    ready(desk, credits=[{"amount": "0.25", "priority": 1}])

    with workers(WORKER, *(("record", url, 0, 400, seed) for seed in range(4))) as writers:
        inserted = together(writers)

    assert sum(inserted) == 400
    assert desk.credits.check() == []
    for customer in EVERYBODY:
        left = {grant.title: grant.remaining for grant in desk.credits.grants(customer)}
        drawn = Decimal("5.75") - total(left.values())
        assert drawn == cost_of(range(400), customer)
        assert left.keys() == {"Included with standard", "small", "large"}
        assert left["Included with standard"] == left["small"] == 0
    with desk.ledger.reading() as (_, connection):
        unknown = [each["document"]["model"] for each in read_notices(connection) if each["kind"] == "price.unknown"]
    assert sorted(unknown) == ["unheard-0", "unheard-1", "unheard-2"]


def test_the_first_call_of_a_period_grants_its_credit_once(desk, url):
    desk.sell(rates=[{"cost_plus": {"multiplier": "1"}}], credits=[{"amount": "1"}])
    first = [1, 1 + CUSTOMERS, 1 + 2 * CUSTOMERS, 1 + 3 * CUSTOMERS]

    with workers(WORKER, *(("single", url, number) for number in first)) as writers:
        assert together(writers) == [1] * 4

    assert desk.credits.check() == []
    (granted,) = desk.credits.grants("customer-1")
    assert granted.remaining == 1 - 4 * PRICE


def test_processes_that_close_a_month_while_others_record_bill_each_call_once(desk, url):
    ready(desk, fees=[{"title": "Fee", "amount": "3"}])
    with Ledger(url, rater=LedgerRater()) as ledger:
        ledger.record([numbered(number) for number in range(100)])

    closers = [("run", url, "2026-12-02")] * 3
    late = [("record", url, 0, 300, seed) for seed in range(2)]
    with workers(WORKER, *closers, *late) as started:
        done = together(started)
    desk.at = datetime(2027, 1, 2, tzinfo=UTC)
    desk.invoices.run(DECEMBER)

    assert sorted(number for run in done[:3] for number in run) == [f"INV-{n:06d}" for n in range(1, CUSTOMERS + 1)]
    kept = desk.invoices.list()
    assert sorted(each.invoice.number for each in kept) == [f"INV-{n:06d}" for n in range(1, 2 * CUSTOMERS + 1)]
    assert desk.credits.check() == []
    for customer in EVERYBODY:
        november, december = desk.invoices.list(customer=customer)
        assert (november.invoice.period, december.invoice.period) == (NOVEMBER, DECEMBER)
        lines = [*november.invoice.lines, *december.invoice.lines]
        usage = total(line.exact for line in lines if line.kind in ("usage", "correction"))
        assert usage == cost_of(range(300), customer)
        used = total(line.exact for line in lines if line.kind == "credit")
        left = {grant.title: grant.remaining for grant in desk.credits.grants(customer)}
        assert -used == Decimal("5.50") - total(left.values())
        verify(desk.ledger, november.invoice.number)
        verify(desk.ledger, december.invoice.number)


def test_a_grant_that_several_processes_repeat_is_one(desk, url):
    desk.sell()

    with workers(WORKER, *[("grant", url, "grt_payment_17")] * 4) as granting:
        assert together(granting) == ["grt_payment_17"] * 4

    assert len(desk.credits.grants("customer-1")) == 1
    assert len(desk.credits.journal("customer-1")) == 2
    assert desk.credits.check() == []


def test_only_one_of_several_processes_subscribes_a_customer(desk, url):
    rates = [{"cost_plus": {"markup": "10%"}}]
    plans = {"plans": [{"name": name, "rates": rates} for name in ("one", "two", "three")]}
    desk.plans.keep(PlansFile.model_validate(plans), effective_from=LONG_AGO)

    with workers(WORKER, *(("subscribe", url, plan) for plan in ("one", "two", "three"))) as subscribing:
        assert sorted(together(subscribing)) == [False, False, True]
