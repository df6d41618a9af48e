"""AmberfloSink against an Amberflo as documented: compressed records, both tables, what counts once, what is summed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from tests.sinks.kit import BackendConformance, down, event_ids, refusals, rejected, until
from token_meter import Meter
from token_meter.deliver import quarantined
from token_meter.errors import Retry, SinkError
from token_meter.event import MeterEvent
from token_meter.sinks import AmberfloSink, Rule
from token_meter.sinks.http import KeyRefused
from token_meter.testing import make_event
from token_meter.testing.backends import Chaos, FakeAmberflo
from token_meter.testing.backends.base import Request, Response
from token_meter.testing.builders import EPOCH, make_events
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

KEY = "amberflo-secret-key"
MODEL = ("gpt-5-2025-08-07", "openai")
INPUT, OUTPUT, CALLS = ("acme", "llm_tokens", *MODEL, "input"), ("acme", "llm_tokens", *MODEL, "output"), ("acme", "api_calls", *MODEL)  # fmt: skip
Make = Callable[..., tuple[FakeAmberflo, AmberfloSink]]


class Refusing(FakeAmberflo):
    """Refuses a request with a record of the customers or meters named `bad`; keeps bodies."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.bad: set[str] = set()
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Response:
        with self.lock:
            self.requests.append(request)
        if request.method == "POST" and request.path.startswith("/ingest") and self.bad:
            records = json.loads(gzip.decompress(request.body))
            wrong = [each for each in records if {each["customerId"], each["meterApiName"]} & self.bad]
            if wrong:
                return Response.json({"message": f"invalid record {wrong[0]['uniqueId']}"}, status=400)
        return super().answer(request)


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens an Amberflo with these settings, and a sink for it."""
    opened: list[Any] = []

    def make(*, sink: dict[str, Any] | None = None, **settings: Any) -> tuple[FakeAmberflo, AmberfloSink]:
        amberflo = Refusing(key=KEY, **settings).start()
        opened.extend((AmberfloSink(KEY, ingest_url=amberflo.url, **(sink or {})), amberflo))
        return amberflo, opened[-2]

    yield make
    for each in opened:
        each.close()


class TestConformance(BackendConformance):
    @pytest.fixture
    def sink(self) -> Iterator[AmberfloSink]:
        with Refusing(key=KEY) as self.amberflo:
            self.amberflo.bad = {"stranger"}
            sink = AmberfloSink(KEY, ingest_url=self.amberflo.url)
            yield sink
            sink.close()
        assert self.amberflo.errors == []

    refused = make_event(99, customer="stranger")

    def received(self, sink: Any) -> list[str]:
        return event_ids(self.amberflo.counted)

    def broken(self, sink: Any) -> Any:
        return down(self.amberflo)


# ---- what goes out ----


def sent(sink: AmberfloSink, *events: MeterEvent) -> list[dict[str, Any]]:
    """The records that these make, as they would go out."""
    return [each for sketch in sink.sketch(events)[0] for each in json.loads(sketch.body)]


def test_the_records_of_an_event(make: Make) -> None:
    _, sink = make(sink={"dimensions": ["feature"]})
    event = make_event(1, usage=Usage(input=900, cache_read=4000, output=150), dimensions={"feature": "chat"})

    assert sent(sink, event) == snapshot(
        [
            {
                "uniqueId": "evt_1:input",
                "meterApiName": "llm_tokens",
                "meterValue": 900,
                "customerId": "acme",
                "meterTimeInMillis": 1767225601000,
                "dimensions": {
                    "model": "gpt-5-2025-08-07",
                    "provider": "openai",
                    "feature": "chat",
                    "type": "input",
                },
            },
            {
                "uniqueId": "evt_1:cache_read",
                "meterApiName": "llm_tokens",
                "meterValue": 4000,
                "customerId": "acme",
                "meterTimeInMillis": 1767225601000,
                "dimensions": {
                    "model": "gpt-5-2025-08-07",
                    "provider": "openai",
                    "feature": "chat",
                    "type": "cache_read",
                },
            },
            {
                "uniqueId": "evt_1:output",
                "meterApiName": "llm_tokens",
                "meterValue": 150,
                "customerId": "acme",
                "meterTimeInMillis": 1767225601000,
                "dimensions": {
                    "model": "gpt-5-2025-08-07",
                    "provider": "openai",
                    "feature": "chat",
                    "type": "output",
                },
            },
            {
                "uniqueId": "evt_1:api_calls",
                "meterApiName": "api_calls",
                "meterValue": 1,
                "customerId": "acme",
                "meterTimeInMillis": 1767225601000,
                "dimensions": {"model": "gpt-5-2025-08-07", "provider": "openai", "feature": "chat"},
            },
        ]
    )


def test_the_request_is_compressed_and_carries_the_key_in_its_header(make: Make) -> None:
    amberflo, sink = make()

    sink.send([make_event(1)])

    (request,) = amberflo.requests  # type: ignore[attr-defined]
    assert (request.method, request.path) == ("POST", "/ingest/")
    assert request.headers["x-api-key"] == KEY
    assert request.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(request.body)) == sent(sink, make_event(1))


@pytest.mark.parametrize(
    ("template", "meters"),
    [
        ("token_types", {"llm_tokens", "api_calls"}),
        ("llm", {"input_tokens", "output_tokens", "llm_tokens", "api_calls"}),
    ],
)
def test_every_token_type_is_counted_and_they_add_up(make: Make, template: str, meters: set[str]) -> None:
    amberflo, sink = make(sink={"template": template})
    usage = Usage({name: place for place, name in enumerate(TOKEN_TYPES, start=1)})

    sink.send([make_event(1, usage=usage)])

    totals = amberflo.totals()
    assert sum(value for key, value in totals.items() if key[1] != "api_calls") == sum(usage.values())
    assert {key[4] for key in totals if key[1] != "api_calls"} == set(TOKEN_TYPES)
    assert {key[1] for key in totals} == meters


def test_the_llm_template_has_meters_for_input_and_output(make: Make) -> None:
    _, sink = make(sink={"template": "llm"})

    found = sent(
        sink, make_event(1, usage=Usage(input=1, cache_read=2, cache_write_1h=3, cached_output=4, reasoning=5))
    )

    assert [(each["meterApiName"], each["meterValue"], each["dimensions"]["object"]) for each in found] == [
        ("input_tokens", 1, "chat"),
        ("input_tokens", 2, "chat"),
        ("input_tokens", 3, "chat"),
        ("output_tokens", 5, "chat"),
        ("output_tokens", 4, "chat"),
        ("api_calls", 1, "chat"),
    ]


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ValueError, match="template must be 'token_types' or 'llm', not 'openai'"):
        AmberfloSink(KEY, template="openai")  # type: ignore[arg-type]


def test_meters_of_ones_own_are_reported_under_their_name(make: Make) -> None:
    amberflo, sink = make()

    sink.send([make_event(1, usage=Usage(units=12), meter="pages")])

    assert amberflo.totals() == {("acme", "pages", *MODEL): 12}


def test_a_table_of_ones_own(make: Make) -> None:
    _, sink = make(sink={"mapping": [Rule(key="a", meter="all", types=("input", "output"), properties={"kind": "x"})]})

    assert [(each["meterApiName"], each["meterValue"], each["dimensions"]["kind"]) for each in sent(sink, make_event(1))] == [
        ("all", 4, "x")
    ]  # fmt: skip


def test_requests_hold_five_hundred_records(make: Make) -> None:
    amberflo, sink = make()

    sink.send(make_events(400))

    assert amberflo.seen == {("POST", "/ingest/", 200): 3}
    assert amberflo.totals() == {INPUT: 1200, OUTPUT: 400, CALLS: 400}


def test_times_are_milliseconds_rounded_down_exactly(make: Make) -> None:
    _, sink = make()

    found = [
        sent(sink, make_event(1, time=EPOCH + timedelta(microseconds=microseconds)))[0]["meterTimeInMillis"]
        for microseconds in (0, 999, 1_000, 999_999)
    ]

    assert found == [1767225600000, 1767225600000, 1767225600001, 1767225600999]


# ---- refusals ----


@pytest.mark.parametrize("bad", [{1}, {10}, {20}, {1, 10, 20}, set(range(1, 21))])
def test_poison_is_isolated(make: Make, bad: set[int]) -> None:
    """Amberflo says 400 to a whole request: which record it is about is found by halves."""
    amberflo, sink = make()
    amberflo.bad = {"stranger"}  # type: ignore[attr-defined]
    events = [make_event(number, customer="stranger" if number in bad else "acme") for number in range(1, 21)]

    found = rejected(sink, events)

    assert set(found) == {f"evt_{number}" for number in bad}
    assert all(reason.startswith('Amberflo (HTTP 400): {"message":"invalid record evt_') for reason in found.values())
    assert amberflo.totals() == ({INPUT: 3 * left, OUTPUT: left, CALLS: left} if (left := 20 - len(bad)) else {})


def test_of_a_divided_event_the_released_part_counts_once(make: Make) -> None:
    amberflo, sink = make(sink={"template": "llm"})
    amberflo.bad = {"output_tokens"}  # type: ignore[attr-defined]

    (found,) = refusals(sink, [make_event(1)])
    amberflo.bad = set()  # type: ignore[attr-defined]
    left = sent(sink, found.event)
    sink.send([found.event])

    assert [each["uniqueId"] for each in left] == ["evt_1:output"]
    assert [(key[1], value) for key, value in amberflo.totals().items()] == [
        ("input_tokens", 3), ("api_calls", 1), ("output_tokens", 1),
    ]  # fmt: skip


def test_usage_of_nobody_is_refused_before_it_is_sent(make: Make) -> None:
    amberflo, sink = make()

    found = rejected(sink, [make_event(1, customer=None)])

    assert found["evt_1"].startswith("it has no customer.")
    assert amberflo.requests == []  # type: ignore[attr-defined]


def test_a_meter_that_does_not_exist_is_taken_and_only_check_tells(make: Make) -> None:
    """So it is assumed of the real one: see docs/backends.md."""
    amberflo, sink = make(meters=["llm_tokens"])

    sink.send([make_event(1)])

    assert amberflo.totals() == {INPUT: 3, OUTPUT: 1}
    assert [each.meter for each in amberflo.dropped] == ["api_calls"]
    with pytest.raises(SinkError, match=r"Amberflo has no meter api_calls: it takes such usage and never bills it"):
        sink.check()


# ---- faults and keys ----


@pytest.mark.parametrize(
    "fault", ["error_before", "error_after", "reset_before", "reset_after", "unavailable", "throttled"]
)
def test_every_fault_is_a_retry_after_which_all_counts_once(make: Make, fault: Any) -> None:
    amberflo, sink = make()
    amberflo.chaos.script = [None, fault]

    with pytest.raises(Retry):
        sink.send(make_events(300))
    sink.send(make_events(300))

    assert amberflo.totals() == {INPUT: 900, OUTPUT: 300, CALLS: 300}
    assert amberflo.counted_twice() == []


def test_many_faults_lose_and_double_nothing(make: Make) -> None:
    amberflo, sink = make(chaos=Chaos(error_before=0.1, error_after=0.2, reset_after=0.1, unavailable=0.1, seed=3))

    for start in range(0, 300, 60):
        while True:
            try:
                sink.send(make_events(300)[start : start + 60])
            except Retry:
                continue
            break

    assert amberflo.totals() == {INPUT: 900, OUTPUT: 300, CALLS: 300}


def test_a_wrong_key_is_a_retry_and_a_new_one_is_used_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    amberflo, _ = make()
    monkeypatch.setenv("AMBERFLO_API_KEY", "revoked")
    sink = AmberfloSink(ingest_url=amberflo.url)

    with pytest.raises(KeyRefused, match=r"Amberflo refuses the key \(HTTP 403\): .*Forbidden"):
        sink.send([make_event(1)])
    monkeypatch.setenv("AMBERFLO_API_KEY", KEY)
    sink.send([make_event(1)])
    monkeypatch.delenv("AMBERFLO_API_KEY")
    with pytest.raises(Retry, match=r"Amberflo needs a key and has none: set \$AMBERFLO_API_KEY"):
        sink.send([make_event(2)])
    sink.close()

    assert amberflo.totals() == {INPUT: 3, OUTPUT: 1, CALLS: 1}


def test_the_key_is_shown_nowhere(make: Make) -> None:
    amberflo, sink = make()
    shown = [repr(sink), str(sink.sketch([make_event(1)]))]
    amberflo.stop()
    with pytest.raises(Retry) as caught:
        sink.send([make_event(2)])

    assert not [text for text in [*shown, str(caught.value)] if KEY in text]


def test_a_wrong_address_refuses_no_event(make: Make) -> None:
    amberflo, _ = make()
    wrong = AmberfloSink(KEY, ingest_url=f"{amberflo.url}/elsewhere")

    with pytest.raises(Retry, match=r"Amberflo answered HTTP 404: .* Nothing is wrong with the events"):
        wrong.send([make_event(1)])
    wrong.close()


# ---- values ----


def test_corrections_are_negative_values_and_take_the_call_back(make: Make) -> None:
    amberflo, sink = make()

    sink.send([make_event(1), make_event(2, corrects="evt_1", customer="globex", usage=Usage(input=3))])

    assert amberflo.totals() == {
        INPUT: 0, OUTPUT: 0, CALLS: 0, ("globex", "llm_tokens", *MODEL, "input"): 3, ("globex", "api_calls", *MODEL): 1,
    }  # fmt: skip


def test_the_largest_quantity_is_exact(make: Make) -> None:
    amberflo, sink = make()

    sink.send([make_event(1, usage=Usage(input=QUANTITY_MAX))])

    assert amberflo.totals() == {INPUT: QUANTITY_MAX, CALLS: 1}


def test_names_in_any_script_arrive(make: Make) -> None:
    amberflo, sink = make(sink={"dimensions": ["team"]})

    sink.send(
        [make_event(1, customer="Ω 株式会社", model="模型-🜚", dimensions={"team": "lone \ud800"}, usage=Usage(input=1))]
    )

    assert ("Ω 株式会社", "llm_tokens", "模型-🜚", "openai", "input") in amberflo.totals()


# ---- what Amberflo counted ----


def counted(sink: AmberfloSink, pairs: list[tuple[str, str]], *, until: datetime = EPOCH + timedelta(days=2)) -> Any:
    return sink.counted(since=EPOCH, until=until, pairs=pairs)


def test_counted_sums_a_period_by_customer_and_meter(make: Make) -> None:
    _, sink = make()
    times = [
        EPOCH - timedelta(milliseconds=1),
        EPOCH,
        EPOCH + timedelta(minutes=59, seconds=59),
        EPOCH + timedelta(hours=1),
    ]
    sink.send([make_event(place, time=time, usage=Usage(input=10**place)) for place, time in enumerate(times)])
    sink.send([make_event(9, customer="globex", time=EPOCH)])
    pairs = [("acme", "llm_tokens"), ("globex", "llm_tokens"), ("globex", "api_calls"), ("nobody", "llm_tokens")]

    assert list(counted(sink, pairs, until=EPOCH + timedelta(hours=1)).values()) == [110, 4, 1, 0]
    assert list(counted(sink, pairs).values()) == [1110, 4, 1, 0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Response.json({"message": "no"}, status=400), r"Amberflo does not tell usage \(HTTP 400\)"),
        (Response.json({"clientMeters": None}), r"Amberflo does not tell usage \(HTTP 200\)"),
        (Response.json([]), r"Amberflo does not tell usage \(HTTP 200\)"),
        (
            Response.json(
                {"clientMeters": [{"group": {"groupInfo": {"customerId": "acme"}}, "values": [{"value": 0.5}]}]}
            ),
            r"Amberflo answered a sum that is no whole number: 0\.5",
        ),
    ],
)
def test_an_answer_that_tells_no_usage_is_loud(make: Make, answer: Response, said: str) -> None:
    class Odd(FakeAmberflo):
        def answer(self, request: Request) -> Response:
            return answer

    with Odd(key=KEY) as amberflo:
        sink = AmberfloSink(KEY, ingest_url=amberflo.url)
        with pytest.raises(Retry, match=said):
            counted(sink, [("acme", "llm_tokens")])
        sink.close()


# ---- check ----


def test_check_proves_the_key_and_names_the_meters(make: Make) -> None:
    amberflo, sink = make(meters=["llm_tokens", "api_calls", "other"])

    assert sink.check() == ["Amberflo takes the key", "meter api_calls is there", "meter llm_tokens is there"]
    assert amberflo.counted == []


def test_check_with_a_wrong_key(make: Make) -> None:
    amberflo, _ = make()
    sink = AmberfloSink("wrong", ingest_url=amberflo.url)

    with pytest.raises(KeyRefused):
        sink.check()
    sink.close()


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ({"/ingest/": 200, "/meters": 403}, "its meters cannot be listed with this key"),
        ({"/ingest/": 400, "/meters": 404}, "its meters cannot be listed"),
    ],
)
def test_check_makes_do_with_a_key_that_may_only_ingest(answers: dict[str, int], line: str) -> None:
    class Limited(FakeAmberflo):
        def answer(self, request: Request) -> Response:
            return Response.json({"message": "told"}, status=answers[request.path])

    with Limited(key=KEY) as amberflo:
        sink = AmberfloSink(KEY, ingest_url=amberflo.url)
        found = sink.check()
        sink.close()

    assert found == ["Amberflo takes the key", line]


def test_reading_goes_to_the_other_server_unless_there_is_only_one() -> None:
    sinks = [
        AmberfloSink(KEY),
        AmberfloSink(KEY, ingest_url="http://127.0.0.1:1"),
        AmberfloSink(KEY, ingest_url="http://127.0.0.1:1", api_url="http://127.0.0.1:2"),
    ]

    assert [(each._http.url, each._api.url) for each in sinks] == [
        ("https://ingest.amberflo.io", "https://app.amberflo.io"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://127.0.0.1:1", "http://127.0.0.1:2"),
    ]


# ---- through a meter ----


def test_a_customer_without_an_id_there_is_known_by_ours_and_registered_ones_wait(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_meter.delivery.AWAITED_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    (ours, _), (theirs, _) = make(), make()
    same = AmberfloSink(KEY, ingest_url=ours.url, template="llm", name="same")
    registered = AmberfloSink(KEY, ingest_url=theirs.url, customers="registered")

    with Meter("usage.db", same, registered) as meter:
        meter.record(Usage(input=3), customer="acme")
        meter.flush()
        before = theirs.totals()
        meter.customers.edit("acme", external_ids={"amberflo": "A1"})
        until(lambda: len(theirs.counted) == 2)
        meter.flush()

    assert ours.totals() == {("acme", "input_tokens", "input"): 3, ("acme", "api_calls"): 1}
    assert (before, theirs.totals()) == ({}, {("A1", "llm_tokens", "input"): 3, ("A1", "api_calls"): 1})
    assert [each.state for each in quarantined("usage.db.journal", "amberflo")] == ["delivered"]
