"""The plan book: rate cards, plans, meters and subscriptions as they stand in a ledger, with every earlier version."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel
from sqlalchemy import Connection, select

from token_meter.billing.cards import RateCard
from token_meter.billing.catalogue import Catalogue, Chosen, Version, outlived
from token_meter.billing.credit import Pack
from token_meter.billing.fields import document
from token_meter.billing.meters import MeterDefinition, meters_of
from token_meter.billing.plans import Plan, PlansFile, Subscription
from token_meter.bookkeeping.customers import enter
from token_meter.bookkeeping.settings import SETTING, write_setting
from token_meter.bookkeeping.subscription_rows import (
    cancel_subscription,
    insert_subscription,
    read_subscription,
    read_subscriptions,
    stop_subscription,
)
from token_meter.errors import InvalidPlan
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.tables import catalogue, state
from token_meter.ledger.text import from_stored, to_stored
from token_meter.prices.price import moment_of

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

CARD: Final = "card"
PLAN: Final = "plan"
METER: Final = "meter"
PACK: Final = "pack"
KINDS: Final = {METER: "meter", CARD: "rate card", PLAN: "plan", PACK: "pack"}
"""What people call them."""

DEFAULT_PLAN: Final = "default_plan"
BILL_ESTIMATED: Final = "bill_estimated"

Kind = TypeVar("Kind", bound=BaseModel)
Moment: TypeAlias = datetime | date | str | None
"""A time as a caller gives it; None: now."""


class PlanBook:
    """Reads and edits what we charge. Every edit is another version; what was charged before stays as it was.

    What holds from now on holds for events that happen from now on. With a moment in the past it holds from then:
    events that are there are rated again, and an invoice that is final gets a correction on the next one.
    """

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = now

    def catalogue(self) -> Catalogue:
        """Everything, as it is now."""
        with self._ledger.reading() as (_, connection):
            return read_catalogue(connection)

    def packs(self) -> dict[str, Pack]:
        """The packs of credit that can be bought, by name."""
        with self._ledger.reading() as (_, connection):
            return read_packs(connection)

    # Rate cards and plans

    def keep(self, file: PlansFile, *, effective_from: Moment = None) -> list[str]:
        """Keep what a file says: what is new or different becomes another version. The labels of those.

        Raises InvalidPlan for a plan that names a card or a meter that is nowhere, or a card in another currency, and
        for a meter that is there and would count in another way.
        """
        with self._ledger.closing() as (_, connection):
            before = read_catalogue(connection)
            _check(file, before)
            moment = self._moment(effective_from)
            kept = [
                *(self._keep(connection, METER, meter.name, meter, moment) for meter in file.meters),
                *(self._keep(connection, CARD, card.name, card, moment) for card in file.rate_cards),
                *(self._keep(connection, PLAN, plan.name, plan, moment) for plan in file.plans),
                *(self._keep(connection, PACK, pack.name, pack, moment) for pack in file.packs),
            ]
            changed = [label for label in kept if label is not None]
            if changed:
                touch(connection)
        if changed:
            self._rate(moment, f"kept {', '.join(changed)}")
        return changed

    def _keep(self, connection: Connection, kind: str, name: str, content: BaseModel, moment: datetime) -> str | None:
        mine = (catalogue.c.kind == kind) & (catalogue.c.name == to_stored(name))
        rows = connection.execute(select(catalogue).where(mine).order_by(catalogue.c.number)).all()
        text = json.dumps(document(content), sort_keys=True)
        if self._is_so(rows, text, _micros(moment)):
            return None
        number = rows[-1].number + 1 if rows else 1
        self._insert(connection, kind, name, number, moment, text)
        return f"{KINDS[kind]} {name}@{number}"

    def _is_so(self, rows: Sequence[Any], text: str, moment: int) -> bool:
        """Whether what holds from this moment on until now says the same."""
        standing = [row for row, gone in zip(rows, _outlived(rows), strict=True) if not gone]
        before = max((row for row in standing if row.effective <= moment), key=_effective, default=None)
        since = [row for row in standing if moment < row.effective <= self._now() * 1_000_000]
        return before is not None and all(row.document == text for row in (before, *since))

    def _insert(self, connection: Connection, kind: str, name: str, number: int, moment: datetime, text: str) -> None:
        row = {
            "kind": kind, "name": to_stored(name), "number": number, "effective": _micros(moment),
            "recorded": int(self._now() * 1_000_000), "document": text,
        }  # fmt: skip
        connection.execute(catalogue.insert(), row)

    def set_default(self, plan: str | None, *, effective_from: Moment = None) -> None:
        """The plan of customers who have none of their own; None: they are at cost. Raises InvalidPlan if unknown."""
        with self._ledger.closing() as (_, connection):
            known = read_catalogue(connection)
            moment = self._moment(effective_from)
            if plan is not None:
                _known_plan(known, plan, moment)
            since = [each.plan for each in known.defaults if each.effective_from > moment]
            if {known.default_at(moment), *since} == {plan}:
                return
            self._set(connection, DEFAULT_PLAN, {"plan": plan}, moment)
        self._rate(moment, f"default plan {plan}")

    def set_bill_estimated(self, wanted: bool, *, effective_from: Moment = None) -> None:
        """Whether usage from a time (now) on is charged that had to be estimated."""
        moment = self._moment(effective_from)
        with self._ledger.closing() as (_, connection):
            self._set(connection, BILL_ESTIMATED, {"wanted": wanted}, moment)
        self._rate(moment, f"estimated usage is {'' if wanted else 'not '}charged")

    def _set(self, connection: Connection, name: str, content: Mapping[str, Any], moment: datetime) -> None:
        now = _micros(self._moment(None))
        write_setting(connection, name, dict(content), moment=now, effective=_micros(moment))
        touch(connection)

    # Subscriptions

    def subscribe(
        self,
        customer: str,
        plan: str,
        *,
        start: Moment = None,
        stop: Moment = None,
        mode: str = "live",
    ) -> Subscription:
        """Put a customer on the present version of a plan (or on `plan@2`). Returns the subscription.

        A subscription without an end that is there already ends where this one starts; one to the same version of the
        same plan goes on as it is. Raises InvalidPlan for an unknown plan, and for a span that overlaps with another
        subscription.
        """
        if not customer.strip():
            raise InvalidPlan("a subscription needs a customer")
        with self._ledger.closing() as (store, connection):
            known = read_catalogue(connection)
            moment, end = self._moment(start), moment_given(stop)
            name, version = _known_plan(known, plan, moment)
            there = known.subscription_at(mode, customer, moment)
            if there is not None and (there.plan, there.version, there.stop) == (name, version, end):
                return there
            made = Subscription(
                id=f"sub_{uuid.uuid4().hex[:16]}", customer=customer, plan=name, version=version, start=moment,
                stop=end, mode=mode, created=self._moment(None),
            )  # fmt: skip
            insert_subscription(connection, made)
            touch(connection)
            enter(store, connection, mode=mode, customer=customer, moment=_micros(self._moment(None)))
        self._rate(moment, f"subscribed to {name}@{version}", customer=customer)
        return made

    def unsubscribe(self, customer: str, *, at: Moment = None, mode: str = "live") -> Subscription:
        """End a customer's subscription. Raises InvalidPlan if none is in force then."""
        with self._ledger.closing() as (_, connection):
            moment = self._moment(at)
            known = read_catalogue(connection)
            found = known.subscription_at(mode, customer, moment)
            if found is None:
                raise InvalidPlan(f"{customer} has no subscription at {moment:%Y-%m-%d %H:%M}")
            if found.start == moment:
                raise InvalidPlan(
                    f"the subscription of {customer} starts at {moment:%Y-%m-%d %H:%M}: end it later, "
                    f"or take it back: token-meter plans cancel {found.id}"
                )
            stop_subscription(connection, found, moment)
            touch(connection)
        self._rate(moment, f"unsubscribed from {found.plan}", customer=customer)
        return replace(found, stop=moment)

    def cancel(self, subscription: str) -> Subscription | None:
        """Take a subscription back as if it had not been made; the one that it ended goes on, and is returned.

        What was used meanwhile is rated again; an invoice that is final gets a correction on the next one. Raises
        InvalidPlan if there is none with this id, or it is cancelled already.
        """
        with self._ledger.closing() as (_, connection):
            found = read_subscription(connection, subscription)
            if found is None:
                raise InvalidPlan(f"there is no subscription {subscription!r}: token-meter plans subscriptions")
            if found.cancelled is not None:
                raise InvalidPlan(f"{subscription} was cancelled at {found.cancelled:%Y-%m-%d %H:%M} already")
            before = cancel_subscription(connection, found, self._moment(None))
            touch(connection)
        self._rate(found.start, f"cancelled {found.plan}@{found.version}", customer=found.customer)
        return before

    def subscriptions(self, *, customer: str | None = None, mode: str | None = None) -> list[Subscription]:
        """Every subscription that was made, ended and cancelled ones too, the earliest first."""
        with self._ledger.reading() as (_, connection):
            return read_subscriptions(connection, customer=customer, mode=mode, with_cancelled=True)

    # Inside

    def _moment(self, given: Moment) -> datetime:
        return moment_given(given) or EPOCH + MICROSECOND * int(self._now() * 1_000_000)

    def _rate(self, since: datetime, reason: str, **filters: Any) -> None:
        """What is there already from that moment on is rated by what holds now."""
        if self._ledger.rater is not None:
            self._ledger.rate_again(since=since, reason=reason, **filters)


