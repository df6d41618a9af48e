"""`token-meter prices sync, check, held, accept, reject`: new prices, and the decisions that are left to a human."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.customer_book import there_is_none
from token_meter.cli.exits import TROUBLE, WRONG_USAGE, Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import Shape, chosen_shape, note, show, write, write_json
from token_meter.cli.place import Place, find, no_ledger
from token_meter.cli.price_view import amount_text, at_desk, condition, day, shipped_book
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, printable

if TYPE_CHECKING:
    from token_meter.bookkeeping.price_desk import PriceDesk, Synced
    from token_meter.bookkeeping.price_impact import Effect
    from token_meter.prices.drift import Comparison, Disagreement
    from token_meter.prices.feeds import Fetched
    from token_meter.prices.stated import SecondSource

INSTALLED: Final = "installed"
ALL: Final = "all"
NAMES_SHOWN_MAX: Final = 5

CHANGES: Final = (
    Column("change", whole=True),
    Column("verdict", whole=True),
    Column("model"),
    Column("token_type"),
    Column("context"),
    Column("old", number=True),
    Column("new", number=True),
    Column("from", whole=True),
    Column("customers", number=True),
    Column("impact", "$ a month", number=True),
    Column("why"),
    Column("id", whole=True, quiet=True, expendable=True),
)
HELD: Final = tuple(CHANGES[place] for place in (11, 2, 3, 4, 5, 6, 7, 8, 9, 10))
DRIFT: Final = (
    Column("id", whole=True, quiet=True),
    Column("model"),
    Column("token_type"),
    Column("context"),
    Column("ours", "the book, per 1M", number=True),
    Column("theirs", "the other", number=True),
    Column("source", "the book's source", expendable=True, quiet=True),
)
SECOND_HELP: Final = "installed, or a file or URL: a genai-prices feed, or litellm's map of models."

IdsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="The prices, as `prices held` names them.")]


def sync_prices(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="installed (the genai-prices package), or a feed's file or URL.")
    ] = INSTALLED,
    ledger: options.LedgerOption = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Take also what changes by more than a factor of ten.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    second: Annotated[
        str | None, typer.Option("--second", metavar="SOURCE", help="Hold new prices against this source.")
    ] = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Take new prices into the ledger's book. Likely changes hold at once; the others wait for `prices accept`.

    Nothing is deleted. A feed that is older than the book is refused. Exits with 1 when something waits for a human.
    """
    from token_meter.prices.feeds import fetch, fetch_second

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    now, place = datetime.now(UTC), find(ledger)
    other = fetch_second(second, now=now) if second is not None else None
    first = there_is_none(place)
    # A source that gives nothing must not leave an empty ledger behind.
    fetched = fetch(source, now=now) if first else None
    if fetched is not None and dry_run:
        _report(_without_ledger(fetched, other, now), shape, dry_run=True)
        return
    catch_up(place)
    with at_desk(place, make=first) as (desk, _):
        fetched = fetched or _fetched(desk, source, now, ask_again=confirm or dry_run or other is not None)
        done = desk.preview(fetched, second=other) if dry_run else desk.sync(fetched, confirm=confirm, second=other)
    _report(done, shape, dry_run=dry_run)
    if done.waiting and not dry_run:
        raise typer.Exit(TROUBLE)


