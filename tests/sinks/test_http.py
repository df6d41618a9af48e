"""HTTP to a backend: which answers mean later, what is bounded, and what never leaves the process or gets into it."""

from __future__ import annotations

import gzip
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.journal_kit import fork, wait
from token_meter.errors import Retry
from token_meter.sinks import http as module
from token_meter.sinks.http import REFUSING, Http, KeyRefused, secret_of, whole_number
from token_meter.testing.backends.base import FakeBackend, Request, Response, VirtualClock

KEY = "sk_live_never_to_be_seen"


class Echo(FakeBackend):
    """Gives the answers it was told to give, then 200; keeps the requests."""

    name = "echo"

    def __init__(self, *answers: Response, clock: VirtualClock | None = None) -> None:
        super().__init__(clock=clock)
        self.answers = list(answers)
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Response:
        with self.lock:
            self.requests.append(request)
            return self.answers.pop(0) if self.answers else Response.json({"ok": True})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Echo, Http]]]:
    """Opens a server that gives these answers, and a client for it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    opened: list[Echo | Http] = []

    def serve(*answers: Response, clock: VirtualClock | None = None) -> tuple[Echo, Http]:
        server = Echo(*answers, clock=clock).start()
        client = Http(server.url, what="Lago", authorise=lambda: {"Authorization": f"Bearer {KEY}"})
        opened.extend((client, server))
        return server, client

    yield serve
    for each in opened:
        each.close()


@contextmanager
def raw_server(talk: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that takes one connection and says whatever `talk` says."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                with suppress(OSError):  # the client may have had enough
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()


def client_of(url: str, **options: object) -> Http:
    return Http(url, what="Lago", authorise=lambda: {"Authorization": f"Bearer {KEY}"}, **options)  # type: ignore[arg-type]


# ---- what an answer means ----


def test_a_success_is_an_answer_with_a_body_and_headers(serve) -> None:
    server, client = serve(Response.json({"sum": 1}, headers={"X-Thing": "a"}))

    answer = client.post("/events", b"[1]", headers={"Content-Type": "application/json"})

    assert (answer.status, answer.ok, answer.json(), answer.headers["x-thing"]) == (200, True, {"sum": 1}, "a")
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/events", b"[1]")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"


def test_parameters_of_a_question_are_escaped(serve) -> None:
    server, client = serve()

    client.get("/usage", {"customer": "a&b = Ω", "from": "2026-11-01T00:00:00+00:00"})

    assert server.requests[0].query == {"customer": ["a&b = Ω"], "from": ["2026-11-01T00:00:00+00:00"]}


@pytest.mark.parametrize("status", [*sorted(REFUSING), 404, 405, 410, 415, 418, 451])
def test_other_refusals_are_answers_for_the_sink_to_judge(serve, status: int) -> None:
    _, client = serve(Response(status, b"no\n thank  you"))

    answer = client.post("/", b"", headers={})

    assert (answer.status, answer.ok, answer.text) == (status, False, "no thank you")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 507, 509, 520, 524, 529, 599])
def test_what_may_pass_is_a_retry(serve, status: int) -> None:
    _, client = serve(Response(status, b"come back"))

    with pytest.raises(Retry, match=rf"Lago answered HTTP {status}: come back") as caught:
        client.post("/", b"", headers={})

    assert not isinstance(caught.value, KeyRefused)
    assert caught.value.after is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_a_retry_that_says_so(serve, status: int) -> None:
    _, client = serve(Response(status, b""))

    with pytest.raises(
        KeyRefused,
        match=rf"Lago refuses the key \(HTTP {status}\): no reason given. Nothing is lost: set the right key",
    ):
        client.get("/")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_not_followed(serve, status: int) -> None:
    """It would take the key to whoever it names."""
    other, _ = serve()
    server, client = serve(Response(status, b"", {"Location": f"{other.url}/elsewhere"}))

    with pytest.raises(Retry, match=rf"Lago redirects \(HTTP {status}\); is {server.url} the right address"):
        client.post("/events", b"", headers={})

    assert other.requests == []
    assert len(server.requests) == 1


# ---- how long to wait ----


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": ""}, None),
        ({"X-RateLimit-Reset": "3"}, 3.0),
        ({"RateLimit-Reset": "4"}, 4.0),
        ({"Retry-After": "1", "X-RateLimit-Reset": "3"}, 1.0),
    ],
)
def test_a_wait_that_is_asked_for_is_passed_on(serve, headers: Mapping[str, str], after: float | None) -> None:
    _, client = serve(Response(429, b"", headers))

    with pytest.raises(Retry) as caught:
        client.get("/")

    assert caught.value.after == after


@pytest.mark.parametrize("offset", [0.0, 600.0, -600.0])
@pytest.mark.parametrize(
    ("header", "written"),
    [
        ("Retry-After", lambda moment: formatdate(moment, usegmt=True)),
        ("X-RateLimit-Reset", lambda moment: str(int(moment))),
        ("X-RateLimit-Reset", lambda moment: str(int(moment * 1000))),
    ],
)
def test_a_moment_to_wait_for_is_by_the_clock_of_the_server(serve, offset: float, header: str, written) -> None:
    """Ours may be ten minutes off: one would wait too long, or not at all."""
    clock = VirtualClock(offset_seconds=offset)
    _, client = serve(Response(503, b"", {header: written(clock.now() + 90)}), clock=clock)

    with pytest.raises(Retry) as caught:
        client.get("/")

    assert caught.value.after == pytest.approx(90, abs=5)
    assert client.their_time == pytest.approx(clock.now(), abs=5)


def test_a_moment_that_is_over_means_now(serve) -> None:
    _, client = serve(Response(503, b"", {"Retry-After": formatdate(0, usegmt=True)}))

    with pytest.raises(Retry) as caught:
        client.get("/")

    assert caught.value.after == 0.0


# ---- what breaks on the way ----


def test_a_closed_port_is_a_retry(serve) -> None:
    server, client = serve()
    server.stop()

    with pytest.raises(Retry, match=rf"^Lago cannot be reached at {server.url}: Connection refused$"):
        client.get("/")


def test_a_name_that_does_not_resolve_is_a_retry() -> None:
    client = client_of("http://nowhere.invalid")

    with pytest.raises(Retry, match=r"Lago cannot be reached at http://nowhere.invalid: "):
        client.get("/")


@pytest.mark.parametrize("fault", ["reset_before", "reset_after"])
def test_a_connection_that_is_reset_is_a_retry_and_the_next_request_works(serve, fault) -> None:
    server, client = serve()
    server.chaos.script = [fault]

    with pytest.raises(Retry, match="cannot be reached"):
        client.get("/")
    assert client.get("/").ok


def test_an_answer_that_is_cut_off_is_a_retry() -> None:
    with (
        raw_server(lambda talk: talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")) as url,
        pytest.raises(Retry, match="cannot be reached"),
    ):
        client_of(url).get("/")


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno gzip"])
def test_what_is_no_http_is_a_retry(said: bytes) -> None:
    with raw_server(lambda talk: talk.sendall(said)) as url, pytest.raises(Retry, match="cannot be reached"):
        client_of(url).get("/")


def test_silence_is_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.1)

    with (
        raw_server(lambda talk: talk.recv(1)) as url,
        client_closing(url) as client,
        pytest.raises(Retry, match=f"^Lago does not answer in time at {url}$"),
    ):
        client.get("/")


def test_silence_in_the_middle_of_an_answer_is_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.1)

    def stop_half_way(talk: socket.socket) -> None:
        talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        talk.recv(1)

    with (
        raw_server(stop_half_way) as url,
        client_closing(url) as client,
        pytest.raises(Retry, match=f"^Lago does not answer in time at {url}$"),
    ):
        client.get("/")


@contextmanager
def client_closing(url: str) -> Iterator[Http]:
    client = client_of(url)
    yield client
    client.close()


def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, so no timeout of a socket ends it; it would go on for a quarter of an hour."""
    monkeypatch.setattr(module, "TOTAL_SECONDS", 0.2)
    drips = 0

    def drip(talk: socket.socket) -> None:
        nonlocal drips
        talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n")
        while drips < 20_000:
            talk.sendall(b"x")
            drips += 1
            pause.wait(0.05)

    pause = threading.Event()
    with raw_server(drip) as url, client_closing(url) as client, pytest.raises(Retry, match="or too slowly"):
        client.get("/")

    assert drips < 1_000


