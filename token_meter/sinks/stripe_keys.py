"""Stripe's keys say whether they are for live or for test mode. The two must never be mixed."""

from __future__ import annotations

import os
import re
from typing import Final

from token_meter.sinks.http import KeyRefused, Secret
from token_meter.sinks.recording import Mode

KEY_VARIABLE: Final = "STRIPE_API_KEY"
_KEY: Final = re.compile(r"(?:sk|rk)_(?:org_)?(live|test)_")


def mode_of(key: str) -> Mode | None:
    """The mode of a key, as its beginning tells; None for one of another kind."""
    match = _KEY.match(key)
    if match is None:
        return None
    return "test" if match[1] == "test" else "live"


def mode_at_first(key: Secret | None) -> Mode:
    """The mode of the key that there is now. One that cannot be had yet is told about when it is needed."""
    try:
        text = key() if callable(key) else key or os.environ.get(KEY_VARIABLE, "")
    except Exception:  # noqa: BLE001 - the user's own function
        return "live"
    return (mode_of(text.strip()) if isinstance(text, str) else None) or "live"


def check_mode(key: str, *, mode: Mode, sink: str) -> None:
    """Raises KeyRefused for a key of the other mode: it is not used, so nothing ends up where it does not belong."""
    found = mode_of(key)
    if found is not None and found != mode:
        raise KeyRefused(
            f"the key is one for {found} mode, and the sink {sink!r} reports {mode} usage. Nothing is sent and nothing "
            f"is lost: give it a {mode} key, or make it with mode={found!r}"
        )
