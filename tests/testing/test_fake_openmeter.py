"""FakeOpenMeter takes CloudEvents as strictly as OpenMeter, counts each once, and answers meter queries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from token_meter.testing.backends.base import Chaos, VirtualClock
from token_meter.testing.backends.openmeter import FakeOpenMeter

AT = 1_795_251_889
"""2026-11-21T09:04:49Z, a Saturday."""
DAY = 86_400
ONE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


class Frozen(VirtualClock):
    """Stands still at AT, until it is moved."""

    def now(self) -> float:
        return AT + self.offset_seconds


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[FakeOpenMeter, httpx2.Client]]]:
    """Opens a fake with the given settings and the meter of OpenMeter's quickstart, and a client."""
    opened: list[Any] = []

    def serve(**settings: Any) -> tuple[FakeOpenMeter, httpx2.Client]:
        openmeter = FakeOpenMeter(clock=Frozen(), **settings).start()
        openmeter.add_meter("tokens_total", "prompt", "$.tokens", group_by=["model", "type"])
        client = httpx2.Client(base_url=f"{openmeter.url}/api/v1", verify=False)
        opened.extend((openmeter, client))
        return openmeter, client

    yield serve
    for each in reversed(opened):
        each.close()


def event(identifier: str = "e1", tokens: Any = 100, **fields: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": "prompt",
        "id": identifier,
        "source": "token_meter",
        "subject": "acme",
        "time": "2026-11-21T09:04:49.123456Z",
        "data": {"tokens": tokens, "model": "gpt-5", "provider": "openai", "type": "input"},
        **fields,
    }


def send(client: httpx2.Client, *events: Any, content_type: str = BATCH) -> httpx2.Response:
    content = json.dumps(events[0] if content_type == ONE else list(events))
    return client.post("/events", content=content, headers={"content-type": content_type})


def test_events_are_counted_by_subject_meter_and_what_splits_them(serve):
    openmeter, client = serve()

    one = send(client, event(), content_type=ONE)
    batch = send(client, event("e2", 7), event("e3", 5, subject="globex", data={"tokens": 5}))
    plain = send(client, event("e4", 1), content_type="application/json")

    assert [(each.status_code, each.content) for each in (one, batch, plain)] == [(204, b"")] * 3
    assert openmeter.totals() == {
        ("acme", "tokens_total", "gpt-5", "openai", "input"): 108,
        ("globex", "tokens_total"): 5,
    }
    assert openmeter.counted[0] == ("e1", "acme", "tokens_total", ("gpt-5", "openai", "input"), 100, AT, AT)
    assert (openmeter.dropped, openmeter.counted_twice(), openmeter.errors) == ([], [], [])


@pytest.mark.parametrize("value", [2**53 + 1, str(2**53 + 1), 10**30, "5.0", 5.0])
def test_quantities_are_exact_as_numbers_and_as_texts(serve, value):
    openmeter, client = serve()

    send(client, event(tokens=value))

    assert [each.value for each in openmeter.counted] == [int(float(value)) if value in ("5.0", 5.0) else int(value)]


def test_a_key_is_asked_for_if_there_is_one(serve):
    openmeter, client = serve(key="om_secret")

    refused = [send(client, event()), client.get("/meters", headers={"authorization": "Bearer wrong"})]
    client.headers["authorization"] = "Bearer om_secret"
    taken = [send(client, event()), client.get("/meters")]

    assert [each.status_code for each in refused + taken] == [401, 401, 204, 200]
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert "om_secret" not in refused[0].text
    assert len(openmeter.counted) == 1


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", f"{BATCH}; charset=utf-8", "application/json; charset=utf-8"]
)
def test_another_content_type_is_a_bad_request(serve, content_type):
    openmeter, client = serve()

    answer = send(client, event(), content_type=content_type)

    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": f"invalid content type: {content_type}",
    }
    assert openmeter.counted == []


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        ({"id": None}, "event 1: id is missing"),
        ({"source": ""}, "event 1: source must be a text that is not empty"),
        ({"type": 5}, "event 1: type must be a text that is not empty"),
        ({"subject": None}, "event 1: subject is missing"),
        ({"specversion": None}, "event 1: specversion is missing"),
        ({"specversion": "0.1"}, "event 1: specversion must be 1.0"),
        ({"time": "2026-11-21T09:04:49"}, "event 1: time must be as RFC 3339 says"),
        ({"time": "2026-13-21T09:04:49Z"}, "event 1: time must be as RFC 3339 says"),
        ({"time": 1_795_251_889}, "event 1: time must be a text that is not empty"),
        ({"data": [5]}, "event 1: data must be an object"),
        ({"datacontenttype": "text/plain"}, "event 1: datacontenttype must be application/json"),
        (
            {"token_type": "input"},
            "event 1: 'token_type' is no name of an attribute: lower-case letters and digits are",
        ),
        ({"trace": {"id": 1}}, "event 1: trace must be a text, a whole number, or true or false"),
    ],
)
def test_one_invalid_event_refuses_the_whole_batch(serve, wrong, detail):
    openmeter, client = serve()

    answer = send(client, event(), event("e2", **wrong))

    assert (answer.status_code, answer.json()["detail"]) == (400, detail)
    assert (openmeter.counted, openmeter.dropped, openmeter.errors) == ([], [], [])


