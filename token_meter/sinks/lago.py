"""Lago: usage as events of billable metrics, a hundred in a request, all or nothing.

A batch with one bad event is refused as a whole, with the place and the reason of each; the bad ones are set aside and
the others sent again. An event that Lago has already is one of these reasons, and means that it is there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from token_meter.errors import Retry, SinkError
from token_meter.event import MeterEvent
from token_meter.sinks.backend import BackendSink
from token_meter.sinks.http import Answer, Http, Secret, secret_of
from token_meter.sinks.mapping import ANY_METER, Mapped, Properties, Rule, measured, own_dimensions
from token_meter.sinks.priced import Price, priced, without_amount
from token_meter.sinks.recording import Customers, Mode
from token_meter.sinks.records import Call, Record, Refused, Verdict, milliseconds

API_URL: Final = "https://api.getlago.com"
KEY_VARIABLE: Final = "LAGO_API_KEY"
URL_VARIABLE: Final = "LAGO_API_URL"
EVENTS_PATH: Final = "/api/v1/events"
VALUE: Final = "value"
"""The property that holds the quantity, and that the metrics sum."""
WHOLE: Final = re.compile(r"(-?\d+)(?:\.0*)?", re.ASCII)
PAGE_SIZE: Final = 500
PAGES_MAX: Final = 2_000

CODES: Final[Mapping[str, str]] = {
    "input": "llm_input_tokens",
    "input_document": "llm_input_tokens",
    "input_video": "llm_input_tokens",
    "tool_input": "llm_input_tokens",
    "input_audio": "llm_audio_input_tokens",
    "input_image": "llm_image_input_tokens",
    "cache_read": "llm_cached_input_tokens",
    "cache_read_audio": "llm_cached_input_tokens",
    "cache_read_image": "llm_cached_input_tokens",
    "cache_read_video": "llm_cached_input_tokens",
    "cache_write_5m": "llm_cache_write_5m_tokens",
    "cache_write_30m": "llm_cache_creation_tokens",
    "cache_write_1h": "llm_cache_write_1h_tokens",
    "cache_write_12h": "llm_cache_creation_tokens",
    "output": "llm_output_tokens",
    "output_image": "llm_output_tokens",
    "output_video": "llm_output_tokens",
    "cached_output": "llm_output_tokens",
    "output_audio": "llm_audio_output_tokens",
    "reasoning": "llm_reasoning_tokens",
    "web_search": "llm_tool_calls",
    "file_search": "llm_tool_calls",
    "code_interpreter": "llm_tool_calls",
    "image_generation": "llm_tool_calls",
    "audio_ms": "llm_audio_milliseconds",
    "video_ms": "llm_video_milliseconds",
    "characters": "llm_characters",
    "images": "llm_images",
    "units": "llm_units",
}
"""The code of the billable metric for each token type, as Lago's own agent SDK names them as far as it has them.

