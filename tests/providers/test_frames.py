"""AWS event-stream frames: whatever the pieces, the same events; whatever the bytes, no error and no unbounded hold."""

from __future__ import annotations

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from tests.providers.test_anthropic import bedrock_frame
from tests.providers.test_streams import cut
from token_meter.providers import frames
from token_meter.providers.frames import FRAME_BYTES_MAX, FrameFramer
from token_meter.providers.sse import events

bodies = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3), max_size=6)
cuts = st.lists(st.integers(min_value=0, max_value=5000), max_size=20)


def read(pieces: list[bytes]) -> list[object]:
    framer = FrameFramer()
    blocks = [framer.feed(piece) for piece in pieces]
    return [json.loads(payload) for block in (*blocks, framer.flush()) for payload in events(block)]


@properties(max_examples=200)
@given(bodies, cuts)
def test_frames_are_the_same_however_they_are_cut(documents: list[dict[str, object]], places: list[int]) -> None:
    data = b"".join(map(bedrock_frame, documents))

    assert read(cut(data, places)) == documents
    assert read([data[at : at + 1] for at in range(len(data))]) == documents


@properties(max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_raises_nothing_and_is_not_hoarded(pieces: list[bytes]) -> None:
    framer = FrameFramer()
    for piece in pieces:
        framer.feed(piece)

    assert len(framer._held) <= sum(map(len, pieces))
    assert framer.flush() == b""


@pytest.mark.parametrize(
    ("total", "headers"), [(0, 0), (15, 0), (FRAME_BYTES_MAX + 1, 0), (2**32 - 1, 0), (100, 100), (100, 2**32 - 1)]
)
def test_lengths_that_cannot_be_stop_the_reading(total: int, headers: int) -> None:
    framer = FrameFramer()

    assert framer.feed(struct.pack(">III", total, headers, 0) + b"x" * 100) == b""
    assert framer.overflowed
    assert framer.feed(bedrock_frame({"a": 1})) == b""
    assert len(framer._held) == 0


def test_a_frame_that_is_longer_than_it_arrives_is_dropped_at_the_end() -> None:
    framer = FrameFramer()
    whole = bedrock_frame({"a": 1})
    framer.feed(whole + whole[:-1])

    assert framer.flush() == b""
    assert not framer._held


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b'{"bytes": 7}', b'{"bytes": "%%%"}', b'{"message": "throttled"}', b"[" * 50_000,
     json.dumps({"bytes": base64.b64encode(b"\xff\xfe").decode()}).encode()],
    ids=range(8),
)  # fmt: skip
def test_a_frame_that_says_something_else_is_passed_over(payload: bytes) -> None:
    framer = FrameFramer()
    odd = struct.pack(">III", 16 + len(payload), 0, 0) + payload + b"\0\0\0\0"
    block = framer.feed(odd + bedrock_frame({"a": 1}))

    assert list(events(block))[-1] == b'{"a": 1}'


def test_the_largest_frame_the_specification_allows_is_taken() -> None:
    assert frames.FRAME_BYTES_MAX >= 16 * 1024 * 1024
