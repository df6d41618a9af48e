"""Whether a feed may be compared with the book at all: not if it is empty, only a part of one, or older than the book.

A feed with half of the models, or with the prices of last summer, is well formed: only the book tells that it is old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

from token_meter.errors import InvalidPrices
from token_meter.prices.book import PriceBook
from token_meter.prices.change import is_first_seen
from token_meter.prices.genai import ModelPrices
from token_meter.prices.price import Price
from token_meter.prices.stated import in_force

MODELS_MIN: Final = 20
"""A provider with so many models tells whether a feed is complete."""

MISSING_MAX: Final = Decimal("0.02")
MISSING_ALWAYS: Final = 2
"""Of those a feed may lack this part, and always so many: models that nobody sells any more are taken out."""

NAMED_MAX: Final = 5
"""So many missing models are named in a message."""

FeedModels = Mapping[tuple[str, str], ModelPrices]


def check_feed(book: PriceBook, models: FeedModels, *, now: datetime) -> str:
    """The family of the feed's rows. Raises InvalidPrices, which says why, for a feed that cannot be used."""
    prices = [price for model in models.values() for price in model.prices]
    if not prices:
        raise InvalidPrices("this feed states no prices")
    for price in prices:
        if price.amount is None or price.amount < 0:
            what = f"{price.token_type} of {price.provider}/{price.model}"
            raise InvalidPrices(f"this feed says {price.amount} for {what}: that is no price")
    family = family_of(prices[0])
    known: dict[str, set[str]] = {}
    unknown: list[datetime] = []
    for model in book.models():
        theirs = [price for price in model.prices if family_of(price) == family and price.status != "rejected"]
        if theirs:
            known.setdefault(model.provider, set()).add(model.id)
            unknown.extend(_dates_unknown_to(models.get((model.provider, model.id)), theirs))
    _check_models(known, models)
    _check_age((price.effective_from for price in prices), unknown, now)
    return family


def family_of(price: Price) -> str:
    """The project that a row's source names, without the version: rows of one family follow each other."""
    return price.source.partition(" ")[0]


def _check_models(known: Mapping[str, set[str]], models: FeedModels) -> None:
    for provider, names in known.items():
        missing = sorted(name for name in names if (provider, name) not in models)
        if len(names) >= MODELS_MIN and len(missing) > max(Decimal(MISSING_ALWAYS), MISSING_MAX * len(names)):
            named = ", ".join(missing[:NAMED_MAX]) + (", ..." if len(missing) > NAMED_MAX else "")
            raise InvalidPrices(
                f"this feed lacks {len(missing)} of the {len(names)} models of {provider} that the book has ({named}): "
                "it is older than the book, or only a part of a feed. Prices of your own go into the overrides file"
            )


def _check_age(stated: Iterable[datetime | None], unknown: Sequence[datetime], now: datetime) -> None:
    """A feed that does not know a change later than its own last one is older. Those to come may be cancelled."""
    theirs = max((start for start in stated if start is not None and start <= now), default=None)
    ours = max((start for start in unknown if start <= now), default=None)
    if ours is not None and (theirs is None or theirs < ours):
        said = "states no date" if theirs is None else f"ends with a change of {theirs:%Y-%m-%d}"
        raise InvalidPrices(
            f"this feed {said}, and the book has a change of {ours:%Y-%m-%d} that it does not know: it is older than "
            "the book"
        )


def _dates_unknown_to(model: ModelPrices | None, ours: Sequence[Price]) -> Iterator[datetime]:
    """When a price changed by the book, on a date of the feed's own that was not taken back, and by the feed not.

    What the feed does not state at all tells nothing about its age: that may have been withdrawn.
    """
    for start in {price.effective_from for price in ours if price.effective_from is not None}:
        stated = in_force(model.prices, start) if model is not None else {}
        for key, price in in_force(ours, start).items():
            if price.effective_from != start or is_first_seen(price):
                continue
            theirs = stated.get(key)
            if model is None or (theirs is not None and theirs.rate != price.rate):
                yield start
