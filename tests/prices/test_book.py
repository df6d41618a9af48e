"""The price book: which price holds, what has none and why, and that nothing is guessed."""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_meter.errors import InvalidPrices
from token_meter.prices import Price, PriceBook
from token_meter.prices.genai import ModelPrices
from token_meter.prices.names import spellings
from token_meter.prices.shipped import BYTES_MAX, FILE, ShippedBook, pack
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES

AT = datetime(2026, 11, 15, 12, tzinfo=UTC)
BOOK = PriceBook.load()


def cost(usage, *, model="gpt-5.6-sol", provider="openai", at=AT, book=BOOK, **more):
    return book.cost(provider=provider, model=model, usage=usage, at=at, **more)


def priced(**fields):
    """One row: a dollar per million input tokens of acme/one, unless told otherwise."""
    usual = {"provider": "acme", "model": "one", "token_type": "input", "amount": Decimal(1), "per": 1_000_000}
    return Price(**{**usual, "source": "test", "recorded_at": datetime(2026, 1, 1, tzinfo=UTC), **fields})


def book_of(*prices):
    models = {}
    for price in prices:
        models.setdefault(
            (price.provider, price.model), ModelPrices(price.provider, price.model, None, ())
        ).prices.append(price)
    return PriceBook(ShippedBook(pack(list(models.values()), made="2026-01-01", fallbacks={}, names={}, factors=[])))


def rate(book, tokens, *, at=AT, **more):
    return cost({"input": tokens}, provider="acme", model="one", book=book, at=at, **more).lines[0].rate


@pytest.mark.parametrize(
    ("inclusive", "tokens", "dear"), [(False, 200, False), (False, 201, True), (True, 199, False), (True, 200, True)]
)
def test_the_whole_request_flips_behind_a_threshold(inclusive, tokens, dear):
    book = book_of(priced(), priced(amount=Decimal(2), above=200, inclusive=inclusive))

    assert rate(book, tokens) == (Decimal("0.000002") if dear else Decimal("0.000001"))


def test_the_context_that_the_event_tells_counts_before_the_sum_of_its_tokens():
    book = book_of(priced(), priced(amount=Decimal(2), above=200))

    assert rate(book, 300, context={"context_tokens": 100}) == Decimal("0.000001")
    assert rate(book, 3, context={"context_tokens": 201}) == Decimal("0.000002")


def test_prices_hold_from_their_date_on_in_utc():
    change = datetime(2026, 6, 1, tzinfo=UTC)
    book = book_of(priced(effective_to=change), priced(amount=Decimal(3), effective_from=change))

    assert rate(book, 1, at=change - timedelta(microseconds=1)) == Decimal("0.000001")
    assert rate(book, 1, at=change) == Decimal("0.000003")
    assert rate(book, 1, at="2026-05-31T20:30:00-04:00") == Decimal("0.000003")


def test_a_daily_window_goes_before_the_price_of_the_day():
    book = book_of(priced(), priced(amount=Decimal(2), daily=(60, 240)))

    rates = [
        rate(book, 1, at=AT.replace(hour=hour, minute=minute)) for hour, minute in [(0, 59), (1, 0), (3, 59), (4, 0)]
    ]
    assert rates == [Decimal("0.000001"), Decimal("0.000002"), Decimal("0.000002"), Decimal("0.000001")]


def test_the_row_that_was_recorded_last_corrects_one_of_the_same_date():
    later = priced(amount=Decimal(7), recorded_at=AT)
    book = book_of(priced())

    assert rate(book.with_rows([later]), 1) == Decimal("0.000007")
    assert rate(book.with_rows([later]).known_at(AT - timedelta(days=1)), 1) == Decimal("0.000001")


@pytest.mark.parametrize("status", ["held", "rejected"])
def test_rows_that_wait_or_were_rejected_do_not_count(status):
    assert rate(book_of(priced()).with_rows([priced(amount=Decimal(7), recorded_at=AT, status=status)]), 1) == Decimal(
        "0.000001"
    )


def test_a_row_without_an_amount_ends_a_price():
    book = book_of(priced()).with_rows([priced(amount=None, effective_from=AT, recorded_at=AT)])

    assert (rate(book, 1, at=AT - timedelta(hours=1)), rate(book, 1)) == (Decimal("0.000001"), None)


