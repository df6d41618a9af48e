"""FakeAmberflo: takes meter records and answers usage queries as Amberflo is documented to.

Sources: the API reference of 2024 to 2026, and the Python client 3.3.1 with its integration tests. Of ingestion they
say: a JSON array or one object or NDJSON, plain or gzip; `customerId` and `meterTimeInMillis` are required; the answer
is the text `N records were ingested`; records of the same meter, time and `uniqueId` are one; retry after 429 and 5xx.

Not documented, and assumed here:

- a record with a wrong field refuses the whole request with 400, and a key that is missing 401, that is wrong 403;
- of duplicates the first counts, the answer counts them all, and without `uniqueId` only equal records are duplicates;
- with `meters` given, records of other meters are accepted and dropped, see `dropped`;
- there is no limit to a batch and none to how old or new a record is;
- usage is of `start <= time < end`, weeks start on Monday in UTC, groups come largest first, and a record that lacks a
  dimension is of the group of the empty text.

Amberflo's numbers are doubles: a usage query rounds beyond 2**53. `counted` is exact.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, NamedTuple

from token_meter.testing.backends.amberflo_usage import RANGE, Query, Used, report
from token_meter.testing.backends.base import (
    BODY_BYTES_MAX,
    Chaos,
    Counted,
    FakeBackend,
    Request,
    Response,
    VirtualClock,
)
from token_meter.testing.backends.values import Dropped, Texts, number, read_json, whole, write_json

MILLIS_MAX: Final = 253_402_300_800_000
"""Until the year 9999."""


class Record(NamedTuple):
    """One meter record of a request, checked. `values` has more than one meter for Amberflo's multi-meter form."""

    unique_id: str | None
    customer: str
    millis: int
    values: Mapping[str, Any]
    dimensions: Mapping[str, str]


class FakeAmberflo(FakeBackend):
    """`POST /ingest`, `POST /usage` with `/batch` and `/sparse`, `GET /usage/all`, `GET /meters`.

    `meters` are the meters that exist; None is any. The real client needs `IngestSession.root_url` for the first and
    `ApiSession.root_url` for the others: both are `url` here.
    """

    name: ClassVar[str] = "amberflo"

    def __init__(
        self,
        *,
        key: str = "amberflo-test-key",
        meters: Iterable[str] | None = None,
        port: int = 0,
        clock: VirtualClock | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        super().__init__(port=port, clock=clock, chaos=chaos)
        self.meters = None if meters is None else frozenset(meters)
        self.dropped: list[Dropped] = []
        self._key = key
        self._texts = Texts()
        self._used: defaultdict[str, list[Used]] = defaultdict(list)
        self._known: defaultdict[str, set[tuple[int, str]]] = defaultdict(set)

    def answer(self, request: Request) -> Response:
        """The key first, then what is asked for; a slash at the end changes nothing."""
        key = request.headers.get("x-api-key")
        if key != self._key:
            return _refusal(403, "Forbidden") if key else _refusal(401, "Unauthorized")
        try:
            return self._route(request)
        except ValueError as wrong:
            return _refusal(400, str(wrong))

    def _route(self, request: Request) -> Response:
        match request.method, *request.path.strip("/").split("/"):
            case "POST", "ingest":
                return self._ingest(request)
            case "POST", "usage":
                return Response.json(self._report(_document(request)))
            case "POST", "usage", "sparse":
                return Response.json(self._report(_document(request), sparse=True))
            case ("POST", "usage", "batch") | ("POST", "usage", "sparse", "batch"):
                sparse = "/sparse" in request.path
                return Response.json([self._report(each, sparse=sparse) for each in _list(_document(request))])
            case "GET", "usage", "all":
                return Response.json(self._report_all(request))
            case "GET", "meters":
                return Response.json([_meter(name) for name in self._meters()])
        return _refusal(404, "Not Found")

    def unavailable(self) -> Response:
        """503."""
        return _refusal(503, "Service Unavailable")

    def failed(self) -> Response:
        """500."""
        return _refusal(500, "Internal Server Error")

    def throttled(self) -> Response:
        """429."""
        return _refusal(429, "Too Many Requests")

    # ---- taking records ----

    def _ingest(self, request: Request) -> Response:
        documents = _documents(_unpacked(request))
        if request.query.get("schemaDetection") == ["AUTO"]:
            return self._ingest_unknown(documents)
        records = [_read(index, each) for index, each in enumerate(documents)]
        with self.lock:
            for record in records:
                self._take(record)
        return _ingested(len(records))

    def _ingest_unknown(self, documents: list[Any]) -> Response:
        """Records of any shape, for which the account has a schema; this fake has none."""
        dropped = Dropped("", "", "", "it was sent with schemaDetection=AUTO, for which this fake has no schema")
        with self.lock:
            self.dropped.extend([dropped] * len(documents))
        return _ingested(len(documents))

    def _take(self, record: Record) -> None:
        for meter, value in record.values.items():
            identity = record.unique_id or write_json([record.customer, value, sorted(record.dimensions.items())])
            if (record.millis, identity) in self._known[meter]:
                continue
            self._known[meter].add((record.millis, identity))
            if reason := self._count(record, self._texts.one(meter), value):
                self.dropped.append(Dropped(record.unique_id or "", record.customer, meter, reason))

    def _count(self, record: Record, meter: str, value: Any) -> str:
        """Bill it; or why not."""
        if self.meters is not None and meter not in self.meters:
            return f"there is no meter {meter!r}"
        exact = number(value)
        units = None if exact is None else whole(exact)
        if units is None:
            return f"its value {value} has a fraction: Amberflo bills it, this fake counts whole units"
        customer, at, received = self._texts.one(record.customer), record.millis / 1000, self.clock.now()
        group = self._texts.group(record.dimensions)
        self.counted.append(Counted(record.unique_id or "", customer, meter, group, units, at, received))
        pairs = {"customerId": customer, **record.dimensions}
        flat = self._texts.many(tuple(text for pair in sorted(pairs.items()) for text in pair))
        self._used[meter].append(Used(record.millis, units, flat))
        return ""

    # ---- giving back ----

    def _report(self, document: Any, *, sparse: bool = False) -> dict[str, Any]:
        query = Query.read(document, now=self.clock.now())
        with self.lock:
            return report(query, self._used.get(query.meter, []), sparse=sparse)

    def _report_all(self, request: Request) -> list[dict[str, Any]]:
        given = {name: values[-1] for name, values in request.query.items() if values}
        document = {
            "timeRange": {name: _integer(name, given[name]) for name in RANGE if name in given},
            "timeGroupingInterval": given.get("timeGroupingInterval"),
            "groupBy": [given["groupBy"]] if "groupBy" in given else [],
            "filter": {"customerId": [given["customerId"]]} if "customerId" in given else {},
        }
        return [self._report({**document, "meterApiName": meter}) for meter in self._meters()]

    def _meters(self) -> list[str]:
        with self.lock:
            return sorted(self._used if self.meters is None else self.meters)


# ---- reading ----


def _unpacked(request: Request) -> bytes:
    """The body, without its gzip."""
    if request.headers.get("content-encoding", "").lower() != "gzip":
        return request.body
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = unpacker.decompress(request.body, BODY_BYTES_MAX)
    except zlib.error as broken:
        raise ValueError(f"the body is no gzip: {broken}") from None
    if not unpacker.eof:
        raise ValueError("the gzip of the body is incomplete or too large")
    return body


def _documents(body: bytes) -> list[Any]:
    """One object, an array of them, or one in each line."""
    try:
        document = read_json(body)
    except ValueError:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) < 2:
            raise ValueError("the body is no JSON") from None
        return [_line(index, line) for index, line in enumerate(lines, start=1)]
    return document if isinstance(document, list) else [document]


