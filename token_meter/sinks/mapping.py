"""What a billing backend is told of an event: none, one or several measures, by a table or by a function of the user's.

A table is a sequence of `Rule`s. Each sums some token types of an event into one measure, so an event makes at most one
measure for each rule, and the same ones however often it is sent. A rule that finds nothing makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

from token_meter.event import MeterEvent
from token_meter.usage import TOKEN_TYPES, Usage

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
        _check_key(self.key)
        if isinstance(self.types, str):
            raise ValueError(f"rule {self.key!r}: types is a tuple of names, as in types=({self.types!r},)")
        unknown = [name for name in self.types if name not in TOKEN_TYPES]
        if unknown:
            raise ValueError(f"rule {self.key!r}: {', '.join(unknown)}: no token type. Known: {', '.join(TOKEN_TYPES)}")
        _check_texts(f"rule {self.key!r}", self.properties)


ANY_METER: Final = "*"
"""The `source` of a rule for every meter of the user's own, whatever its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """So much of one meter: what a mapping makes of an event. `key` is unique among the measures of the event.

    `types` are the token types that were summed, so that a refused measure can be told apart from the others. Raises
    ValueError for a key that cannot be one, and TypeError for a value that is no whole number.
    """

    key: str
    meter: str
    value: int
    properties: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_key(self.key)
        if not isinstance(self.meter, str) or not self.meter:
            raise ValueError(f"measure {self.key!r}: meter is the name of a meter, not {self.meter!r}")
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise TypeError(f"measure {self.key!r}: value must be an int, not {type(self.value).__name__}")
        _check_texts(f"measure {self.key!r}", self.properties)


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

    tables = {source: _Table(rules, source) for source in (LLM_TOKENS, *(rule.source for rule in rules))}
    others = _Table(rules, ANY_METER)
    reads = tuple(properties.items())

    def measures(event: MeterEvent) -> list[Measure]:
        table = tables.get(event.meter, others)
        sums = table.sums(event.usage)
        if not sums:
            return []
        own: dict[str, str] = {}
        # The table was checked when it was made; what is wrong with an event's own texts the class itself tells.
        fit = bool(event.meter)
        for name, read in reads:
            text = read(event)
            if text is not None:
                own[name] = text
                fit = fit and isinstance(text, str)
        make = _ready_made if fit else _checked
        return [
            make(
                rule.key,
                rule.meter or event.meter,
                sums[place],
                {**own, **rule.properties},
                rule.types or tuple(event.usage),
            )
            for place in sorted(sums)
            for rule in (rules[place],)
        ]

    return measures


def _checked(key: str, meter: str, value: int, properties: Mapping[str, str], types: tuple[str, ...]) -> Measure:
    return Measure(key=key, meter=meter, value=value, properties=properties, types=types)


def _ready_made(key: str, meter: str, value: int, properties: Mapping[str, str], types: tuple[str, ...]) -> Measure:
    """A measure that needs no check: there are several for each event that is delivered."""
    measure = object.__new__(Measure)
    _KEY(measure, key)
    _METER(measure, meter)
    _VALUE(measure, value)
    _PROPERTIES(measure, properties)
    _TYPES(measure, types)
    return measure


_KEY, _METER, _VALUE, _PROPERTIES, _TYPES = (getattr(Measure, each.name).__set__ for each in fields(Measure))


class _Table:
    """The rules that apply to the events of one meter, looked up by token type: events have few, tables have many."""

    def __init__(self, rules: Sequence[Rule], meter: str) -> None:
        own = meter != LLM_TOKENS
        mine = [
            (place, rule)
            for place, rule in enumerate(rules)
            if rule.source == meter or (own and rule.source == ANY_METER)
        ]
        self._own = own
        self._whole = [place for place, rule in mine if not rule.types]
        self._places: dict[str, list[int]] = {}
        for place, rule in mine:
            for name in rule.types:
                self._places.setdefault(name, []).append(place)

    def sums(self, usage: Usage) -> dict[int, int]:
        """What the rules find, by their places; those that find nothing are left out."""
        found: dict[int, int] = {}
        total = 0
        for name, quantity in usage.items():
            total += quantity
            for place in self._places.get(name, ()):
                found[place] = found.get(place, 0) + quantity
        if total:
            # Usage of one's own is any of the types; of a model call, calls are what is counted.
            found.update(dict.fromkeys(self._whole, total if self._own else 1))
        return found


def _check_key(key: str) -> None:
    """Keys stand in identifiers, after the event's id and a colon; a minus before one takes its measure back."""
    if not isinstance(key, str) or not 0 < len(key) <= KEY_CHARACTERS_MAX or ":" in key or key.startswith("-"):
        raise ValueError(
            f"a key has 1 to {KEY_CHARACTERS_MAX} characters, no colon, and no minus at its beginning: {key!r} is none"
        )


def _check_texts(whose: str, properties: Mapping[str, str]) -> None:
    for name, text in properties.items():
        if not isinstance(text, str):
            raise TypeError(f"{whose}: the property {name!r} must be a text, not {type(text).__name__}")


def types_of(*headlines: str) -> tuple[str, ...]:
    """The token types under these headlines, in table order."""
    return tuple(name for name, row in TOKEN_TYPES.items() if row.headline in headlines)


def unmapped(rules: Sequence[Rule]) -> tuple[str, ...]:
    """The token types of model calls that no rule reports: usage of these never reaches the destination."""
    reported = {name for rule in rules for name in rule.types if rule.source == LLM_TOKENS}
    return tuple(name for name in TOKEN_TYPES if name not in reported)


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
