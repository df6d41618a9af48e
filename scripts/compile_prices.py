"""Compiles the price book that the package ships, from the installed genai-prices and `price_fills.json` beside this.

    python -m scripts.compile_prices            writes token_meter/prices/data/book.json.gz and windows.json.gz
    python -m scripts.compile_prices --check    says whether the shipped files are what this would write

Run it before a release, after `pip install -U genai-prices`. The result depends on nothing but its inputs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from token_meter.prices.genai import ModelPrices, installed_feed, read_feed
from token_meter.prices.price import PER, Price, moment_of
from token_meter.prices.shipped import FILE, pack
from token_meter.prices.windows import FILE as WINDOWS
from token_meter.providers.publishers import publisher_of
from token_meter.usage import TOKEN_TYPES

FILLS = Path(__file__).with_name("price_fills.json")


def main() -> int:
    """Compile, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the shipped file, write nothing")
    arguments = parser.parse_args()
    made = {file: gzip.compress(text, compresslevel=9, mtime=0) for file, text in _files().items()}
    if arguments.check:
        same = all(file.exists() and file.read_bytes() == data for file, data in made.items())
        print("the shipped book is up to date" if same else "the shipped book differs: run this without --check")
        return 0 if same else 1
    FILE.parent.mkdir(exist_ok=True)
    for file, data in made.items():
        file.write_bytes(data)
        print(f"{file.name}: {len(data):,} bytes")
    return 0


def _files() -> dict[Path, bytes]:
    return {FILE: compiled(), WINDOWS: compiled_windows()}


def compiled_windows() -> bytes:
    """The text of the file of context windows: a provider's models by id, tokens."""
    providers, _ = installed_feed()
    found = {
        str(provider["id"]): {
            str(model["id"]).removeprefix("regional."): model["context_window"]
            for model in provider["models"]
            if type(model.get("context_window")) is int and model["context_window"] > 0
        }
        for provider in providers
    }
    return json.dumps({name: each for name, each in sorted(found.items()) if each}, separators=(",", ":")).encode()


def compiled() -> bytes:
    """The text of the shipped book."""
    fills = json.loads(FILLS.read_text("utf-8"))
    recorded = datetime.fromisoformat(fills["made"]).replace(tzinfo=UTC)
    providers, version = installed_feed()
    feed = read_feed(providers, source=f"genai-prices {version}", recorded_at=recorded, publisher_of=publisher_of)
    models = {(model.provider, model.model): model for model in feed.models}
    for fill in fills["models"]:
        _fill(models, fill, recorded)
    for rule in fills["derived"]:
        _derive(list(models.values()), rule, recorded)
    return pack(
        list(models.values()), made=fills["made"], fallbacks=feed.fallbacks, names=feed.names,
        factors=fills["factors"],
    )  # fmt: skip


def _fill(models: dict[tuple[str, str], ModelPrices], fill: dict[str, Any], recorded: datetime) -> None:
    """Rows of one model; `feed_ends`: what the feed says of it held until then."""
    key = (fill["provider"], fill["model"])
    publisher = fill.get("publisher") or publisher_of(fill["model"])
    model = models.setdefault(key, ModelPrices(*key, fill.get("display_name"), tuple(fill.get("aliases", ()))))
    if "feed_ends" in fill:
        model.prices = [replace(price, effective_to=moment_of(fill["feed_ends"])) for price in model.prices]
    for row in fill["prices"]:
        more = {"publisher": publisher, "display_name": model.display_name, "source": fill["source"]}
        price = Price.from_json({"per": PER[TOKEN_TYPES[row["token_type"]].unit], **more, **row, "provider": key[0],
                                 "model": key[1]})  # fmt: skip
        model.prices = [_after(each, price) for each in model.prices]
        model.prices.append(replace(price, recorded_at=recorded))


def _after(price: Price, earlier: Price) -> Price:
    """The feed's row, which knows no beginning, begins where an earlier price ended."""
    same = (price.token_type, price.context, price.above) == (earlier.token_type, earlier.context, earlier.above)
    return replace(price, effective_from=earlier.effective_to) if same and price.effective_from is None else price


def _derive(models: list[ModelPrices], rule: dict[str, Any], recorded: datetime) -> None:
    """Rows that a document states as a multiple of another row, for every model that has that one."""
    context = tuple(sorted(rule.get("context", {}).items()))
    for model in models:
        if model.provider != rule["provider"] or not model.model.startswith(tuple(rule["models"])):
            continue
        there = {(price.token_type, price.context) for price in model.prices}
        for price in list(model.prices):
            if price.token_type != rule["of"] or (context and price.context) or price.amount is None:
                continue
            wanted = context or price.context
            if (rule["token_type"], wanted) not in there:
                amount = price.amount * Decimal(rule["multiple"])
                model.prices.append(
                    replace(
                        price,
                        token_type=rule["token_type"],
                        amount=amount,
                        context=wanted,
                        source=rule["source"],
                        recorded_at=recorded,
                    )
                )


if __name__ == "__main__":
    sys.exit(main())
