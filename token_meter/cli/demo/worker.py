"""One service of the demo as a process of its own: `python -m token_meter.cli.demo.worker acme URL`.

This is what a metered program looks like. It tells on standard output which tasks are done, so that one that was
killed can be started again for the rest, as any job queue would.
"""

from __future__ import annotations

import argparse
import sys
import time

from token_meter import Meter
from token_meter.cli.demo.customers import CUSTOMERS, Customer


def run(customer: Customer, url: str, *, done: int, pause_seconds: float) -> None:
    """Do the tasks that are not done yet, each call of them for this customer."""
    with Meter.from_env() as meter:
        # Well-known hosts are known to accept `include_usage`; of this one the demo says so.
        meter.allow_include_usage("127.0.0.1:*")
        service = customer.load()(meter, url)
        for task in customer.tasks[done:]:
            with meter.customer(customer.name, feature=task) as tally:
                getattr(service, task)()
            what = (getattr(service, task).__doc__ or task).splitlines()[0]
            sys.stdout.write(f"{task}\t{tally.calls}\t{tally.usage.tokens}\t{what}\n")
            sys.stdout.flush()
            time.sleep(pause_seconds)


def main() -> None:
    """Read the command line and work."""
    parser = argparse.ArgumentParser(prog="token_meter.cli.demo.worker", description=__doc__)
    parser.add_argument("customer", choices=[each.name for each in CUSTOMERS])
    parser.add_argument("url")
    parser.add_argument("--done", type=int, default=0, help="so many tasks were done by an earlier process")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two tasks")
    given = parser.parse_args()
    customer = next(each for each in CUSTOMERS if each.name == given.customer)
    run(customer, given.url, done=given.done, pause_seconds=given.pause)


if __name__ == "__main__":
    main()
