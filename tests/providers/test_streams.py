"""Streams in every cut: however the bytes fall into pieces, the counts and what the caller sees are the same."""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from token_meter import Usage
from token_meter.providers import anthropic, google, openai, sse
from token_meter.providers.base import Call, Endpoint
from token_meter.providers.genai import Chunks
from token_meter.providers.openai import is_usage_only
from token_meter.providers.sse import Framer, events
from token_meter.providers.stream import Hide, Tap
from token_meter.recorder import CallRecorder
from token_meter.testing.provider import LoopbackProvider


class Lines:
    """A journal in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.problems: list[tuple[str, object]] = []

    def opened(self, id: str, line: bytes) -> None:
        self.append(line)

    def ended(self, id: str, lines: bytes) -> None:
        self.append(lines)

    def defer(self, id: str, lines: bytes) -> None:
        self.append(lines)

    def append(self, lines: bytes) -> None:
        self.lines += [json.loads(line) for line in lines.splitlines()]

    def problem(self, what: str, error: BaseException | str) -> None:
        self.problems.append((what, error))


def opened(endpoint: Endpoint, lines: Lines) -> Call:
    recorder = CallRecorder(lines, owner=None, wake=lambda: None)
    call = recorder.begin(endpoint, provider="openai", host="api.openai.com", model="gpt-4o", bound=None)
    call.sent = {"messages": ["Hello"]}
    return call


def metered(
    endpoint: Endpoint, pieces: list[bytes], *, hide: bool = False, framer: Any = None, ending: str = "ended"
) -> tuple[bytes, dict[str, Any]]:
    """What the caller sees of these pieces, and the event."""
    lines = Lines()
    tap = Tap(opened(endpoint, lines), endpoint.fold(), framer or Framer(), Hide(is_usage_only) if hide else None)
    shown = b"".join([*(tap.take(piece) for piece in pieces), tap.rest()])
    tap.settle(ending)
    tap.settle("closed")
    assert lines.problems == []
    [event] = [line for line in lines.lines if line["kind"] == "event"]
    return shown, {name: event.get(name) for name in ("usage", "status", "model", "response_id", "anomalies")}


@cache
def recorded(path: str, document: str, events: int, *, options: str = "") -> bytes:
    """The bytes of a stream as the loopback provider sends them."""
    provider = LoopbackProvider()
    provider._state._run, provider._state._numbers = "0123456789", iter(range(1, 10_000))
    with httpx2.Client(transport=provider.transport(httpx2)) as http:
        response = http.post(f"http://x/~events={events}{options}{path}", content=document, headers=JSON)
        assert response.status_code == 200, response.text
        return re.sub(rb'"created(_at)?":\d+', rb'"created\1":1767225600', response.content)


JSON = {"content-type": "application/json"}
STREAM: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
ASKED = {**STREAM, "stream_options": {"include_usage": True}}
CASES: dict[str, tuple[Endpoint, str, Any]] = {
    "chat": (openai.CHAT, "/v1/chat/completions", STREAM),
    "chat with usage": (openai.CHAT, "/v1/chat/completions", ASKED),
    "completions": (
        openai.COMPLETIONS, "/v1/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello", "stream": True, "stream_options": ASKED["stream_options"]},
    ),
    "responses": (openai.RESPONSES, "/v1/responses", {"model": "gpt-5", "input": "Hello", "stream": True}),
    "images": (openai.IMAGES, "/v1/images/generations", {"model": "gpt-image-1", "prompt": "x", "stream": True}),
    "messages": (
        anthropic.MESSAGES, "/v1/messages",
        {"model": "claude-sonnet-4-6", "max_tokens": 99, "messages": STREAM["messages"], "stream": True},
    ),
}  # fmt: skip

cuts = st.lists(st.integers(min_value=0, max_value=60_000), max_size=40)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def restyled(data: bytes, *, spaced: bool, line_end: bytes) -> bytes:
    """The same events written by another server: spaces in the JSON, other line ends."""
    lines = []
    for line in data.split(b"\n"):
        if spaced and line.startswith(b"data: {"):
            line = b"data: " + json.dumps(json.loads(line[6:])).encode()
        lines.append(line)
    return line_end.join(lines)


styles = st.tuples(st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\r"]))


@properties(max_examples=25)
@given(places=cuts, style=styles, length=st.sampled_from([1, 12, 90]))
@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_counted_the_same_however_it_is_cut(
    name: str, places: list[int], style: tuple[bool, bytes], length: int
) -> None:
    endpoint, path, document = CASES[name]
    data = restyled(recorded(path, json.dumps(document), length), spaced=style[0], line_end=style[1])
    whole, expected = metered(endpoint, [data])
    shown, event = metered(endpoint, cut(data, places))

    assert shown == whole == data
    estimated = event["status"] == "estimated"
    assert {**event, "usage": None} == {**expected, "usage": None}
    assert event["usage"] == expected["usage"] or (estimated and event["usage"]["input"] == expected["usage"]["input"])


@properties(max_examples=60)
@given(places=cuts, spaced=st.booleans(), crlf=st.booleans(), length=st.sampled_from([1, 12, 90]), legacy=st.booleans())
def test_what_was_asked_for_in_secret_is_hidden_however_it_is_cut(
    places: list[int], spaced: bool, crlf: bool, length: int, legacy: bool
) -> None:
    """The caller's bytes are exactly those of a request without `include_usage`."""
    endpoint, path, asked = CASES["completions" if legacy else "chat with usage"]
    plain = {name: value for name, value in asked.items() if name != "stream_options"}
    style = {"spaced": spaced, "line_end": b"\r\n" if crlf else b"\n"}
    bare = restyled(recorded(path, json.dumps(plain), length), **style)  # type: ignore[arg-type]
    data = restyled(recorded(path, json.dumps(asked), length), **style)  # type: ignore[arg-type]
    shown, event = metered(endpoint, cut(data, places), hide=True)

    assert shown == bare
    assert event["status"] == "complete"
    assert event["usage"] == metered(endpoint, [data])[1]["usage"]


