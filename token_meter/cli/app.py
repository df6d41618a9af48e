"""The command line put together. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from token_meter.cli import budgets, credits, customers, deliver, events, invoice, notices, plans, prices, reconcile
from token_meter.cli.demo import demo
from token_meter.cli.doctor import doctor
from token_meter.cli.exits import EPILOG, Commands
from token_meter.cli.partners import import_usage
from token_meter.cli.setup import setup
from token_meter.cli.usage import usage
from token_meter.cli.version import version

app = typer.Typer(
    name="token-meter",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
for command in (demo, setup, usage, doctor, version):
    app.command(epilog=EPILOG)(command)
app.command("import", epilog=EPILOG)(import_usage)
app.add_typer(events.app, name="events")
app.add_typer(customers.app, name="customers")
app.add_typer(prices.app, name="prices")
app.add_typer(plans.app, name="plans")
app.add_typer(credits.app, name="credits")
app.add_typer(budgets.app, name="budgets")
app.add_typer(invoice.app, name="invoice")
app.add_typer(notices.app, name="notices")
app.add_typer(deliver.app, name="deliver")
app.add_typer(reconcile.app, name="reconcile")


def _show_version(wanted: bool) -> None:
    if wanted:
        import token_meter
        from token_meter.cli.output import write

        write(f"token-meter {token_meter.__version__}\n")
        raise typer.Exit


@app.callback()
def token_meter_command(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Meter every LLM call once, exactly, to the right customer.

    New here? `token-meter demo` needs no key. No data? `token-meter doctor` looks for it.
    """
