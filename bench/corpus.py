"""Every recorded entry, through the real SDKs, in every combination: exactly the usage it must yield.

    python -m bench.corpus [--only TEXT]

Sync and async, plain and helper; all of it again in pieces of seven bytes and compressed; every stream cut half way,
by a dropped connection and cleanly. Prints what differs; the exceptions and their reasons: tests/test_corpus.py.
Exits with 1 when something differs, with 2 when the recordings are not beside this checkout (../shared/corpus).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.corpus import HARNESS
from tests.test_corpus import Replayed, differences, excused, run, silences

RECORDINGS_ABSENT = 2

RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sync", {"mode": "sync"}),
    ("async", {"mode": "async"}),
    ("sync, 7 bytes, gzip", {"mode": "sync", "chop": 7, "gzip": True}),
    ("async, 7 bytes, gzip", {"mode": "async", "chop": 7, "gzip": True}),
    ("sync, cut at 0.5", {"mode": "sync", "streams_only": True, "cut": 0.5}),
    ("async, cut at 0.5", {"mode": "async", "streams_only": True, "cut": 0.5}),
    ("sync, cut cleanly", {"mode": "sync", "streams_only": True, "cut": 0.5, "cut_clean": True}),
    ("async, cut cleanly", {"mode": "async", "streams_only": True, "cut": 0.5, "cut_clean": True}),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the combinations whose name contains this")
    chosen = parser.parse_args()
    if not HARNESS.exists():
        print(
            f"bench.corpus: the recordings are not here. They are no part of this repository; they are expected in "
            f"{os.path.relpath(HARNESS.parent)} (with {HARNESS.name}).",
            file=sys.stderr,
        )
        return RECORDINGS_ABSENT
    print(f"{'run':24} {'calls':>6} {'excused':>8} {'wrong':>6}  statuses")
    wrong = 0
    for name, options in RUNS:
        if chosen.only not in name:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="token_meter-corpus-") as folder:
            replayed = run(Path(folder), **options)
        found = silences(replayed) if options.get("cut") else differences(replayed)
        wrong += len(found)
        _report(name, replayed, found, time.monotonic() - began)
    return 1 if wrong else 0


def _report(name: str, replayed: Replayed, found: dict[str, list[str]], seconds: float) -> None:
    statuses = Counter(events[0].status if events else "no event" for events in replayed.events.values())
    told = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    skipped = sum(excused(call) for call, _, _ in replayed.calls)
    print(f"{name:24} {len(replayed.calls):6} {skipped:8} {len(found):6}  {told} ({seconds:.0f} s)", flush=True)
    for call, texts in found.items():
        print(f"    WRONG {call}: {'; '.join(texts)}")


if __name__ == "__main__":
    sys.exit(main())