def test_every_single_cut_of_a_short_stream() -> None:
    endpoint, path, asked = CASES["chat with usage"]
    data = recorded(path, json.dumps(asked), 2)
    bare = recorded(path, json.dumps(STREAM), 2)
    expected = metered(endpoint, [data], hide=True)
    assert expected[0] == bare

    for place in range(len(data)):
        assert metered(endpoint, [data[:place], data[place:]], hide=True) == expected, place


@properties(max_examples=40)
@given(place=st.integers(min_value=0, max_value=6000), chop=st.integers(min_value=1, max_value=400))
@pytest.mark.parametrize("name", ["chat", "chat with usage", "responses", "messages"])
def test_a_stream_that_ends_anywhere_is_never_taken_for_a_whole_one(name: str, place: int, chop: int) -> None:
    endpoint, path, document = CASES[name]
    data = recorded(path, json.dumps(document), 12)
    place %= len(data)
    data = data[:place]
    whole = metered(endpoint, [recorded(path, json.dumps(document), 12)])[1]
    _, event = metered(endpoint, [data[start : start + chop] for start in range(0, len(data), chop)])

    assert event["status"] in ("estimated", "partial") or event["usage"] == whole["usage"]
    assert event["status"] == "complete" or event["anomalies"]


# ---- what providers do with their counts --------------------------------------------------------------------------


def sse_of(*chunks: Any) -> list[bytes]:
    return [
        b"data: " + (chunk.encode() if isinstance(chunk, str) else json.dumps(chunk, separators=(",", ":")).encode()) + b"\n\n"
        for chunk in chunks
    ]  # fmt: skip


