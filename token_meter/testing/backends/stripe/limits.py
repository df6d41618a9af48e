"""How much at once: requests per second, and one call at a time for a customer and a meter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from token_meter.testing.backends.base import VirtualClock


class TokenBucket:
    """Lets `rate` requests a second through, and as many at once; every request when there is no rate.

    On the backend's clock: a test that moves it refills the bucket.
    """

    def __init__(self, rate: float | None, clock: VirtualClock) -> None:
        self.rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._filled_at = clock.now()
        self._tokens: float | None = None

    def take(self) -> bool:
        """Whether there was a token left."""
        if self.rate is None:
            return True
        with self._lock:
            now, most = self._clock.now(), max(1.0, self.rate)
            held = most if self._tokens is None else self._tokens + max(0.0, now - self._filled_at) * self.rate
            self._tokens, self._filled_at = min(most, held), now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class OneAtATime:
    """Calls that are being worked on, by what they work on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: set[Hashable] = set()

    @contextmanager
    def entering(self, what: Hashable, refused: Callable[[], Exception]) -> Iterator[None]:
        """Work on it, or raise what `refused` makes if another call does."""
        with self._lock:
            if what in self._busy:
                raise refused()
            self._busy.add(what)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(what)
