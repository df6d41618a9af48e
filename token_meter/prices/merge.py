"""What a price feed would change in the book, and whether each change may happen without a human.

A feed is compared, never put in the book's place: what it no longer states stays, and is told. A change becomes a new
row from its date on. Unlikely ones wait ("held") or are refused, because most price changes beyond a factor of ten
were errors in a feed, and a feed that is older than the book, or a part of one, is refused as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from token_meter.errors import InvalidPrices
from token_meter.prices.book import PriceBook
from token_meter.prices.change import STATUS, Change, Kind, evidence, is_first_seen, reason_of
from token_meter.prices.genai import Feed, ModelPrices
from token_meter.prices.likely import Likely, Verdict
from token_meter.prices.price import Price
from token_meter.prices.stated import PriceKey, SecondSource, billed, in_force, is_direct, key_of

MODELS_MIN: Final = 20
"""A provider with so many models tells whether a feed is complete."""

MISSING_MAX: Final = Decimal("0.02")
"""Of those a feed may lack this part."""

NAMED_MAX: Final = 5
"""So many missing models are named in a message."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What a feed would change.

    `agreed` prices are the same; `lagging` ones the feed still has as they were before the book corrected them.
    """

    changes: tuple[Change, ...]
    agreed: int
    lagging: int

    @property
    def rows(self) -> list[Price]:
        """The rows to be recorded: what is new, whatever came of it."""
        return [each.price for each in self.changes if not each.standing and each.kind != "withdrawn"]

    def with_verdict(self, verdict: Verdict) -> list[Change]:
        """The changes that came to this verdict."""
        return [each for each in self.changes if each.verdict == verdict]


def merge(book: PriceBook, feed: Feed, *, now: datetime, second: SecondSource | None = None) -> Merge:
    """Compare a feed with the book, now and at every later date that either of them names.

    Raises InvalidPrices for a feed that is older than the book, lacks models, states nothing or negative prices.
    """
    base = book.with_overrides(None)  # what the operator says themselves outranks both
    # The feed lists some models twice (a region's among them); the last one counts, as in the shipped book.
    models = {(model.provider, model.model): model for model in feed.models}
    family = _checked(base, models, now)
    counts: Counter[str] = Counter()
    changes: list[Change] = []
    for place in sorted(models):
        changes.extend(_Comparison(_known(base, place), models[place], family, now, second, counts).changes())
    changes.extend(_missing(base, models, family, now))
    return Merge(tuple(changes), counts["agreed"], counts["lagging"])


@dataclass(slots=True)
class _Comparison:
    """One model of a feed held against the book's rows of it."""

    known: Sequence[Price]
    model: ModelPrices
    family: str
    now: datetime
    second: SecondSource | None
    counts: Counter[str]
    made: list[Price] = field(default_factory=list)

    def changes(self) -> Iterator[Change]:
        yield from self._new_keys()
        for moment in sorted({self.now, *self._later()}):
            theirs = in_force(self.model.prices, moment)
            ours = in_force([*self.known, *self.made], moment)
            yield from self._at(moment, theirs, ours)

    def _second(self) -> SecondSource | None:
        """The second source, where it can be believed."""
        return self.second if is_direct(self.model.prices[0]) else None

    def _later(self) -> Iterator[datetime]:
        """When something changes by either of the two. A change that the feed no longer announces is one, too."""
        for price in (*self.model.prices, *(each for each in self.known if self._is_theirs(each))):
            if price.effective_from is not None and price.effective_from > self.now:
                yield price.effective_from

    def _new_keys(self) -> Iterator[Change]:
        """What the book has never stated, nor billed by another row, is taken with the dates that the feed gives."""
        there = {key_of(price) for price in self.known if price.amount is not None}
        ours = in_force(self.known, self.now)
        stated = in_force(self.model.prices, self.now)
        for price in self.model.prices:
            key = key_of(price)
            if key in there or billed(ours, key) is not None:
                continue
            likely = Likely(stated, key, self._second()).of_new(price)
            later = price.effective_from is not None and price.effective_from > self.now
            yield self._proposed("scheduled" if later else "added", price, None, price, likely, first_seen=False)

    def _at(
        self, moment: datetime, theirs: Mapping[PriceKey, Price], ours: Mapping[PriceKey, Price]
    ) -> Iterator[Change]:
        for key, price in theirs.items():
            if self._is_behind(key, price, billed(ours, key)):
                self.counts["lagging"] += moment == self.now
                continue
            yield from self._difference(moment, key, price, price, theirs, ours)
        for key, price in ours.items():
            if key in theirs or price.amount is None or not self._is_theirs(price):
                continue
            instead = billed(theirs, key)
            if instead is not None and (key.above is not None or key.daily is not None):
                # A step for long contexts ends with a row without an amount. A daily window takes the amount beside it,
                # because a window without one would hide the price that holds all day.
                amount = instead.amount if key.daily is not None else None
                start = self._ended_at(key, instead, moment)
                ended = replace(price, amount=amount, effective_from=start, source=instead.source)
                yield from self._difference(moment, key, ended, instead, theirs, ours)
            elif moment == self.now:
                yield _withdrawn(price, "the feed no longer states it")

    def _ended_at(self, key: PriceKey, instead: Price, moment: datetime) -> datetime | None:
        """When the feed says that a price ended: as its own last date, or with a change of the price that stands in."""
        said = [each.effective_to for each in self.model.prices if key_of(each) == key]
        ends = [end for end in said if end is not None and end <= moment]
        if ends:
            return max(ends)
        changed = {each.effective_from for each in self.made if key_of(each) == key_of(instead)}
        return instead.effective_from if instead.effective_from in changed else None

    def _difference(
        self,
        moment: datetime,
        key: PriceKey,
        price: Price,
        new: Price,
        theirs: Mapping[PriceKey, Price],
        ours: Mapping[PriceKey, Price],
    ) -> Iterator[Change]:
        old = billed(ours, key)
        if old is not None and old.rate == new.rate and price.amount is not None:
            self.counts["agreed"] += moment == self.now
            return
        start, first_seen = self._start(moment, price, old)
        row = replace(price, effective_from=start, effective_to=None, recorded_at=self.now)
        kind: Kind = "scheduled" if moment > self.now else "added" if old is None else "changed"
        likely = Likely(theirs, key, self._second() if moment == self.now else None)
        verdict = likely.of_change(new, old, scheduled=moment > self.now)
        yield self._proposed(kind, row, old, new, verdict, first_seen=first_seen)

    def _start(self, moment: datetime, price: Price, old: Price | None) -> tuple[datetime, bool]:
        """The feed's own date, unless that would put the row behind one that holds already."""
        if moment > self.now:
            return moment, False
        stated = price.effective_from
        before = old.effective_from if old is not None else None
        if stated is not None and (before is None or stated >= before):
            return stated, False
        return self.now.replace(minute=0, second=0, microsecond=0), True

    def _proposed(
        self,
        kind: Kind,
        price: Price,
        old: Price | None,
        new: Price,
        likely: tuple[Verdict, str],
        *,
        first_seen: bool,
    ) -> Change:
        # What is proposed here counts as said, so that it is not proposed again for each later date.
        self.made.append(replace(price, status="active", recorded_at=self.now))
        verdict, why = likely
        before = self._proposed_before(price, first_seen)
        if before is not None:
            why = reason_of(before)
            verdict = "held" if before.status == "held" else "refused"
        row = before or replace(
            price,
            status=STATUS[verdict],
            recorded_at=self.now,
            evidence=evidence(first_seen, f"{verdict}: {why}" if why else ""),
        )
        return Change(
            kind=kind, price=row, old=old, new=new, verdict=verdict, why=why, first_seen=first_seen,
            standing=before is not None,
        )  # fmt: skip

    def _proposed_before(self, price: Price, first_seen: bool) -> Price | None:
        """The row that said the same at an earlier sync, and waits or was rejected."""
        same = [
            each
            for each in self.known
            if each.status != "active"
            and key_of(each) == key_of(price)
            and each.amount == price.amount
            and (each.effective_from == price.effective_from or (first_seen and is_first_seen(each)))
        ]
        return same[-1] if same else None

    def _is_behind(self, key: PriceKey, price: Price, current: Price | None) -> bool:
        """Whether the feed still has what the book knew and has replaced from a better source."""
        if current is None or self._is_theirs(current):
            return False
        return any(each.amount == price.amount and self._is_theirs(each) for each in self.known if key_of(each) == key)

    def _is_theirs(self, price: Price) -> bool:
        return _family(price) == self.family


