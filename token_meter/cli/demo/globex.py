"""globex's service: an ordinary program on the anthropic SDK. Two lines of it, the `wrap`s, know that it is metered."""

from __future__ import annotations

import asyncio
from typing import Any

from anthropic import Anthropic, AsyncAnthropic

from token_meter import Meter

RULES = "House rules of globex. " + "Whoever files a report keeps a copy of it for seven years. " * 100
CACHED: Any = {"cache_control": {"type": "ephemeral"}}
LOOKUP: Any = {
    "name": "lookup",
    "description": "Find a report.",
    "input_schema": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
}


class Globex:
    """What globex does in a day, one method per task."""

    def __init__(self, meter: Meter, url: str) -> None:
        self.client = meter.wrap(Anthropic(base_url=url, api_key="none"))
        self.async_client = meter.wrap(AsyncAnthropic(base_url=url, api_key="none"))

    def write_cache(self) -> None:
        """a prompt written to the cache (dearer)"""
        self._ask([{"type": "text", "text": RULES + "What must I keep?", **CACHED}])

    def read_cache(self) -> None:
        """a prompt read from the cache (cheaper)"""
        self._ask("For how long?", system=[{"type": "text", "text": RULES, **CACHED}])

    def stream(self) -> None:
        """a stream, by the SDK's helper"""
        with self.client.messages.stream(
            model="claude-haiku-4-5", max_tokens=200, messages=_asked("Summarise.")
        ) as stream:
            stream.get_final_text()

    def think(self) -> None:
        """extended thinking, counted apart"""
        self._ask("Which report is missing?", thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)

    def use_tool(self) -> None:
        """a message that calls a tool"""
        self._ask("Find the audit.", tools=[LOOKUP])

    def abandon_stream(self) -> None:
        """a stream given up: the counts so far stand"""
        events = self.client.messages.create(
            model="claude-opus-4-5", max_tokens=200, messages=_asked("Read it all to me."), stream=True
        )
        with events:
            for number, _ in enumerate(events):
                if number == 4:
                    break

    def ask_many(self) -> None:
        """three messages at once, asynchronously"""
        asyncio.run(self._ask_many())

    async def _ask_many(self) -> None:
        async with self.async_client as client:
            await asyncio.gather(
                *(
                    client.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=_asked(f"Sort {letter}."))
                    for letter in "ABC"
                )
            )

    def _ask(self, question: str | list[Any], *, max_tokens: int = 200, **more: Any) -> None:
        self.client.messages.create(model="claude-opus-4-5", max_tokens=max_tokens, messages=_asked(question), **more)


def _asked(question: str | list[Any]) -> Any:
    return [{"role": "user", "content": question}]
