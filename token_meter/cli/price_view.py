"""What the `prices` commands share: the book with or without a ledger, one model found in it, and prices as rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.customer_book import there_is_none
from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import note
from token_meter.cli.place import Place, no_ledger, reading
from token_meter.cli.text import did_you_mean

if TYPE_CHECKING:
    from token_meter.billing.catalogue import Catalogue
    from token_meter.bookkeeping.price_desk import PriceDesk
    from token_meter.ledger import Ledger
    from token_meter.prices import Model, Price, PriceBook
    from token_meter.prices.price import Context

OLD_AFTER: Final = timedelta(days=7)
"""Prices that were not compared with a source for so long are worth a word."""

PROVIDERS_NAMED_MAX: Final = 8
DIGITS_SHOWN: Final = 12
STANDARD_LABEL: Final = "standard"


@dataclass(frozen=True, slots=True)
class View:
    """The price book to look at; `catalogue` and `desk` are those of the ledger, None where there is none."""

    book: PriceBook
    catalogue: Catalogue | None
    desk: PriceDesk | None
    checked: datetime | None

    def head(self) -> dict[str, Any]:
        """The book itself, for programs."""
        from token_meter.prices.price import moment_text

        return {
            "book": self.book.version,
            "made": moment_text(self.book.made),
            "checked": moment_text(self.checked),
        }

    def say_age(self) -> None:
        """How old the prices are, on standard error."""
        for line in age_lines(self.book, self.checked, datetime.now(UTC)):
            note(line)
        for doubt in self.book.doubts():
            note(doubt)


@contextmanager
def viewing(place: Place, *, named: bool) -> Iterator[View]:
    """The book of this ledger, or the shipped one where none is. Failure where one was `named` and is not there."""
    from token_meter.bookkeeping.plan_book import PlanBook

    if there_is_none(place):
        if named:
            raise no_ledger(place)
        yield View(shipped_book(), None, None, None)
        return
    with at_desk(place) as (desk, ledger):
        yield View(desk.book, PlanBook(ledger).catalogue(), desk, desk.checked())


def shipped_book() -> PriceBook:
    """The book of the package, with the operator's overrides."""
    from token_meter.bookkeeping.lazy import PRICES_VARIABLE
    from token_meter.prices import PriceBook

    return PriceBook.load(os.environ.get(PRICES_VARIABLE) or None)


@contextmanager
def at_desk(place: Place, *, make: bool = False) -> Iterator[tuple[PriceDesk, Ledger]]:
    """The price desk of a ledger, and the ledger, which rates. Where there is none: it is made, or a Failure."""
    from token_meter.bookkeeping.lazy import LazyRater
    from token_meter.bookkeeping.price_desk import PriceDesk

    if make and there_is_none(place):
        make_ledger(place)
    with reading(place) as ledger:
        rater = LazyRater().made()
        ledger.rater = rater
        yield PriceDesk(ledger, rater), ledger


def make_ledger(place: Place) -> None:
    """An empty ledger: prices may come before the first call."""
    from token_meter.ledger import Ledger

    note(f"there was no ledger at {place.shown}: making one")
    with Ledger(place.ledger) as ledger:
        ledger.summary()


def age_lines(book: PriceBook, checked: datetime | None, now: datetime) -> list[str]:
    """How old the book is; a second line when that is old."""
    latest = max(book.made, checked or book.made)
    said = [f"prices of {book.made:%Y-%m-%d} (book {book.version})"]
    if checked is not None:
        said[0] += f", last compared with a source on {checked:%Y-%m-%d %H:%M} UTC"
    if now - latest > OLD_AFTER:
        said.append(
            f"these prices are {(now - latest).days} days old: `pip install -U genai-prices`, then "
            "`token-meter prices sync`"
        )
    return said


def moment_asked(at: str | None) -> datetime:
    """The moment that `--at` names, else now."""
    now = datetime.now(UTC)
    return read_moment(at, zone=UTC, now=now) or now


# Models


def provider_asked(book: PriceBook, provider: str | None) -> str | None:
    """The book's name of a provider. Wrong usage for one without prices."""
    from token_meter.prices.names import provider_named

    if provider is None:
        return None
    name, known = provider_named(provider), book.providers()
    if name not in known:
        raise Failure(
            f"the price book has no provider {provider!r}.{did_you_mean(name, known)} Known: {', '.join(known)}",
            code=WRONG_USAGE,
        )
    return name


def model_asked(book: PriceBook, name: str, provider: str | None) -> Model:
    """The model that is meant. Failure with the nearest name when there is none, or when several providers sell it."""
    from token_meter.prices.stated import is_direct

    place = provider_asked(book, provider)
    if place is not None:
        found = book.find(place, name)
        if found is None:
            raise _unknown(name, f" of {place}", book.suggest(place, name))
        return found
    before, _, rest = name.partition("/")
    if before in book.providers() and (found := book.find(before, rest)):
        return found
    sold = [found for each in book.providers() if (found := book.find(each, name)) and found.provider == each]
    direct = [model for model in sold if is_direct(model)]
    if len(direct or sold) == 1:
        return (direct or sold)[0]
    if not sold:
        raise _unknown(name, "", _nearest(book, name))
    sellers = [model.provider for model in sold]
    more = ", ..." if len(sellers) > PROVIDERS_NAMED_MAX else ""
    raise Failure(f"{name!r} is sold by {', '.join(sellers[:PROVIDERS_NAMED_MAX])}{more}: name one with --provider")


