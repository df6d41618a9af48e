"""The recorded answers in tests/cassettes, and how they are made: `python -m tests.recording` records them anew.

vcrpy records what the real SDKs exchange with the loopback provider of `token_meter.testing`. What would differ from
machine to machine, or tell of one, is left out: ports, keys, and every header but the content type. Whoever adds a
call adds a row to CALLS, records, and runs `python -m pytest tests/test_cassettes.py --inline-snapshot=create,fix`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import anthropic
import openai
import vcr
from google import genai
from vcr.request import Request

from token_meter.testing import LoopbackProvider

FOLDER: Final = Path(__file__).parent / "cassettes"
HOST: Final = "provider.invalid"
"""Stands in the recordings for the provider's address; the name is reserved and leads nowhere."""

KEPT: Final = ("content-type",)
MESSAGES: Final[Any] = [{"role": "user", "content": "Hello"}]
CLAUDE: Final = "claude-sonnet-4-6"
GEMINI: Final = "gemini-2.5-flash"

CALLS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "openai-chat-plain": (
        "openai",
        lambda client: client.chat.completions.create(model="gpt-5", messages=MESSAGES),
    ),
    "openai-chat-stream": (
        "openai",
        lambda client: client.chat.completions.create(
            model="gpt-5", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ),
    ),
    "openai-responses-plain": (
        "openai",
        lambda client: client.responses.create(model="gpt-5", input="Hello"),
    ),
    "openai-responses-stream": (
        "openai",
        lambda client: client.responses.create(model="gpt-5", input="Hello", stream=True),
    ),
    "openai-embeddings-plain": (
        "openai",
        lambda client: client.embeddings.create(model="text-embedding-3-small", input=["Hello", "world"]),
    ),
    "anthropic-messages-plain": (
        "anthropic",
        lambda client: client.messages.create(model=CLAUDE, max_tokens=50, messages=MESSAGES),
    ),
    "anthropic-messages-stream": (
        "anthropic",
        lambda client: client.messages.create(model=CLAUDE, max_tokens=50, messages=MESSAGES, stream=True),
    ),
    "google-generate-plain": (
        "google",
        lambda client: client.models.generate_content(model=GEMINI, contents="Hello"),
    ),
    "google-generate-stream": (
        "google",
        lambda client: client.models.generate_content_stream(model=GEMINI, contents="Hello"),
    ),
}
"""Each cassette: the SDK, and the call that is recorded in it, the same for sync and async clients."""


def call(name: str, client: Any) -> None:
    """Make the call, and read its stream to the end."""
    result = CALLS[name][1](client)
    if name.endswith("-stream"):
        for _ in result:
            pass


async def acall(name: str, client: Any) -> None:
    """The same with an async client."""
    result = await CALLS[name][1](client)
    if name.endswith("-stream"):
        async for _ in result:
            pass


def client_of(sdk: str, origin: str) -> Any:
    """The SDK's client for a provider at this origin. It tries once, so that a call is one exchange."""
    match sdk:
        case "openai":
            return openai.OpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0)
        case "anthropic":
            return anthropic.Anthropic(base_url=origin, api_key="none", max_retries=0)
        case _:
            return genai.Client(api_key="none", http_options={"base_url": origin})


@asynccontextmanager
async def async_client_of(sdk: str, origin: str, wrap: Callable[[Any], Any]) -> AsyncIterator[Any]:
    """The SDK's async client, wrapped. Google's is a part of the sync one, which is what gets wrapped."""
    match sdk:
        case "openai":
            async with wrap(openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0)) as client:
                yield client
        case "anthropic":
            async with wrap(anthropic.AsyncAnthropic(base_url=origin, api_key="none", max_retries=0)) as client:
                yield client
        case _:
            with wrap(client_of(sdk, origin)) as whole:
                async with whole.aio as client:
                    yield client


def recorder(folder: Path, *, record_mode: str) -> vcr.VCR:
    """vcrpy as it is used here: "none" replays and lets nothing out, "all" records."""
    return vcr.VCR(
        cassette_library_dir=str(folder),
        path_transformer=vcr.VCR.ensure_suffix(".yaml"),
        record_mode=record_mode,
        match_on=("method", "uri", "body"),
        before_record_request=_anonymous,
        before_record_response=_bare,
    )


def _anonymous(request: Request) -> Request:
    uri = urlunsplit(urlsplit(request.uri)._replace(scheme="http", netloc=HOST))
    headers = {name: value for name, value in request.headers.items() if name.lower() in KEPT}
    return Request(request.method.upper(), uri, request.body, headers)


def _bare(response: dict[str, Any]) -> dict[str, Any]:
    headers = {name: value for name, value in response["headers"].items() if name.lower() in KEPT}
    return {**response, "headers": headers}


def record(folder: Path = FOLDER) -> list[Path]:
    """Record every call; the files that were written."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, (sdk, _) in CALLS.items():
        path = folder / f"{name}.yaml"
        path.unlink(missing_ok=True)
        recording = recorder(folder, record_mode="all").use_cassette(name)
        with LoopbackProvider() as provider, recording, client_of(sdk, provider.anthropic_url) as client:
            call(name, client)
        written.append(path)
    return written


if __name__ == "__main__":
    for path in record():
        sys.stdout.write(f"{path.relative_to(Path.cwd())}\n")
