"""The expected costs that lie beside this repository: exact to the last decimal, and nothing priced that is not known."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path

import pytest

from token_meter.money import EXACT, ZERO
from token_meter.prices import PriceBook
from token_meter.usage import Usage

FOLDER = Path(__file__).parents[2].parent / "shared" / "prices"
CASES = json.loads((FOLDER / "price_cases.json").read_text("utf-8"))["cases"] if FOLDER.exists() else []

needs_cases = pytest.mark.skipif(not FOLDER.exists(), reason="the expected costs do not lie beside this repository")


@pytest.fixture(scope="module")
def book():
    return PriceBook.load()


@needs_cases
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_case_costs_what_it_should(book, case):
    override = case.get("local_override")
    used = PriceBook.load({"discounts": [override]}) if override else book

    cost = used.cost(
        provider=case["provider"],
        model=case["model"],
        usage=case["buckets"],
        at=case["at"],
        context=case["pricing_context"],
    )

    assert cost.status == case["expected_status"]
    if cost.amount is not None:
        assert cost.amount == Decimal(case["expected_cost_usd"])
        assert {line.token_type: line.amount for line in cost.lines} == {
            name: Decimal(part["cost_usd"]) for name, part in case["breakdown"].items()
        }
        assert cost.amount == sum((line.amount for line in cost.lines), Decimal(0))
    else:
        assert all(line.reason for line in cost.unpriced)


@needs_cases
def test_a_real_account_is_rated_to_the_last_digit(book):
    """Three billed days equal our rating; the rest is as the sample says: a day's shift, and amounts without usage."""
    expected = json.loads((FOLDER / "recon_openai_sample.json").read_text("utf-8"))
    rated: dict[str, Decimal] = {}
    with open(FOLDER / "recon_openai_usage.tsv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if not row["model"]:
                continue
            quantities = {
                "input": "input_uncached_tokens",
                "cache_read": "input_cached_tokens",
                "output": "output_tokens",
            }
            usage = Usage({name: int(Decimal(row[column] or 0)) for name, column in quantities.items()})
            cost = book.cost(
                provider="openai", model=row["model"], usage=usage, at=f"{row['start_time_iso'][:10]}T12:00Z"
            )
            day = row["start_time_iso"][:10]
            rated[day] = EXACT.add(rated.get(day, ZERO), cost.amount)
    billed: dict[str, Decimal] = {}
    with open(FOLDER / "recon_openai_costs.tsv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["amount_value"]:
                billed[row["start_time_iso"][:10]] = Decimal(row["amount_value"])

    assert rated == {each["day"]: Decimal(each["rated_usd"]) for each in expected["days"] if Decimal(each["rated_usd"])}
    assert [day for day in rated if rated[day] == billed.get(day)] == ["2025-10-07", "2025-10-10", "2025-10-11"]


PLAIN = [
    ("openai", "gpt-5"), ("openai", "gpt-5-mini"), ("openai", "gpt-4o"), ("openai", "gpt-4o-mini"), ("openai", "o3"),
    ("openai", "gpt-4.1"), ("anthropic", "claude-opus-5"), ("anthropic", "claude-sonnet-4-6"),
    ("anthropic", "claude-haiku-4-5"), ("google", "gemini-2.5-flash"), ("google", "gemini-2.5-flash-lite"),
    ("groq", "llama-3.3-70b-versatile"), ("mistral", "mistral-large-latest"), ("x-ai", "grok-4.3"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "model"), PLAIN)
def test_plain_calls_cost_what_genai_prices_says(book, provider, model):
    """The data is theirs; a difference is a mistake of ours in reading it, or they have changed a price since."""
    theirs = pytest.importorskip("genai_prices")
    at = book.made
    found = theirs.calc_price(
        theirs.Usage(input_tokens=12_345, output_tokens=678),
        model_ref=model,
        provider_id=provider,
        genai_request_timestamp=at,
    )

    ours = book.cost(provider=provider, model=model, usage={"input": 12_345, "output": 678}, at=at)

    assert ours.amount == found.total_price
