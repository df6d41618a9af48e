"""Drawing credit in the transaction that records the usage: a customer's balance is true at any moment.

What is drawn follows the charge of each unit. What depends on the whole period (included usage, tiers, discounts) is
settled when the invoice is made final: then the credit that was used is exactly what the invoice says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, select

from token_meter.billing.catalogue import LATEST, Catalogue
from token_meter.billing.credit import (
    ANYTHING,
    CreditGrant,
    Part,
    Place,
    given_back,
    granting,
    lessening,
    scope_of,
    taken_from,
)
from token_meter.billing.plans import Period, Plan
from token_meter.bookkeeping.credit_rows import insert_grant, post, read_grants
from token_meter.bookkeeping.notice_rows import CreditRules, note_credit
from token_meter.ledger.ratings import Read, read_ratings
from token_meter.ledger.rows import EPOCH, HOUR, MICROSECOND, Measure
from token_meter.ledger.store import Store
from token_meter.ledger.tables import EVENTS, SERIES_COLUMNS, UNITS, grants
from token_meter.ledger.text import from_stored
from token_meter.money import EXACT, ZERO, product, total

_CUSTOMER: Final = SERIES_COLUMNS.index("customer")
_MODE: Final = SERIES_COLUMNS.index("mode")
_PROVIDER: Final = SERIES_COLUMNS.index("provider")
_MODEL: Final = SERIES_COLUMNS.index("model")
_METER: Final = SERIES_COLUMNS.index("meter")
RATINGS_REMEMBERED_MAX: Final = 50_000
PERIODS_BACK_MAX: Final = 60
"""For so many periods without usage credit that rolls over is granted afterwards."""

Who = tuple[str, str]
"""Mode and customer; an empty customer is nobody."""

Key = tuple[str, str, str, int, Place]
"""Mode, customer, currency, the hour of the usage, and what it was, if some credit is not for any usage."""


class Drawing:
    """Follows charges with credit. Made anew when the catalogue or somebody's grants change."""

    def __init__(self, catalogue: Catalogue, connection: Connection) -> None:
        self._catalogue = catalogue
        found = connection.execute(select(grants.c.mode, grants.c.customer).distinct())
        self._holders = {(mode, from_stored(customer)) for mode, customer in found}
        recurring = [
            credit for versions in catalogue.plans.values() for each in versions for credit in each.content.credits
        ]
        scoped = connection.execute(select(grants.c.id).where(grants.c.scope.is_not(None)).limit(1)).first()
        self._scoped = scoped is not None or any(credit.scope for credit in recurring)
        self._grants_recur = bool(recurring)
        self._rates: dict[int, Read] = {}
        self._fresh: dict[int, Read] = {}
        self._rules: CreditRules | None = None
        self._granted: set[str] = set()

    def follow(
        self, store: Store, connection: Connection, measures: Sequence[tuple[Measure, int]]
    ) -> Callable[[], None]:
        """Draw what these measures charge, give back what they take away. Call what it returns after the commit."""
        granted = self._grant_recurring(store, connection, measures) if self._grants_recur else {}
        holders = self._holders.union(granted.values())
        concerned = [(each, sign * each.sign) for each, sign in measures if _who(each) in holders]
        self._fresh, self._rules = {}, None
        rates = self.rates(connection, {number for each, _ in concerned for number in each.rating.values()})
        self._follow(store, connection, concerned, rates)

        def remember() -> None:
            learnt = self._fresh
            self._granted.update(granted)
            self._holders.update(granted.values())
            if len(self._rates) > RATINGS_REMEMBERED_MAX:
                self._rates.clear()
            self._rates.update(learnt)

        return remember

    def _follow(
        self,
        store: Store,
        connection: Connection,
        concerned: Sequence[tuple[Measure, int]],
        rates: Mapping[int, Read],
    ) -> None:
        amounts: dict[Key, Decimal] = {}
        for measure, sign in concerned:
            for currency, place, amount in _charges(measure, rates):
                key = (*_who(measure), currency, measure.hour * HOUR, place if self._scoped else ANYTHING)
                amounts[key] = EXACT.add(amounts.get(key, ZERO), amount if sign > 0 else EXACT.minus(amount))
        for key in sorted(amounts, key=_order):
            if amounts[key]:
                self._draw(store, connection, key, amounts[key])

    def rates(self, connection: Connection, numbers: set[int]) -> Mapping[int, Read]:
        """The ratings with these numbers, and others. What is met for the first time is true for this transaction, and
        remembered after it: the numbers may yet be given to others."""
        known = self._rates
        unknown = sorted(number for number in numbers if number and number not in known and number not in self._fresh)
        self._fresh.update((read.number, read) for read in read_ratings(connection, unknown))
        return {**known, **self._fresh} if self._fresh else known

    def _draw(self, store: Store, connection: Connection, key: Key, amount: Decimal) -> None:
        mode, customer, currency, hour, place = key
        mine = read_grants(connection, mode, customer, locked=True)
        at = EPOCH + MICROSECOND * hour
        if amount > ZERO:
            # Usage is told by the hour, and a grant may begin within it: the end of the hour counts.
            end = EPOCH + MICROSECOND * (hour + HOUR - 1)
            parts = taken_from(
                [_begun(grant, at, end) for grant in mine], amount, currency=currency, at=end, place=place
            )
        else:
            # What an invoice settled was paid with credit that came later in the period.
            _, period = self._catalogue.period_at(mode, customer, at)
            theirs = [each for each in mine if each.effective < period.stop and (each.expires or LATEST) > at]
            back = given_back(theirs, EXACT.minus(amount), currency=currency, place=place)
            parts = [Part(grant, EXACT.minus(part)) for grant, part in back]
        if parts:
            known = {grant.id: grant for grant in mine}
            parts = [Part(known[grant.id], part) for grant, part in parts]
            post(
                connection, lessening(parts, "draw"), [grant for grant, _ in parts], kind="draw", service=hour,
                reason="usage",
            )  # fmt: skip
        # Also where nothing could be drawn: what was left may have expired.
        left = [
            replace(
                each,
                remaining=EXACT.subtract(each.remaining, total(part for grant, part in parts if grant.id == each.id)),
            )
            for each in mine
        ]
        if self._rules is None:
            self._rules = CreditRules.read(connection)
        note_credit(store, connection, self._rules, left, mode=mode, customer=customer, currency=currency)

    def _grant_recurring(
        self, store: Store, connection: Connection, measures: Sequence[tuple[Measure, int]]
    ) -> dict[str, Who]:
        """The credit that plans grant with each period, when its first usage comes: ids of grants, and whose."""
        # The end of the hour: a subscription may begin within it.
        moments = {(_who(each), (each.hour + 1) * HOUR - 1) for each, _ in measures}
        wanted = [
            grant
            for (mode, customer), moment in moments
            if customer
            for grant in self._recurring(mode, customer, EPOCH + MICROSECOND * moment)
            if grant.id not in self._granted
        ]
        # Sorted: two processes that grant the same wait for each other, and never in a circle.
        for grant in sorted({each.id: each for each in wanted}.values(), key=lambda each: each.id):
            if insert_grant(store, connection, grant):
                post(connection, granting(grant), [grant], kind="grant", reason=grant.title)
        return {grant.id: (grant.mode, grant.customer) for grant in wanted}

    def _recurring(self, mode: str, customer: str, moment: datetime) -> Iterator[CreditGrant]:
        terms, period = self._catalogue.period_at(mode, customer, moment)
        plan = terms.plan.content if terms.plan is not None else None
        if plan is None or not plan.credits:
            return
        for number, credit in enumerate(plan.credits):
            yield _recurring_grant(mode, customer, plan, period, number)
            if credit.rolls_over and terms.subscription is not None:
                # Periods without usage have given theirs, too.
                for earlier in self._earlier(terms.subscription.start, mode, customer, period):
                    yield _recurring_grant(mode, customer, plan, earlier, number)

    def _earlier(self, start: datetime, mode: str, customer: str, period: Period) -> Iterator[Period]:
        """The periods before this one since a subscription began."""
        for _ in range(PERIODS_BACK_MAX):
            if period.start <= start:
                return
            _, period = self._catalogue.period_at(mode, customer, period.start - MICROSECOND)
            yield period


