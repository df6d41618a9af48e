"""What the tests of the taps share: one loopback provider, one capturing meter, and clients that are closed.

Everything runs the vendors' real SDKs. A bench answers inside the process, under whatever base URL a test gives
(so a client can believe to talk to api.openai.com); `Bench(sockets=True)` opens a real port.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import anthropic
import httpx2
import openai
from google import genai
from hypothesis import settings

from token_meter import Meter, MeterEvent, Usage
from token_meter.testing.capturing import Captured, capture
from token_meter.testing.provider import Billed, LoopbackProvider

HOSTS = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "google": "https://generativelanguage.googleapis.com",
}
"""Hosts that the table of hosts knows: what a client of each SDK talks to unless told otherwise."""

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES}
RESPONSE: dict[str, Any] = {"model": "gpt-5", "input": "Hello"}
MESSAGE: dict[str, Any] = {"model": "claude-sonnet-4-6", "max_tokens": 99, "messages": MESSAGES}
GENERATE: dict[str, Any] = {"model": "gemini-2.5-flash", "contents": "Hello"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


_TLS = ssl.create_default_context()
"""Shared, because making one takes longer than a test; nothing here talks TLS."""


class Bench:
    """A provider, a meter that captures, and clients of the three SDKs, wrapped unless a test says otherwise."""

    def __init__(self, *, sockets: bool = False) -> None:
        self.provider = LoopbackProvider()
        self.problems: dict[str, int] = {}
        """The internal failures a test expects; anything else fails it."""
        self._sockets = sockets
        self._stack = ExitStack()
        self._async_stack = AsyncExitStack()

    def __enter__(self) -> Bench:
        if self._sockets:
            self._stack.enter_context(self.provider)
        self._stack.enter_context(patch.dict(os.environ, TOKEN_METER_FSYNC="never", TIKTOKEN_CACHE_DIR=""))
        self.captured: Captured = self._stack.enter_context(capture(instrument=()))
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            if kind is None:
                self._check()
        finally:
            self._stack.close()

    def _check(self) -> None:
        self.meter.flush(30.0)
        state = self.meter._journal.state()  # type: ignore[union-attr]
        assert self.provider.errors == []
        assert state.problems == self.problems
        assert (state.outstanding, state.pending, state.lost) == (0, 0, 0), "a call was opened and never ended"

    @property
    def meter(self) -> Meter:
        return self.captured.meter

    @property
    def events(self) -> list[MeterEvent]:
        return self.captured.events

    @property
    def event(self) -> MeterEvent:
        """The only event there is."""
        [event] = self.events
        return event

    @property
    def usages(self) -> list[Usage]:
        return [event.usage for event in self.events]

    @property
    def billed(self) -> list[Billed]:
        return self.provider.billed

    def assert_billed(self, *, status: str = "complete") -> None:
        """Every event is exactly one line of the provider's own account, in the same order."""
        assert [(event.usage, event.model, event.response_id) for event in self.events] == [
            (line.usage, line.model, line.response_id) for line in self.billed
        ]
        assert {event.status for event in self.events} == {status}

    # ---- clients ----

    def client(self, sdk: str, *, is_async: bool = False, wrap: bool = True, **options: Any) -> Any:
        """A client of an SDK; for Google the `.aio` side is reached through the same client."""
        made = {"openai": self.openai, "anthropic": self.anthropic, "google": self.google}[sdk]
        return made(is_async=is_async, wrap=wrap, **options)

    def openai(self, cls: Any = None, *, is_async: bool = False, wrap: bool = True, **options: Any) -> Any:
        cls = cls or (openai.AsyncOpenAI if is_async else openai.OpenAI)
        base = self.base("openai", options, "/v1")
        options = {"api_key": "sk-test", "max_retries": 0, **base, **options}
        return self._adopt(cls(http_client=self.http_client(is_async=is_async), **options), wrap=wrap)

    def anthropic(self, cls: Any = None, *, is_async: bool = False, wrap: bool = True, **options: Any) -> Any:
        cls = cls or (anthropic.AsyncAnthropic if is_async else anthropic.Anthropic)
        base = self.base("anthropic", options, "")
        options = {"api_key": "sk-test", "max_retries": 0, **base, **options}
        return self._adopt(cls(http_client=self.http_client(is_async=is_async), **options), wrap=wrap)

    def google(self, *, is_async: bool = False, wrap: bool = True, **options: Any) -> Any:
        base = self.base("google", options, "")["base_url"]
        http: dict[str, Any] = {"base_url": base, "async_client_args": {"ssl": _TLS}, **options.pop("http_options", {})}
        if not options.pop("aiohttp", self._sockets):  # aiohttp needs a port
            http["httpx_client"] = self.http_client(is_async=False)
            http["httpx_async_client"] = self.http_client(is_async=True)
        client = genai.Client(**{"api_key": "test", "http_options": http, **options})
        self._async_stack.push_async_callback(client.aio.aclose)
        return self._adopt(client, wrap=wrap)

    def base(self, sdk: str, options: dict[str, Any], version: str) -> dict[str, Any]:
        """The base URL: the vendor's own host (this machine with `sockets`), a given `host`, with `faults`."""
        host = options.pop("host", None) or (self.provider.url if self._sockets else HOSTS[sdk])
        faults = options.pop("faults", {})
        path = self.provider.url_with(**faults).removeprefix(self.provider.url) if faults else ""
        return {"base_url": f"{host}{path}{version}"}

    def http_client(self, *, is_async: bool, library: Any = httpx2) -> Any:
        """An HTTP client that answers inside the process, closed at the end of the test."""
        if is_async:
            transport = None if self._sockets else self.provider.async_transport(library)
            client = library.AsyncClient(transport=transport, timeout=30, verify=_TLS)
            self._async_stack.push_async_callback(client.aclose)
            return client
        transport = None if self._sockets else self.provider.transport(library)
        return self._stack.enter_context(library.Client(transport=transport, timeout=30, verify=_TLS))

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine function to its end, and close the asynchronous clients made so far."""

        async def whole() -> Any:
            try:
                return await main()
            finally:
                await self._async_stack.aclose()

        return asyncio.run(whole())

    def _adopt(self, client: Any, *, wrap: bool) -> Any:
        if not isinstance(client, (openai.AsyncOpenAI, anthropic.AsyncAnthropic)) and hasattr(client, "close"):
            self._stack.callback(_close, client)
        return self.meter.wrap(client) if wrap else client


@cache
def _freeze() -> None:
    gc.collect()
    gc.freeze()


def collect() -> None:
    """Collect garbage; what the SDKs and pytest hold for good is set aside the first time, for speed."""
    _freeze()
    gc.collect()


def _close(client: Any) -> None:
    closed = client.close()
    if asyncio.iscoroutine(closed):
        closed.close()  # an asynchronous client: its HTTP client is closed by `run`


# ---- comparing what a caller sees ---------------------------------------------------------------------------------

_IDS = re.compile(r"[0-9a-f]{23,}")
_MOMENTS = frozenset({"created", "created_at", "completed_at", "date", "expires_at"})


def plain(value: Any) -> Any:
    """What a caller sees of an SDK object, as plain data; ids and moments differ between two calls and are cut."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict(mode="json") if not isinstance(value, MeterEvent) else value.to_json())
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items() if name not in _MOMENTS}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, bytes):
        return plain(value.decode())
    if isinstance(value, str):
        return re.sub(r'"created(_at)?":\d+', "", _IDS.sub("#", value))
    return value


@dataclass
class Outcome:
    """What a caller saw: results in order, their types, and how it ended."""

    seen: list[Any] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None

    def add(self, value: Any) -> None:
        self.seen.append(plain(value))
        self.types.append(f"{type(value).__module__}.{type(value).__qualname__}")

    def failed(self, error: BaseException) -> None:
        self.error = (f"{type(error).__module__}.{type(error).__qualname__}", plain(str(error)))


properties = partial(settings, derandomize=True, deadline=None)
"""Settings of property tests: the same examples in every run."""
