"""What the demo says before and after: what it is about to do, what the account says, and what to try next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from token_meter.cli.demo.customers import Customer
from token_meter.cli.demo.reconciliation import Pair, Reconciliation
from token_meter.cli.demo.story import Outcome
from token_meter.cli.output import write_json
from token_meter.cli.tables import Column, Table
from token_meter.cli.terminal import console, rich_table
from token_meter.cli.text import counted
from token_meter.cli.version import version_of
from token_meter.event import STATUSES
from token_meter.usage import TOKEN_TYPES, Usage

WHY: Final = {
    "partial": "given up: the counts told so far stand",
    "estimated": "given up before any counts came",
    "unmetered": "killed before the answer came",
}


def introduce(ledger: Path, present: Sequence[Customer], absent: Sequence[Customer], *, url: str) -> None:
    """Say what is about to happen."""
    out = console()
    out.print(Text.assemble(("token-meter demo", "bold")))
    out.print(f"  {url} plays the providers. No key, no network, no cost.", style="dim")
    sdks = ", ".join(f"{customer.distribution} {version_of(customer.distribution) or '?'}" for customer in present)
    out.print(
        f"  {len(present)} services with their real SDKs ({sdks}) are metered into {ledger}.",
        style="dim",
        soft_wrap=True,
    )
    for customer in absent:
        out.print(
            f"  {customer.name} takes no part: its SDK is missing. pip install 'token-meter[all]'",
            style="yellow",
            soft_wrap=True,
        )
    out.print()


def report(outcome: Outcome, ledger: Path) -> None:
    """Show the account, the usage, and what to try next."""
    out = console()
    out.print()
    for line in _verdict(outcome.reconciliation):
        out.print(line)
    if outcome.reconciliation.unsure:
        out.print()
        out.print(rich_table(_unsure(outcome.reconciliation.unsure), out.width))
    out.print()
    out.print(rich_table(usage_by_type(outcome), out.width))
    out.print()
    out.print(Text("Try next", style="bold"))
    _suggest(out, [*activation(), *next_steps(ledger)])


def _suggest(out: Console, steps: Sequence[tuple[str, str]]) -> None:
    """Commands with what they show behind them, or above them where there is no room."""
    width = max(len(command) for command, _ in steps)
    beside = all(width + len(why) + 7 <= out.width for _, why in steps)
    for command, why in steps:
        if beside:
            out.print(Text.assemble((f"  {command:<{width}}", "cyan"), (f"   # {why}", "dim")))
        else:
            out.print(Text(f"  # {why}", style="dim"))
            out.print(Text(f"  {command}", style="cyan"), soft_wrap=True)


def report_json(outcome: Outcome, ledger: Path) -> None:
    """The same for programs."""
    write_json(
        {
            "ledger": str(ledger),
            "killed": outcome.killed,
            "seconds": round(outcome.seconds, 3),
            "reconciliation": outcome.reconciliation.to_json(),
            "usage": [{**row.group, "events": row.events, "usage": dict(row.usage)} for row in outcome.usage],
            "next": [command for command, _ in next_steps(ledger)],
        }
    )


def activation() -> list[tuple[str, str]]:
    """What a shell needs first when this was started by its path, out of a virtual environment that is not active."""
    script = Path(sys.prefix, "bin", "activate")
    if shutil.which("token-meter") or not script.exists():
        return []
    shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    return [(f"source {shlex.quote(str(shown))}", "so that your shell finds the commands below")]


def next_steps(ledger: Path) -> list[tuple[str, str]]:
    """Commands that work on the ledger that is left."""
    at = f"--ledger {shlex.quote(str(ledger))}"
    return [
        (f"token-meter usage {at} --by customer,feature", "split by anything you attach to a call"),
        (f"token-meter usage {at} --by token_type", "every token type, none of which contains another"),
        (f"token-meter usage {at} --cost", "what it cost you"),
        (f"token-meter setup {at} --markup 30 --since today", "charge 30 % more"),
        (f"token-meter invoice show acme {at}", "the invoice so far, with the math of every line"),
        (f"token-meter events tail {at} -n 5", "the events themselves; add --follow"),
        (f"token-meter doctor {at}", "finds the call that was killed"),
        (f"token-meter events export {at} --format csv", "take it elsewhere"),
    ]


def _verdict(result: Reconciliation) -> list[Text]:
    sign, style = ("✓", "bold green") if result.ok else ("✗", "bold red")
    counts = result.by_status
    statuses = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    lines = [
        Text.assemble(
            (f"{sign} {len(result.pairs)} of {result.calls} calls accounted for", style),
            (f": {statuses or 'none'}" + (" (killed before the answer)" if counts["unmetered"] else ""), ""),
        )
    ]
    agreeing = sum(pair.agrees for pair in result.pairs)
    lines.append(
        Text(
            f"  {counted(agreeing, 'call')} agree with the provider's own account in every token type: "
            f"{counted(result.exact_tokens, 'token')}"
        )
    )
    complaints = (
        (result.missing, "charged and not in the ledger"),
        (result.unexplained, "in the ledger and never charged"),
        (result.wrong, "called complete with other numbers than charged"),
        (result.needless, "not complete although nobody gave up or was killed"),
    )
    lines += [Text(f"✗ {counted(len(found), 'call')} {what}", style="bold red") for found, what in complaints if found]
    return lines


def _unsure(pairs: Sequence[Pair]) -> Table:
    columns = [
        Column("customer"), Column("status"), Column("charged", number=True), Column("ledger", number=True),
        Column("why", quiet=True),
    ]  # fmt: skip
    rows: list[dict[str, Any]] = [
        {
            "customer": pair.event.customer,
            "status": pair.event.status,
            "charged": pair.billed.usage.tokens,
            "ledger": pair.event.usage.tokens if pair.event.usage else None,
            "why": WHY.get(pair.event.status, ""),
        }
        for pair in pairs
    ]
    return Table(columns, rows, nothing="?")


def usage_by_type(outcome: Outcome) -> Table:
    """Customer x model in rows, the token types that occur in columns."""
    total = sum((row.usage for row in outcome.usage), Usage())
    types = [name for name in TOKEN_TYPES if name in total]
    columns = [
        Column("customer"),
        Column("model"),
        *(Column(name, number=True) for name in ("calls", *types, "tokens")),
    ]
    rows = [{**row.group, "calls": row.events, **_of(row.usage, types)} for row in outcome.usage]
    calls = sum(row.events for row in outcome.usage)
    return Table(columns, rows, {"customer": "total", "calls": calls, **_of(total, types)}, nothing="(no answer)")


def _of(usage: Usage, types: Sequence[str]) -> dict[str, int]:
    return {**{name: usage.get(name, 0) for name in types}, "tokens": usage.tokens}