def moment_given(value: object) -> datetime | None:
    """A time as a caller gives it: a datetime, a date or text like 2026-11-01. Raises InvalidPlan for anything else."""
    try:
        return moment_of(value)
    except ValueError as problem:
        raise InvalidPlan(str(problem)) from None


def check_plans(file: PlansFile, catalogue: Catalogue | None = None) -> None:
    """Whether a file could be kept beside what is there. Raises InvalidPlan, as `keep` would."""
    _check(file, catalogue if catalogue is not None else Catalogue(meters=meters_of(())))


def read_catalogue(connection: Connection) -> Catalogue:
    """The catalogue as it stands in the ledger."""
    kinds: dict[str, dict[str, list[Any]]] = {CARD: {}, PLAN: {}, METER: {}, SETTING: {}}
    mine = catalogue.c.kind.in_([*kinds, PACK])
    for row in connection.execute(select(catalogue).where(mine).order_by(catalogue.c.number)):
        kinds.setdefault(row.kind, {}).setdefault(from_stored(row.name), []).append(row)
    meters = [MeterDefinition.model_validate(json.loads(rows[-1].document)) for rows in kinds[METER].values()]
    defaults = _settings(kinds[SETTING].get(DEFAULT_PLAN, ()), "plan")
    estimated = _settings(kinds[SETTING].get(BILL_ESTIMATED, ()), "wanted")
    by_customer: dict[tuple[str, str], list[Subscription]] = {}
    for made in read_subscriptions(connection):
        by_customer.setdefault((made.mode, made.customer), []).append(made)
    return Catalogue(
        cards={name: _versions(rows, RateCard) for name, rows in kinds[CARD].items()},
        plans={name: _versions(rows, Plan) for name, rows in kinds[PLAN].items()},
        meters=meters_of(meters),
        subscriptions=by_customer,
        defaults=[Chosen(*each) for each in defaults],
        estimated=estimated,
    )