Ours are disjoint, so they add up: `llm_input_tokens` holds no cached tokens and `llm_output_tokens` no reasoning.
"""


class LagoSink(BackendSink):
    """Reports usage to Lago: one event for each billable metric that an event of ours has something of.

    `codes` says which metric a token type counts for (`CODES`); `mapping`, a sequence of `Rule`s or a function,
    replaces the whole table. Each event has `value` and the properties `model`, `provider`, `api` (the operation), and
    those of `dimensions` and `properties`. Meters of your own are reported under their name.

    `api_key` is the key or a function (default: $LAGO_API_KEY), `base_url` the server without `/api/v1` (default:
    $LAGO_API_URL, else Lago's cloud).

    Lago bills subscriptions: a customer needs the external id of theirs (`external_ids["lago"]`). Lago takes usage of a
    subscription or metric that it does not know and never bills it, so there is no fallback; `check` looks at metrics.

    `price` turns price mode on, for metrics with a dynamic charge: it says what is charged for token types of an event
    (`token_meter.bookkeeping.event_prices.EventPrices(ledger).charge`), and Lago bills that, exact. An event without a
    price yet is refused, never billed at zero.
    """

    vendor: ClassVar[str] = "lago"
    shown: ClassVar[str] = "Lago"
    records_max: ClassVar[int] = 100
    counted_step: ClassVar[timedelta] = timedelta(seconds=1)

    def __init__(
        self,
        api_key: Secret | None = None,
        *,
        base_url: str | None = None,
        codes: Mapping[str, str] = CODES,
        mapping: Sequence[Rule] | Mapped | None = None,
        properties: Properties | None = None,
        dimensions: Sequence[str] = (),
        customers: Customers = "registered",
        unattributed: str | None = None,
        mode: Mode = "live",
        where: Callable[[MeterEvent], bool] | None = None,
        price: Price | None = None,
        name: str = "lago",
    ) -> None:
        if VALUE in (*dimensions, *(properties or {})):
            raise ValueError(f"{VALUE!r} is what Lago sums: give the property another name")
        self._key = secret_of(api_key, variable=KEY_VARIABLE, what="Lago")
        self.rules: tuple[Rule, ...] | None = None
        if mapping is None:
            mapping = lago_rules(codes)
        if not callable(mapping):
            self.rules = tuple(mapping)
            mapping = measured(self.rules, {**PROPERTIES, **own_dimensions(dimensions), **(properties or {})})
        if price is not None:
            mapping = priced(mapping, price)
        super().__init__(
            name=name,
            http=Http(url_of(base_url), what="Lago", authorise=self._headers),
            mapping=mapping,
            customers=customers,
            unattributed=unattributed,
            mode=mode,
            where=where,
        )

    def call(self, records: Sequence[Record]) -> Call:
        """One batch."""
        body = json.dumps({"events": [_event(record) for record in records]}, separators=(",", ":")).encode()
        return Call(f"{EVENTS_PATH}/batch", body, {"Content-Type": "application/json"}, records)

    def judge(self, answer: Answer, call: Call) -> Verdict:
        """Which events Lago has already, which it will not take; the rest is sent again."""
        document = answer.json()
        details = document.get("error_details") if isinstance(document, dict) else None
        reasons = _reasons(details, len(call.records)) if answer.status == 422 else {}
        if not reasons:
            return super().judge(answer, call)
        refused = [
            Refused(call.records[place], f"Lago: {_told(reason)}")
            for place, reason in reasons.items()
            if not _is_there(reason)
        ]
        rest = [record for place, record in enumerate(call.records) if place not in reasons]
        return Verdict(refused, [rest] if rest else [])

    def counted(
        self, *, since: datetime, until: datetime, pairs: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], int]:
        """What Lago has in [since, until) for these (subscription, code) pairs, by listing its events."""
        return {
            (subscription, code): self._sum(subscription, code, since=since, until=until)
            for subscription, code in pairs
        }

    def _sum(self, subscription: str, code: str, *, since: datetime, until: datetime) -> int:
        asked = {
            "external_subscription_id": subscription,
            "code": code,
            "timestamp_from": since.astimezone(UTC).isoformat(),
            "timestamp_to": until.astimezone(UTC).isoformat(),
            "per_page": str(PAGE_SIZE),
        }
        total = 0
        # With ClickHouse behind it Lago lists what was sent twice twice, and counts it once.
        seen: set[tuple[str, datetime]] = set()
        for page in range(1, PAGES_MAX + 1):
            answer = self._http.get(EVENTS_PATH, {**asked, "page": str(page)})
            document = answer.json()
            found = document.get("events") if isinstance(document, dict) else None
            if not answer.ok or not isinstance(found, list):
                raise Retry(f"Lago does not list events (HTTP {answer.status}): {answer.text}")
            for each in found:
                moment = _moment(each)
                known = (str(each.get("transaction_id")), moment)
                if since <= moment < until and known not in seen:
                    seen.add(known)
                    total += _value(each)
            if len(found) < PAGE_SIZE:
                return total
        raise Retry(f"Lago lists more than {PAGES_MAX * PAGE_SIZE} events: ask for a shorter period")

    def check(self) -> list[str]:
        """Prove the key, and that there is a billable metric for each code. Raises SinkError."""
        known = self._metrics()
        wanted = sorted({rule.meter for rule in self.rules or () if rule.meter})
        missing = [code for code in wanted if code not in known]
        if wanted and len(missing) == len(wanted):
            raise SinkError(f"Lago has no billable metric for any code of this sink: {', '.join(wanted)}. Create them")
        lines = [
            f"Lago takes the key: {len(known)} billable metrics",
            *(_metric_line(code, known[code]) for code in wanted if code in known),
        ]
        if missing:
            lines.append(
                f"Lago takes usage of codes without a billable metric and never bills it: {', '.join(missing)}"
            )
        return lines

    def _metrics(self) -> dict[str, Mapping[str, Any]]:
        """Lago's billable metrics, by code. Raises SinkError."""
        known: dict[str, Mapping[str, Any]] = {}
        for page in range(1, PAGES_MAX + 1):
            answer = self._http.get("/api/v1/billable_metrics", {"per_page": str(PAGE_SIZE), "page": str(page)})
            document = answer.json()
            found = document.get("billable_metrics") if isinstance(document, dict) else None
            if not answer.ok or not isinstance(found, list):
                raise SinkError(f"Lago does not list billable metrics (HTTP {answer.status}): {answer.text}")
            known.update((str(each.get("code")), each) for each in found if isinstance(each, dict))
            if len(found) < PAGE_SIZE:
                break
        return known

    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._key()}"}


