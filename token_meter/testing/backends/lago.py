"""FakeLago: takes usage events and gives them back as Lago does.

The rules are those of Lago's own source of August 2026 (the API's events controller, its create and batch services,
the query and the stores), not only of its documentation. What surprises:

- An event that names no subscription, one that does not exist, or an unknown code is **accepted** and never billed; so
  is one whose value is no number. Here it stands in `dropped`. `strict=True` refuses it.
- A batch is all or nothing. In PostgreSQL a transaction_id that the subscription already has, or that stands twice in
  one batch (whatever the subscriptions), refuses the whole of it with the index of each culprit.
- ClickHouse takes duplicates and bills one per (subscription, code, transaction_id, timestamp in milliseconds): a retry
  with another time is billed again. `GET /events` shows each of them.
- A timestamp is a number of seconds; ISO 8601 is refused. Milliseconds are seconds of a far future: accepted.

Not verified: the body of a 429 (the limits are those of Lago's cloud, whose front end is not public) and the codes of
`strict`, which are made up in Lago's manner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, ClassVar, Final, Literal

from token_meter.testing.backends.base import Chaos, Counted, FakeBackend, Request, Response, VirtualClock
from token_meter.testing.backends.lago_wire import (
    YEAR_10000,
    Kept,
    Window,
    charge_row,
    event_answer,
    event_row,
    events_answer,
    invalid,
    iso,
    metric_row,
    milliseconds,
    month,
    page_of,
    read_body,
    read_cents,
    read_moment,
    read_text,
    read_timestamp,
    read_units,
    refusal,
)
from token_meter.testing.backends.values import Dropped, Texts, whole, write_json

BATCH_MAX: Final = 100
"""Events of one batch: the default of LAGO_EVENTS_BATCH_MAX_LENGTH."""
CLICKHOUSE_VALUE_LIMIT: Final = 10**12
"""ClickHouse keeps values as Decimal(38, 26); a larger one counts as nothing."""
CLOUD_LIMIT: Final = 500
"""Requests a second that bring events, in Lago's cloud."""
DEFAULT_FIELD: Final = "value"

Errors = dict[str, list[str]]


