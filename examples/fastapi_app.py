"""FastAPI: one small middleware attributes every call of a request, streamed answers included.

    python examples/fastapi_app.py

The middleware is plain ASGI: it surrounds the whole request, also the body that is streamed after the endpoint has
returned, and sets no context that another task would have to reset. Sync endpoints, which FastAPI runs in threads,
are attributed too. Meter and client live as long as the application, in its lifespan.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from token_meter import Meter
from token_meter.testing import LoopbackProvider


class Attributed:
    """ASGI middleware: the calls of a request are for the customer that its API key or token names."""

    def __init__(self, app: Any, meter: Meter) -> None:
        self.app = app
        self.meter = meter

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        customer = headers.get(b"x-customer", b"").decode() or None  # yours: look the API key up
        async with self.meter.customer(customer, route=scope["path"]):
            await self.app(scope, receive, send)


def make_app(meter: Meter, base_url: str) -> FastAPI:
    """The application. In yours, `base_url` and `api_key` come from the environment as always."""
    chat = meter.wrap(openai.AsyncOpenAI(base_url=base_url, api_key="none"))
    sync_chat = meter.wrap(openai.OpenAI(base_url=base_url, api_key="none"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with chat:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(Attributed, meter=meter)

    @app.post("/ask")
    async def ask(question: str) -> str:
        return (await chat.responses.create(model="gpt-5-mini", input=question)).output_text

    @app.post("/ask-sync")
    def ask_sync(question: str) -> str:
        return sync_chat.responses.create(model="gpt-5-mini", input=question).output_text

    @app.post("/stream")
    async def stream(question: str) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            async with chat.responses.stream(model="gpt-5-mini", input=question) as events:
                async for event in events:
                    if event.type == "response.output_text.delta":
                        yield event.delta

        return StreamingResponse(pieces(), media_type="text/plain")

    return app


def main() -> None:
    with LoopbackProvider() as provider, Meter("fastapi_app.db", dimensions=["route"]) as meter:
        with TestClient(make_app(meter, provider.openai_url)) as web:
            for customer, path in (("acme", "/ask"), ("acme", "/stream"), ("globex", "/ask-sync")):
                answer = web.post(path, params={"question": "Where is it?"}, headers={"X-Customer": customer})
                print(f"{path:9} for {customer:6}: {answer.status_code}, {len(answer.text)} characters")

        print("\nmetered:")
        for row in meter.usage(by=("customer", "route")):
            print(f"  {row['customer']:6} {row['route']:9} {row.events} call, {row.usage.tokens} tokens")


if __name__ == "__main__":
    main()
