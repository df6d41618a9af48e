"""Connections of `requests` that let their thread work while it waits: see `token_meter.steps`.

Between the last byte of a request and the first of its answer the thread has nothing to do. urllib3 has a place for
that: every connection writes a request in `request` and waits for the answer in `getresponse`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import wait_for_read

from token_meter.steps import step_meanwhile


class BusyAdapter(HTTPAdapter):
    """The transport of a session that works while it waits; not so through a proxy."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        """Make the pools of this adapter ones with busy connections."""
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": _BusyPool, "https": _BusySecurePool}


class _BusyPool(HTTPConnectionPool):
    @property
    def ConnectionCls(self) -> Any:  # type: ignore[override]
        """A busy kind of whatever urllib3 would use now, which a test's recorder may have replaced."""
        return _busy(super().ConnectionCls)


class _BusySecurePool(HTTPSConnectionPool):
    @property
    def ConnectionCls(self) -> Any:  # type: ignore[override]
        """The same with TLS."""
        return _busy(super().ConnectionCls)


@lru_cache(maxsize=16)
def _busy(kind: Any) -> Any:
    class Busy(kind):  # type: ignore[misc]
        def getresponse(self, *arguments: Any, **named: Any) -> Any:
            sock = self.sock
            while sock is not None and not wait_for_read(sock, 0) and step_meanwhile():
                pass
            return super().getresponse(*arguments, **named)

    return Busy
