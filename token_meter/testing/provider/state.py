"""What outlives a request: ids, stored objects, counted failures, and what a test scripted."""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from token_meter.testing.provider.account import Account
from token_meter.testing.provider.faults import Faults
from token_meter.testing.provider.reply import Reply
from token_meter.testing.provider.request import Request
from token_meter.usage import Usage

STORED_MAX: Final = 10_000
"""Objects (responses, files, batches) that are kept for a later GET; the oldest go first."""

Handler = Callable[[Request], Reply | None]


@dataclass(frozen=True, slots=True)
class Scripted:
    """A usage that a test set, and for which calls."""

    usage: Usage | None
    raw: Any
    api: str | None
    model: str | None

    def applies(self, api: str, model: str) -> bool:
        """Whether it is meant for calls like this one."""
        return self.api in (None, api) and self.model in (None, model)


class State:
    """Everything that is shared by the requests of one provider. Safe to use from any thread."""

    def __init__(self) -> None:
        self.account = Account()
        self.handlers: list[tuple[str | None, Handler]] = []
        self.scripted: list[Scripted] = []
        self.text: str | None = None
        self._lock = threading.Lock()
        self._failures: dict[str, int] = {}
        self._stored: OrderedDict[str, Any] = OrderedDict()
        self._run = secrets.token_hex(5)
        self._numbers = itertools.count(1)

    def new_id(self, prefix: str) -> str:
        """An id that no other process and no other run has."""
        return f"{prefix}{self._run}{os.getpid():07x}{next(self._numbers):06x}"

    def store(self, key: str, value: Any) -> None:
        """Keep an object for a later request."""
        with self._lock:
            self._stored[key] = value
            while len(self._stored) > STORED_MAX:
                self._stored.popitem(last=False)

    def stored(self, key: str) -> Any:
        """An object that was kept, or None."""
        with self._lock:
            return self._stored.get(key)

    def forget(self, key: str) -> bool:
        """Drop a kept object; says whether there was one."""
        with self._lock:
            return self._stored.pop(key, None) is not None

    def failing(self, faults: Faults) -> bool:
        """Whether this request is one of those that `fail=` makes fail; counts it."""
        if not faults.fail:
            return False
        _, count = faults.failures
        key = faults.id or faults.text
        with self._lock:
            self._failures[key] = self._failures.get(key, 0) + 1
            return not count or self._failures[key] <= count

    def scripted_for(self, api: str, model: str) -> Scripted | None:
        """The usage set last that applies to such a call."""
        return next((each for each in reversed(self.scripted) if each.applies(api, model)), None)

    def handle(self, request: Request) -> Reply | None:
        """What the test's own handlers make of a request."""
        for path, handler in reversed(self.handlers):
            if (path is None or path == request.path) and (reply := handler(request)) is not None:
                return reply
        return None

    def clear(self) -> None:
        """Forget everything but the numbers of the ids."""
        with self._lock:
            self._failures.clear()
            self._stored.clear()
        self.account.clear()
        self.handlers.clear()
        self.scripted.clear()
        self.text = None


def check_types(api: str, usage: Usage, known: frozenset[str]) -> None:
    """Raises ValueError for token types that the wire format of an API has no field for."""
    if unknown := sorted(set(usage) - known):
        raise ValueError(f"{api} cannot report {', '.join(unknown)}. It reports: {', '.join(sorted(known))}.")


Block = Mapping[str, Any]
"""A usage block as it stands on the wire."""