def test_an_answer_that_is_too_large_is_given_up(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 100_000)
    _, client = serve(Response(200, b"x" * 100_000), Response(200, b"x" * 100_001))

    assert len(client.get("/").body) == 100_000
    with pytest.raises(Retry, match="Lago answered with more than 100000 bytes, or too slowly"):
        client.get("/")


def test_a_bomb_is_given_up_before_it_is_unpacked(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 1 << 20)
    bomb = gzip.compress(bytes(64 << 20))
    _, client = serve(Response(200, bomb, {"Content-Encoding": "gzip"}))

    with pytest.raises(Retry, match="more than 1048576 bytes"):
        client.get("/")


def test_compressed_and_chunked_answers_are_read(serve) -> None:
    _, client = serve(Response(200, gzip.compress(b"[1]"), {"Content-Encoding": "gzip"}))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n2\r\n,2\r\n1\r\n]\r\n0\r\n\r\n"

    assert client.get("/").json() == [1]
    with raw_server(lambda talk: talk.sendall(chunked)) as url, client_closing(url) as other:
        assert other.get("/").json() == [1, 2]


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_none(serve, body: bytes) -> None:
    _, client = serve(Response(200, body))

    assert client.get("/").json() is None


def test_numbers_with_a_point_stay_exact(serve) -> None:
    _, client = serve(Response(200, b'{"sum": 9007199254740993.0, "half": 0.5}'))

    document = client.get("/").json()

    assert whole_number(document["sum"], what="Lago") == 2**53 + 1
    with pytest.raises(Retry, match=r"Lago answered a sum that is no whole number: 0\.5"):
        whole_number(document["half"], what="Lago")
    for wrong in (True, "3", None, Decimal("1.5")):
        with pytest.raises(Retry, match="no whole number"):
            whole_number(wrong, what="Lago")


