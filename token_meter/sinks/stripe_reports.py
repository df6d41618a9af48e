"""Errors that Stripe finds after it took an event: error reports, sent to a webhook of the application.

A report counts errors by code and names a few of the events that they are about. Those are quarantined with the reason;
how many it does not name is said, because only reconciliation finds these. The webhook gets a notification without the
contents, which are fetched with the sink's key. Source: Stripe's API reference,
`v1.billing.meter.error_report_triggered` and `v1.billing.meter.no_meter_found`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from token_meter.errors import InvalidReport, MissingExtra, Retry
from token_meter.sinks.http import Http

REPORTS: Final = frozenset({"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"})
SIGNATURE: Final = "stripe-signature"
TOLERANCE_SECONDS: Final = 300
BODY_BYTES_MAX: Final = 1 << 20
SECRET_VARIABLE: Final = "STRIPE_WEBHOOK_SECRET"
EVENTS_PATH: Final = "/v2/core/events"
MESSAGE_CHARACTERS_MAX: Final = 300
_EVENT_ID: Final = re.compile(r"[A-Za-z0-9_]{1,255}")


class Sample(NamedTuple):
    """One refused record that a report names."""

    identifier: str
    code: str
    message: str


class StripeReport(NamedTuple):
    """An error report: its id, the records it names, and how many errors it counts altogether."""

    id: str
    samples: tuple[Sample, ...]
    errors: int


def read_report(body: bytes, headers: Mapping[str, str], *, secret: str, http: Http) -> StripeReport | None:
    """The report in a webhook request; None for an event of another kind, which is none of our business.

    Raises InvalidReport for a request that Stripe did not sign, or that is none, and Retry when the contents cannot be
    fetched now: answer the webhook with 5xx then, and Stripe sends it again.
    """
    document = _verified(body, headers, secret)
    if document.get("type") not in REPORTS:
        return None
    id = str(document.get("id"))
    if not _EVENT_ID.fullmatch(id):
        raise InvalidReport("the report of Stripe has no id that could be one")
    if not isinstance(document.get("data"), dict):
        document = _fetched(id, http)
    reason = document.get("data", {}).get("reason")
    reason = reason if isinstance(reason, dict) else {}
    samples = tuple(_samples(reason))
    count = reason.get("error_count")
    return StripeReport(id, samples, count if isinstance(count, int) else len(samples))


def _verified(body: bytes, headers: Mapping[str, str], secret: str) -> dict[str, Any]:
    if len(body) > BODY_BYTES_MAX:
        raise InvalidReport(f"a report of more than {BODY_BYTES_MAX} bytes is none of Stripe's")
    try:
        from stripe import SignatureVerificationError, WebhookSignature
    except ImportError:
        raise MissingExtra("reading Stripe's reports needs: pip install 'token-meter[stripe]'") from None
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        text = body.decode()
        WebhookSignature.verify_header(text, lowered.get(SIGNATURE, ""), secret, TOLERANCE_SECONDS)
        document = json.loads(text)
    except (SignatureVerificationError, ValueError, RecursionError):
        raise InvalidReport(
            "the request is not signed by Stripe with this secret, or too old. Is it the signing secret of this very "
            "endpoint (whsec_…), and is the body handed over as it came?"
        ) from None
    if not isinstance(document, dict):
        raise InvalidReport("the request holds no event of Stripe")
    return document


def _fetched(id: str, http: Http) -> dict[str, Any]:
    answer = http.get(f"{EVENTS_PATH}/{id}")
    document = answer.json()
    if not answer.ok or not isinstance(document, dict):
        raise Retry(f"Stripe does not show the report {id} (HTTP {answer.status}): {answer.text}")
    return document


def _samples(reason: Mapping[str, Any]) -> Iterator[Sample]:
    for kind in reason.get("error_types") or ():
        if not isinstance(kind, dict):
            continue
        for sample in kind.get("sample_errors") or ():
            request = sample.get("request") if isinstance(sample, dict) else None
            identifier = request.get("identifier") if isinstance(request, dict) else None
            if isinstance(identifier, str):
                message = str(sample.get("error_message") or "")[:MESSAGE_CHARACTERS_MAX]
                yield Sample(identifier, str(kind.get("code")), message)
