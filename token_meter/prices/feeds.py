"""Where new prices come from: the installed genai-prices package, a file, or a URL that the operator names.

Nothing here is called at import or by itself: prices are fetched when somebody asks for it. What comes is bounded in
size and time, and its numbers are read as decimals, so that no float is ever made of a price.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from token_meter.errors import InvalidPrices, MissingExtra
from token_meter.prices.genai import Feed, installed_feed, read_feed
from token_meter.prices.stated import SecondSource
from token_meter.providers.publishers import publisher_of

if TYPE_CHECKING:
    import requests

INSTALLED: Final = "installed"
"""The source that is the installed genai-prices package."""

FAMILY: Final = "genai-prices"
"""Rows of every feed name it as their source, with the feed's version."""

TIMEOUT_SECONDS: Final = 10.0
"""How long a server may take to answer, and between two pieces of an answer."""

TOTAL_SECONDS: Final = 60.0
"""How long an answer may take altogether, however slowly it drips."""

BYTES_MAX: Final = 20_000_000
"""A feed may be so large, also after it is decompressed."""

REDIRECTS_MAX: Final = 5
_PIECE_BYTES: Final = 65_536
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source gave: its feed, or that it is `unchanged` since the ETag that was sent (then `feed` is None).

    `source` is how the source may be shown, `version` names the content, `etag` is to be sent the next time.
    """

    feed: Feed | None
    source: str
    version: str
    etag: str | None = None
    unchanged: bool = False


class _Body(NamedTuple):
    content: bytes
    etag: str | None


def fetch(source: str = INSTALLED, *, now: datetime, etag: str | None = None) -> Fetched:
    """Get a feed: "installed", a file, or an http(s) URL, which is asked only for what is newer than `etag`.

    Raises InvalidPrices for what cannot be had or is no feed, MissingExtra for a package that is needed.
    """
    if source == INSTALLED:
        providers, version = _installed()
        return Fetched(_feed(providers, version, INSTALLED, now), INSTALLED, version)
    body = _body(source, etag)
    if body is None:
        return Fetched(None, shown(source), etag or "", etag, unchanged=True)
    version = sha256(body.content).hexdigest()[:12]
    feed = _feed(_providers(_json(body.content, source), source), version, source, now)
    return Fetched(feed, shown(source), version, body.etag)


def fetch_second(source: str, *, now: datetime) -> SecondSource:
    """Get a second source to hold prices against: what `fetch` takes, or litellm's map of models in a file or a URL."""
    if source == INSTALLED:
        providers, version = _installed()
        return SecondSource.of_feed(_feed(providers, version, INSTALLED, now), name=f"{FAMILY} {version}", at=now)
    body = _body(source, None)
    assert body is not None
    document = _json(body.content, source)
    if isinstance(document, Mapping) and "providers" not in document:
        return SecondSource.of_litellm(document, name=shown(source))
    version = sha256(body.content).hexdigest()[:12]
    feed = _feed(_providers(document, source), version, source, now)
    return SecondSource.of_feed(feed, name=shown(source), at=now)


def shown(source: str) -> str:
    """A source as it may be shown and kept: without the user, the password and the query of a URL."""
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
    except ValueError:
        return f"{source.partition('://')[0]}://..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def _installed() -> tuple[list[dict[str, Any]], str]:
    try:
        return installed_feed()
    except ImportError:
        raise MissingExtra(
            "prices from the genai-prices package need it: pip install genai-prices; or name a file or a URL"
        ) from None


def _feed(providers: list[Any], version: str, source: str, now: datetime) -> Feed:
    try:
        return read_feed(providers, source=f"{FAMILY} {version}", recorded_at=now, publisher_of=publisher_of)
    except (ValueError, RecursionError) as problem:
        raise InvalidPrices(f"{shown(source)}: {problem}") from None


def _providers(document: Any, source: str) -> list[Any]:
    providers = document.get("providers") if isinstance(document, Mapping) else document
    if not isinstance(providers, list):
        raise InvalidPrices(f'{shown(source)} is no price feed: it is a list of providers, or {{"providers": [...]}}')
    return providers


def _json(content: bytes, source: str) -> Any:
    try:
        return json.loads(content, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError) as problem:
        raise InvalidPrices(f"{shown(source)} is no JSON: {problem}") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _body(source: str, etag: str | None) -> _Body | None:
    """The content of a file or a URL; None if it is unchanged."""
    body = _download(source, etag) if _is_url(source) else _read_file(source)
    if body is None or body.content[:2] != _GZIP:
        return body
    return body._replace(content=_inflated(iter([body.content]), source))


