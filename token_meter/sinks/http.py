"""HTTP to a billing backend: one kept-alive session, bounded answers, and which failures mean "again".

Nothing here knows a vendor. A key is asked for before each request, so that one that was changed is used at once; it is
never part of a message.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from json import JSONDecodeError, loads
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from token_meter.errors import MissingExtra, Retry
from token_meter.sinks.lock import ForkLock

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
TOTAL_SECONDS: Final = 60.0
"""How long the body of one answer may take altogether, however slowly it drips."""

ANSWER_BYTES_MAX: Final = 8 << 20
PIECE_BYTES: Final = 65_536
TEXT_CHARACTERS_MAX: Final = 300
"""How much of an answer is quoted in a message."""

BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})
"""Statuses after which the same request may succeed."""

REFUSING: Final = frozenset({400, 409, 413, 422})
"""Refusals that are about what was sent. Any other (404, 405, 415) is about the address, or how it is talked to."""

SECRET_CHARACTERS_MIN: Final = 8
"""A header's value of so many characters is taken for a secret, and never quoted back."""

Secret = str | Callable[[], str]
"""A key, or a function that returns the current one: a vault, a file, an environment variable."""


def secret_of(given: Secret | None, *, variable: str, what: str) -> Callable[[], str]:
    """How to get a key: the one that was given, or the environment variable, read each time it is needed."""

    def read() -> str:
        key = given() if callable(given) else given or os.environ.get(variable, "")
        if not isinstance(key, str) or not key.strip():
            raise Retry(
                f"{what} needs a key and has none: set ${variable}, or give the key (or a function) to the sink"
            )
        return key.strip()

    return read


class KeyRefused(Retry):
    """The destination does not take the key (HTTP 401 or 403). Nothing is wrong with the events."""


class Unavailable(Retry):
    """The destination answered that it cannot do it now. `headers` are those of its answer, names in lower case."""

    def __init__(self, message: str, *, after: float | None, headers: Mapping[str, str]) -> None:
        super().__init__(message, after=after)
        self.headers = headers


