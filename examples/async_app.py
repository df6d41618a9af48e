"""Many calls at once, each for its own customer: the customer travels with the task, not with the client.

python examples/async_app.py
"""

from __future__ import annotations

import asyncio

import anthropic
import openai

from token_meter import Meter
from token_meter.testing import LoopbackProvider

CUSTOMERS = ("acme", "globex", "initech")


async def answer(meter: Meter, customer: str, chat: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> str:
    """A draft by one vendor, a review by the other, both for this customer."""
    async with meter.customer(customer, feature="answer") as tally:
        draft = await chat.responses.create(model="gpt-5-mini", input=f"A letter to {customer}.")
        async with claude.messages.stream(
            model="claude-haiku-4-5", max_tokens=200, messages=[{"role": "user", "content": draft.output_text}]
        ) as stream:
            await stream.get_final_text()
    return f"{customer}: {tally.calls} calls, {tally.usage.tokens} tokens"


async def run(meter: Meter, provider: LoopbackProvider) -> None:
    async with (
        openai.AsyncOpenAI(base_url=provider.openai_url, api_key="none") as chat,
        anthropic.AsyncAnthropic(base_url=provider.anthropic_url, api_key="none") as claude,
    ):
        meter.wrap(chat)
        meter.wrap(claude)
        for line in await asyncio.gather(*(answer(meter, customer, chat, claude) for customer in CUSTOMERS)):
            print(line)


def main() -> None:
    with LoopbackProvider() as provider, Meter("async_app.db") as meter:
        asyncio.run(run(meter, provider))

        print("\nin the ledger:")
        for row in meter.usage(by=("customer", "publisher")):
            print(f"  {row['customer']:8} {row['publisher']:10} {row.usage.tokens} tokens")


if __name__ == "__main__":
    main()
