"""What the tests of stores share: requests by hand, and what is kept afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from token_meter.budgets.hold import Part, Request
from token_meter.budgets.rows import make_counters
from token_meter.budgets.window import ROLLING
from token_meter.ledger import Ledger
from token_meter.ledger.tables import holds, spend

NOW = 1_764_000_000_000_000
MINUTE = 60_000_000


def part(amount: int, limit: int | None = 100, *, budget: str = "b", subject: str = '["acme"]', start: int = 0) -> Part:
    """A part of a calendar window."""
    return Part(budget, subject, start, amount, limit=limit)


def rolling(amount: int, limit: int, *, at: int = NOW, length: int = 60 * MINUTE) -> Part:
    """A part of a rolling window of an hour, in buckets of a minute."""
    bucket = length // 60
    return Part("r", '["acme"]', ROLLING, amount, at // bucket * bucket, limit, length)


@dataclass
class Kit:
    """A store of holds. `ledger` is where it keeps them; None: in memory."""

    store: Any
    ledger: Ledger | None

    @property
    def engine(self) -> str:
        """memory, sqlite or postgresql."""
        if self.ledger is None:
            return "memory"
        return "sqlite" if self.ledger.file is not None else "postgresql"

    def make(self, *parts: Part) -> None:
        """Have the counters ready."""
        if self.ledger is not None:
            with self.ledger.writing() as (store, connection):
                make_counters(store, connection, [(each.key, 0) for each in parts])

    def hold(self, id: str, *parts: Part, now: int = NOW, lives: int = MINUTE, sent: bool = True) -> Any:
        """Ask for a hold; its counters are made if they are missing."""
        request = Request(id, tuple(sorted(parts, key=lambda each: each.key)), now, now + lives, sent=sent)
        verdict = self.store.hold(request)
        if verdict.kind == "missing":
            self.make(*parts)
            verdict = self.store.hold(request)
        return verdict

    def used(self, part: Part) -> tuple[int, int, int]:
        """What is spent, held and lost where a part counts."""
        if self.ledger is None:
            return self.store.used(part)
        with self.ledger.reading() as (_, connection):
            rows = connection.execute(
                select(spend).where(spend.c.budget == part.budget, spend.c.subject == part.subject)
            ).all()
        main = next((row for row in rows if row.start == part.start), None)
        if main is None:
            return 0, 0, 0
        spent = main.spent
        if part.rolling:
            spent = sum(row.spent for row in rows if row.start >= 0 and row.start > part.bucket - part.rolling)
        return spent, main.held, main.lost

    def clear(self) -> None:
        """Forget every hold and counter."""
        if self.ledger is None:
            self.store._holds.clear()
            self.store._counters.clear()
            return
        for table in (holds, spend):
            statement = f"DELETE FROM {table.name}"
            self.ledger.quickly(lambda connection, statement=statement: connection.execute(statement))

    def states(self) -> dict[str, str]:
        """The holds that are kept, and their states."""
        if self.ledger is None:
            return {id: each.state for id, each in self.store._holds.items()}
        with self.ledger.reading() as (_, connection):
            return {row.id: row.state for row in connection.execute(select(holds.c.id, holds.c.state))}


def names(count: int) -> Sequence[str]:
    """So many ids."""
    return [f"call-{number}" for number in range(count)]
