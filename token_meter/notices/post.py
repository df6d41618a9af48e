"""Posting to an address that somebody typed in: no redirects, no proxy, no private address, nothing large read back.

The address that a connection has really reached is looked at, before anything is sent: a name that is looked up twice
may have two answers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from token_meter.errors import MissingExtra

TIMEOUT_SECONDS: Final = (5.0, 15.0)
"""For the connection, and for the answer."""

ANSWER_BYTES_MAX: Final = 2_000


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
    """Post, and say what came back; never raises for what the other side does. `private`: private addresses, too."""
    try:
        import requests
    except ImportError:
        raise MissingExtra("webhooks need: pip install 'token-meter[webhook]'") from None
    with requests.Session() as session:
        session.trust_env = False
        if not private:
            adapter = _adapter()
            session.mount("http://", adapter())
            session.mount("https://", adapter())
        try:
            answer = session.post(
                url, data=body, headers=dict(headers), timeout=TIMEOUT_SECONDS, allow_redirects=False, stream=True
            )
            with answer:
                text = answer.raw.read(ANSWER_BYTES_MAX, decode_content=True)
        except Exception as problem:  # noqa: BLE001 - whatever goes wrong there is told, and tried again
            return Answered(0, _reason(problem))
        if answer.is_redirect:
            return Answered(answer.status_code, "it answered with a redirect, which is not followed")
        return Answered(answer.status_code, text.decode("utf-8", "replace")[:300], _after(answer.headers))


def _after(headers: Mapping[str, str]) -> float | None:
    given = headers.get("Retry-After", "")
    return min(float(given), 86_400.0) if given.isdigit() else None


def _reason(problem: BaseException) -> str:
    """The innermost cause, without addresses of objects."""
    link: BaseException | None = problem
    while link is not None:
        if isinstance(link, PrivateAddress):
            return str(link)
        problem, link = link, link.__cause__ or link.__context__
    return f"{type(problem).__name__}: {problem}"[:300]


@lru_cache(maxsize=1)
def _adapter() -> Any:
    """An adapter whose connections look at the address that they have reached."""
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Public(HTTPConnection):
        def _new_conn(self) -> Any:
            return _checked(super()._new_conn())

    class SecurePublic(HTTPSConnection):
        def _new_conn(self) -> Any:
            return _checked(super()._new_conn())

    class Pool(HTTPConnectionPool):
        ConnectionCls = Public

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecurePublic

    class PublicAdapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
            super().init_poolmanager(*arguments, **named)
            self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}

    return PublicAdapter


def _checked(connection: Any) -> Any:
    address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_global:
        connection.close()
        raise PrivateAddress(
            f"{address} is a private address: allow it for this endpoint with --allow-private if it is meant"
        )
    return connection
