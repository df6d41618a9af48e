"""Processes with different versions of the package, and so of the price book, rate alike; a pin outlives an upgrade."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tests.bookkeeping.conftest import NOVEMBER, Desk
from tests.bookkeeping.kit import call
from tests.prices.kit import always, feed_of, model, provider
from token_meter.billing.plans import PlansFile
from token_meter.bookkeeping.notice_rows import read_notices
from token_meter.bookkeeping.rater import LedgerRater
from token_meter.ledger import Ledger
from token_meter.prices.shipped import ShippedBook, pack
from token_meter.usage import Usage

MILLION = Usage(input=1_000_000)


def shipped(made, price, *also):
    """A shipped book of that day with this price of gpt-5's input."""
    feed = feed_of(provider("openai", model("gpt-5", [always(input_mtok=price)]), *also))
    return ShippedBook(pack(feed.models, made=made, fallbacks={}, names={}, factors=()))


OLD = shipped("2026-10-01", "1")
NEW = shipped("2026-11-05", "3", model("gpt-6", [always(input_mtok="7")]))


def opened(url, book):
    return Ledger(url, rater=LedgerRater(shipped=book))


def costs(ledger):
    return {row.group["customer"]: (row.cost, row.charge) for row in ledger.costs(by=("customer",))}


def test_a_book_survives_being_packed():
    assert (again := ShippedBook.unpacked(NEW.packed())).version == NEW.version
    assert again.model("openai", "gpt-5").prices == NEW.model("openai", "gpt-5").prices
    with pytest.raises(OSError, match="Not a gzipped file"):
        ShippedBook.unpacked(b"{}")


def test_all_rate_by_the_newest_book_that_anybody_brought_along(url):
    with opened(url, OLD) as old, opened(url, NEW) as new:
        old.record([call(1, customer="first", usage=MILLION)])
        new.record([call(2, customer="second", usage=MILLION)])
        old.record([call(3, customer="third", usage=MILLION)])
    with opened(url, OLD) as again:
        again.record([call(4, customer="fourth", usage=MILLION)])

        assert {name: cost for name, (cost, _) in costs(again).items()} == {
            "first": 1, "second": 3, "third": 3, "fourth": 3,
        }  # fmt: skip
        with again.reading() as (_, connection):
            (notice,) = read_notices(connection)
    assert (notice["kind"], notice["document"]["changed_models"], notice["document"]["added_models"]) == (
        "price.book", ["openai/gpt-5"], ["openai/gpt-6"],
    )  # fmt: skip


def test_a_rate_card_keeps_its_prices_across_an_upgrade_of_the_package(url):
    cards = [{"name": name, "rates": [{"cost_plus": {"markup": "0"}}], "apply_to": name} for name in ("all", "new")]
    plans = [{"name": name, "rate_cards": [name]} for name in ("all", "new")]
    with opened(url, OLD) as ledger:
        desk = Desk(ledger, datetime(2026, 11, 2, tzinfo=UTC))
        desk.plans.keep(PlansFile.model_validate({"rate_cards": cards, "plans": plans}), effective_from=NOVEMBER.start)
        for name in ("all", "new"):
            desk.plans.subscribe(f"early {name}", name, start=NOVEMBER.start)
        ledger.record([call(1, usage=MILLION)])

    with opened(url, NEW) as ledger:
        ledger.record([call(2, customer="early all", usage=MILLION), call(3, customer="early new", usage=MILLION)])

        found = costs(ledger)
        assert (found["early all"], found["early new"]) == ((Decimal(3), Decimal(3)), (Decimal(3), Decimal(1)))
        assert ledger.rate_again(reason="nothing changed", customer="early new") == 0
