"""However the process ends: 20 of 20 calls are accounted for, none twice. `python -m bench.durability` repeats it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.durability import SCENARIOS, Launcher, Scenario, play, stage
from token_meter.testing import LoopbackProvider

Stage = tuple[LoopbackProvider, Launcher]


@pytest.fixture(scope="module")
def theatre() -> Iterator[Stage]:
    with stage() as both:
        yield both


@pytest.mark.parametrize("moment", [0.2, 0.7])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_call_is_accounted_for_once(theatre: Stage, scenario: Scenario, moment: float) -> None:
    provider, launcher = theatre

    outcome = play(scenario, provider, launcher, calls=20, moment=moment)

    assert outcome.complaints == []
    assert outcome.events
