"""A usage plan from first event to invoice: API calls at a cent each, tokens by model and type.

    python examples/chatbot_plan.py

No key, no server. The ledger is a file that this program makes and removes.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from token_meter import Meter, Usage

PLANS = {
    "rate_cards": [
        {
            "name": "chatbot",
            "rates": [
                {
                    "meter": "llm tokens",
                    "matrix": [
                        {"model": "model a", "token_type": "input", "price": "0.00001"},
                        {"model": "model a", "token_type": "output", "price": "0.00002"},
                        {"model": "model b", "token_type": "input", "price": "0.000005"},
                        {"model": "model b", "token_type": "output", "price": "0.00001"},
                    ],
                },
                {"meter": "api calls", "per_unit": "0.01"},
            ],
        }
    ],
    "plans": [{"name": "Chatbot usage plan", "rate_cards": ["chatbot"]}],
}


def main() -> None:
    """Set the plan up, report usage, print the invoice."""
    with tempfile.TemporaryDirectory() as folder, Meter(Path(folder) / "usage.db") as meter:
        meter.load_plans(PLANS)
        meter.subscribe("test-customer", "Chatbot usage plan", start=first_of_this_month())

        with meter.customer("test-customer"):
            meter.record(Usage(input=1000), model="model a")
            meter.record(Usage(output=2000), model="model a")
            meter.record(Usage(input=4000), model="model b")
            meter.record(10, meter="api_calls")

        invoice = meter.invoice("test-customer")
        print(invoice)
        print(f"{invoice.total} {invoice.currency}")


def first_of_this_month() -> datetime:
    """When the plan begins."""
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


if __name__ == "__main__":
    main()