def chunk(usage: Any = None, *, index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": "word"}, "finish_reason": finish}
    return {"id": "c1", "model": "m", "choices": [choice], **({"usage": usage} if usage else {}), **more}


def counts(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def test_counts_that_run_on_after_the_first_choice_has_finished_are_not_cut_off() -> None:
    """Some servers send running totals in every chunk, and one of several choices finishes before the others."""
    pieces = sse_of(
        chunk(counts(5, 1)), chunk(counts(5, 2), finish="stop"), chunk(counts(5, 3), index=1),
        chunk(counts(5, 9), index=1, finish="stop"), "[DONE]",
    )  # fmt: skip
    _, event = metered(openai.CHAT, pieces)

    assert (event["usage"], event["status"]) == ({"input": 5, "output": 9}, "complete")


@pytest.mark.parametrize("marker", [True, False])
def test_counts_beside_the_finish_reason_are_complete(marker: bool) -> None:
    pieces = sse_of(chunk(), chunk(counts(5, 2), finish="stop"), *(["[DONE]"] if marker else []))

    assert metered(openai.CHAT, pieces)[1] == {
        "usage": {"input": 5, "output": 2}, "status": "complete", "model": "m", "response_id": "c1", "anomalies": None,
    }  # fmt: skip


def test_groqs_own_place_for_the_counts_is_read() -> None:
    pieces = sse_of(chunk(), chunk(finish="stop", x_groq={"id": "r", "usage": counts(5, 2)}), "[DONE]")

    assert metered(openai.CHAT, pieces)[1]["usage"] == {"input": 5, "output": 2}


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\n\n", b"data: [DONE]\n\n: bye\n\n"])
def test_the_end_marker_is_known_in_every_form(end: bytes) -> None:
    _, event = metered(openai.CHAT, [*sse_of(chunk()), end])

    assert (event["status"], event["anomalies"]) == ("estimated", ["no_usage"])


def test_comments_and_keepalives_between_the_events_change_nothing() -> None:
    events_ = sse_of(chunk(), chunk(), chunk(counts(5, 2), finish="stop"), "[DONE]")
    pieces = [piece for event in events_ for piece in (b": keepalive\n\n", event, b"event: ping\n\n")]

    assert metered(openai.CHAT, pieces)[1]["usage"] == {"input": 5, "output": 2}
    assert metered(openai.CHAT, [b"".join(pieces)])[1]["usage"] == {"input": 5, "output": 2}


def test_an_estimate_of_a_long_stream_is_close_to_what_arrived() -> None:
    """Visible output is sampled, so that long streams cost nothing; the estimate stays within a few percent."""
    pieces = sse_of(*(chunk() for _ in range(2000)))
    _, event = metered(openai.CHAT, pieces, ending="closed")

    assert event["status"] == "estimated"
    assert abs(event["usage"]["output"] - 2000) < 60


# ---- hiding -------------------------------------------------------------------------------------------------------


def test_content_that_talks_about_usage_is_left_alone() -> None:
    said = 'He said "usage":null and "usage":{"prompt_tokens":1} and {"choices":[],"usage":{}}'
    chunks = [{"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": said}}]} for _ in range(20)]
    extra = {"id": "c", "model": "m", "choices": [], "usage": counts(5, 2)}
    shown, event = metered(openai.CHAT, sse_of(*chunks, extra, "[DONE]"), hide=True)

    assert shown == b"".join(sse_of(*chunks, "[DONE]"))
    assert event["usage"] == {"input": 5, "output": 2}


def test_usage_beside_choices_is_shown() -> None:
    pieces = sse_of(chunk(), chunk(counts(5, 2), finish="stop"), "[DONE]")

    assert metered(openai.CHAT, pieces, hide=True)[0] == b"".join(pieces)


