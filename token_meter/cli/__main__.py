"""`python -m token_meter.cli`: the same as `token-meter`."""

from __future__ import annotations

from token_meter.cli import main

if __name__ == "__main__":
    main()
