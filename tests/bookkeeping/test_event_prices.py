"""Prices of single events, and Lago's price mode: Lago bills exactly what the ledger charges."""

from __future__ import annotations

from decimal import Decimal

import pytest
import requests

from tests.bookkeeping.kit import call
from token_meter.bookkeeping.event_prices import EventPrices
from token_meter.errors import Rejected
from token_meter.sinks import LagoSink
from token_meter.testing.backends import FakeLago
from token_meter.usage import Usage

KEY = "lago-secret-key"


@pytest.fixture
def prices(small_desk):
    small_desk.sell(rates=[{"cost_plus": {"markup": "30%"}}, {"meter": "api_calls", "per_unit": "0.01"}])
    found = EventPrices(small_desk.ledger.file)
    yield found
    found.close()


def test_an_event_is_priced_by_plan_and_book(prices):
    event = call(1, usage=Usage(input=1_000_000, output=100_000))

    assert prices.charge(event, ("input", "output")) == Decimal("2.925")
    assert prices.charge(event, ()) == Decimal("0.01")
    assert (prices.cost(event), prices.cost_text(event)) == (Decimal("2.25"), "2.25")
    assert prices.charge(call(2, model="gpt-9"), ("input",)) is None
    assert prices.cost_text(call(2, model="gpt-9")) is None


def test_lago_is_told_what_is_charged_and_what_has_no_price_is_refused(prices):
    with FakeLago(key=KEY, subscriptions={"sub_1": "acme"}) as lago:
        sink = LagoSink(KEY, base_url=lago.url, customers={"acme": "sub_1"}, price=prices.charge)

        with pytest.raises(Rejected, match="there is no price for input of gpt-9 yet"):
            sink.send([call(1, usage=Usage(input=1_000_000)), call(2, model="gpt-9", usage=Usage(input=5))])
        sink.close()

        listed = requests.get(
            f"{lago.url}/api/v1/events", headers={"Authorization": f"Bearer {KEY}"}, timeout=10
        ).json()
    told = [
        (each["code"], each["properties"]["value"], each["precise_total_amount_cents"]) for each in listed["events"]
    ]
    assert told == [("llm_input_tokens", "1000000", "162.5")]
