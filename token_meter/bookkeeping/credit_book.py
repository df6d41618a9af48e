"""The credit book: grant, sell, refund, void and expire prepaid credit, and say what a customer has left."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, select

from token_meter.billing.credit import (
    CreditGrant,
    Entry,
    Pack,
    Part,
    burn_order,
    checked_grant,
    granting,
    lessening,
    refunding,
    scope_of,
    voiding,
)
from token_meter.bookkeeping.credit_rows import grant_of, insert_grant, micros, post, read_grants
from token_meter.bookkeeping.customers import enter
from token_meter.bookkeeping.notice_rows import RECHARGE
from token_meter.bookkeeping.plan_book import Moment, read_catalogue, read_packs, touch
from token_meter.bookkeeping.settings import read_setting, write_setting
from token_meter.errors import InvalidCredit
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import entries, grants
from token_meter.ledger.text import to_stored
from token_meter.money import EXACT, ZERO, currency_of, decimal_of, plain, total
from token_meter.prices.price import moment_of

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Posted:
    """One line of the journal."""

    posting: str
    kind: str
    grant: str
    account: str
    amount: Decimal
    currency: str
    recorded: datetime
    service: datetime | None
    reason: str


class CreditBook:
    """Prepaid credit of a ledger's customers. Every change is a posting that sums to zero."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = now

    def grant(
        self,
        customer: str,
        amount: Decimal | str | int,
        *,
        kind: Literal["paid", "promotional"] = "promotional",
        currency: str = "USD",
        priority: int = 50,
        effective: Moment = None,
        expires: Moment = None,
        price: Decimal | str | int | None = None,
        title: str = "Credit",
        scope: Mapping[str, str] | None = None,
        mode: str = "live",
        id: str | None = None,
    ) -> CreditGrant:
        """Grant credit. It pays for usage from `effective` (now) until `expires`, lower `priority` first; for any
        usage, or for that of a `scope` ({"model": "gpt-5*"}; also meter, provider, token_type).

        A paid grant has a price, its amount unless told otherwise, which stands on the next invoice. `id` makes a
        repetition harmless: a grant of this id is returned as it is. Raises InvalidCredit for what is no grant, and for
        an id that is another one's.
        """
        try:
            granted = decimal_of(amount, "amount")
            paid = (granted if kind == "paid" else ZERO) if price is None else decimal_of(price, "price")
            money = currency_of(currency)
            start, end = moment_of(effective), moment_of(expires)
            place = scope_of(scope)
        except ValueError as problem:
            raise InvalidCredit(str(problem)) from None
        now = self._moment()
        grant = checked_grant(
            CreditGrant(
                id=id or f"grt_{uuid.uuid4().hex[:20]}", customer=customer, amount=granted, currency=money,
                effective=start or now, created=now, kind=kind, price=paid, priority=priority,
                expires=end, mode=mode, title=title, remaining=granted, scope=place,
            )
        )  # fmt: skip
        return self._add(grant, "granted")

    def buy(self, customer: str, pack: str, *, mode: str = "live", id: str | None = None) -> CreditGrant:
        """Sell a pack: the credit and its line on the next invoice are one transaction. `id` as in `grant`.

        Raises InvalidCredit for a pack that there is not.
        """
        with self._ledger.reading() as (_, connection):
            packs = read_packs(connection)
        if pack not in packs:
            raise InvalidCredit(f"there is no pack {pack!r}. Known: {', '.join(sorted(packs)) or 'none'}")
        return self._add(self._of_pack(customer, packs[pack], mode, id), f"pack {pack}")

    def _of_pack(self, customer: str, pack: Pack, mode: str, id: str | None) -> CreditGrant:
        now = self._moment()
        expires = None if pack.expires_days is None else now + timedelta(days=pack.expires_days)
        return checked_grant(
            CreditGrant(
                id=id or f"grt_{uuid.uuid4().hex[:20]}", customer=customer, amount=pack.amount, currency=pack.currency,
                effective=now, created=now, kind="paid", price=pack.price, priority=pack.priority, expires=expires,
                mode=mode, title=pack.title or pack.name, remaining=pack.amount, scope=scope_of(pack.scope),
            )
        )  # fmt: skip

    def _add(self, grant: CreditGrant, reason: str) -> CreditGrant:
        if not grant.customer.strip():
            raise InvalidCredit("credit needs a customer")
        with self._ledger.closing() as (store, connection):
            if grant.price:
                _check_currency(connection, grant)
            if not insert_grant(store, connection, grant):
                there = _grant(connection, grant.id)
                if _what(there) != _what(grant):
                    has = f"{plain(there.amount)} {there.currency} ({there.kind}) of {there.customer}"
                    raise InvalidCredit(f"{grant.id} is {has} already: another grant needs another id")
                return there
            enter(store, connection, mode=grant.mode, customer=grant.customer, moment=micros(grant.created))
            post(connection, granting(grant), [grant], kind="grant", reason=reason)
            touch(connection)
        return grant

    def refund(self, grant_id: str, amount: Decimal | str | None = None, *, reason: str) -> CreditGrant:
        """Pay back what is left of a paid grant, or some of it; your payment system moves the money, so much of it as
        was paid for that part. Raises InvalidCredit for more than is left, and where nothing was paid."""
        wanted = None if amount is None else decimal_of(amount, "amount")

        def posting(grant: CreditGrant) -> list[Entry]:
            part = grant.remaining if wanted is None else wanted
            if not ZERO < part <= grant.remaining:
                raise InvalidCredit(f"{part} cannot be refunded: {grant.remaining} {grant.currency} is left")
            if not grant.price:
                raise InvalidCredit(f"nothing was paid for {grant.id}: take it back with void instead")
            return refunding(grant, part)

        return self._change(grant_id, posting, "refund", reason)

    def void(self, grant_id: str, *, reason: str) -> CreditGrant:
        """Take back what is left of a grant, as if it had not been granted."""

        def posting(grant: CreditGrant) -> list[Entry]:
            if grant.remaining <= ZERO:
                raise InvalidCredit(f"nothing is left of grant {grant.id}")
            return voiding(grant)

        return self._change(grant_id, posting, "void", reason)

    def _change(
        self, grant_id: str, posting: Callable[[CreditGrant], list[Entry]], kind: str, reason: str
    ) -> CreditGrant:
        with self._ledger.writing() as (_, connection):
            grant = _grant(connection, grant_id)
            post(connection, posting(grant), [grant], kind=kind, reason=reason)
            return _grant(connection, grant_id)

    def expire(self, *, mode: str = "live") -> list[CreditGrant]:
        """Turn what is left of expired grants into breakage; those grants as they were. Safe to repeat."""
        now = self._moment()
        with self._ledger.closing() as (_, connection):
            over = grants.c.expires <= micros(now)
            rows = connection.execute(select(grants).where(grants.c.mode == mode, over)).all()
            expired = [grant for row in rows for grant in [grant_of(row)] if grant.remaining > ZERO]
            for grant in expired:
                post(
                    connection, lessening([Part(grant, grant.remaining)], "expire"), [grant], kind="expire",
                    reason="expired",
                )  # fmt: skip
        return expired

    # Reading

    def grants(self, customer: str, *, mode: str = "live") -> list[CreditGrant]:
        """A customer's grants in the order in which they burn."""
        with self._ledger.reading() as (_, connection):
            return burn_order(read_grants(connection, mode, customer))

    def balance(self, customer: str, *, currency: str = "USD", mode: str = "live") -> Decimal:
        """What a customer can use now, exact: true at any moment, because usage is drawn when it is recorded."""
        return total(
            grant.remaining
            for grant in self.grants(customer, mode=mode)
            if grant.currency == currency and grant.usable_at(self._moment())
        )

    def journal(self, customer: str, *, mode: str = "live") -> list[Posted]:
        """Every entry of a customer, oldest first."""
        mine = (entries.c.mode == mode) & (entries.c.customer == to_stored(customer))
        with self._ledger.reading() as (_, connection):
            return [
                Posted(
                    row.posting, row.kind, row.grant_id, row.account, Decimal(row.amount), row.currency,
                    EPOCH + MICROSECOND * row.recorded,
                    None if row.service is None else EPOCH + MICROSECOND * row.service, row.reason,
                )
                for row in connection.execute(select(entries).where(mine).order_by(entries.c.number))
            ]  # fmt: skip

    def check(self) -> list[str]:
        """What is wrong with the journal: postings that do not balance, grants it does not explain. Empty: fine."""
        sums: dict[str, list[Decimal]] = {}
        left: dict[str, list[Decimal]] = {}
        with self._ledger.reading() as (_, connection):
            for row in connection.execute(select(entries)):
                sums.setdefault(row.posting, []).append(Decimal(row.amount))
                if row.account == "deferred_revenue":
                    left.setdefault(row.grant_id, []).append(Decimal(row.amount))
            known = [grant_of(row) for row in connection.execute(select(grants))]
        wrong = [
            f"posting {name} is off by {plain(total(amounts))}" for name, amounts in sums.items() if total(amounts)
        ]
        for grant in known:
            if grant.remaining != EXACT.minus(total(left.get(grant.id, []))) or grant.remaining < ZERO:
                wrong.append(f"grant {grant.id} says {plain(grant.remaining)} is left, and its journal does not")
        return wrong

    # Recharging

    def recharge_at(self, customer: str, threshold: Decimal | str, pack: str, *, mode: str = "live") -> None:
        """Write a notice `credit.recharge_due` when the balance falls below the threshold, once until the next grant.

        Your payment system acts on it: charge the customer under the notice's key, then `buy(..., id=key)`.
        """
        with self._ledger.closing() as (_, connection):
            packs = read_packs(connection)
            if pack not in packs:
                raise InvalidCredit(f"there is no pack {pack!r}. Known: {', '.join(sorted(packs)) or 'none'}")
            rules: dict[str, Any] = dict(read_setting(connection, RECHARGE) or {})
            try:
                least = decimal_of(threshold, "the threshold")
            except ValueError as problem:
                raise InvalidCredit(str(problem)) from None
            if least <= ZERO:
                raise InvalidCredit(f"the threshold must be above 0, not {least}")
            rules[f"{mode}/{customer}"] = {
                "threshold": plain(least), "pack": pack, "currency": packs[pack].currency,
            }  # fmt: skip
            write_setting(connection, RECHARGE, rules, moment=micros(self._moment()))

    def _moment(self) -> datetime:
        return EPOCH + MICROSECOND * int(self._now() * 1_000_000)


def _grant(connection: Connection, grant_id: str) -> CreditGrant:
    row = connection.execute(select(grants).where(grants.c.id == grant_id).with_for_update()).first()
    if row is None:
        raise InvalidCredit(f"there is no grant {grant_id!r}: see `token-meter credits list CUSTOMER`")
    return grant_of(row)


def _check_currency(connection: Connection, grant: CreditGrant) -> None:
    """What is sold stands on an invoice, which has one currency."""
    terms, _, _ = read_catalogue(connection).terms(grant.mode, grant.customer, grant.created)
    currency = terms.plan.content.currency if terms.plan is not None else "USD"
    if grant.currency != currency:
        plan = f"plan {terms.plan.label}" if terms.plan is not None else "usage at cost"
        raise InvalidCredit(
            f"{grant.customer} is invoiced in {currency} ({plan}), so credit in {grant.currency} cannot be sold to "
            f"them: sell it in {currency}, or give them a plan in {grant.currency} first"
        )


def _what(grant: CreditGrant) -> tuple[object, ...]:
    return (grant.customer, grant.mode, grant.amount, grant.currency, grant.kind, grant.price, grant.scope)
