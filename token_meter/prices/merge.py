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
from typing import NamedTuple

from token_meter.prices.book import PriceBook
from token_meter.prices.change import (
    STATUS,
    Change,
    Kind,
    evidence,
    is_first_seen,
    reason_of,
    superseded_row,
    was_superseded,
)
from token_meter.prices.feed_check import check_feed, family_of
from token_meter.prices.genai import Feed, ModelPrices
from token_meter.prices.likely import Likely, Verdict
from token_meter.prices.model import BILLED_AS
from token_meter.prices.price import Price
from token_meter.prices.stated import PriceKey, SecondSource, billed, in_force, is_direct, key_of


class NewName(NamedTuple):
    """A name of a known model that only the feed has."""

    provider: str
    name: str
    model: str


@dataclass(frozen=True, slots=True)
class Merge:
    """What a feed would change.

    `agreed` prices are the same; `lagging` ones the feed still has as they were before the book corrected them.
    `superseded` are rows that waited and that the feed no longer states: nobody is asked about them any more.
    `names` are names that the feed has for models of the book, and that mean nothing to the book: they are told.
    """

    changes: tuple[Change, ...]
    agreed: int
    lagging: int
    superseded: tuple[Price, ...] = ()
    names: tuple[NewName, ...] = ()

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
    family = check_feed(base, models, now=now)
    counts: Counter[str] = Counter()
    changes: list[Change] = []
    for place in sorted(models):
        changes.extend(_Comparison(_known(base, place), models[place], family, now, second, counts).changes())
    changes.extend(_missing(base, models, family, now))
    proposed = {change.price.id for change in changes}
    waiting = [row for row in base.rows if row.status == "held" and family_of(row) == family]
    superseded = tuple(superseded_row(row) for row in waiting if row.id not in proposed)
    return Merge(tuple(changes), counts["agreed"], counts["lagging"], superseded, tuple(_new_names(base, models)))


