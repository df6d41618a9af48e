"""Totals and their parts, as routers tell them for whatever provider, made disjoint."""

from __future__ import annotations

from typing import Final, NamedTuple

from token_meter.partners.base import Skip
from token_meter.providers.base import fit
from token_meter.providers.publishers import publisher_of
from token_meter.schema import Status
from token_meter.usage import Usage

NOTHING: Final = "nothing was counted or charged"
FAILED: Final = "failed before anything was consumed"


CACHE_WRITE: Final = {"openai": "cache_write_30m"}
"""What a cache write is by publisher where no lifetime is told; all others' is five minutes."""


def cache_write_of(model: str | None) -> str:
    """The token type of a cache write whose lifetime nobody told."""
    return CACHE_WRITE.get(publisher_of(model) or "", "cache_write_5m")


class Quantities(NamedTuple):
    """What a router told of one call or sum; None where it told nothing."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    written: int | None = None
    reasoning: int | None = None
    images: int | None = None
    searches: int | None = None


def disjoint(told: Quantities, anomalies: list[str], *, model: str | None) -> Usage:
    """Parts taken out of their totals.

    Cache reads and writes that exceed the prompt cannot be part of it: for some providers routers count them beside it.
    """
    prompt, completion = told.prompt or 0, told.completion or 0
    cached = {"cache_read": told.cached or 0, cache_write_of(model): told.written or 0}
    if sum(cached.values()) > prompt:
        anomalies.append("cached_beside_prompt")
        inside = {"input": prompt, **cached}
    else:
        inside = fit(prompt, cached, "input", anomalies)
    outside = fit(completion, {"output_image": told.images or 0, "reasoning": told.reasoning or 0}, "output", anomalies)
    quantities = {**inside, **outside, "web_search": told.searches or 0}
    return Usage.of({name: number for name, number in quantities.items() if number})


def settled(
    told: Quantities, anomalies: list[str], *, model: str | None, cost: float | None, failed: bool
) -> tuple[Usage, Status]:
    """The quantities and how sure they are. Raises Skip where nothing was consumed.

    Money without counts is an event all the same: a human must see it.
    """
    if told.prompt is not None and told.cached is None and told.reasoning is None and told.written is None:
        anomalies.append("only_totals")
    usage = disjoint(told, anomalies, model=model)
    if usage:
        return usage, "partial" if failed else "complete"
    if cost:
        anomalies[:] = [*(each for each in anomalies if each != "only_totals"), "no_counts"]
        return usage, "unmetered"
    raise Skip(FAILED if failed else NOTHING)
