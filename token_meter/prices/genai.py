"""Reads the price data of the genai-prices project (MIT): its JSON feed, or the installed package.

What it states per model (input, cached input, audio, ... with dates, tiers and variants) becomes rows of the price
book, one for each token type, context and threshold. Where it states nothing there is no row: what a provider bills
at its parent's rate ("audio as text") is said here, row by row, so that a missing price stays missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Final

from token_meter.money import decimal_of
from token_meter.prices.price import Context, Price

UNITS: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {
    "input_mtok": (("input",), 1_000_000),
    "output_mtok": (("output",), 1_000_000),
    "output_reasoning_mtok": (("reasoning",), 1_000_000),
    "cache_read_mtok": (("cache_read",), 1_000_000),
    "cache_write_1h_mtok": (("cache_write_1h",), 1_000_000),
    "input_audio_mtok": (("input_audio",), 1_000_000),
    "output_audio_mtok": (("output_audio",), 1_000_000),
    "cache_audio_read_mtok": (("cache_read_audio",), 1_000_000),
    "input_image_mtok": (("input_image",), 1_000_000),
    "output_image_mtok": (("output_image",), 1_000_000),
    "cache_image_read_mtok": (("cache_read_image",), 1_000_000),
    "input_video_mtok": (("input_video",), 1_000_000),
    "output_video_mtok": (("output_video",), 1_000_000),
    "web_searches_kcount": (("web_search",), 1_000),
    "storage_searches_kcount": (("file_search",), 1_000),
    "audio_hours": (("audio_ms",), 3_600_000),
    "input_mchars": (("characters",), 1_000_000),
}
"""Their units that we meter. `input_audio_hours` repeats `audio_hours`; pages and requests are not metered."""

UNMETERED: Final = frozenset({"requests_kcount", "output_citation_mtok", "input_text_messages_kcount"})
"""What some models are charged for besides tokens, and no event counts. They have no price here at all: a cost without
a part of it would be wrong in silence."""

CACHE_WRITE: Final = "cache_write_mtok"
"""One price for writing to the cache; how long that is kept for differs by who made the model."""

CACHE_WRITE_TYPES: Final[Mapping[str | None, tuple[str, ...]]] = {"openai": ("cache_write_30m",)}
CACHE_WRITE_DEFAULT: Final = ("cache_write_5m",)

SAME_RATE: Final = {
    "google": (
        ("input_audio", "input"), ("cache_read_audio", "cache_read"), ("cache_read_image", "cache_read"),
        ("cache_read_video", "cache_read"),
    ),
}  # fmt: skip
"""Providers that bill a modality at the price of text where they state no other (ai.google.dev/gemini-api/docs/pricing:
"text / image / video", audio on its own only for some models)."""

_SAME_RATE_MODELS: Final = re.compile(r"^gemini-(?!.*(?:embedding|image|banana|tts))")
"""... and of their models those that take every modality; for the others audio has a price that is not stated."""

THRESHOLD_MAX: Final = 10**12
"""A step of more context tokens than this is taken for a mistake."""
NAME_MAX: Final = 256

_STARTS: Final = re.compile(r"^[A-Za-z0-9][\w.:@/+-]*$")


@dataclass(slots=True)
class ModelPrices:
    """One model of a feed: its names and its rows."""

    provider: str
    model: str
    display_name: str | None
    aliases: tuple[str, ...]
    prices: list[Price] = field(default_factory=list)


@dataclass(slots=True)
class Feed:
    """A price feed: models, and where a provider's unknown models may be looked up instead."""

    models: list[ModelPrices]
    fallbacks: dict[str, tuple[str, ...]]
    names: dict[str, str]


def read_feed(providers: Sequence[Mapping[str, Any]], *, source: str, recorded_at: datetime, publisher_of: Any) -> Feed:
    """Turn the feed's providers into models with price rows. `publisher_of` names who made a model.

    Raises ValueError for what is no such feed.
    """
    feed = Feed([], {}, {})
    try:
        for provider in providers:
            name = _name(provider["id"])
            feed.names[name] = provider.get("name") or name
            if provider.get("fallback_model_providers"):
                feed.fallbacks[name] = tuple(provider["fallback_model_providers"])
            for model in provider["models"]:
                feed.models.append(_model(name, model, source, recorded_at, publisher_of))
    except (KeyError, TypeError, AttributeError, IndexError) as problem:
        raise ValueError(f"this is no price feed of genai-prices ({problem!r})") from None
    return feed


