"""Posting to an address that somebody typed in: no redirects, no proxy, no private address, nothing large read back,
and all of it in a given time, however slowly the other side talks.

Addresses are looked at before a connection is made, and the one that it has really reached once more: a name that is
looked up twice may have two answers.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NamedTuple

from token_meter.errors import MissingExtra

TIMEOUT_SECONDS: Final = (5.0, 15.0)
"""For the connection, and for each piece of the answer."""

DEADLINE_SECONDS: Final = 20.0
"""For everything: then the connection is cut."""

ANSWER_BYTES_MAX: Final = 2_000
ANSWER_SHOWN_MAX: Final = 300
RETRY_AFTER_MAX: Final = 86_400.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Answered(NamedTuple):
    """What an endpoint said: an HTTP status (0: it was not reached), and the beginning of its text or the reason."""

    status: int
    text: str
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it has taken it."""
        return 200 <= self.status < 300


class PrivateAddress(Exception):
    """The address is one of this machine's own network."""


def post(url: str, body: bytes, headers: Mapping[str, str], *, private: bool) -> Answered:
    """Post, and say what came back; never raises for what the other side does. `private`: private addresses, too.

    Raises MissingExtra.
    """
    try:
        import requests
    except ImportError:
        raise MissingExtra("webhooks need: pip install 'token-meter[webhook]'") from None
    try:
        with requests.Session() as session, _cut_after(DEADLINE_SECONDS, private=private):
            session.trust_env = False
            session.mount("http://", _adapter()())
            session.mount("https://", _adapter()())
            answer = session.post(
                url, data=body, headers=dict(headers), timeout=TIMEOUT_SECONDS, allow_redirects=False, stream=True
            )
            with answer:
                text = answer.raw.read(ANSWER_BYTES_MAX, decode_content=True)
            if answer.is_redirect:
                return Answered(answer.status_code, "it answered with a redirect, which is not followed")
            shown = _plain(text.decode("utf-8", "replace")[:ANSWER_SHOWN_MAX])
            return Answered(answer.status_code, shown, _after(answer.headers))
    except Exception as problem:  # noqa: BLE001 - whatever goes wrong there is told, and tried again
        return Answered(0, _plain(_reason(problem)))


def is_public(address: Address) -> bool:
    """Whether an address belongs to somebody else's network; of one that carries another inside, that one counts."""
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := _inside(address)) is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    elif address in _PROTOCOLS:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_PROTOCOLS: Final = ipaddress.IPv4Network("192.0.0.0/24")
_CARRIERS: Final = tuple(ipaddress.IPv6Network(each) for each in ("64:ff9b::/96", "::ffff:0:0/96", "::ffff:0:0:0/96"))
"""NAT64 (RFC 6052), IPv4-mapped, and IPv4-translated (RFC 2765): an IPv4 address in the last four bytes."""


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in _CARRIERS):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    return address.teredo[1] if address.teredo is not None else None


def _after(headers: Mapping[str, str]) -> float | None:
    given = headers.get("Retry-After", "")
    return min(float(given), RETRY_AFTER_MAX) if re.fullmatch("[0-9]{1,9}", given, re.ASCII) else None


def _plain(text: str) -> str:
    """Without what would forge lines of a log, move a cursor, or be refused by a database."""
    return "".join(each if each.isprintable() else " " for each in text)


def _reason(problem: BaseException) -> str:
    """The innermost cause, without addresses of objects."""
    link: BaseException | None = problem
    while link is not None:
        if isinstance(link, PrivateAddress):
            return str(link)
        problem, link = link, link.__cause__ or link.__context__
    if _exchange.cut:
        return f"it did not answer within {DEADLINE_SECONDS:.0f} seconds"
    return f"{type(problem).__name__}: {str(problem)[:ANSWER_SHOWN_MAX]}"


class _Exchange(threading.local):
    """What the thread that posts has open, and whether it may reach private addresses."""

    private = False
    cut = False

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []


_exchange = _Exchange()


@contextmanager
def _cut_after(seconds: float, *, private: bool) -> Iterator[None]:
    """Cut every connection that is opened meanwhile when the time is over. Timeouts of a socket are for each piece, and
    a byte a second would keep it open for ever."""
    mine = _exchange
    mine.private, mine.cut, mine.sockets = private, False, []
    state = vars(mine)

    def cut() -> None:
        state["cut"] = True
        for each in state["sockets"]:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for each in mine.sockets:
            each.close()


@lru_cache(maxsize=1)
def _adapter() -> Any:
    """An adapter whose connections look at the addresses they are about to reach, and have reached."""
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Watched(HTTPConnection):
        def _new_conn(self) -> Any:
            _look_up(self)
            return _watched(super()._new_conn())

    class SecureWatched(HTTPSConnection):
        def _new_conn(self) -> Any:
            _look_up(self)
            return _watched(super()._new_conn())

    class Pool(HTTPConnectionPool):
        ConnectionCls = Watched

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureWatched

    class WatchedAdapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
            super().init_poolmanager(*arguments, **named)
            self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}

    return WatchedAdapter


def _look_up(connection: Any) -> None:
    """Refuse before a connection is tried, or whether it stands would tell who listens there."""
    if not _exchange.private:
        for found in socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM):
            _check(str(found[4][0]))


def _watched(connection: Any) -> Any:
    if not _exchange.private:
        try:
            _check(str(connection.getpeername()[0]))
        except PrivateAddress:
            connection.close()
            raise
    # Its own descriptor: TLS takes the socket's away from it.
    _exchange.sockets.append(connection.dup())
    return connection


def _check(text: str) -> None:
    address = ipaddress.ip_address(text.partition("%")[0])
    if not is_public(address):
        raise PrivateAddress(
            f"{address} is a private address: allow it for this endpoint with --allow-private if it is meant"
        )
