"""Taking back what was reported: Stripe cancels what it received within 24 hours; older usage gets a negative value.

A cancellation whose answer was lost is asked for again, and must then neither be taken for a refused one nor be
followed by a negative value. So each carries an idempotency key: asked again, Stripe repeats its first answer. v1
repeats refusals and failures too, whatever has changed since; then the next key is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from token_meter.errors import Retry
from token_meter.sinks import stripe_wire as wire
from token_meter.sinks.http import Answer, Unavailable
from token_meter.sinks.records import Call, Record, Refused

KEYS_MAX: Final = 20
CANCEL_SECONDS_MAX: Final = 86_400.0

AGAIN_SECONDS_MIN: Final = 600.0
AGAIN_SECONDS_MAX: Final = 35 * 86_400.0
"""So long after a correction Stripe is asked again about an event it did not know, at intervals that double."""

LATER_KEY: Final = "later"
"""What a refusal awaits that is to be tried again at a certain time, in seconds since 1970."""


def cancels(record: Record) -> bool:
    """Whether a record takes back one that Stripe can still cancel. It depends on the events alone, not on the hour:
    what was cancelled by one attempt must not be taken back with a negative value by the next."""
    return record.reverses is not None and (record.event.time - record.time).total_seconds() < CANCEL_SECONDS_MAX


class Cancellations:
    """Asks Stripe to cancel. `post` makes a request, `negative` reports a record with a negative value."""

    def __init__(
        self,
        post: Callable[[Call], Answer],
        negative: Callable[[Record], list[Refused]],
        *,
        now: Callable[[], float],
    ) -> None:
        self._post = post
        self._negative = negative
        self._now = now

    def settle(self, call: Call) -> list[Refused]:
        """Cancel what the call's record takes back, or report a negative value when it is too late. Raises Retry."""
        record = call.records[0]
        answer, failed = self._answer(call)
        code, message = wire.error(answer)
        if answer.ok or wire.ALREADY.search(f"{code} {message}"):
            return []
        if wire.TOO_LATE.search(message) and not failed:
            return self._negative(record)
        if failed:
            reason = (
                f"Stripe failed when it was asked to cancel {record.reverses}, and says now: {message}. It was "
                "probably cancelled: compare with `token-meter reconcile sink`, then discard this, or release it"
            )
            return [Refused(record, reason)]
        return [self._unknown(record, message)]

    def _answer(self, call: Call) -> tuple[Answer, bool]:
        """Stripe's answer, and whether an earlier request for the same failed in an unknown way."""
        identifier = call.records[0].identifier
        failed = False
        for number in range(KEYS_MAX):
            key = identifier if not number else f"{identifier}.{number}"
            try:
                answer = self._post(call._replace(headers={**call.headers, wire.KEY_HEADER: key}))
            except Unavailable as unavailable:
                if not replayed(unavailable.headers):
                    raise
                failed = True
                continue
            if not answer.ok and not wire.refuses(answer):
                raise Retry(f"Stripe does not say whether it cancels (HTTP {answer.status}): {answer.text}")
            if answer.ok or not replayed(answer.headers):
                return answer, failed
        raise Retry(f"Stripe only repeats what it said about {identifier}: its idempotency keys expire after 24 hours")

    def _unknown(self, record: Record, message: str) -> Refused:
        """Stripe has no such event (yet): it may still be on its way there, or wait in quarantine itself."""
        now, since = self._now(), record.event.time.timestamp()
        reason = (
            f"Stripe cannot cancel {record.reverses}: {message}. Is the corrected event delivered? If it waits in "
            "quarantine, release it first, then this one; if it was given up, discard this one too"
        )
        age = max(AGAIN_SECONDS_MIN, now - since)
        if age > AGAIN_SECONDS_MAX:
            return Refused(record, reason)
        return Refused(record, f"{reason}. It is tried again by itself meanwhile", f"{LATER_KEY}:{int(now + age)}")


def replayed(headers: Mapping[str, str]) -> bool:
    """Whether an answer is the one of an earlier request with the same idempotency key."""
    return headers.get(wire.REPLAYED) == "true"
