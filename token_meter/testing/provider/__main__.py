"""`python -m token_meter.testing.provider --port N`: serve until interrupted."""

from __future__ import annotations

import argparse
import sys
import threading

from token_meter.testing.provider.faults import Faults
from token_meter.testing.provider.server import LoopbackProvider


def main() -> None:
    """Print the base URLs, then serve."""
    parser = argparse.ArgumentParser(
        prog="python -m token_meter.testing.provider", description=LoopbackProvider.__doc__
    )
    parser.add_argument("--port", type=int, default=8099, help="0 picks a free one (default: 8099)")
    parser.add_argument("--options", default="", help="show the URLs with these faults, such as slow=0.05,drop=3")
    given = parser.parse_args()
    Faults.parse(given.options)
    with LoopbackProvider(port=given.port) as provider:
        base = f"{provider.url}/~{given.options}" if given.options else provider.url
        sys.stdout.write(f"openai     {base}/v1\nanthropic  {base}\ngoogle     {base}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stdout.write("\n")


if __name__ == "__main__":
    main()
