"""How fast a journal is delivered, beside a bare `requests` loop that posts the same bodies, in the same run.

    python -m bench.throughput [--events 10000] [--rounds 7] [--sink lago,webhook,...]

Both post to the same fake backend, which is a process of its own and the slower half of it. Ours is everything from the
journal's bytes on: read, map, put into requests, send, judge the answers, move the cursor. The bare loop has its bodies
and headers prepared and only posts them. They take turns; the figures are medians over the rounds. CPU is this
process's, per event.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import requests

from bench.billing import AMBERFLO_KEY, KINDS, LAGO_KEY, OPENMETER_KEY, STRIPE_KEY, WEBHOOK_SECRET, external_ids
from bench.plan import CUSTOMERS, OWN_METER, Plan, Planned
from bench.sinks import register_customers
from token_meter import MeterEvent, Usage
from token_meter.accounts.directory import LedgerAccounts
from token_meter.deliver import deliver_once
from token_meter.journal import Journal
from token_meter.ledger import Ledger
from token_meter.lines import recorded
from token_meter.testing.backends.base import Request, Response

TARGET: Final = 0.7
FAKES: Final[Mapping[str, tuple[str, str]]] = {
    "stripe-stream": ("stripe", STRIPE_KEY),
    "stripe-v2": ("stripe", STRIPE_KEY),
    "stripe-v1": ("stripe", STRIPE_KEY),
    "lago": ("lago", LAGO_KEY),
    "amberflo": ("amberflo", AMBERFLO_KEY),
    "openmeter": ("openmeter", OPENMETER_KEY),
    "webhook": ("webhook", WEBHOOK_SECRET),
}
"""By sink: which fake `python -m token_meter.testing.backends` serves, and its key."""


SINGLE: Final = frozenset({"stripe-v2", "stripe-v1"})
"""Sinks that make a request for each record: a tenth of the events takes as long as all of them elsewhere."""

BATCH: Final = 500
"""What a reporter hands over at once."""

TRANSPORT: Final = frozenset({"host", "connection", "content-length", "accept-encoding", "user-agent", "accept"})
"""Headers that every client writes for itself."""

Profile = Callable[[Callable[[], None]], None] | None


class Posted(NamedTuple):
    """One request, ready to be posted."""

    url: str
    body: bytes
    headers: Mapping[str, str]


class Taken(NamedTuple):
    """How long something took."""

    seconds: float
    cpu_seconds: float


@dataclass(slots=True)
class Result:
    """One sink's rounds."""

    events: int
    requests: int = 0
    ours: list[Taken] = field(default_factory=list)
    bare: list[Taken] = field(default_factory=list)

    def rate(self, taken: Sequence[Taken]) -> float:
        """Events in a second, the median."""
        return statistics.median(self.events / each.seconds for each in taken)

    @property
    def ratio(self) -> float:
        """How fast we are beside the bare loop: the median of the rounds, whose two halves follow on each other."""
        return statistics.median(bare.seconds / ours.seconds for ours, bare in zip(self.ours, self.bare, strict=True))

    def cpu_microseconds(self, taken: Sequence[Taken]) -> float:
        """For one event, the median."""
        return statistics.median(each.cpu_seconds for each in taken) / self.events * 1e6