PROPERTIES: Final[Properties] = {
    "model": lambda event: event.model,
    "provider": lambda event: event.provider,
    "api": lambda event: event.operation,
}


def lago_rules(codes: Mapping[str, str] = CODES) -> list[Rule]:
    """One rule for each code; calls of tools have one each, with the tool as a property."""
    by_code: dict[str, list[str]] = {}
    for name, code in codes.items():
        by_code.setdefault(code, []).append(name)
    rules = []
    for code, names in by_code.items():
        tools = [name for name in names if name in TOOLS]
        rules += [Rule(key=f"{code}.{tool}", meter=code, types=(tool,), properties={"tool": tool}) for tool in tools]
        rest = tuple(name for name in names if name not in TOOLS)
        if rest:
            rules.append(Rule(key=code, meter=code, types=rest))
    return [*rules, Rule(key="value", meter="", source=ANY_METER)]


TOOLS: Final = frozenset({"web_search", "file_search", "code_interpreter", "image_generation"})


def url_of(base_url: str | None) -> str:
    """The server's address, however it was given: Lago's own SDK wants it with `/api/v1`."""
    return (base_url or os.environ.get(URL_VARIABLE) or API_URL).rstrip("/").removesuffix("/api/v1")


def _event(record: Record) -> dict[str, Any]:
    properties, cents = without_amount(record.measure, taken_back=record.reverses is not None)
    event: dict[str, Any] = {
        "transaction_id": record.identifier,
        "external_subscription_id": record.customer,
        "code": record.measure.meter,
        "timestamp": milliseconds(record.time) / 1000,
        "properties": {**properties, VALUE: str(record.value)},
    }
    if cents is not None:
        event["precise_total_amount_cents"] = cents
    return event


def _reasons(details: object, count: int) -> dict[int, object]:
    """Reasons by the place of the event; empty if the details are of another form."""
    if not isinstance(details, dict):
        return {}
    try:
        reasons = {int(place): reason for place, reason in details.items()}
    except ValueError:
        return {}
    return reasons if all(0 <= place < count for place in reasons) else {}


def _is_there(reason: object) -> bool:
    """Whether the only thing wrong with an event is that Lago has it."""
    return isinstance(reason, dict) and reason == {"transaction_id": ["value_already_exist"]}


def _metric_line(code: str, metric: Mapping[str, Any]) -> str:
    """What is to be said about a metric that is there: some count events, or sum another property."""
    kind, field = metric.get("aggregation_type"), metric.get("field_name")
    if (kind, field) == ("sum_agg", VALUE):
        return f"billable metric {code} is there"
    return (
        f"billable metric {code} is there, but does not sum `{VALUE}` ({kind} of {field or 'events'}): is that meant?"
    )


def _told(reason: object) -> str:
    if not isinstance(reason, dict):
        return str(reason)[:200]
    said = (f"{name}: {', '.join(map(str, why)) if isinstance(why, list) else why}" for name, why in reason.items())
    return "; ".join(said)[:300]


def _value(event: Mapping[str, Any]) -> int:
    text = str((event.get("properties") or {}).get(VALUE, "0"))
    whole = WHOLE.fullmatch(text)
    if whole is None:
        raise SinkError(
            f"Lago's event {event.get('transaction_id')} has the value {text[:40]!r}, which is no whole number: "
            "something else than this sink reported it"
        )
    return int(whole[1])


def _moment(event: Mapping[str, Any]) -> datetime:
    moment = datetime.fromisoformat(str(event.get("timestamp")))
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