@pytest.mark.parametrize(
    "context", [{}, {"service_tier": "default"}, {"service_tier": "standard", "speed": "standard"}, {"geo": "global"}]
)
def test_the_standard_has_many_names(context):
    assert cost({"input": 1_000_000}, context=context).amount == Decimal(8)


@pytest.mark.parametrize(
    ("context", "amount"),
    [
        ({"service_tier": "flex"}, Decimal(4)),
        ({"service_tier": "priority"}, Decimal(16)),
        ({"batch": True}, Decimal(4)),
        ({"processing": "batch", "service_tier": "default"}, Decimal(4)),
        ({"geo": "us"}, Decimal("8.8")),
        ({"batch": True, "geo": "eu"}, Decimal("4.4")),
    ],
)
def test_a_context_has_its_own_price(context, amount):
    assert cost({"input": 1_000_000}, context=context).amount == amount


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"context": {"service_tier": "ultra"}}, "no price of openai/gpt-5.6-sol for service_tier=ultra"),
        (
            {"context": {"service_tier": "flex"}, "at": "2026-10-01"},
            "for service_tier=flex from 2026-08-21 until 2026-10-12",
        ),
        ({"context": {"geo": "mars"}}, "for geo=mars"),
        ({"provider": "azure", "context": {"batch": True}}, "stands for standard requests to azure only"),
        ({"model": "gpt-5.6-soll"}, "unknown model 'gpt-5.6-soll' of openai (did you mean gpt-5.6-sol?"),
        ({"model": None}, "the event names no model"),
        ({"provider": "nobody"}, "unknown provider 'nobody'"),
    ],
)
def test_what_nobody_states_has_no_price_and_says_why(more, said):
    found = cost({"input": 10}, **more)

    assert (found.amount, found.status) == (None, "unpriced")
    assert said in found.lines[0].reason


def test_one_type_without_a_price_leaves_the_others_priced():
    found = cost({"input": 100_000, "output_audio": 5})

    assert found.amount is None
    assert [(line.token_type, line.amount) for line in found.lines] == [
        ("input", Decimal("0.4")),
        ("output_audio", None),
    ]


def test_reasoning_is_billed_as_output_and_pictures_as_input():
    assert cost({"reasoning": 1_000_000}).amount == cost({"output": 1_000_000}).amount == Decimal(20)
    assert cost({"input_image": 1_000}).amount == cost({"input": 1_000}).amount


def test_the_model_that_answered_is_looked_up_first_then_the_one_requested():
    assert cost({"input": 1_000_000}, model="gpt-5", model_requested="gpt-5.6-sol").amount == Decimal("1.25")
    assert cost({"input": 1_000_000}, model=None, model_requested="gpt-5").amount == Decimal("1.25")


