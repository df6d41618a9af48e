"""A day without Stripe: a million events wait, and what had arrived before it began is not counted again after it.

    python -m bench.outage [--events 1000000] [--seed N]

Before the outage one batch is acknowledged; of the next, three requests are counted, the last of them without Stripe
saying so, and the deliverer is killed. Stripe is then down for 25 hours of the virtual clock, in which the rest is
recorded by four writers, and knows no identifier any more when it is back. Then a fresh process drains the queue.
Shown are its memory, also for a tenth of the events, the order in which Stripe received them, and what became of the
batch that was in doubt. A plain retry of it would have counted `doubtful` records twice.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from bench.billing import KINDS
from bench.plan import Plan, Planned
from bench.sinks import Weather, compare_backend, expected_of, register_customers
from token_meter.event import format_time
from token_meter.journal import Journal
from token_meter.lines import recorded
from token_meter.testing.backends import FakeBackend

OUTAGE: Final = timedelta(hours=25)
WRITERS: Final = 4
BATCH: Final = 500
REQUEST: Final = 100
DOUBTFUL_REQUESTS: Final = 3
SECONDS_MAX: Final = 3600.0
KIND: Final = KINDS["stripe-stream"]


@dataclass(slots=True)
class Outcome:
    """What one outage came to. Records are what Stripe was sent; `again` counts those it had already."""

    events: int
    records: int = 0
    backlog_mib: float = 0.0
    peak_mib: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    doubtful: int = 0
    again: int = 0
    unordered: int = 0
    lost: int = 0
    twice: int = 0
    complaints: list[str] = field(default_factory=list)


class Run:
    """One outage, on one journal."""

    def __init__(self, folder: Path, *, events: int, seed: int) -> None:
        self.outcome = Outcome(events)
        self._folder = folder
        # The first two batches lie before the outage, whatever the number of events.
        span = OUTAGE / (1 - 2 * BATCH / events)
        self._plan = Plan(seed, events, datetime.now(UTC) - span, span, minted=True)
        self._stripe: FakeBackend = KIND.fake(0)
        self._segment_of: dict[str, int] = {}
        self._received = 0

    def play(self) -> Outcome:
        """Everything."""
        register_customers(self._folder / "usage.db")
        with ExitStack() as stack:
            stripe = stack.enter_context(self._stripe)
            _count_received(stripe, self._note)
            stripe.clock.advance(-OUTAGE.total_seconds())
            writers = stack.enter_context(_writers(self._folder / "journal"))
            self._write(writers[:1], range(2 * BATCH))
            self._attempt()
            counted, received = len(stripe.counted), self._received
            stripe.down = True
            self._write(writers, range(2 * BATCH, self._plan.events))
            stripe.clock.advance(OUTAGE.total_seconds())
            self._deliver("ledger")
            stripe.down = False
            self._drain(counted, received)
        return self.outcome

    def _write(self, writers: Sequence[Journal], numbers: range) -> None:
        """Record these in turn, one writer after the other."""
        for number in numbers:
            writers[number % len(writers)].append(recorded(document_of(self._plan.event(number))))

    def _attempt(self) -> None:
        """One batch that is acknowledged, one that is counted in part, and the end of the process."""
        first = sum(1 for number in range(BATCH) for _ in KIND.expected(self._plan.event(number)))
        good = 1 + -(-first // REQUEST) + DOUBTFUL_REQUESTS - 1
        weather = Weather(script=[*[None] * good, "error_after"], unavailable=1.0)
        self._stripe.chaos = weather
        process = self._start("stripe")
        deadline = time.monotonic() + 60
        while not weather.befell["unavailable"]:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the attempt before the outage went wrong: {weather.befell}")
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self._stripe.chaos = Weather()
        self.outcome.doubtful = len(self._stripe.counted) - first
        if self.outcome.doubtful != DOUBTFUL_REQUESTS * REQUEST:
            self.outcome.complaints.append(f"{self.outcome.doubtful} records were counted and not acknowledged")

    def _drain(self, counted: int, received: int) -> None:
        outcome, stripe = self.outcome, self._stripe
        outcome.backlog_mib = sum(each.stat().st_size for each in self._segments()) / 2**20
        self._remember_segments()
        done = self._deliver("stripe")
        outcome.peak_mib, outcome.seconds = done["peak_mib"], done["seconds"]
        outcome.cpu_seconds = done["cpu_seconds"]
        expected = expected_of(KIND, self._plan)
        outcome.records = sum(times for times, _ in expected.values())
        outcome.again = self._received - received - (outcome.records - counted)
        outcome.unordered = self._out_of_order()
        outcome.lost, outcome.twice, complaints = compare_backend("stripe", stripe, expected)
        outcome.complaints += complaints
        if done["quarantined"]:
            outcome.complaints.append(f"{done['quarantined']} events are in quarantine")

    # ---- the order of age ----

    def _segments(self) -> list[Path]:
        return sorted((self._folder / "journal" / "segments").glob("*.jsonl"))

    def _remember_segments(self) -> None:
        """Which event stands in which segment."""
        for place, path in enumerate(self._segments()):
            with path.open("rb") as lines:
                for line in lines:
                    if line.startswith(b'{"kind":"event"'):
                        self._segment_of[json.loads(line)["id"]] = place

    def _out_of_order(self) -> int:
        """How often a record was counted after a younger one of its segment, or a segment begun before an older one."""
        wrong, newest, begun = 0, dict[int, float](), -1
        for each in self._stripe.counted:
            segment = self._segment_of[each.identifier.partition(":")[0]]
            if segment not in newest:
                wrong += segment < begun
                begun = max(begun, segment)
            wrong += each.at < newest.get(segment, 0.0)
            newest[segment] = max(newest.get(segment, 0.0), each.at)
        return wrong

    # ---- processes ----

    def _start(self, to: str) -> subprocess.Popen[str]:
        clock = self._stripe.clock
        job = {
            "to": to, "folder": str(self._folder), "url": self._stripe.url, "clock_offset": clock.offset_seconds,
            "seconds_max": SECONDS_MAX,
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", "bench.outage_worker", json.dumps(job)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    def _deliver(self, to: str) -> dict[str, Any]:
        said, _ = self._start(to).communicate(timeout=SECONDS_MAX)
        done: dict[str, Any] = json.loads(said)
        if not done["complete"]:
            raise RuntimeError(f"not everything is with {to}: {done}")
        return done

    def _note(self, records: int) -> None:
        self._received += records


def _count_received(stripe: FakeBackend, note: Callable[[int], None]) -> None:
    """Count the records of every request of the stream that Stripe looks into."""
    answer = stripe.answer

    def counting(request: Any) -> Any:
        if request.path.endswith("meter_event_stream"):
            note(request.body.count(b'"identifier":'))
        return answer(request)

    stripe.answer = counting  # type: ignore[method-assign]


@contextmanager
def _writers(folder: Path) -> Iterator[list[Journal]]:
    """As many writers of one journal as there would be processes."""
    with ExitStack() as stack:
        yield [stack.enter_context(Journal(folder, fsync="never")) for _ in range(WRITERS)]


def document_of(event: Planned) -> dict[str, Any]:
    """The event as it stands in the journal."""
    named = {"customer": event.customer, "provider": event.provider, "model": event.model}
    return {
        "schema": 1,
        "id": event.id,
        "time": format_time(event.time),
        "usage": dict(event.usage),
        "status": "complete",
        "meter": event.meter,
        **{name: text for name, text in named.items() if text is not None},
        "mode": "live",
    }


def play(*, events: int, seed: int) -> Outcome:
    """One outage in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="token_meter-outage-") as name:
        return Run(Path(name), events=events, seed=seed).play()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    chosen = parser.parse_args()
    if chosen.events < 20 * BATCH:
        parser.error(f"--events must be at least {20 * BATCH}")
    print(f"{OUTAGE.total_seconds() / 3600:.0f} hours without Stripe (stream), seed {chosen.seed}")
    print("again: records that Stripe had before the outage and was sent once more; late: records out of their order")
    print(
        f"{'events':>9} {'records':>9} {'backlog MiB':>12} {'peak MiB':>9} {'events/s':>9} {'CPU us':>7} "
        f"{'doubtful':>9} {'again':>6} {'late':>5} {'lost':>5} {'twice':>6}"
    )
    failures = 0
    for events in (chosen.events // 10, chosen.events):
        failures += _report(play(events=events, seed=chosen.seed))
    return 1 if failures else 0


def _report(outcome: Outcome) -> int:
    print(
        f"{outcome.events:9} {outcome.records:9} {outcome.backlog_mib:12.1f} {outcome.peak_mib:9.1f} "
        f"{outcome.events / outcome.seconds:9.0f} {outcome.cpu_seconds / outcome.events * 1e6:7.0f} "
        f"{outcome.doubtful:9} {outcome.again:6} {outcome.unordered:5} {outcome.lost:5} {outcome.twice:6}",
        flush=True,
    )
    for text in outcome.complaints[:5]:
        print(f"    WRONG: {text}")
    return len(outcome.complaints) + outcome.again + outcome.unordered + outcome.lost + outcome.twice


if __name__ == "__main__":
    sys.exit(main())
