"""The HTTP/1.1 server on 127.0.0.1: threads, kept-alive connections, and a close that leaves nothing behind."""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from token_meter.testing.provider.delivery import Delivery, Dropped, Pause
from token_meter.testing.provider.transport import Open

CLOSE_TIMEOUT_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
"""How soon the accepting thread notices that it is to stop."""


class Server(ThreadingHTTPServer):
    """Serves what `open_delivery` answers, one thread for each connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, open_delivery: Open) -> None:
        self.open_delivery = open_delivery
        self.closing = threading.Event()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(POLL_SECONDS,), name="loopback-provider", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                del self._connections[request]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client may go away, and what the provider does wrong stands in its `errors`."""

    def close(self) -> None:
        """Stop, interrupt what is still being delivered, and wait for the threads."""
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
    server: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: prompts may stand in a URL."""

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        delivery = self.server.open_delivery(self.command, self.path, headers, self._read_body())
        self.server.closing.wait(delivery.faults.delay)
        try:
            self._send_head(delivery)
            self._send_body(delivery)
        except Dropped:
            self._hang_up()
        except OSError:
            delivery.broke()
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send_head(self, delivery: Delivery) -> None:
        self.send_response(delivery.reply.status)
        for name, value in delivery.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def _send_body(self, delivery: Delivery) -> None:
        chunked = "transfer-encoding" in delivery.headers
        for step in delivery.steps():
            if isinstance(step, Pause):
                self.server.closing.wait(step.seconds)
            elif step:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(step), step) if chunked else step)
                self.wfile.flush()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