@pytest.mark.parametrize(
    ("provider", "name", "found"),
    [
        ("openai", "gpt-5-2025-08-07", "gpt-5"),
        ("openai", "GPT-5", "gpt-5"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::abc", "ft:gpt-4o-mini"),
        ("openai", "ft:gpt-4.1-2025-04-14:acme::abc", "ft:gpt-4.1"),
        ("anthropic", "claude-opus-4-5-20251101", "claude-opus-4-5"),
        ("anthropic", "claude-opus-5-latest", "claude-opus-5"),
        ("vertex", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("google", "models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("vertex", "projects/p/locations/l/publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("bedrock", "us.meta.llama3-3-70b-instruct-v1:0", "meta.llama3-3-70b-instruct-v1:0"),
        ("bedrock", "global.anthropic.claude-opus-5-v1:0", "global.anthropic.claude-opus-5"),
        ("bedrock", "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-haiku-4-5-20251001-v1:0",
         "anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("xai", "grok-4.5", "grok-4.5"),
        ("openai", "gpt-5.5-mini", None),
        ("anthropic", "claude-opus-5-6", None),
        ("azure", "my-prod-deployment", None),
        ("openai", "ft:gpt-5:acme::abc", None),
    ],
)  # fmt: skip
def test_names_that_mean_a_model_and_names_that_only_look_like_one(provider, name, found):
    model = BOOK.find(provider, name)

    assert (model.id if model else None) == found


def test_a_fine_tuned_model_is_never_priced_as_its_base():
    assert spellings("ft:gpt-4o-2024-08-06:acme::x") == (
        "ft:gpt-4o-2024-08-06:acme::x",
        "ft:gpt-4o-2024-08-06",
        "ft:gpt-4o",
    )


@pytest.mark.parametrize(
    ("usage", "error"),
    [({"input": -1}, ValueError), ({"input": 1.5}, TypeError), ({"input": float("nan")}, TypeError), ({"input": True}, TypeError),
     ({"tokens": 1}, ValueError), ({"input": 2**63}, ValueError)],
)  # fmt: skip
def test_quantities_that_are_none_are_refused(usage, error):
    with pytest.raises(error):
        cost(usage)


def test_the_version_names_the_content():
    one, other = PriceBook.load(), PriceBook.load()

    assert one.version == other.version == BOOK.version
    assert len({one.version, one.with_rows([priced()]).version, PriceBook.load({"discounts": []}).version}) == 3
    assert one.with_rows([priced()]).version == one.with_rows([priced()]).version


quantities = st.dictionaries(
    st.sampled_from(["input", "output", "cache_read", "reasoning", "web_search"]), st.integers(0, QUANTITY_MAX)
)


@given(quantities)
def test_a_cost_is_exact_and_the_sum_of_its_lines(usage):
    found = cost(usage, model="gpt-5")

    exact = sum((Fraction(line.quantity) * Fraction(line.rate) for line in found.lines), Fraction(0))
    assert Fraction(found.amount) == exact == sum((Fraction(line.amount) for line in found.lines), Fraction(0))


def test_the_shipped_book_is_small_and_every_row_of_it_is_a_price():
    count = 0
    for model in BOOK.models():
        for price in model.prices:
            count += 1
            assert price.token_type in TOKEN_TYPES and price.source and (price.amount is None or price.amount >= 0)
            assert (
                price.effective_to is None or price.effective_from is None or price.effective_from < price.effective_to
            )
            assert Price.from_json(price.to_json()) == price
    assert count > 7_000
    assert FILE.stat().st_size < BYTES_MAX
    assert gzip.decompress(FILE.read_bytes()).count(b"\n") == len(BOOK.providers()) - 0


def test_what_is_packed_reads_back():
    rows = [
        priced(),
        priced(amount=Decimal("0.00000001"), above=200_000, inclusive=True, context=(("batch", "yes"),)),
        priced(token_type="output", daily=(60, 240), effective_from=datetime(2026, 1, 1, tzinfo=UTC), effective_to=AT.replace(hour=0)),
    ]  # fmt: skip
    book = book_of(*rows)

    assert sorted(book.model("acme", "one").prices, key=repr) == sorted(rows, key=repr)


def test_asking_for_a_price_loads_no_pydantic_and_no_yaml():
    code = (
        "import sys; from token_meter.prices import PriceBook; "
        "PriceBook.load().cost(provider='openai', model='gpt-5', usage={'input': 1}, at='2026-11-15'); "
        "print([name for name in ('pydantic', 'yaml', 'requests', 'sqlalchemy') if name in sys.modules])"
    )

    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"


# The operator's own prices


def test_own_prices_go_before_the_book_type_by_type(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text(
        "models:\n"
        "  - {provider: openai, model: gpt-5, prices: {input: 1}, effective_from: 2026-11-01}\n"
        "  - {provider: ollama, model: llama3, free: true}\n"
        "  - {provider: eu-cloud, model: m, currency: EUR, prices: {input: 2}}\n"
        "aliases:\n"
        "  - {provider: azure, model: my-prod-deployment, is: gpt-5, of: openai}\n"
        "discounts:\n"
        '  - {provider: anthropic, model: "claude-*", list_multiplier: 0.9}\n'
        "exchange:\n"
        "  - {currency: EUR, rate: 1.10, effective_from: 2026-11-10}\n",
        "utf-8",
    )
    book = PriceBook.load(file)

    assert cost({"input": 1_000_000, "output": 1_000_000}, model="gpt-5", book=book).amount == Decimal(11)
    assert cost({"input": 1_000_000}, model="gpt-5", at="2026-10-31", book=book).amount == Decimal("1.25")
    assert cost({"input": 5, "web_search": 3}, provider="ollama", model="llama3", book=book).amount == 0
    assert cost({"input": 1_000_000}, provider="azure", model="my-prod-deployment", book=book).amount == Decimal(1)
    assert cost(
        {"input": 1_000_000}, provider="anthropic", model="claude-opus-5", context={"geo": "us"}, book=book
    ).amount == Decimal("4.95")
    assert cost({"input": 1_000_000}, provider="eu-cloud", model="m", book=book).amount == Decimal("2.2")
    assert (
        "no exchange rate from EUR to USD"
        in cost({"input": 1}, provider="eu-cloud", model="m", at="2026-11-09", book=book).lines[0].reason
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n  - {provider: a, model: b, prices: {inptu: 1}}\n", "prices.yaml:2: models.0.prices: 'inptu' is no token type"),
        ("models:\n  - provider: a\n    model: b\n", "prices.yaml:2: models.0: give either prices or `free: true`"),
        ("discounts:\n  - {provider: a, list_multiplier: -1}\n", "prices.yaml:2: discounts.0.list_multiplier: a multiplier must be"),
        ("modles: []\n", "prices.yaml:1: modles: is no field here; did you mean 'models'?"),
        ("models: [\n", "prices.yaml:2"),
        ("exchange:\n  - {currency: EURO, rate: 1}\n", "is no currency"),
        ("models:\n  - {provider: a, model: b, free: true, effective_from: 2026-11-01T10:30}\n", "prices change at whole hours"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_names_line_and_field(tmp_path, text, said):
    file = tmp_path / "prices.yaml"
    file.write_text(text, "utf-8")

    with pytest.raises(InvalidPrices) as told:
        PriceBook.load(file)

    assert said in str(told.value)


def own(*models, **more):
    """The shipped book with own prices."""
    return PriceBook.load({"models": list(models), **more})


MILLION = {"input": 1_000_000}


def test_an_own_price_counts_only_while_it_holds():
    book = own(
        {"provider": "openai", "model": "gpt-5", "prices": {"input": 1}, "effective_from": "2026-11-01",
         "effective_to": "2026-12-01"}
    )  # fmt: skip

    amounts = [
        cost(MILLION, model="gpt-5", at=at, book=book).amount for at in ("2026-10-31", "2026-11-01", "2026-12-01")
    ]
    assert amounts == [Decimal("1.25"), Decimal(1), Decimal("1.25")]


def test_an_own_price_for_long_requests_leaves_short_ones_alone():
    book = own({"provider": "openai", "model": "gpt-5", "prices": {"input": 3}, "above_context_tokens": 2_000_000})

    assert [cost({"input": n}, model="gpt-5", book=book).amount for n in (1_000_000, 3_000_000)] == [
        Decimal("1.25"), Decimal(9),
    ]  # fmt: skip


def test_other_capitals_are_the_same_model():
    book = own({"provider": "openai", "model": "GPT-5", "prices": {"input": 1}},
               discounts=[{"provider": "openai", "model": "GPT-5-Mini-2025-08-07", "list_multiplier": "0.5"}])  # fmt: skip

    assert cost({**MILLION, "output": 1_000_000}, model="gpt-5", book=book).amount == 11
    assert cost(MILLION, model="gpt-5-mini", book=book).amount == Decimal("0.125")
    assert book.doubts() == []


def test_what_is_free_is_free_in_any_context():
    book = own({"provider": "ollama", "model": "llama3", "free": True})

    for context in ({"service_tier": "flex"}, {"geo": "eu"}, {"batch": True}):
        assert cost(MILLION, provider="ollama", model="llama3", context=context, book=book).amount == 0


def test_a_discount_is_of_the_provider_that_bills():
    book = own(discounts=[{"provider": "openai", "model": "*", "list_multiplier": "0.5"},
                          {"provider": "azure", "model": "gpt-5-mini", "list_multiplier": "0.8"}])  # fmt: skip

    costs = {
        (provider, model): cost(MILLION, provider=provider, model=model, book=book).amount
        for provider in ("openai", "azure")
        for model in ("gpt-5", "gpt-5-mini")
    }
    assert costs == {
        ("openai", "gpt-5"): Decimal("0.625"), ("openai", "gpt-5-mini"): Decimal("0.125"),
        ("azure", "gpt-5"): Decimal("1.25"), ("azure", "gpt-5-mini"): Decimal("0.2"),
    }  # fmt: skip


def test_a_deployment_with_a_price_of_its_own_goes_before_the_model_that_answers():
    book = own({"provider": "azure", "model": "ptu", "free": True},
               aliases=[{"provider": "azure", "model": "prod", "is": "gpt-5"}])  # fmt: skip

    def azure(requested):
        return cost(MILLION, provider="azure", model="gpt-4o-2024-11-20", model_requested=requested, book=book).amount

    assert (azure("ptu"), azure("prod"), azure(None)) == (0, Decimal("2.5"), Decimal("2.5"))


def test_overrides_without_effect_are_doubted():
    book = own(discounts=[{"provider": "opnai", "list_multiplier": "0.5"},
                          {"provider": "openai", "model": "gpt-5-maxi", "list_multiplier": "0.5"},
                          {"provider": "azure", "model": "gpt-5", "list_multiplier": "0.5"},
                          {"provider": "openai", "model": "gpt-*", "list_multiplier": "0.5"}])  # fmt: skip

    assert book.doubts() == [
        "the discount for opnai/* applies to nothing: the price book has no provider 'opnai'. Did you mean 'openai'?",
        "the discount for openai/gpt-5-maxi applies to nothing: the price book has no such model. "
        "Did you mean 'gpt-5-mini'?",
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"models": [{"provider": "a", "model": "b", "prices": {"input": 1}},
                     {"provider": "A", "model": "B", "prices": {"input": 2}}]}, "more than one model for B"),
        ({"discounts": [{"provider": "openai", "list_multiplier": "0.5"}] * 2}, "more than one discount"),
        ({"aliases": [{"provider": "azure", "model": "x", "is": "gpt-5"}] * 2}, "more than one alias for x"),
        ({"exchange": [{"currency": "EUR", "rate": 1}] * 2}, "more than one exchange rate for EUR"),
        ({"exchange": [{"currency": "EUR", "rate": 0}]}, "must be above 0"),
        ({"discounts": [{"provider": "openai", "list_multiplier": 0}]}, "write `free: true`"),
        ({"models": [{"provider": "a", "model": "b", "prices": {"input": 1}, "context": {"batchh": True}}]},
         "'batchh' is no context of a price"),
        ({"models": [{"provider": "a", "model": "b", "prices": {"input": 1}, "context": {"geo": "eu"}}]},
         "belongs under `geo`"),
        ({"models": [{"provider": "a", "model": "b\x1b[2J", "prices": {"input": 1}}]}, "is no name"),
    ],
)  # fmt: skip
def test_overrides_that_cannot_be_meant_are_refused(wrong, said):
    with pytest.raises(InvalidPrices, match=said):
        PriceBook.load(wrong)


@pytest.mark.parametrize("yes", [True, 1, "true", "yes", "1", "Batch"])
def test_a_batch_is_a_batch_however_it_is_said(yes):
    assert cost(MILLION, model="gpt-5", context={"batch": yes}).amount == Decimal("0.625")


@pytest.mark.parametrize(
    "context", [{"batch": "sometimes"}, {"batch": 2}, {"service_tier": 5}, {"speed": ["fast"]}, {"geo": 7}]
)
def test_a_context_that_nobody_knows_is_not_the_standard(context):
    assert cost(MILLION, model="gpt-5", context=context).amount is None


@pytest.mark.parametrize(
    ("provider", "name"),
    [("aws", "amazon.nova-pro-v2:0"), ("aws", "amazon.titan-embed-text-v3"), ("openai", "gpt-5-v9")],
)
def test_another_version_is_another_model(provider, name):
    assert BOOK.find(provider, name) is None


def test_what_is_charged_by_the_request_too_has_no_price():
    assert cost({"input": 100}, provider="perplexity", model="sonar-pro").amount is None


def test_the_book_as_it_was_known_follows_every_decision():
    days = [AT + timedelta(days=day) for day in range(4)]
    row = priced(model="two", amount=Decimal(5), recorded_at=days[1])
    book = book_of(priced(model="two")).with_rows(
        [row, replace(row, status="rejected", recorded_at=days[2]), replace(row, recorded_at=days[3])]
    )

    known = [book.known_at(day).cost(provider="acme", model="two", usage=MILLION, at=AT).amount for day in days]
    assert known == [1, 5, 1, 5]


def test_a_model_that_came_with_other_names_is_found_by_them():
    book = BOOK.with_rows([priced(provider="openai", model="gpt-9", aliases=("gpt-nine",))])

    assert cost(MILLION, model="GPT-Nine", book=book).amount == 1
