"""Rating: for one event, what each token type costs us and what we charge for it, with every factor kept.

quantity x list price x discount x geo = cost; x multiplier = charge. Both are rates of one unit, exact; quantities are
multiplied when somebody reads. What depends on the whole period (tiers, packages) is named here and charged there.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from token_meter.billing.cards import BY_THE_PERIOD, Dimensions, Rate, RateCard
from token_meter.billing.catalogue import Catalogue, Terms, Version
from token_meter.billing.meters import API_CALLS, LLM_TOKENS
from token_meter.event import MeterEvent
from token_meter.ledger.rater import Rating
from token_meter.ledger.tables import EVENTS
from token_meter.money import EXACT, plain
from token_meter.prices.book import PriceBook
from token_meter.prices.factors import CURRENCY
from token_meter.prices.model import Model
from token_meter.prices.tariff import Rated, Tariff
from token_meter.usage import TOKEN_TYPES

REMEMBERED_MAX: Final = 50_000
"""So many ways of rating, and customers, a rater remembers; then it starts over."""

FREE: Final = Rating("0", "0", {"cost": None, "charge": None})
"""What nobody charges for: neither a provider us, nor we a customer."""

_NO_FACTORS: Final[Mapping[str, str]] = {}


class Missing(NamedTuple):
    """A price that is missing: usage of this model (or of this meter of one's own) is held until it is there.

    `charged`: only the provider's price is missing, and the plan has its own.
    """

    provider: str | None
    model: str | None
    meter: str
    token_type: str
    why: str
    charged: bool
    customer: str | None
    at: datetime

    @property
    def key(self) -> str:
        """One for each provider and model."""
        return f"{self.meter}|{self.provider}|{self.model}"

    def document(self) -> dict[str, object]:
        """For a notice."""
        return {**self._asdict(), "at": self.at.isoformat()}

    def __str__(self) -> str:
        what = f"{self.provider or '(no provider)'} {self.model}" if self.model else f"meter {self.meter}"
        if self.charged:
            return f"no price for {what}, {self.token_type}: {self.why}. It is charged by its plan; its cost is unknown"
        return (
            f"no price for {what}, {self.token_type}: {self.why}. Its usage is held and is billed when the price is "
            "there: give it in your price overrides or your rate card, or run `token-meter prices sync`"
        )


class EventRater:
    """Rates events by one price book and one catalogue; the same events always alike. One thread at a time."""

    def __init__(self, book: PriceBook, catalogue: Catalogue) -> None:
        self.book = book
        self.catalogue = catalogue
        self._terms: dict[tuple[str, str | None], tuple[Terms, datetime, datetime]] = {}
        self._named: dict[int, tuple[Terms, tuple[str, ...]]] = {}
        self._shared: dict[tuple[object, ...], Terms] = {}
        self._pinned: dict[tuple[int, int], PriceBook] = {}
        self._answers: dict[tuple[object, ...], tuple[object, object, Mapping[str, Rating]]] = {}
        self.missing: dict[str, Missing] = {}
        """The first price that was missing of each provider and model, by key."""

    def rate(self, event: MeterEvent) -> Mapping[str, Rating]:
        """The rating of each token type, and under `EVENTS` of the call; the same object for events rated alike."""
        terms = self._terms_of(event)
        tariff = self.book.tariff(
            provider=event.provider,
            model=event.model,
            at=event.time,
            context=event.price_context,
            model_requested=event.model_requested,
        )
        found = tariff.found(event.price_context, event.usage)
        key = (
            id(terms), id(tariff), id(found), event.meter, is_call(event),
            event.status == "estimated" and self.catalogue.bills_estimated(event.time), event.status == "estimated",
            event.publisher, *event.usage, *(dimension_of(event, name) for name in self._names(terms)),
        )  # fmt: skip
        kept = self._answers.get(key)
        if kept is None:
            if len(self._answers) >= REMEMBERED_MAX:
                self._answers.clear()
            # Kept with what its key names by identity, so that no other object takes that name.
            kept = self._answers[key] = (terms, (tariff, found), self._rate(event, terms, tariff))
        return kept[2]

    def _names(self, terms: Terms) -> tuple[str, ...]:
        """The dimensions on which the rates of these terms depend."""
        kept = self._named.get(id(terms))
        if kept is None:
            names = tuple(sorted({name for card in terms.cards for name in card.content.names()} - _OF_TYPES))
            kept = self._named[id(terms)] = (terms, names)
        return kept[1]

    def _terms_of(self, event: MeterEvent) -> Terms:
        who = (event.mode, event.customer)
        kept = self._terms.get(who)
        if kept is None or not kept[1] <= event.time < kept[2]:
            terms, start, stop = self.catalogue.terms(event.mode, event.customer, event.time)
            # Customers on the same terms share them: what is remembered for one serves all.
            label = (terms.plan.label if terms.plan else None, *(card.label for card in terms.cards))
            if all(card.content.apply_to != "new" for card in terms.cards):
                terms = terms._replace(subscription=None)
            since = terms.subscription.start if terms.subscription is not None else None
            terms = self._shared.setdefault((*label, since), terms)
            if len(self._terms) >= REMEMBERED_MAX:
                self._terms.clear()
            kept = self._terms[who] = (terms, start, stop)
        return kept[0]

    def _rate(self, event: MeterEvent, terms: Terms, tariff: Tariff) -> Mapping[str, Rating]:
        shared = dimensions_of(event)
        answer: dict[str, Rating] = {}
        definition = self.catalogue.meters.get(event.meter)
        counts = definition is not None and definition.aggregation == "count"
        for token_type in event.usage:
            if counts:  # the event itself is what is counted, whatever value it has
                answer[token_type] = FREE
                continue
            dimensions = {**shared, "token_type": token_type, "headline": TOKEN_TYPES[token_type].headline}
            cost = self._cost(event, tariff, token_type)
            charge = self._charge(event, terms, event.meter, dimensions, cost, tariff)
            answer[token_type] = _rating(cost, charge, self.book.version)
        counted = API_CALLS if event.meter == LLM_TOKENS else event.meter
        meter = self.catalogue.meters.get(counted)
        if meter is None or (meter.aggregation == "sum" and not (counted == API_CALLS and is_call(event))):
            answer[EVENTS] = FREE
        else:
            answer[EVENTS] = _rating(_NOTHING, self._charge(event, terms, counted, shared, _NOTHING, tariff), None)
        self._notice(event, answer)
        return answer

    def _notice(self, event: MeterEvent, answer: Mapping[str, Rating]) -> None:
        for name, rating in answer.items():
            if rating.pending:
                sides = (rating.document["cost"], rating.document["charge"])
                why = next(side["missing"] for side in sides if side and "missing" in side)
                found = Missing(
                    event.provider, event.model, event.meter, name, why, rating.charge is not None, event.customer,
                    event.time,
                )  # fmt: skip
                self.missing.setdefault(found.key, found)

    def _pinned_cost(
        self, event: MeterEvent, terms: Terms, card: Version[RateCard], token_type: str, model: Model | None
    ) -> Share:
        """The cost that a card multiplies which does not follow every change of prices.

        `hold`: by the prices that were known when the card's version began; `new`: when the customer subscribed. What
        had no price then (a model that came later) is charged by the first one that came.
        """
        since = card.effective_from
        if card.content.apply_to == "new" and terms.subscription is not None:
            since = terms.subscription.start
        for moment in (since, *self.book.learned(model, since)):
            tariff = self._pinned_book(moment).tariff(
                provider=event.provider, model=event.model, at=event.time, context=event.price_context,
                model_requested=event.model_requested,
            )  # fmt: skip
            cost = self._cost(event, tariff, token_type)
            if cost.rate is not None:
                break
        return cost

    def _pinned_book(self, since: datetime) -> PriceBook:
        """The book as it was known then. The same for all moments between two changes of it."""
        rows = sum(1 for row in self.book.history if row.recorded_at is None or row.recorded_at <= since)
        books = sum(1 for each in self.book.earlier if each.since <= since)
        known = self._pinned.get((rows, books))
        if known is None:
            known = self._pinned[rows, books] = self.book.known_at(since)
        return known

    def _cost(self, event: MeterEvent, tariff: Tariff, token_type: str) -> Share:
        if event.meter != LLM_TOKENS and event.model is None:
            return _NOTHING
        rated = tariff.rated(token_type, event.price_context, event.usage)
        if rated is None:
            return Share(None, {"missing": tariff.why(token_type)}, pending=True)
        return Share(rated.rate, _priced(rated), pending=False)

    def _charge(
        self, event: MeterEvent, terms: Terms, meter: str, dimensions: Dimensions, cost: Share, tariff: Tariff
    ) -> Share | None:
        """What is charged for a unit; None: the plan charges nothing for it."""
        definition = self.catalogue.meters.get(meter)
        summed = definition is None or definition.aggregation in ("sum", "count")
        for card in terms.cards:
            place = card.content.rate_for(meter, dimensions)
            if place is None:
                continue
            said = {
                "card": card.label, "rate": place, "meter": meter, "currency": card.content.currency,
                "plan": terms.plan.label if terms.plan is not None else None,
            }  # fmt: skip
            if event.status == "estimated" and not self.catalogue.bills_estimated(event.time):
                return Share(Decimal(0), {**said, "kind": "waived", "why": "estimated usage is not billed"}, False)
            if not summed:
                return Share(None, {**said, "kind": "by_the_period"}, pending=False)
            token_type = dimensions.get("token_type")
            if card.content.apply_to != "all" and token_type is not None and card.content.rates[place].cost_plus:
                pinned = self._pinned_cost(event, terms, card, token_type, tariff.model)
                said = {**said, "pinned": {"apply_to": card.content.apply_to, **(pinned.said or {})}}
                return charged(card, place, dimensions, pinned, said, self.book, event.time)
            return charged(card, place, dimensions, cost, said, self.book, event.time)
        return None


class Share:
    """One side of a rating: the rate of a unit, how it came about, and whether something is missing."""

    __slots__ = ("pending", "rate", "said")

    def __init__(self, rate: Decimal | None, said: Mapping[str, Any] | None, pending: bool) -> None:
        self.rate = rate
        self.said = said
        self.pending = pending


_NOTHING: Final = Share(Decimal(0), None, pending=False)


def charged(
    card: Version[RateCard],
    place: int,
    dimensions: Dimensions,
    cost: Share,
    said: Mapping[str, Any],
    book: PriceBook,
    at: datetime,
) -> Share:
    """The charge of one unit by this rate of a card."""
    rate = card.content.rates[place]
    exchange = None if card.content.currency == CURRENCY else book.factors.exchange(card.content.currency, at)
    said = {**said, "kind": rate.kind, **({} if exchange is None else {"exchange": plain(exchange)})}
    if rate.kind in BY_THE_PERIOD:
        return Share(None, said, pending=False)
    if rate.kind == "cost_plus":
        return _cost_plus(rate, dimensions, cost, said, card.content.currency, exchange, at)
    if rate.kind == "matrix":
        row = rate.row(dimensions)
        if row is None:
            shown = ", ".join(f"{name}={value}" for name, value in dimensions.items() if name in rate.names() and value)
            return Share(None, {**said, "missing": f"no row of the matrix of {card.label} for {shown}"}, pending=True)
        price = row.price
    else:
        assert rate.per_unit is not None
        price = rate.per_unit
    unit = EXACT.divide(price, Decimal(rate.per))
    return Share(unit, {**said, "price": plain(price), "per": rate.per}, pending=False)


def _cost_plus(
    rate: Rate,
    dimensions: Dimensions,
    cost: Share,
    said: Mapping[str, Any],
    currency: str,
    exchange: Decimal | None,
    at: datetime,
) -> Share:
    multiplier = rate.factor(dimensions)
    said = {**said, "multiplier": plain(multiplier)}
    if cost.rate is None:
        return Share(None, {**said, "missing": "the provider's price"}, pending=True)
    unit = EXACT.multiply(cost.rate, multiplier)
    if currency != CURRENCY:
        if exchange is None:
            missing = f"an exchange rate from {CURRENCY} to {currency} at {at:%Y-%m-%d} (`exchange` in your overrides)"
            return Share(None, {**said, "missing": missing}, pending=True)
        unit = EXACT.divide(unit, exchange)
    return Share(unit, said, pending=False)


_OF_TYPES: Final = frozenset({"token_type", "headline"})
_OF_EVENTS: Final = ("provider", "publisher", "model", "operation", "status")


def dimensions_of(event: MeterEvent) -> dict[str, str | None]:
    """What rates may depend on, token type aside: the event's own dimensions, then what it says of itself."""
    return {**event.dimensions, **{name: getattr(event, name) for name in _OF_EVENTS}}


def dimension_of(event: MeterEvent, name: str) -> str | None:
    """One of `dimensions_of`."""
    return getattr(event, name) if name in _OF_EVENTS else event.dimensions.get(name)


def is_call(event: MeterEvent) -> bool:
    """Whether it came of a call of a model: usage that was entered by hand or uploaded has no operation."""
    return event.meter == LLM_TOKENS and event.operation is not None and event.status != "unmetered"


def _priced(rated: Rated) -> dict[str, Any]:
    price = rated.price
    said: dict[str, Any] = {
        "price": price.id,
        "provider": price.provider,
        "model": price.model,
        "token_type": price.token_type,
        "list": plain(price.amount) if price.amount is not None else None,
        "per": price.per,
        "currency": price.currency,
        "source": price.source,
    }
    if price.context:
        said["context"] = dict(price.context)
    if price.above is not None:
        said["above"] = price.above
    if rated.rise is not None:
        said["rise"] = rated.rise.id
    if rated.factors:
        said["factors"] = [[each.kind, plain(each.multiplier), each.source] for each in rated.factors]
    return said


def _rating(cost: Share, charge: Share | None, book: str | None) -> Rating:
    return Rating(
        cost=None if cost.rate is None else plain(cost.rate),
        charge="0" if charge is None else None if charge.rate is None else plain(charge.rate),
        document={"cost": cost.said, "charge": None if charge is None else charge.said},
        pending=cost.pending or (charge is not None and charge.pending),
        book=book,
    )
