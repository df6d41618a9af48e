"""`token-meter usage --cost`: what usage cost, what is charged for it, and the margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.tables import Column, Row, Table
from token_meter.money import EXACT, ZERO, plain

if TYPE_CHECKING:
    from token_meter.ledger import Ledger
    from token_meter.ledger.costs import CostRow

SHOWN_DECIMALS: Final = 6
REASONS_SHOWN_MAX: Final = 5


class CostReport:
    """Costs as they are shown: one row per group, their total, and what has no price."""

    def __init__(self, keys: Sequence[str], bucket: str | None, rows: Sequence[CostRow]) -> None:
        self.keys = keys
        self.bucket = bucket
        self.rows = rows

    @classmethod
    def read(
        cls, ledger: Ledger, keys: Sequence[str], *, bucket: str | None, time_zone: str, filters: Mapping[str, Any]
    ) -> CostReport:
        """Ask the ledger."""
        query: Any = ledger.costs  # the keywords are checked: they are the ledger's own filters
        try:
            return cls(keys, bucket, query(by=keys, bucket=bucket, time_zone=time_zone, **filters))
        except ValueError as error:
            raise Failure(str(error), code=WRONG_USAGE) from None

    def table(self) -> Table:
        """Group keys, calls, tokens, cost, charge, margin; money to the sixth decimal, exact in JSON."""
        columns = [Column("bucket", title=self.bucket)] if self.bucket else []
        columns += [Column(name) for name in self.keys]
        columns += [Column(name, number=True) for name in ("calls", "tokens", "cost", "charge", "margin")]
        columns += [Column("unpriced", number=True)] if any(row.unpriced for row in self.rows) else []
        rows = [self._row(row) for row in self.rows]
        return Table(columns, rows, self._total(columns[0].name) if rows else None, nothing="(none)")

    def document(self) -> dict[str, Any]:
        """The same for programs, exact."""
        return {
            "by": list(self.keys),
            "bucket": self.bucket,
            "currency": "USD",
            "rows": [_document(row) for row in self.rows],
            "total": {
                "cost": plain(self.cost),
                "charges": {currency: plain(amount) for currency, amount in self.charges.items()},
                "complete": not any(row.unpriced for row in self.rows),
            },
        }

    @property
    def cost(self) -> Decimal:
        """What everything with a price cost."""
        return _sum(row.cost for row in self.rows)

    @property
    def charges(self) -> dict[str, Decimal]:
        """What is charged for it, by currency."""
        found: dict[str, Decimal] = {}
        for row in self.rows:
            for currency, amount in row.charges.items():
                found[currency] = EXACT.add(found.get(currency, ZERO), amount)
        return found

    def footnotes(self) -> list[str]:
        """What is not in these sums, and what is sold below cost."""
        reasons: dict[str, int] = {}
        for row in self.rows:
            for reason, quantity in row.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + quantity
        ordered = sorted(reasons.items(), key=lambda each: -each[1])
        notes = [
            f"unpriced, in no sum: {quantity:,} units: {reason}" for reason, quantity in ordered[:REASONS_SHOWN_MAX]
        ]
        if len(ordered) > REASONS_SHOWN_MAX:
            notes.append(f"... and {len(ordered) - REASONS_SHOWN_MAX} other reasons")
        waiting = sum(sum(row.provisional.values()) for row in self.rows)
        if waiting:
            notes.append(
                f"provisional: {waiting:,} units are costed at a price whose rise waits for you: "
                "see `token-meter prices held`"
            )
        if any(row.uncharged for row in self.rows):
            notes.append("some usage has no price of ours yet: see `token-meter plans list`")
        uncovered = sum(sum(row.uncovered.values()) for row in self.rows)
        if uncovered:
            notes.append(
                f"charged nothing: {uncovered:,} units of meters that no rate of the customer's plan is about "
                "(--meter all --by meter,customer)"
            )
        if any(row.by_period for row in self.rows):
            notes.append("some usage is charged by the total of its billing period: the charge is on the invoice")
        below = [", ".join(str(row.group[key]) for key in self.keys) for row in self.rows if row.below_cost]
        if below:
            notes.append(f"SOLD BELOW COST: {'; '.join(below[:REASONS_SHOWN_MAX])}")
        return notes

    def _row(self, row: CostRow) -> Row:
        shown: dict[str, Any] = {**row.group, "calls": row.events, "tokens": row.usage.tokens, **_money(row)}
        if self.bucket:
            shown["bucket"] = str(row.group["bucket"])[:16].replace("T", " ")
        if row.unpriced:
            shown["unpriced"] = sum(row.unpriced.values())
        return shown

    def _total(self, first: str) -> Row:
        charges = self.charges
        margins = [row.margin for row in self.rows]
        total: dict[str, Any] = {
            first: "total",
            "calls": sum(row.events for row in self.rows),
            "tokens": sum(row.usage.tokens for row in self.rows),
            "cost": shown_money(self.cost),
            "charge": _charges(charges),
        }
        if all(margin is not None for margin in margins):
            total["margin"] = shown_money(_sum(margin for margin in margins if margin is not None))
        if any(row.unpriced for row in self.rows):
            total["unpriced"] = sum(sum(row.unpriced.values()) for row in self.rows)
        return total


def _money(row: CostRow) -> dict[str, Any]:
    margin = row.margin
    return {
        "cost": shown_money(row.cost),
        "charge": "by period" if row.by_period and not row.charges else _charges(row.charges),
        "margin": "" if margin is None else shown_money(margin),
    }


def _charges(charges: Mapping[str, Decimal]) -> str:
    if not charges:
        return shown_money(ZERO)
    return " + ".join(
        shown_money(amount) + ("" if currency == "USD" else f" {currency}") for currency, amount in charges.items()
    )


def shown_money(amount: Decimal) -> str:
    """An amount to read: two decimals at least, six at most."""
    text = f"{amount:.{SHOWN_DECIMALS}f}".rstrip("0")
    whole, _, decimals = text.partition(".")
    return f"{int(whole):,}.{decimals:<02}" if not whole.startswith("-") else f"{text.partition('.')[0]}.{decimals:<02}"


def _document(row: CostRow) -> dict[str, Any]:
    margin = row.margin
    return {
        **row.group,
        "events": row.events,
        "tokens": row.usage.tokens,
        "usage": dict(row.usage),
        "cost": plain(row.cost),
        "charges": {currency: plain(amount) for currency, amount in row.charges.items()},
        "margin": None if margin is None else plain(margin),
        "below_cost": row.below_cost,
        "unpriced": dict(row.unpriced),
        "provisional": dict(row.provisional),
        "uncharged": dict(row.uncharged),
        "by_period": dict(row.by_period),
        "uncovered": dict(row.uncovered),
        "reasons": row.reasons,
    }


def _sum(amounts: Any) -> Decimal:
    total = ZERO
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total
