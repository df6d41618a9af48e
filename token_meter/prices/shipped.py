"""The price book inside the package: one compressed file, read when a price is first asked for.

`scripts/compile_prices.py` writes it before a release: a line that says what the lists and factors are, then a line
for each provider, which is parsed when the first of its models is looked up. A row is short: the token type and the
context by their place in a list, days since 1970, what is usual left out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from token_meter.money import plain
from token_meter.prices.model import Model
from token_meter.prices.price import PER, Context, Factor, Price, moment_of
from token_meter.usage import TOKEN_TYPES

if TYPE_CHECKING:
    from token_meter.prices.genai import ModelPrices

FILE: Final = Path(__file__).with_name("data") / "book.json.gz"
FORMAT: Final = 1
BYTES_MAX: Final = 150_000
"""The compressed file is kept below this."""
_TEXT_MAX: Final = 20_000_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ShippedBook:
    """The models of a shipped file, given as its text. `version` names its content, `made` says when it was compiled.

    Raises ValueError for a format that this version of the package cannot read.
    """

    def __init__(self, text: bytes) -> None:
        self._head, *lines = text.split(b"\n")
        document = json.loads(self._head)
        if document.get("format") != FORMAT:
            raise ValueError(f"the price book has format {document.get('format')!r}; this version reads {FORMAT}")
        self.version = sha256(text).hexdigest()[:12]
        self.made = moment_of(document["made"]) or _EPOCH
        self.fallbacks: Mapping[str, Sequence[str]] = document["fallbacks"]
        self.names: Mapping[str, str] = document["names"]
        self.factors = tuple(factor_of(each) for each in document["factors"])
        self._types: list[str] = document["types"]
        self._contexts: list[Context] = [tuple((key, value) for key, value in each) for each in document["contexts"]]
        self._sources: list[str] = document["sources"]
        self._lines: Mapping[str, bytes] = dict(zip(document["providers"], lines, strict=True))
        self._models: dict[str, dict[str, list[Any]]] = {}

    @classmethod
    def load(cls) -> ShippedBook:
        """Read the shipped file."""
        return cls.unpacked(FILE.read_bytes())

    @classmethod
    def unpacked(cls, content: bytes) -> ShippedBook:
        """A book from its compressed form. Raises ValueError or OSError for what is none, or too large."""
        with gzip.GzipFile(fileobj=BytesIO(content)) as file:
            text = file.read(_TEXT_MAX + 1)
        if len(text) > _TEXT_MAX:
            raise ValueError(f"a price book has at most {_TEXT_MAX:,} bytes")
        return cls(text)

    def packed(self) -> bytes:
        """Its compressed form."""
        return gzip.compress(b"\n".join([self._head, *self._lines.values()]), mtime=0)

    @property
    def age(self) -> tuple[datetime, str]:
        """By which books are newer and older."""
        return (self.made, self.version)

    def providers(self) -> Iterable[str]:
        """Every provider that has models here."""
        return self._lines

    def models(self, provider: str) -> dict[str, list[Any]]:
        """The models of a provider as they are stored, by id."""
        found = self._models.get(provider)
        if found is None:
            line = self._lines.get(provider)
            found = self._models[provider] = json.loads(line) if line else {}
        return found

    def model(self, provider: str, identity: str) -> Model:
        """One model with its prices."""
        display_name, publisher, aliases, _ = self.models(provider)[identity]
        return Model(provider, identity, display_name, publisher, tuple(aliases), self._prices(provider, identity))

    def _prices(self, provider: str, identity: str) -> list[Price]:
        display_name, publisher, _, rows = self.models(provider)[identity]
        prices = []
        for row in rows:
            kind, amount, context, above, start, stop, daily, source = tuple(row) + _USUAL[len(row) :]
            token_type = self._types[kind]
            prices.append(
                Price(
                    provider=provider,
                    model=identity,
                    token_type=token_type,
                    amount=None if amount is None else Decimal(amount),
                    per=PER[TOKEN_TYPES[token_type].unit],
                    context=self._contexts[context],
                    above=abs(above) or None,
                    inclusive=above < 0,
                    daily=(daily[0], daily[1]) if daily else None,
                    effective_from=_day(start),
                    effective_to=_day(stop),
                    recorded_at=self.made,
                    publisher=publisher,
                    display_name=display_name,
                    source=self._sources[source],
                )
            )
        return prices


_USUAL: Final[tuple[Any, ...]] = (0, None, 0, 0, 0, 0, 0, 0)


def pack(
    models: Sequence[ModelPrices],
    *,
    made: str,
    fallbacks: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    factors: Sequence[Mapping[str, Any]],
) -> bytes:
    """The text of a shipped file, the same for the same models.

    Prices in another currency or per another number of units do not fit in: ValueError.
    """
    prices = [price for model in models for price in model.prices]
    types = _by_frequency(price.token_type for price in prices)
    contexts = _by_frequency(price.context for price in prices)
    sources = _by_frequency(price.source for price in prices)
    packed: dict[str, dict[str, list[Any]]] = {}
    for model in models:
        rows = [_row(price, types, contexts, sources) for price in sorted(model.prices, key=_order)]
        publisher = model.prices[0].publisher if model.prices else None
        mine = packed.setdefault(model.provider, {})
        mine[model.model] = [model.display_name, publisher, sorted(set(model.aliases)), rows]
    head: dict[str, Any] = {
        "format": FORMAT,
        "made": made,
        "names": dict(names),
        "fallbacks": {name: list(others) for name, others in fallbacks.items()},
        "factors": list(factors),
        "types": types,
        "contexts": [list(map(list, context)) for context in contexts],
        "sources": sources,
        "providers": sorted(packed),
    }
    return b"\n".join([_line(head), *(_line(packed[provider]) for provider in sorted(packed))])


def factor_of(document: Mapping[str, Any]) -> Factor:
    """A factor from its JSON form."""
    return Factor(
        kind=document["kind"],
        multiplier=Decimal(document["multiplier"]),
        provider=document.get("provider", "*"),
        model=document.get("model", "*"),
        geo=document.get("geo"),
        currency=document.get("currency"),
        effective_from=moment_of(document.get("effective_from")),
        effective_to=moment_of(document.get("effective_to")),
        source=document.get("source", ""),
    )


def _row(price: Price, types: list[str], contexts: list[Context], sources: list[str]) -> list[Any]:
    if price.per != PER[price.unit] or price.currency != "USD":
        raise ValueError(f"a price of {price.model} does not fit into the shipped book: {price}")
    above = (price.above or 0) * (-1 if price.inclusive else 1)
    row: list[Any] = [
        types.index(price.token_type), None if price.amount is None else plain(price.amount),
        contexts.index(price.context), above, _days(price.effective_from), _days(price.effective_to),
        list(price.daily) if price.daily else 0, sources.index(price.source),
    ]  # fmt: skip
    while len(row) > 2 and row[-1] == _USUAL[len(row) - 1]:
        row.pop()
    return row


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def _order(price: Price) -> tuple[Any, ...]:
    start = price.effective_from or _EPOCH
    return (price.token_type, price.context, price.above or 0, start, price.daily or (), price.source)


def _by_frequency(values: Iterable[Any]) -> list[Any]:
    counts: dict[Any, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return sorted(counts, key=lambda value: (-counts[value], value))


def _days(moment: datetime | None) -> int:
    return 0 if moment is None else (moment - _EPOCH).days


def _day(days: int) -> datetime | None:
    return _EPOCH + timedelta(days=days) if days else None
