"""What a billing backend is told of an event: none, one or several measures, by a table or by a function of the user's.

A table is a sequence of `Rule`s. Each sums some token types of an event into one measure, so an event makes at most one
measure for each rule, and the same ones however often it is sent. A rule that finds nothing makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from json import dumps
from typing import Final, NamedTuple, Never

from token_meter.event import MeterEvent
from token_meter.usage import TOKEN_TYPES

LLM_TOKENS: Final = "llm_tokens"
"""The meter of events that were metered from model calls."""

KEY_CHARACTERS_MAX: Final = 50
"""Keys are part of identifiers, which destinations bound."""

KINDS_MAX: Final = 1_024
"""For so many kinds of events it is remembered what their measures have in common."""


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
        if type(self.value) is not int:
            object.__setattr__(self, "value", int(self.value))  # a kind of int may show itself in another way
        _check_texts(f"measure {self.key!r}", self.properties)


Mapped = Callable[[MeterEvent], Iterable[Measure]]
"""A mapping as a function: what is to be reported of an event."""

Properties = Mapping[str, Callable[[MeterEvent], str | None]]
"""What measures carry besides their value: by name, how it is read off an event. None: left out."""


class Texts(dict[str, str]):
    """Properties that many measures share: nobody can change them. `json`: the same as JSON, without the braces."""

    __slots__ = ("json",)

    def __init__(self, texts: Mapping[str, str]) -> None:
        super().__init__(texts)
        self.json = dumps(self, separators=(",", ":"))[1:-1]

    def _fixed(self, *_: object, **__: object) -> Never:
        raise TypeError("these properties are shared by many measures: make a mapping of your own")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _fixed

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        """A copy is a dictionary like any other."""
        return (dict, (dict(self),))


def measured(rules: Sequence[Rule], properties: Properties) -> Mapped:
    """The function that a table describes. Raises ValueError for two rules of one key."""
    return Table(rules, properties)


class Table:
    """A mapping that is a table of rules: it makes well-formed measures, each with another key.

    Few kinds of events come again and again: of one meter, with the same token types, of the same model. What their
    measures have in common is worked out once.
    """

    def __init__(self, rules: Sequence[Rule], properties: Properties) -> None:
        keys = [rule.key for rule in rules]
        double = next((key for key in keys if keys.count(key) > 1), None)
        if double is not None:
            raise ValueError(f"two rules have the key {double!r}: each needs its own")
        self._rules = tuple(rules)
        self._properties = dict(properties)
        self._reads = tuple(self._properties.values())
        self._kinds: dict[tuple[str, tuple[str, ...]], _Kind] = {}
        self._remembered = 0

    def __call__(self, event: MeterEvent) -> list[Measure]:
        """One measure for each rule that finds something in an event."""
        kind = self._kind_of(event)
        if not kind.found:
            return []
        values = tuple(event.usage.values())
        texts = tuple([read(event) for read in self._reads])
        try:
            rows = kind.rows.get(texts)
        except TypeError:
            rows = None  # these are no texts
        if rows is None:
            rows = self._rows_of(kind, texts)
            if not kind.meter or not all(text is None or isinstance(text, str) for text in texts):
                # The rules were checked when they were made; what is wrong with an event's own texts the class tells.
                return [_checked(row, _sum(row, values)) for row in rows]
            self._make_room()
            rows = kind.rows[texts] = [row._replace(properties=Texts(row.properties)) for row in rows]
        return [_ready_made(row, values[row.places[0]] if len(row.places) == 1 else _sum(row, values)) for row in rows]

    def _kind_of(self, event: MeterEvent) -> _Kind:
        meter, names = event.meter, tuple(event.usage.keys())
        kind = self._kinds.get((meter, names))
        if kind is None:
            self._make_room()
            kind = self._kinds[(meter, names)] = _Kind(meter, names, _found(self._rules, meter, names), {})
        return kind

    def _rows_of(self, kind: _Kind, texts: tuple[str | None, ...]) -> list[_Row]:
        own = {name: text for name, text in zip(self._properties, texts, strict=True) if text is not None}
        return [
            _Row(rule.key, rule.meter or kind.meter, places, {**own, **rule.properties}, rule.types or kind.names)
            for rule, places in kind.found
        ]

    def _make_room(self) -> None:
        """Remember one thing more: whoever invents meters and models must not fill our memory."""
        self._remembered += 1
        if self._remembered > KINDS_MAX:
            self._kinds, self._remembered = {}, 1


class _Kind(NamedTuple):
    """Events of one meter with the same token types; of each rule that finds something, the places of what it sums."""

    meter: str
    names: tuple[str, ...]
    found: Sequence[tuple[Rule, tuple[int, ...]]]
    rows: dict[tuple[str | None, ...], list[_Row]]


class _Row(NamedTuple):
    """A measure but for its value, and the places of the quantities that make it up (none: calls are counted)."""

    key: str
    meter: str
    places: tuple[int, ...]
    properties: Mapping[str, str]
    types: tuple[str, ...]


def _found(rules: Sequence[Rule], meter: str, names: tuple[str, ...]) -> list[tuple[Rule, tuple[int, ...]]]:
    own = meter != LLM_TOKENS
    mine = [rule for rule in rules if rule.source == meter or (own and rule.source == ANY_METER)]
    # Usage of one's own is any of the types; of a model call, calls are what is counted.
    whole = tuple(range(len(names))) if own else ()
    found = [
        (rule, tuple(names.index(name) for name in rule.types if name in names) if rule.types else whole)
        for rule in mine
    ]
    return [(rule, places) for rule, places in found if places or (names and not rule.types)]


def _sum(row: _Row, values: tuple[int, ...]) -> int:
    return sum([values[place] for place in row.places]) if row.places else 1


def _checked(row: _Row, value: int) -> Measure:
    return Measure(key=row.key, meter=row.meter, value=value, properties=row.properties, types=row.types)


def _ready_made(row: _Row, value: int) -> Measure:
    """A measure that needs no check: there are several for each event that is delivered."""
    measure = _new(Measure)
    _KEY(measure, row.key)
    _METER(measure, row.meter)
    _VALUE(measure, value)
    _PROPERTIES(measure, row.properties)
    _TYPES(measure, row.types)
    return measure


_new: Final = object.__new__
_KEY, _METER, _VALUE, _PROPERTIES, _TYPES = (getattr(Measure, each.name).__set__ for each in fields(Measure))


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
