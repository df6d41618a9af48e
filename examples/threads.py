"""Thread pools forget the customer. `meter.instrument("threads")` makes them remember.

    python examples/threads.py

Python hands context variables to tasks, but not to the functions you submit to a `ThreadPoolExecutor`. Such calls are
still metered, under no customer, and a warning says so. With the threads instrumented they keep the submitter's.
A bound client needs neither: it carries its customer wherever it goes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai

from token_meter import Meter
from token_meter.testing import LoopbackProvider


def main() -> None:
    with LoopbackProvider() as provider, Meter("threads.db") as meter:
        client = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))
        bound = meter.wrap(client, customer="globex", way="bound client")

        def ask(question: str) -> None:
            client.responses.create(model="gpt-5-nano", input=question)

        with ThreadPoolExecutor(max_workers=2) as pool:
            with meter.customer("acme", way="plain pool"):
                pool.submit(ask, "Who pays for this?").result()

            with meter.instrument("threads"), meter.customer("acme", way="instrumented pool"):
                pool.submit(ask, "And for this?").result()

            pool.submit(bound.responses.create, model="gpt-5-nano", input="And for that?").result()

        for event in meter.events():
            print(f"customer {event.customer or '(none)':8} way {event.dimensions.get('way', '(lost)')}")


if __name__ == "__main__":
    main()
