"""What `Idempotency-Key` does, and what it does not.

v1 keeps the first answer for 24 hours, an error as well, and a 500 that hides that the request was carried out.
v2 keeps only successes, for 30 days, and carries out again what had failed. Neither keeps what was refused before it
was begun: unreadable parameters, conflicts, rate limits.

Assumptions: the code of a key in use, and that v2 also refuses a key with another body. The stream takes no keys.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final, NamedTuple

from token_meter.testing.backends.base import Request, Response
from token_meter.testing.backends.stripe.errors import ApiError

KEPT_SECONDS: Final = {"v1": 24 * 3600, "v2": 30 * 24 * 3600}
KEY_LENGTH_MAX: Final = 255
KEYS_MAX: Final = 100_000
"""Keys that are kept; the oldest go first."""
REPLAYED: Final = {"Idempotent-Replayed": "true"}


class _Stored(NamedTuple):
    fingerprint: bytes
    at: float
    response: Response | None
    """None while the first request is worked on."""
    replayed: bool = False


class IdempotencyKeys:
    """The keys of one account. The caller holds the backend's lock."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, _Stored] = OrderedDict()

    def begin(self, request: Request, *, version: str, now: float) -> Response | None:
        """The answer that is kept for this key; None to go ahead, and then to `end`."""
        name = _name(request, version)
        if name is None:
            return None
        if len(request.headers["idempotency-key"]) > KEY_LENGTH_MAX:
            message = f"The idempotency key must be at most {KEY_LENGTH_MAX} characters."
            raise ApiError(message, kind="idempotency_error")
        fingerprint = _fingerprint(request)
        stored = self._stored.get(name)
        if stored is None or now - stored.at > KEPT_SECONDS[version]:
            self._store(name, _Stored(fingerprint, now, None))
            return None
        if stored.fingerprint != fingerprint:
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used with."
            )
            raise ApiError(message, kind="idempotency_error")
        if stored.response is None:
            message = "There is currently another in-progress request using this Idempotency-Key. Try again later."
            raise ApiError(message, status=409, kind="idempotency_error", code="idempotency_key_in_use")
        self._stored[name] = stored._replace(replayed=True)
        return stored.response._replace(headers={**stored.response.headers, **REPLAYED})

    def end(self, request: Request, response: Response | None, *, version: str) -> None:
        """Keep the answer, or forget the key if there is none worth keeping."""
        name = _name(request, version)
        if name is None or name not in self._stored:
            return
        if response is None or (version == "v2" and response.status != 200):
            del self._stored[name]
        else:
            self._stored[name] = self._stored[name]._replace(response=response)

    def failed(self, request: Request, response: Response) -> None:
        """Keep the failure that the first request with its key was told after it was carried out, as v1 does."""
        name = _name(request, "v1")
        stored = self._stored.get(name) if name is not None else None
        if name is None or stored is None or stored.fingerprint != _fingerprint(request):
            return
        if stored.response is not None and not stored.replayed:
            self._stored[name] = stored._replace(response=response)

    def _store(self, name: str, stored: _Stored) -> None:
        self._stored[name] = stored
        self._stored.move_to_end(name)
        if len(self._stored) > KEYS_MAX:
            self._stored.popitem(last=False)


def _name(request: Request, version: str) -> str | None:
    key = request.headers.get("idempotency-key")
    if not key or request.method != "POST":
        return None
    return f"{request.path} {key}" if version == "v2" else key


def _fingerprint(request: Request) -> bytes:
    return hashlib.blake2b(request.path.encode() + b"\0" + request.body, digest_size=16).digest()
