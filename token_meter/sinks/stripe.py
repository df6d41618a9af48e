"""Stripe: usage as meter events, one at a time and validated at once, or streamed by the hundred.

Facts about the API, with their sources, stand in docs/decisions.md under "Billing backends". What shapes this file:

* A meter event counts once per `identifier`, for 24 hours. So the same record always has the same identifier, and what
  may have arrived longer ago is looked up in the meter's summaries before it is sent again (`stripe_summaries`).
* Single events are validated when they are sent, one request at a time per customer and meter; a stream takes 100 in a
  request and validates later (`stripe_reports` takes those errors).
* Values are strings of whole numbers; timestamps lie within the past 35 days and the next 5 minutes.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final

from token_meter.errors import Rejected, Retry, SinkError
from token_meter.event import MeterEvent
from token_meter.sinks import stripe_wire as wire
from token_meter.sinks.backend import (
    CUSTOMER_KEY,
    TAKEN,
    BackendSink,
    Call,
    Customers,
    Mode,
    Record,
    Refused,
    Verdict,
    chunks,
    parts_refused,
    refused_or_halved,
)
from token_meter.sinks.base import Report, Unsent
from token_meter.sinks.http import Answer, Http, KeyRefused, Secret, secret_of
from token_meter.sinks.mapping import Mapped, Properties, Rule, measured, types_of
from token_meter.sinks.stripe_models import stripe_model
from token_meter.sinks.stripe_reports import SECRET_VARIABLE, read_report
from token_meter.sinks.stripe_session import StreamSession
from token_meter.sinks.stripe_summaries import Summaries, uncounted_records

API_URL: Final = "https://api.stripe.com"
STREAM_URL: Final = "https://meter-events.stripe.com"
API_VERSION: Final = "2026-10-28.endive"
KEY_VARIABLE: Final = "STRIPE_API_KEY"

TOKEN_BILLING: Final = "token-billing-tokens"
"""The event name of Stripe's billing for LLM tokens."""

TOKEN_TYPES: Final[Mapping[str, str]] = {
    "input": "input",
    "cached input": "cached_input",
    "cache write": "input",
    "output": "output",
    "cached output": "output",
}
"""Token billing's `token_type` for each headline. Two headlines of one spelling are summed.

`input` and `output` are what Stripe's clients send. They send no cached type, so its spelling is a guess: look at what
your account's meter has prices for, and change it with `StripeSink(token_types=...)` before you send anything.
"""

STREAM_EVENTS_MAX: Final = 100
PAST_SECONDS_MAX: Final = 35 * 86_400.0
FUTURE_SECONDS_MAX: Final = 290.0
"""Ten seconds less than Stripe's five minutes, for the way there."""
REMEMBERED_SECONDS: Final = 86_400.0
IN_FLIGHT_MAX: Final = 64
TRIES: Final = 4
"""So often a single event is sent before the batch is put off, with a pause that doubles from this:"""
PAUSE_SECONDS: Final = 0.1