def installed_feed() -> tuple[list[dict[str, Any]], str]:
    """The providers of the installed genai-prices package as plain data, and its version. ImportError without it."""
    from importlib.metadata import version

    from genai_prices.data import providers

    return [_plain(provider) for provider in providers], version("genai-prices")


def _model(
    provider: str, model: Mapping[str, Any], source: str, recorded_at: datetime, publisher_of: Any
) -> ModelPrices:
    identity = _name(model["id"]).removeprefix("regional.")
    title = model.get("name")
    title = title if isinstance(title, str) and title.isprintable() else None
    names = [name for name in _names(model["match"]) if name.lower() != identity.lower()]
    publisher = publisher_of(identity)
    made = ModelPrices(provider, identity, title, tuple(dict.fromkeys(map(str.lower, names))))
    conditions = _conditions(model["prices"])
    base = {"provider": provider, "model": identity, "publisher": publisher, "display_name": title}
    more = {"source": source, "recorded_at": recorded_at}
    for (token_type, above), dated in _timeline(conditions, base).items():
        made.prices.extend(_rows(base, token_type, above, (), dated, more))
    for context, variants in _variants(model.get("price_variants") or ()).items():
        for (token_type, above), dated in _timeline(variants, base).items():
            made.prices.extend(_rows(base, token_type, above, context, dated, more))
    return made


def _name(value: Any) -> str:
    """A name out of a feed: it is shown to people and kept, so it has to be short and plain."""
    if not isinstance(value, str) or not 0 < len(value) <= NAME_MAX or not value.isprintable():
        raise ValueError(f"{value!a:.100} is no name")
    return value


Window = tuple[int, int]
Condition = tuple[date | None, Window | None, Mapping[str, Any]]
Dated = list[tuple[date | None, date | None, Window | None, Decimal]]


def _conditions(prices: Any) -> list[Condition]:
    if isinstance(prices, Mapping):
        return [(None, None, prices)]
    return [(*_constraint(each.get("constraint")), each["prices"]) for each in prices]


def _variants(variants: Iterable[Mapping[str, Any]]) -> dict[Context, list[Condition]]:
    found: dict[Context, list[Condition]] = {}
    for each in variants:
        context = _context(each["when"])
        if context:
            found.setdefault(context, []).append((*_constraint(each.get("constraint")), each["prices"]))
    return found


def _context(when: Mapping[str, str]) -> Context | None:
    """The variant in our words; None for the standard, and for what our events do not tell."""
    known = {("processing", "batch"): ("batch", "yes")}
    pairs = []
    for key, value in sorted(when.items()):
        if key == "service_tier" and value == "default":
            return None
        if key in ("service_tier", "speed") or (key, value) in known:
            pairs.append(known.get((key, value), (key, value)))
        else:
            return None
    return tuple(sorted(pairs))


def _constraint(constraint: Any) -> tuple[date | None, Window | None]:
    if not constraint:
        return None, None
    if "start_date" in constraint:
        start = constraint["start_date"]
        return (date.fromisoformat(start) if isinstance(start, str) else start), None
    return None, (_minute(constraint["start_time"]), _minute(constraint["end_time"]))


def _minute(value: Any) -> int:
    at = time.fromisoformat(value) if isinstance(value, str) else value
    if at.tzinfo is not None:
        at = datetime.combine(date(2000, 1, 1), at).astimezone(UTC).timetz()
    return int(at.hour * 60 + at.minute)


