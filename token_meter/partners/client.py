"""Asking a partner's API: JSON documents, with patience for what may pass and a clear word for what will not.

The key is asked for before each request and stands in no message, neither does what a partner says about it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from token_meter.errors import MissingExtra, Retry
from token_meter.partners.base import PartnerError, Row, Unreadable, parsed, shown
from token_meter.sinks.http import Answer, Http, KeyRefused

ATTEMPTS_MAX: Final = 6
FIRST_WAIT_SECONDS: Final = 0.5
WAIT_SECONDS_MAX: Final = 60.0
"""What is waited at most between two attempts, whatever the server asks for."""

SAID_CHARACTERS_MAX: Final = 200

Key = str | Callable[[], str]
"""A key, or a function that gives the current one."""


class Client:
    """GET requests to one partner. A context manager: it keeps a connection open."""

    def __init__(
        self,
        url: str,
        *,
        title: str,
        key: Callable[[], str],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._key = key
        self._title = title
        self._sleep = sleep
        try:
            self._http = Http(url, what=title, authorise=self._authorise)
        except ValueError as error:
            raise PartnerError(str(error).replace("to the sink", "as key=")) from None

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The JSON object at a path. Raises PartnerError, after `ATTEMPTS_MAX` attempts where trying again may help."""
        answer = self._answer(path, parameters or {})
        if answer.status == 404:
            raise NotThere(f"{self._title} has nothing at {self._http.url}{path} (HTTP 404): is the URL right?")
        if not answer.ok:
            raise PartnerError(f"{self._title} refuses {path} (HTTP {answer.status}): {self._said(answer)}")
        try:
            document = parsed(answer.body, "the answer")
        except Unreadable as problem:
            raise PartnerError(f"{self._title} answers {path} with something else than JSON: {problem}") from None
        if not isinstance(document, dict):
            raise PartnerError(f"{self._title} answers {path} with {shown(document)}, which is no object")
        return document

    def rows(self, document: Mapping[str, Any], name: str) -> Sequence[Row]:
        """The records in an answer. Raises PartnerError where there are none to be."""
        found = document.get(name)
        if not isinstance(found, list):
            raise PartnerError(f"{self._title} answers without a list under {name!r}: is the URL right?")
        return found

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- inside ----

    def _answer(self, path: str, parameters: Mapping[str, str]) -> Answer:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return self._http.get(path, parameters)
            except MissingExtra:
                raise MissingExtra(
                    "pulling from a partner needs the package requests: pip install 'token-meter[partners]'"
                ) from None
            except KeyRefused:
                raise PartnerError(
                    f"{self._title} does not take the key: is it the right one, and may it read usage?"
                ) from None
            except Retry as problem:
                if attempt == ATTEMPTS_MAX:
                    raise PartnerError(
                        f"{self._without_key(str(problem))}. Tried {ATTEMPTS_MAX} times; what was read so far is kept, "
                        "so try again later"
                    ) from None
                self._sleep(_wait(attempt, problem.after))
        raise AssertionError("unreachable")

    def _authorise(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key()}", "Accept": "application/json"}

    def _said(self, answer: Answer) -> str:
        return self._without_key(answer.text[:SAID_CHARACTERS_MAX] or "no reason given")

    def _without_key(self, text: str) -> str:
        key = self._key()
        return text.replace(key, "***") if key else text


class NotThere(PartnerError):
    """Nothing is at that path."""


def _wait(attempt: int, asked: float | None) -> float:
    """What the server asked for, else longer each time and never the same."""
    backoff = FIRST_WAIT_SECONDS * float(2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
    return min(WAIT_SECONDS_MAX, max(backoff, asked or 0.0))
