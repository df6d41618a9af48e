"""What a billing backend is told of an event: none, one or several measures, by a table or by a function of the user's.

A table is a sequence of `Rule`s. Each sums some token types of an event into one measure, so an event makes at most one
measure for each rule, and the same ones however often it is sent. A rule that finds nothing makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from token_meter.event import MeterEvent
from token_meter.usage import TOKEN_TYPES

LLM_TOKENS: Final = "llm_tokens"
"""The meter of events that were metered from model calls."""

KEY_CHARACTERS_MAX: Final = 50
"""Keys are part of identifiers, which destinations bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of a mapping: the token types `types` of an event, summed, are `meter` at the destination.

    `types` are names of `TOKEN_TYPES`; without any, calls are counted (1 for each event with usage). `source` is the
    meter of the events it applies to (ANY_METER: all but model calls, under their own name if `meter` is ""). `key`
    tells the measures of one event apart, in identifiers too: never change it for usage that is already reported.
    `properties` stand on each measure beside those that are taken from the event.
    """

    key: str
    meter: str
    types: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    source: str = LLM_TOKENS

    def __post_init__(self) -> None:
        unknown = [name for name in self.types if name not in TOKEN_TYPES]
        if unknown:
            raise ValueError(f"rule {self.key!r}: {', '.join(unknown)}: no token type. Known: {', '.join(TOKEN_TYPES)}")
        if not 0 < len(self.key) <= KEY_CHARACTERS_MAX:
            raise ValueError(f"a rule's key has 1 to {KEY_CHARACTERS_MAX} characters, not {self.key!r}")


ANY_METER: Final = "*"
"""The `source` of a rule for every meter of the user's own, whatever its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """So much of one meter: what a mapping makes of an event. `key` is unique among the measures of the event.

    `types` are the token types that were summed, so that a refused measure can be told apart from the others.
    """

    key: str
    meter: str
    value: int
    properties: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ()


Mapped = Callable[[MeterEvent], Iterable[Measure]]
"""A mapping as a function: what is to be reported of an event."""

Properties = Mapping[str, Callable[[MeterEvent], str | None]]
"""What measures carry besides their value: by name, how it is read off an event. None: left out."""


def measured(rules: Sequence[Rule], properties: Properties) -> Mapped:
    """The function that a table describes."""
    keys = [rule.key for rule in rules]
    double = next((key for key in keys if keys.count(key) > 1), None)
    if double is not None:
        raise ValueError(f"two rules have the key {double!r}: each needs its own")

    def measures(event: MeterEvent) -> list[Measure]:
        own: dict[str, str] | None = None
        found = []
        for rule in rules:
            if not _applies(rule, event):
                continue
            value = _value(rule, event)
            if not value:
                continue
            if own is None:
                own = {name: text for name, read in properties.items() if (text := read(event)) is not None}
            found.append(
                Measure(
                    key=rule.key,
                    meter=rule.meter or event.meter,
                    value=value,
                    properties={**own, **rule.properties},
                    types=tuple(rule.types) or tuple(event.usage),
                )
            )
        return found

    return measures


def _applies(rule: Rule, event: MeterEvent) -> bool:
    if rule.source == ANY_METER:
        return event.meter != LLM_TOKENS
    return event.meter == rule.source


def _value(rule: Rule, event: MeterEvent) -> int:
    usage = event.usage
    if not rule.types:
        # Usage of one's own is any of the types; of a model call, calls are what is counted.
        return sum(usage.values()) if rule.source != LLM_TOKENS else int(bool(usage))
    return sum(usage.get(name, 0) for name in rule.types)


def types_of(*headlines: str) -> tuple[str, ...]:
    """The token types under these headlines, in table order."""
    return tuple(name for name, row in TOKEN_TYPES.items() if row.headline in headlines)


def unmapped(rules: Sequence[Rule]) -> tuple[str, ...]:
    """The token types that no rule reports: usage of these never reaches the destination."""
    reported = {name for rule in rules for name in rule.types if rule.source == LLM_TOKENS}
    return tuple(name for name in TOKEN_TYPES if name not in reported and TOKEN_TYPES[name].unit != "unit")


def own_dimensions(names: Sequence[str]) -> Properties:
    """Dimensions of the user's own as properties, under their names."""

    def read(name: str) -> Callable[[MeterEvent], str | None]:
        return lambda event: event.dimensions.get(name)

    return {name: read(name) for name in names}


MODEL: Final[Properties] = {
    "model": lambda event: event.model,
    "provider": lambda event: event.provider,
}
"""The properties that every backend gets."""
