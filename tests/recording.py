"""The recorded answers in tests/cassettes, and how they are made: `python -m tests.recording` records them anew.

vcrpy records what the real SDKs exchange with the loopback provider of `token_meter.testing`. What would differ from
machine to machine, or tell of one, is left out: ports, keys, and every header but the content type. Whoever adds a
call adds a row to CALLS, records, and runs `python -m pytest tests/test_cassettes.py --inline-snapshot=create,fix`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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

Call = Callable[[Any], Any]


def _drained(stream: Any) -> None:
    for _ in stream:
        pass


def _chat(client: Any) -> None:
    client.chat.completions.create(model="gpt-5", messages=MESSAGES)


def _chat_stream(client: Any) -> None:
    options = {"include_usage": True}
    _drained(client.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True, stream_options=options))


def _responses(client: Any) -> None:
    client.responses.create(model="gpt-5", input="Hello")


def _responses_stream(client: Any) -> None:
    _drained(client.responses.create(model="gpt-5", input="Hello", stream=True))


def _embeddings(client: Any) -> None:
    client.embeddings.create(model="text-embedding-3-small", input=["Hello", "world"])


def _messages(client: Any) -> None:
    client.messages.create(model=CLAUDE, max_tokens=50, messages=MESSAGES)


def _messages_stream(client: Any) -> None:
    _drained(client.messages.create(model=CLAUDE, max_tokens=50, messages=MESSAGES, stream=True))


def _generate(client: Any) -> None:
    client.models.generate_content(model=GEMINI, contents="Hello")


def _generate_stream(client: Any) -> None:
    _drained(client.models.generate_content_stream(model=GEMINI, contents="Hello"))


CALLS: Final[Mapping[str, tuple[str, Call]]] = {
    "openai-chat-plain": ("openai", _chat),
    "openai-chat-stream": ("openai", _chat_stream),
    "openai-responses-plain": ("openai", _responses),
    "openai-responses-stream": ("openai", _responses_stream),
    "openai-embeddings-plain": ("openai", _embeddings),
    "anthropic-messages-plain": ("anthropic", _messages),
    "anthropic-messages-stream": ("anthropic", _messages_stream),
    "google-generate-plain": ("google", _generate),
    "google-generate-stream": ("google", _generate_stream),
}
"""Each cassette: the SDK, and the call that is recorded in it."""


def client_of(sdk: str, origin: str) -> Any:
    """The SDK's client for a provider at this origin. It tries once, so that a call is one exchange."""
    match sdk:
        case "openai":
            return openai.OpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0)
        case "anthropic":
            return anthropic.Anthropic(base_url=origin, api_key="none", max_retries=0)
        case _:
            return genai.Client(api_key="none", http_options={"base_url": origin})


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
    return Request(request.method, uri, request.body, headers)


def _bare(response: dict[str, Any]) -> dict[str, Any]:
    headers = {name: value for name, value in response["headers"].items() if name.lower() in KEPT}
    return {**response, "headers": headers}


def record(folder: Path = FOLDER) -> list[Path]:
    """Record every call; the files that were written."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, (sdk, call) in CALLS.items():
        path = folder / f"{name}.yaml"
        path.unlink(missing_ok=True)
        recording = recorder(folder, record_mode="all").use_cassette(name)
        with LoopbackProvider() as provider, recording, client_of(sdk, provider.anthropic_url) as client:
            call(client)
        written.append(path)
    return written


if __name__ == "__main__":
    for path in record():
        sys.stdout.write(f"{path.relative_to(Path.cwd())}\n")
