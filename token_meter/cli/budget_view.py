"""How budgets, what is used of them and what is held look to people, and to programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.output import on_terminal, write
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import printable
from token_meter.money import plain

if TYPE_CHECKING:
    from token_meter.budgets.budget import Budget
    from token_meter.budgets.desk import Standing
    from token_meter.budgets.hold import Held


def scope_text(budget: Budget) -> str:
    said = {"*": "each {name}", "": "no {name}"}
    return ", ".join(
        said.get(value, "{name}={value}").format(name=name, value=value) for name, value in budget.scope
    ) or "everybody"  # fmt: skip


def limit_text(budget: Budget) -> str:
    if not budget.is_money:
        return f"{int(budget.limit):,} {budget.measure}"
    return f"{plain(budget.limit)} {budget.currency}" + (" of cost" if budget.measure == "cost" else "")


def whose(standing: Standing) -> str:
    return standing.budget.whose(standing.subject)


@contextmanager
def screen(*, still: bool) -> Iterator[Callable[[str], None]]:
    """Draws each picture in the place of the last one on a terminal, and below it elsewhere."""
    if still or not on_terminal():
        yield write
        return
    from rich.live import Live
    from rich.text import Text

    from token_meter.cli.terminal import console

    with Live(console=console(), auto_refresh=False) as live:
        yield lambda text: live.update(Text(text.rstrip("\n")), refresh=True)


def standings_table(found: Sequence[Standing], *, on_screen: bool) -> Table:
    if on_screen:
        return _on_screen(found)
    rows = [
        {"budget": each.budget.label, "whose": whose(each), "spent": plain(each.spent), "held": plain(each.held),
         "lost": plain(each.lost), "left": plain(each.available), "limit": plain(each.budget.limit),
         "of": each.budget.unit, "used": f"{each.percent} %",
         "until": None if each.until is None else f"{each.until:%Y-%m-%d %H:%M}"}
        for each in found
    ]  # fmt: skip
    columns = (Column("budget", expendable=True), Column("whose", whole=True), Column("spent", number=True),
               Column("held", number=True), Column("lost", number=True), Column("left", number=True),
               Column("limit", number=True), Column("of"), Column("used", number=True),
               Column("until", whole=True))  # fmt: skip
    return Table(columns, rows, nothing="")


def _on_screen(found: Sequence[Standing]) -> Table:
    """What fits a terminal of 80 columns: held and lost only where there is any."""
    rows = [
        {"budget": each.budget.name or each.budget.id[:PREFIX], "whose": whose(each), "per": str(each.budget.window),
         "spent": plain(each.spent), "held": plain(each.held), "lost": plain(each.lost),
         "left": plain(each.available), "of": each.budget.shown(each.budget.parts_max), "used": f"{each.percent} %",
         "until": _until(each)}
        for each in found
    ]  # fmt: skip
    reserved = [name for name in ("held", "lost") if any(getattr(each, name) for each in found)]
    columns = (
        Column("budget"), Column("whose"), Column("per"), Column("spent", number=True),
        *(Column(name, number=True) for name in reserved), Column("left", number=True), Column("of", number=True),
        Column("used", number=True), Column("until", whole=True, expendable=True),
    )  # fmt: skip
    return Table(columns, rows, nothing="")


PREFIX: Final = 12
"""So much of an id is shown, and is enough to name a budget."""


def _until(standing: Standing) -> str | None:
    """In the budget's own time zone, and the time only where it is not midnight."""
    if standing.until is None:
        return None
    local = standing.until.astimezone(standing.budget.zone)
    return f"{local:%Y-%m-%d}" if (local.hour, local.minute) == (0, 0) else f"{local:%Y-%m-%d %H:%M}"


def hold_document(hold: Held, budgets: Mapping[str, Any]) -> dict[str, Any]:
    from token_meter.ledger.rows import EPOCH, MICROSECOND

    held = [
        {"budget": part.budget, "amount": plain(budgets[part.budget].amount(part.amount)),
         "unit": budgets[part.budget].unit}
        if part.budget in budgets else {"budget": part.budget, "parts": part.amount}
        for part in hold.parts
    ]  # fmt: skip
    return {
        "id": hold.id, "state": hold.state, "since": (EPOCH + MICROSECOND * hold.created).isoformat(),
        "customer": hold.caller.get("customer"), "model": hold.caller.get("model"), "held": held,
        "process": hold.caller.get("process"),
    }  # fmt: skip


def hold_row(hold: Held, budgets: dict[str, Any]) -> dict[str, Any]:
    held = [
        budgets[part.budget].shown(part.amount) if part.budget in budgets else f"{part.amount} of {part.budget}"
        for part in hold.parts
    ]
    since = datetime.fromtimestamp(hold.created // 1_000_000, UTC)
    return {
        "id": hold.id, "state": hold.state, "since": f"{since:%m-%d %H:%M:%S}",
        "customer": hold.caller.get("customer"), "model": hold.caller.get("model"), "held": ", ".join(held),
        "process": hold.caller.get("process"),
    }  # fmt: skip


WIDTH = 30


def bar(standing: Standing) -> str:
    """`acme  ████▒▒······  42 %  4.2 of 10 USD`: spent, held and lost, left."""
    limit = standing.budget.limit
    full = WIDTH if not limit else min(WIDTH, int(standing.spent * WIDTH / limit))
    reserved = 0 if not limit else min(WIDTH - full, -int(-(standing.held + standing.lost) * WIDTH // limit))
    drawn = "█" * full + "▒" * reserved + "·" * (WIDTH - full - reserved)
    reserves = "".join(
        f", {plain(some)} {what}" for some, what in ((standing.held, "held"), (standing.lost, "lost")) if some
    )
    name = f"{standing.budget.name}: {whose(standing)}" if standing.budget.name else whose(standing)
    return printable(
        f"{name:<28} {drawn} {standing.percent:>3} %  {plain(standing.spent)} of {plain(limit)} {standing.budget.unit} "
        f"per {standing.budget.window.shown}{reserves}, {plain(standing.available)} left"
    )
