"""acme's service: an ordinary program on the openai SDK. Two lines of it, the `wrap`s, know that it is metered."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from token_meter import Meter

HANDBOOK = "Handbook of acme. " + "Every parcel is weighed twice and signed for once. " * 110
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Delivery(BaseModel):
    """What a structured answer must look like."""

    city: str
    days: int


class Acme:
    """What acme does in a day, one method per task."""

    def __init__(self, meter: Meter, url: str) -> None:
        self.client = meter.wrap(OpenAI(base_url=f"{url}/v1", api_key="none"))
        self.async_client = meter.wrap(AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))

    def think(self) -> None:
        """a reasoning model: thoughts counted apart"""
        self.client.responses.create(model="gpt-5", input="Plan the week.", reasoning={"effort": "medium"})

    def read_handbook(self) -> None:
        """a long prompt, half of it from the cache"""
        self.client.chat.completions.create(model="gpt-5-mini", messages=_asked(HANDBOOK))

    def stream(self) -> None:
        """a stream: counts asked for and hidden again"""
        with self.client.chat.completions.create(model="gpt-5-mini", messages=_asked("Hello"), stream=True) as chunks:
            for chunk in chunks:
                assert chunk.choices, "the extra chunk with the counts never reaches the program"

    def use_tool(self) -> None:
        """a chat that calls a tool"""
        self.client.chat.completions.create(model="gpt-5-mini", messages=_asked("Weather in Paris?"), tools=[WEATHER])

    def structure(self) -> None:
        """a structured answer, by the SDK's helper"""
        self.client.chat.completions.parse(
            model="gpt-5-mini", messages=_asked("When is it there?"), response_format=Delivery
        )

    def survive_rate_limit(self) -> None:
        """a 429, retried by the SDK, counted once"""
        limited = self.client.with_options(base_url=_failing_once(str(self.client.base_url)))
        limited.responses.create(model="gpt-5", input="Please.")

    def abandon_stream(self) -> None:
        """a stream given up: no counts, so estimated"""
        with self.client.chat.completions.create(model="gpt-5-mini", messages=_asked("Tell"), stream=True) as chunks:
            for number, _ in enumerate(chunks):
                if number == 2:
                    break

    def stream_many(self) -> None:
        """three streams at once, asynchronously"""
        asyncio.run(self._stream_many())

    async def _stream_many(self) -> None:
        async with self.async_client as client:
            await asyncio.gather(*(_read(client, topic) for topic in ("parcels", "letters", "crates")))


async def _read(client: AsyncOpenAI, topic: str) -> None:
    async with await client.responses.create(model="gpt-5", input=f"About {topic}.", stream=True) as events:
        async for _ in events:
            pass


def _asked(question: str) -> Any:
    return [{"role": "user", "content": question}]


def _failing_once(base_url: str) -> str:
    """The loopback provider takes wishes in its URL; a real one needs no such help to answer 429."""
    return base_url.replace("/~", "/~fail=429x1,", 1)
