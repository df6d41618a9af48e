"""Errors that Stripe finds after it took an event: error reports, sent to a webhook of the application.

A report counts errors by code and names a few of the events that they are about. Those are quarantined with the reason;
how many it does not name is said, because only reconciliation finds these. The webhook gets a notification without the
contents, which are fetched with the sink's key. Source: Stripe's API reference,
`v1.billing.meter.error_report_triggered` and `v1.billing.meter.no_meter_found`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from token_meter.errors import InvalidReport, MissingExtra, Refusal, Retry
from token_meter.sinks.base import Report
from token_meter.sinks.http import Http
from token_meter.sinks.records import Record, Refused, parts_refused

REPORTS: Final = frozenset({"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"})
SIGNATURE: Final = "stripe-signature"
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
    """An error report: its id, the records it names, and how many errors it counts besides.

    A record is named twice when it was sent twice, because an answer was lost.
    """

    id: str
    samples: tuple[Sample, ...]
    unnamed: int


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
    data = document.get("data")
    reason = data.get("reason") if isinstance(data, dict) else None
    reason = reason if isinstance(reason, dict) else {}
    samples = tuple(_samples(reason))
    count = reason.get("error_count")
    return StripeReport(id, samples, max(0, count - len(samples)) if isinstance(count, int) else 0)


def named_events(
    report: StripeReport,
    look_up: Callable[[str], tuple[list[Record], list[Refusal]]],
    refused_of: Callable[[Record, Sample], Refused],
) -> Report:
    """The events that a report names, refused in part or as a whole. `look_up` makes the records of an event by its
    id, `refused_of` says what a record waits for."""
    made: dict[str, tuple[list[Record], list[Refusal]]] = {}
    refused: list[Refused] = []
    unsendable: dict[str, Refusal] = {}
    unknown: dict[str, None] = {}
    for sample in report.samples:
        id = sample.identifier.rpartition(":")[0]
        records, refusals = made[id] if id in made else made.setdefault(id, look_up(id))
        said = f"Stripe refused it afterwards (report {report.id}): {sample.code} {sample.message}".strip()
        mine = next((record for record in records if record.identifier == sample.identifier), None)
        if mine is not None:
            refused.append(refused_of(mine, sample)._replace(reason=said))
        elif refusals:
            # It could not even be sent any more: its customer has lost their id meanwhile.
            unsendable[id] = refusals[0]._replace(reason=f"{said}; {refusals[0].reason}")
        else:
            unknown[sample.identifier] = None
    every = [record for records, _ in made.values() for record in records]
    whole = (*parts_refused(every, refused), *unsendable.values())
    return Report(report.id, whole, report.unnamed, tuple(unknown))


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
        # How old it is does not matter: what a report said before is not entered again, so repeating it gains nothing,
        # and a clock that is minutes off would lose reports.
        WebhookSignature.verify_header(text, lowered.get(SIGNATURE, ""), secret)
        document = json.loads(text)
    except (SignatureVerificationError, ValueError, TypeError, RecursionError):
        raise InvalidReport(
            "the request is not signed by Stripe with this secret. Is it the signing secret of this very endpoint "
            "(whsec_…), and is the body handed over as it came?"
        ) from None
    if not isinstance(document, dict):
        raise InvalidReport("the request holds no event of Stripe")
    return document


def _fetched(id: str, http: Http) -> dict[str, Any]:
    answer = http.get(f"{EVENTS_PATH}/{id}")
    if answer.status == 404:
        raise InvalidReport(f"Stripe has no report {id} for this key: is the webhook of the same account and mode?")
    document = answer.json()
    if not answer.ok or not isinstance(document, dict):
        raise Retry(f"Stripe does not show the report {id} (HTTP {answer.status}): {answer.text}")
    return document


def _samples(reason: Mapping[str, Any]) -> Iterator[Sample]:
    kinds = reason.get("error_types")
    for kind in kinds if isinstance(kinds, list) else ():
        if not isinstance(kind, dict):
            continue
        samples = kind.get("sample_errors")
        for sample in samples if isinstance(samples, list) else ():
            request = sample.get("request") if isinstance(sample, dict) else None
            identifier = request.get("identifier") if isinstance(request, dict) else None
            if isinstance(identifier, str):
                message = str(sample.get("error_message") or "")[:MESSAGE_CHARACTERS_MAX]
                yield Sample(identifier, str(kind.get("code")), message)