def _recurring_grant(mode: str, customer: str, plan: Plan, period: Period, number: int) -> CreditGrant:
    """The credit that a plan grants with a period. Its id follows from both: it is granted once."""
    credit = plan.credits[number]
    name = f"{mode}|{customer}|{plan.name}|{period.start.isoformat()}|{number}"
    return CreditGrant(
        id="grt_" + hashlib.sha256(name.encode()).hexdigest()[:20], customer=customer, amount=credit.amount,
        currency=plan.currency, effective=period.start, created=period.start, kind=credit.kind,
        priority=credit.priority, expires=None if credit.rolls_over else period.stop, mode=mode,
        title=f"Included with {plan.name}", remaining=credit.amount, scope=scope_of(credit.scope),
    )  # fmt: skip


def _begun(grant: CreditGrant, start: datetime, end: datetime) -> CreditGrant:
    """A grant that expires within the hour still pays for usage of that hour."""
    if grant.expires is not None and start < grant.expires <= end:
        return replace(grant, expires=end + MICROSECOND)
    return grant


def _charges(measure: Measure, rates: Mapping[int, Read]) -> Iterator[tuple[str, Place, Decimal]]:
    """What a measure is charged: currency, what it is for, amount."""
    provider, model = (_text(measure.series[place]) for place in (_PROVIDER, _MODEL))
    for name, quantity in [*measure.usage.items(), (EVENTS, 1)]:
        read = rates.get(measure.rating.get(name, 0))
        said = (read.document.get("charge") if read is not None else None) or {}
        if read is not None and read.charge and said:
            meter = str(said.get("meter") or _text(measure.series[_METER]))
            # Calls, and what is counted in units, stand on an invoice for all models together.
            place: Place = (meter, None, None, None) if name in (EVENTS, UNITS) else (meter, provider, model, name)
            yield str(said.get("currency") or "USD"), place, product(read.charge, quantity)


def _order(key: Key) -> tuple[object, ...]:
    *rest, place = key
    return (*rest, *(part or "" for part in place))


def _text(stored: object) -> str | None:
    return from_stored(str(stored)) if stored else None


def _who(measure: Measure) -> Who:
    customer = measure.series[_CUSTOMER]
    return str(measure.series[_MODE]), from_stored(customer) if customer else ""
