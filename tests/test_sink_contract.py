"""What a backend counted is what the ledger has, although the deliverer is killed and the backend fails.

`python -m bench.sinks` repeats it with twenty thousand events, `python -m bench.outage` with a million.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bench import outage
from bench.billing import KINDS
from bench.sinks import Launcher, Outcome, Run, Scenario, bad_weather

EVENTS = 200
KILLS = 3
SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as launcher:
        yield launcher


def play(scenario: Scenario, launcher: Launcher, folder: Path, *, kills: int = KILLS) -> Outcome:
    """A short run: three faults for certain, of which one hides that the backend has counted; then a few by chance."""
    weather = partial(bad_weather, share=1 / 40, first=3)
    run = Run(scenario, launcher, folder, events=EVENTS, kills=kills, seed=1, ahead=0.4, weather=weather)
    return run.play(seconds_max=SECONDS_MAX)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_counts_everything_once(launcher: Launcher, tmp_path: Path, kind: str) -> None:
    outcome = play(Scenario(kind, (kind,)), launcher, tmp_path)

    assert outcome.complaints == []
    assert (outcome.lost, outcome.twice, outcome.kills) == (0, 0, KILLS)
    assert outcome.faults


def test_a_dead_backend_delays_no_other_and_gets_everything_later(launcher: Launcher, tmp_path: Path) -> None:
    scenario = Scenario("three", ("lago", "amberflo", "webhook"), dead="amberflo")

    outcome = play(scenario, launcher, tmp_path)

    assert outcome.complaints == []
    assert (outcome.lost, outcome.twice, outcome.kills) == (0, 0, KILLS)
    assert outcome.alone_seconds is not None


def test_several_workers_share_a_journal(launcher: Launcher, tmp_path: Path) -> None:
    outcome = play(Scenario("workers", ("openmeter",), workers=3), launcher, tmp_path)

    assert outcome.complaints == []
    assert (outcome.lost, outcome.twice, outcome.kills) == (0, 0, KILLS)


def test_a_day_without_stripe_counts_nothing_twice_and_keeps_the_order(tmp_path: Path) -> None:
    outcome = outage.Run(tmp_path, events=3_000, seed=1).play()

    assert outcome.complaints == []
    assert outcome.doubtful == outage.DOUBTFUL_REQUESTS * outage.REQUEST
    assert (outcome.again, outcome.unordered, outcome.lost, outcome.twice) == (0, 0, 0, 0)