class StripeSink(BackendSink):
    """Reports usage to Stripe as meter events.

    Without `mapping` it is Stripe's billing for LLM tokens: events `token-billing-tokens` with `model`
    ("openai/gpt-5"), `token_type` ("input", "cached_input", "output") and a `value`. With `mapping`, a sequence of
    `Rule`s or a function, it is any meters of yours: a rule's `meter` is the event name, its `properties` and what
    `properties` reads off the event stand in the payload. `customer_key` and `value_key` are the meter's own.

    `api_key` is the key or a function that returns it (default: $STRIPE_API_KEY, read when needed); a restricted key
    needs to write meter events, and to read meters for `deliver check`, reconciliation and the 24-hour rule. `api`:
    "v2" and "v1" send single events, which are validated at once, `in_flight` at a time but never two of one customer
    and meter; "stream" sends 100 in a request, which are validated later: for volume, with a webhook for the errors.

    `webhook_secret` (default: $STRIPE_WEBHOOK_SECRET) verifies the error reports that `meter.take_report` is given.
    Customers need their Stripe id (`external_ids["stripe"]`, or another way, see `Customers`).
    """

    vendor: ClassVar[str] = "stripe"
    shown: ClassVar[str] = "Stripe"
    counted_step: ClassVar[timedelta] = timedelta(minutes=1)

    def __init__(
        self,
        api_key: Secret | None = None,
        *,
        mapping: Sequence[Rule] | Mapped | None = None,
        properties: Properties | None = None,
        token_types: Mapping[str, str] = TOKEN_TYPES,
        model: Callable[[MeterEvent], str] = stripe_model,
        event_name: str = TOKEN_BILLING,
        api: wire.Api = "v2",
        in_flight: int = 8,
        customer_key: str = "stripe_customer_id",
        value_key: str = "value",
        customers: Customers = "registered",
        unattributed: str | None = None,
        mode: Mode | None = None,
        where: Callable[[MeterEvent], bool] | None = None,
        name: str = "stripe",
        base_url: str = API_URL,
        stream_url: str | None = None,
        webhook_secret: Secret | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        if api not in ("v1", "v2", "stream"):
            raise ValueError(f"api must be 'v1', 'v2' or 'stream', not {api!r}")
        if not 1 <= in_flight <= IN_FLIGHT_MAX:
            raise ValueError(f"in_flight must be between 1 and {IN_FLIGHT_MAX}, not {in_flight}")
        self._key = secret_of(api_key, variable=KEY_VARIABLE, what="Stripe")
        self._webhook_secret = secret_of(webhook_secret, variable=SECRET_VARIABLE, what="Stripe's webhook")
        self.rules: tuple[Rule, ...] | None = None
        if mapping is None:
            mapping = token_billing(token_types, event_name=event_name)
            properties = {"model": model, **(properties or {})}
        if not callable(mapping):
            self.rules = tuple(mapping)
            mapping = measured(self.rules, properties or {})
        http = Http(base_url, what="Stripe", authorise=self._headers, connections_max=in_flight, now=now)
        super().__init__(
            name=name,
            http=http,
            mapping=mapping,
            customers=customers,
            unattributed=unattributed,
            mode=mode or _mode_of(api_key),
            where=where,
        )
        self.api: wire.Api = api
        self._in_flight = in_flight
        self._customer_key = customer_key
        self._value_key = value_key
        self._now = now
        self._summaries = Summaries(http)
        stream = stream_url or (STREAM_URL if base_url == API_URL else base_url)
        self._stream = StreamSession(http, stream, now=now)

    # ---- sending ----

    def calls(self, records: Sequence[Record]) -> Iterator[Call]:
        """Single events and cancellations one by one; streamed events by the hundred."""
        streamed = [record for record in records if self.api == "stream" and not _cancels(record)]
        for record in records:
            if self.api != "stream" or _cancels(record):
                yield self.call((record,))
        for piece in chunks(streamed, STREAM_EVENTS_MAX):
            yield self._streamed(piece)

    def call(self, records: Sequence[Record]) -> Call:
        """One request: of one record on the single endpoints, of many on the stream."""
        record = records[0]
        if _cancels(record):
            return wire.cancellation(record, self.api)
        return self._streamed(records) if self.api == "stream" else self._single(record)

    def deliver(self, records: Sequence[Record]) -> list[Refused]:
        """Send everything, single events in lanes: one for each customer and meter, several at a time."""
        refused: list[Refused] = []
        lanes: dict[tuple[str, str], list[Call]] = {}
        for call in self.calls(records):
            if call.path == wire.STREAM_PATH:
                refused += self.settle(call)
            else:
                record = call.records[0]
                lanes.setdefault((record.customer, record.measure.meter), []).append(call)
        for found in _in_lanes(self._lane, list(lanes.values()), self._in_flight):
            refused += found
        return refused

    def _lane(self, calls: Sequence[Call]) -> list[Refused]:
        return [refused for call in calls for refused in self.settle(call)]

    def post(self, call: Call) -> Answer:
        """To the stream, or to the single endpoints with patience.

        Stripe's own client does not retry 429, and one busy moment must not put off a whole batch.
        """
        if call.path == wire.STREAM_PATH:
            return self._stream.post(call.path, call.body, headers=call.headers)
        for attempt in range(1, TRIES):
            try:
                return self._posted(call)
            except KeyRefused:
                raise
            except Retry as retry:
                if retry.after is not None and retry.after > 1.0:
                    raise
                time.sleep(retry.after or PAUSE_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5))
        return self._posted(call)

    def _posted(self, call: Call) -> Answer:
        answer = super().post(call)
        if answer.status == 409:
            # v2 says so, where v1 says 429, when another request for this customer and meter is under way.
            raise Retry(f"Stripe is busy with this customer and meter (HTTP 409): {wire.error(answer)[1]}")
        return answer

    def judge(self, answer: Answer, call: Call) -> Verdict:
        """Stripe says at once what is wrong with a single event; of a stream only that it is not well formed."""
        code, message = wire.error(answer)
        said = f"{code} {message}"
        if wire.ALREADY.search(said):
            return TAKEN
        record = call.records[0]
        if _cancels(record):
            return self._not_cancelled(record, message)
        if len(call.records) > 1:
            return refused_or_halved(call.records, f"Stripe: {message}")
        if wire.FUTURE.search(said) and self._clamped(record) != record.time and call.body != self.call((record,)).body:
            # Our clock is fast, which this very answer has told: the same event again, at their time.
            return Verdict(again=[(record,)])
        return Verdict(refused=[Refused(record, f"Stripe: {message}", self._awaited(record, said))])

    def unfit(self, record: Record) -> Refused | None:
        """What lies outside of Stripe's window can never be counted."""
        if record.time.timestamp() < self._http.their_time - PAST_SECONDS_MAX:
            return Refused(
                record,
                "it is older than 35 days, which is as far back as Stripe takes usage: charge it in another way (an "
                "invoice item), then discard it here",
            )
        return None

    def _awaited(self, record: Record, said: str) -> str | None:
        if wire.METER.search(said):
            return f"{METER_KEY}:{record.measure.meter}"
        if wire.CUSTOMER.search(said) and self._customers == "registered" and record.event.customer is not None:
            return f"{CHANGE_KEY}:{record.customer}:{record.event.customer}"
        return None

    def ready(self, awaits: str) -> bool:
        """Whether a meter is active again, or a customer's id is another one by now; else as any backend."""
        kind, _, rest = awaits.partition(":")
        if kind == METER_KEY:
            return self._summaries.meter(rest) is not None
        if kind == CHANGE_KEY:
            old, _, customer = rest.partition(":")
            known = self._accounts and self._accounts.external_ids([customer], backend=self.vendor, mode=self.mode)
            return bool(known) and known.get(customer) not in (None, old)  # type: ignore[union-attr]
        return super().ready(awaits)

    # ---- what goes out ----

    def _single(self, record: Record) -> Call:
        return wire.single(record, self.api, payload=self._payload(record), moment=self._clamped(record))

    def _streamed(self, records: Sequence[Record]) -> Call:
        documents = [wire.document(record, self._payload(record), self._clamped(record)) for record in records]
        return Call(wire.STREAM_PATH, wire.as_json({"events": documents}), wire.JSON, records)

    def _payload(self, record: Record) -> dict[str, str]:
        return {
            **record.measure.properties,
            self._customer_key: record.customer,
            self._value_key: str(record.value),
        }

    def _clamped(self, record: Record) -> datetime:
        """The time of the event; Stripe's own where ours is further ahead than it takes."""
        theirs = self._http.their_time
        if record.time.timestamp() <= theirs + FUTURE_SECONDS_MAX:
            return record.time
        return datetime.fromtimestamp(theirs, UTC)

    # ---- corrections ----

    def _not_cancelled(self, record: Record, message: str) -> Verdict:
        """Too late to cancel: what was reported is taken back with a negative value, which counts the same."""
        if wire.TOO_LATE.search(message):
            answer = super().post(self._single(record))
            code, said = wire.error(answer)
            if answer.ok or wire.ALREADY.search(f"{code} {said}"):
                return TAKEN
            return Verdict(refused=[Refused(record, f"Stripe: {said}")])
        reason = (
            f"Stripe cannot cancel {record.reverses}: {message}. Was the corrected event delivered? If it waits in "
            "quarantine, release it first, then this one"
        )
        return Verdict(refused=[Refused(record, reason)])

    # ---- the 24-hour rule ----

    @property
    def remembers_seconds(self) -> float:
        """How long Stripe knows an identifier."""
        return REMEMBERED_SECONDS

    def now(self) -> float:
        """The time in seconds since 1970."""
        return self._now()

    def uncounted(self, events: Sequence[MeterEvent], *, unsent: Unsent) -> list[MeterEvent]:
        """What of these Stripe has not counted, by its summaries and the ledger; Rejected for what cannot be told."""
        records, refusals = self.records(events)
        if self._accounts is None:
            raise Rejected(
                [record.event for record in records],
                "it may have reached Stripe more than 24 hours ago, and Stripe counts it again if it is sent again. "
                "Compare with `token-meter reconcile sink`, then release or discard it (with a ledger beside the sink, "
                "that is done by itself)",
            )
        missing, unclear = uncounted_records(
            records, self._summaries, self._accounts, expected=self._expected, unsent=unsent
        )
        # What has no id or customer yet is refused when it is sent; it never went out.
        ids = {record.event.id for record in missing} | {refusal.event.id for refusal in refusals}
        if unclear:
            raise Rejected.each(unclear, rest_taken=False)
        return [_only(event, missing) for event in events if event.id in ids]

    def _expected(self, external: str, since: datetime, until: datetime) -> list[Record]:
        """The records of everything in the ledger that goes to this Stripe customer, with a time in [since, until)."""
        assert self._accounts is not None
        found: dict[str, MeterEvent] = {}
        for customer in self._customers_behind(external):
            for event in self._accounts.events(since=since, until=until, customer=customer):
                found[event.id] = event
        records, _ = self.records(found.values())
        return [each for each in records if each.customer == external and since <= each.time < until]

    def _customers_behind(self, external: str) -> Collection[str | None]:
        if self._customers == "registered" and self._accounts is not None and external != self._unattributed:
            return self._accounts.customers_of(external, backend=self.vendor, mode=self.mode)
        return [None]  # no way back from their id: every customer's events are looked through

    # ---- reading back ----

    def counted(
        self, *, since: datetime, until: datetime, pairs: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], int]:
        """What Stripe counted in [since, until), whole minutes, for these (customer, event name) pairs."""
        return {
            (customer, meter): self._summaries.total(meter, customer, since=since, until=until)
            for customer, meter in pairs
        }

    def report_in(self, body: bytes, headers: Mapping[str, str]) -> Report | None:
        """The events that an error report names, to be quarantined; None for other events of Stripe.

        Raises InvalidReport for a request that Stripe did not sign, and Retry when it cannot be read now.
        """
        report = read_report(body, headers, secret=self._webhook_secret(), http=self._http)
        if report is None:
            return None
        if self._accounts is None:
            raise Retry("an error report names events by id: the meter needs a ledger to look them up")
        refused: list[Refused] = []
        whole: list[Record] = []
        unknown: list[str] = []
        for sample in report.samples:
            event = self._accounts.event(sample.identifier.rpartition(":")[0])
            records = self.records([event])[0] if event is not None else []
            mine = [record for record in records if record.identifier == sample.identifier]
            if not mine:
                unknown.append(sample.identifier)
                continue
            whole += [record for record in records if record not in whole]
            said = f"Stripe refused it afterwards (report {report.id}): {sample.code} {sample.message}".strip()
            refused.append(Refused(mine[0], said, self._awaited(mine[0], sample.code)))
        unnamed = max(0, report.errors - len(report.samples))
        return Report(report.id, tuple(parts_refused(whole, refused)), unnamed, tuple(unknown))

    def check(self) -> list[str]:
        """Prove the key, and that the meters are there. Raises SinkError."""
        names = self._summaries.names(refresh=True)
        lines = [f"Stripe takes the key ({self.mode} mode): {len(names)} active meters"]
        wanted = {rule.meter for rule in self.rules or () if rule.meter}
        missing = sorted(wanted - set(names))
        if missing:
            raise SinkError(
                f"Stripe has no active meter with the event name {', '.join(missing)} "
                f"(there is: {', '.join(sorted(names)) or 'none'}). Create it in Stripe, or map to another"
            )
        lines += [f"meter {meter} is active" for meter in sorted(wanted)]
        return lines

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._stream.close()

    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._key()}", "Stripe-Version": API_VERSION}


