"""Every fault a client can ask for, on the wire and as the SDKs take it."""

from __future__ import annotations

import gzip
import json
import socket
import time
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google import genai

from token_meter.testing.provider import WEIRD, Faults, LoopbackProvider
from token_meter.usage import Usage

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
CHAT: Any = {"model": "gpt-4o", "messages": MESSAGES}
TOLD: Any = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
CLAUDE: Any = {"model": "claude-sonnet-4-6", "max_tokens": 99, "messages": MESSAGES}
GEMINI = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
STREAMS: Any = {
    "/v1/chat/completions": TOLD,
    "/v1/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello", "stream": True},
    "/v1/responses": {"model": "gpt-5", "input": "Hello", "stream": True},
    "/v1/messages": {**CLAUDE, "stream": True},
    GEMINI: {"contents": [{"parts": [{"text": "Hello"}]}]},
    "/v1beta/interactions": {"model": "gemini-2.5-flash", "input": "Hello", "stream": True},
}
TERMINAL = {
    "/v1/chat/completions": "[DONE]",
    "/v1/completions": "[DONE]",
    "/v1/responses": "response.completed",
    "/v1/messages": "message_stop",
    GEMINI: "STOP",
    "/v1beta/interactions": "[DONE]",
}


def fetch(provider: LoopbackProvider, path: str = "/v1/chat/completions", document: Any = TOLD, **options: Any) -> str:
    return httpx2.post(provider.url_with(**options) + path, json=document, timeout=20).text


def exchange_raw(provider: LoopbackProvider, options: str, document: Any) -> bytes:
    """Everything the server sends, headers and framing included, until it hangs up."""
    body = json.dumps(document).encode()
    head = f"POST /~{options}/v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(provider.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(head.encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("path", STREAMS)
def test_a_clean_cut_ends_a_stream_without_error_and_without_its_terminal_marker(provider, path):
    whole = fetch(provider, path, STREAMS[path])
    cut = fetch(provider, path, STREAMS[path], cut=3)

    assert TERMINAL[path] in whole
    assert (TERMINAL[path] in cut, cut.count("data: ")) == (False, 3)
    assert [(line.delivered, line.told) for line in provider.billed] == [
        (True, line.reported is not None) if not place else (False, False) for place, line in enumerate(provider.billed)
    ]
    assert [line.events for line in provider.billed] == [whole.count("data: "), 3]
    assert provider.billed[0].usage == provider.billed[1].usage


@pytest.mark.parametrize("path", STREAMS)
def test_a_drop_breaks_the_connection(provider, path):
    with pytest.raises(httpx2.RemoteProtocolError):
        fetch(provider, path, STREAMS[path], drop=3)

    [line] = provider.billed
    assert (line.delivered, line.told, line.events) == (False, False, 3)


@pytest.mark.parametrize("path", STREAMS)
def test_no_done_leaves_only_the_last_event_out(provider, path):
    whole = fetch(provider, path, STREAMS[path]).count("data: ")
    ended = fetch(provider, path, STREAMS[path], no_done=True)

    assert ended.count("data: ") == whole - 1
    assert TERMINAL[path] not in ended
    assert [line.delivered for line in provider.billed] == [True, False]


def test_without_done_everything_else_is_told(provider):
    fetch(provider, no_done=True)

    assert (provider.billed[0].told, provider.billed[0].delivered) == (True, False)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/chat/completions", '"type":"server_error"'),
        ("/v1/completions", '"type":"server_error"'),
        ("/v1/responses", "event: response.failed"),
        ("/v1/messages", "event: error"),
        (GEMINI, '"status":"UNAVAILABLE"'),
        ("/v1beta/interactions", '"event_type":"error"'),
    ],
)
def test_an_error_in_the_middle_of_a_stream(provider, path, error):
    text = fetch(provider, path, STREAMS[path], errmid=3)

    assert error in text and TERMINAL[path] not in text
    assert text.count("data: ") == (5 if path == "/v1/responses" else 4)
    assert (provider.billed[0].delivered, provider.billed[0].told) == (False, False)


def test_an_error_beyond_the_end_never_happens(provider):
    assert fetch(provider, errmid=999) != ""
    assert provider.billed[0].delivered


