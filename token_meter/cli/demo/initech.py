"""initech's service: an ordinary program on the google-genai SDK. One line, the `wrap`, knows that it is metered."""

from __future__ import annotations

import asyncio

from google import genai
from google.genai import types

from token_meter import Meter

MANUAL = "Manual of the stapler. " + "Press it firmly, and never lend it to anyone. " * 120
REASONING = types.GenerateContentConfig(thinking_config=types.ThinkingConfig(thinking_budget=512))
ORDER = types.GenerateContentConfig(
    tools=[
        types.Tool(
            function_declarations=[
                types.FunctionDeclaration(
                    name="order",
                    parameters=types.Schema(
                        type=types.Type.OBJECT, properties={"item": types.Schema(type=types.Type.STRING)}
                    ),
                )
            ]
        )
    ]
)


class Initech:
    """What initech does in a day, one method per task."""

    def __init__(self, meter: Meter, url: str) -> None:
        options = types.HttpOptions(base_url=url)
        self.client = meter.wrap(genai.Client(api_key="none", http_options=options))

    def ask(self) -> None:
        """a plain question"""
        self.client.models.generate_content(model="gemini-2.5-flash", contents="Where is my stapler?")

    def read_manual(self) -> None:
        """a long prompt, half of it from the cache"""
        self.client.models.generate_content(model="gemini-2.5-flash", contents=MANUAL)

    def think(self) -> None:
        """thinking, counted apart"""
        self.client.models.generate_content(model="gemini-2.5-pro", contents="Why is it gone?", config=REASONING)

    def stream(self) -> None:
        """a streamed answer"""
        for _ in self.client.models.generate_content_stream(model="gemini-2.5-flash", contents="Tell me more."):
            pass

    def use_tool(self) -> None:
        """an answer that calls a function"""
        self.client.models.generate_content(model="gemini-2.5-flash", contents="Order a new one.", config=ORDER)

    def chat(self) -> None:
        """a chat of two turns"""
        chat = self.client.chats.create(model="gemini-2.5-pro")
        chat.send_message("Is it here?")
        chat.send_message("And now?")

    def ask_many(self) -> None:
        """two questions at once, asynchronously"""
        asyncio.run(self._ask_many())

    async def _ask_many(self) -> None:
        models = self.client.aio.models
        await asyncio.gather(
            *(models.generate_content(model="gemini-2.5-flash", contents=f"Is it in drawer {n}?") for n in (1, 2))
        )
