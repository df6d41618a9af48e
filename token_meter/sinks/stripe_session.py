"""Stripe's meter event stream: a second server, with a token that is valid for a quarter of an hour."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from token_meter.errors import Retry
from token_meter.sinks.http import Answer, Http, KeyRefused

SESSION_PATH: Final = "/v2/billing/meter_event_session"
EARLY_SECONDS: Final = 60.0
"""So long before its end a session is renewed."""
SESSION_SECONDS: Final = 900.0
"""What a session is valid for if Stripe does not say so in a form that we can read."""


class StreamSession:
    """Posts to the stream with a session's token, and gets a new session in time, or when Stripe says it is over."""

    def __init__(self, http: Http, url: str, *, now: Callable[[], float] = time.time) -> None:
        self._api = http
        self._token = ""
        self._opened_with: Mapping[str, str] = {}
        self._until = float("-inf")
        self._now = now
        self._http = Http(url, what="Stripe's meter event stream", authorise=self._headers, now=now)

    def open(self) -> bool:
        """Have a session, and with it Stripe's idea of the time; True when that is new. Raises Retry."""
        return self._renew()

    @property
    def their_time(self) -> float:
        """The time at Stripe, as far as an answer has told it."""
        return self._http.their_time if self._http.skew_seconds else self._api.their_time

    def post(self, path: str, body: bytes, *, headers: Mapping[str, str]) -> Answer:
        """Send one request of the stream. Raises Retry."""
        self._renew()
        try:
            return self._http.post(path, body, headers=headers)
        except KeyRefused:
            # Over sooner than announced, or our clock is wrong: one new session, then it is Stripe's last word.
            self._until = float("-inf")
            self._renew()
            return self._http.post(path, body, headers=headers)

    def close(self) -> None:
        """Close the connections and forget the session."""
        self._token, self._opened_with, self._until = "", {}, float("-inf")
        self._http.close()

    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._token}", "Stripe-Version": self._api.headers()["Stripe-Version"]}

    def _renew(self) -> bool:
        # A session belongs to the account of the key that opened it, so another key needs another session.
        headers = self._api.headers()
        if self._now() < self._until - EARLY_SECONDS and headers == self._opened_with:
            return False
        answer = self._api.post(SESSION_PATH, b"{}", headers={"Content-Type": "application/json"})
        document = answer.json()
        token = document.get("authentication_token") if isinstance(document, dict) else None
        if not answer.ok or not isinstance(token, str) or not token:
            said = answer.text if not answer.ok else "the answer holds no token"
            raise Retry(f"Stripe opens no meter event stream (HTTP {answer.status}): {said}")
        self._token, self._opened_with = token, headers
        self._until = self._now() + _valid_seconds(document)
        return True


def _valid_seconds(document: Mapping[str, object]) -> float:
    """How long a session is valid, by Stripe's own clock."""
    try:
        until, created = (datetime.fromisoformat(str(document[name])) for name in ("expires_at", "created"))
    except (KeyError, ValueError):
        return SESSION_SECONDS
    return max(EARLY_SECONDS, (until - created).total_seconds())
