"""The JSON of records is what the json module writes: in pieces, for texts of any kind, and for colliding names."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, replace
from gzip import decompress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from token_meter import Usage
from token_meter.sinks.amberflo import AmberfloSink
from token_meter.sinks.json_text import members
from token_meter.sinks.mapping import KINDS_MAX, MODEL, Measure, Rule, Table, Texts, measured
from token_meter.sinks.stripe import StripeSink
from token_meter.testing import make_event

TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)
NAMES = st.text(min_size=1, max_size=8)
EVENTS = st.builds(
    make_event,
    id=NAMES,
    customer=NAMES,
    model=st.none() | NAMES,
    usage=st.builds(Usage, input=st.integers(1, 2**63 - 1), output=st.integers(0, 9)),
)


def dumped(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


@given(TEXTS)
def test_members_are_those_of_the_json_module(texts: dict[str, str]) -> None:
    expected = json.dumps(texts, separators=(",", ":"))

    assert f"{{{members(texts)}}}" == f"{{{members(Texts(texts))}}}" == expected


@given(st.lists(EVENTS, min_size=1, max_size=3, unique_by=lambda event: event.id), st.sampled_from(("v2", "stream")))
def test_what_stripe_gets_is_what_the_json_module_writes(events: list[Any], api: Any) -> None:
    sink = StripeSink("sk_live_" + "x" * 20, api=api, customers="same", customer_key="who é", value_key="much")
    records, refusals = sink.records(events)
    documents = [
        {
            "event_name": record.measure.meter,
            "identifier": record.identifier,
            "timestamp": record.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "payload": {**record.measure.properties, "who é": record.customer, "much": str(record.value)},
        }
        for record in records
    ]

    assert not refusals
    calls = [sink._streamed(records)] if api == "stream" else [sink._single(each, each.time) for each in records]
    expected = [dumped({"events": documents})] if api == "stream" else [dumped(each) for each in documents]
    assert [call.body for call in calls] == expected


@pytest.mark.parametrize("name", ["stripe_customer_id", "value"])
def test_the_customer_and_the_value_outrank_a_property_of_that_name(name: str) -> None:
    rule = Rule(key="k", meter="m", types=("input",), properties={name: "forged", "a": "b"})
    sink = StripeSink("sk_live_" + "x" * 20, mapping=[rule], customers="same")
    (record,), _ = sink.records([make_event(customer="acme", usage=Usage(input=3))])

    payload = json.loads(sink.call((record,)).body)["payload"]

    assert payload == {"stripe_customer_id": "acme", "value": "3", "a": "b"}


def test_a_payload_without_properties_is_json_too() -> None:
    sink = StripeSink("sk_live_" + "x" * 20, mapping=[Rule(key="k", meter="m", types=("input",))], customers="same")
    (record,), _ = sink.records([make_event(customer="acme", usage=Usage(input=3))])

    assert json.loads(sink.call((record,)).body)["payload"] == {"stripe_customer_id": "acme", "value": "3"}


@given(st.lists(EVENTS, min_size=1, max_size=3, unique_by=lambda event: event.id))
def test_what_amberflo_gets_is_what_the_json_module_writes(events: list[Any]) -> None:
    sink = AmberfloSink("key-" + "x" * 20)
    records, refusals = sink.records(events)
    documents = [
        {
            "uniqueId": record.identifier,
            "meterApiName": record.measure.meter,
            "meterValue": record.value,
            "customerId": record.customer,
            "meterTimeInMillis": int(record.time.timestamp() * 1000),
            "dimensions": dict(record.measure.properties),
        }
        for record in records
    ]

    assert not refusals
    assert decompress(sink.call(records).body) == dumped(documents)


class Odd(int):
    """A whole number that shows itself in another way."""

    __str__ = __repr__ = lambda self: '1,"forged":2'  # type: ignore[assignment]


def test_a_whole_number_is_written_as_one_however_it_shows_itself() -> None:
    def mapping(event: Any) -> list[Measure]:
        return [Measure(key="k", meter="m", value=Odd(7), properties={"a": "b"})]

    (record,), _ = AmberfloSink("key-" + "x" * 20, mapping=mapping).records([make_event(customer="acme")])
    (other,), _ = (stripe := StripeSink("sk_live_" + "x" * 20, mapping=mapping, customers="same")).records(
        [make_event(customer="acme")]
    )

    (sent,) = json.loads(decompress(AmberfloSink("key-" + "x" * 20).call([record]).body))
    assert sent["meterValue"] == 7
    assert json.loads(stripe.call((other,)).body)["payload"]["value"] == "7"


# ---- properties that measures share ----


def shared() -> Texts:
    (made,) = measured([Rule(key="in", meter="tokens", types=("input",))], MODEL)(make_event(usage=Usage(input=1)))
    assert type(made.properties) is Texts
    return made.properties


def test_measures_of_one_kind_share_their_properties() -> None:
    mapping = measured([Rule(key="in", meter="tokens", types=("input",))], MODEL)
    (first,), (second,), (other,) = (
        mapping(make_event(usage=Usage(input=1), model=model)) for model in ("gpt-5", "gpt-5", "o3")
    )

    assert first.properties is second.properties
    assert other.properties["model"] == "o3"


@pytest.mark.parametrize(
    "change",
    [
        lambda texts: texts.update(model="x"),
        lambda texts: texts.__setitem__("model", "x"),
        lambda texts: texts.__delitem__("model"),
        lambda texts: texts.pop("model"),
        lambda texts: texts.popitem(),
        lambda texts: texts.clear(),
        lambda texts: texts.setdefault("new", "x"),
        lambda texts: texts.__ior__({"model": "x"}),
    ],
)
def test_nobody_can_change_properties_that_are_shared(change: Any) -> None:
    texts = shared()
    before = dict(texts)

    with pytest.raises(TypeError, match="make a mapping of your own"):
        change(texts)
    assert texts == before


def test_a_copy_of_shared_properties_is_a_dictionary_like_any_other() -> None:
    texts = shared()

    for copied in (copy.copy(texts), copy.deepcopy(texts), pickle.loads(pickle.dumps(texts)), {**texts}, texts | {}):
        assert type(copied) is dict
        assert copied == texts


def test_a_measure_of_a_table_can_be_replaced_and_shown_like_any_other() -> None:
    (made,) = measured([Rule(key="in", meter="tokens", types=("input",))], MODEL)(make_event(usage=Usage(input=1)))

    assert replace(made, value=7) == Measure(
        key="in", meter="tokens", value=7, properties=dict(made.properties), types=("input",)
    )
    assert asdict(made)["properties"] == dict(made.properties)


# ---- what is remembered of the kinds of events ----


@settings(max_examples=50)
@given(st.data())
def test_what_is_remembered_of_a_kind_changes_nothing(data: Any) -> None:
    """A table that has seen other events makes of an event what a new one makes of it."""
    names = ("input", "output", "cache_read", "reasoning", "units")
    rules = [
        Rule(
            key=f"k{number}",
            meter=data.draw(st.sampled_from(("", "m"))) or "m",
            types=tuple(data.draw(st.lists(st.sampled_from(names), max_size=3))),
            source=data.draw(st.sampled_from(("llm_tokens", "pages", "*"))),
        )
        for number in range(3)
    ]
    usages = st.dictionaries(st.sampled_from(names), st.integers(1, 9), max_size=4).map(Usage)
    events = data.draw(
        st.lists(
            st.builds(
                make_event,
                usage=usages,
                meter=st.sampled_from(("llm_tokens", "pages", "*", "other")),
                model=st.sampled_from((None, "a", "b")),
            ),
            min_size=1,
            max_size=6,
        )
    )
    warm = measured(rules, MODEL)

    assert [list(warm(event)) for event in [*events, *events]] == [
        list(measured(rules, MODEL)(event)) for event in [*events, *events]
    ]
    for event in events:
        assert [(each.key, each.value) for each in warm(event)] == [
            (rule.key, value) for rule in rules if (value := summed(rule, event)) is not None
        ]


def summed(rule: Rule, event: Any) -> int | None:
    """What a rule finds in an event, by its description."""
    own = event.meter != "llm_tokens"
    if rule.source != event.meter and not (own and rule.source == "*"):
        return None
    if not rule.types:
        return (sum(event.usage.values()) if own else 1) if event.usage else None
    if not set(rule.types) & set(event.usage):
        return None
    return sum(event.usage.get(name, 0) for name in rule.types)


def test_whoever_invents_meters_does_not_fill_our_memory() -> None:
    table = measured([Rule(key="v", meter="", source="*")], MODEL)
    assert isinstance(table, Table)

    for number in range(3 * KINDS_MAX):
        (made,) = table(make_event(usage=Usage(units=1), meter=f"m{number}", model=f"model-{number % 7}"))
        assert made.meter == f"m{number}"

    assert len(table._kinds) <= KINDS_MAX


def test_a_property_that_is_no_text_is_named() -> None:
    table = measured([Rule(key="in", meter="tokens", types=("input",))], {"tier": lambda event: ["gold"]})  # type: ignore[dict-item,return-value]

    with pytest.raises(TypeError, match="the property 'tier' must be a text, not list"):
        table(make_event(usage=Usage(input=1)))


def test_properties_are_not_read_off_an_event_that_makes_no_measure() -> None:
    def never(event: Any) -> str:
        raise AssertionError

    table = measured([Rule(key="in", meter="tokens", types=("input",))], {"tier": never})

    assert list(table(make_event(usage=Usage(output=1)))) == []
