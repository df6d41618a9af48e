"""Sinks by name, for the command line and the environment: those of this package, and those that others bring.

    stripe          lago:mode=test,customers=same          trial=stripe:api=v2

A package registers its sink as an entry point of the group `token_meter.sinks`: the name, and something to call that
makes the sink from the environment. Options are texts, and a key is never one of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from token_meter.sinks.base import Sink, sink_name

GROUP: Final = "token_meter.sinks"

OURS: Final[Mapping[str, str]] = {
    "amberflo": "token_meter.sinks.amberflo:AmberfloSink",
    "lago": "token_meter.sinks.lago:LagoSink",
    "openmeter": "token_meter.sinks.openmeter:OpenMeterSink",
    "opentelemetry": "token_meter.sinks.opentelemetry:OpenTelemetrySink",
    "stripe": "token_meter.sinks.stripe:StripeSink",
    "webhook": "token_meter.sinks.webhook:WebhookSink",
}

SECRETS: Final = frozenset(
    {"access_key", "access_token", "api_key", "api_token", "auth_token", "password", "secret", "secret_key", "token",
     "webhook_secret"}
)  # fmt: skip
"""Options that are refused: whoever lists the processes of a machine reads command lines."""

FORM: Final = re.compile(r"(?:(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)=)?(?P<kind>[^:=]+)(?::(?P<rest>.+))?", re.DOTALL)
"""How a sink is named: a name of its own if it has one, its kind, its options."""


TEXTUAL: Final = ("str", "Literal", "wire.Api", "Mode", "Template", "Customers")
"""How annotations of parameters begin that a text can be given for."""


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
        raise ValueError(f"{secret} does not belong on a command line: set the environment variable for it instead")
    known = _text_options(make)
    unknown = [option for option in given if option not in known]
    if unknown:
        raise ValueError(f"the sink {kind!r} has no option {unknown[0]!r}. It has: {', '.join(sorted(known))}")
    made: Any = make(**given)
    if not callable(getattr(made, "send", None)):
        raise ValueError(f"what is registered as {kind!r} makes no sink: it has no send(events)")
    return made  # type: ignore[no-any-return]


def named_sinks(text: str) -> list[Sink]:
    """The sinks that `stripe,lago:mode=test,customers=same` and the like name, in this order.

    Raises ValueError for a kind that is not known, an option that it does not have, and two sinks of one name.
    """
    sinks: list[Sink] = []
    for each in _split(text):
        match = FORM.fullmatch(each)
        options = read_options(match["rest"]) if match is not None else None
        made = named_sink(match["kind"], options, name=match["name"]) if match and options is not None else None
        if made is None:
            raise ValueError(f"there is no sink {each!r}. Known: {', '.join(known_names())}")
        if sink_name(made) in map(sink_name, sinks):
            raise ValueError(f"two sinks are called {sink_name(made)!r}: name one, as in second={each}")
        sinks.append(made)
    return sinks


def read_options(text: str | None) -> dict[str, str] | None:
    """Options as in `api=stream,mode=test`; None for a text that holds something else."""
    options: dict[str, str] = {}
    for part in text.split(",") if text else ():
        option, equals, value = part.partition("=")
        if not equals:
            return None
        options[option.strip()] = value.strip()
    return options


def _split(text: str) -> list[str]:
    """The parts between commas, each with the options that follow it."""
    found: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if found and _continues(found[-1], part):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _continues(sink: str, part: str) -> bool:
    """Whether a part is one more option of a sink that has options: `mode=test` could also name a sink."""
    match = FORM.fullmatch(sink)
    option, equals, _ = part.partition("=")
    if match is None or not match["rest"] or not equals:
        return False
    make = _maker(match["kind"])
    return make is not None and option.strip() in _text_options(make) | SECRETS


def _maker(kind: str) -> Callable[..., Any] | None:
    target = OURS.get(kind)
    if target is not None:
        module, _, attribute = target.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), attribute)
        return found
    for point in entry_points(group=GROUP):
        if point.name == kind:
            try:
                registered: Callable[..., Any] = point.load()
            except (ImportError, AttributeError) as problem:
                raise ValueError(f"cannot load the sink {kind!r} ({point.value}): {problem}") from None
            return registered
    return None


def _text_options(make: Callable[..., Any]) -> set[str]:
    """The parameters that a text can be given for: what is annotated as one, or as one of some words."""
    found = set()
    for each in inspect.signature(make).parameters.values():
        note = each.annotation.__name__ if isinstance(each.annotation, type) else str(each.annotation)
        textual = note.removeprefix("typing.").removeprefix("Optional[").startswith(TEXTUAL) or note == "Api"
        if textual and each.name not in SECRETS:
            found.add(each.name)
    return found
