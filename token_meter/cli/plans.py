"""`token-meter plans`: rate cards, plans, meters, and who is on which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.customer_book import there_is_none
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import Shape, chosen_shape, note, show, write, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.rated import rated
from token_meter.cli.subscriptions import (
    PlanArgument,
    SinceOption,
    cancel,
    list_subscriptions,
    subscribe,
    unsubscribe,
)
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, did_you_mean

if TYPE_CHECKING:
    from token_meter.billing.catalogue import Catalogue
    from token_meter.billing.credit import Pack
    from token_meter.billing.meters import MeterDefinition

EXAMPLE: Final = """\
# Keep it with: token-meter plans apply FILE
meters:
  - {name: documents, aggregation: sum, unit: document, title: Documents}

rate_cards:
  - name: standard
    currency: USD
    rates:
      - meter: llm_tokens
        cost_plus: {markup: 30%}            # on what the provider charges us
        overrides:
          - {model: "gpt-5*", token_type: output, markup: 50%}
      - meter: api_calls
        per_unit: 0.01
      - meter: documents
        graduated:                          # also: volume, package, flat, per_unit, matrix
          - {up_to: 1000, price: 0.05}
          - {up_to: inf, price: 0.03}

plans:
  - name: pro
    period: month                           # day, week, month, quarter, year
    fees: [{title: Base fee, amount: 20.00}]
    included: [{meter: llm_tokens, quantity: 1_000_000, where: {token_type: input}}]
    rate_cards: [standard]
    discounts: [{title: Launch discount, percent: 10}]
"""

app = typer.Typer(
    cls=Commands, help="What is charged: rate cards, plans, subscriptions.", no_args_is_help=True, epilog=EPILOG
)


@app.command("list", epilog=EPILOG)
def list_plans(
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List plans, rate cards, packs and your meters as they are now, and how many customers are on each plan."""
    from token_meter.bookkeeping.plan_book import PlanBook

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    place = find(ledger)
    with reading(place) as opened:
        found = [*_rows(_catalogue(opened)), *_pack_rows(PlanBook(opened).packs())]
    if shape is Shape.JSON:
        write_json(found)
        return
    columns = (Column("kind", quiet=True), Column("name"), Column("version", number=True), Column("since", whole=True),
               Column("currency"), Column("charges"), Column("customers", number=True))  # fmt: skip
    show(Table(columns, found, nothing=""), shape)
    if not found:
        note(f"no plans yet: `token-meter setup --markup 30{place.again}`, or `token-meter plans example`")


@app.command("show", epilog=EPILOG)
def show_plan(plan: PlanArgument, ledger: options.LedgerOption = None, json: options.JsonOption = False) -> None:
    """Show a plan or a rate card with everything in it, as it would stand in a file."""
    from token_meter.billing.fields import document

    with reading(find(ledger)) as opened:
        catalogue = _catalogue(opened)
    name, _, number = plan.partition("@")
    versions: list[Any] = [*catalogue.plans.get(name, ()), *catalogue.cards.get(name, ())]
    wanted = [each for each in versions if not number or str(each.number) == number]
    if not wanted:
        hint = did_you_mean(name, [*catalogue.plans, *catalogue.cards])
        raise Failure(f"there is no plan or rate card {plan!r}.{hint}")
    if json:
        write_json(
            [
                {"version": each.number, "effective_from": each.effective_from.isoformat(), **document(each.content)}
                for each in wanted
            ]
        )
        return
    import yaml

    now = datetime.now(UTC)
    kinds: tuple[tuple[str, Sequence[Any], Callable[..., Any]], ...] = (
        ("plans", catalogue.plans.get(name, ()), catalogue.plan_at),
        ("rate_cards", catalogue.cards.get(name, ()), catalogue.card_at),
    )
    for kind, mine, in_force in kinds:
        chosen = [each for each in mine if each in wanted]
        if not chosen:
            continue
        each = chosen[-1] if number else (in_force(name, now) or chosen[-1])
        write(f"# {each.label}, from {each.effective_from:%Y-%m-%d %H:%M} UTC on; versions: {_numbers(mine)}\n")
        write(yaml.safe_dump({kind: [document(each.content)]}, sort_keys=False, allow_unicode=True))