METER_KEY: Final = "meter"
CHANGE_KEY: Final = f"{CUSTOMER_KEY}-changes"


def token_billing(token_types: Mapping[str, str] = TOKEN_TYPES, *, event_name: str = TOKEN_BILLING) -> list[Rule]:
    """The rules of Stripe's billing for LLM tokens: one for each spelling of a token type."""
    by_spelling: dict[str, list[str]] = {}
    for headline, spelling in token_types.items():
        by_spelling.setdefault(spelling, []).append(headline)
    return [
        Rule(key=spelling, meter=event_name, types=types_of(*headlines), properties={"token_type": spelling})
        for spelling, headlines in by_spelling.items()
        if spelling
    ]


def _mode_of(key: Secret | None) -> Mode:
    """The mode of the key, as its beginning tells."""
    import os

    text = key() if callable(key) else key or os.environ.get(KEY_VARIABLE, "")
    return "test" if re.match(r"(?:sk|rk)_test_", text.strip()) else "live"


def _cancels(record: Record) -> bool:
    """Whether a record takes back one that Stripe can still cancel. It depends on the events alone, not on the hour:
    what was cancelled by one attempt must not be taken back with a negative value by the next."""
    return record.reverses is not None and (record.event.time - record.time).total_seconds() < REMEMBERED_SECONDS


def _only(event: MeterEvent, missing: Sequence[Record]) -> MeterEvent:
    """The part of an event whose records are missing; all of it if all are, or if it cannot be divided."""
    from dataclasses import replace

    from token_meter.usage import Usage

    mine = [record for record in missing if record.event.id == event.id]
    types = {name for record in mine for name in record.measure.types}
    if event.corrects is not None or not types or types >= set(event.usage):
        return event
    return replace(event, usage=Usage({name: value for name, value in event.usage.items() if name in types}))


def _in_lanes(
    work: Callable[[Sequence[Call]], list[Refused]], lanes: Sequence[Sequence[Call]], in_flight: int
) -> list[list[Refused]]:
    """Work off each lane in order, several lanes at a time. All are finished before a failure of one is raised."""
    if len(lanes) < 2 or in_flight == 1:
        return [work(lane) for lane in lanes]
    try:
        pool = ThreadPoolExecutor(min(in_flight, len(lanes)), thread_name_prefix="token-meter-stripe")
        futures = [pool.submit(work, lane) for lane in lanes]
    except RuntimeError:  # the interpreter is going down and starts no threads any more
        return [work(lane) for lane in lanes]
    with pool:
        pass
    return [future.result() for future in futures]
