"""`token-meter prices`: what providers charge, since when and who says so; what we charge for it; and new prices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.moments import read_moment
from token_meter.cli.output import Shape, chosen_shape, note, show, write_json
from token_meter.cli.place import find
from token_meter.cli.price_sync import accept_prices, check_prices, held_prices, reject_prices, sync_prices
from token_meter.cli.price_view import (
    Ours,
    amount_text,
    condition,
    context_label,
    day,
    model_asked,
    moment_asked,
    per_text,
    price_rows,
    provider_asked,
    viewing,
)
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, did_you_mean
from token_meter.usage import TOKEN_TYPES

if TYPE_CHECKING:
    from token_meter.bookkeeping.price_impact import Effect
    from token_meter.prices import Model, Price, PriceBook

LIST: Final = (
    Column("publisher", expendable=True),
    Column("provider"),
    Column("model"),
    Column("name", expendable=True),
    Column("token_type"),
    Column("context"),
    Column("list_price", number=True),
    Column("per", quiet=True, whole=True),
    Column("multiplier", number=True),
    Column("our_price", number=True),
)
SHOW: Final = (*LIST[4:], Column("since", whole=True), Column("source", expendable=True, quiet=True))
HISTORY: Final = (
    Column("token_type"),
    Column("context"),
    Column("list_price", number=True),
    Column("per", quiet=True, whole=True),
    Column("from", whole=True),
    Column("until", whole=True),
    Column("status", whole=True),
    Column("recorded", whole=True),
    Column("id", whole=True, quiet=True),
    Column("source", expendable=True, quiet=True),
)
DIFF: Final = (
    Column("change", whole=True),
    Column("status", whole=True),
    Column("model"),
    Column("token_type"),
    Column("context"),
    Column("old", number=True),
    Column("new", number=True),
    Column("from", whole=True),
    Column("customers", number=True),
    Column("impact", "$ a month", number=True),
)
SINCE_DAYS: Final = 30
ROWS_SHOWN_MAX: Final = 500
"""A table for people ends there; --json, --csv and --markdown give everything."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model: gpt-5, or openai/gpt-5.")]
AtOption = Annotated[
    str | None, typer.Option("--at", metavar="TIME", help="As it was (or will be) then: 2026-11-01, 2026-11, 7d.")
]

app = typer.Typer(
    cls=Commands, help="The price book: look, compare, take new prices.", no_args_is_help=True, epilog=EPILOG
)


