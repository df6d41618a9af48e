"""Budgets and prepaid credit: a call that does not fit is refused before anything is sent.

    python examples/hard_cap.py

* A budget per customer, one per API key on top, and rate limits from the same store.
* "No credit, no call": prepaid credit must cover a call; a pack sold in between lets it pass.
* A callback hears of what is used up.
"""

from __future__ import annotations

import threading
from tempfile import TemporaryDirectory

import openai

from token_meter import BudgetExceeded, Meter
from token_meter.budgets.policy import CreditPolicy
from token_meter.testing import LoopbackProvider

HELLO = [{"role": "user", "content": "Hello"}]


def main() -> None:
    heard = threading.Event()
    # A ledger of its own each time: what was spent, paused and granted in the last run would count in this one.
    with TemporaryDirectory() as folder, LoopbackProvider() as provider, Meter(f"{folder}/hard_cap.db") as meter:
        meter.on_notice(lambda notice: (print(f"  heard: {notice['kind']}"), heard.set()), "budget.exceeded")
        client = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))

        def ask(customer: str, key: str) -> str:
            with meter.customer(customer, key=key):
                try:
                    client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=50)
                except BudgetExceeded as refused:
                    return f"refused ({refused.reason}: {refused.budget})"
            return "answered"

        meter.budget("acme", "1.00", per="month", name="acme's month")
        meter.budget(None, 2, of="requests", per="60s", scope={"key": "*"}, name="two calls a minute for each key")
        print("acme, three calls with one key:", ", ".join(ask("acme", "k1") for _ in range(3)))
        print("acme, another key:", ask("acme", "k2"))

        meter.budgets.policy("globex", CreditPolicy.read({"policy": "block"}))
        print("globex without credit:", ask("globex", "k3"))
        meter.credit("globex", "5.00", kind="paid")
        print("globex with credit:", ask("globex", "k3"))

        meter.customers.edit("acme", status="paused")
        print("acme, paused:", ask("acme", "k2"))

        for standing in meter.budgets.standings("acme's month"):
            print(f"{standing.budget.label}: {standing.spent} of {standing.budget.limit} {standing.budget.currency}")
        heard.wait(10)
        print(f"the provider has seen {len(provider.requests)} requests")
        client.close()


if __name__ == "__main__":
    main()
