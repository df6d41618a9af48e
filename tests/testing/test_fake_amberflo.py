"""FakeAmberflo is as strict as Amberflo is documented to be, and takes and answers what Amberflo's own client sends."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from token_meter.testing.backends.amberflo import FakeAmberflo
from token_meter.testing.backends.base import Chaos, VirtualClock

KEY = "amberflo-test-key"
AT = 1_795_251_889
"""2026-11-21T09:04:49Z, a Saturday."""


class Frozen(VirtualClock):
    """Stands still at AT, until it is moved."""

    def now(self) -> float:
        return AT + self.offset_seconds


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[FakeAmberflo, httpx2.Client]]]:
    """Opens a fake with the given settings, and a client that knows its key."""
    opened: list[Any] = []

    def serve(**settings: Any) -> tuple[FakeAmberflo, httpx2.Client]:
        amberflo = FakeAmberflo(clock=Frozen(), **settings).start()
        client = httpx2.Client(base_url=amberflo.url, headers={"x-api-key": KEY}, verify=False)
        opened.extend((amberflo, client))
        return amberflo, client

    yield serve
    for each in reversed(opened):
        each.close()


@pytest.fixture
def metering() -> Iterator[Any]:
    """The real client; its URLs are put back at the end."""
    sessions = pytest.importorskip("metering.session")
    ingest, usage, errors = (pytest.importorskip(f"metering.{each}") for each in ("ingest", "usage", "exceptions"))
    before = (sessions.IngestSession.root_url, sessions.ApiSession.root_url)
    yield SimpleNamespace(ingest=ingest, usage=usage, session=sessions, error=errors)
    sessions.IngestSession.root_url, sessions.ApiSession.root_url = before


def record(identifier: str | None = "e1", value: Any = 100, **fields: Any) -> dict[str, Any]:
    return {
        "uniqueId": identifier,
        "customerId": "acme",
        "meterApiName": "input_tokens",
        "meterValue": value,
        "meterTimeInMillis": AT * 1000,
        "dimensions": {"model": "gpt-5", "provider": "openai", "token_type": "input", "region": "eu"},
        **fields,
    }


def test_records_are_counted_by_customer_meter_and_what_splits_them(serve):
    amberflo, client = serve()

    answer = client.post(
        "/ingest/", json=[record(), record("e2", 7), record("e3", 5, customerId="globex", dimensions=None)]
    )

    assert (answer.status_code, answer.text) == (200, "3 records were ingested")
    assert amberflo.totals() == {
        ("acme", "input_tokens", "gpt-5", "openai", "input"): 107,
        ("globex", "input_tokens"): 5,
    }
    group = ("gpt-5", "openai", "input")
    assert amberflo.counted[0] == ("e1", "acme", "input_tokens", group, 100, AT, AT)
    assert (amberflo.dropped, amberflo.counted_twice(), amberflo.errors) == ([], [], [])


@pytest.mark.parametrize(
    ("body", "records"),
    [
        (json.dumps(record()), 1),
        (json.dumps([record()]), 1),
        (json.dumps(record(), indent=1), 1),
        (f"{json.dumps(record())}\n{json.dumps(record('e2'))}\n\n", 2),
        ("[]", 0),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_one_object_an_array_and_lines_are_taken_plain_and_packed(serve, body, records, packed):
    amberflo, client = serve()
    content = gzip.compress(body.encode()) if packed else body.encode()

    answer = client.post("/ingest", content=content, headers={"content-encoding": "gzip"} if packed else {})

    assert (answer.status_code, answer.text) == (200, f"{records} records were ingested")
    assert len(amberflo.counted) == records


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"x-api-key": "wrong"}, 403)])
def test_a_wrong_key_is_refused(serve, headers, status):
    amberflo, _ = serve()

    statuses = [httpx2.post(f"{amberflo.url}/ingest/", json=record(), headers=headers, verify=False).status_code]
    statuses += [httpx2.get(f"{amberflo.url}/meters", headers=headers, verify=False).status_code]

    assert (statuses, amberflo.counted) == ([status, status], [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"customerId": None}, "record 1: customerId must be a text that is not empty"),
        ({"customerId": " "}, "record 1: customerId must be a text that is not empty"),
        ({"customerId": 5}, "record 1: customerId must be a text that is not empty"),
        ({"uniqueId": 5}, "record 1: uniqueId must be a text that is not empty"),
        ({"meterApiName": None}, "record 1: meterApiName is missing"),
        ({"meterApiName": ""}, "record 1: meterApiName must be a text that is not empty"),
        ({"meterValue": None}, "record 1: meterValue must be a number"),
        ({"meterValue": "5"}, "record 1: meterValue must be a number"),
        ({"meterValue": True}, "record 1: meterValue must be a number"),
        ({"meterTimeInMillis": None}, "record 1: meterTimeInMillis must be milliseconds since 1970"),
        ({"meterTimeInMillis": 1.5}, "record 1: meterTimeInMillis must be milliseconds since 1970"),
        ({"meterTimeInMillis": 0}, "record 1: meterTimeInMillis must be milliseconds since 1970"),
        ({"dimensions": {"model": 5}}, "record 1: dimensions must map texts to texts"),
        ({"dimensions": ["model"]}, "record 1: dimensions must map texts to texts"),
        ({"values": {}}, "record 1: meterApiName is missing"),
    ],
)
def test_one_wrong_record_refuses_the_whole_request(serve, wrong, message):
    amberflo, client = serve()

    answer = client.post("/ingest/", json=[record(), record("e2", **wrong)])

    assert (answer.status_code, answer.json(), amberflo.counted) == (400, {"message": message}, [])


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (b"", {}, "the body is no JSON"),
        (b"{", {}, "the body is no JSON"),
        (b"\xff", {}, "the body is no JSON"),
        (b'{"meterValue": NaN}', {}, "the body is no JSON"),
        (b"[" * 100_000, {}, "the body is no JSON"),
        (json.dumps(record()).encode() + b"\n{", {}, "line 2 is no JSON"),
        (b"[5]", {}, "record 0 is no object"),
        (gzip.compress(json.dumps(record()).encode(), mtime=0), {}, "the body is no JSON"),
        (
            gzip.compress(b"[]", mtime=0)[:-4],
            {"content-encoding": "gzip"},
            "the gzip of the body is incomplete or too large",
        ),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(serve, content, headers, message):
    amberflo, client = serve()

    answer = client.post("/ingest/", content=content, headers=headers)

    assert (answer.status_code, answer.json(), amberflo.errors) == (400, {"message": message}, [])


def test_a_body_that_only_claims_to_be_packed_is_refused(serve):
    _, client = serve()

    answer = client.post("/ingest/", content=b"[]", headers={"content-encoding": "gzip"})

    assert (answer.status_code, "no gzip" in answer.json()["message"]) == (400, True)


def test_the_same_meter_time_and_id_are_one_record(serve):
    amberflo, client = serve()
    first = [
        record(),
        record("e1", 99),
        record("e1", meterTimeInMillis=AT * 1000 + 1),
        record("e1", meterApiName="output"),
    ]

    answer = client.post("/ingest/", json=first)
    client.post("/ingest/", json=[record("e1", customerId="globex")])

    assert answer.text == "4 records were ingested"
    assert [(each.customer, each.meter, each.value, each.at) for each in amberflo.counted] == [
        ("acme", "input_tokens", 100, AT),
        ("acme", "input_tokens", 100, AT + 0.001),
        ("acme", "output", 100, AT),
    ]
    assert amberflo.counted_twice() == ["e1"]


def test_without_an_id_only_equal_records_are_one(serve):
    amberflo, client = serve()

    client.post(
        "/ingest/", json=[record(None, 1), record(None, 1), record(None, 2), record(None, 1, customerId="globex")]
    )

    assert [(each.customer, each.value) for each in amberflo.counted] == [("acme", 1), ("acme", 2), ("globex", 1)]


def test_one_record_may_have_values_of_several_meters(serve):
    amberflo, client = serve()

    answer = client.post("/ingest/", json=record(values={"input_tokens": 5, "output_tokens": 7}))

    assert answer.text == "1 records were ingested"
    assert [(each.meter, each.value) for each in amberflo.counted] == [("input_tokens", 5), ("output_tokens", 7)]


def test_a_meter_that_does_not_exist_and_a_fraction_are_accepted_and_dropped(serve):
    amberflo, client = serve(meters=["input_tokens"])

    answer = client.post("/ingest/", json=[record("e1", meterApiName="tokens"), record("e2", 0.5), record("e3", 3.0)])

    assert answer.text == "3 records were ingested"
    assert [(each.identifier, each.value) for each in amberflo.counted] == [("e3", 3)]
    assert [(each.identifier, each.reason) for each in amberflo.dropped] == [
        ("e1", "there is no meter 'tokens'"),
        ("e2", "its value 0.5 has a fraction: Amberflo bills it, this fake counts whole units"),
    ]


def test_large_quantities_are_exact(serve):
    amberflo, client = serve()

    client.post("/ingest/", json=[record("e1", 2**53 + 1), record("e2", 10**30)])

    assert [each.value for each in amberflo.counted] == [2**53 + 1, 10**30]


def test_a_shape_of_its_own_is_taken_and_dropped(serve):
    amberflo, client = serve()

    answer = client.post("/ingest?schemaDetection=AUTO", json=[{"usage": 1.2}])

    assert (answer.text, amberflo.counted) == ("1 records were ingested", [])
    assert "no schema" in amberflo.dropped[0].reason


def test_faults_speak_as_amberflo_does(serve):
    amberflo, client = serve(chaos=Chaos(script=["throttled", "unavailable", "error_after", None]))

    answers = [client.post("/ingest/", json=record()) for _ in range(4)]

    assert [each.status_code for each in answers] == [429, 503, 500, 200]
    assert answers[0].json() == {"message": "Too Many Requests"}
    assert len(amberflo.counted) == 1


def usage(**fields: Any) -> dict[str, Any]:
    return {
        "meterApiName": "input_tokens",
        "aggregation": "SUM",
        "timeGroupingInterval": "DAY",
        "timeRange": {"startTimeInSeconds": AT - 86_400, "endTimeInSeconds": AT + 1},
        **fields,
    }


def used(client: httpx2.Client) -> None:
    client.post(
        "/ingest/",
        json=[
            record("e1", 1, meterTimeInMillis=(AT - 86_401) * 1000),
            record("e2", 10, meterTimeInMillis=(AT - 86_400) * 1000),
            record("e3", 30),
            record("e4", 70, customerId="globex", dimensions={"region": "us"}),
            record("e5", 1000, meterTimeInMillis=(AT + 1) * 1000),
        ],
    )


def test_usage_is_told_by_group_and_interval(serve):
    _, client = serve()
    used(client)

    answer = client.post("/usage", json=usage(groupBy=["customerId"], timeGroupingInterval="Day")).json()

    days = [1_795_132_800, 1_795_219_200]
    assert answer == {
        "metadata": {
            "account": None,
            "meterApiName": "input_tokens",
            "aggregation": "SUM",
            "timeRange": {"startTimeInSeconds": AT - 86_400, "endTimeInSeconds": AT + 1},
            "filter": {},
            "groupBy": ["customerId"],
            "take": None,
            "timeGroupingInterval": "DAY",
        },
        "secondsSinceEpochIntervals": days,
        "clientMeters": [
            {
                "group": {"groupInfo": {"customerId": "globex"}},
                "groupValue": 70.0,
                "values": [
                    {"percentageFromPrevious": 0.0, "value": 0.0, "secondsSinceEpochUTC": days[0]},
                    {"percentageFromPrevious": 100.0, "value": 70.0, "secondsSinceEpochUTC": days[1]},
                ],
            },
            {
                "group": {"groupInfo": {"customerId": "acme"}},
                "groupValue": 40.0,
                "values": [
                    {"percentageFromPrevious": 0.0, "value": 10.0, "secondsSinceEpochUTC": days[0]},
                    {"percentageFromPrevious": 200.0, "value": 30.0, "secondsSinceEpochUTC": days[1]},
                ],
            },
        ],
    }


@pytest.mark.parametrize(
    ("query", "groups"),
    [
        ({}, [({}, 110)]),
        ({"filter": {"customerId": ["acme"]}}, [({}, 40)]),
        ({"filter": {"customerId": "acme"}}, [({}, 40)]),
        ({"filter": {"customerId": ["acme"], "model": ["gpt-4"]}}, []),
        (
            {"groupBy": ["model", "customerId"]},
            [({"model": "", "customerId": "globex"}, 70), ({"model": "gpt-5", "customerId": "acme"}, 40)],
        ),
        ({"groupBy": ["region"], "take": {"limit": 1}}, [({"region": "us"}, 70)]),
        ({"groupBy": ["region"], "take": {"limit": 1, "isAscending": True}}, [({"region": "eu"}, 40)]),
        ({"aggregation": "COUNT"}, [({}, 3)]),
        ({"aggregation": "MAX"}, [({}, 70)]),
        ({"aggregation": "MIN"}, [({}, 10)]),
        ({"timeRange": {"startTimeInSeconds": AT - 86_400}}, [({}, 110)]),
        ({"meterApiName": "unknown"}, []),
    ],
)
def test_usage_is_filtered_grouped_and_aggregated(serve, query, groups):
    _, client = serve()
    used(client)

    answer = client.post("/usage/", json=usage(**query)).json()

    assert [(each["group"]["groupInfo"], each["groupValue"]) for each in answer["clientMeters"]] == groups


@pytest.mark.parametrize(
    ("interval", "starts"),
    [
        ("HOUR", ["2026-11-21T08", "2026-11-21T09"]),
        ("WEEK", ["2026-11-16T00"]),
        ("MONTH", ["2026-11-01T00"]),
    ],
)
def test_intervals_start_where_the_calendar_says(serve, interval, starts):
    _, client = serve()
    query = usage(timeGroupingInterval=interval, timeRange={"startTimeInSeconds": AT - 3600})

    answer = client.post("/usage", json=query).json()

    moments = [datetime.fromtimestamp(seconds, UTC) for seconds in answer["secondsSinceEpochIntervals"]]
    assert [f"{moment:%Y-%m-%dT%H}" for moment in moments] == starts


def test_months_follow_each_other(serve):
    _, client = serve()
    query = usage(timeGroupingInterval="MONTH", timeRange={"startTimeInSeconds": AT - 400 * 86_400})

    answer = client.post("/usage", json=query).json()

    moments = [datetime.fromtimestamp(seconds, UTC) for seconds in answer["secondsSinceEpochIntervals"]]
    assert [moment.month for moment in moments] == [10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert {moment.day for moment in moments} == {1}


def test_sparse_usage_leaves_out_what_is_empty_and_a_batch_answers_each_query(serve):
    _, client = serve()
    used(client)
    query = usage(filter={"customerId": ["globex"]})

    sparse = client.post("/usage/sparse", json=query).json()
    full, other = client.post("/usage/batch", json=[query, usage(meterApiName="other")]).json()
    both = client.post("/usage/sparse/batch", json=[query]).json()

    assert len(sparse["clientMeters"][0]["values"]) == 1
    assert (len(full["clientMeters"][0]["values"]), other["clientMeters"]) == (2, [])
    assert both == [sparse]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (usage(meterApiName=None), "meterApiName is missing"),
        (usage(aggregation="AVG"), "aggregation must be one of SUM, COUNT, MIN, MAX"),
        (usage(timeGroupingInterval=None), "timeGroupingInterval must be one of HOUR, DAY, WEEK, MONTH"),
        (usage(timeRange=None), "timeRange.startTimeInSeconds must be a whole number"),
        (usage(timeRange={"startTimeInSeconds": 1.5}), "timeRange.startTimeInSeconds must be a whole number"),
        (
            usage(timeRange={"startTimeInSeconds": AT * 1000, "endTimeInSeconds": AT * 1001}),
            f"{AT * 1000} are no seconds since 1970",
        ),
        (
            usage(timeRange={"startTimeInSeconds": 1}, timeGroupingInterval="HOUR"),
            "the time range has more than 100000 intervals",
        ),
        (usage(groupBy=[5]), "groupBy must be texts"),
        (usage(filter=["acme"]), "filter must be an object"),
        (usage(take={"limit": "5"}), "take.limit must be a whole number"),
        ([], "a query is an object"),
    ],
)
def test_a_wrong_query_is_refused(serve, query, message):
    amberflo, client = serve()

    answer = client.post("/usage", json=query)

    assert (answer.status_code, answer.json(), amberflo.errors) == (400, {"message": message}, [])


def test_meters_are_listed_as_given_or_as_seen(serve):
    _, client = serve()
    _, other = serve(meters=["b", "a"])
    used(client)

    assert [each["meterApiName"] for each in client.get("/meters").json()] == ["input_tokens"]
    assert [each["meterApiName"] for each in other.get("/meters").json()] == ["a", "b"]
    assert client.get("/nowhere").status_code == 404


def test_the_real_client_delivers_through_faults_without_loss(serve, metering):
    amberflo, _ = serve(chaos=Chaos(script=["unavailable", "throttled"]))
    metering.session.IngestSession.root_url = amberflo.url
    lost: list[Any] = []
    client = metering.ingest.create_ingest_client(
        api_key=KEY,
        threads=1,
        send_interval_in_secs=0.05,
        sleep_interval_in_secs=0.01,
        backoff_delay=no_delay,
        on_error=lambda *failed: lost.append(failed),
    )

    try:
        for number in range(250):
            client.meter("input_tokens", 4, AT * 1000, "acme", {"model": "gpt-5"}, f"e{number}")
        client.flush()
    finally:
        client.shutdown()
        for consumer in client.consumers:
            consumer.backend.client.session.close()

    assert amberflo.totals() == {("acme", "input_tokens", "gpt-5"): 1000}
    assert (amberflo.counted_twice(), lost, amberflo.errors) == ([], [], [])
    assert {status for _, path, status in amberflo.seen if path == "/ingest/"} == {503, 429, 200}


def no_delay() -> Iterator[float | None]:
    yield None
    while True:
        yield 0


def test_the_real_client_is_refused_with_a_wrong_key(serve, metering):
    amberflo, _ = serve()
    metering.session.IngestSession.root_url = amberflo.url
    client = metering.ingest.IngestApiClient("wrong")

    with pytest.raises(metering.error.ApiError, match="403: "):
        client.send(record())
    client.client.session.close()


def test_the_real_client_sends_a_shape_of_its_own(serve, metering):
    amberflo, _ = serve()
    metering.session.IngestSession.root_url = amberflo.url
    client = metering.ingest.IngestApiClient(KEY)

    answer = client.send_custom([{"usage": 1.2}] * 2)
    client.client.session.close()

    assert (answer, len(amberflo.dropped)) == ("2 records were ingested", 2)


def test_the_real_client_reads_usage(serve, metering):
    amberflo, raw = serve()
    used(raw)
    metering.session.ApiSession.root_url = amberflo.url
    client = metering.usage.UsageApiClient(KEY)
    times = metering.usage.TimeRange(AT - 86_400, AT + 1)
    day = metering.usage.TimeGroupingInterval.DAY
    query = metering.usage.create_usage_query(
        metering.usage.AggregationType.SUM, "input_tokens", day, times, group_by=["customerId"],
        usage_filter={"customerId": ["acme", "globex"]}, take=metering.usage.Take(1),
    )  # fmt: skip

    one = client.get(query)
    both = client.get([query, query])
    everything = client.get_all(metering.usage.create_all_usage_query(day, times, group_by_customer_id=True))
    of_acme = client.get_all(metering.usage.create_all_usage_query(day, times, filter_by_customer_id="acme"))
    client.client.session.close()

    assert [each["groupValue"] for each in one["clientMeters"]] == [70.0]
    assert both == [one, one]
    assert [each["groupValue"] for each in everything[0]["clientMeters"]] == [70.0, 40.0]
    assert [each["groupValue"] for each in of_acme[0]["clientMeters"]] == [40.0]
