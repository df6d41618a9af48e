"""What the fake billing backends share: a server on 127.0.0.1, a clock that tests move, and things that go wrong.

A backend subclasses `FakeBackend` and implements `answer`, which is where it commits; whatever `Chaos` does happens
around it, so that "500 after commit" is exactly that. Its truth is `counted`: what it would bill.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

BODY_BYTES_MAX: Final = 64 << 20
CLOSE_TIMEOUT_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
CONTROL: Final = "/_/"
"""Paths of the test itself, for a backend that runs in another process: `state`, `chaos`, `clock`."""


class VirtualClock:
    """The backend's time: the machine's, moved by as much as `advance` said."""

    def __init__(self, *, offset_seconds: float = 0.0) -> None:
        self.offset_seconds = offset_seconds

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.offset_seconds

    def moment(self) -> datetime:
        """The same in UTC."""
        return datetime.fromtimestamp(self.now(), UTC)

    def advance(self, seconds: float) -> None:
        """Let time pass (or go back)."""
        self.offset_seconds += seconds


class Request(NamedTuple):
    """What came in: header names in lower case, the path decoded, query values as lists."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


class Response(NamedTuple):
    """What goes out."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}

    @classmethod
    def json(cls, document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """A JSON body with its content type."""
        body = json.dumps(document, separators=(",", ":")).encode()
        return cls(status, body, {"Content-Type": "application/json", **(headers or {})})


Fault = Literal[
    "error_before", "error_after", "hang_after", "reset_before", "reset_after", "unavailable", "throttled", "slow"
]


@dataclass(slots=True)
class Chaos:
    """How often (0 to 1) what goes wrong. `after` means: the backend has committed, and the client is not told so.

    `error_before` and `error_after` answer 500; `hang_after` answers nothing for `hang_seconds` and hangs up;
    `reset_before` and `reset_after` reset the connection, the latter in the middle of the response; `unavailable`
    answers 503; `throttled` 429, with `Retry-After: retry_after` if that is given; `slow` waits `slow_seconds` in the
    middle of a complete response. `script` is worked off before chance: faults, or None for a request that goes well.
    """

    error_before: float = 0.0
    error_after: float = 0.0
    hang_after: float = 0.0
    reset_before: float = 0.0
    reset_after: float = 0.0
    unavailable: float = 0.0
    throttled: float = 0.0
    slow: float = 0.0
    hang_seconds: float = 30.0
    slow_seconds: float = 0.2
    retry_after: float | None = None
    seed: int = 0
    script: list[Fault | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    _random: random.Random = field(init=False, repr=False, compare=False)

    def next(self) -> Fault | None:
        """What befalls the next request."""
        if self.script:
            return self.script.pop(0)
        chance = self._random.random()
        for name in _FAULTS:
            chance -= getattr(self, name)
            if chance < 0:
                return name
        return None


_FAULTS: Final[tuple[Fault, ...]] = (
    "error_before", "error_after", "hang_after", "reset_before", "reset_after", "unavailable", "throttled", "slow",
)  # fmt: skip


class Counted(NamedTuple):
    """One record that the backend bills: whose, of which meter, split by what, how much, when."""

    identifier: str
    customer: str
    meter: str
    group: tuple[str, ...]
    value: int
    at: float
    received: float


class FakeBackend:
    """A context manager that serves on 127.0.0.1 while it is open, on a free port unless one is given.

    `counted` is what it bills, in order; `seen` counts requests by (method, path, status told to the client). `down`
    makes it answer 503 to everything. `stop` and `start` close and open the port: connections are refused between.
    """

    name: ClassVar[str] = "backend"

    def __init__(self, *, port: int = 0, clock: VirtualClock | None = None, chaos: Chaos | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.chaos = chaos or Chaos()
        self.down = False
        self.counted: list[Counted] = []
        self.seen: Counter[tuple[str, str, int]] = Counter()
        self.errors: list[BaseException] = []
        self.lock = threading.RLock()
        self._port = port
        self._server: _Server | None = None

    # ---- to be written by a backend ----

    def answer(self, request: Request) -> Response:
        """Commit and answer. Called by many threads; `self.lock` guards what is shared."""
        raise NotImplementedError

    def unavailable(self) -> Response:
        """How it says that it is down."""
        return Response.json({"error": {"message": "service unavailable"}}, status=503)

    def failed(self) -> Response:
        """How it says that something broke inside."""
        return Response.json({"error": {"message": "internal server error"}}, status=500)

    def throttled(self) -> Response:
        """How it says that this was too much."""
        return Response.json({"error": {"message": "too many requests"}}, status=429)

    # ---- what tests read ----

    def totals(self) -> dict[tuple[str, ...], int]:
        """What it bills by (customer, meter, *group)."""
        sums: Counter[tuple[str, ...]] = Counter()
        with self.lock:
            for each in self.counted:
                sums[(each.customer, each.meter, *each.group)] += each.value
        return dict(sums)

    def counted_twice(self) -> list[str]:
        """Identifiers that it bills more than once: always a bug of whoever sent them."""
        with self.lock:
            times = Counter((each.meter, each.identifier) for each in self.counted)
        return sorted(identifier for (_, identifier), count in times.items() if count > 1)

    # ---- serving ----

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port; kept when the server stops and starts again."""
        return self._port

    def start(self) -> Self:
        """Open the port."""
        if self._server is None:
            self._server = _Server(self._port, self)
            self._port = int(self._server.server_address[1])
        return self

    def stop(self) -> None:
        """Close the port and every connection. What was counted stays."""
        if self._server is not None:
            self._server.close()
            self._server = None

    close = stop

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def serve(self, request: Request) -> tuple[Response, Fault | None]:
        """The answer and what befalls it on its way."""
        if request.path.startswith(CONTROL):
            return self._control(request), None
        if self.down:
            return self._noted(request, self.unavailable()), None
        with self.lock:
            fault = self.chaos.next()
        match fault:
            case "error_before":
                return self._noted(request, self.failed()), None
            case "unavailable":
                return self._noted(request, self.unavailable()), None
            case "throttled":
                response, after = self.throttled(), self.chaos.retry_after
                headers = {**response.headers, **({} if after is None else {"Retry-After": f"{after:g}"})}
                return self._noted(request, response._replace(headers=headers)), None
            case "reset_before":
                return Response(), fault
        response = self._answer(request)
        if fault == "error_after":
            response = self.failed()
        return self._noted(request, response), fault

    def _noted(self, request: Request, response: Response) -> Response:
        with self.lock:
            self.seen[(request.method, request.path, response.status)] += 1
        return response

    def _answer(self, request: Request) -> Response:
        try:
            return self.answer(request)
        except Exception as problem:  # noqa: BLE001 - kept in `errors` and told to the client
            self.errors.append(problem)
            return Response.json({"error": {"message": f"the fake failed: {problem!r}"}}, status=500)

    def _control(self, request: Request) -> Response:
        """`GET state`; `POST chaos` with fields of `Chaos`; `POST clock` with {"advance": seconds}; `POST down`."""
        document = json.loads(request.body or b"{}")
        what = request.path.removeprefix(CONTROL)
        if what == "chaos":
            known = {each.name for each in fields(Chaos) if each.init}
            self.chaos = replace(Chaos(), **{name: value for name, value in document.items() if name in known})
        elif what == "clock":
            self.clock.advance(float(document["advance"]))
        elif what == "down":
            self.down = bool(document.get("down", True))
        return Response.json(
            {
                "totals": [[list(key), value] for key, value in sorted(self.totals().items())],
                "counted": len(self.counted),
                "counted_twice": self.counted_twice(),
                "seen": [[*key, times] for key, times in sorted(self.seen.items())],
                "errors": [repr(error) for error in self.errors],
                "now": self.clock.now(),
            }
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, port: int, backend: FakeBackend) -> None:
        self.backend = backend
        self.closing = threading.Event()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        name = f"fake-{backend.name}"
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), name=name, daemon=True)
        self._thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                del self._connections[request]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client may go away, or be killed; what the backend does wrong stands in its `errors`."""

    def close(self) -> None:
        """Stop, hang up, and wait for the threads."""
        self.closing.set()
        self.shutdown()
        self._thread.join(CLOSE_TIMEOUT_SECONDS)
        with self._lock:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(CLOSE_TIMEOUT_SECONDS)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: keys may stand in a header or URL."""

    def _serve(self) -> None:
        backend = self.server.backend
        target = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(target.path),
            parse_qs(target.query, keep_blank_values=True),
            {name.lower(): value for name, value in self.headers.items()},
            self._read_body(),
        )
        response, fault = backend.serve(request)
        try:
            self._send(response, fault, backend)
        except OSError:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(min(int(self.headers.get("content-length") or 0), BODY_BYTES_MAX))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, response: Response, fault: Fault | None, backend: FakeBackend) -> None:
        if fault == "hang_after":
            self.server.closing.wait(backend.chaos.hang_seconds)
            self._reset()
            return
        if fault == "reset_before":
            self._reset()
            return
        date = formatdate(backend.clock.now(), usegmt=True)
        headers = {"Date": date, **response.headers, "Content-Length": str(len(response.body))}
        self.send_response_only(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault in ("reset_after", "slow"):
            half = max(1, len(response.body) // 2)
            self.wfile.write(response.body[:half])
            self.wfile.flush()
            if fault == "reset_after":
                self._reset()
                return
            self.server.closing.wait(backend.chaos.slow_seconds)
            self.wfile.write(response.body[half:])
        else:
            self.wfile.write(response.body)
        self.wfile.flush()

    def _reset(self) -> None:
        """Hang up with RST, as a proxy does that was restarted."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
