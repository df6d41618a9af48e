"""One model of the book with all its prices, and which of them is in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from token_meter.prices.price import STANDARD, Context, Price

BILLED_AS: Final[Mapping[str, str]] = {
    "reasoning": "output",
    "tool_input": "input",
    "input_document": "input",
    "input_image": "input",
    "input_video": "input",
    "cache_read_image": "cache_read",
    "cache_read_video": "cache_read",
}
"""Token types that providers bill at another's price unless they state one of their own. Audio is not among them: a
model without a price for audio has none, and charging it as text would be wrong in silence."""

_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


class Ladder(NamedTuple):
    """The prices of one token type at one moment, by context size: the standard first, then rising thresholds."""

    steps: tuple[Price, ...]

    def price(self, context_tokens: int) -> Price | None:
        """The price for a request with so many context tokens: the whole request is billed at it."""
        found = None
        for price in self.steps:
            if price.holds_for(context_tokens):
                found = price
        return found


class Model:
    """A provider's model: its names and its prices, whatever their date, context and status.

    `own` are the operator's rows: while one of them holds, it stands in the place of the others for the same token type
    and context, from its threshold on. `free`: they hold in any context.
    """

    def __init__(
        self,
        provider: str,
        id: str,
        display_name: str | None,
        publisher: str | None,
        aliases: Sequence[str],
        prices: Iterable[Price],
        *,
        own: Sequence[Price] = (),
        free: bool = False,
    ) -> None:
        self.provider = provider
        self.id = id
        self.display_name = display_name
        self.publisher = publisher
        self.aliases = tuple(aliases)
        self._own = frozenset(own)
        self._free = free
        self.prices = [*prices, *own]
        self._groups: dict[tuple[str, Context], list[Price]] = {}
        for price in self.prices:
            self._groups.setdefault((price.token_type, price.context), []).append(price)

    def with_prices(self, prices: Iterable[Price], *, without: Set[str] = frozenset()) -> Model:
        """The same model with more rows, and without those of its own with these ids."""
        kept = [price for price in self.prices if price.id not in without] if without else self.prices
        return Model(self.provider, self.id, self.display_name, self.publisher, self.aliases, [*kept, *prices])

    def with_own(self, own: Sequence[Price], *, free: bool) -> Model:
        """The same model with the operator's rows."""
        return Model(
            self.provider, self.id, self.display_name, self.publisher, self.aliases, self.prices, own=own, free=free
        )

    def rise(self, price: Price, at: datetime) -> Price | None:
        """A dearer price of the same thing that would hold at this moment, but waits for a decision."""
        waiting = [
            each
            for each in self._groups.get((price.token_type, price.context), ())
            if each.status == "held" and each.holds_at(at) and each.currency == price.currency
            if (each.above, each.inclusive) == (price.above, price.inclusive)
            if each.rate is not None and price.rate is not None and each.rate > price.rate
        ]
        return max(waiting, key=_precedence, default=None)

    def ladder(self, token_type: str, context: Context, at: datetime) -> Ladder | None:
        """The prices of a token type in this context at this moment; None where the book states none.

        In a context that the model has prices for, what has none of its own there keeps the standard price. A context
        without any price (a service tier never seen, a batch before batches were priced) has none at all.
        """
        for name in (token_type, BILLED_AS.get(token_type)):
            if name is None:
                continue
            found = self._ladder(name, context, at)
            if found is None and context != STANDARD and (self._free or self._knows(context, at)):
                found = self._ladder(name, STANDARD, at)
            if found is not None:
                return found
        return None

    def _holding(self, group: Iterable[Price], at: datetime) -> list[Price]:
        """The rows of one token type and context that hold at a moment, without those that own rows stand in for."""
        holding = [price for price in group if price.status == "active" and price.holds_at(at)]
        floor = min((price.above or 0 for price in holding if price in self._own), default=None) if self._own else None
        if floor is None:
            return holding
        return [price for price in holding if price in self._own or (price.above or 0) < floor]

    def holding(self, at: datetime) -> list[Price]:
        """Every row that counts at a moment; of those with one key the one that began last counts."""
        return [price for group in self._groups.values() for price in self._holding(group, at)]

    def contexts(self, at: datetime) -> list[Context]:
        """The contexts that have prices at this moment."""
        return sorted({context for _, context in self._groups if self._knows(context, at)})

    def _knows(self, context: Context, at: datetime) -> bool:
        return any(
            self._ladder(token_type, each, at) is not None for token_type, each in self._groups if each == context
        )

    def _ladder(self, token_type: str, context: Context, at: datetime) -> Ladder | None:
        """For each threshold the row that began last, of those the one recorded last; a daily window goes first."""
        best: dict[tuple[int, bool], Price] = {}
        for price in self._holding(self._groups.get((token_type, context), ()), at):
            key = (price.above or 0, price.inclusive)
            if key not in best or _precedence(price) >= _precedence(best[key]):
                best[key] = price
        steps = sorted((price for price in best.values() if price.amount is not None), key=lambda each: each.above or 0)
        return Ladder(tuple(steps)) if steps else None

    def changes(self) -> Iterator[datetime]:
        """The moments at which something may change, daily windows aside."""
        for price in self.prices:
            if price.effective_from is not None:
                yield price.effective_from
            if price.effective_to is not None:
                yield price.effective_to

    def windows(self) -> set[int]:
        """The minutes of the UTC day at which something changes every day."""
        return {minute for price in self.prices for minute in price.daily or ()}


def _precedence(price: Price) -> tuple[bool, datetime, datetime]:
    return (price.daily is not None, price.effective_from or _EARLIEST, price.recorded_at or _EARLIEST)


def span_around(at: datetime, changes: Iterable[datetime], windows: Iterable[int]) -> tuple[datetime, datetime]:
    """From when until when nothing changes around this moment."""
    start, stop = _EARLIEST, _LATEST
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    daily = [midnight + timedelta(days=day, minutes=minute) for minute in windows for day in (-1, 0, 1)]
    for moment in (*changes, *daily):
        if moment <= at:
            start = max(start, moment)
        else:
            stop = min(stop, moment)
    return start, stop