def test_a_quoted_answer_is_short_and_on_one_line(serve) -> None:
    _, client = serve(Response(500, b"line\r\n" * 10_000))

    with pytest.raises(Retry) as caught:
        client.get("/")

    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


# ---- keys ----


@pytest.mark.parametrize("status", [400, 401, 403, 422, 429, 500, 302])
def test_a_key_that_the_server_repeats_is_not_quoted(serve, status: int) -> None:
    body = f'{{"error": "no such key: {KEY} (Bearer {KEY})"}}'.encode()
    _, client = serve(Response(status, body))

    try:
        said = client.post("/", b"", headers={}).text
    except Retry as retry:
        said = f"{retry} {retry!r} {retry.__cause__}"

    assert KEY not in said
    assert "no such key: ***" in said or status == 302


def test_neither_the_key_nor_the_path_stands_in_messages_or_repr(serve) -> None:
    server, _ = serve()
    server.stop()
    client = client_of(f"{server.url}/hooks/secret-path")

    with pytest.raises(Retry) as caught:
        client.get("/more")

    for text in (str(caught.value), repr(caught.value), repr(client)):
        assert KEY not in text
        assert "secret-path" not in text


@pytest.mark.parametrize("key", ["sk_live\nX-Other: 1", "sk_líve_…"])
def test_a_key_that_is_no_header_is_told_without_being_shown(serve, key: str) -> None:
    server, _ = serve()
    client = Http(server.url, what="Lago", authorise=lambda: {"Authorization": f"Bearer {key}"})

    with pytest.raises(Retry) as caught:
        client.get("/")

    client.close()

    assert str(caught.value) == "the key for Lago holds characters that no HTTP header can"


