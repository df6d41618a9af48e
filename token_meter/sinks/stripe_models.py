"""How Stripe's token billing spells models: `<provider>/<name>`, without dates, as its own clients do.

Those clients normalise only the plain names of two vendors. Names as clouds spell them (`anthropic.claude-…-v2:0`,
`claude-…@20250929`, `azure/gpt-4o-2024-11-20`, `models/gemini-2.5-pro`) pass them unchanged and match no price; here
they come out like the plain ones. Source: the clients' code, reference in docs/decisions.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from token_meter.event import MeterEvent

UNKNOWN: Final = "unknown"
"""Stands for a provider or model that an event does not name."""

KEPT: Final = frozenset({"gpt-4o-2024-05-13"})
"""Dated names that are priced apart from the undated ones."""

NAMED_BY_PUBLISHER: Final = frozenset({"vertex"})
"""Providers whose models Stripe lists under who made them."""

_PREFIXES: Final = re.compile(
    r"^(?:(?:publishers/[^/]+/)?models/|arn:[^/]*/|(?:azure|bedrock|vertex|vertex_ai|openai|anthropic|google)/"
    r"|(?:us|eu|apac|jp|au|ca|global|us-gov)\.(?=[a-z0-9]+\.)|(?:anthropic|openai)\.)+"
)
_CLOUD_ENDING: Final = re.compile(r"(?:(?<!claude)(?<!instant)-v\d+(?::\d+)*(?::\w+)?|(?<!-v\d):\d+)$")
"""A revision of the cloud's. In the oldest names (`claude-v2:1`) it is the version of the model itself."""
_AT_DATE: Final = re.compile(r"@(?:\d{8}|latest|default)$")
_DATE: Final = re.compile(r"-\d{8}$")
_DASHED_DATE: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_LATEST: Final = re.compile(r"-latest$")
_VERSION: Final = re.compile(r"(-[a-z]+)?-(\d+)-(\d+)(?!\d)")


def stripe_model(event: MeterEvent) -> str:
    """The model of an event as Stripe's token billing knows it: the one that answered, else the one asked for."""
    model = event.model or event.model_requested or UNKNOWN
    provider = (event.provider or event.publisher or UNKNOWN).lower()
    publisher = event.publisher or provider
    return f"{publisher if provider in NAMED_BY_PUBLISHER else provider}/{normalised(model, publisher=publisher)}"


@lru_cache(maxsize=4096)
def normalised(model: str, *, publisher: str) -> str:
    """A model's name without what differs between releases and clouds.

    A fine-tuned model keeps `ft:` before its base model's name, since it has another price; whose it is, is left out.
    """
    if model.startswith("ft:"):
        base = model.split(":")[1] if ":" in model[3:] else model[3:]
        return f"ft:{normalised(base, publisher=publisher)}"
    plain = _PREFIXES.sub("", model)
    rule = _RULES.get(publisher.lower())
    if rule is None:
        return plain
    return rule(plain)


def _anthropic(model: str) -> str:
    plain = _AT_DATE.sub("", _CLOUD_ENDING.sub("", model))
    plain = _LATEST.sub("", _DATE.sub("", plain))
    return _VERSION.sub(r"\1-\2.\3", plain)


def _openai(model: str) -> str:
    return model if model in KEPT else _DASHED_DATE.sub("", model)


def _google(model: str) -> str:
    return _AT_DATE.sub("", model)


_RULES: Final[dict[str, Callable[[str], str]]] = {
    "anthropic": _anthropic,
    "openai": _openai,
    "google": _google,
}