def _unknown(name: str, where: str, near: str | None) -> Failure:
    hint = f" Did you mean {near!r}?" if near else ""
    return Failure(
        f"the price book has no model {name!r}{where}.{hint} `token-meter prices list --name TEXT` looks for one. "
        "Usage of it is kept and priced when a price comes; a model of your own goes into the overrides file"
    )


def _nearest(book: PriceBook, name: str) -> str | None:
    """The most similar model id, of providers that sell their own models first."""
    from token_meter.prices.stated import is_direct

    models = list(book.models())
    for known in ([model.id for model in models if is_direct(model)], [model.id for model in models]):
        found = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
        if found:
            return found[0]
    return None


# Prices


def context_label(context: Context) -> str:
    """A context in a word: `batch`, `flex`, `fast`, `standard`."""
    return " ".join(key if value == "yes" else value for key, value in context) or STANDARD_LABEL


def condition(price: Price) -> str:
    """What a price holds for: its context, above how many context tokens, and at what time of the day."""
    parts = [context_label(price.context)]
    if price.above is not None:
        parts.append(f"{'from' if price.inclusive else 'above'} {price.above:,} tokens")
    if price.daily is not None:
        start, stop = (f"{minute // 60:02}:{minute % 60:02}" for minute in price.daily)
        parts.append(f"{start}-{stop} UTC")
    return ", ".join(parts)


def amount_text(amount: Decimal | None, currency: str = "USD") -> str | None:
    """An amount as it is shown: exact up to twelve decimals, its currency only if it is not the usual one."""
    from token_meter.money import plain

    if amount is None:
        return None
    shown = plain(round(amount, DIGITS_SHOWN))
    return shown if currency == "USD" else f"{shown} {currency}"


def per_text(price: Price) -> str:
    """For how many units a price is: `1M tokens`."""
    from token_meter.prices.price import PER, PER_NAMES

    return PER_NAMES[price.unit] if price.per == PER[price.unit] else f"{price.per:,} x {price.unit}"


def day(moment: datetime | None) -> str | None:
    """A moment as a day, with the hour where it is not midnight."""
    if moment is None:
        return None
    at = moment.astimezone(UTC)
    return f"{at:%Y-%m-%d}" if (at.hour, at.minute) == (0, 0) else f"{at:%Y-%m-%d %H:%M}"


class Ours:
    """What we charge by the default plan: the multiplier on a list price, and the price that comes of it."""

    def __init__(self, view: View, at: datetime) -> None:
        self._book = view.book
        self._at = at
        self._cards = view.catalogue.terms("live", None, at)[0].cards if view.catalogue is not None else ()

    def of(self, price: Price) -> dict[str, str | None]:
        """The multiplier and our price of as many units as the list price is for; None where the plan has none."""
        from token_meter.billing.meters import LLM_TOKENS
        from token_meter.billing.rating import Share, charged
        from token_meter.money import EXACT
        from token_meter.usage import TOKEN_TYPES

        dimensions: dict[str, str | None] = {
            "provider": price.provider, "publisher": price.publisher, "model": price.model,
            "token_type": price.token_type, "headline": TOKEN_TYPES[price.token_type].headline,
        }  # fmt: skip
        for card in self._cards:
            place = card.content.rate_for(LLM_TOKENS, dimensions)
            if place is None:
                continue
            share = charged(card, place, dimensions, Share(self._cost(price), {}, False), {}, self._book, self._at)
            ours = None if share.rate is None else EXACT.multiply(share.rate, Decimal(price.per))
            return {
                "multiplier": (share.said or {}).get("multiplier"),
                "our_price": amount_text(ours, card.content.currency),
            }
        return {"multiplier": None, "our_price": None}

    def _cost(self, price: Price) -> Decimal | None:
        """What a unit costs us: the list price with a negotiated discount."""
        from token_meter.money import EXACT
        from token_meter.prices.context import Situation

        factors, missing = self._book.factors.on(price, Situation(price.context, None), self._at)
        if price.rate is None or missing is not None:
            return None
        rate = price.rate
        for factor in factors:
            rate = EXACT.multiply(rate, factor.multiplier)
        return rate


def price_rows(models: Iterable[Model], ours: Ours, at: datetime) -> Iterator[tuple[Price, dict[str, Any]]]:
    """Every price in force, each with the row that shows it, in the order of the table of token types."""
    from token_meter.prices.stated import in_force
    from token_meter.usage import TOKEN_TYPES

    order = {name: place for place, name in enumerate(TOKEN_TYPES)}
    for model in models:
        found = [price for price in in_force(model.holding(at), at).values() if price.amount is not None]
        for price in sorted(found, key=lambda each: (order[each.token_type], each.context, each.above or 0)):
            yield (
                price,
                {
                    "publisher": price.publisher or model.publisher,
                    "provider": model.provider,
                    "model": model.id,
                    "name": model.display_name,
                    "token_type": price.token_type,
                    "context": condition(price),
                    "list_price": amount_text(price.amount, price.currency),
                    "per": per_text(price),
                    **ours.of(price),
                },
            )
