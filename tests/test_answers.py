"""Answers written down as they came: read later they are the same event, and nothing but counts and words is written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from token_meter import InvalidEvent, MeterEvent, NewerSchema, Usage, lines
from token_meter.answers import Answer, completed
from token_meter.context import Attribution
from token_meter.event import format_time
from token_meter.providers import anthropic, openai
from token_meter.providers.base import Call, Endpoint, raw_numbers
from token_meter.providers.body import EXCERPT_BYTES_MAX, excerpt
from token_meter.providers.settle import read_body
from token_meter.segments import decode, to_event
from token_meter.testing.builders import EPOCH

SECRET = "never to be written"
counts = st.none() | st.integers(min_value=0, max_value=10**20)
odd = counts | st.floats(allow_nan=False) | st.booleans() | st.text(max_size=5) | st.integers(max_value=-1)


def usage_of(*names: str, **nested: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Usage blocks with some of these fields, most of them plain counts."""
    value = st.one_of(counts, counts, counts, odd)
    return st.fixed_dictionaries({}, optional={
        **dict.fromkeys(names, value),
        **{name: st.none() | st.fixed_dictionaries({}, optional=dict.fromkeys(inner, value)) for name, inner in nested.items()},
        "service_tier": st.sampled_from(["standard", "batch", "priority"]),
    })  # fmt: skip


OPENAI = usage_of(
    "prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens", "num_sources_used",
    prompt_tokens_details=("cached_tokens", "audio_tokens", "cache_write_tokens"),
    completion_tokens_details=("reasoning_tokens", "audio_tokens", "rejected_prediction_tokens"),
    server_tool_use=("web_search_requests",),
)  # fmt: skip
ANTHROPIC = usage_of(
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    cache_creation=("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"),
    server_tool_use=("web_search_requests",), output_tokens_details=("thinking_tokens",),
)  # fmt: skip

before = st.fixed_dictionaries(
    {}, optional={
        "id": st.sampled_from(["chatcmpl-1", "msg_01X", "", "spaced out"]), "object": st.just("chat.completion"),
        "created": st.integers(min_value=0, max_value=10**10), "model": st.sampled_from(["gpt-5", "claude-x", "a/b:c"]),
        "type": st.just("message"), "role": st.just("assistant"), "service_tier": st.none() | st.just("flex"),
        "note": st.just(SECRET),
    },
)  # fmt: skip
after = st.fixed_dictionaries(
    {}, optional={
        "service_tier": st.none() | st.sampled_from(["default", "priority"]), "system_fingerprint": st.just("fp_1a2b"),
        "x_groq": st.just({"id": "req_1"}), "note": st.just(SECRET), "model": st.just("another"),
    },
)  # fmt: skip
contents = st.sampled_from([
    [], [{"message": {"content": SECRET}}], [{"message": {"content": f'{SECRET} "usage":{{"prompt_tokens":1}}'}}],
    [{"usage": {"prompt_tokens": 7}, "text": SECRET}], [{"message": {"tool_calls": [{"id": "call_1"}]}}], SECRET,
])  # fmt: skip


def call_to(endpoint: Endpoint) -> Call:
    call = Call()
    call.id, call.endpoint, call.operation = "evt_1", endpoint, endpoint.operation
    call.attribution = Attribution("acme", {"feature": "chat"})
    call.provider, call.host, call.model_requested = "openai", "api.openai.com", "gpt-5-asked"
    call.static = lines.static_part(call, "live")
    return call


@st.composite
def bodies(draw: st.DrawFn, endpoint: Endpoint, usage: st.SearchStrategy[dict[str, Any]]) -> bytes:
    """Answers: mostly of the plain form, in the compact style."""
    document = {**draw(before), endpoint.bulky: draw(contents)}
    if draw(st.booleans()):
        document["stop_reason"] = "end_turn"
    document |= {"usage": draw(usage), **draw(after)}
    style = draw(st.sampled_from([(",", ":"), (",", ":"), (",", ":"), (", ", ": ")]))
    return json.dumps(document, separators=style).encode() + draw(st.sampled_from([b"", b"\n", b" \r\n"]))


