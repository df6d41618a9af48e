"""The rater of a ledger: own prices hold for every process, pins of rate cards, rating again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import select

from tests.bookkeeping.conftest import NOVEMBER
from tests.bookkeeping.kit import START, call, told
from token_meter.bookkeeping.notice_rows import read_notices
from token_meter.bookkeeping.plan_book import touch
from token_meter.bookkeeping.price_rows import write_rows
from token_meter.bookkeeping.rater import LedgerRater, rate_pending
from token_meter.ledger import Ledger
from token_meter.ledger.tables import reratings
from token_meter.usage import Usage

OWN = {"models": [{"provider": "openai", "model": "gpt-9", "prices": {"input": 3}}],
       "discounts": [{"provider": "openai", "model": "gpt-5", "list_multiplier": "0.5"}]}  # fmt: skip


def costs(ledger):
    return {row.group["model"]: row.cost for row in ledger.costs(by=("model",))}


def test_own_prices_that_one_process_is_given_hold_for_all(url):
    with Ledger(url, rater=LedgerRater(OWN)) as one, Ledger(url, rater=LedgerRater()) as other:
        one.record([call(1, usage=Usage(input=1_000_000))])
        other.record([call(2, usage=Usage(input=1_000_000)), call(3, model="gpt-9", usage=Usage(input=1_000_000))])

        assert costs(other) == {"gpt-5": Decimal("1.25"), "gpt-9": Decimal(3)}
        assert other.rate_again(reason="nothing changed") == 0


def test_what_was_recorded_without_a_rater_is_rated_later(url):
    with Ledger(url) as ledger:
        ledger.record([call(number, usage=Usage(input=1_000_000)) for number in range(3)])
        assert (ledger.pending(), costs(ledger)) == (3, {"gpt-5": Decimal(0)})

    with Ledger(url, rater=LedgerRater()) as ledger:
        assert (rate_pending(ledger), rate_pending(ledger), ledger.pending()) == (3, 0, 0)
        assert costs(ledger) == {"gpt-5": Decimal("3.75")}
        assert sum(row.events for row in ledger.usage()) == 3


def test_a_missing_price_is_told_once_for_each_model(desk, caplog):
    desk.ledger.record([call(1, model="gpt-5-min"), call(2, model="gpt-5-min", usage=Usage(input_audio=1))])
    desk.ledger.record([call(3, model="gpt-5-min"), call(4, provider="nowhere", publisher=None), call(5)])
    with Ledger(desk.ledger.url, rater=LedgerRater()) as other:
        other.record([call(6, model="gpt-5-min")])

    with desk.ledger.reading() as (_, connection):
        found = [each for each in read_notices(connection) if each["kind"] == "price.unknown"]
    assert [(each["document"]["provider"], each["document"]["model"]) for each in found] == [
        ("openai", "gpt-5-min"),
        ("nowhere", "gpt-5"),
    ]
    assert found[0]["document"]["customer"] == "acme"
    assert "did you mean gpt-5-mini?" in found[0]["document"]["why"]
    said = [each.getMessage() for each in caplog.records if "no price for openai" in each.getMessage()]
    assert len(said) == 1
    assert "its usage is held" in said[0].lower()


def test_rating_again_keeps_on_record_what_was_before(desk):
    desk.ledger.record([call(1)])

    desk.sell(since=NOVEMBER.start)

    with desk.ledger.reading() as (_, connection):
        (row,) = connection.execute(select(reratings)).all()
    assert (row.event_id, row.reason) == ("evt_1", "default plan standard")
    assert row.before != row.after


def dearer(book, recorded):
    """The input price of gpt-5 doubled, as of November 1."""
    old = next(
        price for price in book.model("openai", "gpt-5").prices if (price.token_type, price.context) == ("input", ())
    )
    return replace(old, amount=old.amount * 2, effective_from=NOVEMBER.start, recorded_at=recorded, source="test")


def sync(desk, when):
    price = dearer(desk.ledger.rater.book_of(desk.ledger), when)
    with desk.ledger.writing() as (_, connection):
        write_rows(connection, [price], recorded=int(when.timestamp() * 1_000_000))
        touch(connection)


def test_a_rate_card_may_keep_the_prices_it_began_with(desk):
    rates = [{"cost_plus": {"markup": "0"}}]
    from token_meter.billing.plans import PlansFile

    cards = [{"name": name, "rates": rates, "apply_to": name} for name in ("all", "new", "hold")]
    plans = [{"name": name, "rate_cards": [name]} for name in ("all", "new", "hold")]
    desk.at = datetime(2026, 11, 2, tzinfo=UTC)
    desk.plans.keep(PlansFile.model_validate({"rate_cards": cards, "plans": plans}), effective_from=NOVEMBER.start)
    for name in ("all", "new", "hold"):
        desk.plans.subscribe(f"early {name}", name, start=NOVEMBER.start)
    sync(desk, datetime(2026, 11, 5, tzinfo=UTC))
    desk.plans.subscribe("late new", "new", start=datetime(2026, 11, 6, tzinfo=UTC))

    customers = ["early all", "early new", "early hold", "late new"]
    desk.ledger.record(
        [call(number, customer=name, usage=Usage(input=1_000_000)) for number, name in enumerate(customers)]
    )

    rows = {row.group["customer"]: (row.cost, row.charge) for row in desk.ledger.costs(by=("customer",))}
    old, new = Decimal("1.25"), Decimal("2.5")
    assert rows == {"early all": (new, new), "early new": (new, old), "early hold": (new, old), "late new": (new, new)}
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)
    from token_meter.bookkeeping.verification import verify

    for invoice in desk.invoices.run(NOVEMBER).written:
        verify(desk.ledger, invoice.number)


def test_a_rate_card_that_keeps_its_prices_charges_new_models_by_their_first_price(desk):
    from token_meter.billing.plans import PlansFile

    rates = [{"cost_plus": {"markup": "30%"}}]
    file = {"rate_cards": [{"name": "c", "rates": rates, "apply_to": "hold"}],
            "plans": [{"name": "p", "rate_cards": ["c"]}]}  # fmt: skip
    desk.at = datetime(2026, 11, 2, tzinfo=UTC)
    desk.plans.keep(PlansFile.model_validate(file), effective_from=NOVEMBER.start)
    desk.plans.set_default("p", effective_from=NOVEMBER.start)
    for day, amount in ((5, 3), (8, 4)):
        price = dearer(desk.ledger.rater.book_of(desk.ledger), None)
        price = replace(price, model="gpt-9", amount=Decimal(amount), source=f"test {day}")
        with desk.ledger.writing() as (_, connection):
            write_rows(connection, [price], recorded=int(datetime(2026, 11, day, tzinfo=UTC).timestamp() * 1_000_000))
            touch(connection)

    desk.ledger.record([call(1, model="gpt-9", usage=Usage(input=1_000_000))])

    (row,) = desk.ledger.costs(by=())
    assert (row.cost, row.charge) == (4, Decimal("3.9"))


def test_whoever_is_subscribed_is_invoiced_also_without_an_event(desk):
    from token_meter.billing.plans import PlansFile

    file = {"plans": [{"name": "pro", "fees": [{"title": "Fee", "amount": "30"}]}]}
    desk.plans.keep(PlansFile.model_validate(file))
    desk.plans.subscribe("quiet", "pro", start=NOVEMBER.start)
    desk.at = datetime(2026, 12, 2, tzinfo=UTC)

    (invoice,) = desk.invoices.run(NOVEMBER).written

    assert (invoice.customer, told(invoice)) == ("quiet", [("fee", "Fee", None, "3E+1", "30.00")])
    assert desk.at > START