def _known(base: PriceBook, place: tuple[str, str]) -> Sequence[Price]:
    try:
        return base.model(*place).prices
    except KeyError:
        return ()


def _missing(
    base: PriceBook, models: Mapping[tuple[str, str], ModelPrices], family: str, now: datetime
) -> Iterator[Change]:
    """What the book states of models that the feed does not have."""
    for model in base.models():
        if (model.provider, model.id) in models:
            continue
        for price in in_force(model.prices, now).values():
            if price.amount is not None and _family(price) == family:
                yield _withdrawn(price, "the feed no longer has the model")


def _withdrawn(price: Price, why: str) -> Change:
    return Change(kind="withdrawn", price=price, old=price, new=None, verdict=None, why=why)


def _checked(base: PriceBook, models: Mapping[tuple[str, str], ModelPrices], now: datetime) -> str:
    """The family of the feed's rows. Raises InvalidPrices for a feed that cannot be used."""
    prices = [price for model in models.values() for price in model.prices]
    if not prices:
        raise InvalidPrices("this feed states no prices")
    for price in prices:
        if price.amount is None or price.amount < 0:
            what = f"{price.token_type} of {price.provider}/{price.model}"
            raise InvalidPrices(f"this feed says {price.amount} for {what}: that is no price")
    family = _family(prices[0])
    known: dict[str, set[str]] = {}
    newest: datetime | None = None
    for model in base.models():
        theirs = [price for price in model.prices if _family(price) == family]
        if theirs:
            known.setdefault(model.provider, set()).add(model.id)
        newest = _newest([price for price in theirs if not is_first_seen(price)], now, newest)
    _check_models(known, models)
    _check_age(_newest(prices, now, None), newest)
    return family


