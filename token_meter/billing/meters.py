"""Meters: which aggregation over events is sold under which name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from token_meter.billing.fields import Frozen, MeterName, Text

LLM_TOKENS: Final = "llm_tokens"
API_CALLS: Final = "api_calls"


class MeterDefinition(Frozen):
    """A meter: `sum` adds the quantities of its events, `count` counts the events, `max` takes the largest quantity,
    `unique` counts the distinct values of a dimension."""

    name: MeterName
    aggregation: Literal["sum", "count", "max", "unique"] = "sum"
    of: str | None = None
    unit: Text = "unit"
    title: Text = ""

    def model_post_init(self, _context: object) -> None:
        """`unique` needs to know of what."""
        if (self.aggregation == "unique") != (self.of is not None):
            raise ValueError("`of` names the dimension whose distinct values a `unique` meter counts, and only that")


BUILT_IN: Final[Mapping[str, MeterDefinition]] = {
    LLM_TOKENS: MeterDefinition(name=LLM_TOKENS, unit="token", title="LLM tokens"),
    API_CALLS: MeterDefinition(name=API_CALLS, unit="call", title="API calls"),
}
"""`llm_tokens` sums tokens by type; `api_calls` counts calls of models, and adds the values reported under its name."""


def meters_of(own: Iterable[MeterDefinition]) -> dict[str, MeterDefinition]:
    """Every meter by name."""
    return {**BUILT_IN, **{meter.name: meter for meter in own}}