def read_packs(connection: Connection) -> dict[str, Pack]:
    """The packs of credit that can be bought, by name."""
    rows = connection.execute(select(catalogue).where(catalogue.c.kind == PACK).order_by(catalogue.c.number))
    return {from_stored(row.name): Pack.model_validate(json.loads(row.document)) for row in rows}


def touch(connection: Connection) -> None:
    """Tell every process that records into this ledger to read prices and plans anew."""
    connection.execute(state.update().values(catalogue=state.c.catalogue + 1))


def _versions(rows: Sequence[Any], kind: type[Any]) -> list[Version[Any]]:
    return [
        Version(row.number, _time(row.effective), kind.model_validate(json.loads(row.document)), gone)
        for row, gone in zip(rows, _outlived(rows), strict=True)
    ]


def _settings(rows: Sequence[Any], name: str) -> list[tuple[datetime, Any]]:
    """What a setting says from when on, the earliest first."""
    standing = [row for row, gone in zip(rows, _outlived(rows), strict=True) if not gone]
    return [(_time(row.effective), json.loads(row.document)[name]) for row in sorted(standing, key=_effective)]


def _effective(row: Any) -> tuple[int, int]:
    """Of two with one date the one that was said later counts."""
    return int(row.effective), int(row.number)


def _outlived(rows: Sequence[Any]) -> list[bool]:
    return outlived([(row.effective, row.recorded) for row in rows])