def check_prices(
    second: Annotated[str, typer.Argument(metavar="SECOND_SOURCE", help=SECOND_HELP)],
    ledger: options.LedgerOption = None,
    adjudicate: Annotated[
        list[str] | None,
        typer.Option("--adjudicate", metavar="ID", help="You looked at this one (or all): hide it from now on."),
    ] = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Compare the book with a second source, where both state a price of a provider's own model.

    Nothing is changed: a disagreement is for a human. Exits with 1 when there are any.
    """
    from token_meter.prices.feeds import fetch_second

    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    now, place = datetime.now(UTC), find(ledger)
    found = _compared(place, fetch_second(second, now=now), now, adjudicate or [])
    if shape is Shape.JSON:
        write_json(
            {
                "agreed": found.agreed, "only_book": found.only_book, "only_second": found.only_second,
                "adjudicated": len(found.adjudicated),
                "disagreements": [each.to_json() for each in found.disagreements],
            }
        )  # fmt: skip
    else:
        show(Table(DRIFT, [_drift_row(each) for each in found.disagreements]), shape)
    note(
        f"{found.agreed:,} prices agree, {len(found.disagreements):,} do not; {len(found.adjudicated):,} adjudicated; "
        f"only the book has {found.only_book:,}, only the other {found.only_second:,}"
    )
    if found.disagreements:
        raise typer.Exit(TROUBLE)


def held_prices(
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List the prices that wait for a human: what they would change, whom they concern, and why they wait."""
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    with at_desk(find(ledger)) as (desk, _):
        found = desk.held()
    if shape is Shape.JSON:
        write_json([each.to_json() for each in found])
        return
    show(Table(HELD, [_row(each) for each in found]), shape)
    note("decide with `token-meter prices accept ID` or `reject ID`" if found else "nothing waits")


def accept_prices(
    ids: IdsArgument,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="The day from which they hold, if the feed's is not the true one."),
    ] = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Let prices hold from their date on, that were held or rejected. Usage since then is rated again."""
    moment = read_moment(start, zone=UTC, now=datetime.now(UTC))
    with at_desk(find(ledger)) as (desk, _):
        done = [desk.accept(id, effective_from=moment) for id in ids]
    _say_decided(done, json, accepting=True)


def reject_prices(ids: IdsArgument, ledger: options.LedgerOption = None, json: options.JsonOption = False) -> None:
    """Let prices not hold, also those that did already: the price before holds again, and usage is rated again.

    A price of the shipped book can be rejected, too: `token-meter prices history MODEL` tells the ids.
    """
    with at_desk(find(ledger)) as (desk, _):
        done = [desk.reject(id) for id in ids]
    _say_decided(done, json, accepting=False)


def _say_decided(done: Sequence[Effect], json: bool, *, accepting: bool) -> None:
    if json:
        write_json([each.to_json() for each in done])
        return
    for each in done:
        price, change = each.change.price, each.change
        what = f"{price.provider}/{price.model} {price.token_type} ({condition(price)})"
        since = day(change.effective_from) or "always"
        outcome = (
            f"costs {amount_text(change.new_amount)} since {since}"
            if accepting
            else f"stays at {amount_text(change.old_amount) or 'no price'}"
        )
        write(printable(f"{price.id}: {what} {outcome}") + "\n")


def _fetched(desk: PriceDesk, source: str, now: datetime, *, ask_again: bool) -> Fetched:
    from token_meter.prices.feeds import fetch, shown

    return fetch(source, now=now, etag=None if ask_again else desk.etag(shown(source)))


def _without_ledger(fetched: Fetched, second: SecondSource | None, now: datetime) -> Synced:
    """What a feed would change in the shipped book."""
    from token_meter.bookkeeping.price_desk import Synced
    from token_meter.bookkeeping.price_impact import Effect
    from token_meter.prices.merge import merge

    assert fetched.feed is not None
    merged = merge(shipped_book(), fetched.feed, now=now, second=second)
    found = tuple(Effect(change, (), 0, None) for change in merged.changes)
    return Synced(fetched.source, fetched.version, False, found, merged.agreed, merged.lagging, names=merged.names)


def _report(done: Synced, shape: Shape, *, dry_run: bool) -> None:
    if shape is Shape.JSON:
        write_json(
            {
                "source": done.source, "version": done.version, "unchanged": done.unchanged, "dry_run": dry_run,
                "agreed": done.agreed, "lagging": done.lagging, "rated": done.rated,
                "changes": [each.to_json() for each in done.effects],
                "superseded": [row.id for row in done.superseded],
                "names": [each._asdict() for each in done.names],
            }
        )  # fmt: skip
        return
    show(Table(CHANGES, [_row(each) for each in done.effects]), shape)
    if done.unchanged:
        note(f"{done.source} has nothing newer")
        return
    note(f"{done.source} {done.version}: {done.agreed:,} prices are as they were")
    if done.rated:
        note(f"{counted(done.rated, 'event')} rated again")
    if done.superseded:
        waited = counted(len(done.superseded), "price that waited is", "prices that waited are")
        note(f"{waited} no longer stated by the source, and dropped")
    if done.names:
        some = ", ".join(f"{each.provider}/{each.name} is {each.model}" for each in done.names[:NAMES_SHOWN_MAX])
        names = counted(len(done.names), "name that the book does not know", "names that the book does not know")
        note(printable(f"the source has {names} (for `aliases` in your overrides): {some}"))
    held = sum(1 for each in done.waiting if each.change.verdict == "held")
    if held:
        note(f"{counted(held, 'price')} held: see `token-meter prices held`")
    if len(done.waiting) > held:
        note(f"{counted(len(done.waiting) - held, 'price')} refused: --confirm takes them after all")


def _compared(place: Place, second: SecondSource, now: datetime, adjudicate: Sequence[str]) -> Comparison:
    from token_meter.prices.drift import compare

    if there_is_none(place):
        if adjudicate:
            raise no_ledger(place)
        return compare(shipped_book(), second, at=now)
    with at_desk(place) as (desk, _):
        found = desk.check(second)
        if adjudicate:
            desk.adjudicate(_chosen(found, adjudicate))
            found = desk.check(second)
    return found


def _chosen(found: Comparison, ids: Sequence[str]) -> list[Disagreement]:
    known = {each.id: each for each in (*found.disagreements, *found.adjudicated)}
    if ALL in ids:
        return list(known.values())
    for id in ids:
        if id not in known:
            raise Failure(
                f"there is no disagreement {id!r}: run this without --adjudicate to see them", code=WRONG_USAGE
            )
    return [known[id] for id in ids]


def _row(effect: Effect) -> dict[str, Any]:
    change = effect.change
    return {
        "change": change.kind,
        "verdict": change.verdict,
        "model": f"{change.price.provider}/{change.price.model}",
        "token_type": change.price.token_type,
        "context": condition(change.price),
        "old": amount_text(change.old_amount),
        "new": amount_text(change.new_amount),
        "from": day(change.effective_from),
        "customers": len(effect.customers),
        "impact": amount_text(effect.impact),
        "why": change.why or "",
        "id": change.price.id,
    }


def _drift_row(found: Disagreement) -> dict[str, Any]:
    above = f", above {found.above:,} tokens" if found.above is not None else ""
    label = " ".join(key if value == "yes" else value for key, value in found.context) or "standard"
    return {
        "id": found.id,
        "model": f"{found.provider}/{found.model}",
        "token_type": found.token_type,
        "context": label + above,
        "ours": amount_text(found.ours),
        "theirs": amount_text(found.theirs),
        "source": found.source,
    }
