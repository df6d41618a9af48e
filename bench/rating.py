"""What rating a call costs, beside the genai-prices package it takes its data from, in the same run.

    python -m bench.rating [--rounds 15]

One call of Claude with four token types (input, cached input, cache write, output). Both are asked in turns; the
figures are medians over the rounds. The last line is the whole rating of an event by a plan: cost and charge of each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from token_meter.billing.catalogue import EARLIEST, Catalogue, Chosen, Version
from token_meter.billing.plans import Plan
from token_meter.billing.rating import EventRater
from token_meter.prices import PriceBook
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

MICROSECONDS_TARGET: Final = 8.0
RATIO_TARGET: Final = 12.0
CALLS: Final = 2_000
AT: Final = datetime(2026, 11, 15, tzinfo=UTC)
MODEL: Final = "claude-opus-5"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    ours, whole = _ours(), _whole()
    theirs = _theirs()
    contestants = {"ours": ours, "event": whole, **({"genai-prices": theirs} if theirs is not None else {})}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for each in contestants.values():
        each(50)
    for _ in range(rounds):
        for name, each in contestants.items():
            began = time.perf_counter()
            number = each(CALLS if name != "genai-prices" else CALLS // 10)
            times[name].append((time.perf_counter() - began) / number * 1e6)
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"PriceBook.cost, 4 token types   {medians['ours']:7.2f} us   target <= {MICROSECONDS_TARGET:g}")
    if theirs is None:
        print("genai-prices is not installed: pip install genai-prices, to compare")
    else:
        ratio = medians["genai-prices"] / medians["ours"]
        compared = f"ratio {ratio:.1f}, target >= {RATIO_TARGET:g}"
        print(f"genai-prices calc_price         {medians['genai-prices']:7.2f} us   {compared}")
    print(f"EventRater.rate, cost and charge{medians['event']:7.2f} us")


def _ours() -> Callable[[int], int]:
    book = PriceBook.load()
    usage = Usage(input=300, cache_read=45_000, cache_write_5m=2_000, output=700)
    context = {"service_tier": "standard", "context_tokens": 47_300}

    def run(number: int) -> int:
        for _ in range(number):
            book.cost(provider="anthropic", model=MODEL, usage=usage, at=AT, context=context)
        return number

    return run


def _whole() -> Callable[[int], int]:
    plan = Plan.model_validate(
        {"name": "s", "rates": [{"cost_plus": {"markup": 30}}, {"meter": "api_calls", "per_unit": 1}]}
    )
    catalogue = Catalogue(plans={"s": [Version(1, EARLIEST, plan)]}, defaults=[Chosen(EARLIEST, "s")])
    rater = EventRater(PriceBook.load(), catalogue)
    event = make_event(
        1, provider="anthropic", model=MODEL, time=AT,
        usage=Usage(input=300, cache_read=45_000, cache_write_5m=2_000, output=700),
    )  # fmt: skip

    def run(number: int) -> int:
        for _ in range(number):
            rater.rate(event)
        return number

    return run


def _theirs() -> Callable[[int], int] | None:
    try:
        from genai_prices import Usage as TheirUsage
        from genai_prices import calc_price
    except ImportError:
        return None
    # Their input contains what was read from the cache and written to it.
    usage = TheirUsage(input_tokens=47_300, cache_read_tokens=45_000, cache_write_tokens=2_000, output_tokens=700)

    def run(number: int) -> int:
        for _ in range(number):
            calc_price(usage, model_ref=MODEL, provider_id="anthropic", genai_request_timestamp=AT)
        return number

    return run


if __name__ == "__main__":
    main()
