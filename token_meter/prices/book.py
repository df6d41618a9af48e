"""The price book: what providers charge, for any model, moment and context; and what a usage cost.

Nothing here guesses. A model that is not in the book under its name, an alias or either with a date behind it has no
price; neither has a service tier, a geography or a token type that no row states. Then the cost is None, with the
reason, and whoever keeps the events holds them until a price arrives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_meter.money import EXACT, ZERO, settled
from token_meter.prices.context import Situation, situation_of
from token_meter.prices.factors import CURRENCY, Factors
from token_meter.prices.model import Model, span_around
from token_meter.prices.names import nearest, provider_named, spellings
from token_meter.prices.price import Cost, CostLine, Factor, Price, moment_of
from token_meter.prices.tariff import Tariff
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

if TYPE_CHECKING:
    from token_meter.prices.overrides import Overrides
    from token_meter.prices.shipped import ShippedBook

TARIFFS_REMEMBERED_MAX: Final = 10_000
"""So many combinations of model and context a book remembers; then it starts over."""

SPANS_REMEMBERED_MAX: Final = 16
"""So many spans of time without a change it remembers of each."""


class Shipped(NamedTuple):
    """A shipped book, and since when it is in use."""

    since: datetime
    book: ShippedBook


class PriceBook:
    """The shipped book, rows that came later, and the operator's overrides, which go before everything.

    `version` names the content: the same version gives the same costs, always. A book does not change; what adds to
    it returns another one. Any thread may use it.
    """

    def __init__(
        self,
        shipped: ShippedBook,
        *,
        rows: Sequence[Price] = (),
        overrides: Overrides | None = None,
        earlier: Sequence[Shipped] = (),
    ) -> None:
        self._shipped = shipped
        self.history = tuple(rows)
        self.rows = tuple({price.id: price for price in rows}.values())
        self.overrides = overrides
        self.earlier = tuple(earlier)
        self._rejected = {price.id for price in self.rows if price.status == "rejected"}
        self.made = max([shipped.made, *(price.recorded_at for price in rows if price.recorded_at is not None)])
        self.version = _version(shipped.version, self.rows, overrides)
        self._names: dict[str, dict[str, str]] = {}
        self._models: dict[tuple[str, str], Model] = {}
        self._added: dict[str, dict[str, list[Price]]] = {}
        for price in self.rows:
            self._added.setdefault(price.provider, {}).setdefault(price.model, []).append(price)
        self._tariffs: dict[tuple[Any, ...], list[Tariff]] = {}
        given = overrides.factors if overrides is not None else ()
        self.factors = Factors([self._named(each) for each in given], shipped.factors)

    def _named(self, factor: Factor) -> Factor:
        """A factor with the book's id of its model: an operator may write an alias, or other capitals."""
        if "*" in (factor.provider, factor.model[-1:]):
            return factor
        found = self.find(factor.provider, factor.model)
        return factor if found is None else replace(factor, model=found.id)

    @classmethod
    def load(
        cls,
        overrides: str | os.PathLike[str] | Mapping[str, Any] | Overrides | None = None,
        *,
        rows: Sequence[Price] = (),
        shipped: ShippedBook | None = None,
    ) -> PriceBook:
        """The shipped book (or another) with overrides: a YAML or JSON file, or the same as a mapping.

        Raises InvalidPrices naming the line and the field of what is wrong in them.
        """
        from token_meter.prices.shipped import ShippedBook

        book = shipped if shipped is not None else ShippedBook.load()
        return cls(book, rows=rows, overrides=None if overrides is None else _read(overrides))

    def with_rows(self, rows: Sequence[Price]) -> PriceBook:
        """The same book with these later rows instead of those it has; of rows with one id the last counts."""
        return PriceBook(self._shipped, rows=rows, overrides=self.overrides, earlier=self.earlier)

    def with_overrides(self, overrides: Overrides | None) -> PriceBook:
        """The same book with these overrides."""
        return PriceBook(self._shipped, rows=self.history, overrides=overrides, earlier=self.earlier)

    def with_shipped(self, shipped: ShippedBook, earlier: Sequence[Shipped]) -> PriceBook:
        """The same rows and overrides beside another shipped book, and which ones there were."""
        return PriceBook(shipped, rows=self.history, overrides=self.overrides, earlier=earlier)

    def known_at(self, moment: datetime) -> PriceBook:
        """The book as it was known then: without rows and decisions that were recorded later, and with the newest of
        the shipped books that were in use by then."""
        rows = [price for price in self.history if price.recorded_at is None or price.recorded_at <= moment]
        return PriceBook(self._shipped_at(moment), rows=rows, overrides=self.overrides)

    def learned(self, model: Model | None, after: datetime) -> list[datetime]:
        """When the book learned of prices of a model after a moment, the earliest first."""
        if model is None:
            return []
        mine = {
            row.recorded_at
            for row in self.history
            if (row.provider, row.model) == (model.provider, model.id) and row.recorded_at is not None
        }
        return sorted(each for each in {*mine, *(book.since for book in self.earlier)} if each > after)

    def _shipped_at(self, moment: datetime) -> ShippedBook:
        known = [each for each in self.earlier if each.since <= moment] or self.earlier[:1]
        return max((each.book for each in known), key=lambda book: book.age, default=self._shipped)

    # Costs

    def cost(
        self,
        *,
        provider: str | None,
        model: str | None,
        usage: Mapping[str, int],
        at: datetime | str,
        context: Mapping[str, Any] | None = None,
        model_requested: str | None = None,
    ) -> Cost:
        """What this usage cost at this moment: exact, every line with its quantity, rate, factors and price row.

        `usage` maps token types to quantities, disjoint; `context` is an event's `price_context`. The model that
        answered is looked up first, then the one requested. `amount` is None where a price is missing.
        Raises ValueError or TypeError for quantities that are none.
        """
        if type(usage) is not Usage:
            usage = _checked(usage)
        moment = at if type(at) is datetime and at.tzinfo is not None else _moment(at)
        tariff = self.tariff(
            provider=provider, model=model, at=moment, context=context, model_requested=model_requested
        )
        sum_: Decimal | None = ZERO
        lines = []
        found = tariff.found(context, usage)
        for token_type, quantity in usage.items():
            rated = found.get(token_type) or tariff.rated(token_type, context, usage)
            if rated is None:
                sum_ = None
                lines.append(CostLine(token_type, quantity, None, None, None, (), tariff.why(token_type)))
                continue
            price, factors, rate, _, ends = rated
            amount = _multiply(rate, quantity)
            if not ends:
                amount = settled(amount)
            if sum_ is not None:
                sum_ = _add(sum_, amount)
            # The class itself would be called through a function of Python: half of the time of a cost.
            lines.append(_tuple(CostLine, (token_type, quantity, rate, amount, price, factors, None)))
        return Cost(sum_, tuple(lines), CURRENCY, self.version)

    def tariff(
        self,
        *,
        provider: str | None,
        model: str | None,
        at: datetime,
        context: Mapping[str, Any] | None = None,
        model_requested: str | None = None,
    ) -> Tariff:
        """What a model costs in a situation at a moment, and how long that holds."""
        key = (provider, model, model_requested, _told(context) if context else None)
        try:
            known = self._tariffs.get(key)
        except TypeError:  # a context with lists in it
            return self._new_tariff(provider, model, model_requested, situation_of(context), at)
        if known is None:
            if len(self._tariffs) >= TARIFFS_REMEMBERED_MAX:
                self._tariffs.clear()
            known = self._tariffs[key] = []
        for tariff in known:
            if tariff.start <= at < tariff.stop:
                return tariff
        tariff = self._new_tariff(provider, model, model_requested, situation_of(context), at)
        # Events do not come in the order of time: a few spans of each model are needed again and again.
        known.append(tariff)
        if len(known) > SPANS_REMEMBERED_MAX:
            del known[0]
        return tariff

    def _new_tariff(
        self, provider: str | None, model: str | None, requested: str | None, situation: Situation, at: datetime
    ) -> Tariff:
        place, found = self._found(provider, model, requested)
        changes = self.factors.changes()
        windows: set[int] = set()
        if found is not None:
            changes += found.changes()
            windows = found.windows()
        span = span_around(at, changes, windows)
        reason = None if found is not None else self._unknown(provider, model or requested)
        if found is not None and situation.context and self._is_borrowed(found, provider):
            reason = f"{found.provider}'s price of {found.id} stands for standard requests to {provider} only"
            found = None
        return Tariff(self.factors, place, found, situation, span, reason)

    def _found(self, provider: str | None, model: str | None, requested: str | None) -> tuple[str, Model | None]:
        """The model that answered, else the one requested, and the provider that bills for it. Own prices of the one
        requested go before the book's prices of the one that answered: a deployment may have a price of its own."""
        place, found = self._find(provider, model)
        if found is None or (requested and self.overrides is not None and not self._has_own(found)):
            asked_place, asked = self._find(provider, requested)
            if asked is not None and (found is None or self._has_own(asked)):
                return asked_place, asked
        return place, found

    def _has_own(self, model: Model) -> bool:
        return self.overrides is not None and bool(self.overrides.prices(model.provider, model.id))

    def _is_borrowed(self, model: Model, provider: str | None) -> bool:
        """Whether a provider that states no price of a model bills what its maker bills: for tiers nobody knows."""
        return model.provider in self._shipped.fallbacks.get(provider_named(provider), ())

    def _unknown(self, provider: str | None, model: str | None) -> str:
        if not model:
            return "the event names no model"
        place = provider_named(provider)
        if not self._known(place):
            return f"unknown provider {provider!r}" if provider else "the event names no provider"
        near = self.suggest(provider, model)
        hint = f" (did you mean {near}? Say so with an alias in your price overrides)" if near else ""
        return f"unknown model {model!r} of {place}{hint}"

    # Models

    def find(self, provider: str | None, model: str | None) -> Model | None:
        """The model of this name at this provider, or None: never one that merely looks like it."""
        return self._find(provider, model)[1]

    def _find(self, provider: str | None, model: str | None) -> tuple[str, Model | None]:
        """The provider that bills, and the model, which may be another provider's with the same prices."""
        place = provider_named(provider)
        if not model:
            return place, None
        mapped = self.overrides.alias(place, model) if self.overrides is not None else None
        if mapped is not None:
            place, model = provider_named(mapped.provider or place), mapped.model
        for name in (place, *self._shipped.fallbacks.get(place, ())):
            known = self._known(name)
            for spelling in spellings(model):
                if spelling in known:
                    return place, self.model(name, known[spelling])
        return place, None

    def doubts(self) -> list[str]:
        """What the operator's overrides say that has no effect, and so is probably a mistake."""
        found = []
        for factor in self.factors.own:
            if factor.kind == "exchange" or factor.provider == "*":
                continue
            name = f"the {factor.kind} for {factor.provider}/{factor.model}"
            if factor.provider not in self.providers() and factor.provider not in self._shipped.fallbacks:
                near = nearest(factor.provider, self.providers())
                found.append(f"{name} applies to nothing: the price book has no provider {factor.provider!r}"
                             + (f". Did you mean {near!r}?" if near else ""))  # fmt: skip
            elif not factor.model.endswith("*") and self.find(factor.provider, factor.model) is None:
                near = self.suggest(factor.provider, factor.model)
                found.append(f"{name} applies to nothing: the price book has no such model"
                             + (f". Did you mean {near!r}?" if near else ""))  # fmt: skip
        return found

    def suggest(self, provider: str | None, model: str) -> str | None:
        """The known model whose name is nearest, for a human to look at."""
        return nearest(model, self._known(provider_named(provider)))

    def model(self, provider: str, identity: str) -> Model:
        """The model with exactly this id. Raises KeyError if there is none."""
        key = (provider, identity)
        found = self._models.get(key)
        if found is None:
            found = self._models[key] = self._make(provider, identity)
        return found

    def _make(self, provider: str, identity: str) -> Model:
        own = self.overrides.prices(provider, identity) if self.overrides is not None else []
        added = self._added.get(provider, {}).get(identity, [])
        if identity in self._shipped.models(provider):
            made = self._shipped.model(provider, identity)
        elif own or added:
            first = (own or added)[0]
            made = Model(provider, identity, first.display_name, first.publisher, (), ())
        else:
            raise KeyError(f"{provider}/{identity}")
        if added:
            # A shipped row that was rejected has come back as a row of its own that says so.
            made = made.with_prices(added, without=self._rejected)
        if own and self.overrides is not None:
            return made.with_own(own, free=self.overrides.is_free(provider, identity))
        return made

    def _known(self, provider: str) -> dict[str, str]:
        """Every name of a provider's models, in lower case, to the model's id."""
        names = self._names.get(provider)
        if names is None:
            names = {}
            for identity, stored in self._shipped.models(provider).items():
                for alias in stored[2]:
                    names.setdefault(alias, identity)
            for identity, rows in self._added.get(provider, {}).items():
                for alias in {alias for row in rows if row.status == "active" for alias in row.aliases}:
                    names.setdefault(alias, identity)
            own = self.overrides.models(provider) if self.overrides is not None else ()
            ids: dict[str, str] = {}
            for identity in (*self._shipped.models(provider), *self._added.get(provider, ()), *own):
                ids.setdefault(identity.lower(), identity)
            names |= ids
            self._names[provider] = names
        return names

    def providers(self) -> list[str]:
        """Every provider with prices, sorted."""
        own = self.overrides.providers() if self.overrides is not None else ()
        return sorted({*self._shipped.providers(), *self._added, *own})

    def models(self, provider: str | None = None) -> Iterator[Model]:
        """Every model, of one provider or of all, sorted by provider and id."""
        for name in self.providers() if provider is None else [provider_named(provider)]:
            for identity in sorted({*self._known(name).values()}):
                yield self.model(name, identity)

    @property
    def shipped(self) -> ShippedBook:
        """The shipped book beneath."""
        return self._shipped