@pytest.mark.parametrize(
    ("content", "content_type", "detail"),
    [
        (b"{", BATCH, "the body is no JSON"),
        (b'[{"data": NaN}]', BATCH, "the body is no JSON"),
        (b"{}", BATCH, f"a body of {BATCH} must be an array"),
        (b"[]", ONE, f"a body of {ONE} must be one object"),
        (b"[5]", BATCH, "event 0 is no object"),
        (b"[]", "application/json", "invalid event: no events found"),
    ],
)
def test_a_body_that_is_not_what_its_type_says_is_refused(serve, content, content_type, detail):
    _, client = serve()

    answer = client.post("/events", content=content, headers={"content-type": content_type})

    assert (answer.status_code, answer.json()["detail"]) == (400, detail)


def test_an_empty_batch_and_null_for_what_is_optional_are_fine(serve):
    openmeter, client = serve()

    answers = [
        send(client),
        send(client, event(time=None, datacontenttype=None, dataschema=None, data=None, trace=None)),
    ]

    assert [each.status_code for each in answers] == [204, 204]
    assert [each.reason for each in openmeter.dropped] == ['missing value property: "$.tokens"']


def test_an_event_without_a_time_is_of_now(serve):
    openmeter, client = serve()
    openmeter.clock.advance(5.5)

    send(client, event(time=None))

    assert [(each.at, each.received) for each in openmeter.counted] == [(AT + 5, AT + 5.5)]


def test_the_same_source_and_id_are_one_event_for_32_days(serve):
    openmeter, client = serve()
    send(client, event("e1", 1), event("e1", 2))
    send(client, event("e1", 4, source="other"), event("e2", 8, source="a-b"), event("b-e2", 16, source="a"))
    openmeter.clock.advance(32 * DAY - 1)
    send(client, event("e1", 32))

    openmeter.clock.advance(1)
    answer = send(client, event("e1", 64))

    assert (answer.status_code, [each.value for each in openmeter.counted]) == (204, [1, 4, 8, 64])
    assert openmeter.counted_twice() == ["e1"]


def test_without_deduplication_everything_counts(serve):
    openmeter, client = serve(deduplicate=False)

    send(client, event(), event())

    assert ([each.value for each in openmeter.counted], openmeter.counted_twice()) == ([100, 100], ["e1"])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": "promt"}, "no meter counts events of type 'promt'"),
        ({"data": {}}, 'missing value property: "$.tokens"'),
        ({"tokens": "many"}, "value cannot be parsed as float64: many"),
        ({"tokens": "1e999999999"}, "value cannot be parsed as float64: 1e999999999"),
        ({"tokens": True}, "value cannot be parsed as float64: true"),
        ({"tokens": "0.5"}, "its value 0.5 has a fraction: OpenMeter bills it, this fake counts whole units"),
    ],
)
def test_what_no_meter_can_count_is_accepted_and_dropped(serve, fields, reason):
    openmeter, client = serve()

    answer = send(client, event("e1", **fields))

    assert (answer.status_code, openmeter.counted) == (204, [])
    assert [(each.identifier, each.customer, each.reason) for each in openmeter.dropped] == [("e1", "acme", reason)]


def test_a_new_meter_counts_what_is_already_there(serve):
    openmeter, client = serve()
    send(client, event("e1", type="llm", data={"usage": {"input": 3}}), event("e2", type="other"))

    openmeter.add_meter("input_tokens", "llm", "$.usage.input")
    openmeter.add_meter("calls", "llm", aggregation="COUNT")
    send(client, event("e3", type="llm", data={"usage": {"input": 4}}), event("e4", type="llm", data={"usage": {}}))

    assert openmeter.totals() == {("acme", "input_tokens"): 7, ("acme", "calls"): 3}
    assert [each.identifier for each in openmeter.dropped] == ["e2"]
    assert openmeter.counted_twice() == []


