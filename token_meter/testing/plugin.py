"""The pytest plugin: the fixture `captured_usage`, a `capture()` around one test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from token_meter.testing.capturing import Captured


@pytest.fixture
def captured_usage() -> Iterator[Captured]:
    """What the test's model calls consumed: `captured_usage.events`, `captured_usage.usage`."""
    from token_meter.testing.capturing import capture

    with capture() as captured:
        yield captured
