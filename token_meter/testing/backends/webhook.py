"""WebhookReceiver: whoever our webhooks are sent to. It believes signed CloudEvents and nothing else.

Signatures are those of Standard Webhooks, computed by its own library. The library compares timestamps with the
machine's clock, so that part is done here, with the clock that tests move. What is sent in an event is read as well as
it can be guessed: see `quantities`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, NamedTuple

from token_meter.testing.backends.base import Chaos, Counted, FakeBackend, Request, Response, VirtualClock
from token_meter.testing.backends.cloudevents import BATCH, ONE, PLAIN, CloudEvent, read_events
from token_meter.testing.backends.values import Texts, number, read_json, whole, write_json

SECRET: Final = "whsec_" + base64.b64encode(b"a secret of no one, only for tests").decode()
TOLERANCE_SECONDS: Final = 5 * 60
TIMESTAMP: Final = re.compile(r"\d{1,12}", re.ASCII)
QUANTITIES: Final = ("value", "quantity", "tokens")
"""Properties of an event's data that say how much, when it has no `usage` by token type."""


class Quantity(NamedTuple):
    """How much of what. `kind` is a token type, empty if the event does not tell them apart."""

    kind: str
    value: int


class WebhookReceiver(FakeBackend):
    """Takes a POST to any path: an array of CloudEvents, or one, signed with `secret`.

    An event is kept once by its source and id; with `deduplicates=False` as often as it comes. `answers` are responses
    to give instead of taking a request, first to last, whatever `Chaos` cannot say: 410, 413, a redirect, a date in
    `Retry-After`. `refuses` maps ids of events that it will not take to reasons: it takes the others and names these,
    or with `names_refused=False` answers 422 and takes nothing. `messages` counts how often each webhook-id came,
    `changed` are those that came with another body.
    """

    name: ClassVar[str] = "webhook"

    def __init__(
        self,
        *,
        secret: str = SECRET,
        deduplicates: bool = True,
        names_refused: bool = True,
        port: int = 0,
        clock: VirtualClock | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        super().__init__(port=port, clock=clock, chaos=chaos)
        self.deduplicates = deduplicates
        self.names_refused = names_refused
        self.refuses: dict[str, str] = {}
        self.answers: list[Response] = []
        self.messages: Counter[str] = Counter()
        self.changed: list[str] = []
        self._verifier = _verifier(secret)
        self._digests: dict[str, bytes] = {}
        self._texts = Texts()
        self._known: set[tuple[str, str]] = set()
        self._kept: list[str] = []

    def rotate(self, secret: str) -> None:
        """Believe another secret from now on."""
        self._verifier = _verifier(secret)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event that was kept, in order: id, source, type, subject, at and data."""
        with self.lock:
            return [read_json(each) for each in self._kept]

    def answer(self, request: Request) -> Response:
        """The signature first, then what stands in the body."""
        if request.method != "POST":
            return _refusal(405, f"{request.method} is not POST")
        if problem := self._doubt(request):
            return _refusal(401, problem)
        with self.lock:
            self._note(request)
            if self.answers:
                return self.answers.pop(0)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip()
        if content_type not in (ONE, BATCH, PLAIN):
            return _refusal(415, f"the content type must be {BATCH}, not {content_type!r}")
        try:
            events = [(each, quantities(each)) for each in read_events(request.body, content_type)]
        except ValueError as wrong:
            return _refusal(400, str(wrong))
        with self.lock:
            return self._take(events)

    def _take(self, events: Sequence[tuple[CloudEvent, Sequence[Quantity]]]) -> Response:
        refused = [event for event, _ in events if event.id in self.refuses]
        if refused and not self.names_refused:
            return _refusal(422, "this batch holds what is not wanted")
        for event, found in events:
            if event.id not in self.refuses:
                self._keep(event, found)
        named = [{"id": event.id, "reason": self.refuses[event.id]} for event in refused]
        return Response.json({"rejected": named}, status=422) if named else Response(204)

    def _doubt(self, request: Request) -> str:
        """Why a request is not believed, or nothing."""
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        identifier, timestamp, signatures = (request.headers.get(name, "") for name in names)
        if not (identifier and timestamp and signatures):
            return f"{', '.join(names)} are needed"
        if not TIMESTAMP.fullmatch(timestamp):
            return "webhook-timestamp must be seconds since 1970"
        late = self.clock.now() - int(timestamp)
        if abs(late) > TOLERANCE_SECONDS:
            return f"webhook-timestamp is too {'old' if late > 0 else 'new'}"
        try:
            signed = self._verifier.sign(identifier, datetime.fromtimestamp(int(timestamp), UTC), request.body.decode())
        except UnicodeDecodeError:
            return "the body is no UTF-8"
        if not any(hmac.compare_digest(_signature(signed), _signature(each)) for each in signatures.split(" ")):
            return "no signature of version v1 matches"
        return ""

    def _note(self, request: Request) -> None:
        """A retry must be the same message: same webhook-id, same body."""
        identifier, digest = request.headers["webhook-id"], hashlib.sha256(request.body).digest()
        self.messages[identifier] += 1
        if self._digests.setdefault(identifier, digest) != digest:
            self.changed.append(identifier)

    def _keep(self, event: CloudEvent, found: Sequence[Quantity]) -> None:
        if self.deduplicates and (event.source, event.id) in self._known:
            return
        self._known.add((event.source, event.id))
        self._kept.append(write_json(event._asdict()))
        received = self.clock.now()
        customer = self._texts.one(event.subject or str(event.data.get("customer") or ""))
        meter = self._texts.one(str(event.data.get("meter") or event.type))
        at = received if event.at is None else event.at
        for kind, value in found:
            identifier = f"{event.id}/{kind}" if kind else event.id
            group = self._texts.group({**event.data, **({"token_type": kind} if kind else {})})
            self.counted.append(Counted(identifier, customer, meter, group, value, at, received))


def quantities(event: CloudEvent) -> list[Quantity]:
    """How much an event is about: its `usage` by token type, or its value, or else one of whatever it is.

    Raises ValueError for a quantity that is no whole number.
    """
    usage = event.data.get("usage")
    if isinstance(usage, dict):
        return [Quantity(name, _units(event, name, value)) for name, value in usage.items()]
    given = [(name, event.data[name]) for name in QUANTITIES if event.data.get(name) is not None]
    return [Quantity("", _units(event, *given[0]) if given else 1)]


def _units(event: CloudEvent, name: str, value: object) -> int:
    exact = number(value)
    units = None if exact is None else whole(exact)
    if units is None:
        raise ValueError(f"event {event.id!r}: {name} must be a whole number")
    return units


def _signature(versioned: str) -> bytes:
    """The bytes of `v1,<base64>`; of anything else none, which match nothing."""
    version, _, encoded = versioned.partition(",")
    try:
        return base64.b64decode(encoded, validate=True) if version == "v1" else b""
    except binascii.Error:
        return b""


def _verifier(secret: str) -> Any:
    try:
        from standardwebhooks import Webhook
    except ImportError:
        raise ImportError("the webhook receiver needs: pip install 'token-meter[webhook]'") from None
    wrong = "the secret must be whsec_ and then base64"
    if not secret.removeprefix("whsec_"):
        raise ValueError(wrong)
    try:
        return Webhook(secret)
    except binascii.Error:
        raise ValueError(wrong) from None


def _refusal(status: int, problem: str) -> Response:
    return Response.json({"error": problem}, status=status)
