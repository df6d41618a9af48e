"""From an answer to readings with a status: complete, partial, estimated or unmetered (decision D6)."""

from __future__ import annotations

from token_meter.providers.base import Call, Fold, Reading
from token_meter.providers.body import excerpt, fields_of
from token_meter.providers.estimate import ESTIMATOR, estimate, sent_bytes, text_bytes
from token_meter.providers.tokeniser import recount_of


def take_body(call: Call, body: bytes) -> None:
    """A whole JSON answer: one of the plain form is written as it came and read later, any other is read now."""
    endpoint = call.endpoint
    plain = excerpt(body, endpoint.fields, endpoint.bulky) if endpoint.dialect else None
    if plain is not None:
        call.recorder.answered(call, plain)
    else:
        call.recorder.record(call, read_body(call, body))


def read_body(call: Call, body: bytes | str) -> list[Reading]:
    """Readings of a whole JSON answer."""
    document = fields_of(body, call.endpoint.fields, bulky=call.endpoint.bulky)
    if document is None:
        return [_without_counts(call, Reading(None, anomalies=["no_usage"]), output_bytes=0)]
    readings = call.endpoint.read(document)
    if readings and readings[0].usage is None:
        raw = body.encode() if isinstance(body, str) else body
        readings[0].anomalies.append("no_usage")
        _without_counts(call, readings[0], output_bytes=text_bytes(raw))
    return readings


def read_fold(call: Call, fold: Fold, ending: str) -> list[Reading]:
    """Readings of a stream that ended: `ending` says how, the fold whether the provider had finished."""
    fold.close()
    readings = call.endpoint.read(fold.document)
    if not readings:
        return readings
    main = readings[0]
    if not fold.terminal:
        main.anomalies.append(ending)
        if main.usage is not None and main.status == "complete":
            main.status = "partial"
    if main.usage is None:
        if fold.terminal:
            main.anomalies.append("no_usage")
        _without_counts(call, main, output_bytes=fold.text_bytes)
    return readings


def _without_counts(call: Call, reading: Reading, *, output_bytes: int) -> Reading:
    """No counts came: estimate where text tells something, else say that it is not metered."""
    if not call.endpoint.estimates:
        reading.usage = estimate(input_bytes=0, output_bytes=0)
        reading.status = "unmetered"
        return reading
    reading.usage = estimate(input_bytes=sent_bytes(call.sent), output_bytes=output_bytes)
    reading.status = "estimated"
    reading.estimator = ESTIMATOR
    reading.recount = recount_of(call, reading, output_bytes=output_bytes)
    return reading
