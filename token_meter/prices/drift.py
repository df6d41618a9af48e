"""Where the book and a second source state different prices: an alarm for a human, never a correction.

Only what both state is compared, and only for providers that sell their own models. What one of them lacks is coverage:
it is counted. A disagreement that a human has looked at does not come back until one of the two amounts changes.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from token_meter.money import EXACT, plain
from token_meter.prices.book import PriceBook
from token_meter.prices.price import Context, Price
from token_meter.prices.stated import SecondSource, in_force, is_direct, second_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One price of which the two state different amounts (US dollars per million units)."""

    provider: str
    model: str
    token_type: str
    context: Context
    above: int | None
    ours: Decimal
    theirs: Decimal
    source: str
    second: str

    @property
    def id(self) -> str:
        """Names the pair with both its values: when one of them changes it is another disagreement."""
        facts = [
            self.provider, self.model, self.token_type, self.context, self.above, plain(self.ours), plain(self.theirs),
        ]  # fmt: skip
        return "drf_" + blake2b(json.dumps(facts).encode(), digest_size=6).hexdigest()

    @property
    def ratio(self) -> Decimal:
        """How many times ours theirs is."""
        return EXACT.divide(self.theirs, self.ours) if self.ours else Decimal("Infinity")

    def to_json(self) -> dict[str, Any]:
        """For programs: amounts as text."""
        return {
            "id": self.id,
            "provider": self.provider,
            "model": self.model,
            "token_type": self.token_type,
            "context": dict(self.context),
            "above_context_tokens": self.above,
            "ours_per_million": plain(self.ours),
            "theirs_per_million": plain(self.theirs),
            "source": self.source,
            "second_source": self.second,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing: `adjudicated` are disagreements that were looked at before.

    `agreed` prices are the same; `only_book` and `only_second` count those that one of the two does not state.
    """

    disagreements: tuple[Disagreement, ...]
    adjudicated: tuple[Disagreement, ...]
    agreed: int
    only_book: int
    only_second: int


def drift(
    book: PriceBook, second: SecondSource, *, at: datetime, adjudicated: Collection[str] = ()
) -> list[Disagreement]:
    """Where the two disagree at a moment, without what was adjudicated (by its id)."""
    return list(compare(book, second, at=at, adjudicated=adjudicated).disagreements)


def compare(book: PriceBook, second: SecondSource, *, at: datetime, adjudicated: Collection[str] = ()) -> Comparison:
    """The same with what agrees and what only one of the two states."""
    found: list[Disagreement] = []
    agreed = only_book = 0
    ours = list(_direct_prices(book, at))
    for price in ours:
        mine, theirs = price.per_million, second.amount(price)
        assert mine is not None
        if theirs is None:
            only_book += 1
        elif theirs == mine:
            agreed += 1
        else:
            found.append(_disagreement(price, mine, theirs, second.name))
    known = {second_key(price) for price in ours}
    direct = {price.provider for price in ours}
    only_second = sum(1 for key in second.amounts if key.provider in direct and key not in known)
    return Comparison(
        disagreements=tuple(each for each in found if each.id not in adjudicated),
        adjudicated=tuple(each for each in found if each.id in adjudicated),
        agreed=agreed,
        only_book=only_book,
        only_second=only_second,
    )


def _direct_prices(book: PriceBook, at: datetime) -> list[Price]:
    """What the book states at list price. An operator's own prices are no claim about the provider's."""
    return [
        price
        for model in book.with_overrides(None).models()
        if is_direct(model)
        for price in in_force(model.prices, at).values()
        if price.daily is None and price.amount is not None
    ]


def _disagreement(price: Price, ours: Decimal, theirs: Decimal, second: str) -> Disagreement:
    return Disagreement(
        provider=price.provider,
        model=price.model,
        token_type=price.token_type,
        context=price.context,
        above=price.above,
        ours=ours,
        theirs=theirs,
        source=price.source,
        second=second,
    )
