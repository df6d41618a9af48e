"""FakeOpenMeter: takes CloudEvents and answers meter queries as OpenMeter does.

The rules are those of OpenMeter's own source and OpenAPI document of August 2026. What surprises:

- An unknown content type, and a known one with a charset, is 400, not 415. Everything wrong is `problem+json`.
- A batch is checked as a whole before any of it is taken. What is taken is then deduplicated event by event, by the
  text `source-id`, for 32 days after the first; a duplicate is a success. The open source binary does not deduplicate
  unless it is told to: `deduplicate=False`.
- An event that no meter can use is accepted; here it stands in `dropped` for as long as no meter counts it.
- Times are kept in whole seconds. A query is of `from <= time < to`, although the documentation says inclusive.
- OpenMeter answers in doubles: beyond 2**53 a query rounds. `counted` is exact.

Not verified: OpenMeter's cloud, that is the text of its 401 and any limit of it; that events with extension attributes
of other names or types than CloudEvents allows are refused (the specification says so).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, NamedTuple

from token_meter.testing.backends.base import Chaos, Counted, FakeBackend, Request, Response, VirtualClock
from token_meter.testing.backends.cloudevents import BATCH, ONE, PLAIN, REQUIRED, CloudEvent, read_events
from token_meter.testing.backends.openmeter_query import Meter, Query, Row, moment, rows_of
from token_meter.testing.backends.values import Dropped, Texts, read_json, whole, write_json

DEDUPLICATION_SECONDS: Final = 32 * 24 * 3600
COUNTED: Final = ("SUM", "COUNT")
"""Aggregations of which every event is billed on its own, and so is in `counted`."""


class Kept(NamedTuple):
    """One event as it is stored: for meters that come later."""

    id: str
    subject: str
    at: int
    data: str
    received: float


class FakeOpenMeter(FakeBackend):
    """`POST /api/v1/events`, `GET /api/v1/meters`, `/meters/{slug}` and `/meters/{slug}/query` (GET and POST).

    Without a `key` it asks for none, like the open source version. `add_meter` says what is counted.
    """

    name: ClassVar[str] = "openmeter"

    def __init__(
        self,
        *,
        key: str | None = None,
        deduplicate: bool = True,
        port: int = 0,
        clock: VirtualClock | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        super().__init__(port=port, clock=clock, chaos=chaos)
        self.deduplicate = deduplicate
        self.meters: dict[str, Meter] = {}
        self._key = key
        self._texts = Texts()
        self._kept: defaultdict[str, list[Kept]] = defaultdict(list)
        self._rows: defaultdict[str, list[Row]] = defaultdict(list)
        self._known: dict[str, float] = {}
        self._dropped: dict[tuple[str, int], Dropped] = {}

    @property
    def dropped(self) -> list[Dropped]:
        """Events that were accepted and that no meter counts."""
        with self.lock:
            return list(self._dropped.values())

    def add_meter(
        self,
        slug: str,
        event_type: str,
        value_property: str | None = None,
        aggregation: str = "SUM",
        group_by: Mapping[str, str] | Iterable[str] = (),
    ) -> Meter:
        """Count the events of a type: those to come and, as the real one does, those already there.

        `value_property` is a JSON path such as `$.tokens`; `group_by` names for JSON paths, or names alone for
        properties of the same name. Raises ValueError for what OpenMeter would refuse.
        """
        paths = group_by if isinstance(group_by, Mapping) else {name: f"$.{name}" for name in group_by}
        meter = Meter.checked(slug, event_type, value_property, aggregation, paths)
        with self.lock:
            if slug in self.meters:
                raise ValueError(f"there is a meter {slug!r} already")
            self.meters[slug] = meter
            for place, event in enumerate(self._kept[event_type]):
                if not self._measure(meter, event, read_json(event.data)):
                    self._dropped.pop((event_type, place), None)
        return meter

    def answer(self, request: Request) -> Response:
        """The key first, if there is one, then what is asked for."""
        if self._key is not None and request.headers.get("authorization") != f"Bearer {self._key}":
            return _problem(401, "Unauthorized", "the API key is missing or wrong")
        try:
            return self._route(request)
        except ValueError as wrong:
            return _problem(400, "Bad Request", str(wrong))

    def _route(self, request: Request) -> Response:
        match request.method, *request.path.strip("/").split("/"):
            case "POST", "api", "v1", "events":
                return self._ingest(request)
            case "GET", "api", "v1", "meters":
                with self.lock:
                    return Response.json([self._meter(meter) for meter in self.meters.values()])
            case "GET", "api", "v1", "meters", slug if slug in self.meters:
                return Response.json(self._meter(self.meters[slug]))
            case (("GET" | "POST"), "api", "v1", "meters", slug, "query") if slug in self.meters:
                return self._query(self.meters[slug], request)
        return _problem(404, "Not Found", f"there is no {request.path}")

    def unavailable(self) -> Response:
        """503."""
        return _problem(503, "Service Unavailable", "")

    def failed(self) -> Response:
        """500."""
        return _problem(500, "Internal Server Error", "")

    def throttled(self) -> Response:
        """429."""
        return _problem(429, "Too Many Requests", "")

    # ---- taking events ----

    def _ingest(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "")
        if content_type not in (ONE, BATCH, PLAIN):
            raise ValueError(f"invalid content type: {content_type}")
        events = read_events(request.body, content_type, required=(*REQUIRED, "subject"))
        if content_type == PLAIN and not events:
            raise ValueError("invalid event: no events found")
        with self.lock:
            for event in events:
                if self._is_new(event):
                    self._keep(event)
        return Response(204)

    def _is_new(self, event: CloudEvent) -> bool:
        """OpenMeter's key is one text, in which `a-b` and `c` are `a` and `b-c`."""
        if not self.deduplicate:
            return True
        key, now = f"{event.source}-{event.id}", self.clock.now()
        if now - self._known.get(key, float("-inf")) < DEDUPLICATION_SECONDS:
            return False
        self._known[key] = now
        return True

    def _keep(self, event: CloudEvent) -> None:
        """Store it, and count it in every meter of its type."""
        now = self.clock.now()
        at = int((now if event.at is None else event.at) // 1)
        kept = Kept(event.id, self._texts.one(event.subject), at, write_json(event.data), now)
        place = len(self._kept[event.type])
        self._kept[event.type].append(kept)
        meters = [meter for meter in self.meters.values() if meter.event_type == event.type]
        reasons = [self._measure(meter, kept, event.data) for meter in meters]
        if all(reasons):
            names = ",".join(meter.slug for meter in meters)
            reason = "; ".join(reasons) or f"no meter counts events of type {event.type!r}"
            self._dropped[event.type, place] = Dropped(event.id, event.subject, names, reason)

    def _measure(self, meter: Meter, event: Kept, data: Mapping[str, Any]) -> str:
        """Let a meter count an event; or why it cannot."""
        try:
            value = meter.value(data)
        except ValueError as problem:
            return str(problem)
        groups = self._texts.many(meter.groups(data))
        self._rows[meter.slug].append(Row(event.at, event.subject, value, groups))
        if meter.aggregation not in COUNTED:
            return ""
        units = None if isinstance(value, str) else whole(value)
        if units is None:
            return f"its value {value} has a fraction: OpenMeter bills it, this fake counts whole units"
        group = self._texts.group(data)
        self.counted.append(Counted(event.id, event.subject, meter.slug, group, units, event.at, event.received))
        return ""

    # ---- giving back ----

    def _query(self, meter: Meter, request: Request) -> Response:
        query = Query.read(meter, request)
        with self.lock:
            rows = rows_of(meter, query, self._rows.get(meter.slug, []))
        given = {"from": query.start, "to": query.end}
        answer = {name: moment(seconds) for name, seconds in given.items() if seconds is not None}
        return Response.json({**answer, **({"windowSize": query.window} if query.window else {}), "data": rows})

    def _meter(self, meter: Meter) -> dict[str, Any]:
        """Its id is made up of the slug: 26 characters of Crockford's alphabet that starts with 0, like every ULID."""
        digest = hashlib.sha256(meter.slug.encode()).digest()
        document = {
            "id": "0" + "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[byte % 32] for byte in digest[:25]),
            "slug": meter.slug,
            "name": meter.slug,
            "aggregation": meter.aggregation,
            "eventType": meter.event_type,
            "createdAt": moment(0),
            "updatedAt": moment(0),
        }
        if meter.value_property is not None:
            document["valueProperty"] = meter.value_property
        return {**document, **({"groupBy": dict(meter.group_by)} if meter.group_by else {})}


def _problem(status: int, title: str, detail: str) -> Response:
    document = {"type": "about:blank", "title": title, "status": status, **({"detail": detail} if detail else {})}
    return Response.json(document, status=status, headers={"Content-Type": "application/problem+json"})
