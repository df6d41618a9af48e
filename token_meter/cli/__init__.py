"""`token-meter`: the ledger, the journal and the demo on the command line.

Every command prints a plain table, `--json` prints the same for programs, lists also take `--csv` and `--markdown`.
What a command was asked for goes to standard output, everything else (progress, notes, errors) to standard error.

Exit codes:

| code | meaning |
|---|---|
| 0 | it worked; also when nothing matched |
| 1 | something needs a human (`doctor`, `deliver run`, `demo`), or it failed: a line on standard error says why |
| 2 | wrong usage: an unknown option, time, column or dimension |
| 3 | there is no ledger or journal where the command looked; nothing was created |
| 130, 141 | interrupted with Ctrl-C; the program that read the output went away |
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    from token_meter.cli.app import app

    app(arguments, prog_name="token-meter")