@dataclass(slots=True)
class _Comparison:
    """One model of a feed held against the book's rows of it.

    `rows` are those proposed so far; `made` are the same as if all of them were taken.
    """

    known: Sequence[Price]
    model: ModelPrices
    family: str
    now: datetime
    second: SecondSource | None
    counts: Counter[str]
    made: list[Price] = field(default_factory=list)
    rows: list[Price] = field(default_factory=list)

    def changes(self) -> Iterator[Change]:
        yield from self._new_keys()
        for moment in sorted({self.now, *self._later()}):
            yield from self._at(moment, in_force(self.model.prices, moment))

    def _second(self) -> SecondSource | None:
        """The second source, where it can be believed."""
        return self.second if is_direct(self.model.prices[0]) else None

    def _later(self) -> Iterator[datetime]:
        """When something changes by either of the two. A change that the feed no longer announces is one, too."""
        for price in (*self.model.prices, *(each for each in self.known if self._is_theirs(each))):
            for edge in (price.effective_from, price.effective_to):
                if edge is not None and edge > self.now:
                    yield edge

    def _new_keys(self) -> Iterator[Change]:
        """What the book has never stated, nor billed by another row, is taken with the dates that the feed gives."""
        there = {key_of(price) for price in self.known if price.amount is not None and price.status == "active"}
        ends = ((key_of(price), price.effective_to) for price in self.model.prices)
        alive = {key for key, end in ends if end is None or end > self.now}
        ours = in_force(self.known, self.now)
        stated = in_force(self.model.prices, self.now)
        for price in self.model.prices:
            key = key_of(price)
            if key in there or billed(ours, key) is not None or (self.known and key not in alive):
                continue
            likely = Likely(stated, key, self._second()).of_new(price)
            later = price.effective_from is not None and price.effective_from > self.now
            if price.effective_from is not None and price.effective_from > self.now:
                # What stands in for it by then may say the same already.
                assumed = billed(in_force([*self.known, *self.made], price.effective_from), key)
                if assumed is not None and assumed.rate == price.rate:
                    continue
            yield self._proposed("scheduled" if later else "added", price, None, price, likely, first_seen=False)

    def _at(self, moment: datetime, theirs: Mapping[PriceKey, Price]) -> Iterator[Change]:
        """What differs at a moment; what ended may have stood in for what is stated, so that is looked at once more."""
        before = in_force([*self.known, *self.rows], moment)
        stated = {key: price for key, price in theirs.items() if not self._is_behind(price, billed(before, key))}
        differing = list(self._stated(moment, stated, theirs, before))
        yield from differing
        for key, price in in_force([*self.known, *self.made], moment).items():
            if key not in theirs and price.amount is not None and self._is_theirs(price):
                yield from self._unstated(moment, price, theirs, billed(before, key))
        again = list(self._stated(moment, stated, theirs, before))
        yield from again
        if moment == self.now:
            self.counts["lagging"] += len(theirs) - len(stated)
            self.counts["agreed"] += len(stated) - len(differing) - len(again)

    def _stated(
        self,
        moment: datetime,
        stated: Mapping[PriceKey, Price],
        theirs: Mapping[PriceKey, Price],
        before: Mapping[PriceKey, Price],
    ) -> Iterator[Change]:
        """First what stands in for other prices, which then are compared with it."""
        for key in sorted(stated, key=_standing_in_first):
            assumed = billed(in_force([*self.known, *self.made], moment), key)
            if assumed is None or assumed.rate != stated[key].rate:
                yield self._difference(moment, stated[key], stated[key], theirs, billed(before, key))

    def _unstated(
        self, moment: datetime, price: Price, theirs: Mapping[PriceKey, Price], old: Price | None
    ) -> Iterator[Change]:
        """What the book says and the feed does not: a step or a window has ended, anything else is only told."""
        key = key_of(price)
        instead = billed(theirs, key)
        if instead is None or (key.above is None and key.daily is None):
            if moment == self.now:
                yield _withdrawn(price, "the feed no longer states it")
            return
        # A step for long contexts ends with a row without an amount. A daily window takes the amount beside it, because
        # a window without one would hide the price that holds all day.
        amount = instead.amount if key.daily is not None else None
        if amount != price.amount:
            start = self._ended_at(key, instead, moment)
            ended = replace(price, amount=amount, effective_from=start, source=instead.source)
            yield self._difference(moment, ended, instead, theirs, old)

    def _ended_at(self, key: PriceKey, instead: Price, moment: datetime) -> datetime | None:
        """When the feed says that a price ended: as its own last date, or with a change of the price that stands in."""
        said = [each.effective_to for each in self.model.prices if key_of(each) == key]
        ends = [end for end in said if end is not None and end <= moment]
        if ends:
            return max(ends)
        changed = {each.effective_from for each in self.made if key_of(each) == key_of(instead)}
        return instead.effective_from if instead.effective_from in changed else None

    def _difference(
        self, moment: datetime, price: Price, new: Price, theirs: Mapping[PriceKey, Price], old: Price | None
    ) -> Change:
        start, first_seen = self._start(moment, price, old)
        row = replace(price, effective_from=start, effective_to=None, recorded_at=self.now)
        kind: Kind = "scheduled" if moment > self.now else "added" if old is None else "changed"
        likely = Likely(theirs, key_of(price), self._second() if moment == self.now else None)
        verdict = likely.of_change(new, old, scheduled=moment > self.now)
        return self._proposed(kind, row, old, new, verdict, first_seen=first_seen)

    def _start(self, moment: datetime, price: Price, old: Price | None) -> tuple[datetime, bool]:
        """The feed's own date, unless that would put the row behind one that holds already; and whether it is ours."""
        stated = price.effective_from
        if moment > self.now:
            # The book announces a change that the feed does not: it is taken back on the day.
            return moment, stated != moment
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
            aliases=() if self.known else self.model.aliases,
            status=STATUS[verdict],
            recorded_at=self.now,
            evidence=evidence(first_seen, f"{verdict}: {why}" if why else ""),
        )
        self.rows.append(row)
        return Change(
            kind=kind, price=row, old=old, new=new, verdict=verdict, why=why, first_seen=first_seen,
            standing=before is not None,
        )  # fmt: skip

    def _proposed_before(self, price: Price, first_seen: bool) -> Price | None:
        """The row that said the same at an earlier sync, and waits or was rejected."""
        same = [
            each
            for each in self.known
            if each.status != "active" and key_of(each) == key_of(price) and each.amount == price.amount
            if not was_superseded(each)
        ]
        exact = [each for each in same if each.effective_from == price.effective_from]
        ours = [each for each in same if first_seen and is_first_seen(each)]
        return next(reversed(exact or ours), None)

    def _is_behind(self, price: Price, current: Price | None) -> bool:
        """Whether the feed still has what the book knew and has replaced from a better source."""
        if current is None or self._is_theirs(current):
            return False
        return any(
            each.amount == price.amount and self._is_theirs(each)
            for each in self.known
            if key_of(each) == key_of(price)
        )

    def _is_theirs(self, price: Price) -> bool:
        return family_of(price) == self.family


def _standing_in_first(key: PriceKey) -> tuple[bool, bool, bool, int]:
    return (key.daily is not None, bool(key.context), key.token_type in BILLED_AS, key.above or 0)


def _known(base: PriceBook, place: tuple[str, str]) -> Sequence[Price]:
    try:
        return base.model(*place).prices
    except KeyError:
        return ()


def _new_names(base: PriceBook, models: Mapping[tuple[str, str], ModelPrices]) -> Iterator[NewName]:
    """A name decides whose price counts, so a human takes it over: nobody would see that a feed had moved one."""
    for (provider, model), stated in sorted(models.items()):
        if not _known(base, (provider, model)):
            continue  # its names come with its prices
        for name in stated.aliases:
            if base.find(provider, name) is None:
                yield NewName(provider, name, model)


def _missing(
    base: PriceBook, models: Mapping[tuple[str, str], ModelPrices], family: str, now: datetime
) -> Iterator[Change]:
    """What the book states of models that the feed does not have."""
    for model in base.models():
        if (model.provider, model.id) in models:
            continue
        for price in in_force(model.prices, now).values():
            if price.amount is not None and family_of(price) == family:
                yield _withdrawn(price, "the feed no longer has the model")


def _withdrawn(price: Price, why: str) -> Change:
    return Change(kind="withdrawn", price=price, old=price, new=None, verdict=None, why=why)
