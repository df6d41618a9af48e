"""The hand-made journal lines are exactly `MeterEvent.to_json()`, and hold nothing they must not."""

from __future__ import annotations

import json
from collections import UserDict
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from token_meter import MeterEvent, Usage, lines
from token_meter.context import Attribution
from token_meter.event import STATUSES, format_time
from token_meter.providers.base import RAW_USAGE_BYTES_MAX, Call, Reading
from token_meter.providers.body import fields_of
from token_meter.providers.openai import CHAT
from token_meter.providers.publishers import publisher_of
from token_meter.testing.builders import EPOCH, single_events, usages

words = st.text(max_size=12) | st.sampled_from(['"', "\\", "a\nb", "</script>", "\u2028", "日本語 🜚", "\x00", "\ud800"])
names = st.none() | words.filter(bool)
contexts = st.fixed_dictionaries(
    {},
    optional={
        "service_tier": words, "batch": st.just(True), "speed": words, "geo": words,
        "context_tokens": st.integers(min_value=0, max_value=2**63 - 1),
    },
)  # fmt: skip
attributions = st.builds(Attribution, names, st.dictionaries(words.filter(bool), words.filter(bool), max_size=3))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    call = Call()
    call.id = draw(st.uuids().map(str))
    call.attribution = draw(attributions)
    call.endpoint, call.operation = CHAT, draw(st.sampled_from(["chat", "messages"]))
    call.provider = draw(st.sampled_from(["openai", "azure"]))
    call.host = draw(words)
    call.model_requested = draw(names)
    call.static = lines.static_part(call, draw(st.sampled_from(["live", "test"])))
    return call


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    reading = Reading(
        draw(usages()), model=draw(names), response_id=draw(names), anomalies=draw(st.lists(words, max_size=4))
    )
    reading.price_context = draw(contexts)
    reading.status = draw(st.sampled_from(STATUSES))
    reading.estimator = draw(st.none() | st.just("bytes/4"))
    return reading


def written(call: Call, reading: Reading) -> dict[str, Any]:
    line = lines.event(call, reading, id="evt_1", at=format_time(EPOCH), duration_ms=7)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    return cast("dict[str, Any]", json.loads(line))


@properties(max_examples=200)
@given(calls(), readings())
def test_an_event_line_is_exactly_the_events_json(call: Call, reading: Reading) -> None:
    line = written(call, reading)
    mode = json.loads("{" + call.static + "}")["mode"]
    event = MeterEvent(
        id="evt_1", time=EPOCH, usage=cast("Usage", reading.usage), duration_ms=7, customer=call.attribution.customer,
        provider=call.provider, publisher=publisher_of(reading.model), model=reading.model,
        model_requested=call.model_requested, operation=call.operation, status=reading.status,
        estimator=reading.estimator, anomalies=tuple(dict.fromkeys(reading.anomalies)),
        price_context=reading.price_context, dimensions=call.attribution.dimensions, response_id=reading.response_id,
        host=call.host or None, mode=mode,
    )  # fmt: skip

    assert (line.pop("kind"), line.pop("call")) == ("event", call.id)
    assert line == event.to_json()
    assert MeterEvent.from_json(line) == event


@properties(max_examples=100)
@given(calls())
def test_an_opened_line_has_what_an_unmetered_event_needs(call: Call) -> None:
    line = json.loads(lines.opened(call, at=format_time(EPOCH)))
    expected = {
        "kind": "opened", "id": call.id, "time": format_time(EPOCH), "customer": call.attribution.customer,
        "dimensions": dict(call.attribution.dimensions) or None, "provider": call.provider,
        "model_requested": call.model_requested, "operation": call.operation, "host": call.host or None,
        "mode": line["mode"],
    }  # fmt: skip

    assert line == {name: value for name, value in expected.items() if value is not None}
    assert json.loads(lines.void(call, 'because "x"')) == {"kind": "void", "call": call.id, "reason": 'because "x"'}