@contextmanager
def backend(kind: str) -> Iterator[str]:
    """The URL of a fake backend in a process of its own, with what the sink needs there."""
    name, key = FAKES[kind]
    process = subprocess.Popen(
        [sys.executable, "-m", "token_meter.testing.backends", name, "--key", key],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if name == "stripe":
            _control(url, "meter", event_name="token-billing-tokens")
            for customer in CUSTOMERS:
                _control(url, "customer", id=external_ids(customer)["stripe"])
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def _control(url: str, what: str, **document: Any) -> Any:
    return requests.post(f"{url}/_/{what}", data=json.dumps(document), timeout=30).json()


def state(url: str) -> Any:
    """What the fake says that it has counted."""
    return requests.get(f"{url}/_/state", timeout=30).json()


def model_calls(plan: Plan, count: int) -> list[Planned]:
    """So many events of the plan that are no meters of one's own: every backend takes those."""
    found = (plan.event(number) for number in range(plan.events))
    return [event for event in found if event.meter != OWN_METER][:count]


def event_of(planned: Planned) -> MeterEvent:
    """The event as the journal has it."""
    return MeterEvent(
        id=planned.id,
        time=planned.time,
        usage=Usage(planned.usage),
        customer=planned.customer,
        provider=planned.provider,
        model=planned.model,
        meter=planned.meter,
        operation="chat",
        status="complete",
    )


def prepare_journal(folder: Path, events: Sequence[MeterEvent]) -> None:
    """A journal that nobody has delivered yet."""
    with Journal(folder, fsync="never") as journal:
        for event in events:
            journal.append(recorded(event.to_json()))


def sink_of(kind: str, url: str, ledger: Ledger) -> Any:
    """The sink, knowing the customers."""
    sink = KINDS[kind].sink(url, name=kind)
    if hasattr(sink, "bind"):
        sink.bind(LedgerAccounts(ledger))
    return sink


def deliver(folder: Path, sink: Any, events: int) -> None:
    """The real thing, from the journal to the backend."""
    done = deliver_once(folder, sink, replay=True)
    if not done.complete or done.sent != events:
        raise RuntimeError(f"not delivered: {done}")


class Copied:
    """The requests that a sink makes, copied down by a backend like the one that is measured."""

    def __init__(self, kind: str) -> None:
        self.requests: list[Request] = []
        self._fake = KINDS[kind].fake(0)
        answer = self._fake.answer

        def copying(request: Request) -> Response:
            self.requests.append(request)
            return answer(request)

        self._fake.answer = copying  # type: ignore[method-assign]

    def of(self, kind: str, events: Sequence[MeterEvent], ledger: Ledger) -> list[Request]:
        """What is posted for these events, batch by batch as the reporter hands them over."""
        with self._fake:
            sink = sink_of(kind, self._fake.url, ledger)
            for begin in range(0, len(events), BATCH):
                sink.send(events[begin : begin + BATCH])
            sink.close()
        return self.requests


def ready_to_post(requests_made: Sequence[Request], url: str) -> list[Posted]:
    """The same requests for the backend that is measured; a stream's session is its own."""
    posted: list[Posted] = []
    own: dict[str, str] = {}
    for request in requests_made:
        headers = {name: text for name, text in request.headers.items() if name not in TRANSPORT}
        if request.path.endswith("meter_event_session"):
            answer = requests.post(f"{url}{request.path}", data=request.body, headers=headers, timeout=30)
            own = {"authorization": f"Bearer {answer.json()['authentication_token']}"}
        else:
            posted.append(Posted(f"{url}{request.path}", request.body, {**headers, **own}))
    return posted


def post_all(posted: Sequence[Posted]) -> None:
    """The bare loop."""
    with requests.Session() as session:
        for each in posted:
            session.post(each.url, data=each.body, headers=each.headers).raise_for_status()


def timed(action: Callable[[], None]) -> Taken:
    """Run it; wall and CPU time. What was prepared before is no garbage to look through meanwhile."""
    gc.collect()
    gc.freeze()
    began, cpu_began = time.perf_counter(), time.process_time()
    action()
    taken = Taken(time.perf_counter() - began, time.process_time() - cpu_began)
    gc.unfreeze()
    return taken


def measure(kind: str, *, events: int, rounds: int, profile: Profile = None) -> Result:
    """One sink's rounds; the first is for warming up and not counted."""
    result = Result(events)
    with tempfile.TemporaryDirectory(prefix="token_meter-throughput-") as name, backend(kind) as url:
        register_customers(Path(name) / "usage.db")
        with Ledger(Path(name) / "usage.db") as ledger:
            sink = sink_of(kind, url, ledger)
            try:
                for number in range(rounds + 1):
                    folder = Path(name) / str(number)
                    _round(result, kind, sink, url, ledger, folder, number=number, profile=profile)
            finally:
                sink.close()
        if state(url)["counted_twice"]:
            raise RuntimeError("something was counted twice: this measured nothing")
    return result


def _round(
    result: Result, kind: str, sink: Any, url: str, ledger: Ledger, folder: Path, *, number: int, profile: Profile
) -> None:
    """Ours and the bare loop post different events of one shape, for a backend answers quicker to what it knows."""
    begin = datetime.now(UTC) - timedelta(hours=1, minutes=1)
    plans = [Plan(1000 * number + half, result.events * 2, begin, minted=True) for half in (1, 2)]
    ours, bare = ([event_of(each) for each in model_calls(plan, result.events)] for plan in plans)
    prepare_journal(folder, ours)
    posted = ready_to_post(Copied(kind).of(kind, bare, ledger), url)

    def deliver_ours() -> None:
        deliver(folder, sink, len(ours))

    def post_bare() -> None:
        post_all(posted)

    if profile is not None and number:
        profile(deliver_ours)
        return
    taken: dict[Callable[[], None], Taken] = {}
    for action in (deliver_ours, post_bare) if number % 2 else (post_bare, deliver_ours):
        taken[action] = timed(action)
    if number:
        result.requests = len(posted)
        result.ours.append(taken[deliver_ours])
        result.bare.append(taken[post_bare])


def profiled(action: Callable[[], None]) -> None:
    """Show where the time goes."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    gc.collect()
    gc.freeze()
    profile.runcall(action)
    gc.unfreeze()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sink", default=",".join(KINDS), help=f"any of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--profile", action="store_true", help="show where our time goes instead")
    chosen = parser.parse_args()
    kinds = [name.strip() for name in chosen.sink.split(",")]
    if unknown := [name for name in kinds if name not in KINDS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    logging.getLogger("token_meter").setLevel(logging.CRITICAL)
    print(f"medians of {chosen.rounds} rounds, {os.cpu_count()} CPUs; target {TARGET:.1f}x")
    print(
        f"{'sink':14} {'events':>7} {'requests':>9} {'ours/s':>9} {'bare/s':>9} {'ratio':>6} {'our CPU us':>11} "
        f"{'bare CPU us':>12}"
    )
    slow = 0
    for kind in kinds:
        if chosen.profile:
            measure(kind, events=chosen.events, rounds=1, profile=profiled)
            continue
        events = chosen.events // 10 if kind in SINGLE else chosen.events
        result = measure(kind, events=events, rounds=chosen.rounds)
        slow += result.ratio < TARGET
        print(
            f"{kind:14} {result.events:7} {result.requests:9} {result.rate(result.ours):9,.0f} "
            f"{result.rate(result.bare):9,.0f} {result.ratio:6.2f} {result.cpu_microseconds(result.ours):11.0f} "
            f"{result.cpu_microseconds(result.bare):12.0f}",
            flush=True,
        )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
