"""The loopback provider: the wire formats of OpenAI, Anthropic and Google on this machine, for tests and the demo."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, Unpack

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.delivery import Delivery
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.failures import failure
from token_meter.testing.provider.faults import FaultOptions, Faults
from token_meter.testing.provider.http import Server
from token_meter.testing.provider.reply import Reply
from token_meter.testing.provider.request import Request, SeenRequest, read_request, seen
from token_meter.testing.provider.routes import serve
from token_meter.testing.provider.state import Handler, Scripted, State
from token_meter.testing.provider.transport import async_transport, sync_transport
from token_meter.usage import Usage

REQUESTS_MAX: Final = 100_000
"""Entries the request log keeps; the oldest go first."""


class LoopbackProvider:
    """A context manager that serves on 127.0.0.1 while it is open, on a free port unless one is given.

        with LoopbackProvider() as provider:
            client = openai.OpenAI(base_url=provider.openai_url, api_key="any")

    Without opening it, `transport(httpx2)` serves SDKs inside the process. `requests` logs what came in
    (never a prompt or key), `billed` what was charged: the truth to compare a ledger with. How answers and
    counts follow from a request stands in `answer.py`, how to make things go wrong in `Faults` and
    `url_with`.
    """

    def __init__(self, *, port: int = 0) -> None:
        self._port = port
        self._server: Server | None = None
        self._state = State()
        self._requests: deque[SeenRequest] = deque(maxlen=REQUESTS_MAX)
        self._lock = threading.Lock()
        self._views = 0
        self.errors: list[BaseException] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Open the port."""
        if self._server is None:
            self._server = Server(self._port, self._open)
        return self

    def close(self) -> None:
        """Close the port and every connection, and wait for the threads. May be called twice."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end. While closed: one that only the transports answer."""
        return f"http://127.0.0.1:{self._server.port}" if self._server else "http://loopback"

    @property
    def openai_url(self) -> str:
        """`base_url` for the OpenAI SDK."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """`base_url` for the Anthropic SDK."""
        return self.url

    @property
    def google_url(self) -> str:
        """`http_options={"base_url": ...}` for the Google SDK."""
        return self.url

    def url_with(self, **options: Unpack[FaultOptions]) -> str:
        """A base URL whose clients meet these faults: `url_with(drop=3, gzip=True)`. OpenAI's takes `/v1`
        after it.

        With `fail` each call counts its own failures, unless an `id` is given.
        """
        faults = Faults(**options)
        if faults.fail and not faults.id:
            with self._lock:
                self._views += 1
                faults = replace(faults, id=str(self._views))
        return f"{self.url}/~{faults.text}"

    def transport(self, httpx: Any) -> Any:
        """A transport for `httpx.Client` (or httpx2's) that answers inside the process, chunk by chunk."""
        return sync_transport(self._open, httpx)

    def async_transport(self, httpx: Any) -> Any:
        """A transport for `httpx.AsyncClient` (or httpx2's) that answers inside the process, chunk by chunk."""
        return async_transport(self._open, httpx)

    @property
    def requests(self) -> list[SeenRequest]:
        """The requests received since the last reset, oldest first."""
        with self._lock:
            return list(self._requests)

    @property
    def billed(self) -> list[Billed]:
        """What was charged since the last reset, oldest first."""
        return self._state.account.lines

    def total(self, *, api: str | None = None, model: str | None = None) -> Usage:
        """The sum of what was charged, of one API or one answering model if named."""
        return self._state.account.total(api=api, model=model)

    def usage(
        self,
        usage: Usage | None = None,
        *,
        raw: Mapping[str, Any] | None = None,
        api: str | None = None,
        model: str | None = None,
    ) -> None:
        """Charge exactly this for every following call of an API and a model asked for (default: of all).

        `raw` is a usage block to send as it is in place of the one that follows from the usage. The setting
        made last counts; `reset()` ends it. A usage that the wire format of an API cannot tell makes its
        calls fail.
        """
        if usage is None and raw is None:
            raise ValueError("give a Usage, or a raw usage block, or both")
        self._state.scripted.append(Scripted(usage, raw, api, model))

    def answer(self, text: str) -> None:
        """Answer every following call with this text, streamed word by word."""
        self._state.text = text

    def script(self, handler: Handler, *, path: str | None = None) -> None:
        """Ask a function of your own first, for one path if given: it returns a `Reply`, or None to leave it be."""
        self._state.handlers.append((path, handler))

    def reset(self) -> None:
        """Forget the log, the account, everything stored and everything scripted."""
        with self._lock:
            self._requests.clear()
        self._state.clear()
        self.errors.clear()

    def _open(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Delivery:
        """Answer a request, whoever transports it."""
        try:
            request = read_request(method, target, headers, body)
        except ValueError as problem:
            return Delivery(failure(Request(method, target), 400, str(problem)), Faults())
        with self._lock:
            self._requests.append(seen(request))
        reply = self._answer(request)
        reply.chunks = self._watched(reply.chunks)
        return Delivery(reply, request.faults)

    def _watched(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """A stream that fails in the middle has its headers out: it breaks off, and the test finds the reason."""
        try:
            yield from chunks
        except Exception as problem:
            self.errors.append(problem)
            raise

    def _answer(self, request: Request) -> Reply:
        if self._state.failing(request.faults):
            status, _ = request.faults.failures
            return failure(request, status, f"status {status}, as asked for")
        try:
            return self._state.handle(request) or serve(Exchange(request, self._state, serve))
        except Exception as problem:  # noqa: BLE001 - kept in `errors` and told to the client
            self.errors.append(problem)
            return failure(request, 500, f"the loopback provider failed: {problem!r}")
