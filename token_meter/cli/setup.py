"""`token-meter setup`: meters, a rate card and a default plan in one step."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from token_meter.cli import options
from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import note, write, write_json
from token_meter.cli.place import find
from token_meter.cli.rated import rated

if TYPE_CHECKING:
    from token_meter.billing.catalogue import Catalogue

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
    currency: Annotated[
        str | None, typer.Option("--currency", metavar="CODE", help="What customers pay in. Default: USD.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="From then on, also in the past: 2026-11-01. Default: now."),
    ] = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Set prices up: everybody without a plan of their own is charged cost plus a markup.

    Run it again to change one of them: it holds at once for new usage, what was used before keeps its price, and what
    is not named stays (--monthly-fee 0 takes the fee away).
    """
    from token_meter.bookkeeping.plan_book import PlanBook
    from token_meter.bookkeeping.plan_files import read_plans

    if markup is None and api_call is None and monthly_fee is None:
        raise Failure("say what to charge: `token-meter setup --markup 30`", code=WRONG_USAGE)
    # What is wrong shows before anything is made.
    _check(Charged(markup, api_call, monthly_fee, currency))
    moment = read_moment(since, zone=UTC, now=datetime.now(UTC))
    place = find(ledger, journal)
    with rated(place, make=True) as opened:
        book = PlanBook(opened)
        before, now = book.catalogue(), datetime.now(UTC)
        charged = Charged(markup, api_call, monthly_fee, currency).over(_before(before, moment or now))
        changed = book.keep(read_plans(_document(charged)), effective_from=moment)
        book.set_default(STANDARD, effective_from=moment)
        used_before = since is None and bool(opened.usage(by=(), mode="live"))
    if json:
        write_json({"ledger": place.shown, "changed": changed, "default_plan": STANDARD})
        return
    if changed:
        write(f"{_told(charged)}, from {since or 'now'} on ({', '.join(changed)})\n")
        if used_before:
            note("what was used before keeps its price; to charge it like this, too, say --since with a date")
    else:
        write(f"{_told(charged)}: it was so already\n")
    for each in _to_come(before, max(moment or now, now)):
        note(f"what was set up for {each:%Y-%m-%d} on holds from then on, as it was said")
    note(f"see what that means: token-meter usage --cost{place.again}, token-meter invoice show CUSTOMER{place.again}")


def _check(charged: Charged) -> None:
    """Raises Failure naming the option that is wrong."""
    from token_meter.bookkeeping.plan_files import read_plans
    from token_meter.errors import InvalidPlan

    for option, alone in (
        ("--markup", Charged(markup=charged.markup)), ("--api-call", Charged(api_call=charged.api_call)),
        ("--monthly-fee", Charged(monthly_fee=charged.monthly_fee)), ("--currency", Charged(currency=charged.currency)),
    ):  # fmt: skip
        try:
            read_plans(_document(alone))
        except InvalidPlan as problem:
            raise Failure(f"{option}: {str(problem).splitlines()[0].rpartition(': ')[2]}", code=WRONG_USAGE) from None


class Charged(NamedTuple):
    """What `setup` sets up; None: not said."""

    markup: str | None = None
    api_call: str | None = None
    monthly_fee: str | None = None
    currency: str | None = None

    def over(self, before: Charged) -> Charged:
        """What is said now, and what was said before for the rest."""
        return Charged(*(old if new is None else new for new, old in zip(self, before, strict=True)))


def _before(catalogue: Catalogue, moment: datetime) -> Charged:
    """What holds at this moment. Failure if the rate card or the plan has become something else meanwhile."""
    from token_meter.billing.fields import document
    from token_meter.bookkeeping.plan_files import read_plans
    from token_meter.money import plain

    kept_card, kept_plan = catalogue.card_at(STANDARD, moment), catalogue.plan_at(STANDARD, moment)
    if kept_card is None or kept_plan is None:
        return Charged()
    card, plan = kept_card.content, kept_plan.content
    found = Charged(currency=card.currency)
    for rate in card.rates:
        if rate.cost_plus is not None and rate.meter == "llm_tokens":
            found = found._replace(markup=plain((rate.cost_plus.factor - 1) * 100))
        elif rate.per_unit is not None and rate.meter == "api_calls":
            found = found._replace(api_call=plain(rate.per_unit))
    for fee in plan.fees:
        found = found._replace(monthly_fee=plain(fee.amount))
    if document(read_plans(_document(found)).rate_cards[0]) != document(card) or (
        document(read_plans(_document(found)).plans[0]) != document(plan)
    ):
        raise Failure(
            f"the rate card or the plan {STANDARD!r} says more than `setup` can say: change it in a file "
            f"(`token-meter plans show {STANDARD}`, `token-meter plans apply FILE`)"
        )
    return found


def _to_come(catalogue: Catalogue, after: datetime) -> list[datetime]:
    """When something that was set up before will begin to hold, after this moment."""
    dates = {each.effective_from for each in catalogue.cards.get(STANDARD, ())}
    dates |= {each.effective_from for each in catalogue.plans.get(STANDARD, ())}
    return sorted(each for each in dates if each > after)


def _document(charged: Charged) -> dict[str, Any]:
    currency = charged.currency or "USD"
    rates: list[dict[str, Any]] = [{"meter": "llm_tokens", "cost_plus": {"markup": charged.markup or "0"}}]
    if _is_some(charged.api_call):
        rates.append({"meter": "api_calls", "per_unit": charged.api_call})
    plan: dict[str, Any] = {"name": STANDARD, "currency": currency, "rate_cards": [STANDARD]}
    if _is_some(charged.monthly_fee):
        plan["fees"] = [{"title": "Monthly fee", "amount": charged.monthly_fee}]
    return {"rate_cards": [{"name": STANDARD, "currency": currency, "rates": rates}], "plans": [plan]}


def _is_some(amount: str | None) -> bool:
    return amount is not None and amount.strip("0. ") != ""


def _told(charged: Charged) -> str:
    currency = charged.currency or "USD"
    parts = [f"cost + {(charged.markup or '0').strip().removesuffix('%')} %"]
    parts += [f"{charged.api_call} {currency} a call"] if _is_some(charged.api_call) else []
    parts += [f"{charged.monthly_fee} {currency} a month"] if _is_some(charged.monthly_fee) else []
    return f"everybody without a plan of their own is charged {', '.join(parts)}"
