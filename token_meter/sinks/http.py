"""HTTP to a billing backend: one kept-alive session, bounded answers, and which failures mean "again".

Nothing here knows a vendor. A key is asked for before each request, so that one that was changed is used at once; it is
never part of a message.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from json import JSONDecodeError, loads
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from token_meter.errors import MissingExtra, Retry

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
TOTAL_SECONDS: Final = 60.0
"""How long one answer may take altogether, however slowly it drips."""

ANSWER_BYTES_MAX: Final = 8 << 20
TEXT_CHARACTERS_MAX: Final = 300
"""How much of an answer is quoted in a message."""

BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})
"""Statuses after which the same request may succeed."""

Secret = str | Callable[[], str]
"""A key, or a function that returns the current one: a vault, a file, an environment variable."""


def secret_of(given: Secret | None, *, variable: str, what: str) -> Callable[[], str]:
    """How to get a key: the one that was given, or the environment variable, read each time it is needed."""

    def read() -> str:
        key = given() if callable(given) else given or os.environ.get(variable, "")
        if not key or not isinstance(key, str):
            raise Retry(
                f"{what} needs a key and has none: set ${variable}, or give the key (or a function) to the sink"
            )
        return key.strip()

    return read


class KeyRefused(Retry):
    """The destination does not take the key (HTTP 401 or 403). Nothing is wrong with the events."""


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
    """Requests to one base URL. `what` names the destination in messages. Any thread may use it, a forked child too.

    Proxies and certificates come from the environment as with any client; `.netrc` is not read, because it would put
    other credentials in place of the key. Redirects are not followed, because they would take the key elsewhere.
    """

    def __init__(
        self,
        url: str,
        *,
        what: str,
        authorise: Callable[[], Mapping[str, str]],
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
        self._connections_max = connections_max
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
        try:
            response = session.request(
                method,
                f"{self.url}{path}",
                data=body,
                params=parameters,
                headers={**(headers or {}), **self._authorise()},
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                allow_redirects=False,
                stream=True,
            )
            answer = Answer(
                response.status_code,
                self._read(response),
                {name.lower(): value for name, value in response.headers.items()},
            )
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
        if self._session is None or self._process != os.getpid():
            self._session, self._process = self._made(), os.getpid()
        return self._session

    def _made(self) -> requests.Session:
        from requests import Session
        from requests.adapters import HTTPAdapter
        from requests.utils import get_environ_proxies

        session = Session()
        session.trust_env = False
        session.proxies = get_environ_proxies(self.url)
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=self._connections_max)
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter)
        return session

    def _read(self, response: requests.Response) -> bytes:
        """The body, as long as it is of a bearable size and comes in bearable time."""
        deadline = time.monotonic() + TOTAL_SECONDS
        pieces, size = [], 0
        for piece in response.iter_content(65_536):
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
                f"{self.what} refuses the key (HTTP {answer.status}): {answer.text or 'no reason given'}. Nothing is "
                "lost: set the right key and delivery goes on"
            )
        if answer.status in BUSY or answer.status >= 500:
            raise Retry(f"{self.what} answered HTTP {answer.status}: {answer.text}", after=_wait(answer.headers))
        if 300 <= answer.status < 400:
            raise Retry(f"{self.what} redirects (HTTP {answer.status}); is {self.server} the right address?")


def whole_number(value: object, *, what: str) -> int:
    """A sum that a backend answered: a whole number, also if it is written with a point. Raises Retry for others."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value != int(value):
        raise Retry(f"{what} answered a sum that is no whole number: {str(value)[:40]}")
    return int(value)


def _wait(headers: Mapping[str, str]) -> float | None:
    """How long a destination wants us to wait, by `Retry-After` (seconds or a date) or `X-RateLimit-Reset`."""
    said = headers.get("retry-after") or headers.get("x-ratelimit-reset") or headers.get("ratelimit-reset")
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (TypeError, ValueError, OverflowError):
            return None
    # Some send the moment (seconds since 1970) where others send a duration.
    return max(0.0, seconds - time.time() if seconds > 1e9 else seconds)


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