@app.command("list", epilog=EPILOG)
def list_prices(
    ledger: options.LedgerOption = None,
    publisher: Annotated[
        str | None, typer.Option("--publisher", metavar="NAME", help="Only models that this company made.")
    ] = None,
    provider: options.ProviderOption = None,
    model: options.ModelOption = None,
    token_type: Annotated[
        str | None, typer.Option("--token-type", metavar="NAME", help="Only this token type, such as output.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="Only models with this in their name or id.")
    ] = None,
    least: Annotated[
        str | None, typer.Option("--min", metavar="USD", help="Only prices of so much or more per million.")
    ] = None,
    most: Annotated[
        str | None, typer.Option("--max", metavar="USD", help="Only prices of so much or less per million.")
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="Only standard, batch, flex, priority, fast, ...")
    ] = None,
    at: AtOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """List prices: the provider's, our multiplier and our price by the default plan. Needs no ledger.

    --min and --max are for prices per million tokens or characters; calls, hours and pictures are left out then.
    """
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    moment = moment_asked(at)
    with viewing(find(ledger), named=ledger is not None) as view:
        wanted = _Wanted.read(view.book, publisher, model, token_type, name, least, most)
        models = list(view.book.models(provider_asked(view.book, provider)))
        found = [
            (price, row)
            for price, row in price_rows(filter(wanted.model_meets, models), Ours(view, moment), moment)
            if wanted.meets(price)
        ]
        found = list(_in_context(found, context))
        if shape is Shape.JSON:
            write_json({**view.head(), "prices": [{**row, **_more(price)} for price, row in found]})
            return
        rows = [row for _, row in found]
        show(Table(LIST, rows[:ROWS_SHOWN_MAX] if shape is Shape.TABLE else rows), shape)
        _say_how_many(rows, shape)
        view.say_age()


@app.command("show", epilog=EPILOG)
def show_prices(
    model: ModelArgument,
    ledger: options.LedgerOption = None,
    provider: options.ProviderOption = None,
    at: AtOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show every price of one model, now or at another time, with its date and its source."""
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    moment = moment_asked(at)
    with viewing(find(ledger), named=ledger is not None) as view:
        found = model_asked(view.book, model, provider)
        rows = list(price_rows([found], Ours(view, moment), moment))
        if shape is Shape.JSON:
            prices = [{**row, **_more(price)} for price, row in rows]
            write_json({**view.head(), **_names(found), "at": moment.isoformat(), "prices": prices})
            return
        dated = [{**row, "since": day(price.effective_from), "source": price.source} for price, row in rows]
        show(Table(SHOW, dated), shape)
        note(_who(found))
        if not rows:
            note(f"it has no price at {moment:%Y-%m-%d}; see `token-meter prices history {found.id}`")
        view.say_age()


@app.command("history", epilog=EPILOG)
def price_history(
    model: ModelArgument,
    ledger: options.LedgerOption = None,
    provider: options.ProviderOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show every price that a model has had, has, and will have; those that wait or were rejected, too."""
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    with viewing(find(ledger), named=ledger is not None) as view:
        found = model_asked(view.book, model, provider)
        prices = sorted(found.prices, key=_by_age)
        if shape is Shape.JSON:
            write_json({**view.head(), **_names(found), "prices": [price.to_json() for price in prices]})
            return
        show(Table(HISTORY, [_history_row(price) for price in prices]), shape)
        note(_who(found))
        view.say_age()


@app.command("diff", epilog=EPILOG)
def price_diff(
    ledger: options.LedgerOption = None,
    since: options.SinceOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show which prices were recorded in the ledger since then (30 days), and which are still to come.

    With whom they concern, and what they cost or save by the usage of the last 30 days.
    """
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    now = datetime.now(UTC)
    start = read_moment(since, zone=UTC, now=now) or now - timedelta(days=SINCE_DAYS)
    with viewing(find(ledger), named=ledger is not None) as view:
        found = view.desk.changes(start) if view.desk is not None else _still_to_come(view.book, now)
        if shape is Shape.JSON:
            document = [{**each.to_json(), "status": each.change.price.status} for each in found]
            write_json({**view.head(), "since": start.isoformat(), "changes": document})
            return
        show(Table(DIFF, [_diff_row(each) for each in found]), shape)
        if not found:
            note(f"nothing was recorded since {start:%Y-%m-%d}, and nothing is announced")
        view.say_age()


app.command("sync", epilog=EPILOG)(sync_prices)
app.command("check", epilog=EPILOG)(check_prices)
app.command("held", epilog=EPILOG)(held_prices)
app.command("accept", epilog=EPILOG)(accept_prices)
app.command("reject", epilog=EPILOG)(reject_prices)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which prices a list is about."""

    publisher: str | None
    model: str | None
    token_type: str | None
    name: str | None
    least: Decimal | None
    most: Decimal | None

    @classmethod
    def read(
        cls,
        book: PriceBook,
        publisher: str | None,
        model: str | None,
        token_type: str | None,
        name: str | None,
        least: str | None,
        most: str | None,
    ) -> _Wanted:
        """The options understood. Wrong usage for a token type, a publisher or a number that is none."""
        if token_type is not None and token_type not in TOKEN_TYPES:
            raise Failure(
                f"{token_type!r} is no token type.{did_you_mean(token_type, TOKEN_TYPES)} Known: "
                f"{', '.join(TOKEN_TYPES)}",
                code=WRONG_USAGE,
            )
        if publisher is not None:
            known = {each.publisher for each in book.models() if each.publisher}
            if publisher.lower() not in known:
                raise Failure(
                    f"no model is by {publisher!r}.{did_you_mean(publisher, known)} Known: {', '.join(sorted(known))}",
                    code=WRONG_USAGE,
                )
        return cls(publisher and publisher.lower(), model and model.lower(), token_type, name and name.lower(),
                   _number(least, "--min"), _number(most, "--max"))  # fmt: skip

    def model_meets(self, model: Model) -> bool:
        """Whether the model is one that was asked for."""
        names = (model.id.lower(), *model.aliases, f"{model.provider}/{model.id}".lower())
        if self.model is not None and self.model not in names:
            return False
        if self.publisher is not None and model.publisher != self.publisher:
            return False
        return self.name is None or self.name in f"{model.id} {model.display_name or ''}".lower()

    def meets(self, price: Price) -> bool:
        """Whether the price is."""
        if self.token_type is not None and price.token_type != self.token_type:
            return False
        if self.least is None and self.most is None:
            return True
        if price.unit not in ("token", "character") or price.per_million is None:
            return False
        return (self.least is None or price.per_million >= self.least) and (
            self.most is None or price.per_million <= self.most
        )


def _say_how_many(rows: Sequence[Mapping[str, Any]], shape: Shape) -> None:
    if not rows:
        note("no price matched; leave filters out")
        return
    models = len({(row["provider"], row["model"]) for row in rows})
    note(f"{counted(len(rows), 'price')} of {counted(models, 'model')}")
    if shape is Shape.TABLE and len(rows) > ROWS_SHOWN_MAX:
        note(f"the first {ROWS_SHOWN_MAX} are shown: filter, or take all of them with --csv")


def _number(text: str | None, option: str) -> Decimal | None:
    from token_meter.money import decimal_of

    try:
        return None if text is None else decimal_of(text, option)
    except ValueError as problem:
        raise Failure(str(problem), code=WRONG_USAGE) from None


def _in_context(
    found: list[tuple[Price, dict[str, Any]]], context: str | None
) -> Iterator[tuple[Price, dict[str, Any]]]:
    """Those of one context. Wrong usage for one that no price here has."""
    labels = sorted({context_label(price.context) for price, _ in found})
    wanted = context and context.strip().lower()
    if wanted and found and not any(wanted in label.split() for label in labels):
        raise Failure(
            f"none of these prices is for {context!r}.{did_you_mean(wanted, labels)} There are {', '.join(labels)}",
            code=WRONG_USAGE,
        )
    return (each for each in found if not wanted or wanted in context_label(each[0].context).split())


def _more(price: Price) -> dict[str, Any]:
    """What programs are told of a price besides what the table shows."""
    document = price.to_json()
    names = (
        "id", "amount", "unit", "currency", "context", "above_context_tokens", "inclusive", "daily", "effective_from",
        "effective_to", "recorded_at", "source", "evidence",
    )  # fmt: skip
    return {**{name: document[name] for name in names}, "per": document["per"]}


def _names(model: Model) -> dict[str, Any]:
    return {
        "provider": model.provider, "model": model.id, "name": model.display_name, "publisher": model.publisher,
        "aliases": list(model.aliases),
    }  # fmt: skip


def _who(model: Model) -> str:
    name = f" ({model.display_name})" if model.display_name else ""
    by = f" by {model.publisher}" if model.publisher and model.publisher != model.provider else ""
    also = f"; also called {', '.join(model.aliases)}" if model.aliases else ""
    return f"{model.provider}/{model.id}{name}{by}{also}"


def _by_age(price: Price) -> tuple[Any, ...]:
    order = list(TOKEN_TYPES)
    earliest = datetime.min.replace(tzinfo=UTC)
    start = price.effective_from or earliest
    return (order.index(price.token_type), price.context, price.above or 0, start, price.recorded_at or earliest)


def _history_row(price: Price) -> dict[str, Any]:
    return {
        "token_type": price.token_type,
        "context": condition(price),
        "list_price": amount_text(price.amount, price.currency),
        "per": per_text(price),
        "from": day(price.effective_from),
        "until": day(price.effective_to),
        "status": price.status,
        "recorded": day(price.recorded_at),
        "id": price.id,
        "source": price.source,
    }


def _still_to_come(book: PriceBook, now: datetime) -> list[Effect]:
    from token_meter.bookkeeping.price_desk import scheduled
    from token_meter.bookkeeping.price_impact import Effect
    from token_meter.prices.change import change_of

    return [Effect(change_of(book, price, now=now), (), 0, None) for price in scheduled(book, now)]


def _diff_row(effect: Effect) -> dict[str, Any]:
    change = effect.change
    return {
        "change": change.kind,
        "status": change.price.status,
        "model": f"{change.price.provider}/{change.price.model}",
        "token_type": change.price.token_type,
        "context": condition(change.price),
        "old": amount_text(change.old_amount),
        "new": amount_text(change.new_amount),
        "from": day(change.effective_from),
        "customers": len(effect.customers),
        "impact": amount_text(effect.impact),
    }