@pytest.mark.parametrize(
    ("meter", "message"),
    [
        (("Tokens", "prompt", "$.tokens"), "the slug 'Tokens' must be"),
        (("tokens_total", "prompt", "$.tokens"), "there is a meter 'tokens_total' already"),
        (("tokens", "", "$.tokens"), "event_type must not be empty"),
        (("tokens", "prompt"), "value_property is required"),
        (("tokens", "prompt", "$.tokens", "COUNT"), "value_property is required, except for COUNT"),
        (("tokens", "prompt", "$.tokens", "sum"), "aggregation must be one of SUM, COUNT"),
        (("tokens", "prompt", "tokens"), "JSON paths such as"),
        (("tokens", "prompt", "$.tokens", "SUM", {"model": "$..model"}), "JSON paths such as"),
        (("tokens", "prompt", "$.tokens", "SUM", {"a b": "$.model"}), "'a b' is no name to group by"),
    ],
)
def test_a_meter_that_openmeter_would_refuse_is_refused(serve, meter, message):
    openmeter, _ = serve()

    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        openmeter.add_meter(*meter)


def test_meters_are_listed_and_read(serve):
    _, client = serve()

    listed, read, missing = (
        client.get("/meters").json(),
        client.get("/meters/tokens_total").json(),
        client.get("/meters/x"),
    )

    identifier = read.pop("id")
    assert (len(identifier), identifier[0]) == (26, "0")
    assert listed == [{"id": identifier, **read}]
    assert read == {
        "slug": "tokens_total",
        "name": "tokens_total",
        "aggregation": "SUM",
        "eventType": "prompt",
        "createdAt": "1970-01-01T00:00:00Z",
        "updatedAt": "1970-01-01T00:00:00Z",
        "valueProperty": "$.tokens",
        "groupBy": {"model": "$.model", "type": "$.type"},
    }
    assert (missing.status_code, missing.json()["title"]) == (404, "Not Found")


def used(client: httpx2.Client) -> None:
    send(
        client,
        event("e1", 1, time="2026-11-20T23:59:59.999Z"),
        event("e2", 10, time="2026-11-21T00:00:00Z"),
        event("e3", 30, time="2026-11-21T09:04:59Z", data={"tokens": 30, "model": "gpt-5", "type": "output"}),
        event("e4", 70, time="2026-11-21T09:05:00Z", subject="globex", data={"tokens": 70, "type": "input"}),
        event("e5", 1000, time="2026-11-22T02:00:00+02:00"),
    )


