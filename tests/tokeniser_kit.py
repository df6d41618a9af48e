"""What the tests of estimates share: a small encoding for tiktoken, as its plugins make them, and its data file.

There is no tiktoken data where tests run, and no network. So the encoding is our own: a real `tiktoken.Encoding`, of the
256 bytes and some merges, under the name that tiktoken's own table gives to gpt-4o.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiktoken
from tiktoken import registry
from tiktoken.load import load_tiktoken_bpe

NAME = "o200k_base"
ESTIMATOR = f"tiktoken:{NAME}+bytes/4"
BLOB = "https://example.com/encodings/small.tiktoken"
RANKS = {bytes([number]): number for number in range(256)} | {
    merge: 256 + place for place, merge in enumerate([b"he", b"ll", b"hell", b"hello", b"us", b"er", b"user", b" w"])
}
DATA = b"".join(base64.b64encode(token) + b" " + str(rank).encode() + b"\n" for token, rank in RANKS.items())
PATTERN = r" ?\w+|\W"


def small() -> dict[str, Any]:
    """A constructor of the kind that tiktoken's plugins register."""
    ranks = load_tiktoken_bpe(BLOB, expected_hash=hashlib.sha256(DATA).hexdigest())
    return {"name": NAME, "pat_str": PATTERN, "mergeable_ranks": ranks, "special_tokens": {"<|end|>": 300}}


def put_data(folder: Path, data: bytes = DATA) -> Path:
    """Write the data file where tiktoken would keep it."""
    folder.mkdir(exist_ok=True)
    path = folder / hashlib.sha1(BLOB.encode()).hexdigest()
    path.write_bytes(data)
    return path


class Gated(tiktoken.Encoding):
    """Notes which threads count, and waits at a gate that tests close."""

    def __init__(self, name: str = NAME) -> None:
        super().__init__(name, pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens={})
        self.threads: set[str] = set()
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None

    def encode_ordinary(self, text: str) -> list[int]:
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return super().encode_ordinary(text)


@contextmanager
def loaded(encoding: tiktoken.Encoding) -> Iterator[None]:
    """Make it the encoding that is loaded, as `tiktoken.get_encoding` leaves it."""
    with patch.dict(registry.ENCODINGS, {encoding.name: encoding}, clear=True):
        yield


@contextmanager
def plugged() -> Iterator[None]:
    """Make `small` the constructor of the encoding; nothing is loaded yet."""
    registry.list_encoding_names()
    with (
        patch.dict(registry.ENCODING_CONSTRUCTORS or {}, {NAME: small}),
        patch.dict(registry.ENCODINGS, clear=True),
    ):
        yield


def cookbook_tokens(messages: list[dict[str, Any]], encoding: tiktoken.Encoding) -> int:
    """`num_tokens_from_messages` of OpenAI's cookbook."""
    total = 0
    for message in messages:
        total += 3
        for key, value in message.items():
            total += len(encoding.encode(value))
            if key == "name":
                total += 1
    return total + 3