@app.command("apply", epilog=EPILOG)
def apply_plans(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML: `token-meter plans example` shows one.")],
    since: SinceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and keep nothing.")] = False,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Keep the meters, rate cards and plans of a file; what differs from what is kept becomes another version."""
    from token_meter.bookkeeping.plan_book import PlanBook, check_plans
    from token_meter.bookkeeping.plan_files import read_plans

    plans = read_plans(file)
    place = find(ledger, journal)
    if dry_run:
        if there_is_none(place):
            check_plans(plans)
        else:
            with reading(place) as opened:
                check_plans(plans, _catalogue(opened))
        told = [f"{len(plans.meters)} meters", f"{len(plans.rate_cards)} rate cards", f"{len(plans.plans)} plans"]
        write(f"{file} can be kept: {', '.join(told)}; nothing was\n")
        return
    moment = read_moment(since, zone=UTC, now=datetime.now(UTC))
    with rated(place, make=True) as opened:
        changed = PlanBook(opened).keep(plans, effective_from=moment)
    if json:
        write_json({"changed": changed})
    else:
        write(f"kept {', '.join(changed)}\n" if changed else "nothing differs from what is kept\n")


app.command("subscriptions", epilog=EPILOG)(list_subscriptions)
app.command("subscribe", epilog=EPILOG)(subscribe)
app.command("unsubscribe", epilog=EPILOG)(unsubscribe)
app.command("cancel", epilog=EPILOG)(cancel)


@app.command("default", epilog=EPILOG)
def default(
    plan: Annotated[str | None, typer.Argument(metavar="PLAN", help="The plan; none: at cost.")] = None,
    since: SinceOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Choose the plan of customers who have none of their own; without PLAN they are charged at cost."""
    from token_meter.bookkeeping.plan_book import PlanBook

    moment = read_moment(since, zone=UTC, now=datetime.now(UTC))
    with rated(find(ledger, journal), make=True) as opened:
        PlanBook(opened).set_default(plan, effective_from=moment)
    if json:
        write_json({"default_plan": plan})
    else:
        write(f"customers without a plan of their own are {'on ' + plan if plan else 'charged at cost'}\n")


@app.command("estimated", epilog=EPILOG)
def estimated(
    wanted: Annotated[str, typer.Argument(metavar="yes|no", help="Whether estimated usage is charged.")],
    since: SinceOption = None,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Say whether usage is charged that had to be estimated. It is, unless you say no."""
    from token_meter.bookkeeping.plan_book import PlanBook

    if wanted not in ("yes", "no"):
        raise Failure(f"say yes or no, not {wanted!r}", code=WRONG_USAGE)
    with rated(find(ledger, journal), make=True) as opened:
        moment = read_moment(since, zone=UTC, now=datetime.now(UTC))
        PlanBook(opened).set_bill_estimated(wanted == "yes", effective_from=moment)
    if json:
        write_json({"bill_estimated": wanted == "yes"})
    else:
        write(f"estimated usage is {'' if wanted == 'yes' else 'not '}charged from {since or 'now'} on\n")


@app.command("example", epilog=EPILOG)
def example(json: options.JsonOption = False) -> None:
    """Print a file with a rate card and a plan, to start from."""
    if not json:
        write(EXAMPLE)
        return
    from token_meter.documents import read_document

    write_json(read_document(EXAMPLE, name="example").content)


def _numbers(versions: Sequence[Any]) -> str:
    return ", ".join(str(each.number) for each in versions)


def _catalogue(ledger: Any) -> Catalogue:
    from token_meter.bookkeeping.plan_book import PlanBook

    return PlanBook(ledger).catalogue()


def _rows(catalogue: Catalogue) -> Iterator[dict[str, Any]]:
    from token_meter.billing.meters import BUILT_IN

    now = datetime.now(UTC)
    default_plan = catalogue.default_at(now)
    for name, plans in sorted(catalogue.plans.items()):
        plan = catalogue.plan_at(name, now) or plans[-1]
        on_it = [each for mine in catalogue.subscriptions.values() for each in mine if each.plan == name]
        content = plan.content
        parts = [*(f"{fee.amount} {fee.title}" for fee in content.fees), *content.rate_cards]
        parts += ["own rates"] if content.rates else []
        parts += [f"{counted(len(content.included), 'inclusion')}"] if content.included else []
        yield {
            "kind": "plan (default)" if name == default_plan else "plan",
            "name": name,
            "version": plan.number,
            "since": f"{plan.effective_from:%Y-%m-%d %H:%M}",
            "currency": content.currency,
            "charges": f"per {content.period}: {', '.join(parts)}",
            "customers": len({each.customer for each in on_it if each.holds_at(now)}),
        }
    for name, cards in sorted(catalogue.cards.items()):
        card = catalogue.card_at(name, now) or cards[-1]
        yield {
            "kind": "rate card",
            "name": name,
            "version": card.number,
            "since": f"{card.effective_from:%Y-%m-%d %H:%M}",
            "currency": card.content.currency,
            "charges": ", ".join(f"{rate.meter} {_way(rate)}" for rate in card.content.rates),
        }

    for name, meter in sorted(catalogue.meters.items()):
        if name not in BUILT_IN:
            yield {"kind": "meter", "name": name, "charges": _counts(meter)}


def _counts(meter: MeterDefinition) -> str:
    counted_are = "events" if meter.aggregation == "count" else meter.of or f"{meter.unit}s"
    return f"{meter.aggregation} of {counted_are}"


def _pack_rows(packs: Mapping[str, Pack]) -> Iterator[dict[str, Any]]:
    from token_meter.money import plain

    for name, pack in sorted(packs.items()):
        until = f", for {pack.expires_days:,} days" if pack.expires_days else ""
        what = f"{plain(pack.price)} for {plain(pack.amount)} of credit{until}"
        yield {"kind": "pack", "name": name, "currency": pack.currency, "charges": what}


def _way(rate: Any) -> str:
    from token_meter.money import plain

    if rate.cost_plus is not None:
        return f"x {plain(rate.cost_plus.factor)} of cost"
    if rate.per_unit is not None:
        return f"{plain(rate.per_unit)} each" if rate.per == 1 else f"{plain(rate.per_unit)} per {rate.per:,}"
    return str(rate.kind).replace("_", " ")