def _check_models(known: Mapping[str, set[str]], models: Mapping[tuple[str, str], ModelPrices]) -> None:
    for provider, names in known.items():
        missing = sorted(name for name in names if (provider, name) not in models)
        if len(names) >= MODELS_MIN and len(missing) > MISSING_MAX * len(names):
            named = ", ".join(missing[:NAMED_MAX]) + (", ..." if len(missing) > NAMED_MAX else "")
            raise InvalidPrices(
                f"this feed lacks {len(missing)} of the {len(names)} models of {provider} that the book has ({named}): "
                "it is older than the book, or only a part of a feed. Prices of your own go into the overrides file"
            )


def _check_age(theirs: datetime | None, ours: datetime | None) -> None:
    """A feed whose last change is before the book's is older. Changes still to come may have been cancelled."""
    if ours is not None and (theirs is None or theirs < ours):
        said = "states no date" if theirs is None else f"ends with a change of {theirs:%Y-%m-%d}"
        raise InvalidPrices(f"this feed {said}, the book has one of {ours:%Y-%m-%d}: the feed is older than the book")


def _newest(prices: Sequence[Price], now: datetime, so_far: datetime | None) -> datetime | None:
    starts = [price.effective_from for price in prices if price.effective_from is not None]
    past = [start for start in starts if start <= now] + ([so_far] if so_far is not None else [])
    return max(past, default=None)


def _family(price: Price) -> str:
    return price.source.partition(" ")[0]
