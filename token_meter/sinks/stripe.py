"""Stripe: usage as meter events, one at a time and validated at once, or streamed by the hundred.

Facts about the API, with their sources, stand in docs/decisions.md under "Billing backends". What shapes this file:

* A meter event counts once per `identifier`, for 24 hours. So the same record always has the same identifier, and what
  may have arrived longer ago is looked up in the meter's summaries before it is sent again (`stripe_counted`).
* Single events are validated when they are sent, one request at a time per customer and meter (`stripe_lanes`); a
  stream takes 100 in a request and validates later (`stripe_reports` takes those errors).
* Values are strings of whole numbers; timestamps lie within the past 35 days and the next 5 minutes.
* What was reported can be cancelled for 24 hours (`stripe_corrections`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final

from token_meter.errors import Refusal, Retry, SinkError
from token_meter.event import MeterEvent
from token_meter.sinks import stripe_wire as wire
from token_meter.sinks.backend import BackendSink
from token_meter.sinks.base import Report, Unsent
from token_meter.sinks.http import Answer, Http, KeyRefused, Secret, Unavailable, secret_of
from token_meter.sinks.json_text import members, quote, quoted
from token_meter.sinks.mapping import Mapped, Properties, Rule, measured
from token_meter.sinks.recording import Customers, Mode
from token_meter.sinks.records import TAKEN, Call, Record, Refused, Verdict, chunks, refused_or_halved
from token_meter.sinks.repeats import without_repeats
from token_meter.sinks.stripe_corrections import LATER_KEY, Cancellations, cancels, replayed
from token_meter.sinks.stripe_counted import Recount
from token_meter.sinks.stripe_keys import KEY_VARIABLE, check_mode, mode_at_first
from token_meter.sinks.stripe_lanes import BATCH_SECONDS_MAX, in_lanes
from token_meter.sinks.stripe_models import stripe_model
from token_meter.sinks.stripe_refusals import CHANGE_KEY, METER_KEY, TOO_OLD, refused
from token_meter.sinks.stripe_reports import SECRET_VARIABLE, named_events, read_report
from token_meter.sinks.stripe_session import StreamSession
from token_meter.sinks.stripe_summaries import Summaries, misfits
from token_meter.sinks.stripe_tokens import TOKEN_BILLING as TOKEN_BILLING
from token_meter.sinks.stripe_tokens import TOKEN_TYPES as TOKEN_TYPES
from token_meter.sinks.stripe_tokens import token_billing as token_billing

API_URL: Final = "https://api.stripe.com"
STREAM_URL: Final = "https://meter-events.stripe.com"
API_VERSION: Final = "2026-10-28.endive"

STREAM_EVENTS_MAX: Final = 100
PAST_SECONDS_MAX: Final = 35 * 86_400.0
FUTURE_SECONDS_MAX: Final = 290.0
"""Ten seconds less than Stripe's five minutes, for the way there."""
REMEMBERED_SECONDS: Final = 86_400.0
LATELY_SECONDS: Final = 3_600.0
"""So long a summary may not show what was sent."""
LATELY_MAX: Final = 20_000
LAST_MOMENT: Final = 253_402_300_799.0
"""The end of the year 9999: there is no later datetime."""
IN_FLIGHT_MAX: Final = 64
TRIES: Final = 4
"""So often a request is made before the batch is put off, with a pause that doubles from this:"""
PAUSE_SECONDS: Final = 0.1
PAUSE_SECONDS_MAX: Final = 1.0