def test_an_event_too_large_to_hold_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 1000)
    [large] = sse_of({"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "x" * 5000}}]})
    pieces = [*sse_of(chunk()), *(large[at : at + 300] for at in range(0, len(large), 300)), *sse_of(chunk(), "[DONE]")]
    for hide in (False, True):
        shown, event = metered(openai.CHAT, pieces, hide=hide)

        assert shown == b"".join(pieces)
        assert "event_too_large" in event["anomalies"]


def test_bytes_of_another_class_are_taken_as_bytes() -> None:
    class Ours(bytes):
        """As a transport of the user's may yield."""

    pieces = sse_of(*(chunk() for _ in range(30)), {"choices": [], "usage": counts(5, 2)}, "[DONE]")
    shown, event = metered(openai.CHAT, [Ours(piece) for piece in pieces], hide=True)

    assert shown == b"".join([*pieces[:30], pieces[31]])
    assert event["usage"] == {"input": 5, "output": 2}


# ---- Google's chunks ----------------------------------------------------------------------------------------------

google_counts = st.dictionaries(
    st.sampled_from(["promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount"]),
    st.integers(min_value=0, max_value=500),
)
google_chunk = st.fixed_dictionaries(
    {"candidates": st.just([{"content": {"parts": [{"text": 'a "usageMetadata" \\ z'}]}}])},
    optional={"usageMetadata": google_counts},
)
google_chunks = st.tuples(st.booleans(), st.booleans(), st.lists(google_chunk, min_size=1, max_size=12)).map(
    lambda drawn: [
        {**({"responseId": "r"} if drawn[0] else {}), **each, **({"modelVersion": "m"} if drawn[1] else {})}
        for each in drawn[2]
    ]
)


@properties(max_examples=100)
@given(chunks=google_chunks)
def test_the_last_value_of_each_of_googles_counts_wins(chunks: list[dict[str, Any]]) -> None:
    merged: dict[str, Any] = {}
    for each in chunks:
        merged |= {"usageMetadata": {**merged.get("usageMetadata", {}), **each.get("usageMetadata", {})}}
        merged |= {name: each[name] for name in ("modelVersion", "responseId") if name in each}
    [expected] = google.read_generation(merged)
    pieces = [json.dumps(each).encode() for each in chunks]
    _, event = metered(google.GENERATE, pieces, framer=Chunks())

    if expected.usage is None:
        assert event["status"] == "estimated"
    else:
        assert event["usage"] == dict(expected.usage)
    assert (event["model"], event["response_id"]) == (expected.model or "gpt-4o", expected.response_id)


# ---- framing ------------------------------------------------------------------------------------------------------

payloads = st.lists(st.binary(min_size=1, max_size=30).map(lambda data: data.translate(TABLE)), min_size=1, max_size=8)
TABLE = bytes(each if each > 32 else ord("x") for each in range(256))


def framed(payloads: list[bytes], line_ends: list[bytes], *, named: bool, ended: bool) -> bytes:
    data = b""
    for number, payload in enumerate(payloads):
        end = line_ends[number % len(line_ends)]
        name = b"event: message" + end if named else b""
        data += name + b"data: " + payload + end + (end if ended or number < len(payloads) - 1 else b"")
    return data


def pieces_read(pieces: list[bytes]) -> list[bytes]:
    framer = Framer()
    blocks = [framer.feed(piece) for piece in pieces]
    assert not framer.overflowed
    return [payload for block in (*blocks, framer.flush()) for payload in events(block)]


@properties(max_examples=200)
@given(
    payloads=payloads, line_ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1, max_size=3),
    named=st.booleans(), ended=st.booleans(), places=cuts,
)  # fmt: skip
def test_events_are_the_same_however_they_are_cut_and_ended(
    payloads: list[bytes], line_ends: list[bytes], named: bool, ended: bool, places: list[int]
) -> None:
    data = framed(payloads, line_ends, named=named, ended=ended)

    assert pieces_read(cut(data, places)) == payloads
    assert pieces_read([data[at : at + 1] for at in range(len(data))]) == payloads


@properties(max_examples=60)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_framing_loses_no_byte_of_anything(pieces: list[bytes]) -> None:
    framer = Framer()
    blocks = [framer.feed(piece) for piece in pieces]

    assert b"".join([*blocks, framer.flush()]) == b"".join(pieces)


def test_data_in_several_lines_is_joined_as_the_standard_says() -> None:
    assert list(events(b"event: x\ndata: one\ndata: two\nid: 7\n\n: comment\n\ndata:three\n\ndata:\n\n")) == [
        b"one\ntwo", b"three",
    ]  # fmt: skip


def test_an_unfinished_event_is_held_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 100)
    framer = Framer()
    for _ in range(50):
        framer.feed(b"x" * 9)
        assert sum(map(len, framer.held)) <= 100

    assert framer.overflowed
    assert framer.feed(b"\n\ndata: next\n\n").endswith(b"data: next\n\n")


def test_usage_is_kept_when_everything_after_it_is_dropped() -> None:
    """A drop right after the usage chunk, before the end marker."""
    _, event = metered(
        openai.CHAT, sse_of(chunk(finish="stop"), {"choices": [], "usage": counts(5, 2)}), ending="failed"
    )

    assert (event["usage"], event["status"]) == (dict(Usage(input=5, output=2)), "complete")
