"""The operator's own prices: what goes before everything the book says.

A YAML or JSON file, or the same as a mapping:

    models:                     # your own models, or other prices for known ones
      - provider: my-cluster
        model: llama-ours
        prices: {input: 0.20, output: 0.60}        # per million tokens, per thousand calls
        effective_from: 2026-01-01
      - {provider: ollama, model: "llama3", free: true}
    discounts:                  # negotiated: multiplies the list price
      - {provider: openai, model: "gpt-4o", list_multiplier: 0.8, effective_from: 2026-01-01}
    geo:                        # what a request costs more for where it was served
      - {provider: anthropic, model: "claude-*", geo: eu, multiplier: 1.1}
    aliases:                    # an Azure deployment, a gateway's name
      - {provider: azure, model: my-prod-deployment, is: gpt-4o}
    exchange:                   # for prices in another currency; dated, typed by you
      - {currency: EUR, rate: 1.08, effective_from: 2026-11-01}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from token_meter.documents import Document, checked, document_of, read_document
from token_meter.errors import InvalidDocument, InvalidPrices
from token_meter.money import currency_of, decimal_of
from token_meter.prices.context import situation_of
from token_meter.prices.names import provider_named
from token_meter.prices.price import PER, Factor, Price, moment_of
from token_meter.usage import TOKEN_TYPES

PRICE_MAX: Final = Decimal(1_000_000)
"""A price per million tokens (or thousand calls) above this is taken for a mistake."""


def _price(value: object) -> Decimal:
    amount = decimal_of(value, "a price")
    if not 0 <= amount <= PRICE_MAX:
        raise ValueError(f"a price must be between 0 and {PRICE_MAX}, not {amount}")
    return amount


def _multiplier(value: object) -> Decimal:
    number = decimal_of(value, "a multiplier")
    if not 0 < number <= 1000:
        free = ": for what costs nothing, write `free: true` under `models`" if not number else ""
        raise ValueError(f"a multiplier must be above 0 and at most 1000, not {number}{free}")
    return number


def _when(value: object) -> datetime | None:
    moment = moment_of(value)
    if moment is not None and (moment.minute or moment.second or moment.microsecond):
        raise ValueError("prices change at whole hours (UTC)")
    return moment


Amount = Annotated[Decimal, BeforeValidator(_price)]
Multiplier = Annotated[Decimal, BeforeValidator(_multiplier)]
When = Annotated[datetime | None, BeforeValidator(_when)]


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"{value!a} is no name")
    return value


Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]

CONTEXT_FIELDS: Final = ("service_tier", "batch", "speed", "processing")


class _Dated(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    effective_from: When = None
    effective_to: When = None
    source: str = ""

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> _Dated:
        if self.effective_from and self.effective_to and self.effective_to <= self.effective_from:
            raise ValueError("effective_to must be after effective_from")
        return self


class ModelPriced(_Dated):
    """Prices of one model: per million tokens, thousand calls, hour, million characters."""

    provider: Name
    model: Name
    name: str | None = None
    publisher: str | None = None
    currency: str = "USD"
    prices: dict[str, Amount] = Field(default_factory=dict)
    free: bool = False
    context: dict[str, Any] = Field(default_factory=dict)
    above_context_tokens: int | None = Field(default=None, gt=0)
    inclusive: bool = False

    @field_validator("currency", mode="before")
    @classmethod
    def _is_currency(cls, value: object) -> str:
        return currency_of(value)

    @field_validator("prices")
    @classmethod
    def _types_are_known(cls, value: dict[str, Decimal]) -> dict[str, Decimal]:
        for name in value:
            if name not in TOKEN_TYPES:
                raise ValueError(f"{name!r} is no token type. Known: {', '.join(TOKEN_TYPES)}")
        return value

    @field_validator("context")
    @classmethod
    def _context_is_known(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name not in CONTEXT_FIELDS:
                hint = ": what a geography costs more belongs under `geo`" if "geo" in name else ""
                raise ValueError(f"{name!r} is no context of a price. Known: {', '.join(CONTEXT_FIELDS)}{hint}")
        return value

    @property
    def key(self) -> tuple[Any, ...]:
        """Two entries with the same key would contradict each other."""
        place = (provider_named(self.provider), self.model.lower(), situation_of(self.context).context)
        return (*place, self.above_context_tokens, self.inclusive, self.effective_from)

    @model_validator(mode="after")
    def _says_a_price(self) -> ModelPriced:
        if bool(self.prices) == self.free:
            raise ValueError("give either prices or `free: true`: a model without a price is not free by itself")
        return self


class Discounted(_Dated):
    """A negotiated multiplier on list prices; `model` may end in `*`."""

    provider: Name
    model: Name = "*"
    list_multiplier: Multiplier


class GeoPriced(_Dated):
    """What a request costs more (or less) for where it was served."""

    provider: Name
    model: Name = "*"
    geo: Name
    multiplier: Multiplier


class Aliased(BaseModel):
    """Another name for a model of the book."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    provider: Name
    model: Name
    stands_for: Name = Field(alias="is")
    of: str | None = None


class Exchanged(_Dated):
    """The rate of another currency in US dollars."""

    currency: str
    rate: Multiplier

    @field_validator("currency", mode="before")
    @classmethod
    def _is_currency(cls, value: object) -> str:
        return currency_of(value)


class OverridesFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: list[ModelPriced] = Field(default_factory=list)
    discounts: list[Discounted] = Field(default_factory=list)
    geo: list[GeoPriced] = Field(default_factory=list)
    aliases: list[Aliased] = Field(default_factory=list)
    exchange: list[Exchanged] = Field(default_factory=list)

    @model_validator(mode="after")
    def _contradicts_nothing(self) -> OverridesFile:
        priced = [(("model", *each.key, name), each.model) for each in self.models for name in each.prices or ("free",)]
        others = [
            *((("discount", provider_named(each.provider), each.model.lower(), each.effective_from), each.model)
              for each in self.discounts),
            *((("geo", provider_named(each.provider), each.model.lower(), each.geo.lower(), each.effective_from),
               each.model) for each in self.geo),
            *((("alias", provider_named(each.provider), each.model.lower()), each.model) for each in self.aliases),
            *((("exchange rate", each.currency, each.effective_from), each.currency) for each in self.exchange),
        ]  # fmt: skip
        seen: set[tuple[Any, ...]] = set()
        for key, name in (*priced, *others):
            if key in seen:
                raise ValueError(f"there is more than one {key[0]} for {name} from the same date on")
            seen.add(key)
        return self


class Alias(NamedTuple):
    """What a name stands for."""

    provider: str | None
    model: str


class Overrides:
    """The operator's prices, discounts, aliases and rates. `version` names their content."""

    def __init__(self, file: OverridesFile) -> None:
        self.file = file
        text = json.dumps(file.model_dump(mode="json"), sort_keys=True)
        self.version = sha256(text.encode()).hexdigest()[:12]
        self._prices: dict[str, dict[str, list[Price]]] = {}
        self._free: set[tuple[str, str]] = set()
        for priced in file.models:
            provider = provider_named(priced.provider)
            rows = self._prices.setdefault(provider, {}).setdefault(priced.model.lower(), [])
            rows.extend(_rows(provider, priced))
            if priced.free and not priced.context:
                self._free.add((provider, priced.model.lower()))
        self._aliases = {
            (provider_named(each.provider), each.model.lower()): Alias(each.of, each.stands_for)
            for each in file.aliases
        }
        self.factors: tuple[Factor, ...] = (
            *(
                _factor("discount", each, each.list_multiplier, provider=each.provider, model=each.model)
                for each in file.discounts
            ),
            *(
                _factor("geo", each, each.multiplier, provider=each.provider, model=each.model, geo=each.geo.lower())
                for each in file.geo
            ),
            *(_factor("exchange", each, each.rate, currency=each.currency) for each in file.exchange),
        )

    @classmethod
    def read(cls, given: str | os.PathLike[str] | Mapping[str, Any]) -> Overrides:
        """From a file's path or a mapping. Raises InvalidPrices naming the line and the field of what is wrong."""
        try:
            return cls(checked(OverridesFile, _document(given)))
        except InvalidDocument as problem:
            raise InvalidPrices(str(problem)) from None

    def document(self) -> dict[str, Any]:
        """The same as JSON, which `read` takes back."""
        return self.file.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def prices(self, provider: str, model: str) -> Sequence[Price]:
        """The own prices of a model."""
        return self._prices.get(provider, {}).get(model.lower(), ())

    def is_free(self, provider: str, model: str) -> bool:
        """Whether a model was said to cost nothing, in whatever service tier or batch."""
        return (provider, model.lower()) in self._free

    def models(self, provider: str) -> Iterable[str]:
        """The models of a provider with own prices."""
        return (rows[0].model for rows in self._prices.get(provider, {}).values())

    def providers(self) -> Iterable[str]:
        """The providers with own prices."""
        return self._prices

    def alias(self, provider: str, model: str) -> Alias | None:
        """What this name of a model stands for, if the operator said so."""
        return self._aliases.get((provider, model.strip().lower()))


def _document(given: str | os.PathLike[str] | Mapping[str, Any]) -> Document:
    if isinstance(given, Mapping):
        return document_of(given, name="prices")
    path = Path(given)
    try:
        return read_document(path.read_bytes(), name=path.name)
    except OSError as problem:
        raise InvalidPrices(f"cannot read the price overrides {path}: {problem.strerror}") from None


def _rows(provider: str, priced: ModelPriced) -> Iterable[Price]:
    amounts = dict.fromkeys(TOKEN_TYPES, Decimal(0)) if priced.free else priced.prices
    context = situation_of(priced.context).context
    for token_type, amount in amounts.items():
        yield Price(
            provider=provider,
            model=priced.model,
            token_type=token_type,
            amount=amount,
            per=PER[TOKEN_TYPES[token_type].unit],
            currency=priced.currency,
            context=context,
            above=priced.above_context_tokens,
            inclusive=priced.inclusive,
            effective_from=priced.effective_from,
            effective_to=priced.effective_to,
            publisher=priced.publisher,
            display_name=priced.name,
            source=priced.source or "price overrides",
        )


def _factor(kind: Any, dated: _Dated, multiplier: Decimal, **more: Any) -> Factor:
    if "provider" in more:
        more["provider"] = provider_named(more["provider"]) if more["provider"] != "*" else "*"
    return Factor(
        kind=kind,
        multiplier=multiplier,
        effective_from=dated.effective_from,
        effective_to=dated.effective_to,
        source=dated.source or "price overrides",
        **more,
    )