def test_a_key_is_asked_for_before_each_request(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = serve()
    read = secret_of(None, variable="SOME_KEY", what="Lago")
    client = Http(server.url, what="Lago", authorise=lambda: {"Authorization": f"Bearer {read()}"})

    with pytest.raises(Retry, match=r"Lago needs a key and has none: set \$SOME_KEY, or give the key"):
        client.get("/")
    for key in ("first", " second\n"):
        monkeypatch.setenv("SOME_KEY", key)
        client.get("/")
    client.close()

    assert [each.headers["authorization"] for each in server.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("given", ["", "   ", lambda: "", lambda: None, lambda: 7])
def test_a_key_that_is_none_is_a_retry(monkeypatch: pytest.MonkeyPatch, given: object) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)

    with pytest.raises(Retry, match="needs a key and has none"):
        secret_of(given, variable="SOME_KEY", what="Lago")()  # type: ignore[arg-type]


def test_a_given_key_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "environment")

    assert secret_of(lambda: "function", variable="SOME_KEY", what="Lago")() == "function"
    assert secret_of("text", variable="SOME_KEY", what="Lago")() == "text"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is no URL of a server"),
        ("lago.example", "begins with https://"),
        ("ftp://lago.example", "begins with https://"),
        ("https://", "names a host"),
        ("https://user:pw@lago.example", "the URL holds a user or password"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        client_of(url)

    assert "pw" not in str(caught.value)


# ---- what is kept out ----


def test_cookies_are_not_kept(serve) -> None:
    server, client = serve(Response(200, b"{}", {"Set-Cookie": "session=1; Path=/"}))

    client.get("/")
    client.get("/")

    assert ["cookie" in each.headers for each in server.requests] == [False, False]


def test_netrc_is_not_read(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\ndefault login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server, client = serve()

    client.get("/")

    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_proxies_of_the_environment_are_used(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, _ = serve()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    client = client_of("http://billing.invalid")

    assert client.get("/events").ok
    client.close()

    assert [each.path for each in proxy.requests] == ["/events"]
    assert proxy.requests[0].headers["host"] == "billing.invalid"


def test_hosts_without_a_proxy_are_respected(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, _ = serve()
    server, client = serve()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    client.get("/")

    assert (len(server.requests), len(proxy.requests)) == (1, 0)


# ---- connections ----


@contextmanager
def counting_connections() -> Iterator[tuple[str, list[int]]]:
    """A server that keeps connections alive, and the number of requests on each."""
    counts: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        done = threading.Event()

        def talk(connection: socket.socket, place: int) -> None:
            with connection:
                connection.settimeout(10)
                try:
                    while data := connection.recv(65_536):
                        if b" HTTP/1.1\r\n" in data:  # a body may come by itself
                            counts[place] += 1
                            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                except OSError:
                    pass

        def serve() -> None:
            threads = []
            while not done.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                counts.append(0)
                threads.append(threading.Thread(target=talk, args=(connection, len(counts) - 1)))
                threads[-1].start()
            for thread in threads:
                thread.join()

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", counts
        done.set()
        serving.join()


def test_a_connection_is_used_again() -> None:
    with counting_connections() as (url, counts), client_closing(url) as client:
        for _ in range(5):
            assert client.post("/", b"[]", headers={}).json() == {}

    assert counts == [5]


def test_after_close_a_request_opens_a_new_connection() -> None:
    with counting_connections() as (url, counts):
        client = client_of(url)
        client.get("/")
        client.close()
        client.close()
        client.get("/")
        client.close()

    assert counts == [1, 1]


def test_threads_share_one_session() -> None:
    """They begin at the same moment, when there is none yet."""
    with counting_connections() as (url, counts):
        client = client_of(url, connections_max=4)
        begin = threading.Barrier(4)
        answers: list[bool] = []

        def ask() -> None:
            begin.wait()
            answers.extend(client.get("/").ok for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()

    assert answers == [True] * 20
    assert (sum(counts), len(counts) <= 4) == (20, True)


def test_a_forked_child_has_connections_of_its_own() -> None:
    """Two processes that write to one socket would read each other's answers."""
    with counting_connections() as (url, counts):
        client = client_of(url)
        client.get("/")

        def ask() -> None:
            assert client.get("/").ok
            client.close()

        statuses = [wait(fork(ask)) for _ in range(2)]
        client.get("/")
        client.close()

    assert statuses == [0, 0]
    assert counts == [2, 1, 1]


def test_a_child_that_was_forked_in_the_middle_of_a_request_can_make_one(serve) -> None:
    server, client = serve()
    server.chaos.script = ["slow"]
    server.chaos.slow_seconds = 0.3
    asking = threading.Thread(target=client.get, args=("/",))
    asking.start()
    while not server.requests:
        os.sched_yield()

    status = wait(fork(lambda: client.get("/in-the-child")))
    asking.join()

    assert status == 0
    assert sorted(each.path for each in server.requests) == ["/", "/in-the-child"]
