"""`meter.record(...)`: for models no SDK stands before, and for anything else you want to count.

    python examples/manual_record.py

* Tokens of your own inference server, attributed like every other call.
* A meter of your own: exported pages, in units.
* An `id` makes a retry safe: the ledger counts it once, however often a job is run again.
"""

from __future__ import annotations

from token_meter import Meter, Usage


def main() -> None:
    with Meter("manual_record.db") as meter:
        with meter.customer("acme", feature="rank"):
            meter.record(Usage(input=812, output=40), model="llama-3.3-70b", provider="our-gpu", operation="chat")

        meter.record(12, meter="exported_pages", customer="acme")

        for attempt in (1, 2, 3):  # a job queue runs jobs again after a crash
            event = meter.record(Usage(input=100), model="llama-3.3-70b", customer="globex", id="job-4711")
            print(f"attempt {attempt} recorded {event.id}")

        print("\ntokens:")
        for row in meter.usage(by=("customer", "model")):
            print(f"  {row['customer']:7} {row['model']} {dict(row.usage)}, {row.events} event")
        print("exported pages:")
        for row in meter.usage(by=("customer",), meter="exported_pages"):
            print(f"  {row['customer']:7} {row.usage.units}")


if __name__ == "__main__":
    main()
