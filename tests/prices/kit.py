"""Price feeds and books made for a test: a small book of a few lines, and the shipped book written as a feed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final, NamedTuple

from token_meter.money import plain
from token_meter.prices import Price, PriceBook
from token_meter.prices.genai import CACHE_WRITE, UNITS, Feed, read_feed
from token_meter.prices.shipped import ShippedBook, pack
from token_meter.providers.publishers import publisher_of

MADE: Final = datetime(2026, 11, 1, tzinfo=UTC)
NOW: Final = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
HOUR: Final = datetime(2026, 11, 20, 10, tzinfo=UTC)
"""From when a change holds that is first seen at NOW."""

Provider = dict[str, Any]
UNIT_OF: Final = {types[0]: unit for unit, (types, _) in UNITS.items()} | {
    "cache_write_5m": CACHE_WRITE,
    "cache_write_30m": CACHE_WRITE,
}


def model(id: str, prices: Any, *variants: Mapping[str, Any]) -> dict[str, Any]:
    """A model as a feed states it."""
    return {"id": id, "match": {"equals": id}, "name": id.upper(), "prices": prices, "price_variants": list(variants)}


def provider(id: str, *models: Mapping[str, Any]) -> Provider:
    """A provider as a feed states it."""
    return {"id": id, "name": id, "models": list(models)}


def from_day(day: str, **prices: Any) -> dict[str, Any]:
    """A price set that holds from a day on."""
    return {"constraint": {"start_date": day}, "prices": prices}


def always(**prices: Any) -> dict[str, Any]:
    """A price set without a date."""
    return {"prices": prices}


def batch(**prices: Any) -> dict[str, Any]:
    """What batches cost."""
    return {"when": {"processing": "batch"}, "prices": prices}


def tiers(base: str, start: int, price: str) -> dict[str, Any]:
    """A price with a step for long contexts."""
    return {"base": base, "tiers": [{"start": start, "price": price}]}


def feed_of(*providers: Mapping[str, Any], version: str = "2") -> Feed:
    """A feed as it was read."""
    return read_feed(providers, source=f"genai-prices {version}", recorded_at=NOW, publisher_of=publisher_of)


def book_of(*providers: Mapping[str, Any]) -> PriceBook:
    """A shipped book that says what a feed said before."""
    feed = feed_of(*providers, version="1")
    text = pack(feed.models, made=f"{MADE:%Y-%m-%d}", fallbacks=feed.fallbacks, names=feed.names, factors=())
    return PriceBook(ShippedBook(text))


def shipped_as_feed() -> list[Provider]:
    """What the shipped book took from genai-prices, as a feed that says the same."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in PriceBook.load().models():
        prices = [price for price in each.prices if price.source.startswith("genai-prices")]
        if prices:
            contexts = sorted({price.context for price in prices if price.context})
            variants = [
                {
                    "when": dict([("processing", "batch") if pair == ("batch", "yes") else pair for pair in context]),
                    **said,
                }
                for context in contexts
                for said in _conditions([price for price in prices if price.context == context])
            ]
            standard = _conditions([price for price in prices if not price.context])
            found.setdefault(each.provider, []).append(
                {"id": each.id, "match": {"equals": each.id}, "name": each.display_name, "prices": standard,
                 "price_variants": variants}
            )  # fmt: skip
    return [{"id": name, "name": name, "models": models} for name, models in sorted(found.items())]


def model_in(providers: Sequence[Provider], provider: str, id: str) -> dict[str, Any]:
    """A model of a feed."""
    models = next(each["models"] for each in providers if each["id"] == provider)
    return next(each for each in models if each["id"] == id)


def _conditions(prices: Sequence[Price]) -> list[dict[str, Any]]:
    """Price sets by their dates, each with everything that holds from then on; daily windows at the end."""
    dates = {each for price in prices if not price.daily for each in (price.effective_from, price.effective_to) if each}
    found = [_set(None, (price for price in prices if not price.daily and price.effective_from is None))]
    for date in sorted(dates):
        found.append(_set(date, (price for price in prices if not price.daily and price.holds_at(date))))
    for window in sorted({price.daily for price in prices if price.daily}):
        start, stop = (f"{minute // 60:02}:{minute % 60:02}" for minute in window)
        said = _set(None, (price for price in prices if price.daily == window and price.effective_to is None))
        found.append({**said, "constraint": {"start_time": start, "end_time": stop}})
    return [said for said in found if said["prices"] or said["constraint"]]


def _set(date: datetime | None, prices: Iterable[Price]) -> dict[str, Any]:
    units: dict[str, Any] = {}
    for price in sorted(prices, key=lambda each: each.above or 0):
        unit = UNIT_OF.get(price.token_type)
        if unit is None:  # a modality that the reader derives from another
            continue
        assert price.amount is not None
        if price.above is None:
            units[unit] = plain(price.amount)
            continue
        if not isinstance(units.get(unit), dict):
            units[unit] = {"base": units.get(unit), "tiers": []}
        start = price.above - 1 if price.inclusive else price.above
        units[unit]["tiers"].append({"start": start, "price": plain(price.amount)})
    return {"constraint": {"start_date": f"{date:%Y-%m-%d}"} if date else None, "prices": units}


class Answer(NamedTuple):
    """What the server says at a path."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Server:
    """Answers what it was told to, by path, and keeps the requests. An ETag that comes back gets a 304."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                answer = answers[self.path.partition("?")[0]]
                if "ETag" in answer.headers and self.headers.get("If-None-Match") == answer.headers["ETag"]:
                    answer = Answer(304)
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()
        self.netloc = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.netloc}"

    def close(self) -> None:
        """Let the port go."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