def _line(index: int, line: bytes) -> Any:
    try:
        return read_json(line)
    except ValueError:
        raise ValueError(f"line {index} is no JSON") from None


def _read(index: int, document: Any) -> Record:
    """Raises ValueError for what is no meter record."""
    if not isinstance(document, dict):
        raise ValueError(f"record {index} is no object")
    for name in ("customerId", "uniqueId", "meterApiName"):
        value = document.get(name)
        if (value is not None or name == "customerId") and not (isinstance(value, str) and value.strip()):
            raise ValueError(f"record {index}: {name} must be a text that is not empty")
    millis = document.get("meterTimeInMillis")
    if not isinstance(millis, int) or isinstance(millis, bool) or not 0 < millis < MILLIS_MAX:
        raise ValueError(f"record {index}: meterTimeInMillis must be milliseconds since 1970")
    dimensions = document.get("dimensions") or {}
    if not isinstance(dimensions, dict) or not all(isinstance(value, str) for value in dimensions.values()):
        raise ValueError(f"record {index}: dimensions must map texts to texts")
    return Record(document.get("uniqueId"), document["customerId"], millis, _values(index, document), dimensions)


def _values(index: int, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Value by meter: from `meterApiName` and `meterValue`, or from `values`."""
    values = document.get("values")
    if values is None:
        values = {document.get("meterApiName"): document.get("meterValue")}
    if not isinstance(values, dict) or not values or None in values:
        raise ValueError(f"record {index}: meterApiName is missing")
    for value in values.values():
        if isinstance(value, str) or number(value) is None:
            raise ValueError(f"record {index}: meterValue must be a number")
    return values


def _document(request: Request) -> Any:
    try:
        return read_json(request.body)
    except ValueError:
        raise ValueError("the body is no JSON") from None


def _list(document: Any) -> list[Any]:
    if not isinstance(document, list):
        raise ValueError("the body must be an array of queries")
    return document


def _integer(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} must be seconds since 1970")
    return int(text)


# ---- writing ----


def _refusal(status: int, message: str) -> Response:
    return Response.json({"message": message}, status=status)


def _ingested(records: int) -> Response:
    return Response(200, f"{records} records were ingested".encode(), {"Content-Type": "text/plain"})


def _meter(name: str) -> dict[str, Any]:
    return {"id": name, "meterApiName": name, "label": name, "meterType": "sum_of_all_usage", "enabled": True}