def test_the_sdks_raise_what_they_raise_for_the_real_ones(provider):
    with (
        openai.OpenAI(base_url=provider.url_with(errmid=3) + "/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.APIError, match="had an error"),
    ):
        list(client.chat.completions.create(**CHAT, stream=True))
    with (
        openai.OpenAI(base_url=provider.url_with(errmid=3) + "/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.APIError, match="had an error"),
    ):
        list(client.responses.create(model="gpt-5", input="Hello", stream=True))
    with (
        anthropic.Anthropic(base_url=provider.url_with(errmid=3), api_key="k", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match="Overloaded"),
    ):
        list(client.messages.create(**CLAUDE, stream=True))
    with (
        genai.Client(api_key="k", http_options={"base_url": provider.url_with(errmid=3)}) as client,
        pytest.raises(genai.errors.APIError, match="overloaded"),
    ):
        list(client.models.generate_content_stream(model="gemini-2.5-flash", contents="Hello"))


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("options", [{"gzip": True}, {"chop": 7}, {"chop": 7, "gzip": True}, {"chop": 1}])
def test_packing_and_pieces_change_no_byte(provider, path, options):
    def shape(text: str) -> list[tuple[int, str]]:
        """Without ids and times: the lengths of the lines and how each begins."""
        return [(len(line), line[:20]) for line in text.split("\n")]

    assert shape(fetch(provider, path, STREAMS[path], **options)) == shape(fetch(provider, path, STREAMS[path]))
    assert all(line.delivered for line in provider.billed)


def test_pieces_of_a_stream_are_http_chunks(provider):
    raw = exchange_raw(provider, "chop=7,events=2", {**CHAT, "stream": True})

    sizes = [int(line, 16) for line in raw.split(b"\r\n\r\n", 1)[1].split(b"\r\n")[:-2:2]]
    assert set(sizes) <= set(range(8)) and sizes.count(7) > 50 and sizes[-1] == 0


def test_plain_bodies_can_be_packed_chopped_dropped_and_cut(provider):
    packed = httpx2.post(provider.url_with(gzip=True) + "/v1/chat/completions", json=CHAT)
    chopped = httpx2.post(provider.url_with(chop=5) + "/v1/chat/completions", json=CHAT)
    empty = httpx2.post(provider.url_with(cut=0) + "/v1/chat/completions", json=CHAT)
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.post(provider.url_with(drop=0) + "/v1/chat/completions", json=CHAT)

    assert packed.headers["content-encoding"] == "gzip" and packed.json()["usage"] == chopped.json()["usage"]
    assert (int(chopped.headers["content-length"]), empty.content) == (len(chopped.content), b"")
    assert [(line.told, line.delivered) for line in provider.billed] == [(True, True)] * 2 + [(False, False)] * 2
    assert all(line.usage == Usage(input=9, output=19) for line in provider.billed)


def test_packed_events_arrive_one_by_one(provider):
    raw = exchange_raw(provider, "gzip,events=1", {**CHAT, "stream": True})

    pieces = raw.split(b"\r\n\r\n", 1)[1].split(b"\r\n")[1:-2:2]
    assert len(pieces) == 5
    assert gzip.decompress(b"".join(pieces)).endswith(b"data: [DONE]\n\n")


def test_crlf_line_ends(provider):
    text = fetch(provider, crlf=True)

    assert text.count("\r\n") == text.count("\n") == 2 * text.count("data: ")
    with openai.OpenAI(base_url=provider.url_with(crlf=True) + "/v1", api_key="k") as client:
        assert list(client.chat.completions.create(**TOLD))[-1].usage.total_tokens == 28


def test_slow_waits_after_events_and_delay_before_the_headers(provider):
    started = time.monotonic()
    fetch(provider, slow=0.02, events=3)
    slow = time.monotonic() - started
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(provider.url_with(delay=5) + "/v1/embeddings", json={"model": "e", "input": "x"}, timeout=0.1)

    assert 0.1 < slow < 3
    assert provider.billed[1].api == "openai.embeddings"


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_requests_fail(provider, count):
    url = provider.url_with(fail=f"429x{count}", retry_after=2)
    responses = [httpx2.post(f"{url}/v1/chat/completions", json=CHAT) for _ in range(count + 1)]
    other = httpx2.post(provider.url_with(fail=f"429x{count}", retry_after=2) + "/v1/chat/completions", json=CHAT)

    assert [response.status_code for response in responses] == [429] * count + [200]
    assert (responses[0].headers["retry-after"], responses[0].headers["retry-after-ms"]) == ("2", "2000")
    assert responses[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert (other.status_code, len(provider.billed)) == (429, 1)


def test_the_sdks_retry_failures(provider):
    with openai.OpenAI(base_url=provider.url_with(fail="500x2") + "/v1", api_key="k") as client:
        chat = client.chat.completions.create(**CHAT)
    with anthropic.Anthropic(base_url=provider.url_with(fail="529x2"), api_key="k") as client:
        message = client.messages.create(**CLAUDE)
    with (
        anthropic.Anthropic(base_url=provider.url_with(fail="429x0"), api_key="k", max_retries=1) as client,
        pytest.raises(anthropic.RateLimitError),
    ):
        client.messages.create(**CLAUDE)
    with (
        genai.Client(api_key="k", http_options={"base_url": provider.url_with(fail="503")}) as client,
        pytest.raises(genai.errors.ServerError, match="UNAVAILABLE"),
    ):
        client.models.generate_content(model="gemini-2.5-flash", contents="Hello")

    assert (chat.usage.total_tokens, message.usage.output_tokens) == (28, 19)
    assert [line.response_id for line in provider.billed] == [chat.id, message.id]
    assert len(provider.requests) == 3 + 3 + 2 + 1


@pytest.mark.parametrize("events", [1, 40, 2000])
def test_the_length_of_the_answer(provider, events):
    chunks = [json.loads(line[6:]) for line in fetch(provider, events=events).split("\n") if line.startswith("data: {")]

    deltas = [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]]
    assert len(list(filter(None, deltas))) == events
    assert chunks[-1]["usage"]["completion_tokens"] == provider.billed[0].usage.output


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", TOLD),
        ("/v1/embeddings", {"model": "e", "input": ["a", "b"], "encoding_format": "base64"}),
        ("/v1/images/generations", {"model": "gpt-image-1", "prompt": "x"}),
        ("/v1/audio/speech", {"model": "tts-1", "input": "x"}),
        ("/v1beta/models/e:batchEmbedContents", {"requests": [{}]}),
    ],
)
def test_bodies_as_large_as_asked_for(provider, path, document):
    response = httpx2.post(provider.url_with(size=300_000) + path, json=document)

    assert 300_000 <= len(response.content) < 4_000_000
    assert (provider.billed[0].delivered, response.status_code) == (True, 200)


