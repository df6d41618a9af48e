"""What the tests of the loopback provider share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from token_meter.testing.provider import LoopbackProvider


@pytest.fixture
def provider() -> Iterator[LoopbackProvider]:
    """An open provider that did nothing wrong by the end of the test."""
    with LoopbackProvider() as provider:
        yield provider
        assert provider.errors == []