def _timeline(conditions: list[Condition], base: Mapping[str, Any]) -> dict[tuple[str, int | None], Dated]:
    """For each token type and threshold: from when until when which amount. A price set replaces the one before."""
    dated = sorted((each for each in conditions if each[1] is None), key=lambda each: each[0] or date.min)
    found: dict[tuple[str, int | None], Dated] = {}
    for place, (start, _, prices) in enumerate(dated):
        stop = dated[place + 1][0] if place + 1 < len(dated) else None
        for key, amount in _amounts(prices, base).items():
            found.setdefault(key, []).append((start, stop, None, amount))
    for _, window, prices in conditions:
        if window is not None:
            for key, amount in _amounts(prices, base).items():
                found.setdefault(key, []).append((None, None, window, amount))
    return {key: _merged(spans) for key, spans in found.items()}


def _merged(spans: Dated) -> Dated:
    """Neighbours with the same amount are one span."""
    merged: Dated = []
    for start, stop, window, amount in spans:
        if merged and merged[-1][1:] == (start, window, amount) and start is not None:
            merged[-1] = (merged[-1][0], stop, window, amount)
        else:
            merged.append((start, stop, window, amount))
    return merged


def _amounts(prices: Mapping[str, Any], base: Mapping[str, Any]) -> dict[tuple[str, int | None], Decimal]:
    amounts: dict[tuple[str, int | None], Decimal] = {}
    if any(prices.get(unit) for unit in UNMETERED):
        return amounts
    for unit, value in prices.items():
        if value is None:
            continue
        types, _ = UNITS.get(unit, ((), 0))
        if unit == CACHE_WRITE:
            types = CACHE_WRITE_TYPES.get(base["publisher"], CACHE_WRITE_DEFAULT)
        for token_type in types:
            for above, amount in _steps(value):
                amounts[token_type, above] = amount
    for token_type, same in SAME_RATE.get(base["provider"], ()):
        if (token_type, None) not in amounts and _SAME_RATE_MODELS.match(base["model"]):
            amounts |= {(token_type, above): amount for (name, above), amount in list(amounts.items()) if name == same}
    return amounts


def _steps(value: Any) -> Iterator[tuple[int | None, Decimal]]:
    if isinstance(value, Mapping):
        yield None, _decimal(value["base"])
        for tier in value["tiers"]:
            yield _threshold(tier["start"]), _decimal(tier["price"])
    else:
        yield None, _decimal(value)


def _threshold(value: Any) -> int:
    number = decimal_of(value, "a threshold of the feed")
    if not 0 < number <= THRESHOLD_MAX or number != number.to_integral_value():
        raise ValueError(f"a threshold of the feed is {value}: that is no number of tokens")
    return int(number)


def _decimal(value: Any) -> Decimal:
    # The feed's JSON has plain numbers; the caller parses them as Decimal, so that no float is made.
    return decimal_of(value, "a price of the feed")


def _rows(
    base: Mapping[str, Any], token_type: str, above: int | None, context: Context, dated: Dated, more: Mapping[str, Any]
) -> Iterator[Price]:
    per = next((per for types, per in UNITS.values() if token_type in types), 1_000_000)
    # The feed knows only "more than": "200,000 or more" is written there as "more than 199,999".
    inclusive = above is not None and above % 1000 == 999
    for start, stop, window, amount in dated:
        yield Price(
            **base, **more, token_type=token_type, amount=amount, per=per, context=context,
            above=above + 1 if above is not None and inclusive else above, inclusive=inclusive, daily=window,
            effective_from=_midnight(start), effective_to=_midnight(stop),
        )  # fmt: skip


def _midnight(day: date | None) -> datetime | None:
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)


def _names(match: Mapping[str, Any]) -> Iterator[str]:
    """The names a match clause spells out. What it leaves open (patterns) is for the book's own rule of names."""
    for kind, value in match.items():
        if kind in ("or", "or_", "and", "and_"):
            if kind.startswith("or"):
                for each in value:
                    yield from _names(each)
        elif kind != "regex" and _STARTS.match(value):
            yield value.rstrip("-@")


def _plain(value: Any) -> Any:
    """The package's objects as the plain data that its JSON feed has."""
    if isinstance(value, (str, int, Decimal, date, time)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    members = vars(value) if hasattr(value, "__dict__") else {}
    return {key: _plain(each) for key, each in members.items() if not key.startswith("_") and not callable(each)}
