"""Which endpoint answers which path, for the three vendors and those who speak like them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from token_meter.testing.provider.anthropic import batches, messages
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.failures import failure, vendor
from token_meter.testing.provider.google import embed, generate, interactions
from token_meter.testing.provider.openai import audio, chat, completions, embeddings, files, images, responses
from token_meter.testing.provider.reply import Reply

Endpoint = Callable[[Exchange, Mapping[str, str]], Reply]


class Route(NamedTuple):
    """The end of a path, in which names stand for groups."""

    method: str
    path: re.Pattern[str]
    endpoint: Endpoint


def _route(methods: str, path: str, endpoint: Endpoint) -> Route:
    named = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
    return Route(methods, re.compile(rf".*{named}"), endpoint)


def list_models(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """GET /models, which all three vendors have."""
    lists = {"openai": files.models, "anthropic": batches.models, "google": embed.models}
    return lists[vendor(exchange.request)](exchange, names)


_MODEL: Final = r"/models/[^/:]+:(?P<verb>%s)"

ROUTES: Final = (
    _route("POST", "/chat/completions", chat.chat),
    _route("GET POST DELETE", "/chat/completions/{id}", chat.stored_chat),
    _route("POST", "/messages", messages.messages),
    _route("POST", _MODEL % "rawPredict|streamRawPredict", messages.messages),
    _route("POST", "/messages/count_tokens", messages.count_tokens),
    _route("POST", "/messages/batches", batches.create),
    _route("GET", "/messages/batches", batches.list_batches),
    _route("GET", "/messages/batches/{id}", batches.retrieve),
    _route("POST", "/messages/batches/{id}/cancel", batches.retrieve),
    _route("GET", "/messages/batches/{id}/results", batches.results),
    _route("POST", _MODEL % "generateContent|streamGenerateContent", generate.generate),
    _route("POST", _MODEL % "countTokens", generate.count),
    _route("POST", _MODEL % "embedContent|batchEmbedContents", embed.embed),
    _route("POST", _MODEL % "predict", embed.predict),
    _route("POST", "/interactions", interactions.create),
    _route("GET", "/interactions/{id}", interactions.retrieve),
    _route("POST", "/responses", responses.create),
    _route("POST", "/responses/compact", responses.compact),
    _route("POST", "/responses/input_tokens", responses.count),
    _route("GET", "/responses/{id}", responses.retrieve),
    _route("DELETE", "/responses/{id}", responses.delete),
    _route("POST", "/responses/{id}/cancel", responses.cancel),
    _route("POST", "/embeddings", embeddings.embeddings),
    _route("POST", "/completions", completions.completions),
    _route("POST", "/images/(?P<verb>generations|edits|variations)", images.images),
    _route("POST", "/audio/(?P<verb>transcriptions|translations)", audio.transcribe),
    _route("POST", "/audio/speech", audio.speech),
    _route("POST", "/moderations", files.moderations),
    _route("POST", "/files", files.upload),
    _route("GET DELETE", "/files/{id}", files.retrieve_file),
    _route("GET", "/files/{id}/content", files.file_content),
    _route("POST", "/batches", files.create_batch),
    _route("GET", "/batches/{id}", files.retrieve_batch),
    _route("POST", "/batches/{id}/cancel", files.retrieve_batch),
    _route("GET", "/models", list_models),
)


def serve(exchange: Exchange) -> Reply:
    """Answer one request."""
    request = exchange.request
    for route in ROUTES:
        if request.method in route.method and (match := route.path.fullmatch(request.path)):
            reply = route.endpoint(exchange, match.groupdict())
            reply.headers = {**_HEADERS[vendor(request)](exchange), **reply.headers}
            return reply
    return failure(request, 404, f"the loopback provider serves nothing at {request.method} {request.path}")


_HEADERS: Final[Mapping[str, Callable[[Exchange], dict[str, str]]]] = {
    "openai": lambda exchange: {
        "x-request-id": exchange.new_id("req_"),
        "openai-version": "2020-10-01",
        "openai-processing-ms": "12",
    },
    "anthropic": lambda exchange: {
        "request-id": exchange.new_id("req_01"),
        "anthropic-organization-id": "00000000-0000-0000-0000-000000000000",
    },
    "google": lambda exchange: {"x-gemini-service-tier": "standard", "server": "scaffolding on HTTPServer2"},
}
