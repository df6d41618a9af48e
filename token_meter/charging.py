"""The billing side of a Meter: what usage costs, who is on which plan, credit, invoices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from datetime import date, datetime
    from decimal import Decimal

    from token_meter.billing.credit import CreditGrant
    from token_meter.billing.invoice import Invoice
    from token_meter.billing.plans import Period, Subscription
    from token_meter.bookkeeping.credit_book import CreditBook
    from token_meter.bookkeeping.invoice_book import InvoiceBook
    from token_meter.bookkeeping.plan_book import PlanBook
    from token_meter.budgets.budget import Budget
    from token_meter.budgets.desk import BudgetDesk
    from token_meter.event import MeterEvent
    from token_meter.ledger import Ledger
    from token_meter.ledger.costs import CostRow

    Moment = datetime | date | str | None


class Charging(ABC):
    """What a Meter does beyond metering; every method needs a ledger, and first delivers this process's events."""

    @property
    @abstractmethod
    def ledger(self) -> Ledger:
        """The ledger behind the meter."""

    @property
    @abstractmethod
    def _mode(self) -> str: ...

    @abstractmethod
    def _catch_up(self) -> None: ...

    @abstractmethod
    def record_event(self, event: MeterEvent) -> None:
        """Enter an event that was made elsewhere."""

    def costs(
        self,
        customer: str | object | None = ...,
        *,
        by: Sequence[str] | str = ("model",),
        since: Moment = None,
        until: Moment = None,
        bucket: Literal["hour", "day", "month"] | None = None,
        time_zone: str = "UTC",
        **filters: Any,
    ) -> list[CostRow]:
        """Usage with what it cost (USD), what is charged for it and the margin, exact; arguments as for `usage`.

        What has no price is in no sum: `row.unpriced` names it, `row.reasons` says why.
        """
        ledger = self._rated()
        if customer is not ... and customer is not None:
            filters["customer"] = customer
        keys = (by,) if isinstance(by, str) else tuple(by)
        return ledger.costs(by=keys, since=since, until=until, bucket=bucket, time_zone=time_zone, **filters)

    @property
    def plans(self) -> PlanBook:
        """Rate cards, plans, meters and subscriptions: read and edit them."""
        from token_meter.bookkeeping.plan_book import PlanBook

        return PlanBook(self.ledger)

    @property
    def invoices(self) -> InvoiceBook:
        """Drafts, final invoices, voids and credit notes."""
        from token_meter.bookkeeping.invoice_book import InvoiceBook

        return InvoiceBook(self.ledger)

    @property
    def credits(self) -> CreditBook:
        """Prepaid credit: grants, packs, balances, the journal; what this process has recorded is drawn first."""
        from token_meter.bookkeeping.credit_book import CreditBook

        self._catch_up()
        return CreditBook(self.ledger)

    @property
    def budgets(self) -> BudgetDesk:
        """Budgets: set, list and reset them, see what is used, release holds, say what happens without credit."""
        from token_meter.budgets.desk import BudgetDesk

        self._catch_up()
        return BudgetDesk(self.ledger)

    def budget(
        self,
        customer: str | None,
        limit: Decimal | str | int,
        *,
        per: str = "month",
        of: Literal["charge", "cost", "tokens", "requests"] = "charge",
        enforce: Literal["strict", "bounded", "soft"] | None = None,
        currency: str = "USD",
        time_zone: str | None = None,
        scope: Mapping[str, str] | None = None,
        unpriced: Literal["block", "dearest", "allow"] | None = None,
        cut_off: bool | None = None,
        tokenize: bool | None = None,
        thresholds: Sequence[int] | None = None,
        name: str | None = None,
        if_missing: bool = False,
    ) -> Budget:
        """Limit what may be spent: a call that does not fit raises BudgetExceeded before anything is sent.

        `customer` is one, `"*"` for one budget of each, `""` for calls without one, or None; `scope` narrows it
        further, by any dimension (`{"key": "*"}`). `per`: hour, day, week, month (of `time_zone`), lifetime, plan, or a
        rolling duration (24h).
        `of`: what is counted. `enforce`: "strict" refuses a call whose worst case does not fit, "bounded" one whose
        likely cost does not (the default), "soft" none. `unpriced`: what a model without a price does ("block").
        `cut_off` ends a stream when what was held for it is used up. `tokenize` counts the input of OpenAI's models
        with tiktoken before a call.

        One of the same scope, measure, currency and window is changed, and keeps what is not given here; `if_missing`
        leaves it as it is. Counts at the next call of this program, and within a second in others.

        Raises InvalidBudget.
        """
        given = {
            "enforce": enforce, "time_zone": time_zone, "unpriced": unpriced, "cut_off": cut_off,
            "tokenize": tokenize, "thresholds": thresholds, "name": name,
        }  # fmt: skip
        whose = dict(scope or {}) if customer is None else {**(scope or {}), "customer": customer}
        wanted = {
            **{field: value for field, value in given.items() if value is not None},
            "scope": whose, "limit": limit, "window": per, "measure": of, "currency": currency, "mode": self._mode,
        }  # fmt: skip
        return self.budgets.change(wanted, if_missing=if_missing)[1]

    def credit(
        self,
        customer: str,
        amount: Decimal | str | int,
        *,
        kind: Literal["paid", "promotional"] = "promotional",
        currency: str = "USD",
        priority: int = 50,
        expires: Moment = None,
        id: str | None = None,
    ) -> CreditGrant:
        """Grant credit to a customer: it is drawn from the moment on usage is recorded. More: `meter.credits`."""
        return self.credits.grant(
            customer, amount, kind=kind, currency=currency, priority=priority, expires=expires, id=id
        )

    def load_plans(
        self, file: str | os.PathLike[str] | Mapping[str, Any], *, effective_from: Moment = None
    ) -> list[str]:
        """Keep the meters, rate cards and plans of a YAML file (or a mapping); the labels of what changed.

        Raises InvalidPlan naming line and field of what is wrong.
        """
        from token_meter.bookkeeping.plan_files import read_plans

        return self.plans.keep(read_plans(file), effective_from=effective_from)

    def subscribe(self, customer: str, plan: str, *, start: Moment = None, stop: Moment = None) -> Subscription:
        """Put a customer on a plan from now on, or from `start`. Raises InvalidPlan for one that overlaps another."""
        self._catch_up()
        return self.plans.subscribe(customer, plan, start=start, stop=stop)

    def invoice(self, customer: str, period: Period | str | None = None) -> Invoice:
        """The invoice of a customer: final if it is, else as it would be now. `print` it.

        `period`: a month like "2026-11", or a Period; default: the billing period under way. Without a plan it is at
        cost, and says so. Raises InvalidInvoice if there is no billing period then.
        """
        from token_meter.bookkeeping.plan_files import read_period
        from token_meter.errors import InvalidInvoice

        self._rated()
        within = read_period(period) if isinstance(period, str) else period
        found = self.invoices.draft(customer, within=within)
        if not found:
            raise InvalidInvoice(f"{customer} has no billing period that ends within {within or 'this period'}")
        return found[-1]

    def void(self, event_id: str, *, reason: str) -> list[str]:
        """Take an event back, here and at every sink; the ids of the corrections. Raises InvalidEvent if it cannot be.

        The event stays, and what it used counts nothing any more from its own time on.
        """
        from datetime import UTC, datetime

        from token_meter.bookkeeping.event_corrections import record_all, voiding

        self._catch_up()
        made = [voiding(self.ledger, event_id, reason=reason, now=datetime.now(UTC))]
        return record_all(made, self.record_event)

    def reassign(self, event_id: str, customer: str, *, reason: str) -> list[str]:
        """Give an event to another customer, at its own time; the ids of the corrections."""
        from datetime import UTC, datetime

        from token_meter.bookkeeping.event_corrections import reassigning, record_all

        self._catch_up()
        made = reassigning(self.ledger, event_id, customer, reason=reason, now=datetime.now(UTC))
        return record_all(made, self.record_event)

    def _rated(self) -> Ledger:
        """The ledger, with everything of this process in it, and nothing left unrated that can be rated."""
        from token_meter.bookkeeping.rater import rate_pending

        ledger = self.ledger
        self._catch_up()
        rate_pending(ledger)
        return ledger