class StripeSink(BackendSink):
    """Reports usage to Stripe as meter events.

    Without `mapping` it is Stripe's billing for LLM tokens: events `token-billing-tokens` with `model`
    ("openai/gpt-5"), `token_type` ("input", "cached_input", "output") and a `value`. With `mapping`, a sequence of
    `Rule`s or a function, it is any meters of yours: a rule's `meter` is the event name, its `properties` and what
    `properties` reads off the event stand in the payload. `customer_key` and `value_key` are the meter's own.

    `api_key` is the key or a function that returns it (default: $STRIPE_API_KEY, read when needed); a restricted key
    needs to write meter events, and to read meters for `deliver check`, reconciliation and the 24-hour rule. `mode` is
    the key's; a key of the other mode is never used. `api`: "v2" and "v1" send single events, which are validated at
    once, `in_flight` at a time but never two of one customer and meter; "stream" sends 100 in a request, which are
    validated later: for volume, with a webhook for the errors.

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
            mode=mode or mode_at_first(api_key),
            where=where,
        )
        self.api: wire.Api = api
        self._in_flight = in_flight
        self._customer_key = customer_key
        self._value_key = value_key
        self._customer_member, self._value_member = f",{quote(customer_key)}:", f",{quote(value_key)}:"
        self._now = now
        self._lately: dict[str, float] = {}
        self._stream = StreamSession(http, stream_url or (STREAM_URL if base_url == API_URL else base_url), now=now)
        self._cancellations = Cancellations(self.post, self._taken_back, now=now)
        self._summaries = Summaries(http)
        self._recount = Recount(
            self._summaries,
            records=lambda events: self.records(events)[0],
            customers_behind=self._customers_behind,
            lately=lambda: [id for id, at in self._lately.copy().items() if now() - at < LATELY_SECONDS],
            clock_is_fast=lambda: http.skew_seconds < -FUTURE_SECONDS_MAX,
        )

    # ---- sending ----

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Report a batch. Retry while Stripe cannot take it, Rejected for what it refused of it."""
        super().send(events)
        if len(self._lately) > LATELY_MAX:
            self._lately = dict([*self._lately.copy().items()][-LATELY_MAX:])

    def chosen(self, events: Sequence[MeterEvent]) -> Sequence[MeterEvent]:
        """All but those that the ledger has with another time: Stripe forgets ids, and would count them again."""
        return without_repeats(events, self._accounts)

    def calls(self, records: Sequence[Record]) -> Iterator[Call]:
        """Single events and cancellations one by one; streamed events by the hundred. What takes back comes last."""
        own = [each for each in records if each.reverses is None]
        back = [each for each in records if each.reverses is not None] if len(own) < len(records) else []
        for some in (own, back):
            if self.api != "stream":
                yield from (self.call((record,)) for record in some)
                continue
            cancelling = [each for each in some if cancels(each)]
            streamed = [each for each in some if not cancels(each)] if cancelling else some
            for piece in chunks(streamed, STREAM_EVENTS_MAX):
                yield self._streamed(piece)
            yield from (self.call((record,)) for record in cancelling)

    def call(self, records: Sequence[Record]) -> Call:
        """One request: of one record on the single endpoints, of many on the stream."""
        if cancels(records[0]):
            return wire.cancellation(records[0], self.api)
        return self._streamed(records) if self.api == "stream" else self._single(records[0], self._moment(records[0]))

    def deliver(self, records: Sequence[Record], calls: Iterable[Call]) -> list[Refused]:
        """Send everything; of a correction first what it reports itself, and only if that is taken what it takes back.

        Otherwise a correction that is refused would be half done.
        """
        until = time.monotonic() + BATCH_SECONDS_MAX
        if self.api == "stream" and self._stream.open():
            # When the calls were made it was not known what time it is there.
            calls = self.calls(records)
        refused = self._worked_off([call for call in calls if call.records[0].reverses is None], until)
        held = {id(each.record.event): each for each in refused}
        back = [each for each in records if each.reverses is not None]
        refused += [held[id(each.event)]._replace(record=each) for each in back if id(each.event) in held]
        refused += self._worked_off(self.calls([each for each in back if id(each.event) not in held]), until)
        places = {record.identifier: place for place, record in enumerate(records)} if refused else {}
        return sorted(refused, key=lambda each: places[each.record.identifier])

    def _worked_off(self, calls: Iterable[Call], until: float) -> list[Refused]:
        """In lanes: one for each customer and meter, one for the stream, several at a time."""
        lanes: dict[tuple[str, str], list[Call]] = {}
        for call in calls:
            record = call.records[0]
            lane = (wire.STREAM_PATH, "") if call.path == wire.STREAM_PATH else (record.customer, record.measure.meter)
            lanes.setdefault(lane, []).append(call)
        return in_lanes(self.settle, list(lanes.values()), in_flight=self._in_flight, until=until)

    def settle(self, call: Call) -> list[Refused]:
        """Make one request and those that follow from its answer, until everything in it is taken or refused."""
        if not wire.is_cancellation(call):
            return super().settle(call)
        refused = self._cancellations.settle(call)
        self.took(call.records, but=[[each.record for each in refused]])
        return refused

    def _taken_back(self, record: Record) -> list[Refused]:
        return super().settle(self._single(record, self._moment(record)))

    def post(self, call: Call) -> Answer:
        """Make a request, with patience: Stripe's own client does not retry 429, and one busy moment must not put off
        a whole batch."""
        for attempt in range(1, TRIES):
            try:
                return self._posted(call)
            except KeyRefused:
                raise
            except Retry as retry:
                pointless = isinstance(retry, Unavailable) and replayed(retry.headers)
                if pointless or (retry.after or 0.0) > PAUSE_SECONDS_MAX:
                    raise
                time.sleep(retry.after or PAUSE_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5))
        return self._posted(call)

    def _posted(self, call: Call) -> Answer:
        if call.path == wire.STREAM_PATH:
            return self._stream.post(call.path, call.body, headers=call.headers)
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
        if not wire.refuses(answer):
            raise Retry(
                f"Stripe answered HTTP {answer.status}: {message}. Nothing is wrong with the events; is "
                f"{self._http.server} the right address?"
            )
        if len(call.records) > 1:
            return refused_or_halved(call.records, f"Stripe: {message}")
        record = call.records[0]
        as_it_was = call.body == self._single(record, record.time).body
        if wire.FUTURE.search(said) and as_it_was and self._moment(record) != record.time:
            # Our clock is fast, which this very answer has told: the same event again, at their time.
            return Verdict(again=[(record,)])
        return Verdict(refused=[self._refused(record, code, message)])

    def took(self, records: Iterable[Record], *, but: Sequence[Sequence[Record]] = ()) -> None:
        """Stripe has answered for these, except for some of them."""
        taken = list(records)
        super().took(taken, but=but)
        now = self._now()
        old = datetime.fromtimestamp(now - REMEMBERED_SECONDS + LATELY_SECONDS, UTC)
        self._lately.update((record.identifier, now) for record in taken if record.time < old)

    # ---- refusals, and what would change them ----

    def unfit(self, records: Sequence[Record]) -> list[Refused]:
        """What lies outside of Stripe's window can never be counted."""
        oldest = self._there(-PAST_SECONDS_MAX)
        return [Refused(record, TOO_OLD) for record in records if record.time < oldest]

    def _refused(self, record: Record, code: str, message: str) -> Refused:
        refusal = refused(record, code=code, message=message, registered=isinstance(self._customers, str))
        if refusal.awaits is not None:
            self._summaries.forget()  # what is known of the meters does not fit to this
        return refusal

    def ready(self, awaits: str) -> bool:
        """Whether it is time, a meter is active again, or a customer's id is another one; else as any backend."""
        kind, _, rest = awaits.partition(":")
        if kind == LATER_KEY:
            return self._now() >= float(rest)
        if kind == METER_KEY:
            meter = self._summaries.meter(rest)
            return meter is not None and meter.active
        if kind == CHANGE_KEY:
            old, _, customer = rest.partition(":")
            known = self._accounts and self._accounts.external_ids([customer], backend=self.vendor, mode=self.mode)
            return bool(known) and known.get(customer) not in (None, old)  # type: ignore[union-attr]
        return super().ready(awaits)

    # ---- what goes out ----

    def _single(self, record: Record, moment: datetime) -> Call:
        if self.api == "v1":
            return wire.form(record, self._payload(record), moment)
        return wire.single(record, self._payload_json(record), moment)

    def _streamed(self, records: Sequence[Record]) -> Call:
        latest = self._there(FUTURE_SECONDS_MAX)
        late = max(each.time for each in records) > latest
        texts = [
            wire.as_json(each, self._payload_json(each), self._moment(each, latest) if late else each.time)
            for each in records
        ]
        return Call(wire.STREAM_PATH, f'{{"events":[{",".join(texts)}]}}'.encode(), wire.JSON, records)

    def _payload(self, record: Record) -> dict[str, str]:
        return {
            **record.measure.properties,
            self._customer_key: record.customer,
            self._value_key: str(record.value),
        }

    def _payload_json(self, record: Record) -> str:
        """The members of the payload as JSON."""
        properties = record.measure.properties
        if not properties or self._customer_key in properties or self._value_key in properties:
            return members(self._payload(record))
        customer, value = quoted(record.customer), str(record.value)
        return f'{members(properties)}{self._customer_member}{customer}{self._value_member}"{value}"'

    def _there(self, seconds: float = 0.0) -> datetime:
        """The time at Stripe, or so many seconds later."""
        now = self._stream.their_time if self.api == "stream" else self._http.their_time
        # A server may name any date.
        return datetime.fromtimestamp(min(max(now + seconds, 0.0), LAST_MOMENT), UTC)

    def _moment(self, record: Record, latest: datetime | None = None) -> datetime:
        """The time of the event; Stripe's own where ours is further ahead than it takes (`latest`)."""
        fits = record.time <= (latest or self._there(FUTURE_SECONDS_MAX))
        return record.time if fits else self._there()

    def _headers(self) -> Mapping[str, str]:
        key = self._key()
        check_mode(key, mode=self.mode, sink=self.name)
        return {"Authorization": f"Bearer {key}", "Stripe-Version": API_VERSION}

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
        records, refusals = self.records(without_repeats(events, self._accounts))
        # What has no id or customer yet is refused when it is sent; it never went out.
        left: list[MeterEvent] = [refusal.event for refusal in refusals]
        if not records:
            return left
        return [*left, *self._recount.left(records, self._accounts, unsent)]

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

        def look_up(id: str) -> tuple[list[Record], list[Refusal]]:
            event = self._accounts.event(id) if self._accounts is not None else None
            return self.records([] if event is None else [event])

        return named_events(report, look_up, lambda record, sample: self._refused(record, sample.code, sample.message))

    def check(self) -> list[str]:
        """Prove the key, and that the meters are there and sum what is sent. Raises SinkError."""
        self._summaries.forget()
        active = {name: meter for name, meter in self._summaries.meters().items() if meter.active}
        wanted = {rule.meter for rule in self.rules or () if rule.meter}
        missing = sorted(wanted - set(active))
        if missing:
            raise SinkError(
                f"Stripe has no active meter with the event name {', '.join(missing)} "
                f"(there is: {', '.join(sorted(active)) or 'none'}). Create it in Stripe, or map to another"
            )
        wrong = misfits(self.rules or (), active, customer_key=self._customer_key, value_key=self._value_key)
        if wrong:
            raise SinkError("; ".join(wrong))
        lines = [f"Stripe takes the key ({self.mode} mode): {len(active)} active meters"]
        return [*lines, *(f"meter {meter} is active" for meter in sorted(wanted))]

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._stream.close()
