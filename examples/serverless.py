"""Serverless: the platform freezes the process when the handler returns, so the handler flushes.

    python examples/serverless.py

The meter is made once, outside the handler. `flush` waits until the sinks have everything, at most as long as you say;
what a sink would not take in time stays in the journal and goes out with the next request. Where the disk ends with
the instance, that is the only copy: give the flush a generous timeout, and the journal a volume if there is one.
"""

from __future__ import annotations

from typing import Any

import openai

from token_meter import Meter
from token_meter.testing import LoopbackProvider

FLUSH_SECONDS = 5.0


def make_handler(meter: Meter, client: openai.OpenAI) -> Any:
    """What your platform calls."""

    def handler(request: dict[str, str]) -> dict[str, Any]:
        try:
            with meter.customer(request["customer"], route="/ask") as tally:
                answer = client.responses.create(model="gpt-5-mini", input=request["question"])
            return {"status": 200, "answer": answer.output_text, "tokens": tally.usage.tokens}
        finally:
            if not meter.flush(FLUSH_SECONDS):
                print("not everything is delivered yet; the journal keeps it")

    return handler


def main() -> None:
    with LoopbackProvider() as provider, Meter("serverless.db") as meter:
        client = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))
        handler = make_handler(meter, client)

        for customer in ("acme", "globex"):
            response = handler({"customer": customer, "question": "Is it there?"})
            (delivery,) = meter.health().deliveries
            print(f"{customer}: {response['tokens']} tokens; {delivery.backlog_events} events wait when we return")


if __name__ == "__main__":
    main()
