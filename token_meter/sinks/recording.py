"""From events to records: which events a billing backend gets, whose they are there, and what it is told of them.

    event -> (filter, mode) -> measures -> records

What cannot become a record becomes a refusal that says what to do.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, Literal, TypeVar

from token_meter.errors import Refusal, Retry
from token_meter.event import MeterEvent
from token_meter.sinks.base import Accounts
from token_meter.sinks.mapping import Mapped, Measure, Table
from token_meter.sinks.records import BACK, Record, identifier_of, records_of, whole_of
from token_meter.steps import Steps, worked_off

Mode = Literal["live", "test"]
MODES: Final = ("live", "test")

Customers = Mapping[str, str] | Callable[[MeterEvent], str | None] | Literal["registered", "same"]
"""How a destination's id of a customer is found.

"registered": in `external_ids` of the customer in the ledger. "same": there too, and where nothing is set it is ours.
A mapping of ours to theirs, or a function of the event, which returns None for a customer it does not know.
"""

CUSTOMER_KEY: Final = "customer"
EVENT_KEY: Final = "event"
STEP_EVENTS: Final = 50
"""Of how many events records are made in one step."""

Found = TypeVar("Found")


class Recording:
    """The half of a billing sink that knows events, customers and the mapping, and no request.

    Events of the other mode: test usage never reaches a live backend, it is left out. Live usage is refused by a sink
    in test mode, because somebody gave it the wrong key. `where` says which events the sink gets at all.
    """

    vendor: ClassVar[str] = "backend"
    """Its name in `Customer.external_ids`."""
    shown: ClassVar[str] = "the backend"
    """Its name in messages."""

    def __init__(
        self,
        *,
        name: str,
        mapping: Mapped,
        customers: Customers,
        unattributed: str | None,
        mode: Mode,
        where: Callable[[MeterEvent], bool] | None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be 'live' or 'test', not {mode!r}")
        if isinstance(customers, str) and customers not in ("registered", "same"):
            raise ValueError(f"customers must be 'registered', 'same', a mapping or a function, not {customers!r}")
        self.name = name
        self.mode: Mode = mode
        self._map = mapping if isinstance(mapping, Table) else lambda event: checked(mapping(event))
        self._customers = customers
        self._unattributed = unattributed
        self._where = where
        self._accounts: Accounts | None = None

    def bind(self, accounts: Accounts) -> None:
        """Work with this ledger: customers' ids, and the events that corrections name."""
        self._accounts = accounts

    def wants(self, event: MeterEvent) -> bool:
        """Whether the event is for this sink: of its mode, let through by `where`, and not a mere placeholder."""
        if event.mode != self.mode and event.mode == "test":
            return False
        if not event.usage and event.corrects is None:
            return False
        where = self._where
        return where is None or self._asked("filter where=", lambda: where(event))

    def records(self, events: Iterable[MeterEvent]) -> tuple[list[Record], list[Refusal]]:
        """What is to be reported of these events, and why some of them cannot be."""
        return worked_off(self.recording(events))

    def recording(self, events: Iterable[MeterEvent]) -> Steps[tuple[list[Record], list[Refusal]]]:
        """The same in small steps."""
        given = list(events)
        wanted, refusals = self._wanted(given)
        corrected = self._corrected(wanted, given)
        ids = self._ids_of([*wanted, *(each for each in corrected.values() if each is not None)])
        yield
        records: list[Record] = []
        for number, event in enumerate(wanted, 1):
            try:
                made = self._records_of(event, corrected, ids)
            except _Failed as failed:
                made = Refusal(event, str(failed))
            if isinstance(made, Refusal):
                refusals.append(made)
            else:
                records += made
            if number % STEP_EVENTS == 0:
                yield
        return records, refusals

    def _wanted(self, events: Iterable[MeterEvent]) -> tuple[list[MeterEvent], list[Refusal]]:
        wanted: list[MeterEvent] = []
        refusals: list[Refusal] = []
        for event in events:
            try:
                if self.wants(whole_of(event)[0]):
                    wanted.append(event)
            except _Failed as failed:
                refusals.append(Refusal(event, str(failed)))
        return wanted, refusals

    def _records_of(
        self, event: MeterEvent, corrected: Mapping[str, MeterEvent | None], ids: Mapping[str, str]
    ) -> list[Record] | Refusal:
        if event.mode != self.mode:
            return Refusal(
                event,
                f"this is live usage and the sink {self.name!r} reports to a test account of {self.shown}. Give it the "
                "live key and release the event; or, for trials, meter with TOKEN_METER_MODE=test",
            )
        whole, keys = whole_of(event)
        if keys is None and event.corrects is None:
            return self._own(event, whole, ids)
        reversed_: list[Record] | Refusal = []
        if keys is None or any(key.startswith(BACK) for key in keys):
            reversed_ = self._reversed(event, corrected, ids)
        if isinstance(reversed_, Refusal):
            return reversed_
        own: list[Record] | Refusal = []
        if event.usage and (keys is None or not all(key.startswith(BACK) for key in keys)):
            own = self._own(event, whole, ids)
        if isinstance(own, Refusal):
            return own
        return [record for record in (*reversed_, *own) if keys is None or record.key in keys]

    def _own(self, event: MeterEvent, whole: MeterEvent, ids: Mapping[str, str]) -> list[Record] | Refusal:
        """The records of an event itself."""
        customer = self._customer_of(whole, ids)
        if isinstance(customer, Refusal):
            return replace_event(customer, event)
        return records_of(event, self._measures(whole), customer)

    # ---- the user's functions ----

    def _measures(self, event: MeterEvent) -> list[Measure]:
        """What the mapping makes of an event. Raises _Failed."""
        return self._asked("mapping", lambda: self._map(event))

    def _asked(self, what: str, function: Callable[[], Found]) -> Found:
        """The result of a function of the user's. What it raises is about this event, unless that is a Retry."""
        try:
            return function()
        except Retry:
            raise
        except Exception as problem:
            raise _Failed(f"the {what} of sink {self.name!r} failed: {type(problem).__name__}: {problem}") from problem

    # ---- whose they are ----

    def _ids_of(self, events: Iterable[MeterEvent]) -> Mapping[str, str]:
        """Their ids of the customers of these events, as far as the ledger knows them."""
        if not isinstance(self._customers, str) or self._accounts is None:
            return {}
        wanted = {event.customer for event in events if event.customer is not None}
        return self._accounts.external_ids(wanted, backend=self.vendor, mode=self.mode) if wanted else {}

    def _customer_of(self, event: MeterEvent, ids: Mapping[str, str]) -> str | Refusal:
        found = self._looked_up(event, ids)
        if found:
            return found
        if event.customer is None and self._unattributed is not None:
            return self._unattributed
        if event.customer is None and not callable(self._customers):
            return Refusal(
                event,
                "it has no customer. Enter a correction that names one (meter.record(..., corrects=...)) and discard "
                f"this one, or give the sink {self.name!r} unattributed=<an id of {self.shown}> and release it",
            )
        if callable(self._customers) or self._customers != "registered":
            return Refusal(event, f"the sink {self.name!r} was given no id of {self.shown} for {event.customer!r}")
        return Refusal(
            event,
            f"customer {event.customer!r} has no id at {self.shown}. It is sent when that is set: `token-meter "
            f"customers set {shlex.quote(event.customer or '')} --external {self.vendor}=ID"
            + ("`" if self.mode == "live" else f" --mode {self.mode}`")
            + ("" if self._accounts is not None else " (and this meter needs a ledger, which holds customers)"),
            awaits=f"{CUSTOMER_KEY}:{event.customer}",
        )

    def _looked_up(self, event: MeterEvent, ids: Mapping[str, str]) -> str | None:
        customers, customer = self._customers, event.customer
        if isinstance(customers, str):
            return None if customer is None else ids.get(customer) or (customer if customers == "same" else None)
        if not callable(customers):
            return None if customer is None else customers.get(customer)
        ask = customers
        return self._asked("function customers=", lambda: _text_or_none(ask(event)))

    def ready(self, awaits: str) -> bool:
        """Whether what refused events wait for is there: a customer's id, an event that is corrected."""
        kind, _, id = awaits.partition(":")
        if self._accounts is None:
            return False
        if kind == EVENT_KEY:
            return self._accounts.event(id) is not None
        return bool(self._accounts.external_ids([id], backend=self.vendor, mode=self.mode))

    # ---- corrections ----

    def _corrected(self, events: Sequence[MeterEvent], batch: Iterable[MeterEvent]) -> dict[str, MeterEvent | None]:
        """The events that these correct, by id, from the batch or the ledger; None for one that is not known (yet)."""
        wanted = {event.corrects for event in events if event.corrects is not None}
        if not wanted:
            return {}
        here = {event.id: event for event in batch if event.id in wanted and (event.usage or event.corrects)}
        look_up = self._accounts.event if self._accounts is not None else (lambda id: None)
        # The ledger first: of the batch it may be a part that was refused and released.
        return {id: look_up(id) or here.get(id) for id in wanted}

    def _reversed(
        self, event: MeterEvent, corrected: Mapping[str, MeterEvent | None], ids: Mapping[str, str]
    ) -> list[Record] | Refusal:
        """The records that take back what the corrected event reported."""
        if event.corrects is None:
            return []
        original = corrected[event.corrects]
        if original is None:
            return Refusal(
                event,
                f"it corrects the event {event.corrects}, which is not in the ledger"
                + (" (yet)" if self._accounts is not None else ": give the meter a ledger"),
                awaits=f"{EVENT_KEY}:{event.corrects}",
            )
        if not self.wants(original) or original.mode != self.mode or not original.usage:
            return []
        customer = self._customer_of(original, ids)
        if isinstance(customer, Refusal):
            # Usage of nobody was never reported, and never will be: there is nothing to take back.
            return [] if original.customer is None else replace_event(customer, event)
        return [self.reversal(event, original, measure, customer) for measure in self._measures(original)]

    def reversal(self, event: MeterEvent, original: MeterEvent, measure: Measure, customer: str) -> Record:
        """The record that takes back one measure of `original`: the same with a negative value, at the same time."""
        return Record(
            event,
            measure,
            customer,
            identifier_of(event.id, f"{BACK}{measure.key}"),
            original.time,
            -measure.value,
            reverses=identifier_of(original.id, measure.key),
        )


class _Failed(Exception):
    """A function of the user's raised."""


def checked(measures: Iterable[Measure]) -> list[Measure]:
    """What a mapping made, if it is that. Raises TypeError and ValueError."""
    found = list(measures)
    keys = set()
    for each in found:
        if not isinstance(each, Measure):
            raise TypeError(f"a mapping makes Measures, not {type(each).__name__}")
        keys.add(each.key)
    if len(keys) < len(found):
        # Their identifiers would be the same, and only one of them would count.
        raise ValueError(f"it makes two measures with one key: {', '.join(each.key for each in found)}")
    return found


def _text_or_none(found: object) -> str | None:
    if found is not None and not isinstance(found, str):
        raise TypeError(f"it has to return a text or None, not {type(found).__name__}")
    return found


def replace_event(refusal: Refusal, event: MeterEvent) -> Refusal:
    """The same refusal, of another event."""
    return refusal._replace(event=event)