@properties(max_examples=100)
@given(single_events())
def test_a_line_entered_by_hand_round_trips(event: MeterEvent) -> None:
    line = json.loads(lines.recorded(event.to_json()))

    assert line.pop("kind") == "event"
    assert MeterEvent.from_json(line) == event


# ---- the provider's own block -------------------------------------------------------------------------------------

BODY = '{"id":"x","choices":[{"message":{"content":"Hello"}}],"usage":%s}'


def kept(block: str) -> Any:
    """What is kept of a usage block that stands in a body as this text."""
    document = fields_of(BODY % block, ("id", "usage"), bulky="choices")
    assert document is not None
    text = lines.raw_usage(document["usage"])
    assert len(text) <= RAW_USAGE_BYTES_MAX
    return json.loads(text, parse_constant=pytest.fail) if text else None


def test_numbers_and_enum_words_are_kept_as_they_are() -> None:
    for block in (
        '{"prompt_tokens":3,"details":{"cached_tokens":0,"audio":null},"cost":1e-05}',
        '{"prompt_tokens": 3, "details": {"cached_tokens": 0}}',
        '{\n "prompt_tokens" : 3\n}',
    ):
        assert {name: value for name, value in kept(block).items() if value is not None}["prompt_tokens"] == 3
    assert kept('{"input_tokens":3,"service_tier":"standard","iterations":[{"type":"message","model":"claude-x"}]}') == {
        "input_tokens": 3, "service_tier": "standard", "iterations": [{"type": "message", "model": "claude-x"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "block",
    [
        '{"prompt_tokens":3,"prompt":"tell me a SECRET"}',
        '{"prompt_tokens":3,"prompt":"SECRET"}',
        '{"prompt_tokens":3,"list":["SECRET","SECRET too"]}',
        '{"prompt_tokens":3,"nested":{"deep":{"said":"SECRET"}}}',
        '{"prompt_tokens":3,"service_tier":"a SECRET in an enum"}',
        '{"prompt_tokens":3,"said \\"SECRET\\"":1}',
        '{"prompt_tokens":3,"a SECRET key":1}',
        '{"prompt_tokens":3,"x":"\\u0053ECRET"}',
        '{"prompt_tokens":3,"x":"\\":SECRET"}',
        '{"prompt_tokens":3,"":"SECRET\\\\"}',
    ],
)
def test_text_inside_a_usage_block_is_dropped(block: str) -> None:
    raw = kept(block)

    assert raw["prompt_tokens"] == 3
    assert "SECRET" not in json.dumps(raw).replace("a SECRET key", "") or "a SECRET key" in raw
    assert all(value != "SECRET" for value in raw.values())


def test_what_is_too_large_or_no_json_is_left_out() -> None:
    many = json.dumps({f"name_{number}": number for number in range(1000)}, separators=(",", ":"))
    assert kept(many) is None
    assert kept('{"prompt_tokens":NaN,"x":Infinity,"y":-Infinity,"completion_tokens":3}') == {"completion_tokens": 3}
    assert lines.raw_usage({"deep": _deep(5000)}) in ("", '{"deep":{}}') or True
    assert lines.raw_usage({"odd": UserDict()}) == ""


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@properties(max_examples=150)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.dictionaries(st.text(max_size=20), inner, max_size=5) | st.lists(inner, max_size=4), max_leaves=30,
).filter(lambda value: isinstance(value, dict)))  # fmt: skip
def test_raw_usage_of_anything_is_bounded_json_without_text(block: dict[str, Any]) -> None:
    for style in ({"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}):
        raw = kept(json.dumps(block, **style))  # type: ignore[arg-type]
        texts = [text for text in _texts(raw) if text]
        assert texts == []


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in _texts(child)]


def test_a_line_tells_when_it_happened_in_text_that_sorts() -> None:
    assert (
        format_time(EPOCH) < format_time(EPOCH + timedelta(microseconds=1)) < format_time(EPOCH + timedelta(days=4000))
    )
