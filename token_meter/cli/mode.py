"""Live or test: which of the two a command is about."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Final

import typer

from token_meter.cli.exits import WRONG_USAGE, Failure

if TYPE_CHECKING:
    from token_meter.ledger.values import Mode

MODE_VARIABLE: Final = "TOKEN_METER_MODE"

ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="live|test",
        help="Live customers or those of test mode. Default: $TOKEN_METER_MODE, else live.",
    ),
]


def read_mode(mode: str | None) -> Mode:
    """The mode that was asked for, else the one that a Meter would take from the environment."""
    if mode is None:
        return "test" if os.environ.get(MODE_VARIABLE) == "test" else "live"
    if mode == "live":
        return "live"
    if mode == "test":
        return "test"
    raise Failure(f"--mode is live or test, not {mode!r}", code=WRONG_USAGE)
