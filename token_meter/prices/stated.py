"""What somebody states at a moment: the book, a feed, or a second source that prices are held against.

A second source is never billed by. It says whether a change is likely (`merge`) and where two disagree (`drift`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from token_meter.errors import InvalidPrices
from token_meter.money import EXACT, decimal_of
from token_meter.prices.genai import CACHE_WRITE_DEFAULT, CACHE_WRITE_TYPES, Feed
from token_meter.prices.model import BILLED_AS, Model
from token_meter.prices.names import provider_named
from token_meter.prices.price import STANDARD, Context, Price

_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_MILLION: Final = Decimal(1_000_000)


class PriceKey(NamedTuple):
    """What one price of a model is for: two rows with the same key cannot hold at the same moment."""

    token_type: str
    context: Context
    above: int | None
    inclusive: bool
    daily: tuple[int, int] | None


def key_of(price: Price) -> PriceKey:
    """What a row is for."""
    return PriceKey(price.token_type, price.context, price.above, price.inclusive, price.daily)


def in_force(prices: Iterable[Price], at: datetime) -> dict[PriceKey, Price]:
    """Of each key the active row that holds at a moment, those that end a price (amount None) too.

    Daily windows are keys of their own, whatever the time of day is.
    """
    found: dict[PriceKey, Price] = {}
    for price in prices:
        if price.status != "active" or not _covers(price, at):
            continue
        key = key_of(price)
        if key not in found or _since(price) >= _since(found[key]):
            found[key] = price
    return found


def billed(found: Mapping[PriceKey, Price], key: PriceKey) -> Price | None:
    """By which row a key is billed: its own, or the one that stands in for it.

    A model without a step for long contexts bills them at the step below, reasoning is billed as output, and a context
    that has prices falls back to the standard for what it has none of: the same rules as `Model.ladder`.
    """
    own = found.get(key)
    if own is not None and own.amount is not None:
        return own
    stated = [price for price in found.values() if price.daily is None and price.amount is not None]
    known = any(price.context == key.context for price in stated)
    for token_type in (key.token_type, BILLED_AS.get(key.token_type)):
        for context in (key.context, STANDARD) if known else (key.context,):
            steps = [
                price
                for price in stated
                if price.token_type == token_type
                and price.context == context
                and (price.above or 0) <= (key.above or 0)
            ]
            if steps:
                return max(steps, key=lambda each: each.above or 0)
    return None


def is_direct(model: Model | Price) -> bool:
    """Whether the provider sells its own model. What resellers and clouds charge differs from source to source."""
    return model.publisher is not None and provider_named(model.publisher) == model.provider


def _covers(price: Price, at: datetime) -> bool:
    started = price.effective_from is None or price.effective_from <= at
    return started and (price.effective_to is None or at < price.effective_to)


def _since(price: Price) -> tuple[datetime, datetime]:
    return (price.effective_from or _EARLIEST, price.recorded_at or _EARLIEST)


class SecondKey(NamedTuple):
    """What a second source states one amount for."""

    provider: str
    model: str
    token_type: str
    context: Context
    above: int | None


class SecondSource:
    """Amounts in US dollars per million units, as somebody else states them. `name` is for messages."""

    def __init__(self, name: str, amounts: Mapping[SecondKey, Decimal]) -> None:
        self.name = name
        self.amounts = amounts

    def amount(self, price: Price) -> Decimal | None:
        """What it states for the same thing as this row; None if it says nothing about it."""
        return self.amounts.get(second_key(price))

    @classmethod
    def of_feed(cls, feed: Feed, *, name: str, at: datetime) -> SecondSource:
        """What a genai-prices feed states at a moment."""
        amounts: dict[SecondKey, Decimal] = {}
        for model in feed.models:
            for price in in_force(model.prices, at).values():
                if price.daily is None and price.per_million is not None:
                    amounts[second_key(price)] = price.per_million
        return cls(name, amounts)

    @classmethod
    def of_litellm(cls, document: Mapping[str, Any], *, name: str) -> SecondSource:
        """What litellm's map of models states, parsed so that no float was made. Raises InvalidPrices for no such map.

        A zero there often means that nobody knew, so a zero states nothing.
        """
        amounts: dict[SecondKey, Decimal] = {}
        for key, entry in document.items():
            if not isinstance(entry, Mapping) or not isinstance(entry.get("litellm_provider"), str):
                continue
            provider = provider_named(entry["litellm_provider"])
            model = key.removeprefix(f"{entry['litellm_provider']}/").lower()
            for (token_type, context, above), amount in _litellm_amounts(key, entry, provider):
                amounts.setdefault(SecondKey(provider, model, token_type, context, above), amount)
        if not amounts:
            raise InvalidPrices(f"{name} is no map of litellm: no entry states a provider and a price")
        return cls(name, amounts)


def second_key(price: Price) -> SecondKey:
    """Where a second source states what this row states."""
    return SecondKey(price.provider, price.model.lower(), price.token_type, price.context, price.above)


_LITELLM: Final = re.compile(
    r"(?P<base>(?:in|out)put_cost_per_token|output_cost_per_reasoning_token|(?:in|out)put_cost_per_audio_token"
    r"|cache_read_input_token_cost|cache_creation_input_token_cost(?:_above_(?:1|12)hr)?)"
    r"(?:_above_(?P<above>\d+)k_tokens)?(?:_(?P<context>batches|flex|priority))?"
)
_LITELLM_TYPES: Final[Mapping[str, str]] = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "cache_creation_input_token_cost_above_12hr": "cache_write_12h",
}
_LITELLM_CONTEXTS: Final[Mapping[str | None, Context]] = {
    None: STANDARD,
    "batches": (("batch", "yes"),),
    "flex": (("service_tier", "flex"),),
    "priority": (("service_tier", "priority"),),
}


def _litellm_amounts(
    key: str, entry: Mapping[str, Any], provider: str
) -> Iterator[tuple[tuple[str, Context, int | None], Decimal]]:
    writes = CACHE_WRITE_TYPES.get(provider, CACHE_WRITE_DEFAULT)[0]
    for name, value in entry.items():
        match = _LITELLM.fullmatch(name)
        if match is None or value is None:
            continue
        try:
            amount = EXACT.multiply(decimal_of(value, f"{key}.{name}"), _MILLION)
        except ValueError as problem:
            raise InvalidPrices(str(problem)) from None
        if amount > 0:
            above = int(match["above"]) * 1_000 if match["above"] else None
            yield (_LITELLM_TYPES.get(match["base"], writes), _LITELLM_CONTEXTS[match["context"]], above), amount