def _check(file: PlansFile, before: Catalogue) -> None:
    """What plans and cards name must be there."""
    _check_card_currencies(file, before)
    _check_meters(file, before)
    meters = meters_of([*before.meters.values(), *file.meters])
    cards = {name: versions[-1].content for name, versions in before.cards.items()}
    cards |= {card.name: card for card in file.rate_cards}
    for card in file.rate_cards:
        for rate in card.rates:
            _known_meter(rate.meter, meters, f"rate card {card.name}")
    for plan in file.plans:
        for rate in plan.rates:
            _known_meter(rate.meter, meters, f"plan {plan.name}")
        for included in plan.included:
            _known_meter(included.meter, meters, f"plan {plan.name}")
        for label in plan.rate_cards:
            name, pinned, number = label.partition("@")
            if name not in cards:
                raise InvalidPlan(f"plan {plan.name}: there is no rate card {name!r}. Known: {_listed(cards)}")
            if pinned and not any(str(each.number) == number for each in before.cards.get(name, ())):
                versions = ", ".join(str(each.number) for each in before.cards.get(name, ())) or "none yet"
                raise InvalidPlan(f"plan {plan.name}: rate card {name} has no version {number!r}. It has {versions}")
            if cards[name].currency != plan.currency:
                raise InvalidPlan(
                    f"plan {plan.name} is in {plan.currency}, its rate card {name} in {cards[name].currency}: "
                    "give both the same currency"
                )


def _check_card_currencies(file: PlansFile, before: Catalogue) -> None:
    """A card that plans use already stays in their currency."""
    given_ = {plan.name for plan in file.plans}
    for card in file.rate_cards:
        for name, versions in before.plans.items():
            plan = versions[-1].content
            names = {label.partition("@")[0] for label in plan.rate_cards}
            if name not in given_ and card.name in names and card.currency != plan.currency:
                raise InvalidPlan(
                    f"rate card {card.name} would be in {card.currency}, and plan {name}, which uses it, is in "
                    f"{plan.currency}: give the plan in this file the same currency, or the card another name"
                )


def _check_meters(file: PlansFile, before: Catalogue) -> None:
    """How a meter counts is for good: else what it came to in the past would change with it."""
    for meter in file.meters:
        kept = before.meters.get(meter.name)
        if kept is not None and (kept.aggregation, kept.of) != (meter.aggregation, meter.of):
            told = kept.aggregation if kept.of is None else f"{kept.aggregation} of {kept.of}"
            raise InvalidPlan(
                f"meter {meter.name} is a {told}, and stays one: what it came to before would change. Declare another "
                "meter with another name"
            )


def _known_meter(name: str, meters: Mapping[str, MeterDefinition], where: str) -> None:
    if name not in meters:
        raise InvalidPlan(f"{where}: there is no meter {name!r}. Known: {_listed(meters)}. Declare it under `meters`.")


def _known_plan(known: Catalogue, label: str, moment: datetime) -> tuple[str, int]:
    name, _, pinned = label.partition("@")
    versions = known.plans.get(name, ())
    in_force = known.plan_at(name, moment)
    wanted = int(pinned) if pinned.isdigit() else (in_force.number if in_force is not None else 0)
    if not any(each.number == wanted for each in versions):
        raise InvalidPlan(f"there is no plan {label!r}. Known: {_listed(known.plans)}")
    return name, wanted


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND


def _time(micros: int) -> datetime:
    return EPOCH + MICROSECOND * micros
