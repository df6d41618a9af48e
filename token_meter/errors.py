"""Every error `token_meter` raises, in one tree.

TokenMeterError
  UnsupportedClient      `wrap` was given something it cannot meter
  MeteringUnavailable    a supported SDK lacks the hook metering needs: refuse rather than bill zero
  BudgetExceeded         the only error metering raises into a model call, and only where a budget is set
  NoLedger               a query was asked of a meter that has no ledger
  JournalError           the journal folder cannot be used as asked
  NewerSchema            data written by a newer version: upgrade before reading it
  InvalidEvent           a line or row is not a meter event
  InvalidCustomer        a field of a customer cannot be what it says
  InvalidDocument        a file of prices, plans or credits is not what it should be; says line and field
    InvalidPrices        price overrides or a price feed
    InvalidPlan          rate cards and plans
  InvalidBudget          a budget or a credit policy cannot be what it says
  InvalidEndpoint        a webhook endpoint for notices cannot be what it says
  InvalidReport          what came to a webhook is no report of the destination's (also a ValueError)
  MissingExtra           an optional package is needed: says which (is also an ImportError)
  SinkError
    Retry                the destination cannot take the batch now; send it again later
    Rejected             the destination will never take these events
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from token_meter.event import MeterEvent


class TokenMeterError(Exception):
    """Base of everything this package raises."""


class UnsupportedClient(TokenMeterError):
    """The object given to `wrap` is not a client this package can meter."""


class MeteringUnavailable(TokenMeterError):
    """The SDK is a supported one, but the hook that metering needs is not there."""


REFUSALS: Final = (
    "budget", "credit", "paused", "unpriced", "currency", "no_worst_case", "unreachable", "cut_off", "unknown",
)  # fmt: skip
"""Why a call is refused: `BudgetExceeded.reason`."""


class BudgetExceeded(TokenMeterError):
    """A budget set by the operator leaves no room for this call: nothing was sent, and nothing is billed.

    (Raised by a stream: its budget was used up while it ran; what it had produced is billed.) `reason` says why, one of
    `REFUSALS`; `budget` is what refused ("credit", "paused", "unreachable", or the budget's label), `scope` whose it
    is, `limit`, `spent` and `held` are decimals of `unit`, `needed` is what this call was taken to need, `resets_at`
    when waiting helps (None: it does not), and `retry_after` so many seconds; `command` is what an operator would type.
    What does not apply is None. The message is for operators: show your customers one of your own.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "budget",
        budget: str = "",
        scope: str = "",
        unit: str = "",
        limit: Decimal | None = None,
        spent: Decimal | None = None,
        held: Decimal | None = None,
        needed: Decimal | None = None,
        resets_at: datetime | None = None,
        retry_after: float | None = None,
        command: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.budget = budget
        self.scope = scope
        self.unit = unit
        self.limit = limit
        self.spent = spent
        self.held = held
        self.needed = needed
        self.resets_at = resets_at
        self.retry_after = retry_after
        self.command = command


class NoLedger(TokenMeterError):
    """A query needs a ledger and this meter has none."""


class JournalError(TokenMeterError):
    """The journal folder cannot be used as asked (other sinks, other owner, unreadable)."""


class NewerSchema(TokenMeterError):
    """The data was written by a newer version of this package."""


class InvalidEvent(TokenMeterError, ValueError):
    """A journal line, row or argument does not describe a meter event."""


class InvalidCustomer(TokenMeterError, ValueError):
    """What was given does not describe a customer; the message names the customer and the field."""


class InvalidDocument(TokenMeterError, ValueError):
    """A file (or the same as an object) is not what it should be; the message names file, line and field."""


class InvalidPrices(InvalidDocument):
    """Price overrides or a price feed cannot be used."""


class InvalidPlan(InvalidDocument):
    """A rate card, a plan or a subscription cannot be used."""


class InvalidInvoice(TokenMeterError, ValueError):
    """An invoice cannot be drawn up, found or changed like this; the message says why and what to do."""


class InvalidCredit(TokenMeterError, ValueError):
    """A credit grant, pack or refund cannot be what it says."""


class NotVerified(TokenMeterError):
    """An invoice is not what its events, prices and plans make it: somebody changed one of them."""


class InvalidBudget(TokenMeterError, ValueError):
    """A budget or a credit policy cannot be what it says; the message names the field and what to write."""


class InvalidEndpoint(TokenMeterError, ValueError):
    """A webhook endpoint for notices cannot be what it says, or there is none of this id."""


class InvalidReport(TokenMeterError, ValueError):
    """A request to a webhook that the destination did not sign, or that cannot be read. Answer it with 400."""


class MissingExtra(TokenMeterError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class SinkError(TokenMeterError):
    """A destination did not take a batch."""


class Retry(SinkError):
    """Raised by a sink: nothing is wrong with the events, send the batch again.

    `after` is the number of seconds the destination asked to wait, if it said so.
    """

    def __init__(self, message: str = "try again later", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Refusal(NamedTuple):
    """Why a destination does not take one event.

    `event` is the event, or the part of it (the same id, fewer token types) that was refused while the rest was taken.
    `awaits` names what would change the answer, in words of the sink's own: `ready(awaits)` of the sink is asked
    from time to time, and when that is true the event goes out again without a human.
    """

    event: MeterEvent
    reason: str
    awaits: str | None = None


class Rejected(SinkError):
    """Raised by a sink: these events will not be accepted as they are; the rest of the batch is sent again.

    `events` are quarantined with `reason`. For a reason of its own for each event, and for a sink that has already
    delivered the rest, raise `Rejected.each(refusals, rest_taken=...)`.
    """

    def __init__(self, events: Sequence[MeterEvent], reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refusals = tuple(Refusal(event, reason) for event in events)
        self.rest_taken = False

    @classmethod
    def each(cls, refusals: Sequence[Refusal], *, rest_taken: bool) -> Rejected:
        """Refusals with a reason each. `rest_taken`: every other event of the batch is safely there already."""
        reasons = list(dict.fromkeys(refusal.reason for refusal in refusals))
        said = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else "")
        rejected = cls((), said)
        rejected.refusals = tuple(refusals)
        rejected.rest_taken = rest_taken
        return rejected

    @property
    def events(self) -> tuple[MeterEvent, ...]:
        """What was refused."""
        return tuple(refusal.event for refusal in self.refusals)
