"""OpenMeterSink against an OpenMeter as strict as the real one: CloudEvents, and an id that is known for 32 days."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from tests.journal_kit import event as line
from tests.sinks.kit import BackendConformance, down, event_ids, refusals, rejected
from token_meter import Meter
from token_meter.deliver import deliver_once, quarantined, release
from token_meter.errors import Retry, SinkError
from token_meter.event import MeterEvent
from token_meter.journal import Journal
from token_meter.sinks import OpenMeterSink, Rule
from token_meter.sinks.http import KeyRefused
from token_meter.testing import make_event
from token_meter.testing.backends import Chaos, FakeOpenMeter, VirtualClock
from token_meter.testing.backends.base import Request, Response
from token_meter.testing.builders import EPOCH, make_events
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

KEY = "openmeter-secret-key"
MODEL = ("gpt-5-2025-08-07", "openai")
INPUT, OUTPUT = ("acme", "tokens_total", *MODEL, "input"), ("acme", "tokens_total", *MODEL, "output")
Make = Callable[..., tuple[FakeOpenMeter, OpenMeterSink]]


def opened_with(**settings: Any) -> FakeOpenMeter:
    """An OpenMeter with the meter of its quickstart."""
    openmeter = FakeOpenMeter(**{"key": KEY, **settings}).start()
    openmeter.add_meter("tokens_total", "prompt", "$.tokens", group_by=["model", "type"])
    return openmeter


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens an OpenMeter with these settings, and a sink for it."""
    opened: list[Any] = []

    def make(*, sink: dict[str, Any] | None = None, **settings: Any) -> tuple[FakeOpenMeter, OpenMeterSink]:
        openmeter = opened_with(**settings)
        opened.extend((OpenMeterSink(KEY, base_url=openmeter.url, **(sink or {})), openmeter))
        return openmeter, opened[-2]

    yield make
    for each in opened:
        each.close()


class TestConformance(BackendConformance):
    @pytest.fixture
    def sink(self) -> Iterator[OpenMeterSink]:
        with opened_with() as self.openmeter:
            sink = OpenMeterSink(KEY, base_url=self.openmeter.url, customers=lambda event: NAMES.get(event.customer))
            yield sink
            sink.close()
        assert self.openmeter.errors == []

    refused = make_event(99, customer="stranger")

    def received(self, sink: Any) -> list[str]:
        return event_ids(self.openmeter.counted)

    def broken(self, sink: Any) -> Any:
        return down(self.openmeter)


class Anyone(dict[Any, str]):
    """Everybody under their own name but a stranger."""

    def get(self, name: Any, default: Any = None) -> Any:
        return None if name == "stranger" else name


NAMES = Anyone()


# ---- what goes out ----


def sent(sink: OpenMeterSink, *events: MeterEvent) -> list[dict[str, Any]]:
    """The CloudEvents that these make, as they would go out."""
    return [each for sketch in sink.sketch(events)[0] for each in json.loads(sketch.body)]


def test_the_cloud_events_of_an_event(make: Make) -> None:
    _, sink = make(sink={"dimensions": ["feature"]})
    event = make_event(1, usage=Usage(input=900, cache_read=4000), dimensions={"feature": "chat"})

    assert sent(sink, event) == snapshot(
        [
            {
                "specversion": "1.0",
                "type": "prompt",
                "id": "evt_1:input",
                "source": "token_meter",
                "subject": "acme",
                "time": "2026-01-01T00:00:01.000000Z",
                "data": {
                    "model": "gpt-5-2025-08-07",
                    "provider": "openai",
                    "feature": "chat",
                    "type": "input",
                    "tokens": 900,
                },
            },
            {
                "specversion": "1.0",
                "type": "prompt",
                "id": "evt_1:cache_read",
                "source": "token_meter",
                "subject": "acme",
                "time": "2026-01-01T00:00:01.000000Z",
                "data": {
                    "model": "gpt-5-2025-08-07",
                    "provider": "openai",
                    "feature": "chat",
                    "type": "cache_read",
                    "tokens": 4000,
                },
            },
        ]
    )


def test_every_token_type_is_counted_and_they_add_up(make: Make) -> None:
    openmeter, sink = make()
    usage = Usage({name: place for place, name in enumerate(TOKEN_TYPES, start=1)})

    sink.send([make_event(1, usage=usage)])

    assert {key[-1]: value for key, value in openmeter.totals().items()} == dict(usage)
    assert openmeter.dropped == []