def _read(given: str | os.PathLike[str] | Mapping[str, Any] | Overrides) -> Overrides:
    # Reading them needs pydantic; most books have none.
    from token_meter.prices.overrides import Overrides

    return given if isinstance(given, Overrides) else Overrides.read(given)


_multiply: Final = EXACT.multiply
_add: Final = EXACT.add
_tuple: Final = tuple.__new__


def _told(context: Mapping[str, Any]) -> tuple[Any, ...]:
    """All of a context that `situation_of` looks at."""
    get = context.get
    return (get("service_tier"), get("batch"), get("speed"), get("geo"), get("processing"), get("inference_geo"))


def _version(shipped: str, rows: Sequence[Price], overrides: Overrides | None) -> str:
    if not rows and overrides is None:
        return shipped
    digest = sha256(shipped.encode())
    for text in sorted(f"{price.id} {price.status}" for price in rows):
        digest.update(text.encode())
    if overrides is not None:
        digest.update(overrides.version.encode())
    return digest.hexdigest()[:12]


def _moment(at: datetime | str) -> datetime:
    moment = moment_of(at)
    if moment is None:
        raise ValueError("`at` is needed: a price holds at a moment")
    return moment


def _checked(usage: Mapping[str, int]) -> Mapping[str, int]:
    for name, quantity in usage.items():
        if name not in TOKEN_TYPES:
            raise ValueError(f"{name!r} is no token type. Known: {', '.join(TOKEN_TYPES)}.")
        if not isinstance(quantity, int) or isinstance(quantity, bool):
            raise TypeError(f"the quantity of {name} must be an integer, not {quantity!r}")
        if not 0 <= quantity <= QUANTITY_MAX:
            raise ValueError(f"the quantity of {name} must be between 0 and 2**63-1, not {quantity}")
    return usage
