"""`token-meter setup`: meters, a rate card and a default plan in one step."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import note, write, write_json
from token_meter.cli.place import find
from token_meter.cli.rated import rated

STANDARD: Final = "standard"
"""The name of the rate card and the plan that `setup` keeps."""


def setup(
    markup: Annotated[
        str | None,
        typer.Option("--markup", metavar="PERCENT", help="On what providers charge: 30 charges 1.30 times the cost."),
    ] = None,
    api_call: Annotated[
        str | None, typer.Option("--api-call", metavar="PRICE", help="Besides, so much for each call: 0.01.")
    ] = None,
    monthly_fee: Annotated[
        str | None, typer.Option("--monthly-fee", metavar="AMOUNT", help="Besides, so much a month.")
    ] = None,
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="What customers pay in.")] = "USD",
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="From then on, also in the past: 2026-11-01. Default: now."),
    ] = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Set prices up: everybody without a plan of their own is charged cost plus a markup.

    Run it again to change the markup: it holds at once for new usage, and what was used before keeps its price.
    """
    from token_meter.bookkeeping.plan_book import PlanBook
    from token_meter.bookkeeping.plan_files import read_plans

    if markup is None and api_call is None and monthly_fee is None:
        raise Failure("say what to charge: `token-meter setup --markup 30`", code=WRONG_USAGE)
    plans = read_plans(_document(markup, api_call, monthly_fee, currency))
    moment = read_moment(since, zone=UTC, now=datetime.now(UTC))
    place = find(ledger, journal)
    with rated(place, make=True) as opened:
        book = PlanBook(opened)
        changed = book.keep(plans, effective_from=moment)
        book.set_default(STANDARD, effective_from=moment)
    if json:
        write_json({"ledger": place.shown, "changed": changed, "default_plan": STANDARD})
        return
    if changed:
        write(f"{_told(markup, api_call, monthly_fee, currency)}, from {since or 'now'} on ({', '.join(changed)})\n")
    else:
        write(f"{_told(markup, api_call, monthly_fee, currency)}: it was so already\n")
    note(f"see what that means: token-meter usage --cost{place.again}, token-meter invoice show CUSTOMER{place.again}")


def _document(markup: str | None, api_call: str | None, monthly_fee: str | None, currency: str) -> dict[str, Any]:
    rates: list[dict[str, Any]] = []
    rates.append({"meter": "llm_tokens", "cost_plus": {"markup": markup or "0"}})
    if api_call is not None:
        rates.append({"meter": "api_calls", "per_unit": api_call})
    plan: dict[str, Any] = {"name": STANDARD, "currency": currency, "rate_cards": [STANDARD]}
    if monthly_fee is not None:
        plan["fees"] = [{"title": "Monthly fee", "amount": monthly_fee}]
    return {"rate_cards": [{"name": STANDARD, "currency": currency, "rates": rates}], "plans": [plan]}


def _told(markup: str | None, api_call: str | None, monthly_fee: str | None, currency: str) -> str:
    parts = [f"cost + {(markup or '0').strip().removesuffix('%')} %"]
    parts += [f"{api_call} {currency} a call"] if api_call is not None else []
    parts += [f"{monthly_fee} {currency} a month"] if monthly_fee is not None else []
    return f"everybody without a plan of their own is charged {', '.join(parts)}"
