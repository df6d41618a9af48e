"""What a price depends on besides the model, brought to one form.

Events carry what the provider answered with (`service_tier`, `batch`, `speed`, `geo`, `context_tokens`); other tools
spell some of it differently. A value that nobody knows is kept: a price for it has to be found, or the usage is
unpriced. Taking it for the standard would bill a wrong price in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from token_meter.prices.price import Context
from token_meter.usage import TOKEN_TYPES

STANDARD_TIERS: Final = frozenset({"", "default", "standard", "auto", "on_demand", "on-demand", "ondemand"})
"""How providers say that a request was served at the standard price."""

_YES: Final = frozenset({"yes", "true", "1", "batch"})
_NO: Final = frozenset({"", "no", "false", "0"})

STANDARD_SPEEDS: Final = frozenset({"", "standard", "normal", "default"})

ANYWHERE: Final = frozenset({"", "global", "not_available", "unspecified"})
"""How providers say that a request was served anywhere."""

_IN_CONTEXT: Final = frozenset(
    name for name, row in TOKEN_TYPES.items() if row.headline in ("input", "cached input", "cache write")
)


class Situation(NamedTuple):
    """A price context understood: what the price is looked up by, and where the request was served."""

    context: Context
    geo: str | None


def situation_of(context: Mapping[str, Any] | None) -> Situation:
    """Bring a price context to its one form. `service_tier` is the one that the response names."""
    if not context:
        return _STANDARD
    tier = _text(context.get("service_tier"))
    batch = _text(context.get("batch"))
    if tier == "batch" or _text(context.get("processing")) == "batch" or batch in _YES:
        batch = "yes"
    speed = _text(context.get("speed"))
    pairs: list[tuple[str, str]] = []
    if batch not in _NO:
        pairs.append(("batch", batch))
    if tier not in STANDARD_TIERS and tier != "batch":
        pairs.append(("service_tier", tier))
    if speed not in STANDARD_SPEEDS:
        pairs.append(("speed", speed))
    geo = _text(context.get("geo")) or _text(context.get("inference_geo"))
    return Situation(tuple(pairs), None if geo in ANYWHERE else geo)


def context_tokens_of(context: Mapping[str, Any] | None, usage: Mapping[str, int]) -> int:
    """How long the request's context was: what the event says, else uncached and cached input and cache writes."""
    said = (context or {}).get("context_tokens")
    if isinstance(said, int) and not isinstance(said, bool):
        return said
    return sum(quantity for name, quantity in usage.items() if name in _IN_CONTEXT)


def _text(value: object) -> str:
    """What is no text is kept as the text of it: nobody has a price for that, and so it is not taken for standard."""
    return "" if value is None else str(value).strip().lower()


_STANDARD: Final = Situation((), None)
