"""How long a month's invoices take, and usage with cost of one customer; and that both grow with lines, not events.

    python -m bench.invoicing [--customers 10000] [--events 1000000] [--keep FOLDER]

Makes a ledger with so many events of one month (5 models, 4 token types, a plan with a markup and a price per call),
invoices everybody, verifies a sample, and asks for one customer's month with cost. Then the same for a quarter of the
events: the run has the same lines then, and should take about as long.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from token_meter.billing.plans import Period, PlansFile
from token_meter.bookkeeping.invoice_book import InvoiceBook
from token_meter.bookkeeping.plan_book import PlanBook
from token_meter.bookkeeping.rater import LedgerRater
from token_meter.bookkeeping.verification import verify
from token_meter.event import MeterEvent
from token_meter.ledger import Ledger
from token_meter.usage import Usage

RUN_SECONDS_TARGET: Final = 60.0
USAGE_MS_TARGET: Final = 30.0
MODELS: Final = (
    ("openai", "gpt-5"), ("openai", "gpt-5-mini"), ("anthropic", "claude-sonnet-4-6"), ("google", "gemini-2.5-flash"),
    ("openai", "gpt-4.1"),
)  # fmt: skip
MONTH: Final = Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
PLANS: Final = {
    "rate_cards": [
        {"name": "s", "rates": [{"cost_plus": {"markup": "30%"}}, {"meter": "api_calls", "per_unit": "0.001"}]}
    ],
    "plans": [{"name": "s", "rate_cards": ["s"], "fees": [{"title": "Fee", "amount": "10"}]}],
}
BATCH: Final = 2_000
SAMPLE: Final = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, default=None, help="make the ledgers here and leave them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        full = measure(folder / "full.db", arguments.customers, arguments.events)
        quarter = measure(folder / "quarter.db", arguments.customers, arguments.events // 4)
    print(f"\ninvoice run: {full:.1f} s for {arguments.events:,} events, {quarter:.1f} s for a quarter of them "
          f"(ratio {full / quarter:.2f}); target <= {RUN_SECONDS_TARGET:.0f} s")  # fmt: skip


def measure(path: Path, customers: int, events: int) -> float:
    """One ledger; the seconds that its invoice run took."""
    print(f"\n{events:,} events of {customers:,} customers")
    after_month = datetime(2026, 11, 2, tzinfo=UTC).timestamp()
    with Ledger(path, rater=LedgerRater()) as ledger:
        book = PlanBook(ledger)
        book.keep(PlansFile.model_validate(PLANS), effective_from=datetime(2026, 1, 1, tzinfo=UTC))
        book.set_default("s", effective_from=datetime(2026, 1, 1, tzinfo=UTC))
        began = time.perf_counter()
        for start in range(0, events, BATCH):
            ledger.record(list(made(start, min(BATCH, events - start), customers)))
        took = time.perf_counter() - began
        print(f"  recorded and rated: {took:.1f} s, {events / took:,.0f} events/s")
        print(f"  usage with cost of one customer's month: {usage_ms(ledger, customers):.1f} ms (median of 15; "
              f"target <= {USAGE_MS_TARGET:.0f})")  # fmt: skip
        invoices = InvoiceBook(ledger, now=lambda: after_month)
        began = time.perf_counter()
        ran = invoices.run(MONTH)
        seconds = time.perf_counter() - began
        lines = sum(len(each.lines) for each in ran.written)
        print(f"  invoice run: {seconds:.1f} s, {len(ran.written):,} invoices, {lines:,} lines")
        began = time.perf_counter()
        again = invoices.run(MONTH)
        print(f"  run again: {time.perf_counter() - began:.1f} s, {len(again.written)} written, {again.there:,} there")
        chosen = random.Random(1).sample(ran.written, min(SAMPLE, len(ran.written)))
        for each in chosen:
            verify(ledger, str(each.number))
        print(f"  {len(chosen)} of them worked out again, byte for byte; peak "
              f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")  # fmt: skip
    return seconds


def usage_ms(ledger: Ledger, customers: int) -> float:
    """Usage with cost by model and token type, of fifteen customers' months."""
    chosen = random.Random(2)
    times = []
    for _ in range(15):
        customer = f"customer-{chosen.randrange(customers)}"
        began = time.perf_counter()
        ledger.costs(by=("model", "token_type"), customer=customer, since=MONTH.start, until=MONTH.stop)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def made(start: int, number: int, customers: int) -> Iterator[MeterEvent]:
    """Events spread over the month and the customers, the same in every run."""
    chosen = random.Random(start)
    for place in range(start, start + number):
        provider, model = chosen.choice(MODELS)
        yield MeterEvent(
            id=f"event-{place:09d}",
            time=MONTH.start + timedelta(seconds=chosen.randrange(31 * 86_400)),
            usage=some_usage(chosen),
            customer=f"customer-{chosen.randrange(customers)}",
            provider=provider,
            publisher=provider,
            model=model,
            operation="chat",
        )


def some_usage(chosen: random.Random) -> Usage:
    """Four token types."""
    put, cached, out, thought = (chosen.randrange(1, most) for most in (5000, 5000, 900, 500))
    return Usage(input=put, cache_read=cached, output=out, reasoning=thought)


if __name__ == "__main__":
    main()