@pytest.mark.parametrize("option", ["nousage", "nullusage"])
@pytest.mark.parametrize("path", STREAMS)
def test_usage_left_out_is_billed_all_the_same(provider, path, option):
    streamed = fetch(provider, path, STREAMS[path], **{option: True})
    plain_path = path.replace("streamGenerateContent?alt=sse", "generateContent")
    document = {name: value for name, value in STREAMS[path].items() if not name.startswith("stream")}
    plain = fetch(provider, plain_path, document, **{option: True})

    for text in (streamed, plain):
        assert not any(count in text for count in ('"input_tokens"', "total_tokens", "TokenCount"))
    assert ('usage":null' in plain or 'usageMetadata":null' in plain) == (option == "nullusage")
    assert [(line.reported, line.told, line.delivered) for line in provider.billed] == [(None, False, True)] * 2
    assert provider.total().output > 30


SURVIVED = {name for name in WEIRD if name.startswith("usage_")} | {"model_missing", "id_missing"}


DOCUMENT: Any = {
    "id": "x",
    "model": "m",
    "choices": [{"index": 0, "message": {"content": "hi"}}],
    "usage": {"n": 1, "details": {"m": 2}},
}
HOSTILE: Any = {
    "usage_string": {"usage": "n/a"},
    "usage_list": {"usage": [{"n": 1, "details": {"m": 2}}]},
    "usage_number": {"usage": 7},
    "usage_empty": {"usage": {}},
    "usage_extra": {"usage": {**DOCUMENT["usage"], "quantum_tokens": 3, "future_details": {"quantum": 3}}},
    "usage_negative": {"usage": {"n": -2, "details": {"m": -3}}},
    "usage_floats": {"usage": {"n": 1.5, "details": {"m": 2.5}}},
    "usage_huge": {"usage": {"n": 10**30, "details": {"m": 10**30}}},
    "usage_strings": {"usage": {"n": "1", "details": {"m": "2"}}},
    "usage_nulls": {"usage": {"n": None, "details": {"m": None}}},
    "usage_booleans": {"usage": {"n": True, "details": {"m": True}}},
    "usage_details": {"usage": {"n": 1, "details": "n/a"}},
    "choices_null": {"choices": None},
    "message_null": {"choices": [{"index": 0, "message": None}]},
    "model_number": {"model": 5},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_payload_changes_one_thing(name):
    assert WEIRD[name](DOCUMENT) == {**DOCUMENT, **HOSTILE[name]}
    assert WEIRD[name]({"response": DOCUMENT}) == {"response": {**DOCUMENT, **HOSTILE[name]}} or name == "message_null"
    assert WEIRD[name]("[DONE]") == "[DONE]"


def test_the_other_hostile_payloads():
    deep = WEIRD["usage_nested"](DOCUMENT)["usage"]
    depth = 0
    while "details" in deep and "n" not in deep:
        deep, depth = deep["details"], depth + 1

    assert (depth, deep) == (200, DOCUMENT["usage"])
    assert "id" not in WEIRD["id_missing"](DOCUMENT) and "model" not in WEIRD["model_missing"](DOCUMENT)
    assert (WEIRD["empty"](DOCUMENT), WEIRD["list"](DOCUMENT)) == ({}, [DOCUMENT])
    assert set(WEIRD) == {*HOSTILE, "usage_nested", "id_missing", "model_missing", "empty", "list"}


@pytest.mark.parametrize("path", STREAMS)
def test_hostile_payloads_reach_every_stream_and_stay_well_formed(provider, path):
    plain = fetch(provider, path, STREAMS[path])
    for name in WEIRD:
        events = fetch(provider, path, STREAMS[path], weird=name).split("\n\n")
        documents = [
            json.loads(event.split("data: ", 1)[1]) for event in events if "data: {" in event or "data: [{" in event
        ]
        text = json.dumps(documents)

        assert len(events) == len(plain.split("\n\n")) and documents
        if name == "usage_string" and path != "/v1/completions":
            assert '"n/a"' in text
        if name == "model_missing":
            assert '"model":' not in text and "modelVersion" not in text


@pytest.mark.parametrize("name", sorted(SURVIVED))
def test_the_bare_openai_sdk_survives_hostile_usage(provider, name):
    with openai.OpenAI(base_url=provider.url_with(weird=name) + "/v1", api_key="k", max_retries=0) as client:
        plain = client.chat.completions.create(**CHAT)
        chunks = list(client.chat.completions.create(**TOLD))
        response = client.responses.create(model="gpt-5", input="Hello")

    assert plain.choices[0].message.content.startswith("Every call")
    assert (len(chunks), response.output_text[:5]) == (15, "Every")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slwo=1", "no option is called 'slwo'"),
        ("weird=odd", "no hostile payload is called 'odd'"),
        ("fail=429y", "wants a status and a count"),
        ("chop=0", "at least 1"),
        ("drop=x", "invalid literal"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(provider, text, problem):
    response = httpx2.post(f"{provider.url}/~{text}/v1/chat/completions", json=CHAT)

    assert (response.status_code, provider.billed) == (400, [])
    assert problem in response.json()["error"]["message"]


def test_options_survive_the_way_through_a_url():
    faults = Faults(slow=0.05, drop=3, fail="429x2", gzip=True, chop=7, weird="usage_list", no_done=True, id="a")

    assert Faults.parse(faults.text) == faults
    assert faults.text == "slow=0.05,drop=3,fail=429x2,gzip,chop=7,weird=usage_list,no_done,id=a"
    assert Faults.parse("") == Faults()
