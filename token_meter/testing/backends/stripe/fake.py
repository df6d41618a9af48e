"""The fake itself: who is let in, which endpoint is asked, and what a request changes.

Two things can be had as older pages of Stripe's have them. It refuses an identifier that it has seen (seen by others on
v1, documented for v2), unless `strict_identifiers="accept"`; and v2 answers a second call at a time for a customer and
a meter with 409 (documented), unless `busy="lock_timeout"`. A sink has to get along with each of the four combinations.

Assumptions are named in the modules that make them. Here: a session outlives the key that opened it; v2 takes
restricted keys (an old page of Stripe's says it does not, its own clients use them); a summary needs an existing
customer; and what `GET /v1/account` shows is only enough to check a key.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, Literal

from token_meter.testing.backends import base
from token_meter.testing.backends.base import Chaos, FakeBackend, Request, Response, VirtualClock
from token_meter.testing.backends.stripe import documents, errors, params, reports
from token_meter.testing.backends.stripe.account import Account
from token_meter.testing.backends.stripe.errors import ApiError
from token_meter.testing.backends.stripe.idempotency import IdempotencyKeys
from token_meter.testing.backends.stripe.limits import OneAtATime, TokenBucket
from token_meter.testing.backends.stripe.params import Cancel, NewEvent
from token_meter.testing.backends.stripe.rules import Aggregation, Meter, Refusal

TOKEN_BILLING_EVENT: Final = "token-billing-tokens"
SESSION_SECONDS: Final = 900
SESSIONS_MAX: Final = 10_000
"""Sessions that are remembered, expired ones too; the oldest become unknown tokens."""

_KEY: Final = re.compile(r"(sk|rk)_(test|live)_\w+", re.ASCII)
_STREAM: Final = "/v2/billing/meter_event_stream"
_METER: Final = re.compile(r"/v1/billing/meters/([^/]+)(/event_summaries)?")
_EVENT: Final = re.compile(r"/v2/core/events/([^/]+)")

Work = Callable[[], dict[str, Any]]
"""A request whose parameters were read. Carrying it out may still refuse it."""


class FakeStripe(FakeBackend):
    """Bills what the real one would: by meter and customer, an identifier once in 24 hours.

    `keys` are the API keys that are let in, to be changed at any time: at first `key` and the restricted key of the
    same name. Point an SDK at `url` with both of its bases, the API's and that of the meter event stream.
    """

    name: ClassVar[str] = "stripe"

    def __init__(
        self,
        *,
        port: int = 0,
        clock: VirtualClock | None = None,
        chaos: Chaos | None = None,
        key: str = "sk_test_fake",
        customers: Iterable[str] = (),
        strict_identifiers: Literal["accept", "refuse"] = "refuse",
        busy: Literal["lock_timeout", "conflict"] = "conflict",
        summary_lag_seconds: float = 0.0,
        rate_per_second: float | None = None,
        stream_rate_per_second: float | None = None,
        work_seconds: float = 0.0,
    ) -> None:
        super().__init__(port=port, clock=clock, chaos=chaos)
        if not _KEY.fullmatch(key):
            raise ValueError("key has to look like sk_test_…, sk_live_…, rk_test_… or rk_live_…")
        self.keys = {key, "rk" + key[2:]}
        self.strict_identifiers = strict_identifiers
        self.busy = busy
        self.summary_lag_seconds = summary_lag_seconds
        self.work_seconds = work_seconds
        self._account = Account(self.counted, customers=customers, livemode="_live_" in key)
        self._revoked: set[str] = set()
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._idempotency = IdempotencyKeys()
        self._at_work = OneAtATime()
        self._requests = TokenBucket(rate_per_second, self.clock)
        self._streamed = TokenBucket(stream_rate_per_second, self.clock)

    # ---- what a test sets up ----

    @property
    def livemode(self) -> bool:
        """Whether the key was one for real money."""
        return self._account.livemode

    def add_meter(
        self,
        event_name: str,
        *,
        customer_key: str = "stripe_customer_id",
        value_key: str = "value",
        aggregation: Aggregation = "sum",
        dimension_keys: Iterable[str] = (),
        id: str | None = None,
    ) -> str:
        """An active meter, and its id. It goes on with what was counted under its name by one that was archived."""
        created, id = int(self.clock.now()), id or self._account.new_id("mtr")
        with self.lock:
            self._account.add(
                Meter(id, event_name, customer_key, value_key, aggregation, tuple(dimension_keys), created)
            )
        return id

    def add_token_billing_meter(self) -> str:
        """The meter of Stripe's token billing. That it insists on both dimensions is an assumption."""
        return self.add_meter(TOKEN_BILLING_EVENT, dimension_keys=("model", "token_type"))

    def archive_meter(self, event_name: str) -> None:
        """Events of this name are refused from now on; what was counted stays."""
        with self.lock:
            self._account.archive(event_name, now=self.clock.now())

    def add_customer(self, id: str) -> None:
        """Events for this customer count."""
        with self.lock:
            self._account.customers.add(id)

    def remove_customer(self, id: str) -> None:
        """Events for this customer are refused from now on."""
        with self.lock:
            self._account.customers.discard(id)

    def revoke_key(self) -> None:
        """No key is let in any more, until `keys` is set again."""
        with self.lock:
            self._revoked |= self.keys
            self.keys = set()

    # ---- what a test reads ----

    def totals(self) -> dict[tuple[str, ...], int]:
        """What it bills by (customer, meter, *group); on a meter that takes the last value, that one."""
        with self.lock:
            return super().totals() | self._account.latest(self.counted)

    def error_reports(self) -> list[dict[str, Any]]:
        """Events about what the stream took and then did not count, since the last call. Empty if it counted all.

        They can be fetched afterwards from `/v2/core/events/{id}`.
        """
        with self.lock:
            return self._account.reports.close(self.clock.now())

    def notification(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """What a webhook gets to see of such an event: all but `data`."""
        return reports.notification(event)

    def signed(self, document: Mapping[str, Any], secret: str) -> tuple[bytes, dict[str, str]]:
        """The body and headers of a webhook with this document, signed as Stripe signs."""
        return reports.signed(document, secret, now=self.clock.now())

    # ---- answering ----

    def answer(self, request: Request) -> Response:
        """One request, from its key to its answer."""
        try:
            response = self._answered(request)
        except ApiError as error:
            response = error.response()
        return response._replace(headers={**response.headers, "Request-Id": f"req_{secrets.token_hex(7)}"})

    def serve(self, request: Request) -> tuple[Response, base.Fault | None]:
        """v1 keeps also a 500 for the request's key: whoever repeats it is told 500 again, though it was counted."""
        response, fault = super().serve(request)
        if fault == "error_after" and _version(request) == "v1":
            with self.lock:
                self._idempotency.failed(request, response)
        return response, fault

    def unavailable(self) -> Response:
        """503."""
        return errors.unavailable()

    def failed(self) -> Response:
        """500."""
        return errors.failed()

    def throttled(self) -> Response:
        """429."""
        return errors.rate_limited("v1").response()

    def _answered(self, request: Request) -> Response:
        version = _version(request)
        if request.path == _STREAM and request.method == "POST":
            return self._stream(request)
        self._authorize(request)
        _check_api_version(request)
        if not self._requests.take():
            raise errors.rate_limited(version)
        if request.method == "GET":
            return Response.json(self._read(request))
        work = self._prepared(request, version)
        with self.lock:
            if (kept := self._idempotency.begin(request, version=version, now=self.clock.now())) is not None:
                return kept
        return self._carried_out(work, request, version)

    def _carried_out(self, work: Work, request: Request, version: str) -> Response:
        response = None
        try:
            response = Response.json(work())
            return response
        except ApiError as error:
            if error.status not in (409, 429):
                response = error.response()
            raise
        finally:
            with self.lock:
                self._idempotency.end(request, response, version=version)

    def _prepared(self, request: Request, version: str) -> Work:
        """The endpoint, with its parameters read. Raises `ApiError` before anything was begun."""
        match (request.method, request.path):
            case ("POST", "/v1/billing/meter_events"):
                event = params.v1_event(params.form(request))
                return lambda: self._create(event, version)
            case ("POST", "/v2/billing/meter_events"):
                event = params.v2_event(params.document(request))
                return lambda: self._create(event, version)
            case ("POST", "/v1/billing/meter_event_adjustments"):
                which = params.cancel(params.form(request), version=version)
                return lambda: self._cancel(which, version)
            case ("POST", "/v2/billing/meter_event_adjustments"):
                which = params.cancel(params.document(request), version=version)
                return lambda: self._cancel(which, version)
            case ("POST", "/v2/billing/meter_event_session"):
                params.known(params.document(request), frozenset())
                return self._open_session
        raise _unrecognized(request)

    def _authorize(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise errors.unauthorized("You did not provide an API key, in the Authorization header, as a bearer token.")
        with self.lock:
            if key in self.keys:
                return
            if key in self._revoked:
                raise errors.unauthorized("Expired API Key provided.", code="api_key_expired")
        raise errors.unauthorized("Invalid API Key provided.")

    # ---- meter events, one by one ----

    def _create(self, event: NewEvent, version: str) -> dict[str, Any]:
        def refused() -> ApiError:
            return errors.conflict() if self.busy == "conflict" and version == "v2" else errors.locked(version)

        with self.lock:
            meter = self._meter(event, version)
        with self._at_work.entering((meter.customer(event), meter.id), refused):
            if self.work_seconds:
                time.sleep(self.work_seconds)
            with self.lock:
                return self._take(event, self._meter(event, version), version)

    def _meter(self, event: NewEvent, version: str) -> Meter:
        found = self._account.judged(event, now=self.clock.now())
        if isinstance(found, Refusal):
            raise found.error(version)
        return found

    def _take(self, event: NewEvent, meter: Meter, version: str) -> dict[str, Any]:
        now, identifier = self.clock.now(), event.identifier or secrets.token_hex(16)
        new = self._account.count(event, identifier, meter, now=now)
        if not new and self.strict_identifiers == "refuse":
            raise errors.duplicate(version, identifier)
        event = event._replace(identifier=identifier)
        return documents.event_document(event, version=version, now=now, livemode=self.livemode)

    def _cancel(self, which: Cancel, version: str) -> dict[str, Any]:
        with self.lock:
            now = self.clock.now()
            self._account.book.cancel(which, now)
        new_id = self._account.new_id("mtr_event_adj") if version == "v2" else None
        return documents.adjustment_document(which, new_id=new_id, now=now, livemode=self.livemode)

    # ---- the stream ----

    def _open_session(self) -> dict[str, Any]:
        session, token = self._account.new_id("mes"), f"mes_token_{secrets.token_urlsafe(24)}"
        with self.lock:
            now = self.clock.now()
            self._sessions[token] = until = now + SESSION_SECONDS
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return documents.session_document(session, token=token, now=now, expires_at=until, livemode=self.livemode)

    def _stream(self, request: Request) -> Response:
        """Takes everything that is well formed; what does not count is told in a report."""
        token = request.headers.get("authorization", "").partition(" ")[2]
        with self.lock:
            expires_at = self._sessions.get(token)
        if expires_at is None:
            raise errors.unauthorized("The meter event stream takes the token of a meter event session.")
        if self.clock.now() >= expires_at:
            raise errors.session_expired()
        _check_api_version(request)
        if not self._streamed.take():
            raise errors.rate_limited("v2")
        events = params.streamed(params.document(request))
        with self.lock:
            now = self.clock.now()
            for event in events:
                self._account.count_or_report(event, now=now)
        return Response.json({})

    # ---- reading ----

    def _read(self, request: Request) -> dict[str, Any]:
        if request.path == "/v1/account":
            return {"id": "acct_fake", "object": "account", "country": "US", "default_currency": "usd"}
        if request.path == "/v1/billing/meters":
            return self._list_meters(request)
        if match := _METER.fullmatch(request.path):
            with self.lock:
                meter = self._account.meters.get(match[1])
            if meter is None:
                raise errors.missing("billing meter", match[1], param="id", status=404)
            return self._list_summaries(request, meter) if match[2] else self._shown(meter)
        if match := _EVENT.fullmatch(request.path):
            with self.lock:
                event = self._account.reports.get(match[1])
            if event is None:
                raise errors.missing("event", match[1], param="id", status=404)
            return event
        raise _unrecognized(request)

    def _list_meters(self, request: Request) -> dict[str, Any]:
        with self.lock:
            meters = list(reversed(self._account.meters.values()))
        shown = documents.with_status([self._shown(meter) for meter in meters], request.query)
        return documents.page(shown, request.query, request.path)

    def _list_summaries(self, request: Request, meter: Meter) -> dict[str, Any]:
        span = documents.span_of(request.query)
        with self.lock:
            if span.customer not in self._account.customers:
                raise errors.missing("customer", span.customer, param="customer")
            records = list(self._account.book.of(span.customer, meter.event_name))
        until = self.clock.now() - self.summary_lag_seconds
        visible = [each for each in records if each.received <= until]
        found = documents.summaries(meter, visible, span, livemode=self.livemode)
        return documents.page(found, request.query, request.path)

    def _shown(self, meter: Meter) -> dict[str, Any]:
        return documents.meter_document(meter, livemode=self.livemode)

    def _control(self, request: Request) -> Response:
        """Besides what every backend takes: `POST customer` {"id"} and `POST meter` {"event_name"}."""
        document, what = json.loads(request.body or b"{}"), request.path.removeprefix(base.CONTROL)
        if what == "customer":
            self.add_customer(str(document["id"]))
        elif what == "meter":
            self.add_meter(str(document["event_name"]))
        return super()._control(request)


def _version(request: Request) -> str:
    return "v2" if request.path.startswith("/v2/") else "v1"


def _check_api_version(request: Request) -> None:
    if _version(request) == "v2" and not request.headers.get("stripe-version"):
        raise ApiError("Requests to the /v2 namespace have to name an API version in the Stripe-Version header.")


def _unrecognized(request: Request) -> ApiError:
    return ApiError(f"Unrecognized request URL ({request.method}: {request.path}).", status=404)