class FakeLago(FakeBackend):
    """`POST /api/v1/events` and `/events/batch`; `GET /events`, `/events/{id}`, `/billable_metrics` and current usage.

    `subscriptions` maps external subscription ids to external customer ids and `metrics` codes to the property that
    they sum; without them every subscription and every code exists, and sums `value`. `events_per_second` limits the
    requests that bring events, `reads_per_second` all others. `cents` is what events priced by their sender amount to.
    """

    name: ClassVar[str] = "lago"

    def __init__(
        self,
        *,
        key: str = "lago-test-key",
        store: Literal["postgres", "clickhouse"] = "postgres",
        events_per_second: int | None = None,
        reads_per_second: int | None = None,
        strict: bool = False,
        subscriptions: Mapping[str, str] | None = None,
        metrics: Mapping[str, str] | None = None,
        port: int = 0,
        clock: VirtualClock | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        super().__init__(port=port, clock=clock, chaos=chaos)
        if store not in ("postgres", "clickhouse"):
            raise ValueError(f"store is 'postgres' or 'clickhouse', not {store!r}")
        self.store = store
        self.strict = strict
        self.subscriptions = None if subscriptions is None else dict(subscriptions)
        self.metrics = None if metrics is None else dict(metrics)
        self.dropped: list[Dropped] = []
        self.cents: defaultdict[tuple[str, ...], Decimal] = defaultdict(Decimal)
        self._key = key
        self._writes, self._reads = Window(events_per_second), Window(reads_per_second)
        self._texts = Texts()
        self._kept: list[Kept] = []
        self._places: defaultdict[tuple[str | None, str], list[int]] = defaultdict(list)
        self._known: defaultdict[str | None, dict[str, int]] = defaultdict(dict)
        self._latest: dict[tuple[str | None, str, str, int], int] = {}
        self._found: tuple[object, list[int]] = (None, [])

    def answer(self, request: Request) -> Response:
        """The key first, then the limit, then what is asked for."""
        if request.headers.get("authorization") != f"Bearer {self._key}":
            return refusal(401, "Unauthorized")
        window = self._writes if request.method == "POST" else self._reads
        with self.lock:
            admitted = window.admit(self.clock.now())
            headers = window.headers()
        response = self._route(request) if admitted else self.throttled()
        return response._replace(headers={**response.headers, **headers})

    def _route(self, request: Request) -> Response:
        match request.method, *request.path.strip("/").split("/"):
            case "POST", "api", "v1", "events":
                return self._create(request)
            case "POST", "api", "v1", "events", "batch":
                return self._create_batch(request)
            case "GET", "api", "v1", "events":
                return self._list(request)
            case "GET", "api", "v1", "events", identifier:
                return self._show(identifier)
            case "GET", "api", "v1", "billable_metrics":
                return self._list_metrics(request)
            case "GET", "api", "v1", "customers", customer, "current_usage":
                return self._current_usage(customer, request)
        return refusal(404, "Not Found", code="resource_not_found")

    # ---- how it fails ----

    def unavailable(self) -> Response:
        """503."""
        return refusal(503, "Service Unavailable")

    def failed(self) -> Response:
        """500."""
        return refusal(500, "Internal Server Error")

    def throttled(self) -> Response:
        """429 with the three headers; the reset is `chaos.retry_after` if that is given."""
        wait = 1 if self.chaos.retry_after is None else max(1, round(self.chaos.retry_after))
        headers = {
            "X-RateLimit-Limit": str(self._writes.limit or CLOUD_LIMIT),
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": str(wait),
        }
        return refusal(429, "Too Many Requests", code="rate_limit_exceeded", headers=headers)

    # ---- taking events ----

    def _create(self, request: Request) -> Response:
        try:
            document = read_body(request).get("event")
        except ValueError:
            return refusal(400, "Bad Request")
        if not isinstance(document, dict) or not document:
            return refusal(400, "BadRequest: param is missing or the value is empty or invalid: event")
        event, errors = self._read(document)
        # ClickHouse: a single event is not validated, while those of a batch are.
        if event is None or (errors and (self.strict or self.store == "postgres")):
            return invalid(errors)
        with self.lock:
            if self._duplicates([event]):
                return invalid({"transaction_id": ["value_already_exist"]})
            return event_answer(self._keep(event, document.get("properties")))

    def _create_batch(self, request: Request) -> Response:
        try:
            documents = read_body(request).get("events")
        except ValueError:
            return refusal(400, "Bad Request")
        # Rails lets nothing but objects through the list, in silence.
        objects = [each for each in documents if isinstance(each, dict)] if isinstance(documents, list) else []
        if not objects:
            return invalid({"events": ["no_events"]})
        if len(objects) > BATCH_MAX:
            return invalid({"events": ["too_many_events"]})
        read = [self._read(each) for each in objects]
        if wrong := {str(index): errors for index, (_, errors) in enumerate(read) if errors}:
            return invalid(wrong)
        events = [event for event, _ in read if event is not None]
        with self.lock:
            if duplicates := self._duplicates(events):
                return invalid({str(index): {"transaction_id": ["value_already_exist"]} for index in duplicates})
            properties = [each.get("properties") for each in objects]
            return events_answer([self._keep(*each) for each in zip(events, properties, strict=True)])

    def _duplicates(self, events: Iterable[Kept]) -> list[int]:
        """The unique index is by subscription, and NULL equals nothing; within a batch, transaction_id alone counts."""
        if self.store == "clickhouse":
            return []
        seen: set[str] = set()
        wrong = []
        for index, event in enumerate(events):
            known = event.subscription is not None and event.transaction_id in self._known[event.subscription]
            if known or event.transaction_id in seen:
                wrong.append(index)
            seen.add(event.transaction_id)
        return wrong

    def _read(self, document: Mapping[str, Any]) -> tuple[Kept | None, Errors]:
        """One event, and what is wrong with it; None in its place if its time cannot be read."""
        now = self.clock.now()
        at = read_timestamp(document.get("timestamp"), Decimal(repr(now)))
        if at is None:
            return None, {"timestamp": ["invalid_format"]}
        transaction_id, code = read_text(document.get("transaction_id")), read_text(document.get("code"))
        subscription = read_text(document.get("external_subscription_id"))
        properties = document.get("properties")
        present = {"transaction_id": transaction_id, "code": code}
        errors = {name: ["value_is_mandatory"] for name, value in present.items() if not (value or "").strip()}
        if self.strict:
            errors |= self._strictly(subscription, code, properties)
        event = Kept(
            transaction_id or "",
            None if subscription is None else self._texts.one(subscription),
            self._texts.one(code or ""),
            at,
            write_json(properties if isinstance(properties, dict) else {}),
            read_cents(document.get("precise_total_amount_cents")),
            now,
            -1,
        )
        return event, errors

    def _strictly(self, subscription: str | None, code: str | None, properties: object) -> Errors:
        """What today's Lago lets pass and never bills."""
        errors: Errors = {}
        if not (subscription or "").strip():
            errors["external_subscription_id"] = ["value_is_mandatory"]
        elif self.subscriptions is not None and subscription not in self.subscriptions:
            errors["external_subscription_id"] = ["subscription_not_found"]
        if code and self.metrics is not None and code not in self.metrics:
            errors["code"] = ["billable_metric_not_found"]
        if properties is not None and not isinstance(properties, dict):
            errors["properties"] = ["value_is_invalid"]
        return errors

    # ---- billing ----

    def _keep(self, event: Kept, given: object) -> str:
        """Store it, count it unless nobody will ever be billed for it, and give it back."""
        index = len(self._kept)
        properties = given if isinstance(given, dict) else {}
        group = self._texts.group(properties)
        earlier = self._supersede(event, index)
        units, reason = self._units(event, properties)
        place = -1
        if units is None:
            self.dropped.append(Dropped(event.transaction_id, event.subscription or "", event.code, reason))
        else:
            place = len(self.counted) if earlier is None or earlier.counted < 0 else earlier.counted
            whose = (event.transaction_id, event.subscription or "", event.code)
            self.counted[place : place + 1] = [Counted(*whose, group, units, float(event.at), event.created)]
        less = earlier.cents if earlier is not None else None
        amount = (event.cents or 0) - (less or 0)
        if amount and not self._unknown(event):
            self.cents[(event.subscription or "", event.code, *group)] += amount
        self._kept.append(event._replace(counted=place))
        self._places[event.subscription, event.code].append(index)
        self._known[event.subscription].setdefault(event.transaction_id, index)
        return event_row(index, event)

    def _supersede(self, event: Kept, index: int) -> Kept | None:
        """The event that this one replaces when ClickHouse merges."""
        if self.store == "postgres":
            return None
        key = (event.subscription, event.code, event.transaction_id, milliseconds(event.at))
        earlier = self._latest.get(key)
        self._latest[key] = index
        return None if earlier is None else self._kept[earlier]

    def _units(self, event: Kept, properties: Mapping[str, Any]) -> tuple[int | None, str]:
        """How many units are billed; or None, and why none are."""
        if unknown := self._unknown(event):
            return None, unknown
        field = DEFAULT_FIELD if self.metrics is None else self.metrics[event.code]
        value = read_units(properties.get(field))
        if value is None:
            return None, f"its property {field!r} is no number: {properties.get(field)!r}"
        units = whole(value)
        if units is None:
            return None, f"its property {field!r} has a fraction: Lago bills it, this fake counts whole units"
        if self.store == "clickhouse" and abs(units) >= CLICKHOUSE_VALUE_LIMIT:
            return None, f"its property {field!r} has more than 12 digits: ClickHouse makes it 0"
        return units, ""

    def _unknown(self, event: Kept) -> str:
        """Why no invoice will ever show this event, or nothing."""
        if event.subscription is None:
            return "it names no subscription"
        if self.subscriptions is not None and event.subscription not in self.subscriptions:
            return f"there is no subscription {event.subscription!r}"
        if not event.code or (self.metrics is not None and event.code not in self.metrics):
            return f"there is no billable metric {event.code!r}"
        if event.at >= YEAR_10000:
            return f"its time lies in the year {iso(int(event.at)).partition('-')[0]}: milliseconds, not seconds?"
        return ""

    # ---- giving back ----

    def _list(self, request: Request) -> Response:
        """Filters: code, external_subscription_id, timestamp_from and timestamp_to (ISO 8601, both inclusive)."""
        wanted = _last(request)
        times: dict[str, Decimal | None] = {"timestamp_from": None, "timestamp_to": None}
        for name in times:
            if name in wanted:
                times[name] = read_moment(wanted[name])
                if times[name] is None:
                    return invalid({name: ["invalid_date"]})
        with self.lock:
            found = self._find(wanted, times["timestamp_from"], times["timestamp_to"])
            chosen, meta = page_of(found, wanted)
            return events_answer([event_row(index, self._kept[index]) for index in chosen], meta)

    def _find(self, wanted: Mapping[str, str], start: Decimal | None, end: Decimal | None) -> list[int]:
        """Newest first, remembered for the next page."""
        subscription, code = wanted.get("external_subscription_id"), wanted.get("code")
        filters = (subscription, code, start, end, len(self._kept))
        if self._found[0] != filters:
            found = [
                index
                for key, places in self._places.items()
                if subscription in (None, key[0]) and code in (None, key[1])
                for index in places
                if (start is None or self._kept[index].at >= start) and (end is None or self._kept[index].at <= end)
            ]
            found.sort(key=self._age)
            self._found = (filters, found)
        return self._found[1]

    def _age(self, index: int) -> tuple[Decimal | float, str]:
        """PostgreSQL orders by the time of the event, ClickHouse by that of its arrival."""
        event = self._kept[index]
        return -(event.at if self.store == "postgres" else event.created), event.transaction_id

    def _show(self, identifier: str) -> Response:
        with self.lock:
            for known in self._known.values():
                if identifier in known:
                    return event_answer(event_row(known[identifier], self._kept[known[identifier]]))
        return refusal(404, "Not Found", code="event_not_found")

    def _list_metrics(self, request: Request) -> Response:
        with self.lock:
            seen = {code: DEFAULT_FIELD for _, code in self._places}
            known = sorted((seen if self.metrics is None else self.metrics).items())
        chosen, meta = page_of(range(len(known)), _last(request))
        return Response.json({"billable_metrics": [metric_row(*known[index]) for index in chosen], "meta": meta})

    def _current_usage(self, customer: str, request: Request) -> Response:
        """Of the calendar month in UTC, which is the period of every subscription here."""
        subscription = _last(request).get("external_subscription_id")
        if self.subscriptions is not None and customer not in self.subscriptions.values():
            return refusal(404, "Not Found", code="customer_not_found")
        if not subscription or (self.subscriptions is not None and self.subscriptions.get(subscription) != customer):
            return refusal(405, "Method Not Allowed", code="no_active_subscription")
        start, end = month(self.clock.moment())
        with self.lock:
            codes = sorted(self.metrics or {code for known, code in self._places if known == subscription})
            charges = [charge_row(code, *self._usage(subscription, code, start, end)) for code in codes]
        usage = {
            "from_datetime": iso(start),
            "to_datetime": iso(end - 1),
            "issuing_date": iso(end)[:10],
            "currency": "USD",
            "amount_cents": 0,
            "total_amount_cents": 0,
            "taxes_amount_cents": 0,
            "lago_invoice_id": None,
            "charges_usage": charges,
        }
        return Response.json({"customer_usage": usage})

    def _usage(self, subscription: str, code: str, start: int, end: int) -> tuple[int, int]:
        """Units and number of the events in a period."""
        places = {self._kept[index].counted for index in self._places.get((subscription, code), ())} - {-1}
        values = [self.counted[place].value for place in places if start <= self.counted[place].at < end]
        return sum(values), len(values)


def _last(request: Request) -> dict[str, str]:
    """Of a parameter given twice, Rails takes the last."""
    return {name: values[-1] for name, values in request.query.items() if values}
