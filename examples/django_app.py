"""Django in one file: a middleware of five lines attributes every call of a request.

    python examples/django_app.py

A streamed response is sent after the middleware has returned. The model call inside it is still attributed when it
was opened in the view, as here: a stream keeps the customer of the moment it was opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import django
import openai
from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import path

from token_meter import Meter
from token_meter.testing import LoopbackProvider

# In a project: one module, imported by middleware and views, with `meter = Meter()` and the wrapped clients.
meter: Meter
chat: openai.OpenAI


def attributed(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: the calls of a request are for its customer. Behind authentication: `request.user.account_id`."""

    def middleware(request: HttpRequest) -> HttpResponse:
        with meter.customer(request.headers.get("X-Customer"), route=request.path):
            return get_response(request)

    return middleware


def ask(request: HttpRequest) -> HttpResponse:
    return HttpResponse(chat.responses.create(model="gpt-5-mini", input=request.GET["question"]).output_text)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    messages: Any = [{"role": "user", "content": request.GET["question"]}]
    chunks = chat.chat.completions.create(model="gpt-5-mini", messages=messages, stream=True)

    def pieces() -> Iterator[str]:
        for chunk in chunks:
            yield chunk.choices[0].delta.content or ""

    return StreamingHttpResponse(pieces())


urlpatterns = [path("ask", ask), path("stream", stream)]


def configure() -> None:
    """What settings.py says in a project."""
    settings.configure(
        ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"], MIDDLEWARE=[f"{__name__}.attributed"], USE_TZ=True
    )
    django.setup()


def main() -> None:
    global meter, chat
    configure()
    with LoopbackProvider() as provider, Meter("django_app.db", dimensions=["route"]) as meter:
        meter.allow_include_usage("127.0.0.1:*")
        chat = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))

        web = Client()
        for customer, route in (("acme", "/ask"), ("globex", "/stream")):
            answer = web.get(route, {"question": "Where is it?"}, headers={"X-Customer": customer})
            print(f"{route:7} for {customer:6}: {answer.status_code}, {len(answer.getvalue())} bytes")

        print("\nmetered:")
        for row in meter.usage(by=("customer", "route")):
            print(f"  {row['customer']:6} {row['route']:7} {row.events} call, {row.usage.tokens} tokens")


if __name__ == "__main__":
    main()