class Answer(NamedTuple):
    """What came back, if it was no reason to try again. Header names are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether it was a success."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON, numbers with a point as decimals; None when it is none."""
        try:
            return loads(self.body, parse_float=Decimal)
        except (JSONDecodeError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def text(self) -> str:
        """The beginning of the body on one line, for a message."""
        return " ".join(self.body[: 4 * TEXT_CHARACTERS_MAX].decode("utf-8", "replace").split())[:TEXT_CHARACTERS_MAX]


class Http:
    """Requests to one base URL. `what` names the destination in messages and `credential` what it refuses with 401.

    Any thread may use it, a forked child too.

    Proxies and certificates come from the environment as with any client; `.netrc` is not read, because it would put
    other credentials in place of the key. Redirects are not followed, because they would take the key elsewhere.
    """

    def __init__(
        self,
        url: str,
        *,
        what: str,
        authorise: Callable[[], Mapping[str, str]],
        credential: str = "key",
        connections_max: int = 1,
        now: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{what}: {url!r} is no URL of a server: it begins with https:// and names a host")
        if parts.username or parts.password:
            raise ValueError(f"{what}: the URL holds a user or password; give the key to the sink instead")
        self.url = url.rstrip("/")
        # The path of a webhook can be a secret, so messages name the server alone.
        self.server = f"{parts.scheme}://{parts.netloc}"
        self.what = what
        self.skew_seconds = 0.0
        self._now = now
        self._authorise = authorise
        self._credential = credential
        self._connections_max = connections_max
        self._lock = ForkLock()
        self._session: requests.Session | None = None
        self._process = 0

    def headers(self) -> Mapping[str, str]:
        """What stands on each request: the key, and what belongs to it."""
        return self._authorise()

    def post(self, path: str, body: bytes, *, headers: Mapping[str, str]) -> Answer:
        """Send a body. Raises Retry for what may succeed later, a refused key included."""
        return self.request("POST", path, body, headers=headers)

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Answer:
        """Read something. Raises Retry as `post` does."""
        return self.request("GET", path, None, parameters=parameters)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its answer. Raises Retry for what may succeed later, a refused key included."""
        requests = _requests()
        session = self._sessions()
        secrets = self._authorise()
        try:
            # What `session.request` would merge from the session stands here, at a fifth of the time.
            prepared = requests.PreparedRequest()
            prepared.prepare(
                method,
                f"{self.url}{path}",
                data=body,
                params=parameters,
                headers={**session.headers, **(headers or {}), **secrets},
            )
            response = session.send(
                prepared,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                proxies=session.proxies,
                allow_redirects=False,
                stream=True,
            )
            answer = Answer(
                response.status_code,
                _without(secrets, self._read(response)) if response.status_code >= 300 else self._read(response),
                {name.lower(): value for name, value in response.headers.items()},
            )
        except (UnicodeError, requests.exceptions.InvalidHeader):
            raise Retry(f"the {self._credential} for {self.what} holds characters that no HTTP header can") from None
        except requests.Timeout:
            raise Retry(f"{self.what} does not answer in time at {self.server}") from None
        except requests.RequestException as problem:
            raise Retry(f"{self.what} cannot be reached at {self.server}: {_reason(problem)}") from None
        self._learn_time(answer)
        self._judge(answer)
        return answer

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None and self._process == os.getpid():
            session.close()

    def _sessions(self) -> requests.Session:
        with self._lock:
            if self._session is None or self._process != os.getpid():
                self._session, self._process = self._made(), os.getpid()
            return self._session

    def _made(self) -> requests.Session:
        from requests import Session
        from requests.utils import get_environ_proxies

        from token_meter.sinks.connections import BusyAdapter

        session = Session()
        session.trust_env = False
        session.proxies = get_environ_proxies(self.url)
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = BusyAdapter(pool_connections=1, pool_maxsize=self._connections_max)
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter)
        return session

    def _read(self, response: requests.Response) -> bytes:
        """The body, as long as it is of a bearable size and comes in bearable time."""
        deadline = time.monotonic() + TOTAL_SECONDS
        pieces, size = [], 0
        for piece in _pieces(response):
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_BYTES_MAX or time.monotonic() > deadline:
                response.close()
                raise Retry(f"{self.what} answered with more than {ANSWER_BYTES_MAX} bytes, or too slowly")
        return b"".join(pieces)

    def _learn_time(self, answer: Answer) -> None:
        try:
            theirs = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        except (TypeError, ValueError, OverflowError):
            return
        self.skew_seconds = theirs - self._now()

    @property
    def their_time(self) -> float:
        """The time there, in seconds since 1970, as far as an answer has told it."""
        return self._now() + self.skew_seconds

    def _judge(self, answer: Answer) -> None:
        if answer.status in (401, 403):
            raise KeyRefused(
                f"{self.what} refuses the {self._credential} (HTTP {answer.status}): "
                f"{answer.text or 'no reason given'}. Nothing is lost: set the right key and delivery goes on"
            )
        if answer.status in BUSY or answer.status >= 500:
            after = _wait(answer.headers, now=self.their_time)
            said = f"{self.what} answered HTTP {answer.status}: {answer.text}"
            raise Unavailable(said, after=after, headers=answer.headers)
        if 300 <= answer.status < 400:
            raise Retry(f"{self.what} redirects (HTTP {answer.status}); is {self.server} the right address?")


def whole_number(value: object, *, what: str) -> int:
    """A sum that a backend answered: a whole number, also if it is written with a point. Raises Retry for others."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value != int(value):
        raise Retry(f"{what} answered a sum that is no whole number: {str(value)[:40]}")
    return int(value)


def _pieces(response: requests.Response) -> Iterable[bytes]:
    """The body as it arrives: a piece is there as soon as any of it is, so that one can stop waiting for more."""
    from urllib3 import HTTPResponse
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    read = getattr(response.raw, "read1", None)
    if read is None or not isinstance(response.raw, HTTPResponse):  # urllib3 before 2.1; a recording that is played
        yield from response.iter_content(PIECE_BYTES)
        return
    try:
        while piece := read(PIECE_BYTES, decode_content=True):
            yield piece
    except ReadTimeoutError as problem:
        raise _requests().exceptions.ReadTimeout(problem) from problem
    except HTTPError as problem:
        raise _requests().exceptions.ConnectionError(problem) from problem


def _without(secrets: Mapping[str, str], body: bytes) -> bytes:
    """What a server says when something is wrong, without the key, should it repeat that."""
    for name, value in secrets.items():
        secret = value.rpartition(" ")[2].encode()
        if len(secret) >= SECRET_CHARACTERS_MIN and not name.lower().endswith(("version", "accept")):
            body = body.replace(secret, b"***")
    return body


def _wait(headers: Mapping[str, str], *, now: float) -> float | None:
    """How long a destination wants us to wait, by `Retry-After` (seconds or a date) or `X-RateLimit-Reset`.

    `now` is the time there: by our own clock, which may be wrong, one would wait too long or not at all.
    """
    said = headers.get("retry-after") or headers.get("x-ratelimit-reset") or headers.get("ratelimit-reset")
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - now)
        except (TypeError, ValueError, OverflowError):
            return None
    if not math.isfinite(seconds):
        return None
    # Some send the moment (seconds or milliseconds since 1970) where others send a duration.
    moment = seconds / 1000 if seconds > 1e11 else seconds
    return max(0.0, moment - now if moment > 1e9 else moment)


def _reason(problem: BaseException) -> str:
    """Why a connection failed, in a few words and without the objects that urllib3 names."""
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        inner = getattr(cause, "reason", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__ or cause.__context__
    return f"{type(problem).__name__}"


def _requests() -> Any:
    try:
        import requests
    except ImportError:
        raise MissingExtra(
            "this sink speaks HTTP and needs the package requests: pip install 'token-meter[stripe]' (or the extra "
            "of the backend you use: lago, amberflo, openmeter, webhook)"
        ) from None
    return requests
