"""Flask: a decorator on the views that call models; `from_` reads the customer from the request.

    python examples/flask_app.py

For all views at once, put `with meter.customer(...)` around `app.wsgi_app` instead, as in the Django example.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
from flask import Flask, Response, request, stream_with_context

from token_meter import Meter
from token_meter.testing import LoopbackProvider


def customer_of_request(**view_arguments: object) -> str | None:
    """Yours: look up whom the API key or session belongs to. Called with the arguments of the view."""
    return request.headers.get("X-Customer")


def make_app(meter: Meter, chat: openai.OpenAI) -> Flask:
    """The application."""
    app = Flask(__name__)

    @app.post("/ask")
    @meter.customer(from_=customer_of_request, route="/ask")
    def ask() -> str:
        return chat.responses.create(model="gpt-5-mini", input=request.form["question"]).output_text

    @app.post("/stream")
    def stream() -> Response:
        @meter.customer(from_=customer_of_request, route="/stream")
        def pieces() -> Iterator[str]:
            messages: Any = [{"role": "user", "content": request.form["question"]}]
            for chunk in chat.chat.completions.create(model="gpt-5-mini", messages=messages, stream=True):
                yield chunk.choices[0].delta.content or ""

        return Response(stream_with_context(pieces()))

    return app


def main() -> None:
    with LoopbackProvider() as provider, Meter("flask_app.db", dimensions=["route"]) as meter:
        meter.allow_include_usage("127.0.0.1:*")
        chat = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))
        web = make_app(meter, chat).test_client()

        for customer, path in (("acme", "/ask"), ("globex", "/stream")):
            answer = web.post(path, data={"question": "Where is it?"}, headers={"X-Customer": customer})
            print(f"{path:7} for {customer:6}: {answer.status_code}, {len(answer.data)} bytes")

        print("\nmetered:")
        for row in meter.usage(by=("customer", "route")):
            print(f"  {row['customer']:6} {row['route']:7} {row.events} call, {row.usage.tokens} tokens")


if __name__ == "__main__":
    main()
