"""`token-meter demo`: three customers, real SDKs, a killed process, and an account that adds up.

The services in `acme.py`, `globex.py` and `initech.py` and the process around them in `worker.py` are meant to be
read: that is all a program has to do to be metered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from token_meter.cli import options
from token_meter.cli.exits import TROUBLE, Failure

INSTALL = "pip install 'token-meter[all]'"


def demo(
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep", metavar="DIR", help="Where the ledger stays, to be explored. Default: ./token-meter-demo."
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Without pauses for the eye.")] = False,
    json: options.JsonOption = False,
) -> None:
    """See it work: no key, no server, no network.

    Runs the real SDKs of three customers' services against a provider on this machine, kills one of them in the
    middle of a call, and compares the ledger with the provider's own account. Takes about ten seconds.
    """
    from token_meter.cli.demo.customers import CUSTOMERS
    from token_meter.cli.demo.folder import DEFAULT, prepared
    from token_meter.cli.demo.report import introduce, report, report_json
    from token_meter.cli.demo.screen import chosen_screen
    from token_meter.cli.demo.story import FAST, Pace, Story
    from token_meter.testing.provider import LoopbackProvider

    present = [customer for customer in CUSTOMERS if customer.possible]
    if not present:
        raise Failure(f"the demo needs the SDKs of openai, anthropic or google-genai: {INSTALL}")
    with prepared(keep or DEFAULT) as ledger, LoopbackProvider() as provider:
        if not json:
            introduce(ledger, present, [each for each in CUSTOMERS if not each.possible], url=provider.url)
        story = Story(ledger, present, pace=FAST if fast else Pace(), screen=chosen_screen(silent=json))
        outcome = story.tell(provider)
        (report_json if json else report)(outcome, ledger)
    if not outcome.reconciliation.ok:
        raise typer.Exit(TROUBLE)
