"""A price change as a value: what a feed or a row would make of what is billed now, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

from token_meter.money import EXACT, plain
from token_meter.prices.book import PriceBook
from token_meter.prices.likely import Verdict
from token_meter.prices.price import Context, Price, Status, moment_text
from token_meter.prices.stated import billed, in_force, key_of

FIRST_SEEN: Final = "first seen"
"""How the evidence of a row begins whose date is when we saw it, because the feed states none."""

REFUSED: Final = "refused"
SUPERSEDED: Final = "its source no longer states it"

Kind = Literal["added", "changed", "scheduled", "withdrawn"]
STATUS: Final[Mapping[Verdict, Status]] = {"active": "active", "held": "held", "refused": "rejected"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One price that a feed states and the book does not.

    `price` is the row that says so, `old` the row by which the same is billed now, `new` the one by which it would be
    billed (another than `price` only where a step for long contexts ends). "withdrawn" is told and never applied:
    there `price` is the book's own row, and there is no verdict. `standing`: it was proposed before, and its row still
    waits or was rejected.
    """

    kind: Kind
    price: Price
    old: Price | None
    new: Price | None
    verdict: Verdict | None
    why: str = ""
    first_seen: bool = False
    standing: bool = False

    @property
    def key(self) -> tuple[str, str, str, Context, int | None]:
        """What it is a price of: provider, model, token type, context, and above how many context tokens."""
        return (self.price.provider, self.price.model, self.price.token_type, self.price.context, self.price.above)

    @property
    def old_amount(self) -> Decimal | None:
        """What is billed now, for `price.per` units."""
        return None if self.old is None else _per(self.old, self.price.per)

    @property
    def new_amount(self) -> Decimal | None:
        """What would be billed; None for what is withdrawn."""
        return None if self.new is None else _per(self.new, self.price.per)

    @property
    def ratio(self) -> Decimal | None:
        """How many times the old amount the new one is."""
        if not self.old_amount or self.new_amount is None:
            return None
        return EXACT.divide(self.new_amount, self.old_amount)

    @property
    def effective_from(self) -> datetime | None:
        """From when on; None: always."""
        return self.price.effective_from

    def to_json(self) -> dict[str, Any]:
        """For programs: amounts as text."""
        price = self.price
        return {
            "id": price.id,
            "kind": self.kind,
            "verdict": self.verdict,
            "why": self.why,
            "standing": self.standing,
            "provider": price.provider,
            "model": price.model,
            "token_type": price.token_type,
            "context": dict(price.context),
            "above_context_tokens": price.above,
            "old": _text(self.old_amount),
            "new": _text(self.new_amount),
            "per": price.per,
            "unit": price.unit,
            "ratio": None if self.ratio is None else plain(round(self.ratio, 4)),
            "effective_from": moment_text(price.effective_from),
            "first_seen": self.first_seen,
            "source": price.source,
        }


def evidence(first_seen: bool, said: str) -> str:
    """What is kept with a row: whether its date is ours, and what was decided about it and why."""
    return "; ".join(part for part in (FIRST_SEEN if first_seen else "", said) if part)


def is_first_seen(price: Price) -> bool:
    """Whether the row's date is when we saw it first."""
    return price.evidence.startswith(FIRST_SEEN)


def reason_of(price: Price) -> str:
    """What was decided about a row, or why it waits."""
    said = price.evidence.removeprefix(FIRST_SEEN).removeprefix("; ")
    return said.removeprefix("held: ").removeprefix(f"{REFUSED}: ")


def was_refused(price: Price) -> bool:
    """Whether it was rejected because it was too unlikely, and not by a human."""
    return price.status == "rejected" and REFUSED in price.evidence


def superseded_row(price: Price) -> Price:
    """A row that waited and that its source no longer states: it is rejected, and may come again."""
    return replace(price, status="rejected", evidence=evidence(is_first_seen(price), SUPERSEDED))


def was_superseded(price: Price) -> bool:
    """Whether a row was rejected because its source no longer stated it."""
    return price.status == "rejected" and SUPERSEDED in price.evidence


def change_of(book: PriceBook, price: Price, *, now: datetime) -> Change:
    """A row that is in the book already, as the change that it is or would be."""
    model = book.with_overrides(None).model(price.provider, price.model)
    at = max(now, price.effective_from or now)
    key = key_of(price)
    rest = [each for each in model.prices if each.id != price.id]
    others = in_force(rest, at)
    verdict: Verdict = {"active": "active", "held": "held", "rejected": "refused"}[price.status]  # type: ignore[assignment]
    # A price with an end is gone at the moment when the next one begins.
    before = in_force(rest, at - timedelta(microseconds=1))
    old = billed(others if key in others or key not in before else before, key)
    kind: Kind = "scheduled" if at > now else "changed" if old is not None else "added"
    new = price if price.amount is not None else billed({each: others[each] for each in others if each != key}, key)
    return Change(
        kind=kind, price=price, old=old, new=new, verdict=verdict, why=reason_of(price),
        first_seen=is_first_seen(price), standing=True,
    )  # fmt: skip


def _per(price: Price, per: int) -> Decimal | None:
    if price.amount is None or price.per == per:
        return price.amount
    return EXACT.multiply(EXACT.divide(price.amount, Decimal(price.per)), Decimal(per))


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else plain(amount)
