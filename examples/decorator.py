"""`meter.customer(...)` as a decorator: on functions, coroutines, generators and async generators.

    python examples/decorator.py

`from_` reads the customer out of the function's own arguments. A generator may be closed in another task or thread
than it was started in; its calls stay with the customer, and the caller's own customer is never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import openai

from token_meter import Meter
from token_meter.testing import LoopbackProvider


def main() -> None:
    with LoopbackProvider() as provider, Meter("decorator.db") as meter:
        meter.allow_include_usage("127.0.0.1:*")
        client = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))
        async_client = meter.wrap(openai.AsyncOpenAI(base_url=provider.openai_url, api_key="none"))

        @meter.customer("acme", feature="summary")
        def summarise(text: str) -> str:
            return client.responses.create(model="gpt-5-mini", input=text).output_text

        @meter.customer(from_=lambda order, **_: order["tenant"], feature="orders")
        def confirm(order: dict[str, str]) -> str:
            return client.responses.create(model="gpt-5-mini", input=order["text"]).output_text

        @meter.customer("globex", feature="stream")
        def words(question: str) -> Iterator[str]:
            messages = [{"role": "user", "content": question}]
            for chunk in client.chat.completions.create(model="gpt-5-mini", messages=messages, stream=True):
                yield chunk.choices[0].delta.content or ""

        @meter.customer("initech", feature="stream")
        async def async_words(question: str) -> AsyncIterator[str]:
            messages = [{"role": "user", "content": question}]
            async with async_client as opened:
                async for chunk in await opened.chat.completions.create(
                    model="gpt-5-mini", messages=messages, stream=True
                ):
                    yield chunk.choices[0].delta.content or ""

        async def read() -> int:
            return len([word async for word in async_words("Who are you?")])

        summarise("A long text.")
        confirm({"tenant": "umbrella", "text": "Two parcels."})
        print(f"{len(list(words('Where is it?')))} pieces from the generator")
        print(f"{asyncio.run(read())} pieces from the async generator\n")

        for row in meter.usage(by=("customer", "feature")):
            print(f"{row['customer']:8} {row['feature']:8} {row['events']} call, {row.usage.tokens} tokens")


if __name__ == "__main__":
    main()