def _read_file(source: str) -> _Body:
    if "://" in source:
        raise InvalidPrices(f"{shown(source)}: prices come from a file, an http or https URL, or {INSTALLED!r}")
    try:
        with Path(source).expanduser().open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except OSError as problem:
        raise InvalidPrices(f"cannot read the prices in {source}: {problem.strerror}") from None
    if len(content) > BYTES_MAX:
        raise _too_large(source)
    return _Body(content, None)


def _download(url: str, etag: str | None) -> _Body | None:
    try:
        import requests
    except ImportError:
        raise MissingExtra("prices from a URL need: pip install 'token-meter[prices]'") from None
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        with requests.Session() as session:
            # Without a function of our own, requests would look for a password in .netrc.
            session.auth = _credentials(url)
            with _asked(session, url, etag) as response:
                if etag is not None and response.status_code == 304:
                    return None
                return _answer(response, url, deadline)
    except InvalidPrices:
        raise
    except requests.Timeout:
        raise InvalidPrices(f"{shown(url)} does not answer within {TIMEOUT_SECONDS:.0f} s") from None
    except (requests.RequestException, OSError) as problem:
        raise InvalidPrices(f"cannot get prices from {shown(url)}: {type(problem).__name__}") from None
    except ValueError:
        raise InvalidPrices(f"cannot get prices from {shown(url)}: it is no URL, or leads to none") from None


def _credentials(url: str) -> Any:
    parts = urlsplit(url)
    if not parts.username:
        return lambda request: request
    return (unquote(parts.username), unquote(parts.password or ""))


def _asked(session: requests.Session, url: str, etag: str | None) -> requests.Response:
    """The answer at the end of redirects, all of the first address's scheme: https must not become http on the way."""
    headers = {"Accept": "application/json", "Accept-Encoding": "gzip", **({"If-None-Match": etag} if etag else {})}
    at = url
    for _ in range(REDIRECTS_MAX + 1):
        response = session.get(at, headers=headers, timeout=TIMEOUT_SECONDS, stream=True, allow_redirects=False)
        if response.status_code not in _REDIRECTS:
            return response
        response.close()
        there = urljoin(at, response.headers.get("Location", ""))
        if urlsplit(there).scheme != urlsplit(url).scheme:
            raise InvalidPrices(f"{shown(url)} redirects to another scheme: name {shown(there)} yourself")
        if urlsplit(there).netloc != urlsplit(at).netloc:
            session.auth = lambda request: request
        at = there
    raise InvalidPrices(f"{shown(url)} redirects more than {REDIRECTS_MAX} times")


def _answer(response: requests.Response, url: str, deadline: float) -> _Body:
    if response.status_code != 200:
        raise InvalidPrices(f"{shown(url)} answers HTTP {response.status_code}")
    pieces = _pieces(response, url, deadline)
    if response.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip"):
        content = _inflated(pieces, url)
    else:
        content = b"".join(_bounded(pieces, url))
    return _Body(content, response.headers.get("ETag"))


def _pieces(response: requests.Response, url: str, deadline: float) -> Iterator[bytes]:
    """The body as it was sent: it is decompressed here, piece by piece, so that a small one cannot fill the memory."""
    while piece := response.raw.read(_PIECE_BYTES, decode_content=False):
        if time.monotonic() > deadline:
            raise InvalidPrices(f"{shown(url)} takes longer than {TOTAL_SECONDS:.0f} s")
        yield piece


def _bounded(pieces: Iterator[bytes], source: str) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > BYTES_MAX:
            raise _too_large(source)
        yield piece


def _inflated(pieces: Iterator[bytes], source: str) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    content = bytearray()
    try:
        for piece in pieces:
            content += inflate.decompress(piece, BYTES_MAX + 1 - len(content))
            if len(content) > BYTES_MAX:
                raise _too_large(source)
    except zlib.error:
        raise InvalidPrices(f"{shown(source)} is damaged: it cannot be decompressed") from None
    if not inflate.eof:
        raise InvalidPrices(f"{shown(source)} is damaged: it ends too early")
    return bytes(content)


def _too_large(source: str) -> InvalidPrices:
    return InvalidPrices(f"{shown(source)} is larger than {BYTES_MAX:,} bytes")
