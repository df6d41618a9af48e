"""Sinks by name, for the command line and the environment: those of this package, and those that others bring.

A package registers its sink as an entry point of the group `token_meter.sinks`: the name, and something to call that
makes the sink from the environment. Options are texts, and a key is never one of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from token_meter.sinks.base import Sink

GROUP: Final = "token_meter.sinks"

OURS: Final[Mapping[str, str]] = {
    "amberflo": "token_meter.sinks.amberflo:AmberfloSink",
    "lago": "token_meter.sinks.lago:LagoSink",
    "openmeter": "token_meter.sinks.openmeter:OpenMeterSink",
    "opentelemetry": "token_meter.sinks.opentelemetry:OpenTelemetrySink",
    "stripe": "token_meter.sinks.stripe:StripeSink",
    "webhook": "token_meter.sinks.webhook:WebhookSink",
}

SECRETS: Final = frozenset({"api_key", "secret", "webhook_secret"})
"""Options that are refused: whoever lists the processes of a machine reads command lines."""


def known_names() -> list[str]:
    """Every name that `named_sink` knows."""
    return sorted({*OURS, *(point.name for point in entry_points(group=GROUP))})


def named_sink(kind: str, options: Mapping[str, str], *, name: str | None = None) -> Sink | None:
    """The sink of this kind, made with these options and what the environment says; None for an unknown kind.

    Raises ValueError for options that it does not have, and what its constructor raises.
    """
    make = _maker(kind)
    if make is None:
        return None
    given = {**options, **({} if name is None else {"name": name})}
    secret = next((option for option in given if option in SECRETS), None)
    if secret is not None:
        raise ValueError(f"{secret} does not belong on a command line: set the environment variable of {kind!r}")
    known = _text_options(make)
    unknown = [option for option in given if option not in known]
    if unknown:
        raise ValueError(f"the sink {kind!r} has no option {unknown[0]!r}. It has: {', '.join(sorted(known))}")
    made: Sink = make(**given)
    return made


def _maker(kind: str) -> Callable[..., Any] | None:
    target = OURS.get(kind)
    if target is not None:
        module, _, attribute = target.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), attribute)
        return found
    points: list[EntryPoint] = [point for point in entry_points(group=GROUP) if point.name == kind]
    return points[0].load() if points else None


def _text_options(make: Callable[..., Any]) -> set[str]:
    """The parameters that a text can be given for: what is annotated as one, or as one of some words."""
    found = set()
    for each in inspect.signature(make).parameters.values():
        note = str(each.annotation)
        textual = note.startswith(("str", "Literal", "wire.Api", "Mode", "Template", "Customers")) or note == "Api"
        if textual and each.name not in SECRETS:
            found.add(each.name)
    return found