@pytest.mark.parametrize("option", [{"dimensions": ["tokens"]}, {"properties": {"tokens": lambda event: "x"}}])
def test_a_property_cannot_take_the_place_of_the_quantity(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'tokens' is what OpenMeterSink calls the quantity"):
        OpenMeterSink(KEY, **option)


def test_other_types_sources_and_tables(make: Make) -> None:
    _, typed = make(sink={"event_type": "llm", "source": "api.example"})
    _, mapped = make(sink={"mapping": [Rule(key="all", meter="llm_call", types=("input", "output"))]})

    assert [(each["type"], each["source"]) for each in sent(typed, make_event(1))] == [("llm", "api.example")] * 2
    assert [(each["type"], each["data"]["tokens"]) for each in sent(mapped, make_event(1))] == [("llm_call", 4)]


def test_meters_of_ones_own_are_events_of_their_own_type(make: Make) -> None:
    openmeter, sink = make()
    openmeter.add_meter("pages_total", "pages", "$.tokens")

    sink.send([make_event(1, usage=Usage(units=12), meter="pages")])

    assert openmeter.totals() == {("acme", "pages_total", *MODEL): 12}


def test_requests_hold_five_hundred_events(make: Make) -> None:
    openmeter, sink = make()

    sink.send(make_events(600))

    assert openmeter.seen == {("POST", "/api/v1/events", 204): 3}
    assert openmeter.totals() == {INPUT: 1800, OUTPUT: 600}


# ---- refusals ----


@pytest.mark.parametrize("bad", [{1}, {10}, {20}, {1, 10, 20}, set(range(1, 21))])
def test_poison_is_isolated(bad: set[int]) -> None:
    """OpenMeter says 400 to a whole batch: which event it is about is found by halves."""

    class Picky(FakeOpenMeter):
        def answer(self, request: Request) -> Response:
            if b'"stranger"' in request.body:
                return Response.json({"title": "Bad Request", "status": 400, "detail": "no such subject"}, status=400)
            return super().answer(request)

    with Picky() as openmeter:
        openmeter.add_meter("tokens_total", "prompt", "$.tokens")
        sink = OpenMeterSink(base_url=openmeter.url)
        events = [make_event(number, customer="stranger" if number in bad else "acme") for number in range(1, 21)]
        found = rejected(sink, events)
        sink.close()

    assert set(found) == {f"evt_{number}" for number in bad}
    assert all("no such subject" in reason for reason in found.values())
    left = 20 - len(bad)
    assert openmeter.totals() == ({INPUT: 3 * left, OUTPUT: left} if left else {})


def test_usage_of_nobody_is_refused_before_it_is_sent(make: Make) -> None:
    """OpenMeter needs a subject."""
    openmeter, sink = make()

    assert list(rejected(sink, [make_event(1, customer=None)])) == ["evt_1"]
    assert openmeter.seen == {}


# ---- faults and keys ----


@pytest.mark.parametrize("fault", ["error_before", "error_after", "reset_before", "unavailable", "throttled"])
def test_every_fault_is_a_retry_after_which_all_counts_once(make: Make, fault: Any) -> None:
    openmeter, sink = make()
    openmeter.chaos.script = [None, fault]

    with pytest.raises(Retry):
        sink.send(make_events(400))
    sink.send(make_events(400))

    assert openmeter.totals() == {INPUT: 1200, OUTPUT: 400}
    assert openmeter.counted_twice() == []


def test_many_faults_lose_and_double_nothing(make: Make) -> None:
    openmeter, sink = make(chaos=Chaos(error_before=0.1, error_after=0.2, reset_after=0.1, unavailable=0.1, seed=5))

    for start in range(0, 300, 60):
        while True:
            try:
                sink.send(make_events(300)[start : start + 60])
            except Retry:
                continue
            break

    assert openmeter.totals() == {INPUT: 900, OUTPUT: 300}


def test_a_wrong_key_is_a_retry_and_a_new_one_is_used_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    openmeter, _ = make()
    monkeypatch.setenv("OPENMETER_API_KEY", "revoked")
    monkeypatch.setenv("OPENMETER_URL", openmeter.url)
    sink = OpenMeterSink()

    with pytest.raises(KeyRefused, match=r"OpenMeter refuses the key \(HTTP 401\)"):
        sink.send([make_event(1)])
    monkeypatch.setenv("OPENMETER_API_KEY", f" {KEY}\n")
    sink.send([make_event(1)])
    sink.close()

    assert openmeter.totals() == {INPUT: 3, OUTPUT: 1}


@pytest.mark.parametrize("given", [None, "", "  ", lambda: ""])
def test_a_server_of_ones_own_may_ask_for_no_key(make: Make, monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    monkeypatch.delenv("OPENMETER_API_KEY", raising=False)
    openmeter, _ = make(key=None)
    sink = OpenMeterSink(given, base_url=openmeter.url)

    sink.send([make_event(1)])
    assert sink.check() == ["OpenMeter answers (no key is set)", "meter tokens_total counts events of type prompt"]
    sink.close()

    assert openmeter.totals() == {INPUT: 3, OUTPUT: 1}


def test_the_key_is_shown_nowhere(make: Make) -> None:
    openmeter, sink = make()
    shown = [repr(sink), str(sink.sketch([make_event(1)]))]
    openmeter.stop()
    with pytest.raises(Retry) as caught:
        sink.send([make_event(2)])

    assert not [text for text in [*shown, str(caught.value)] if KEY in text]


def test_a_wrong_address_refuses_no_event(make: Make) -> None:
    openmeter, _ = make()
    wrong = OpenMeterSink(KEY, base_url=f"{openmeter.url}/elsewhere")

    with pytest.raises(Retry, match=r"OpenMeter answered HTTP 404: .* Nothing is wrong with the events"):
        wrong.send([make_event(1)])
    wrong.close()


# ---- values ----


def test_corrections_are_negative_values(make: Make) -> None:
    openmeter, sink = make()

    sink.send([make_event(1), make_event(2, corrects="evt_1", customer="globex", usage=Usage(input=3))])

    assert openmeter.totals() == {INPUT: 0, OUTPUT: 0, ("globex", *INPUT[1:]): 3}


def test_the_largest_quantity_is_exact(make: Make) -> None:
    openmeter, sink = make()

    sink.send([make_event(1, usage=Usage(input=QUANTITY_MAX))])

    assert openmeter.totals() == {INPUT: QUANTITY_MAX}


def test_names_in_any_script_arrive(make: Make) -> None:
    openmeter, sink = make(sink={"dimensions": ["team"]})
    event = make_event(1, customer="Ω 株式会社", model="模型-🜚", dimensions={"team": "x"}, usage=Usage(input=1))

    sink.send([event])

    assert openmeter.totals() == {("Ω 株式会社", "tokens_total", "模型-🜚", "openai", "input"): 1}


# ---- 32 days ----


def test_what_may_have_arrived_before_it_forgot_is_left_to_a_human(tmp_path: Path, make: Make) -> None:
    """The first attempt was counted and not told so; the next one comes when OpenMeter knows the id no more."""
    clock = VirtualClock()
    openmeter, sink = make(clock=clock, sink={"now": clock.now})
    with Journal(tmp_path) as journal:
        journal.append(line("evt_1"))
    openmeter.chaos.script = ["error_after"]

    first = deliver_once(tmp_path, sink, replay=True)
    clock.advance(32 * 86_400 + 1)
    second = deliver_once(tmp_path, sink)

    assert (first.sent, first.complete, second.sent, second.quarantined) == (0, False, 0, 1)
    (waiting,) = quarantined(tmp_path, "openmeter")
    assert waiting.reason == (
        "it may have reached OpenMeter more than 32 days ago, and would be counted again. Compare with "
        "`token-meter reconcile sink`, then release or discard it"
    )
    assert sum(openmeter.totals().values()) == 3


def test_what_a_human_releases_is_sent_whatever_its_age(tmp_path: Path, make: Make) -> None:
    clock = VirtualClock()
    openmeter, sink = make(clock=clock, sink={"now": clock.now})
    with Journal(tmp_path) as journal:
        journal.append(line("evt_1"))
    openmeter.chaos.script = ["error_before"]

    deliver_once(tmp_path, sink, replay=True)
    clock.advance(32 * 86_400 + 1)
    deliver_once(tmp_path, sink)
    release(tmp_path, "openmeter", ids="all")
    done = deliver_once(tmp_path, sink)

    assert (done.sent, done.complete) == (1, True)
    assert sum(openmeter.totals().values()) == 3


def test_a_late_first_attempt_is_sent(tmp_path: Path, make: Make) -> None:
    """What never went out cannot have been counted, however old it is."""
    openmeter, sink = make()
    with Journal(tmp_path) as journal:
        journal.append(line("evt_1").replace(b"2026-03-01", b"2025-01-01"))

    assert deliver_once(tmp_path, sink, replay=True).sent == 1
    assert sum(openmeter.totals().values()) == 3


def test_a_server_that_does_not_deduplicate_counts_what_it_is_sent_twice(make: Make) -> None:
    """Known limit: the open source binary does so unless it is told to deduplicate."""
    openmeter, sink = make(deduplicate=False)

    sink.send([make_event(1)])
    sink.send([make_event(1)])

    assert openmeter.totals() == {INPUT: 6, OUTPUT: 2}


# ---- what OpenMeter counted ----


def test_counted_sums_a_period_by_subject(make: Make) -> None:
    _, sink = make()
    times = [EPOCH - timedelta(microseconds=1), EPOCH, EPOCH + timedelta(seconds=59.9), EPOCH + timedelta(minutes=1)]
    sink.send([make_event(place, time=time, usage=Usage(input=10**place)) for place, time in enumerate(times)])
    sink.send([make_event(9, customer="globex", time=EPOCH)])
    pairs = [("acme", "prompt"), ("globex", "prompt"), ("nobody", "prompt")]

    minute = sink.counted(since=EPOCH, until=EPOCH + timedelta(minutes=1), pairs=pairs)
    hour = sink.counted(since=EPOCH, until=EPOCH + timedelta(hours=1), pairs=pairs)

    assert (list(minute.values()), list(hour.values())) == ([110, 4, 0], [1110, 4, 0])


def test_a_type_that_no_meter_counts_shows_as_nothing(make: Make) -> None:
    """OpenMeter stores such events; what it has counted of them is nothing, and that is to be seen."""
    _, sink = make()
    sink.send([make_event(1), make_event(2, usage=Usage(units=5), meter="pages")])
    period = {"since": EPOCH, "until": EPOCH + timedelta(hours=1)}

    assert sink.counted(**period, pairs=[("acme", "prompt"), ("acme", "pages")]) == {
        ("acme", "prompt"): 4, ("acme", "pages"): 0,
    }  # fmt: skip
    with pytest.raises(SinkError, match=r"OpenMeter has no meter that sums \$\.tokens of events of type pages"):
        sink.counted(**period, pairs=[("acme", "pages")])


@pytest.mark.parametrize("answer", [Response.json({"data": None}), Response.json({"title": "no"}, status=400)])
def test_an_answer_that_tells_no_usage_is_loud(answer: Response) -> None:
    class Odd(FakeOpenMeter):
        def answer(self, request: Request) -> Response:
            return answer if request.path.endswith("/query") else super().answer(request)

    with Odd() as openmeter:
        openmeter.add_meter("tokens_total", "prompt", "$.tokens")
        sink = OpenMeterSink(base_url=openmeter.url)
        with pytest.raises(Retry, match=r"OpenMeter does not tell usage \(HTTP"):
            sink.counted(since=EPOCH, until=EPOCH + timedelta(hours=1), pairs=[("acme", "prompt")])
        sink.close()


# ---- check ----


def test_check_finds_the_meter_that_counts(make: Make) -> None:
    openmeter, sink = make()
    openmeter.add_meter("calls", "prompt", aggregation="COUNT")

    assert sink.check() == ["OpenMeter takes the key", "meter tokens_total counts events of type prompt"]
    assert openmeter.seen == {("GET", "/api/v1/meters", 200): 1}


def test_check_is_wrong_when_nothing_would_be_counted(make: Make) -> None:
    openmeter, sink = make(sink={"event_type": "llm"})
    openmeter.add_meter("other", "llm", "$.words")

    with pytest.raises(
        SinkError, match=r"OpenMeter has no meter that sums \$\.tokens of events of type 'llm': it would"
    ):
        sink.check()


def test_check_with_a_wrong_key_or_another_server(make: Make) -> None:
    openmeter, _ = make()
    wrong = OpenMeterSink("wrong", base_url=openmeter.url)
    other = OpenMeterSink(KEY, base_url=f"{openmeter.url}/elsewhere")

    with pytest.raises(KeyRefused):
        wrong.check()
    with pytest.raises(SinkError, match=r"OpenMeter does not list meters \(HTTP 404\)"):
        other.check()
    wrong.close()
    other.close()


# ---- through a meter ----


def test_a_meter_reports_to_it_and_shows_what_it_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    openmeter, _ = make()

    with Meter("usage.db", OpenMeterSink(KEY, base_url=openmeter.url)) as meter:
        meter.customers.edit("globex", external_ids={"openmeter": "G-1"})
        for customer in ("acme", "globex", None):
            meter.record(Usage(input=3), model="gpt-5", provider="openai", customer=customer)
        meter.flush()
        states = {each.name: each.quarantined for each in meter.health().deliveries}

    assert states == {"ledger": 0, "openmeter": 1}
    assert {key[0]: value for key, value in openmeter.totals().items()} == {"acme": 3, "G-1": 3}


def test_of_an_event_that_was_refused_in_part_the_rest_counts_once(make: Make) -> None:
    class Picky(FakeOpenMeter):
        refuses = b'"type":"output"'

        def answer(self, request: Request) -> Response:
            if self.refuses and self.refuses in request.body:
                return Response.json({"title": "Bad Request"}, status=400)
            return super().answer(request)

    with Picky() as openmeter:
        openmeter.add_meter("tokens_total", "prompt", "$.tokens")
        sink = OpenMeterSink(base_url=openmeter.url)
        (found,) = refusals(sink, [make_event(1)])
        openmeter.refuses = b""
        sink.send([found.event])
        sink.close()

    assert found.event.usage == Usage(output=1)
    assert openmeter.totals() == {INPUT: 3, OUTPUT: 1}