def both_ways(endpoint: Endpoint, body: bytes) -> tuple[MeterEvent, MeterEvent] | None:
    """The event read later and the event read at once; None for an answer that is not written as it came."""
    call = call_to(endpoint)
    kept = excerpt(body, endpoint.fields, endpoint.bulky)
    if kept is None:
        return None
    line = lines.answered(call, kept, at=format_time(EPOCH), duration_ms=7)
    assert line.count(b"\n") == 1 and line.endswith(b"}\n")
    assert SECRET.encode() not in line
    [reading] = read_body(call, body)
    reading.model = reading.model or call.model_requested
    direct = lines.event(call, reading, id="evt_1", at=format_time(EPOCH), duration_ms=7)
    return without_nulls(to_event(decode(line))), without_nulls(to_event(decode(direct)))


def without_nulls(event: MeterEvent) -> MeterEvent:
    """The text of a block is kept with its nulls, a block that had to be filtered without."""
    return replace(event, raw_usage=raw_numbers(event.raw_usage))


@pytest.mark.parametrize(("endpoint", "usage"), [(openai.CHAT, OPENAI), (anthropic.MESSAGES, ANTHROPIC)])
@properties(max_examples=400)
@given(data=st.data())
def test_read_later_it_is_the_same_event(
    endpoint: Endpoint, usage: st.SearchStrategy[dict[str, Any]], data: st.DataObject
) -> None:
    found = both_ways(endpoint, data.draw(bodies(endpoint, usage)))

    if found is not None:
        later, at_once = found
        assert later == at_once


