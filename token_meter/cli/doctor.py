"""`token-meter doctor`: what works, what waits, what needs a human, and where a customer's data went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.exits import TROUBLE, WRONG_USAGE, Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import write, write_json
from token_meter.cli.place import find
from token_meter.cli.text import counted, printable

if TYPE_CHECKING:
    from token_meter.cli.checks import Check
    from token_meter.cli.facts import Facts

STYLES: Final = {"✓": "green", "!": "yellow", "✗": "bold red"}
WINDOW: Final = "7d"


def doctor(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="NAME", help="Why is there no data of this customer?")
    ] = None,
    since: Annotated[
        str,
        typer.Option("--since", metavar="TIME", help="Judge events from then on; older ones were somebody's already."),
    ] = WINDOW,
    deep: Annotated[
        bool, typer.Option("--deep", help="Import the SDKs and see whether metering finds its hooks (slower).")
    ] = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Print metrics for Prometheus.")] = False,
    json: options.JsonOption = False,
) -> None:
    """Check everything, and say what to do. Changes nothing.

    ✓ fine · ! worth knowing · ✗ needs a human. Exits with 1 when there is a ✗; with --prometheus a metric says so.
    """
    from token_meter.cli.checks import Level, check_all
    from token_meter.cli.facts import read_facts
    from token_meter.cli.search import look_for

    if json and prometheus:
        raise Failure("choose one of --json and --prometheus", code=WRONG_USAGE)
    moment = read_moment(since, zone=UTC, now=datetime.now(UTC))
    assert moment is not None
    facts = read_facts(find(ledger, journal), since=moment, deep=deep)
    checks = look_for(customer, facts) if customer is not None else check_all(facts)
    wrong = sum(check.level is Level.WRONG for check in checks)
    if prometheus:
        from token_meter.cli.metrics import metrics

        write(metrics(facts, wrong=wrong))
        return
    if json:
        write_json(_document(facts, checks))
    else:
        _print(checks)
    if wrong:
        raise typer.Exit(TROUBLE)


def _print(checks: Sequence[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from token_meter.cli.terminal import console

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for check in checks:
        sign = check.level.value
        grid.add_row(Text(sign, style=STYLES[sign]), Text(check.subject, style="bold"), Text(printable(check.text)))
        if check.advice and sign != "✓":
            grid.add_row("", "", Text(f"→ {printable(check.advice)}", style="dim"))
    out = console()
    out.print(grid)
    levels = Counter(check.level.value for check in checks)
    verdict = f"{counted(levels['✗'], 'thing')} {'needs' if levels['✗'] == 1 else 'need'} a human"
    style = "bold red" if levels["✗"] else "bold green"
    out.print()
    out.print(Text(verdict if levels["✗"] else "nothing needs a human", style=style))


def _document(facts: Facts, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "ok": not any(check.level.value == "✗" for check in checks),
        "ledger": facts.place.shown,
        "journal": str(facts.place.journal),
        "checks": [asdict(check) | {"level": check.level.name.lower()} for check in checks],
    }
