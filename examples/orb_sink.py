"""A billing backend that the package does not know, in twenty lines: Orb.

    python examples/orb_sink.py

`BackendSink` brings what every billing backend needs: customers and their ids there, mappings, filters, corrections,
live and test usage kept apart, retries, refusals event by event, dry runs. What is left to write is how records are put
into a request, and what an answer says about them. Register the class as an entry point of the group
`token_meter.sinks`, and `token-meter deliver run --sink orb` knows it too.

The Orb here is a small server on this machine that knows one customer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from token_meter import Meter, Usage
from token_meter.event import format_time
from token_meter.sinks.backend import BackendSink
from token_meter.sinks.http import Answer, Http, Secret, secret_of
from token_meter.sinks.mapping import MODEL, Rule, measured, types_of
from token_meter.sinks.records import Call, Record, Refused, Verdict
from token_meter.testing.backends.base import Counted, FakeBackend, Request, Response

RULES = [
    Rule(key=name, meter="llm_tokens", types=types_of(name), properties={"type": name})
    for name in ("input", "cached input", "cache write", "output", "cached output")
]


class OrbSink(BackendSink):
    """Reports usage to Orb: one event for each kind of token, known by an idempotency key."""

    vendor, shown, records_max = "orb", "Orb", 500

    def __init__(self, api_key: Secret | None = None, *, base_url: str = "https://api.withorb.com/v1") -> None:
        key = secret_of(api_key, variable="ORB_API_KEY", what="Orb")
        http = Http(base_url, what="Orb", authorise=lambda: {"Authorization": f"Bearer {key()}"})
        super().__init__(name="orb", http=http, mapping=measured(RULES, MODEL), customers="same")

    def call(self, records: Sequence[Record]) -> Call:
        body = json.dumps({"events": [self._event(record) for record in records]}).encode()
        return Call("/ingest", body, {"Content-Type": "application/json"}, records)

    def _event(self, record: Record) -> dict[str, Any]:
        return {
            "event_name": record.measure.meter,
            "idempotency_key": record.identifier,
            "external_customer_id": record.customer,
            "timestamp": format_time(record.time),
            "properties": {**record.measure.properties, "value": record.value},
        }

    def judge(self, answer: Answer, call: Call) -> Verdict:
        failed = (answer.json() or {}).get("validation_failed", [])
        why = {each["idempotency_key"]: f"Orb: {', '.join(each['validation_errors'])}" for each in failed}
        if not why:
            return super().judge(answer, call)  # narrowed down by halves
        refused = [Refused(each, why[each.identifier]) for each in call.records if each.identifier in why]
        return Verdict(refused, again=[[each for each in call.records if each.identifier not in why]])


class Orb(FakeBackend):
    """Takes what it knows the customer of; one unknown customer, and the whole request is refused."""

    name = "orb"

    def answer(self, request: Request) -> Response:
        events = json.loads(request.body)["events"]
        bad = [each for each in events if each["external_customer_id"] != "acme"]
        if bad:
            failed = [
                {"idempotency_key": each["idempotency_key"], "validation_errors": ["no such customer"]} for each in bad
            ]
            return Response.json({"validation_failed": failed}, status=400)
        known = {each.identifier for each in self.counted}
        for each in events:
            if each["idempotency_key"] not in known:
                kind, value = each["properties"]["type"], each["properties"]["value"]
                now = self.clock.now()
                self.counted.append(
                    Counted(each["idempotency_key"], "acme", each["event_name"], (kind,), value, now, now)
                )
        return Response.json({"validation_failed": []})


def main() -> None:
    with Orb() as orb, Meter("orb.db", OrbSink("secret", base_url=orb.url)) as meter:
        usage = Usage(input=900, cache_read=4_000, output=150)
        meter.record(usage, model="claude-sonnet-4-5", provider="anthropic", customer="acme")
        meter.record(usage, model="claude-sonnet-4-5", provider="anthropic", customer="initech")
        meter.flush()
        for (customer, _, kind), tokens in orb.totals().items():
            print(f"Orb bills {customer} {tokens} tokens of {kind}")
        (state,) = [each for each in meter.health().deliveries if each.name == "orb"]
        print(f"{state.delivered} event delivered, {state.quarantined} in quarantine")


if __name__ == "__main__":
    main()
