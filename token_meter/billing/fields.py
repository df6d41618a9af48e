"""The kinds of fields that rate cards and plans are written with, each with an error a person understands."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from token_meter.money import EXACT, ONE, currency_of, decimal_of
from token_meter.prices.price import moment_of

AMOUNT_MAX: Final = Decimal(10) ** 15
NAME_LENGTH_MAX: Final = 120

_NAME: Final = re.compile(r"^[^\s@/#][^@/#]*$")


class Frozen(BaseModel):
    """The base of everything a person writes: unknown fields are mistakes, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _amount(value: object) -> Decimal:
    amount = decimal_of(value, "an amount")
    if not 0 <= amount <= AMOUNT_MAX:
        raise ValueError(f"an amount must be between 0 and {AMOUNT_MAX:f}, not {amount}")
    return amount


def _percent(value: object) -> Decimal:
    text = value.strip().removesuffix("%").strip() if isinstance(value, str) else value
    percent = decimal_of(text, "a percentage")
    if not -100 <= percent <= 100_000:
        raise ValueError(f"a percentage must be between -100 and 100000, not {percent}")
    return percent


def _share(value: object) -> Decimal:
    percent = _percent(value)
    if not 0 <= percent <= 100:
        raise ValueError(f"it must be between 0 and 100 %, not {percent}")
    return percent


def _multiplier(value: object) -> Decimal:
    number = decimal_of(value, "a multiplier")
    if not 0 <= number <= 1_001:
        raise ValueError(f"a multiplier must be between 0 and 1001, not {number}")
    return number


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.match(value.strip()) or len(value.strip()) > NAME_LENGTH_MAX:
        raise ValueError(f"a name has 1 to {NAME_LENGTH_MAX} characters, without @, / and #; not {value!r}")
    return value.strip()


def _up_to(value: object) -> int | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("inf", "infinity", "unlimited")):
        return None
    return _quantity(value)


def _quantity(value: object) -> int:
    if isinstance(value, str):
        value = value.replace("_", "").replace(",", "").strip()
        value = int(value) if value.isdigit() else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**63:
        raise ValueError(f"a quantity must be a whole number above 0, not {value!r}")
    return value


def meter_name(value: object) -> str:
    """A meter's name in its one form: `llm tokens` and `LLM-tokens` are `llm_tokens`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a meter needs a name, not {value!r}")
    return re.sub(r"[\s-]+", "_", value.strip()).lower()


Amount = Annotated[Decimal, BeforeValidator(_amount)]
Percent = Annotated[Decimal, BeforeValidator(_percent)]
Share = Annotated[Decimal, BeforeValidator(_share)]
Multiplier = Annotated[Decimal, BeforeValidator(_multiplier)]
Currency = Annotated[str, BeforeValidator(currency_of)]
Name = Annotated[str, BeforeValidator(_name)]
MeterName = Annotated[str, BeforeValidator(meter_name)]
Quantity = Annotated[int, BeforeValidator(_quantity)]
UpTo = Annotated[int | None, BeforeValidator(_up_to)]
When = Annotated[datetime | None, BeforeValidator(moment_of)]
Text = Annotated[str, Field(max_length=2_000)]


def multiplier_of(markup: Decimal) -> Decimal:
    """The multiplier on cost that a markup in percent means: 30 is 1.30."""
    return EXACT.add(ONE, EXACT.divide(markup, Decimal(100)))


def given(model: BaseModel, *names: str) -> list[str]:
    """Which of these fields were given."""
    return [name for name in names if getattr(model, name) is not None]


def document(model: BaseModel) -> dict[str, Any]:
    """The model as JSON, amounts as text; reading it back gives the same."""
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
