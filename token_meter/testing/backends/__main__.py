"""`python -m token_meter.testing.backends NAME --port N`: serve one fake backend until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import Any, Final

from token_meter.testing import backends
from token_meter.testing.backends.base import FakeBackend, VirtualClock

NAMES: Final = {
    "amberflo": "FakeAmberflo",
    "lago": "FakeLago",
    "openmeter": "FakeOpenMeter",
    "stripe": "FakeStripe",
    "webhook": "WebhookReceiver",
}


def main() -> None:
    """Print the base URL, then serve."""
    parser = argparse.ArgumentParser(
        prog="python -m token_meter.testing.backends", description="Serve a fake billing backend on this machine."
    )
    parser.add_argument("name", choices=sorted(NAMES))
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one (default: 0)")
    parser.add_argument("--clock-offset", type=float, default=0.0, metavar="SECONDS", help="how far its time is off")
    parser.add_argument("--key", help="the key, or for webhook the secret, that it asks for; one for tests by default")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    clock = VirtualClock(offset_seconds=given.clock_offset)
    with make(given.name, port=given.port, clock=clock, key=given.key) as backend:
        sys.stdout.write(f"{backend.url}\n")
        sys.stdout.flush()
        stop.wait()


def make(name: str, *, port: int = 0, clock: VirtualClock | None = None, key: str | None = None) -> FakeBackend:
    """A backend by its name; OpenMeter with the meter of its quickstart."""
    kind: Any = getattr(backends, NAMES[name])
    asked = {} if key is None else {"secret" if name == "webhook" else "key": key}
    backend: FakeBackend = kind(port=port, clock=clock, **asked)
    if isinstance(backend, backends.FakeOpenMeter):
        backend.add_meter("tokens_total", "prompt", "$.tokens", group_by=["model", "type"])
    return backend


if __name__ == "__main__":
    main()
