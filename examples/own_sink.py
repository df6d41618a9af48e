"""A sink of your own: twenty lines to any billing API that takes events over HTTP.

    python examples/own_sink.py

`send` returns when every event of the batch is safely there. `Retry` says "later, all of it", `Rejected` names events
that will never be accepted; anything else that is raised is a retry too. Batches can come again after a crash, always
with the same ids, so hand the id on as the idempotency key.

The billing service here is a small server on this machine: busy at first, and with an opinion on customer names.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from token_meter import Meter, MeterEvent, Rejected, Retry, Usage
from token_meter.sinks import JsonlSink


class BillingSink:
    """Sends events to a usage-based billing service."""

    name = "billing"

    def __init__(self, url: str, *, api_key: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def send(self, events: Sequence[MeterEvent]) -> None:
        nameless = [event for event in events if event.customer is None]
        if nameless:
            raise Rejected(nameless, "the billing service needs a customer")
        # An event without usage is a placeholder; the real one comes under the same id, and must not find it taken.
        body = json.dumps({"events": [self._as_sent(event) for event in events if event.usage]}).encode()
        request = urllib.request.Request(self._url, body, self._headers)
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as refusal:
            with refusal:
                after = refusal.headers.get("Retry-After")
            raise Retry(f"HTTP {refusal.code}", after=float(after) if after else None) from refusal

    def _as_sent(self, event: MeterEvent) -> dict[str, Any]:
        quantities = {**event.usage.by_headline(), "model": event.model, **event.dimensions}
        return {
            "idempotency_key": event.id,
            "external_customer_id": event.customer,
            "event_name": event.meter,
            "timestamp": event.time.isoformat(),
            "properties": quantities,
        }


class BillingService(ThreadingHTTPServer):
    """Stands for the vendor's API. Says 429 once, then takes everything, each idempotency key once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.taken: dict[str, dict[str, Any]] = {}
        self.refusals = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/ingest"


class _Answer(BaseHTTPRequestHandler):
    server: BillingService

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        busy = not self.server.refusals
        if busy:
            self.server.refusals += 1
        else:
            self.server.taken |= {event["idempotency_key"]: event for event in body["events"]}
        self.send_response(429 if busy else 200)
        self.send_header("Retry-After", "0.2")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


def main() -> None:
    service = BillingService()
    with (
        service,
        Meter("own_sink.db", BillingSink(service.url, api_key="none"), JsonlSink("own_sink.jsonl")) as meter,
    ):
        meter.record(Usage(input=812, cache_read=3000, output=40), model="gpt-5", customer="acme")
        meter.record(Usage(input=20, output=5), model="gpt-5", customer="globex")
        meter.record(Usage(input=7, output=1), model="gpt-5")  # whose is this?
        meter.flush(timeout=20)

        print(f"the billing service was busy {service.refusals} time and now has {len(service.taken)} events:")
        for event in service.taken.values():
            print(f"  {event['external_customer_id']}: {event['properties']}")
        print("what each sink has:")
        for state in meter.health().deliveries:
            print(f"  {state.name}: {state.delivered} delivered, {state.quarantined} in quarantine")
        service.shutdown()


if __name__ == "__main__":
    main()
