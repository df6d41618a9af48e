"""Amberflo: usage as meter events, gzip-compressed JSON. A record counts once by meter, time and `uniqueId`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from gzip import compress, decompress
from typing import ClassVar, Final, Literal

from token_meter.errors import Retry, SinkError
from token_meter.event import MeterEvent
from token_meter.sinks.backend import BackendSink
from token_meter.sinks.http import Http, KeyRefused, Secret, secret_of, whole_number
from token_meter.sinks.json_text import members, quote, quoted
from token_meter.sinks.mapping import ANY_METER, MODEL, Mapped, Properties, Rule, measured, own_dimensions
from token_meter.sinks.recording import Customers, Mode
from token_meter.sinks.records import Call, Record, milliseconds
from token_meter.usage import TOKEN_TYPES

INGEST_URL: Final = "https://ingest.amberflo.io"
API_URL: Final = "https://app.amberflo.io"
KEY_VARIABLE: Final = "AMBERFLO_API_KEY"
INGEST_PATH: Final = "/ingest/"
USAGE_PATH: Final = "/usage"
METERS_PATH: Final = "/meters"

TOKENS_METER: Final = "llm_tokens"
CALLS_METER: Final = "api_calls"
Template = Literal["token_types", "llm"]

COMPRESSION: Final = 1
"""Requests are small and repetitive: more effort saves nothing that one would notice."""


class AmberfloSink(BackendSink):
    """Reports usage to Amberflo.

    By default each token type that an event has is a record of the meter `llm_tokens`, with the dimensions `model`,
    `provider` and `type`, and each call one of the meter `api_calls`. `template="llm"` uses the meters of Amberflo's
    LLM template for tokens instead: `input_tokens` and `output_tokens`, with `model`, `provider`, `object` (the
    operation) and `type`. `mapping`, a sequence of `Rule`s or a function, replaces the table. Meters of your own are
    reported under their name.

    Customers are known by our id unless they have one of their own there (`external_ids["amberflo"]`). `api_key` is the
    key or a function (default: $AMBERFLO_API_KEY). Amberflo takes usage of meters and customers it does not know.
    """

    vendor: ClassVar[str] = "amberflo"
    shown: ClassVar[str] = "Amberflo"
    records_max: ClassVar[int] = 500
    counted_step: ClassVar[timedelta] = timedelta(hours=1)

    def __init__(
        self,
        api_key: Secret | None = None,
        *,
        template: Template = "token_types",
        mapping: Sequence[Rule] | Mapped | None = None,
        properties: Properties | None = None,
        dimensions: Sequence[str] = (),
        customers: Customers = "same",
        unattributed: str | None = None,
        mode: Mode = "live",
        where: Callable[[MeterEvent], bool] | None = None,
        name: str = "amberflo",
        ingest_url: str = INGEST_URL,
        api_url: str | None = None,
    ) -> None:
        if template not in ("token_types", "llm"):
            raise ValueError(f"template must be 'token_types' or 'llm', not {template!r}")
        self._key = secret_of(api_key, variable=KEY_VARIABLE, what="Amberflo")
        self.rules: tuple[Rule, ...] | None = None
        if mapping is None:
            mapping = amberflo_rules(template)
        if not callable(mapping):
            self.rules = tuple(mapping)
            own = MODEL if template == "token_types" else {**MODEL, "object": lambda event: event.operation}
            mapping = measured(self.rules, {**own, **own_dimensions(dimensions), **(properties or {})})
        super().__init__(
            name=name,
            http=Http(ingest_url, what="Amberflo", authorise=self._headers),
            mapping=mapping,
            customers=customers,
            unattributed=unattributed,
            mode=mode,
            where=where,
        )
        reading = api_url or (API_URL if ingest_url == INGEST_URL else ingest_url)
        self._api = Http(reading, what="Amberflo", authorise=self._headers)

    def call(self, records: Sequence[Record]) -> Call:
        """One request to the ingest endpoint."""
        body = f"[{','.join([_event(record) for record in records])}]".encode()
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        return Call(INGEST_PATH, compress(body, COMPRESSION), headers, records)

    def readable(self, call: Call) -> str:
        """The body of a call as text: before it was compressed."""
        return decompress(call.body).decode()

    def counted(
        self, *, since: datetime, until: datetime, pairs: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], int]:
        """What Amberflo counted in [since, until), whole hours, for these (customer, meter) pairs."""
        sums = dict.fromkeys(pairs, 0)
        for meter in sorted({meter for _, meter in pairs}):
            for customer, value in self._usage(meter, since, until).items():
                if (customer, meter) in sums:
                    sums[(customer, meter)] = value
        return sums

    def _usage(self, meter: str, since: datetime, until: datetime) -> dict[str, int]:
        asked = {
            "meterApiName": meter,
            "aggregation": "SUM",
            "timeGroupingInterval": "HOUR",
            "timeRange": {"startTimeInSeconds": int(since.timestamp()), "endTimeInSeconds": int(until.timestamp())},
            "groupBy": ["customerId"],
        }
        answer = self._api.post(USAGE_PATH, json.dumps(asked).encode(), headers={"Content-Type": "application/json"})
        document = answer.json()
        groups = document.get("clientMeters") if isinstance(document, dict) else None
        if not answer.ok or not isinstance(groups, list):
            raise Retry(f"Amberflo does not tell usage (HTTP {answer.status}): {answer.text}")
        sums: dict[str, int] = {}
        for group in groups:
            customer = str((group.get("group") or {}).get("groupInfo", {}).get("customerId"))
            values = (each.get("value") for each in group.get("values") or ())
            sums[customer] = sums.get(customer, 0) + sum(whole_number(value, what="Amberflo") for value in values)
        return sums

    def check(self) -> list[str]:
        """Prove the key, and look whether the meters are there, if it may do that. Raises SinkError."""
        answer = self._http.post(INGEST_PATH, b"[]", headers={"Content-Type": "application/json"})
        # That a request without any record is refused is not documented; the key comes first either way.
        if not answer.ok and answer.status != 400:
            raise SinkError(f"Amberflo takes no events (HTTP {answer.status}): {answer.text}")
        return ["Amberflo takes the key", *self._meter_lines()]

    def _meter_lines(self) -> list[str]:
        wanted = sorted({rule.meter for rule in self.rules or () if rule.meter})
        try:
            document = self._api.get(METERS_PATH).json()
        except KeyRefused:
            return ["its meters cannot be listed with this key"]
        if not isinstance(document, list):
            return ["its meters cannot be listed"]
        known = {each.get("meterApiName") for each in document if isinstance(each, dict)}
        missing = [meter for meter in wanted if meter not in known]
        if missing:
            raise SinkError(
                f"Amberflo has no meter {', '.join(missing)}: it takes such usage and never bills it. Create it (it "
                "sums the values), or map to another"
            )
        return [f"meter {meter} is there" for meter in wanted]

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._api.close()

    def _headers(self) -> Mapping[str, str]:
        return {"X-API-KEY": self._key(), "Accept": "application/json"}


def amberflo_rules(template: Template = "token_types") -> list[Rule]:
    """One rule for each token type, one for calls, one for meters of the user's own."""
    rules = [
        Rule(key=name, meter=_meter(row.headline, template), types=(name,), properties={"type": name})
        for name, row in TOKEN_TYPES.items()
    ]
    return [
        *rules,
        Rule(key=CALLS_METER, meter=CALLS_METER),
        Rule(key="value", meter="", source=ANY_METER),
    ]


def _meter(headline: str, template: Template) -> str:
    if template == "token_types" or headline == "other":
        return TOKENS_METER
    return "output_tokens" if "output" in headline else "input_tokens"


def _event(record: Record) -> str:
    measure = record.measure
    return (
        f'{{"uniqueId":{quote(record.identifier)},"meterApiName":{quoted(measure.meter)},"meterValue":{record.value},'
        f'"customerId":{quoted(record.customer)},"meterTimeInMillis":{milliseconds(record.time)},'
        f'"dimensions":{{{members(measure.properties)}}}}}'
    )
