"""OpenMeter: usage as CloudEvents in batches. It counts an event once by `source` and `id`, for 32 days."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from token_meter.errors import Rejected, Retry, SinkError
from token_meter.event import MeterEvent, format_time
from token_meter.sinks.backend import BackendSink
from token_meter.sinks.base import Unsent
from token_meter.sinks.http import Http, Secret, whole_number
from token_meter.sinks.mapping import ANY_METER, MODEL, Mapped, Properties, Rule, measured, own_dimensions
from token_meter.sinks.recording import Customers, Mode
from token_meter.sinks.records import Call, Record
from token_meter.usage import TOKEN_TYPES

API_URL: Final = "https://openmeter.cloud"
KEY_VARIABLE: Final = "OPENMETER_API_KEY"
URL_VARIABLE: Final = "OPENMETER_URL"
EVENTS_PATH: Final = "/api/v1/events"
METERS_PATH: Final = "/api/v1/meters"
SOURCE: Final = "token_meter"
EVENT_TYPE: Final = "prompt"
"""The event type of OpenMeter's own example meter, `tokens_total`: SUM of $.tokens by $.model and $.type."""
VALUE: Final = "tokens"
REMEMBERED_SECONDS: Final = 32 * 86_400.0


class OpenMeterSink(BackendSink):
    """Reports usage to OpenMeter: one CloudEvent for each token type that an event has.

    Its `type` is `event_type`, its `subject` the customer (ours, unless they have `external_ids["openmeter"]`), its
    `data` holds `tokens`, `type` (the token type), `model`, `provider`, and what `dimensions` and `properties` add.
    That fits OpenMeter's example meter, SUM of $.tokens by $.model and $.type. Meters of your own become events of
    their own type. `mapping`, a sequence of `Rule`s (whose `meter` is the event type) or a function, replaces the
    table.

    `base_url` is the server (default: $OPENMETER_URL, else OpenMeter's cloud); `api_key` may be missing for a server of
    your own (default: $OPENMETER_API_KEY). A server of your own deduplicates only if that is switched on there.
    """

    vendor: ClassVar[str] = "openmeter"
    shown: ClassVar[str] = "OpenMeter"
    records_max: ClassVar[int] = 500
    counted_step: ClassVar[timedelta] = timedelta(minutes=1)

    def __init__(
        self,
        api_key: Secret | None = None,
        *,
        base_url: str | None = None,
        event_type: str = EVENT_TYPE,
        source: str = SOURCE,
        mapping: Sequence[Rule] | Mapped | None = None,
        properties: Properties | None = None,
        dimensions: Sequence[str] = (),
        customers: Customers = "same",
        unattributed: str | None = None,
        mode: Mode = "live",
        where: Callable[[MeterEvent], bool] | None = None,
        name: str = "openmeter",
        now: Callable[[], float] = time.time,
    ) -> None:
        if VALUE in (*dimensions, *(properties or {})):
            raise ValueError(f"{VALUE!r} is what OpenMeterSink calls the quantity: give the property another name")
        self._key = api_key
        self._source = source
        self._now = now
        self.rules: tuple[Rule, ...] | None = None
        if mapping is None:
            mapping = openmeter_rules(event_type)
        if not callable(mapping):
            self.rules = tuple(mapping)
            mapping = measured(self.rules, {**MODEL, **own_dimensions(dimensions), **(properties or {})})
        url = base_url or os.environ.get(URL_VARIABLE) or API_URL
        super().__init__(
            name=name,
            http=Http(url, what="OpenMeter", authorise=self._headers, now=now),
            mapping=mapping,
            customers=customers,
            unattributed=unattributed,
            mode=mode,
            where=where,
        )

    def call(self, records: Sequence[Record]) -> Call:
        """One batch of CloudEvents."""
        times = {moment: format_time(moment) for moment in {record.time for record in records}}
        documents = [self._event(record, times[record.time]) for record in records]
        body = json.dumps(documents, separators=(",", ":")).encode()
        return Call(EVENTS_PATH, body, {"Content-Type": "application/cloudevents-batch+json"}, records)

    def _event(self, record: Record, time: str) -> dict[str, Any]:
        return {
            "specversion": "1.0",
            "type": record.measure.meter,
            "id": record.identifier,
            "source": self._source,
            "subject": record.customer,
            "time": time,
            "data": {**record.measure.properties, VALUE: record.value},
        }

    # ---- what it remembers ----

    @property
    def remembers_seconds(self) -> float:
        """How long OpenMeter knows an event's id."""
        return REMEMBERED_SECONDS

    def now(self) -> float:
        """The time in seconds since 1970."""
        return self._now()

    def uncounted(self, events: Sequence[MeterEvent], *, unsent: Unsent) -> list[MeterEvent]:
        """OpenMeter cannot be asked for single events of a month ago: a human decides."""
        raise Rejected(
            events,
            "it may have reached OpenMeter more than 32 days ago, and would be counted again. Compare with "
            "`token-meter reconcile sink`, then release or discard it",
        )

    # ---- reading back ----

    def counted(
        self, *, since: datetime, until: datetime, pairs: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], int]:
        """What OpenMeter counted in [since, until), whole minutes, for these (subject, event type) pairs."""
        meters = self._meters()
        sums = dict.fromkeys(pairs, 0)
        wanted = sorted({event_type for _, event_type in pairs})
        if wanted and not meters.keys() & wanted:
            raise SinkError(f"OpenMeter has no meter that sums $.{VALUE} of events of type {', '.join(wanted)}")
        for event_type in wanted:
            slug = meters.get(event_type)
            if slug is None:
                continue  # stored and never counted: that is what shows as missing
            asked = {"from": format_time(since), "to": format_time(until), "groupBy": "subject"}
            answer = self._http.get(f"{METERS_PATH}/{slug}/query", asked)
            document = answer.json()
            rows = document.get("data") if isinstance(document, dict) else None
            if not answer.ok or not isinstance(rows, list):
                raise Retry(f"OpenMeter does not tell usage (HTTP {answer.status}): {answer.text}")
            for row in rows:
                pair = (str(row.get("subject")), event_type)
                if pair in sums:
                    sums[pair] += whole_number(row.get("value"), what="OpenMeter")
        return sums

    def _meters(self) -> dict[str, str]:
        """The slugs of the meters that sum our value, by event type."""
        answer = self._http.get(METERS_PATH)
        document = answer.json()
        found = document.get("items", document.get("data")) if isinstance(document, dict) else document
        if not answer.ok or not isinstance(found, list):
            raise SinkError(f"OpenMeter does not list meters (HTTP {answer.status}): {answer.text}")
        return {
            str(each.get("eventType")): str(each.get("slug"))
            for each in found
            if isinstance(each, dict) and each.get("aggregation") == "SUM" and each.get("valueProperty") == f"$.{VALUE}"
        }

    def check(self) -> list[str]:
        """Prove the key, and that a meter counts what is sent. Raises SinkError."""
        meters = self._meters()
        lines = ["OpenMeter takes the key" if self._headers() else "OpenMeter answers (no key is set)"]
        for event_type in sorted({rule.meter for rule in self.rules or () if rule.meter}):
            if event_type not in meters:
                raise SinkError(
                    f"OpenMeter has no meter that sums $.{VALUE} of events of type {event_type!r}: it would store them "
                    "and count nothing. Create one, or choose the type with event_type=..."
                )
            lines.append(f"meter {meters[event_type]} counts events of type {event_type}")
        return lines

    def _headers(self) -> Mapping[str, str]:
        key = self._key() if callable(self._key) else self._key or os.environ.get(KEY_VARIABLE, "")
        return {"Authorization": f"Bearer {key.strip()}"} if key and key.strip() else {}


def openmeter_rules(event_type: str = EVENT_TYPE) -> list[Rule]:
    """One rule for each token type, one for meters of the user's own."""
    rules = [Rule(key=name, meter=event_type, types=(name,), properties={"type": name}) for name in TOKEN_TYPES]
    return [*rules, Rule(key="value", meter="", source=ANY_METER)]