def test_a_query_is_answered_with_rows_by_window_and_group(serve):
    _, client = serve()
    used(client)
    times = {"from": "2026-11-21T00:00:00Z", "to": "2026-11-22T00:00:00Z"}
    asked = {**times, "windowSize": "DAY", "groupBy": ["subject", "model", "type"]}

    answer = client.get("/meters/tokens_total/query", params=asked).json()
    posted = client.post("/meters/tokens_total/query", json=asked).json()

    day = {"windowStart": "2026-11-21T00:00:00Z", "windowEnd": "2026-11-22T00:00:00Z"}
    assert answer == posted
    assert answer == {
        **times,
        "windowSize": "DAY",
        "data": [
            {"value": 70, **day, "subject": "globex", "groupBy": {"model": "", "type": "input"}},
            {"value": 10, **day, "subject": "acme", "groupBy": {"model": "gpt-5", "type": "input"}},
            {"value": 30, **day, "subject": "acme", "groupBy": {"model": "gpt-5", "type": "output"}},
        ],
    }


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({}, [(1111, "2026-11-20T23:59:00Z", "2026-11-22T00:01:00Z", None)]),
        ({"from": "2026-11-21T00:00:00Z"}, [(1110, "2026-11-21T00:00:00Z", "2026-11-22T00:01:00Z", None)]),
        ({"to": "2026-11-21T00:00:00Z"}, [(1, "2026-11-20T23:59:00Z", "2026-11-21T00:00:00Z", None)]),
        ({"to": "2026-11-20T00:00:00Z"}, []),
        ({"subject": "globex"}, [(70, "2026-11-21T09:05:00Z", "2026-11-21T09:06:00Z", "globex")]),
        ({"filterGroupBy[type]": "output"}, [(30, "2026-11-21T09:04:00Z", "2026-11-21T09:05:00Z", None)]),
        ({"filterGroupBy[type]": "output", "filterGroupBy[model]": "gpt-4"}, []),
        (
            {"windowSize": "HOUR", "from": "2026-11-21T09:00:00Z"},
            [
                (100, "2026-11-21T09:00:00Z", "2026-11-21T10:00:00Z", None),
                (1000, "2026-11-22T00:00:00Z", "2026-11-22T01:00:00Z", None),
            ],
        ),
        (
            {"windowSize": "MINUTE", "from": "2026-11-21T09:00:00Z", "to": "2026-11-22T00:00:00Z"},
            [
                (30, "2026-11-21T09:04:00Z", "2026-11-21T09:05:00Z", None),
                (70, "2026-11-21T09:05:00Z", "2026-11-21T09:06:00Z", None),
            ],
        ),
        ({"windowSize": "MONTH"}, [(1111, "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", None)]),
        (
            {"windowSize": "DAY", "windowTimeZone": "America/New_York"},
            [
                (11, "2026-11-20T05:00:00Z", "2026-11-21T05:00:00Z", None),
                (1100, "2026-11-21T05:00:00Z", "2026-11-22T05:00:00Z", None),
            ],
        ),
    ],
)
def test_a_query_is_limited_to_times_subjects_and_groups(serve, asked, rows):
    _, client = serve()
    used(client)

    answer = client.get("/meters/tokens_total/query", params=asked).json()

    assert [(each["value"], each["windowStart"], each["windowEnd"], each["subject"]) for each in answer["data"]] == rows


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [("SUM", 20.5), ("AVG", 5.125), ("MIN", 0.5), ("MAX", 10), ("LATEST", 5), ("UNIQUE_COUNT", 3), ("COUNT", 4)],
)
def test_every_aggregation_is_computed(serve, aggregation, value):
    openmeter, client = serve()
    openmeter.add_meter("other", "prompt", None if aggregation == "COUNT" else "$.tokens", aggregation)
    send(client, event("e1", 10), event("e2", 5, time="2026-11-21T10:00:00Z"), event("e3", 0.5), event("e4", 5))

    answer = client.get("/meters/other/query").json()

    assert [each["value"] for each in answer["data"]] == [value]


def test_a_count_of_nothing_is_a_row(serve):
    openmeter, client = serve()
    openmeter.add_meter("calls", "prompt", aggregation="COUNT")

    answer = client.get("/meters/calls/query").json()

    assert [each["value"] for each in answer["data"]] == [0]


def test_answers_are_doubles_while_counting_is_exact(serve):
    openmeter, client = serve()
    send(client, event("e1", 2**53 + 1), event("e2", 10**30))

    answer = client.get("/meters/tokens_total/query").text

    assert '"value":1.000000000000009e+30' in answer
    assert sum(openmeter.totals().values()) == 10**30 + 2**53 + 1


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        ({"from": "yesterday"}, "from must be as RFC 3339 says"),
        ({"from": "2026-11-21T00:00:00"}, "from must be as RFC 3339 says, with an offset or Z"),
        ({"from": "2026-11-22T00:00:00Z", "to": "2026-11-21T00:00:00Z"}, "from must be before to"),
        ({"windowSize": "WEEK"}, "windowSize must be one of MINUTE, HOUR, DAY, MONTH"),
        ({"windowTimeZone": "Mars/Olympus"}, "invalid time zone: Mars/Olympus"),
        ({"groupBy": "token_type"}, "invalid group by: token_type"),
        ({"filterGroupBy[region]": "eu"}, "invalid group by: region"),
        ({"advancedMeterGroupByFilters": "{}"}, "this fake knows no advancedMeterGroupByFilters: use filterGroupBy"),
    ],
)
def test_a_wrong_query_is_refused(serve, asked, detail):
    openmeter, client = serve()

    answer = client.get("/meters/tokens_total/query", params=asked)

    assert (answer.status_code, answer.json()["detail"], openmeter.errors) == (400, detail, [])


def test_faults_are_problems_too(serve):
    openmeter, client = serve(chaos=Chaos(script=["throttled", "unavailable", "error_after", None]))

    answers = [send(client, event()) for _ in range(4)]

    assert [each.status_code for each in answers] == [429, 503, 500, 204]
    assert {each.headers.get("content-type") for each in answers[:3]} == {"application/problem+json"}
    assert len(openmeter.counted) == 1