def plain(**fields: Any) -> bytes:
    document = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5-2025",
        "choices": [{"message": {"content": SECRET}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "service_tier": "default",
    }  # fmt: skip
    return json.dumps(document | fields, separators=(",", ":")).encode()


def test_the_usual_answer_is_written_as_it_came() -> None:
    kept = excerpt(plain(), openai.CHAT.fields, openai.CHAT.bulky)

    assert kept is not None
    assert json.loads(kept) == {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5-2025",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "service_tier": "default",
    }  # fmt: skip
    later, at_once = both_ways(openai.CHAT, plain()) or (None, None)
    assert later is not None and later == at_once
    assert (later.usage, later.model, later.customer) == (Usage(input=3, output=2), "gpt-5-2025", "acme")


@pytest.mark.parametrize("body", [
    b"", b"{}", b"[]", b"null", b"\xff\xfe", plain().replace(b",", b", "), plain(usage=None), plain(usage={}),
    plain(usage={"prompt_tokens": None}), plain(usage={"prompt_tokens": "3"}), plain(usage={"prompt_tokens": 1.5}),
    plain(usage={"prompt_tokens": 3, "said": SECRET}), plain(usage={"prompt_tokens": 3, "a": {"b": {"c": 1}}}),
    plain(usage={"prompt_tokens": 3, "all": [1]}), plain(usage={"prompt_tokens": 3, SECRET: 1}), plain(said=SECRET),
    plain(usage={f"n{'x' * 40}_{number}": 1 for number in range(EXCERPT_BYTES_MAX // 40)}), plain(id=SECRET),
    plain(x_groq={"usage": {"prompt_tokens": 9}}), plain()[:-1], plain()[: plain().index(b'"usage"')],
    plain().replace(b'"choices"', b'"x"'), b'\xef\xbb\xbf' + plain(), plain().replace(b"chatcmpl-1", b"chatcmpl\\n1"),
    plain().replace(b'"usage"', b'"service_tier":"flex","usage"').replace(b',"service_tier":"default"', b""),
])  # fmt: skip
def test_any_other_answer_is_read_at_once(body: bytes) -> None:
    assert excerpt(body, openai.CHAT.fields, openai.CHAT.bulky) is None


def test_a_field_of_the_usage_does_not_stand_for_one_of_the_answer() -> None:
    """The tier of the answer stands before the usage, which tells a tier of its own: the answer's is the one."""
    document = json.loads(plain(service_tier="flex"))
    document["usage"] = document.pop("usage") | {"service_tier": "default"}
    body = json.dumps(document, separators=(",", ":")).encode()

    assert body.index(b'"flex"') < body.index(b'"usage"')
    assert excerpt(body, openai.CHAT.fields, openai.CHAT.bulky) is None


@pytest.mark.parametrize("tail", [
    '"usage":{"said":"%s","said":1,"prompt_tokens":3}}', '"usage":{"prompt_tokens":3,"more":{"said":"%s","said":1}}}',
    '"usage":{"prompt_tokens":3},"system_fingerprint":"%s","system_fingerprint":"fp_1"}',
    '"usage":{"said":"%s"},"usage" :{"prompt_tokens":3}}',
])  # fmt: skip
def test_a_name_that_stands_there_twice_hides_nothing(tail: str) -> None:
    body = plain()[: plain().index(b'"usage"')] + (tail % SECRET).encode()

    assert json.loads(body)["usage"]["prompt_tokens"] == 3
    assert excerpt(body, openai.CHAT.fields, openai.CHAT.bulky) is None


def test_escapes_do_not_look_the_same_whatever_they_say() -> None:
    """A look is without digits, so one answer with the escapes of a word would vouch for any text in escapes."""
    head = plain()[: plain().index(b'"usage"')] + b'"usage":{"prompt_tokens":3},"service_tier":'

    assert excerpt(head + b'"\\u0061\\u0062\\u0063"}', openai.CHAT.fields, openai.CHAT.bulky) is None
    assert excerpt(head + b'"\\u0070\\u0020\\u0071"}', openai.CHAT.fields, openai.CHAT.bulky) is None


def test_a_body_cut_off_in_its_content_does_not_pass_for_a_whole_one() -> None:
    whole = plain(choices=[{"input": {"usage": {"prompt_tokens": 7}}}])
    end = whole.index(b'"usage":{"prompt_tokens":7}') + len(b'"usage":{"prompt_tokens":7}')

    assert all(excerpt(whole[:at], openai.CHAT.fields, openai.CHAT.bulky) is None for at in range(end, end + 4))
    assert excerpt(whole, openai.CHAT.fields, openai.CHAT.bulky) is not None


def test_looks_are_not_hoarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_meter.providers.body._LOOKS_MAX", 3)
    for name in "abcdefgh":
        excerpt(plain(usage={"prompt_tokens": 1, name: 2}), openai.CHAT.fields, openai.CHAT.bulky)
    from token_meter.providers import body

    assert len(body._looks) <= 3


@pytest.mark.parametrize("change", [
    {"answer": None}, {"answer": []}, {"answer": {}}, {"answer": {"usage": {"prompt_tokens": "x"}}},
    {"dialect": "klingon"}, {"dialect": None}, {"dialect": ["openai"]},
])  # fmt: skip
def test_a_line_that_nobody_wrote_is_refused(change: dict[str, Any]) -> None:
    kept = excerpt(plain(), openai.CHAT.fields, openai.CHAT.bulky) or ""
    line = json.loads(lines.answered(call_to(openai.CHAT), kept, at=format_time(EPOCH), duration_ms=7))

    with pytest.raises(InvalidEvent):
        to_event(line | change)


def test_a_line_of_a_later_version_waits() -> None:
    kept = excerpt(plain(), openai.CHAT.fields, openai.CHAT.bulky) or ""
    line = json.loads(lines.answered(call_to(openai.CHAT), kept, at=format_time(EPOCH), duration_ms=7))

    with pytest.raises(NewerSchema):
        to_event(line | {"schema": 99})


def test_what_an_answer_says_besides_the_line_is_bounded() -> None:
    answer = {"usage": {"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": 5}, "model": "m" * 9999}
    event = completed({"dialect": "openai", "answer": answer, "model_requested": "gpt-5"})

    assert event["model"] == "gpt-5"
    assert event["anomalies"] == ["odd_quantity:prompt_tokens", "odd_quantity:completion_tokens", "total_mismatch"]


def test_an_answer_that_is_no_json_is_not_raised_at_whoever_asks() -> None:
    answer = Answer(openai.read_completion, '{"usage":{"prompt_tokens":}}')

    assert (answer.usage(), answer.reading().status, answer.reading().anomalies) == (
        Usage(),
        "unmetered",
        ["unreadable"],
    )
