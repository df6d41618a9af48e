"""Rate cards: what we charge for what. Written in YAML or made in Python, versioned when they are kept.

name: standard
currency: USD
rates:
  - meter: llm_tokens
    cost_plus: {markup: 30%}                      # on what the provider charges us
    overrides:
      - {model: "gpt-5*", token_type: output, markup: 50%}
  - meter: api_calls
    per_unit: 0.01
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Final, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from token_meter.billing.fields import (
    Amount,
    Currency,
    Frozen,
    MeterName,
    Multiplier,
    Name,
    Percent,
    Quantity,
    Text,
    UpTo,
    given,
    multiplier_of,
)
from token_meter.billing.meters import LLM_TOKENS

KINDS: Final = ("cost_plus", "per_unit", "matrix", "graduated", "volume", "package", "flat")
"""How a rate can charge. The first three charge each unit by itself, the others the total of a billing period."""

BY_THE_PERIOD: Final = frozenset({"graduated", "volume", "package", "flat"})

RATES_MAX: Final = 200
ROWS_MAX: Final = 5_000

Dimensions = Mapping[str, str | None]
"""What an event is split by: provider, publisher, model, token_type, headline, and its dimensions."""


class Markup(Frozen):
    """A markup in percent on cost, or the multiplier that it means."""

    markup: Percent | None = None
    multiplier: Multiplier | None = None

    @model_validator(mode="after")
    def _says_one(self) -> Self:
        if len(given(self, "markup", "multiplier")) != 1:
            raise ValueError("give either a markup (30%) or a multiplier (1.30)")
        return self

    @property
    def factor(self) -> Decimal:
        """The multiplier on cost."""
        if self.multiplier is not None:
            return self.multiplier
        assert self.markup is not None
        return multiplier_of(self.markup)


class Override(Markup):
    """Another markup for some providers, models or token types; `*` stands for any characters."""

    provider: str = "*"
    model: str = "*"
    token_type: str = "*"

    def meets(self, dimensions: Dimensions) -> bool:
        """Whether it is about this usage."""
        return all(
            pattern == "*" or fnmatchcase(dimensions.get(name) or "", pattern)
            for name, pattern in (("provider", self.provider), ("model", self.model), ("token_type", self.token_type))
        )


class MatrixRow(Frozen):
    """The price for one combination of dimensions; a dimension that is not named may be anything."""

    model_config = ConfigDict(extra="allow", frozen=True)

    price: Amount

    @property
    def dimensions(self) -> dict[str, str]:
        """The combination."""
        return {name: str(value) for name, value in (self.model_extra or {}).items()}

    def meets(self, dimensions: Dimensions) -> bool:
        """Whether this usage is of the combination."""
        return all(fnmatchcase(dimensions.get(name) or "", pattern) for name, pattern in self.dimensions.items())


class Tier(Frozen):
    """A step of a scale: up to so many units (none: no end), the price of each, and an amount for reaching it."""

    up_to: UpTo = None
    price: Amount = Decimal(0)
    flat: Amount = Decimal(0)


class Package(Frozen):
    """Sold in packages: each begun one costs `price`."""

    size: Quantity
    price: Amount


class Rate(Frozen):
    """What is charged for one meter, in one of seven ways, for the usage that `where` describes.

    `per`: prices are for so many units (1000000 for prices per million tokens). `minimum`: at least so much per
    billing period.
    """

    meter: MeterName = LLM_TOKENS
    title: Text = ""
    where: dict[str, str] = Field(default_factory=dict)
    per: Quantity = 1
    cost_plus: Markup | None = None
    overrides: list[Override] = Field(default_factory=list, max_length=ROWS_MAX)
    per_unit: Amount | None = None
    matrix: list[MatrixRow] | None = Field(default=None, max_length=ROWS_MAX)
    graduated: list[Tier] | None = Field(default=None, max_length=ROWS_MAX)
    volume: list[Tier] | None = Field(default=None, max_length=ROWS_MAX)
    package: Package | None = None
    flat: Amount | None = None
    minimum: Amount | None = None

    @field_validator("graduated", "volume")
    @classmethod
    def _rises(cls, value: list[Tier] | None) -> list[Tier] | None:
        if value is not None:
            _check_tiers(value)
        return value

    @model_validator(mode="after")
    def _charges_in_one_way(self) -> Self:
        ways = given(self, *KINDS)
        if len(ways) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(KINDS)}" + (f", not {' and '.join(ways)}" if ways else "")
            )
        if self.overrides and self.cost_plus is None:
            raise ValueError("overrides belong to cost_plus")
        if self.cost_plus is not None and self.meter != LLM_TOKENS:
            raise ValueError(f"only {LLM_TOKENS} has a cost to add to; {self.meter} needs a price of its own")
        if self.matrix is not None and not self.matrix:
            raise ValueError("a matrix needs at least one row")
        return self

    @property
    def kind(self) -> Literal["cost_plus", "per_unit", "matrix", "graduated", "volume", "package", "flat"]:
        """In which way it charges."""
        return given(self, *KINDS)[0]  # type: ignore[return-value]

    def meets(self, meter: str, dimensions: Dimensions) -> bool:
        """Whether this rate is about this usage."""
        return self.meter == meter and all(
            fnmatchcase(dimensions.get(name) or "", pattern) for name, pattern in self.where.items()
        )

    def factor(self, dimensions: Dimensions) -> Decimal:
        """The multiplier on cost of a cost-plus rate: of the first override that is about this usage, else its own."""
        assert self.cost_plus is not None
        return next((each for each in self.overrides if each.meets(dimensions)), self.cost_plus).factor

    def row(self, dimensions: Dimensions) -> MatrixRow | None:
        """The first row of the matrix that is about this usage."""
        return next((row for row in self.matrix or () if row.meets(dimensions)), None)

    def names(self) -> set[str]:
        """The dimensions that decide what this rate charges."""
        return {*self.where, *(name for row in self.matrix or () for name in row.dimensions)}


class RateCard(Frozen):
    """A named set of rates. Of the rates about one usage the first counts."""

    name: Name
    title: Text = ""
    currency: Currency = "USD"
    rates: list[Rate] = Field(min_length=1, max_length=RATES_MAX)
    apply_to: Literal["new", "all", "hold"] = "all"

    def rate_for(self, meter: str, dimensions: Dimensions) -> int | None:
        """The place of the first rate about this usage."""
        return next((place for place, rate in enumerate(self.rates) if rate.meets(meter, dimensions)), None)

    def names(self) -> set[str]:
        """The dimensions that decide what this card charges."""
        return {name for rate in self.rates for name in rate.names()}


def at_cost(currency: str = "USD") -> RateCard:
    """The card of customers who have no plan: what the provider charges, labelled so."""
    rate: dict[str, Any] = {"meter": LLM_TOKENS, "cost_plus": {"multiplier": 1}}
    return RateCard.model_validate({"name": "at cost", "currency": currency, "rates": [rate]})


def _check_tiers(tiers: Sequence[Tier]) -> None:
    if not tiers:
        raise ValueError("a scale needs at least one tier")
    if any(tier.up_to is None for tier in tiers[:-1]):
        raise ValueError("only the last tier may be without an end")
    ends = [tier.up_to for tier in tiers if tier.up_to is not None]
    if any(later <= earlier for earlier, later in pairwise(ends)):
        raise ValueError("`up_to` must rise from tier to tier")
    if tiers[-1].up_to is not None:
        raise ValueError("the last tier must be without an end (`up_to: inf`): usage beyond it would have no price")
