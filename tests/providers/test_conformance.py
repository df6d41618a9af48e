"""Every metered call shape of every SDK passes every check of the list in `conformance.py`."""

from __future__ import annotations

import pytest

from tests.providers.conformance import CHECKS, ROWS, SOCKET_CHECKS, STREAM_CHECKS, STREAMS, Check, Row, pairs
from tests.providers.kit import Bench


@pytest.mark.parametrize(("row", "check"), [*pairs(ROWS, CHECKS), *pairs(STREAMS, STREAM_CHECKS)])
def test_a_call(row: Row, check: Check) -> None:
    with Bench() as bench:
        bench.run(lambda: check(bench, row))


@pytest.mark.parametrize(("row", "check"), pairs(ROWS, SOCKET_CHECKS))
def test_a_call_over_a_port(row: Row, check: Check) -> None:
    with Bench(sockets=True) as bench:
        bench.run(lambda: check(bench, row))
