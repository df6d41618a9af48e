"""What the tests of several bookkeepers run: `python -m tests.bookkeeping.worker <what> <url> ...`, one line to start."""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime, timedelta

from tests.bookkeeping.kit import call
from token_meter.billing.plans import Period
from token_meter.bookkeeping.credit_book import CreditBook
from token_meter.bookkeeping.invoice_book import InvoiceBook
from token_meter.bookkeeping.plan_book import PlanBook
from token_meter.bookkeeping.rater import LedgerRater
from token_meter.errors import InvalidPlan, Retry
from token_meter.ledger import Ledger
from token_meter.usage import Usage

BATCH = 20
CUSTOMERS = 5
FIRST = datetime(2026, 11, 1, tzinfo=UTC)
NOVEMBER = Period(FIRST, datetime(2026, 12, 1, tzinfo=UTC))


def numbered(number):
    """Call `number` of a fixed series in November, the same in every process; it costs $0.011."""
    return call(
        number,
        time=FIRST + timedelta(hours=number % 700),
        customer=f"customer-{number % CUSTOMERS}",
        model="gpt-5" if number % 50 else f"unheard-{number % 3}",
        usage=Usage(input=800, output=1000),
    )


def record(ledger, first, count, seed):
    """Record a range of calls in an order of its own; how many were new."""
    numbers = list(range(int(first), int(first) + int(count)))
    random.Random(int(seed)).shuffle(numbers)
    inserted = 0
    for start in range(0, len(numbers), BATCH):
        batch = [numbered(number) for number in numbers[start : start + BATCH]]
        while True:
            try:
                inserted += ledger.record(batch).inserted
                break
            except Retry:
                continue
    return inserted


def single(ledger, number):
    """Record one call, the only one of its batch."""
    return ledger.record([numbered(int(number))]).inserted


def run(ledger, day):
    """Invoice November on this day; the numbers of the invoices that were written here."""
    books = InvoiceBook(ledger, now=datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp)
    return [invoice.number for invoice in books.run(NOVEMBER).written]


def grant(ledger, identity):
    """Grant a dollar under this id; what the ledger holds under it."""
    return CreditBook(ledger).grant("customer-1", "1", id=identity, effective=FIRST).id


def subscribe(ledger, plan):
    """Put a customer on a plan from the beginning of November to its end; False if somebody else has."""
    try:
        PlanBook(ledger).subscribe("customer-1", plan, start=NOVEMBER.start, stop=NOVEMBER.stop)
    except InvalidPlan:
        return False
    return True


def main(what, url, *arguments):
    with Ledger(url, rater=LedgerRater()) as ledger:
        ledger.summary()
        say("ready")
        sys.stdin.readline()
        done = {"record": record, "single": single, "run": run, "grant": grant, "subscribe": subscribe}[what]
        say(json.dumps(done(ledger, *arguments)))


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
